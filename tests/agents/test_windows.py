"""Targets of replay windows and eligibility traces, against NumPy loops and enumeration."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsoft
from jaxsoft import one_step_targets
from jaxsoft.agents import off_policy, replay, windows
from jaxsoft.agents.base import Rollout
from tests.agents.test_off_policy import (
    ACTIONS,
    PRIORS,
    random_windows,
    rollout_of,
    tabular,
    target_of,
)
from tests.support import bridge, oracles
from tests.support.bridge import assert_close
from tests.support.steps import of_numpy

GAMMA, B = 0.9, 40
METHODS = {"tree_backup": windows.tree_backup_targets, "retrace": windows.retrace_targets}


def problem(n, seed=0):
    """Windows with log μ, and values at states 0 … n."""
    rng = np.random.default_rng(seed)
    window = random_windows(seed, n, B)
    mu = rng.uniform(0.1, 0.9, size=(n, B))
    return window._replace(extras=jnp.log(mu)), rng.normal(size=(n + 1, B, ACTIONS))


def measure(prior):
    log_prior = PRIORS[prior]
    prior = np.exp(-np.log(ACTIONS) if log_prior is None else log_prior)
    return np.broadcast_to(prior, (ACTIONS,)), log_prior


def by_loops(method, window, q, tau, lambda_, prior):
    """y of each window [B]; q is the values at its states 0 … n [n+1, B, A]."""
    y = np.zeros(q.shape[1])
    for b in range(len(y)):
        a = np.asarray(window.action[:, b])
        v = oracles.soft_value(q[:, b], tau, prior)
        pi = oracles.boltzmann(q[:, b], tau, prior)[np.arange(len(a)), a]
        mu = None if window.extras is None else np.exp(window.extras[:, b])
        y[b] = oracles.retrace_targets(
            np.asarray(window.reward[:, b]), GAMMA * np.asarray(window.discount[:, b]),
            q[np.arange(len(a)), b, a], v[1:], lambda_ * oracles.TRACES[method](pi, mu),
            np.asarray(window.cut[:, b]),
        )[0]  # fmt: skip
    return y


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("method", METHODS)
def test_targets(method, n, prior):
    window, q = problem(n)
    pi_bar, log_prior = measure(prior)
    targets = jax.jit(METHODS[method])
    for tau, lambda_ in ((0.3, 1.0), (1.7, 0.6)):
        given = targets(
            q[:-1], q[1:], window, discount=GAMMA, tau=tau, lambda_=lambda_, log_prior=log_prior
        )
        np.testing.assert_allclose(
            given, by_loops(method, window, q, tau, lambda_, pi_bar), rtol=1e-10, atol=1e-12
        )
    # Nothing of s_0 but its reward.
    elsewhere = np.concatenate([np.full_like(q[:1], np.nan), q[1:]])[:-1]
    again = targets(
        elsewhere, q[1:], window, discount=GAMMA, tau=tau, lambda_=lambda_, log_prior=log_prior
    )
    np.testing.assert_array_equal(again, given)


@pytest.mark.parametrize("method", METHODS)
def test_a_prior_of_each_state(method):
    """Of the states 1 … n, whose values it goes with."""
    window, q = problem(3)
    prior = np.random.default_rng(5).dirichlet(np.ones(ACTIONS), size=(3, B))
    given = METHODS[method](q[:-1], q[1:], window, discount=GAMMA, tau=0.3, log_prior=np.log(prior))
    expected = np.zeros(B)
    for b in range(B):
        one = jax.tree.map(lambda x, b=b: x[:, b : b + 1], window)
        # State 0 has some prior, which must not matter.
        pi_bar = np.concatenate([prior[:1, b], prior[:, b]])[:, None]
        expected[b] = by_loops(method, one, q[:, b : b + 1], 0.3, 1.0, pi_bar[:, 0])[0]
    np.testing.assert_allclose(given, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("n", [1, 3])
def test_munchausen_targets(n, prior):
    """The n-step targets of r + α max(τℓ, least), by loops."""
    window, q = problem(n)
    pi_bar, log_prior = measure(prior)
    # Actions that the prior forbids are as good as the bound.
    free = -2.0 if prior == "masked" else -np.inf
    for tau, alpha, least in ((0.3, 0.9, free), (1.7, 0.4, -0.5)):
        targets = functools.partial(windows.munchausen_targets, alpha=alpha, least=least)
        y = targets(q[:-1], q[1:], window, discount=GAMMA, tau=tau, log_prior=log_prior)
        for b in range(B):
            r, end, cut = (
                np.array(x[:, b]) for x in (window.reward, window.discount == 0, window.cut)
            )
            for d in range(n):
                a = int(window.action[d, b])
                pi = oracles.boltzmann(q[d, b], tau, pi_bar)[a]
                ratio = np.log(pi / pi_bar[a]) if pi > 0 else -np.inf
                if window.weight[d, b]:
                    r[d] += alpha * max(tau * ratio, least)
            expected = target_of(q[1:, b], r, end, cut, GAMMA, tau, log_prior)
            np.testing.assert_allclose(y[b], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_one_step_and_no_trace_are_one_step_targets(method):
    for n, lambda_ in ((1, 1.0), (4, 0.0)):
        window, q = problem(n)
        given = METHODS[method](
            q[:-1], q[1:], window, discount=GAMMA, tau=0.3, lambda_=lambda_, log_prior=None
        )
        expected = one_step_targets(window.reward, GAMMA * window.discount, q[1:], tau=0.3)
        np.testing.assert_allclose(given, expected[0], rtol=1e-12)


def test_the_branch_taken_is_replaced_by_its_return():
    """Σ_a π_Q(a)(Q − τℓ)(a), in which the taken action's Q is what followed; and so on."""
    window, q = problem(4, seed=3)
    tau, pi_bar = 0.4, np.full(ACTIONS, 1 / ACTIONS)
    window = window._replace(cut=jnp.zeros_like(window.cut), discount=jnp.ones_like(window.reward))
    y = windows.tree_backup_targets(q[:-1], q[1:], window, discount=GAMMA, tau=tau)
    for b in range(B):
        a, r = np.asarray(window.action[:, b]), np.asarray(window.reward[:, b])
        value = oracles.soft_value(q[4, b], tau, pi_bar)
        for d in (3, 2, 1):
            branches = q[d, b].copy()
            branches[a[d]] = r[d] + GAMMA * value
            log_pi = oracles.log_boltzmann(q[d, b], tau, pi_bar)
            value = np.exp(log_pi) @ (branches - tau * oracles.log_ratio(log_pi, pi_bar))
        np.testing.assert_allclose(y[b], r[0] + GAMMA * value, rtol=1e-12)


def test_at_temperature_zero_only_greedy_actions_are_followed():
    window, q = problem(4)
    y = windows.tree_backup_targets(q[:-1], q[1:], window, discount=GAMMA, tau=0.0)
    for b in range(B):
        greedy = np.asarray(window.action[:, b]) == np.argmax(q[:-1, b], axis=-1)
        taken = q[np.arange(4), b, window.action[:, b]]
        expected = oracles.retrace_targets(
            np.asarray(window.reward[:, b]), GAMMA * np.asarray(window.discount[:, b]), taken,
            q[1:, b].max(-1), greedy.astype(float), np.asarray(window.cut[:, b]),
        )  # fmt: skip
        np.testing.assert_allclose(y[b], expected[0], rtol=1e-12)


def test_retrace_says_what_it_needs():
    window, q = problem(2)
    for extras in (None, window.extras[:-1]):
        with pytest.raises(ValueError, match=r"^retrace_targets: expected extras.*log_behaviour"):
            windows.retrace_targets(
                q[:-1], q[1:], window._replace(extras=extras), discount=GAMMA, tau=0.3
            )


# ---- What they are for ---------------------------------------------------------------------------


def backup(method, mdp, q, mu, n, lambda_=1.0):
    """Means [S, A] of targets of all windows of n steps, later actions by μ."""
    path = bridge.paths(mdp, mu, n)
    shape = path.rewards.shape
    window = of_numpy(
        Rollout,
        observation=path.states,
        action=path.actions,
        reward=path.rewards,
        discount=path.discounts / mdp.gamma,
        cut=path.discounts == 0,
        weight=np.ones(shape),
        first=np.zeros((n + 1, *shape[1:]), bool),
        extras=np.log(mu)[path.states[:-1], path.actions],
    )
    values = q[path.states]
    y = METHODS[method](
        values[:-1],
        values[1:],
        window,
        discount=mdp.gamma,
        tau=mdp.tau,
        lambda_=lambda_,
        log_prior=np.log(mdp.prior)[path.states[1:]],
    )
    return path.mean(y)


@pytest.mark.parametrize("method", METHODS)
def test_the_soft_optimum_is_a_fixed_point_whatever_acted(method):
    mdp = oracles.random_mdp(0, states=5, outcomes=1, terminals=1, tau=0.3)
    mu = oracles.random_policy(1, mdp.prior)
    best = oracles.optimal_q(mdp)
    for n in (1, 3):
        assert_close(backup(method, mdp, best, mu, n), best)


def test_traces_decide_how_fast_it_is_reached():
    """From any Q a window of safe traces comes nearer; one without them may not."""
    mdp = oracles.random_mdp(2, states=3, branching=1, outcomes=1, tau=0.1)
    mu, best = np.full(mdp.prior.shape, 1 / 3), oracles.optimal_q(mdp)
    worst = dict.fromkeys((*METHODS, "none"), 0.0)
    for seed in range(8):
        q = best + np.random.default_rng(seed).normal(size=best.shape)
        for name in worst:
            trace = "tree_backup" if name == "none" else name
            after = backup(trace, mdp, q, mu, 4) if name != "none" else uncorrected(mdp, q, mu, 4)
            ratio = np.max(abs(after - best)) / np.max(abs(q - best))
            worst[name] = max(worst[name], ratio)
    assert max(worst["tree_backup"], worst["retrace"]) <= 0.9 + 1e-9
    assert worst["none"] > 1


def uncorrected(mdp, q, mu, n):
    """λ = 1, whatever acted."""
    path = bridge.paths(mdp, mu, n)
    taken = q[path.states[:-1], path.actions]
    v = oracles.soft_value(q, mdp.tau, mdp.prior)[path.states[1:]]
    targets = bridge.lib.trace_targets(
        taken, path.rewards, path.discounts, v_t=v, trace_tm1=jnp.ones(())
    )
    return path.mean(targets[0])


# ---- Eligibility traces --------------------------------------------------------------------------


class Stream:
    """Transitions of a network's Q, with terminations and cuts on the way."""

    def __init__(self, seed=0, length=9, states=4):
        rng = np.random.default_rng(seed)
        self.s, self.a = rng.integers(states, size=length + 1), rng.integers(3, size=length)
        self.r = rng.normal(size=length)
        self.discount = np.where(np.isin(np.arange(length), [4]), 0.0, 0.9)
        self.cut = np.isin(np.arange(length), [2, 4, 6])
        self.c = rng.uniform(0.2, 1, size=length)
        self.length, self.features = length, rng.normal(size=(states, 3, 6))

    def q(self, params):
        return self.features @ params["w"] + params["b"]

    def init(self):
        return {"w": np.random.default_rng(7).normal(size=6), "b": np.array(0.3)}

    def delta(self, params, t):
        """Of transition t alone."""
        q = self.q(params)
        v = oracles.soft_value(q, 0.3, np.full(3, 0.5))
        s, a = self.s, self.a
        return self.r[t] + self.discount[t] * v[s[t + 1]] - q[s[t], a[t]]

    def gradient(self, t):
        return {"w": self.features[self.s[t], self.a[t]], "b": np.array(1.0)}

    def steps(self, *, rate, online, late=0):
        """What α δ e adds up to; `late` takes the factors of the transition before."""
        params = held = self.init()
        trace = jax.tree.map(np.zeros_like, params)
        for t in range(self.length):
            before = t - 1 - late
            into = self.discount[before] * (1 - self.cut[before]) if before >= 0 else 0.0
            trace = jaxsoft.traces.update(trace, self.gradient(t), into, self.c[max(t - late, 0)])
            step = rate * self.delta(params if online else held, t)
            params = jax.tree.map(lambda p, e, step=step: p + step * np.asarray(e), params, trace)
        return jax.tree.map(np.subtract, params, held)

    def forward(self):
        """Σ (y_t − Q_t) ∇Q_t."""
        params, t = self.init(), np.arange(self.length)
        q = self.q(params)
        v, taken = oracles.soft_value(q, 0.3, np.full(3, 0.5)), q[self.s[:-1], self.a]
        y = jaxsoft.trace_targets(
            taken, self.r, self.discount, v_t=v[self.s[1:]], trace_tm1=self.c, cut_t=self.cut
        )
        errors = np.asarray(y) - taken
        return jax.tree.map(
            lambda *g: np.tensordot(errors, np.array(g), 1), *(self.gradient(i) for i in t)
        )


def test_the_backward_view_is_the_forward_view():
    """With Q held over the episode; e is reset after a cut, and neither factor is one off."""
    stream = Stream()
    bridge.assert_trees_close(stream.steps(rate=1.0, online=False), stream.forward())
    late = stream.steps(rate=1.0, online=False, late=1)
    bridge.assert_differs(late["w"], stream.forward()["w"])


def test_online_they_differ_by_the_square_of_the_step():
    stream = Stream(1)

    def difference(rate):
        return stream.steps(rate=rate, online=True)["w"] - rate * stream.forward()["w"]

    ratio = np.linalg.norm(difference(2e-4)) / np.linalg.norm(difference(1e-4))
    np.testing.assert_allclose(ratio, 4, rtol=1e-2)


def test_traces_keep_their_dtype_and_say_what_is_wrong():
    tree = {"w": jnp.ones(3, jnp.bfloat16), "b": jnp.ones((), jnp.float32)}
    out = jax.jit(jaxsoft.traces.update)(tree, tree, 0.5, jnp.float32(0.5))
    assert jax.tree.map(lambda x: x.dtype, out) == jax.tree.map(lambda x: x.dtype, tree)
    np.testing.assert_array_equal(out["w"].astype(float), 1.25)
    for given in ((tree, {"w": tree["w"]}, 0.9, 1.0), (tree, tree | {"b": jnp.ones(2)}, 0.9, 1.0)):
        with pytest.raises(ValueError, match=r"^traces\.update: expected trace and gradient"):
            jaxsoft.traces.update(*given)
    with pytest.raises(ValueError, match=r"^traces\.update: expected discount in \[0, 1\]"):
        jaxsoft.traces.update(tree, tree, 1.5, 1.0)
    with pytest.raises(ValueError, match=r"^traces\.update: expected coefficient to be a scalar"):
        jaxsoft.traces.update(tree, tree, 0.5, jnp.ones(3))


# ---- In the learner ------------------------------------------------------------------------------


def test_the_behaviour_is_kept():
    agent = tabular(
        epsilon=optax.constant_schedule(0.4),
        keep=off_policy.log_behaviour,
        targets=windows.retrace_targets,
    )
    state, keys = agent.init(jax.random.key(0)), jax.random.split(jax.random.key(1), 200)
    observation = np.arange(200) % 5
    action, _, extras = jax.jit(agent.act)(state, None, observation, keys)
    greedy = np.argmax(state.params, axis=-1)[observation] == action
    assert 0 < greedy.mean() < 1
    mu = 0.4 / ACTIONS + 0.6 * greedy
    np.testing.assert_allclose(np.exp(extras), mu, rtol=1e-6)
    assert state.replay.extras.shape == state.replay.reward.shape


@pytest.mark.parametrize("method", METHODS)
def test_an_update_with_them(method):
    """One gradient step on a table, from windows of three steps."""
    targets = functools.partial(METHODS[method], lambda_=0.7)
    agent = tabular(
        n=3, tau=0.2, steps_per_gradient=16, targets=targets, keep=off_policy.log_behaviour
    )
    state, rollout = agent.init(jax.random.key(0)), rollout_of(0)
    rng = np.random.default_rng(1)
    log_mu = jnp.log(jnp.asarray(rng.uniform(0.2, 0.9, size=(4, 4)), jnp.float32))
    rollout = rollout._replace(extras=log_mu)
    q, ring = np.array(state.params, float), replay.add(state.replay, rollout)
    after, metrics = jax.jit(agent.update)(state, rollout, jax.random.key(2))
    assert metrics.updates == 1
    window = replay.sample(ring, jax.random.split(jax.random.key(2), 1)[0], 16, 3)
    y = by_loops(method, window, q[window.observation], 0.2, 0.7, np.full(ACTIONS, 1 / ACTIONS))
    s, a, weight = (np.asarray(x[0]) for x in (window.observation, window.action, window.weight))
    gradient = np.zeros_like(q)
    np.add.at(gradient, (s, a), weight * (q[s, a] - y) / weight.sum())
    np.testing.assert_allclose(after.params, q - 0.5 * gradient, rtol=1e-5, atol=1e-6)
