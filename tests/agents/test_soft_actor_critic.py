"""Soft actor-critic: both kinds of actions against enumeration, quadrature and loops."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsoft
from jaxsoft import squashed
from jaxsoft.agents import replay, soft_actor_critic, temperature
from jaxsoft.agents.base import Rollout
from tests.support.bridge import assert_trees_close
from tests.support.problems import rollout_of

TAU, GAMMA, S, A, N, T = 0.7, 0.9, 4, 3, 2, 5


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


LOG_PRIOR = jax.nn.log_softmax(normal(0, A)) + 0.3


class Tables(NamedTuple):
    """A tabular policy and two tabular Qs: an observation is its state's one-hot vector."""

    policy: Any
    q: Any


def rows(observation, table):
    return jnp.tensordot(observation, table, 1)


def discrete_policy(params, observation):
    return jax.nn.log_softmax(rows(observation, params.policy))


def discrete_values(params, observation, action):
    assert action is None
    return jnp.stack([rows(observation, q) for q in params.q])


COMMON: dict[str, Any] = {
    "optimiser": optax.sgd(0.1),
    "num_envs": N,
    "observation": jax.ShapeDtypeStruct((S,), jnp.float64),
    "discount": GAMMA,
    "tau": TAU,
    "learning_starts": 0,
    "steps_per_gradient": T * N,
}
TABLES = Tables(normal(1, S, A), normal(2, 2, S, A))
TARGETS = Tables(normal(1, S, A), normal(3, 2, S, A))


def discrete(**given):
    options: dict[str, Any] = COMMON | {"capacity": 100, "batch_size": 16, "averaging": 0.25}
    return soft_actor_critic.agent(
        discrete_policy,
        discrete_values,
        lambda _: TABLES,
        soft_actor_critic.categories(A, log_prior=LOG_PRIOR),
        **options | given,
    )


def test_a_step_of_the_discrete_kind_is_that_of_loops(monkeypatch):
    agent = discrete()
    rng = np.random.default_rng(5)
    rollout = rollout_of(jnp.asarray(rng.integers(A, size=(T, N)), jnp.int32), S)
    state = agent.init(jax.random.key(0))._replace(target_params=TARGETS)
    drawn = []
    sample = replay.sample

    def spy(*args, **kwargs):
        window = sample(*args, **kwargs)
        jax.debug.callback(lambda w: drawn.append(jax.tree.map(np.asarray, w)), window)
        return window

    monkeypatch.setattr(replay, "sample", spy)
    after, metrics = agent.update(state, rollout, jax.random.key(1))
    jax.effects_barrier()
    [window] = drawn
    policy, q, targets = (np.asarray(x) for x in (TABLES.policy, TABLES.q, TARGETS.q))
    log_pi = policy - np.log(np.exp(policy).sum(-1, keepdims=True))
    prior = np.asarray(LOG_PRIOR)
    gradient = Tables(np.zeros_like(policy), np.zeros_like(q))
    count = window.weight.sum()
    critic_loss = kl_sum = 0.0
    for b in range(16):
        if window.weight[0, b] == 0:
            continue
        s, s_next = (int(np.argmax(window.observation[i, b])) for i in (0, 1))
        a = int(window.action[0, b])
        pi = np.exp(log_pi)
        v = sum(
            pi[s_next, x] * (min(targets[:, s_next, x]) - TAU * (log_pi[s_next, x] - prior[x]))
            for x in range(A)
        )
        y = window.reward[0, b] + GAMMA * window.discount[0, b] * v
        for i in range(2):
            gradient.q[i, s, a] += (q[i, s, a] - y) / count
            critic_loss += (q[i, s, a] - y) ** 2 / 2 / count
        # ∇ of Σπ(τ log(π/π̄) − Q) by the logits, the log's own derivative being of mean 0.
        brackets = TAU * (log_pi[s] - prior) - q[:, s].min(0)
        gradient.policy[s] += pi[s] * (brackets - pi[s] @ brackets) / count
        kl_sum += pi[s] @ (log_pi[s] - prior) / count
    expected = jax.tree.map(lambda x, g: x - 0.1 * g, TABLES, gradient)
    assert_trees_close(after.params, expected)
    assert_trees_close(
        after.target_params, jax.tree.map(lambda t, x: t + 0.25 * (x - t), TARGETS, expected)
    )
    np.testing.assert_allclose(metrics.sums["critic_loss"], critic_loss, rtol=1e-12)
    np.testing.assert_allclose(metrics.sums["kl"], kl_sum, rtol=1e-12)
    assert metrics.updates == 1


def test_the_discrete_value_is_soft_q_less_the_divergence():
    """V_Q − v = τKL[π‖π_Q]: with an exact actor the target is that of soft Q-learning."""
    kind = soft_actor_critic.categories(A, log_prior=LOG_PRIOR)
    q, log_pi = normal(4, 7, A), jax.nn.log_softmax(normal(5, 7, A))
    v, kl = kind.value(log_pi, lambda _: q, jax.random.key(0), TAU)
    best = jaxsoft.log_policy(q, TAU, LOG_PRIOR)
    gap = TAU * jnp.sum(jnp.exp(log_pi) * (log_pi - best), -1)
    np.testing.assert_allclose(jaxsoft.soft_value(q, TAU, LOG_PRIOR) - v, gap, rtol=1e-10)
    np.testing.assert_allclose(kl, jaxsoft.kl_to_prior(log_pi, LOG_PRIOR))
    exact, _ = kind.value(best, lambda _: q, jax.random.key(0), TAU)
    np.testing.assert_allclose(exact, jaxsoft.soft_value(q, TAU, LOG_PRIOR), rtol=1e-12)


# ---- Real numbers --------------------------------------------------------------------------------

LOW, HIGH = np.array([[-1.0, 0.0]]), np.array([[3.0, 0.5]])


def itself(action: Any) -> Any:
    return action


def test_actions_fill_their_box_and_are_told_to_the_critic_in_units_of_it():
    kind = soft_actor_critic.box(LOW, HIGH)
    assert kind.one.shape == (1, 2)
    keys = jax.random.split(jax.random.key(0), 1000)
    mean, log_std = jnp.zeros((1000, 2)), jnp.full((1000, 2), 2.0)
    for actions in (kind.draw((mean, log_std), keys), kind.random(keys)):
        assert actions.shape == (1000, 1, 2)
        assert actions.dtype == jnp.float32
        drawn = np.asarray(actions)
        assert np.all((drawn >= LOW) & (drawn <= HIGH))
        assert np.all(drawn.max(0) > HIGH - 0.05 * (HIGH - LOW))
        assert np.all(drawn.min(0) < LOW + 0.05 * (HIGH - LOW))
    u = normal(0, 5, 2)
    inner = kind.taken(itself, kind.best((u, log_std[:5])))
    np.testing.assert_allclose(inner, np.tanh(u), atol=1e-6)
    random = kind.taken(itself, kind.random(keys))
    assert np.abs(random).max() <= 1 + 1e-6
    assert np.abs(np.mean(random, 0)).max() < 0.1


def test_the_continuous_value_is_of_the_mean_that_quadrature_finds():
    kind = soft_actor_critic.box([-2.0], [2.0])
    mean, log_std = jnp.array([0.3]), jnp.array([-0.4])

    def q(action):
        return jnp.sin(3 * action[..., 0]) + 0.5 * action[..., 0]

    grid = np.linspace(-8, 8, 20_001)[:, None]
    density = np.exp(-0.5 * ((grid[:, 0] - mean[0]) / np.exp(log_std[0])) ** 2)
    density /= density.sum()
    ratio = squashed.log_ratio(jnp.asarray(grid), mean[None], log_std[None])
    expected = density @ np.asarray(q(jnp.tanh(grid)) - TAU * ratio)
    many = 200_000
    out = jnp.broadcast_to(mean, (many, 1)), jnp.broadcast_to(log_std, (many, 1))
    v, ell = kind.value(out, q, jax.random.key(0), TAU)
    error = np.std(v) / np.sqrt(many)
    assert abs(np.mean(v) - expected) < 5 * error
    assert abs(np.mean(ell) - density @ np.asarray(ratio)) < 5 * np.std(ell) / np.sqrt(many)
    # By volume the logarithm is that of a density on (−1, 1).
    volume = soft_actor_critic.box([-2.0], [2.0], volume=True)
    shifted, log_pi = volume.value(out, q, jax.random.key(0), TAU)
    np.testing.assert_allclose(log_pi, ell - np.log(2), rtol=1e-6)
    np.testing.assert_allclose(shifted, v + TAU * np.log(2), rtol=1e-6)


def test_the_actor_is_told_by_the_action_and_the_critic_is_not():
    kind = soft_actor_critic.box([-1.0], [1.0])

    def loss(params, held):
        def q(action):
            return held * jnp.sum(jnp.square(action), -1)

        out = params["mean"][None], params["log_std"][None]
        return -jnp.sum(kind.value(out, q, jax.random.key(0), TAU)[0])

    params = {"mean": jnp.array([0.5]), "log_std": jnp.array([-1.0])}
    gradient = jax.grad(loss)(params, 2.0)
    without = jax.grad(loss)(params, 0.0)
    assert abs(gradient["mean"][0] - without["mean"][0]) > 0.1

    agent = continuous()
    state = agent.init(jax.random.key(0))
    rollout = rollout_of(jnp.asarray(normal(6, T, N, 1), jnp.float32).clip(-1, 1), S)
    after, _ = agent.update(state, rollout, jax.random.key(1))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params, state.params)
    assert all(x > 0 for x in jax.tree.leaves(moved))


def continuous(**given):
    options: dict[str, Any] = COMMON | {"capacity": 200, "batch_size": 64}

    def policy(params, observation):
        out = rows(observation, params.policy)
        return out[..., :1], out[..., 1:]

    def values(params, observation, action):
        x = jnp.concatenate([action, jnp.square(action), jnp.ones_like(action)], -1)
        return jnp.stack([jnp.sum(rows(observation, q) * x, -1) for q in params.q])

    return soft_actor_critic.agent(
        policy,
        values,
        lambda _: Tables(normal(1, S, 2), normal(2, 2, S, 3)),
        soft_actor_critic.box([-1.0], [1.0]),
        **options | given,
    )


def test_it_ends_at_the_boltzmann_policy_of_a_bandit():
    """r(a) = 2a − 1.5a² + noise-free: V is −τ log of a mean, and the KL that of the optimum."""
    agent = continuous(
        optimiser=optax.adam(2e-2),
        discount=0.0,
        averaging=0.1,
        batch_size=128,
        capacity=2000,
        steps_per_gradient=2,
    )
    state = jax.jit(agent.init)(jax.random.key(0))

    @jax.jit
    def learn(state, key):
        act, learn, where = jax.random.split(key, 3)
        seen = jax.nn.one_hot(jax.random.randint(where, (T + 1, N), 0, S), S, dtype=jnp.float64)
        a = jax.vmap(lambda x, k: agent.act(state, None, x, jax.random.split(k, N))[0])(
            seen[:-1], jax.random.split(act, T)
        )
        reward = 2 * a[..., 0] - 1.5 * a[..., 0] ** 2
        ones, no = jnp.ones((T, N)), jnp.zeros((T, N), bool)
        rollout = Rollout(seen, a, reward, 0 * ones, ~no, ones, jnp.ones((T + 1, N), bool))
        return agent.update(state, rollout, learn)

    state, metrics = jax.lax.scan(learn, state, jax.random.split(jax.random.key(1), 1500))
    grid = np.linspace(-1, 1, 4001)
    reward = 2 * grid - 1.5 * grid**2
    weights = np.exp(reward / TAU)
    value, pi = TAU * np.log(weights.mean()), weights / weights.sum()
    kl = pi @ np.log(pi * len(grid))
    last = {key: np.mean(np.asarray(x)[-300:]) / 5 for key, x in metrics.sums.items()}
    # A squashed Gaussian is not quite that policy, and so a little worse.
    assert value - 0.05 < last["value"] < value + 0.01
    assert abs(last["kl"] - kl) < 0.08


# ---- Around it -----------------------------------------------------------------------------------


def test_actions_are_of_the_prior_until_learning_starts():
    spiked = Tables(jnp.full((S, A), -50.0).at[:, 1].set(50.0), TABLES.q)
    agent = discrete(learning_starts=40)
    state = agent.init(jax.random.key(0))._replace(params=spiked)
    seen = jnp.eye(S)[jnp.zeros(600, int)]
    keys = jax.random.split(jax.random.key(1), 600)
    action, _, _ = agent.act(state, None, seen, keys)
    np.testing.assert_allclose(np.bincount(action, minlength=A) / 600, 1 / A, atol=0.08)
    after = state._replace(steps=jnp.asarray(40, jnp.uint32))
    np.testing.assert_array_equal(agent.act(after, None, seen, keys)[0], 1)
    np.testing.assert_array_equal(agent.greedy(state, None, seen, keys)[0], 1)


def test_nothing_is_learned_before():
    agent = discrete(learning_starts=20)
    state = agent.init(jax.random.key(0))
    rollout = rollout_of(jnp.zeros((T, N), jnp.int32), S)
    once, metrics = agent.update(state, rollout, jax.random.key(1))
    assert metrics.updates == 0
    assert_trees_close(once.params, state.params)
    twice, metrics = agent.update(once, rollout, jax.random.key(1))
    assert metrics.updates == 1
    assert np.abs(twice.params.q - state.params.q).max() > 0


@pytest.mark.parametrize(
    ("low", "high"), [([-np.inf], [1.0]), ([0.0], [0.0]), ([2.0], [1.0]), ([], [])]
)
def test_bounds_that_are_none_are_refused(low, high):
    with pytest.raises(ValueError, match="finite numbers, the least below the greatest"):
        soft_actor_critic.box(low, high)


@pytest.mark.parametrize("averaging", [0.0, 1.5])
def test_averaging_is_a_share(averaging):
    with pytest.raises(ValueError, match="a share"):
        discrete(averaging=averaging)


def test_a_tuned_temperature_holds_its_target():
    """With the KL of the Boltzmann policy of fixed values, which falls in τ."""
    q = jnp.array([0.0, 1.0, 3.0])
    source = temperature.tuned(0.4, start=5.0, learning_rate=0.05)

    def step(state, _):
        tau = source.value(state)
        kl = jaxsoft.kl_to_prior(jaxsoft.log_policy(q, tau, LOG_PRIOR), LOG_PRIOR)
        return source.update(state, kl), (tau, kl)

    _, (taus, kls) = jax.lax.scan(step, source.init(), None, length=600)
    assert taus[0] == 5.0
    np.testing.assert_allclose(kls[-1], 0.4, rtol=0.01)
    assert np.all(taus > 0)
    with pytest.raises(ValueError, match="τ > 0"):
        temperature.tuned(0.4, start=0.0)
