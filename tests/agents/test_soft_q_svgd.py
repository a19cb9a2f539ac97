"""Soft Q-learning with a Stein sampler: its step against loops, its end against quadrature."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsoft.agents import replay, soft_q_svgd, temperature
from jaxsoft.agents.networks import MLP, NatureCNN, SamplingActorCritic
from jaxsoft.agents.registry import ALGORITHMS, settings_of
from jaxsoft.agents.settings import SettingsError
from tests.support.bridge import assert_trees_close
from tests.support.problems import rollout_of

TAU, GAMMA, S, D, N, T, B, P, M = 0.7, 0.9, 4, 2, 2, 5, 16, 3, 5
LOW, HIGH = np.array([[-1.0, 0.0]]), np.array([[3.0, 0.5]])


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


class Tables(NamedTuple):
    """Of each state: (shift, scale) of the sampler [S, 2, D], and two Qs [2, S, 3]."""

    sampler: Any
    q: Any


def sampler(params, observation, noise):
    shift, scale = jnp.moveaxis(jnp.tensordot(observation, params.sampler, 1), -2, 0)
    return shift + scale * noise


def values(params, observation, action):
    """c_0 + Σ_d c_1 a_d + c_2 a_d² each."""
    powers = [jnp.full(action.shape[:-1], 1.0), jnp.sum(action, -1), jnp.sum(action**2, -1)]
    rows = jnp.moveaxis(jnp.tensordot(observation, params.q, ((-1,), (1,))), -2, 0)
    return jnp.einsum("k...p,...p->k...", rows, jnp.stack(powers, -1))


TABLES = Tables(normal(1, S, 2, D), normal(2, 2, S, 3))
TARGETS = Tables(normal(1, S, 2, D), normal(3, 2, S, 3))
OPTIONS: dict[str, Any] = {
    "low": LOW,
    "high": HIGH,
    "optimiser": optax.sgd(0.1),
    "num_envs": N,
    "observation": jax.ShapeDtypeStruct((S,), jnp.float64),
    "discount": GAMMA,
    "tau": TAU,
    "learning_starts": 0,
    "steps_per_gradient": T * N,
    "capacity": 100,
    "batch_size": B,
    "averaging": 0.25,
    "particles": P,
    "proposals": M,
}


def made(**given):
    return soft_q_svgd.agent(sampler, values, lambda _: TABLES, **OPTIONS | given)


def rollout(ends=0.25):
    action = np.random.default_rng(4).uniform(LOW, HIGH, size=(T, N, 1, D))
    return rollout_of(jnp.asarray(action, jnp.float32), S, ends=ends)


# ---- A step, by loops ----------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    """Name -> arrays of the sampled windows, and of all random numbers of gradient steps.

    Nothing is compiled, so that they are numbers and no callback is needed.
    """
    seen: dict[str, list[Any]] = {"windows": [], "normal": [], "uniform": []}

    def spy(module, name, key, wanted):
        plain = getattr(module, name)

        def spied(*args, **kwargs):
            out = plain(*args, **kwargs)
            if wanted(out):
                seen[key].append(jax.tree.map(np.asarray, out))
            return out

        monkeypatch.setattr(module, name, spied)

    spy(replay, "sample", "windows", lambda out: True)
    for name in ("normal", "uniform"):
        spy(jax.random, name, name, lambda out: out.ndim == 3)
    with jax.disable_jit():
        yield seen


def q_of(tables, k, s, a):
    c = tables[k, s]
    return c[0] + c[1] * a.sum() + c[2] * (a**2).sum()


def direction_at(x, particles, scores, moved):
    """φ(x) = E_i[k(u_i, x) s_i + ∇_{u_i} k(u_i, x)], 2h² = m/log(P + 1)."""
    squares = [((y - u) ** 2).sum() for y in moved for u in particles]
    twice = np.median(squares) / np.log(len(particles) + 1)
    phi = np.zeros(D)
    for u, score in zip(particles, scores, strict=True):
        kernel = np.exp(-((u - x) ** 2).sum() / twice)
        phi += kernel * (score + 2 * (x - u) / twice) / len(particles)
    return phi


@pytest.mark.parametrize("volume", [False, True])
def test_a_step_is_that_of_loops(volume, drawn):
    agent = made(volume=volume)
    state = agent.init(jax.random.key(0))._replace(target_params=TARGETS)
    after, metrics = agent.update(state, rollout(), jax.random.key(1))
    [window], [proposed], noises = drawn["windows"], drawn["uniform"], drawn["normal"]
    assert proposed.shape == (B, M, D)
    np.testing.assert_allclose((proposed.min(), proposed.max()), (-1, 1), atol=0.1)
    assert [x.shape for x in noises] == [(B, P, D)] * 2
    assert np.abs(noises[0] - noises[1]).min() > 0  # two sets
    table, q, targets = (np.asarray(x) for x in (TABLES.sampler, TABLES.q, TARGETS.q))
    gradient = Tables(np.zeros_like(table), np.zeros_like(q))
    count = window.weight.sum()
    critic_loss = stein = 0.0
    for b in np.flatnonzero(window.weight[0]):
        s, s_next = (int(np.argmax(window.observation[i, b])) for i in (0, 1))
        least = [min(q_of(targets, k, s_next, a) for k in range(2)) for a in proposed[b]]
        v = TAU * np.log(np.mean(np.exp(np.array(least) / TAU)))
        v += TAU * D * np.log(2) if volume else 0
        y = window.reward[0, b] + GAMMA * window.discount[0, b] * v
        a = 2 * (window.action[0, b].astype(float).ravel() - LOW[0]) / (HIGH - LOW)[0] - 1
        for k in range(2):
            error = q_of(q, k, s, a) - y
            critic_loss += error**2 / 2 / count
            gradient.q[k, s] += error * np.array([1, a.sum(), (a**2).sum()]) / count
        shift, scale = table[s]
        particles, moved = (shift + scale * noise[b] for noise in noises)
        scores = []
        for u in particles:
            a = np.tanh(u)
            c = q[np.argmin([q_of(q, k, s, a) for k in range(2)]), s]
            scores.append((1 - a**2) * (c[1] + 2 * c[2] * a) / TAU - 2 * a)
        for x, noise in zip(moved, noises[1][b], strict=True):
            phi = direction_at(x, particles, scores, moved)
            gradient.sampler[s] -= np.array([phi, phi * noise]) / P / count
            stein += phi @ phi / P / count
    expected = jax.tree.map(lambda x, g: x - 0.1 * g, TABLES, gradient)
    assert_trees_close(after.params, expected, 1e-6)  # the replay's numbers are single
    follows = jax.tree.map(lambda t, x: t + 0.25 * (x - t), TARGETS, expected)
    assert_trees_close(after.target_params, follows, 1e-6)
    np.testing.assert_allclose(metrics.sums["critic_loss"], critic_loss, rtol=1e-6)
    np.testing.assert_allclose(metrics.sums["stein"], stein, rtol=1e-6)
    assert metrics.updates == 1


def test_the_sampler_does_not_move_the_values_nor_they_it():
    agent = made()
    state = agent.init(jax.random.key(0))
    steps = [
        agent.update(state, given, jax.random.key(1))[0].params
        for given in (rollout(), rollout()._replace(reward=rollout().reward + 1))
    ]
    np.testing.assert_array_equal(steps[0].sampler, steps[1].sampler)
    assert np.abs(steps[0].q - steps[1].q).max() > 1e-3


def test_what_follows_an_end_may_be_anything():
    agent, whole = made(), rollout(ends=0.0)
    over = whole._replace(discount=jnp.zeros((T, N)), cut=jnp.ones((T, N), bool))
    state = agent.init(jax.random.key(0))
    after, _ = agent.update(state, over, jax.random.key(1))
    unknown = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), TARGETS)
    again, metrics = agent.update(state._replace(target_params=unknown), over, jax.random.key(1))
    assert metrics.sums["skipped"] == 0
    assert_trees_close(again.params, after.params)


# ---- Where it ends -------------------------------------------------------------------------------

KNOTS = np.linspace(-3, 3, 7)


def test_it_ends_at_the_boltzmann_policy_of_its_values():
    """Of e^{Q/τ} by the uniform distribution on the box, and not of e^{Q/τ}(1 − a²).

    The sampler is a line through seven knots of its noise, and Q is what it is.
    """
    tau = 0.4

    def q(_, observation, action):
        return (2 * action - 1.5 * action**2)[None, ..., 0] + 0 * observation[None, ..., 0]

    def interpolated(params, observation, noise):
        return jnp.interp(noise, KNOTS, params)

    agent = soft_q_svgd.agent(
        interpolated,
        q,
        lambda _: jnp.asarray(KNOTS),
        **OPTIONS
        | {
            "low": [-1.0],
            "high": [1.0],
            "optimiser": optax.adam(optax.linear_schedule(0.05, 0.0, 1500)),
            "tau": tau,
            "particles": 16,
            "batch_size": 8,
            "proposals": 1,
            "steps_per_gradient": 1,
        },
    )
    state = jax.jit(agent.init)(jax.random.key(0))
    given = rollout()
    given = given._replace(action=given.action[..., :1, 0])

    @jax.jit
    def learn(state, key):
        return agent.update(state, given, key)

    state, _ = jax.lax.scan(learn, state, jax.random.split(jax.random.key(1), 1500 // (T * N)))
    noise = jax.random.normal(jax.random.key(2), (400_000, 1))
    a = np.tanh(interpolated(state.params, None, noise))
    edges = np.linspace(-1, 1, 21)
    found = np.histogram(a, edges)[0] / len(a)
    grid = (np.linspace(-1, 1, 20_001)[1:] + np.linspace(-1, 1, 20_001)[:-1]) / 2
    weight = np.exp((2 * grid - 1.5 * grid**2) / tau)

    def distance(weight):
        return np.abs(found - weight.reshape(20, -1).sum(1) / weight.sum()).sum() / 2

    assert distance(weight) < 0.04
    assert distance(weight * (1 - grid**2)) > 0.15


# ---- Acting --------------------------------------------------------------------------------------


def test_actions_are_of_the_prior_until_learning_starts_and_then_of_the_sampler():
    agent = made(learning_starts=40)
    state = agent.init(jax.random.key(0))
    seen, keys = jnp.eye(S)[jnp.ones(4000, int)], jax.random.split(jax.random.key(1), 4000)
    action, carry, extras = agent.act(state, None, seen, keys)
    assert (carry, extras) == (None, None)
    assert action.shape == (4000, 1, D)
    assert action.dtype == jnp.float32
    inner = 2 * (np.asarray(action) - LOW) / (HIGH - LOW) - 1
    assert np.abs(inner).max() <= 1 + 1e-6
    np.testing.assert_allclose(inner.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(inner.std(0), 1 / np.sqrt(3), rtol=0.05)
    later = state._replace(steps=jnp.asarray(40, jnp.uint32))
    action, _, _ = agent.act(later, None, seen, keys)
    u = np.arctanh((2 * (np.asarray(action, float) - LOW) / (HIGH - LOW) - 1).clip(-1 + 1e-7, None))
    shift, scale = TABLES.sampler[1]
    np.testing.assert_allclose(np.median(u, 0)[0], shift, atol=0.1)
    quarters = np.quantile(u, [0.25, 0.75], axis=0)[:, 0]
    np.testing.assert_allclose(quarters[1] - quarters[0], 1.349 * np.abs(scale), rtol=0.1)


def test_greedy_is_the_best_of_the_same_draws_for_any_key():
    best = np.array([[0.3, 0.2]])
    goal = 2 * (best - LOW) / (HIGH - LOW) - 1

    def towards(_, observation, action):
        return jnp.stack(
            [-jnp.sum((action - jnp.broadcast_to(goal[0], action.shape)) ** 2, -1)] * 2
        )

    def spread(_, observation, noise):
        return noise + 0 * observation[..., :1]

    agent = soft_q_svgd.agent(
        spread, towards, lambda _: jnp.zeros(1), **OPTIONS | {"particles": 500}
    )
    state, seen = agent.init(jax.random.key(0)), jnp.eye(S)
    assert agent.greedy is not None
    one, other = (
        agent.greedy(state, None, seen, jax.random.split(jax.random.key(seed), S))[0]
        for seed in (0, 1)
    )
    np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose((np.asarray(one) - best) / (HIGH - LOW), 0, atol=0.1)


# ---- The network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [False, True])
def test_the_network_starts_at_its_noise_and_takes_any_axes(images):
    rng = np.random.default_rng(0)
    torso: Any = NatureCNN() if images else MLP((8,), activation="relu", layer_norm=True)
    one = (4, 36, 40) if images else (5,)
    seen = jnp.asarray(rng.integers(0, 256, (2, 3, *one)), jnp.uint8 if images else jnp.float32)
    network = SamplingActorCritic(torso, D, len(one), number=3)
    params = network.init(jax.random.key(0), seen[0])
    apply: Callable[..., Any] = jax.jit(network.apply, static_argnames="method")
    noise = jnp.asarray(rng.normal(size=(2, 3, D)), jnp.float32)
    u = apply(params, seen, noise, method="sample")
    q = apply(params, seen, jnp.tanh(noise), method="values")
    assert (u.shape, q.shape) == ((2, 3, D), (3, 2, 3))
    assert (u.dtype, q.dtype) == (jnp.float32, jnp.float32)
    np.testing.assert_allclose(u, noise, atol=0.1)
    assert np.abs(np.diff(q, axis=0)).min() > 0
    # It is no mere shift: what is added depends on the noise.
    elsewhere = apply(params, seen, noise + 1, method="sample") - noise - 1
    assert np.abs(elsewhere - (u - noise)).max() > 1e-5
    alone = apply(params, seen[1, 2], noise[1, 2], method="sample")
    np.testing.assert_allclose(alone, u[1, 2], rtol=1e-4, atol=1e-5)


# ---- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"low": [-np.inf], "high": [1.0]}, "finite numbers, the least below the greatest"),
        ({"particles": 0}, "particles"),
        ({"proposals": 0}, "proposals"),
        ({"averaging": 0.0}, "a share"),
        ({"tau": temperature.tuned(0.4)}, "a number or a schedule, .* The KL of a sampler"),
    ],
)
def test_mistakes_are_named(given, words):
    with pytest.raises(ValueError, match=words):
        made(**given)


@pytest.mark.parametrize("name", ["target_kl", "target_entropy"])
def test_a_temperature_by_its_divergence_is_refused(name):
    settings = settings_of("soft_q_svgd", {name: 0.5}, images=False)
    flag = "--" + name.replace("_", "-")
    with pytest.raises(SettingsError, match=f"^{flag} 0.5 does not go with a sampler: .* --tau"):
        ALGORITHMS["soft_q_svgd"].check("soft_q_svgd", settings, 50_000)
    given = settings_of("soft_q_svgd", {"final_tau": 0.1}, images=False)
    ALGORITHMS["soft_q_svgd"].check("soft_q_svgd", given, 50_000)
