"""Q-learning from replay: targets and updates against NumPy loops, and a chain that is solved."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsoft import losses, one_step_targets
from jaxsoft.agents import off_policy, replay, temperature, windows
from jaxsoft.agents.base import Metrics, Rollout
from tests.support.memory import temporaries
from tests.support.steps import of_numpy

STATES, ACTIONS = 5, 3
MASKED = np.log(np.array([0.7, 0.3, 0.0]), where=[True, True, False], out=np.full(3, -np.inf))
PRIORS = {"uniform": None, "counting": 0.0, "masked": MASKED}


def soft(q, tau, log_prior):
    """(V, KL) of action values [A]."""
    prior = np.ones(len(q)) * (1 / len(q) if log_prior is None else np.exp(log_prior))
    q, prior = q[prior > 0], prior[prior > 0]
    weight = prior * (np.exp((q - q.max()) / tau) if tau > 0 else q == q.max())
    pi = weight / weight.sum()
    kl = np.sum(pi[pi > 0] * np.log(pi[pi > 0] / prior[pi > 0]))
    return (q.max() if tau == 0 else q.max() + tau * np.log(weight.sum())), kl


def target_of(q, rewards, terminated, cut, gamma, tau, log_prior):
    """y of one window, step by step; q [n, A] belongs to the states 1 … n."""
    y, discount = 0.0, 1.0
    for d in range(len(rewards)):
        y += discount * rewards[d]
        if terminated[d]:
            return y
        discount *= gamma
        v, kl = soft(q[d], tau, log_prior)
        if cut[d] or d == len(rewards) - 1:
            return y + discount * v
        y -= discount * tau * kl
    raise AssertionError


def random_windows(seed, n, batch):
    rng = np.random.default_rng(seed)
    terminated = rng.random((n, batch)) < 0.2
    truncated = ~terminated & (rng.random((n, batch)) < 0.2)
    # An auto-reset follows an end; the first step may be one, too.
    ended = np.concatenate([rng.random((1, batch)) < 0.2, (terminated | truncated)[:-1]])
    terminated, truncated = terminated & ~ended, truncated & ~ended
    return of_numpy(
        Rollout,
        observation=rng.integers(STATES, size=(n + 1, batch)),
        action=rng.integers(ACTIONS, size=(n, batch)),
        reward=rng.normal(size=(n, batch)),
        discount=1.0 - terminated,
        cut=terminated | truncated | ended,
        weight=1.0 - ended,
        first=np.zeros((n + 1, batch), bool),
    )


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("n", [1, 3])
def test_targets(n, prior):
    window, log_prior = random_windows(0, n, 60), PRIORS[prior]
    q_t = np.random.default_rng(1).normal(size=(n, 60, ACTIONS))
    broadcast = log_prior if np.ndim(log_prior) == 0 else log_prior[None, None]
    targets = jax.jit(
        functools.partial(
            windows.n_step_targets, jnp.asarray(q_t), discount=0.9, log_prior=broadcast
        )
    )
    terminated = window.discount == 0
    assert terminated[-1].any()
    assert (window.cut & ~terminated & (window.weight > 0))[0].any()
    for tau in (0.0, 0.3):
        y = targets(q_t, window, tau=tau)
        for b in range(60):
            q, r, end, cut = (x[:, b] for x in (q_t, window.reward, terminated, window.cut))
            expected = target_of(q, r, end, cut, 0.9, tau, log_prior)
            np.testing.assert_allclose(y[b], expected, rtol=1e-12, err_msg=f"{tau}: window {b}")


@pytest.mark.parametrize("log_prior", [None, 0.0])
@pytest.mark.parametrize("tau", [0.0, 0.1])
def test_one_step_targets_are_those_of_the_paper(tau, log_prior):
    window = random_windows(2, 1, 40)
    q_t = jnp.asarray(np.random.default_rng(3).normal(size=(1, 40, ACTIONS)))
    y = windows.n_step_targets(q_t, q_t, window, discount=0.99, tau=tau, log_prior=log_prior)
    expected = one_step_targets(
        window.reward, 0.99 * window.discount, q_t, tau=tau, log_prior=log_prior
    )
    np.testing.assert_array_equal(y, expected[0])


def table(params, observation):
    """Action values [..., A] of states that are numbers."""
    return params[observation]


def init_table(key):
    return jax.random.normal(key, (STATES, ACTIONS))


def tabular(**changes):
    settings: dict[str, Any] = {
        "optimiser": optax.sgd(0.5),
        "epsilon": optax.constant_schedule(0.1),
        "num_envs": 4,
        "observation": jax.ShapeDtypeStruct((), jnp.int32),
        "capacity": 80,
        "batch_size": 16,
        "discount": 0.9,
        "learning_starts": 0,
        "target_period": 1_000_000,
    }
    return off_policy.agent(table, init_table, **settings | changes)


def rollout_of(seed, length=4, num_envs=4):
    return random_windows(seed, length, num_envs)


def taus(schedule, steps):
    """τ at each gradient step, from a number or a schedule."""
    return [float(schedule(k)) if callable(schedule) else schedule for k in range(steps)]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_samples_without_a_transition_are_in_no_mean(batch_size):
    """Small ones may be of automatic resets alone."""
    agent = tabular(batch_size=batch_size, tau=0.2, steps_per_gradient=1)
    rollout = rollout_of(0)._replace(weight=jnp.zeros((4, 4)).at[:, 0].set(1))
    _, metrics = agent.update(agent.init(jax.random.key(0)), rollout, jax.random.key(1))
    assert 0 < metrics.updates < 16
    sums = metrics.sums
    np.testing.assert_allclose(
        (sums["entropy"] + sums["kl"]) / metrics.updates, np.log(ACTIONS), rtol=1e-6
    )
    np.testing.assert_allclose(sums["epsilon"] / metrics.updates, 0.1, rtol=1e-6)


@pytest.mark.parametrize(
    "tau", [0.2, optax.linear_schedule(0.5, 0.1, 9)], ids=["constant", "scheduled"]
)
def test_updates_are_those_of_a_table(tau):
    # Three gradient steps a rollout, and a refreshment after the first, second or third of them.
    n, spg, period, starts, gamma = 2, 4, 20, 24, 0.9
    agent = tabular(
        n=n, steps_per_gradient=spg, target_period=period, learning_starts=starts, tau=tau
    )
    state = agent.init(jax.random.key(0))
    q = np.array(state.params)
    target, ring, update = q.copy(), state.replay, jax.jit(agent.update)
    sample, scheduled = jax.jit(replay.sample, static_argnums=(2, 3)), iter(taus(tau, 18))
    for i in range(7):
        rollout, key = rollout_of(i, length=3), jax.random.key(i)
        state, metrics = update(state, rollout, key)
        ring = replay.add(ring, rollout)
        assert state.steps == 12 * (i + 1)
        if 12 * (i + 1) < starts:
            assert metrics.updates == 0
            np.testing.assert_array_equal(list(metrics.sums.values()), 0)
            np.testing.assert_array_equal(state.params, q)
            continue
        assert metrics.updates == 3
        expected = []
        for k, sample_key in enumerate(jax.random.split(key, 3)):
            window = jax.tree.map(np.asarray, sample(ring, sample_key, 16, n))
            now, terminated = next(scheduled), window.discount == 0
            gradient, sums, count = np.zeros_like(q), np.zeros(6), window.weight[0].sum()
            for b in np.flatnonzero(window.weight[0]):
                s, a = window.observation[0, b], window.action[0, b]
                r, end, cut = (x[:, b] for x in (window.reward, terminated, window.cut))
                y = target_of(target[window.observation[1:, b]], r, end, cut, gamma, now, None)
                gradient[s, a] += (q[s, a] - y) / count
                v, kl = soft(q[s], now, None)
                error = q[s, a] - y
                sums += error**2 / 2, abs(error), q[s, a], v, np.log(ACTIONS) - kl, kl
            q = q - 0.5 * gradient
            expected.append([*sums / count, np.linalg.norm(gradient)])
            if (12 * i + spg * (k + 1)) % period == 0:
                target = q.copy()
        np.testing.assert_allclose(state.params, q, rtol=1e-5)
        np.testing.assert_allclose(state.target_params, target, rtol=1e-5)
        names = ("loss", "td_error", "q", "value", "entropy", "kl", "gradient_norm")
        reported = [metrics.sums[name] for name in names]
        np.testing.assert_allclose(reported, np.sum(expected, axis=0), rtol=1e-5)
    assert next(scheduled, None) is None
    assert np.any(target != q)


def test_a_temperature_is_told_each_batchs_kl_to_the_prior():
    heard = temperature.Temperature(
        init=lambda: (jnp.float32(0.3), jnp.float32(0)),
        value=lambda state: state[0],
        update=lambda state, kl: (state[0] * 0.9, state[1] + kl.astype(jnp.float32)),
    )
    log_prior = np.log([0.7, 0.2, 0.1])
    agent = tabular(tau=heard, log_prior=log_prior, steps_per_gradient=16)
    state, update = agent.init(jax.random.key(0)), jax.jit(agent.update)
    ring, tau = state.replay, 0.3
    for i in range(3):
        rollout, key, (q, before) = rollout_of(i), jax.random.key(i), (state.params, state[3][1])
        state, metrics = update(state, rollout, key)
        ring = replay.add(ring, rollout)
        assert metrics.updates == 1
        window = replay.sample(ring, jax.random.split(key, 1)[0], 16, 1)
        kls = [soft(np.asarray(q)[s], tau, log_prior)[1] for s in window.observation[0]]
        expected = np.average(kls, weights=window.weight[0])
        np.testing.assert_allclose(state.temperature[1] - before, expected, rtol=1e-5)
        tau *= 0.9
    np.testing.assert_allclose(state.temperature[0], tau, rtol=1e-6)


@pytest.mark.parametrize(("period", "refreshed"), [(40, {2, 4}), (5, set(range(6)))])
def test_the_target_is_refreshed_when_a_period_is_met_or_passed(period, refreshed):
    agent = tabular(steps_per_gradient=16, target_period=period)
    state, update = agent.init(jax.random.key(0)), jax.jit(agent.update)
    for i in range(6):
        before = state.target_params
        state, _ = update(state, rollout_of(i), jax.random.key(i))
        expected = state.params if i in refreshed else before
        np.testing.assert_array_equal(state.target_params, expected)
        assert np.any(state.params != before)


@pytest.mark.parametrize(("n", "expected"), [(3, [4, 4]), (4, [0, 4])])
def test_learning_waits_for_windows(n, expected):
    # Sixteen steps of four environments are four rows: too few for a window of four and its end.
    agent = tabular(n=n)
    state, update = agent.init(jax.random.key(0)), jax.jit(agent.update)
    updates = []
    for i in range(2):
        state, metrics = update(state, rollout_of(i), jax.random.key(i))
        updates.append(float(metrics.updates))
    assert updates == expected
    assert isinstance(metrics, Metrics)
    assert set(metrics.sums) == {
        *("loss", "td_error", "q", "value", "entropy", "kl"),
        *("gradient_norm", "skipped", "epsilon"),
    }


def test_another_loss():
    def none(q, a, y):
        return 0.0 * losses.soft_q_loss(q, a, y)

    def absolute(q, a, y):
        return optax.huber_loss(losses.take_action(q, a), y, delta=1e-3) / 1e-3

    norms = []
    for loss in (none, absolute):
        agent = tabular(loss=loss, steps_per_gradient=16)
        state, update = agent.init(jax.random.key(0)), jax.jit(agent.update)
        for i in range(2):
            state, metrics = update(state, rollout_of(i), jax.random.key(i))
        norms.append(metrics.sums["gradient_norm"])
    assert norms[0] == 0
    assert 0 < norms[1] <= 1


def test_behaviour_is_epsilon_greedy():
    # The schedule subtracts its beginning: an unsigned count would have gone round.
    agent = tabular(epsilon=optax.linear_schedule(1.0, 0.0, 60, transition_begin=40))
    state = agent.init(jax.random.key(0))
    greedy = np.argmax(state.params, axis=-1)
    act, keys = jax.jit(agent.act), jax.random.split(jax.random.key(1), 6000)
    observation = np.arange(6000) % STATES
    for steps, epsilon in [(0, 1.0), (70, 0.5), (100, 0.0), (2**31 + 5, 0.0), (2**32 - 1, 0.0)]:
        later = state._replace(steps=jnp.uint32(steps))
        action, carry, extras = act(later, None, observation, keys)
        assert carry is extras is None
        action = np.asarray(action)
        assert action.dtype == np.int32
        # Four standard deviations of a share are 0.026 at most.
        for state_index in range(STATES):
            taken = action[observation == state_index] == greedy[state_index]
            assert abs(taken.mean() - (1 - epsilon * (1 - 1 / ACTIONS))) < 0.06
        other = (action - greedy[observation]) % ACTIONS
        assert abs((other == 1).mean() - epsilon / ACTIONS) < 0.03
        if epsilon == 0:
            np.testing.assert_array_equal(action, greedy[observation])
    action, carry, extras = agent.greedy(state, None, observation, keys)
    np.testing.assert_array_equal(action, greedy[observation])
    assert action.dtype == np.int32
    assert carry is extras is None


def test_actions_are_an_environments_own():
    agent = tabular(epsilon=optax.constant_schedule(0.7))
    state, keys = agent.init(jax.random.key(0)), jax.random.split(jax.random.key(1), 12)
    observation = np.arange(12) % STATES
    act = jax.jit(agent.act)
    together, *_ = act(state, None, observation, keys)
    alone, *_ = act(state, None, observation[:5], keys[:5])
    np.testing.assert_array_equal(together[:5], alone)


def test_epsilon_is_reported_as_it_was_acted_by():
    """A sum over gradient steps as everything else: there are four of them an update."""
    agent = tabular(epsilon=optax.linear_schedule(1.0, 0.0, 32))
    state, update, reported = agent.init(jax.random.key(0)), jax.jit(agent.update), []
    for i in range(4):
        state, metrics = update(state, rollout_of(i), jax.random.key(i))
        assert metrics.updates == 4
        reported.append(float(metrics.sums["epsilon"] / metrics.updates))
    assert reported == [1.0, 0.5, 0.0, 0.0]


def test_only_the_replay_is_forgotten():
    agent = tabular()
    state = agent.init(jax.random.key(0))
    forgotten = agent.forget(state)
    assert forgotten.replay is None
    jax.tree.map(np.testing.assert_array_equal, forgotten._replace(replay=state.replay), state)
    acted = [agent.act(x, None, np.arange(5), jax.random.split(jax.random.key(1), 5))[0]
             for x in (state, forgotten)]  # fmt: skip
    np.testing.assert_array_equal(*acted)


def test_seeds_side_by_side_learn_what_they_learn_alone():
    agent = tabular(n=2, target_period=24, learning_starts=32)

    def act_and_update(state, rollout, key):
        action, *_ = agent.act(state, None, rollout.observation[0], jax.random.split(key, 4))
        return action, *agent.update(state, rollout, key)

    one, both = jax.jit(act_and_update), jax.jit(jax.vmap(act_and_update))
    keys = jax.random.split(jax.random.key(0), 2)
    alone = [agent.init(key) for key in keys]
    together = jax.tree.map(lambda *x: jnp.stack(x), *alone)
    for i in range(4):
        rollouts = [rollout_of(10 * i + seed) for seed in range(2)]
        results = [one(*x) for x in zip(alone, rollouts, keys, strict=True)]
        got = both(together, jax.tree.map(lambda *x: np.stack(x), *rollouts), keys)
        expected = jax.tree.map(lambda *x: np.stack(x), *results)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-10)
        jax.tree.map(close, got, expected)
        alone, together = [state for _, state, _ in results], got[1]


@pytest.mark.parametrize("seeds", [1, 2])
def test_updating_copies_no_ring(seeds):
    agent = tabular(capacity=400_000)
    init, update, rollout = agent.init, agent.update, rollout_of(0)
    key = jax.random.key(0)
    if seeds > 1:
        init, update = jax.vmap(init), jax.vmap(update)
        rollout, key = jax.tree.map(lambda x: np.stack([x] * 2), rollout), jax.random.split(key)

    def updates(state):
        return jax.lax.scan(lambda state, _: update(state, rollout, key), state, length=3)

    state = init(key)
    size, where = state.replay.action.nbytes, state.replay.frame.unsafe_buffer_pointer()
    compiled = jax.jit(updates, donate_argnums=0).lower(state).compile()
    assert temporaries(compiled) < size / 8
    assert compiled(state)[0].replay.frame.unsafe_buffer_pointer() == where


# ---- A chain that is solved ----------------------------------------------------------------------

# States 0 … 3, of which 3 ends the game; right goes on, left goes back, the third action stays.
CHAIN = np.array([[1, 0, 0], [2, 0, 1], [3, 1, 2]])
REWARDS = np.array([[0.0, 0.2, 0.1], [0.0, 0.1, 0.0], [1.0, 0.0, 0.05]])
GAMMA, CUT = 0.8, 0.15


def chain_q(tau, log_prior, n):
    """Exact n-step soft value iteration for uniform behaviour; at n = 1 behaviour is no matter."""
    q = np.zeros((3, 3))
    for _ in range(300):
        both = np.array([soft(x, tau, log_prior) for x in q])
        v, kl = np.append(both[:, 0], 0.0), both[:, 1]
        after = v
        for _ in range(n - 1):
            paid = REWARDS + GAMMA * (CUT * v + (1 - CUT) * after)[CHAIN]
            after = np.append(paid.mean(axis=1) - tau * kl, 0.0)
        q = REWARDS + GAMMA * (CUT * v + (1 - CUT) * after)[CHAIN]
    return q


def play(act, state, position, ended, key, length):
    """A rollout of the chain, auto-resets and truncations included."""
    transition, reward = jnp.array(CHAIN), jnp.array(REWARDS, jnp.float32)

    def step(carry, key):
        position, ended = carry
        act_key, cut_key = jax.random.split(key)
        action, *_ = act(state, None, position, jax.random.split(act_key, len(position)))
        then = jnp.where(ended, 0, transition[position, action])
        over = ~ended & (then == 3)
        cut = ~ended & ~over & (jax.random.uniform(cut_key, ended.shape) < CUT)
        # What the dummy step is said to pay is not to be believed.
        paid = jnp.where(ended, 9.0, reward[position, action])
        end = over | cut
        return (then, end), (then, action, paid, 1.0 - over, end | ended, 1.0 - ended, ended)

    (last, ended_last), (then, action, paid, discount, cut, weight, first) = jax.lax.scan(
        step, (position, ended), jax.random.split(key, length)
    )
    observation = jnp.concatenate([position[None], then])
    first = jnp.concatenate([jnp.zeros_like(first[:1]), first])
    return last, ended_last, Rollout(observation, action, paid, discount, cut, weight, first)


@pytest.mark.parametrize(
    ("tau", "log_prior", "n"), [(0.0, None, 1), (0.3, None, 1), (0.3, 0.0, 1), (0.3, 0.0, 3)]
)
def test_a_chain_is_solved(tau, log_prior, n):
    agent = tabular(
        tau=tau,
        log_prior=log_prior,
        n=n,
        discount=GAMMA,
        num_envs=8,
        batch_size=256,
        capacity=2048,
        optimiser=optax.sgd(optax.exponential_decay(4.0, 150, 0.5) if n > 1 else 4.0),
        epsilon=optax.constant_schedule(1.0),
        learning_starts=1024,
        steps_per_gradient=32,
        target_period=32 * 4,
    )

    def update(carry, key):
        state, position, ended = carry
        play_key, learn_key = jax.random.split(key)
        position, ended, rollout = play(agent.act, state, position, ended, play_key, 64)
        state, metrics = agent.update(state, rollout, learn_key)
        return (state, position, ended), metrics

    @jax.jit
    def train(key):
        state = agent.init(key)
        carry = (state, jnp.zeros(8, int), jnp.zeros(8, bool))
        (trained, *_), metrics = jax.lax.scan(update, carry, jax.random.split(key, 40))
        return state.params, trained.params, metrics

    first, q, metrics = train(jax.random.key(0))
    assert metrics.updates[0] == 0
    assert metrics.updates[-1] == 16
    np.testing.assert_array_equal(q[3:], first[3:])  # where no transition starts
    # Nothing is random in one step: at the fixed point there is no noise.
    np.testing.assert_allclose(q[:3], chain_q(tau, log_prior, n), atol=2e-4 if n == 1 else 0.03)


# ---- Mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: tabular(capacity=7).init(jax.random.key(0)), "capacity of 1 steps"),
        (lambda: tabular(tau=-0.1), "tau >= 0"),
        (lambda: tabular(n=0), "n >= 1"),
        (lambda: tabular(learning_starts=-1), "learning_starts >= 0"),
        (lambda: tabular(target_period=0), "target_period >= 1"),
        (lambda: tabular(batch_size=0), "batch_size >= 1"),
        (lambda: _update_once(tabular(steps_per_gradient=32)), "Choose T so that"),
        (lambda: _update_once(tabular(steps_per_gradient=3)), "a whole number of gradient steps"),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def _update_once(agent):
    return agent.update(agent.init(jax.random.key(0)), rollout_of(0), jax.random.key(0))
