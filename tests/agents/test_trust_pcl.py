"""Trust-PCL from a replay, against the two penalties written out."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsoft.agents import replay, trust_pcl
from jaxsoft.agents.base import Rollout

TAU, TRUST, GAMMA, S, A, N, T, n = 0.7, 0.4, 0.9, 4, 3, 2, 6, 3
LOG_PRIOR = np.log([0.2, 0.5, 0.3])


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def network(params, observation):
    v, logits = params
    return v[observation], jax.nn.log_softmax(logits[observation])


PARAMS = normal(0, S), normal(1, S, A)
LAGGED = normal(2, S), normal(3, S, A)


def made(**given):
    options: dict[str, Any] = {
        "optimiser": optax.sgd(0.1),
        "num_envs": N,
        "observation": jax.ShapeDtypeStruct((), jnp.int32),
        "capacity": 100,
        "batch_size": 16,
        "discount": GAMMA,
        "tau": TAU,
        "trust": TRUST,
        "log_prior": LOG_PRIOR,
        "n": n,
        "learning_starts": 0,
        "steps_per_gradient": T * N,
        "averaging": 0.25,
    }
    return trust_pcl.agent(network, lambda _: PARAMS, **options | given)


def rollout():
    rng = np.random.default_rng(7)
    terminated, dummy = rng.random((2, T, N)) < 0.3
    return Rollout(
        observation=jnp.asarray(rng.integers(S, size=(T + 1, N)), jnp.int32),
        action=jnp.asarray(rng.integers(A, size=(T, N)), jnp.int32),
        reward=jnp.asarray(rng.normal(size=(T, N))),
        discount=jnp.asarray(1.0 - (terminated & ~dummy)),
        cut=jnp.asarray(terminated | dummy),
        weight=jnp.asarray(1.0 - dummy),
        first=jnp.zeros((T + 1, N), bool),
    )


def by_hand(params, window):
    """Mean of ½(V_0 − γᵈV_d − Σγ^i(r − τℓ − λℓ̃))², paths no longer than their episode."""
    v, logits = params
    log_pi = jax.nn.log_softmax(logits)
    lagged = jax.nn.log_softmax(LAGGED[1])
    total, count = jnp.zeros(()), 0
    for b in np.flatnonzero(window.weight[0]):
        count += 1
        residual = v[window.observation[0, b]]
        for d in range(n):
            s, a = window.observation[d, b], window.action[d, b]
            penalty = TAU * (log_pi[s, a] - LOG_PRIOR[a]) + TRUST * (log_pi[s, a] - lagged[s, a])
            residual -= GAMMA**d * (window.reward[d, b] - penalty)
            if window.cut[d, b] or d == n - 1:
                value = v[window.observation[d + 1, b]]
                residual -= GAMMA ** (d + 1) * window.discount[d, b] * value
                break
        total += residual**2 / 2
    return total / count


def test_a_step_is_that_of_both_penalties(monkeypatch):
    agent = made()
    state = agent.init(jax.random.key(0))._replace(target_params=LAGGED)
    drawn = []
    sample = replay.sample

    def spy(*args, **kwargs):
        window = sample(*args, **kwargs)
        jax.debug.callback(lambda w: drawn.append(jax.tree.map(np.asarray, w)), window)
        return window

    monkeypatch.setattr(replay, "sample", spy)
    after, metrics = agent.update(state, rollout(), jax.random.key(1))
    jax.effects_barrier()
    [window] = drawn
    assert window.cut[:-1].any()
    loss, gradient = jax.value_and_grad(by_hand)(PARAMS, window)
    expected = jax.tree.map(lambda x, g: x - 0.1 * g, PARAMS, gradient)
    # The replay's discounts are of single precision.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(close, after.params, expected)
    follows = jax.tree.map(lambda t, x: t + 0.25 * (x - t), LAGGED, expected)
    jax.tree.map(close, after.target_params, follows)
    close(metrics.sums["loss"], loss)


def test_it_acts_by_its_policy():
    agent = made()
    state = agent.init(jax.random.key(0))
    seen, keys = jnp.zeros(4000, jnp.int32), jax.random.split(jax.random.key(1), 4000)
    action, carry, extras = agent.act(state, None, seen, keys)
    assert carry is None
    assert extras is None
    pi = jax.nn.softmax(PARAMS[1][0])
    np.testing.assert_allclose(np.bincount(action, minlength=A) / 4000, pi, atol=0.03)
    np.testing.assert_array_equal(agent.greedy(state, None, seen, keys)[0], jnp.argmax(pi))
