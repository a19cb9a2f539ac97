"""Multi-step backups against explicit double loops, their limits, and their hard counterparts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxsoft
from jaxsoft import _recurrence
from tests.support import oracles

TAU, T = 0.3, 11


class Path:
    """A random trajectory with terminations and cuts, in NumPy."""

    def __init__(self, seed: int, length: int = T, cuts: bool = True) -> None:
        rng = np.random.default_rng(seed)
        self.r, self.delta, self.q, self.v, self.kl = rng.normal(size=(5, length))
        self.kl = np.abs(self.kl)
        self.v_t = np.append(self.v[1:], rng.normal())
        self.discount = rng.choice([0.0, 0.9, 0.97], size=length, p=[0.1, 0.4, 0.5])
        self.cut = rng.random(length) < 0.15 * cuts
        self.pi, self.mu = rng.uniform(0.05, 1, size=(2, length))
        self.log_rho = np.log(self.pi / self.mu)


seeds = st.integers(0, 2**31)
lengths = st.sampled_from([1, 2, 7, 32])  # each length compiles again
windows = st.sampled_from([1, 2, 3, 5, 8, 31, 40])


@given(seeds, lengths, windows)
def test_n_step_windows(seed: int, length: int, n: int) -> None:
    p = Path(seed, length)
    np.testing.assert_allclose(
        jaxsoft.n_step_advantages(p.delta, p.discount, n=n, cut_t=p.cut),
        oracles.n_step_advantages(p.delta, p.discount, n, p.cut),
        rtol=1e-12,
        atol=1e-13,
    )


@given(seeds, lengths, st.floats(0, 1))
def test_lambda_sums(seed: int, length: int, lambda_: float) -> None:
    p = Path(seed, length)
    np.testing.assert_allclose(
        jaxsoft.lambda_advantages(p.delta, p.discount, lambda_=lambda_, cut_t=p.cut),
        oracles.lambda_advantages(p.delta, p.discount, lambda_, p.cut),
        rtol=1e-12,
        atol=1e-13,
    )


@given(seeds, lengths, windows)
def test_n_step_targets_from_rewards(seed: int, length: int, n: int) -> None:
    p = Path(seed, length)
    # A transition that neither ends nor is cut starts where the last one ended.
    delta = jaxsoft.td_errors(p.v, p.r, p.discount, v_t=p.v_t, kl_tm1=p.kl, tau=TAU)
    advantage = jaxsoft.n_step_advantages(delta, p.discount, n=n, cut_t=p.cut)
    np.testing.assert_allclose(
        jaxsoft.soft_q_targets(advantage, p.v, p.kl, tau=TAU),
        oracles.n_step_q_targets(p.r, p.discount, p.v_t, p.kl, TAU, n, p.cut),
        rtol=1e-12,
        atol=1e-12,
    )
    v = np.append(p.v, p.v_t[-1])
    np.testing.assert_array_equal(
        jaxsoft.n_step_soft_q_targets(
            v, p.kl, p.r, discount_t=p.discount, tau=TAU, n=n, cut_t=p.cut
        ),
        jaxsoft.soft_q_targets(advantage, p.v, p.kl, tau=TAU),
    )
    np.testing.assert_allclose(
        p.v + np.asarray(advantage),
        oracles.n_step_value_targets(p.r, p.discount, p.v_t, p.kl, TAU, n, p.cut),
        rtol=1e-12,
        atol=1e-12,
    )


@given(seeds)
def test_limits_of_lambda_and_n(seed: int) -> None:
    p = Path(seed)
    one = jaxsoft.n_step_advantages(p.delta, p.discount, n=1, cut_t=p.cut)
    np.testing.assert_array_equal(one, p.delta)
    np.testing.assert_array_equal(
        jaxsoft.lambda_advantages(p.delta, p.discount, lambda_=0.0, cut_t=p.cut), one
    )
    whole = jaxsoft.n_step_advantages(p.delta, p.discount, n=T, cut_t=p.cut)
    np.testing.assert_array_equal(
        whole, jaxsoft.n_step_advantages(p.delta, p.discount, n=99, cut_t=p.cut)
    )
    by_lambda = jaxsoft.lambda_advantages(p.delta, p.discount, lambda_=1.0, cut_t=p.cut)
    np.testing.assert_allclose(by_lambda, whole, rtol=1e-13, atol=1e-14)


def test_truncation_bootstraps_and_termination_does_not() -> None:
    r, v, v_t = np.ones(4), np.zeros(4), np.full(4, 10.0)

    def targets(discount: list[float], cut: list[int]) -> np.ndarray:
        delta = jaxsoft.td_errors(v, r, np.asarray(discount), v_t=v_t, kl_tm1=0.0, tau=TAU)
        return np.asarray(
            jaxsoft.n_step_advantages(delta, np.asarray(discount), n=4, cut_t=np.asarray(cut))
        )

    # At the end of the arrays the last value counts; v = 0 in between hides the other ones.
    v_t[:3] = 0
    np.testing.assert_allclose(targets([0.5] * 4, [0] * 4)[0], 1 + 0.5 + 0.25 + 0.125 + 0.0625 * 10)
    np.testing.assert_allclose(targets([0.5, 0, 0.5, 0.5], [0] * 4)[0], 1 + 0.5)
    v_t[1] = 7.0
    np.testing.assert_allclose(targets([0.5] * 4, [0, 1, 0, 0])[0], 1 + 0.5 + 0.25 * 7)
    np.testing.assert_allclose(targets([0.5] * 4, [0, 1, 0, 0])[2], 1 + 0.5 + 0.25 * 10)


@given(seeds, lengths, st.floats(0, 1), st.sampled_from(["retrace", "tree_backup", "importance"]))
def test_off_policy_q_targets(seed: int, length: int, lambda_: float, kind: str) -> None:
    p = Path(seed, length)
    coefficients = {
        "retrace": lambda: jaxsoft.retrace_coefficients(p.log_rho, lambda_=lambda_),
        "tree_backup": lambda: jaxsoft.tree_backup_coefficients(np.log(p.pi), lambda_=lambda_),
        "importance": lambda: lambda_ * np.exp(p.log_rho),
    }[kind]()
    expected = oracles.retrace_targets(
        p.r, p.discount, p.q, p.v_t, lambda_ * oracles.TRACES[kind](p.pi, p.mu), p.cut
    )
    given = jaxsoft.trace_targets(
        p.q, p.r, p.discount, v_t=p.v_t, trace_tm1=coefficients, cut_t=p.cut
    )
    np.testing.assert_allclose(given, expected, rtol=1e-10, atol=1e-10)


@given(seeds, lengths, st.floats(0.3, 2), st.floats(0.3, 2))
def test_v_trace(seed: int, length: int, clip_rho: float, clip_c: float) -> None:
    p = Path(seed, length)
    given = jaxsoft.v_trace(
        p.delta, p.discount, p.log_rho, lambda_=1.0, cut_t=p.cut, clip_rho=clip_rho, clip_c=clip_c
    )
    rho = p.pi / p.mu
    errors = oracles.vtrace_errors(p.delta, p.discount, rho, clip_rho, clip_c, p.cut)
    np.testing.assert_allclose(given.errors, errors, rtol=1e-11, atol=1e-11)
    behind = np.append(errors[1:], 0.0) * (1 - p.cut)
    advantages = np.minimum(rho, clip_rho) * (p.delta + p.discount * behind)
    np.testing.assert_allclose(given.advantages, advantages, rtol=1e-11, atol=1e-11)


@given(seeds, st.floats(0, 1))
def test_v_trace_on_policy_is_td_lambda(seed: int, lambda_: float) -> None:
    p = Path(seed)
    trace = jaxsoft.v_trace(p.delta, p.discount, np.zeros(T), lambda_=lambda_, cut_t=p.cut)
    td_lambda = jaxsoft.lambda_advantages(p.delta, p.discount, lambda_=lambda_, cut_t=p.cut)
    np.testing.assert_allclose(trace.errors, td_lambda, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("tau", [0.01, 0.3, 2.5])
@pytest.mark.parametrize("kind", ["retrace", "tree_backup", "importance"])
def test_soft_traces_are_unbiased_off_policy(tau: float, kind: str) -> None:
    """The expected target is the operator's: at Q_π it returns Q_π, whatever policy acted."""
    mdp = oracles.random_mdp(3, tau=tau)
    pi, mu = oracles.random_policy(1, mdp.prior), oracles.random_policy(2, mdp.prior)
    q = oracles.policy_q(mdp, pi)
    v = np.asarray(jaxsoft.policy_value(q, np.log(pi), tau, np.log(mdp.prior)))
    np.testing.assert_allclose(v, oracles.policy_value(mdp, pi), rtol=1e-10)
    paths = oracles.trajectories(mdp, mu, 0, 3, a0=1)
    s, a = paths.states.T, paths.actions.T
    coefficients = {
        "retrace": lambda: jaxsoft.retrace_coefficients(np.log(pi / mu)[s, a]),
        "tree_backup": lambda: jaxsoft.tree_backup_coefficients(np.log(pi)[s, a]),
        "importance": lambda: (pi / mu)[s, a],
    }[kind]()
    target = jaxsoft.trace_targets(
        q[s, a],
        paths.rewards.T,
        paths.discounts.T,
        v_t=v[paths.next_states.T],
        trace_tm1=coefficients,
    )
    np.testing.assert_allclose(paths.probs @ np.asarray(target)[0], q[0, 1], rtol=1e-10)


@pytest.mark.parametrize("tau", [0.01, 0.3, 2.5])
def test_soft_v_trace_is_unbiased_off_policy(tau: float) -> None:
    mdp = oracles.random_mdp(4, tau=tau)
    pi, mu = oracles.random_policy(1, mdp.prior), oracles.random_policy(2, mdp.prior)
    v = np.random.default_rng(0).normal(size=len(mdp.prior))
    kl = np.asarray(jaxsoft.kl_to_prior(np.log(pi), np.log(mdp.prior)))
    paths = oracles.trajectories(mdp, mu, 0, 3)
    s, a, s_next = paths.states.T, paths.actions.T, paths.next_states.T
    delta = jaxsoft.td_errors(
        v[s], paths.rewards.T, paths.discounts.T, v_t=v[s_next], kl_tm1=kl[s], tau=tau
    )
    trace = jaxsoft.v_trace(
        delta, paths.discounts.T, np.log(pi / mu)[s, a], clip_rho=np.inf, clip_c=np.inf
    )
    expected = oracles.v_backup(mdp, pi, v, 3)[0] - v[0]
    np.testing.assert_allclose(paths.probs @ np.asarray(trace.errors)[0], expected, rtol=1e-10)


def test_on_policy_traces_carry_the_sampled_log_ratio() -> None:
    """With c = 1, y is the soft n-step return with τ log(π/π̄) instead of each KL."""
    rng = np.random.default_rng(0)
    q = rng.normal(size=(T + 1, 3))
    log_prior = np.log(rng.dirichlet(np.ones(3), size=T + 1))
    a, r = rng.integers(0, 3, size=T), rng.normal(size=T)
    v = np.asarray(jaxsoft.soft_value(q, TAU, log_prior))
    ratio = np.asarray(jaxsoft.log_policy(q, TAU, log_prior)) - log_prior
    ratio_a, q_a = ratio[np.arange(T), a], q[np.arange(T), a]
    given = jaxsoft.trace_targets(q_a, r, 0.9, v_t=v[1:], trace_tm1=1.0)
    discount = np.full(T, 0.9)
    expected = oracles.n_step_q_targets(r, discount, v[1:], ratio_a, TAU, T)
    np.testing.assert_allclose(given, expected, rtol=1e-12)


FORMS = {
    "by_scan": lambda x, c, window: _recurrence.by_scan(x, c),
    "by_blocks": lambda x, c, window: _recurrence.by_blocks(x, c),
    "by_windows, 2": lambda x, c, window: _recurrence.by_windows(x, c, window, 2),
    "by_windows, 16": lambda x, c, window: _recurrence.by_windows(x, c, window, 16),
}


# One block, one and a part, many; two levels of them, and three.
@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 64, 257, 300])
@pytest.mark.parametrize("form", FORMS)
def test_every_evaluation_of_the_recurrence_agrees(form: str, length: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(length, 2))
    c = rng.choice([0.0, 0.5, 1.0, 1.0, 1.0], size=(length, 2))
    windows = {1, 2, 3, 7, 8, 15, 16, 17, 31, 35} if "windows" in form else set()
    for window in {length} | {n for n in windows if n < length}:
        expected = np.stack(
            [oracles.n_step_advantages(x[:, b], c[:, b], window) for b in range(2)], 1
        )
        given = FORMS[form](jnp.asarray(x), jnp.asarray(c), window)
        np.testing.assert_allclose(given, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("form", FORMS)
def test_every_evaluation_of_the_recurrence_has_the_same_derivatives(form: str) -> None:
    rng = np.random.default_rng(0)
    x, c = (jnp.asarray(rng.normal(size=(31, 2))) for _ in range(2))
    scan, other = (jax.vjp(lambda x, c, f=f: FORMS[f](x, c, 31), x, c) for f in ("by_scan", form))
    for one, same in zip(scan[1](jnp.ones_like(x)), other[1](jnp.ones_like(x)), strict=True):
        np.testing.assert_allclose(one, same, rtol=1e-11, atol=1e-12)


# τ → 0: the hard counterparts, as rlax has them.


@pytest.fixture(scope="module")
def rlax() -> Any:
    return pytest.importorskip("rlax")


@given(seeds, st.integers(1, T))
def test_n_step_against_rlax(rlax: Any, seed: int, n: int) -> None:
    p = Path(seed, cuts=False)
    delta = jaxsoft.td_errors(p.v, p.r, p.discount, v_t=p.v_t, kl_tm1=0.0, tau=0.0)
    given = p.v + np.asarray(jaxsoft.n_step_advantages(delta, p.discount, n=n))
    hard = rlax.n_step_bootstrapped_returns(
        jnp.asarray(p.r), jnp.asarray(p.discount), jnp.asarray(p.v_t), n
    )
    np.testing.assert_allclose(given, hard, rtol=1e-6, atol=1e-6)


@given(seeds, st.floats(0, 1, width=32))
def test_lambda_returns_against_rlax(rlax: Any, seed: int, lambda_: float) -> None:
    p = Path(seed, cuts=False)
    delta = jaxsoft.td_errors(p.v, p.r, p.discount, v_t=p.v_t, kl_tm1=0.0, tau=0.0)
    given = p.v + np.asarray(jaxsoft.lambda_advantages(delta, p.discount, lambda_=lambda_))
    hard = rlax.lambda_returns(
        jnp.asarray(p.r), jnp.asarray(p.discount), jnp.asarray(p.v_t), lambda_
    )
    np.testing.assert_allclose(given, hard, rtol=1e-6, atol=1e-6)


@given(seeds, st.floats(0, 1, width=32))
def test_v_trace_against_rlax(rlax: Any, seed: int, lambda_: float) -> None:
    p = Path(seed, cuts=False)
    delta = jaxsoft.td_errors(p.v, p.r, p.discount, v_t=p.v_t, kl_tm1=0.0, tau=0.0)
    arrays = (jnp.asarray(x) for x in (p.v, p.v_t, p.r, p.discount, np.exp(p.log_rho)))
    hard = rlax.vtrace(*arrays, lambda_)
    soft = jaxsoft.v_trace(delta, p.discount, p.log_rho, lambda_=lambda_)
    np.testing.assert_allclose(soft.errors, hard, rtol=1e-6, atol=1e-6)


@given(seeds)
def test_hard_q_learning_against_rlax(rlax: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, q_next = rng.normal(size=(2, T, 4))
    r, a = rng.normal(size=T), rng.integers(0, 4, size=T)
    target = jaxsoft.one_step_targets(r, 0.9, q_next, tau=0.0)
    given = jaxsoft.soft_q_loss(q, a, target)
    errors = jax.vmap(rlax.q_learning)(
        jnp.asarray(q), jnp.asarray(a), jnp.asarray(r), jnp.full(T, 0.9), jnp.asarray(q_next)
    )
    np.testing.assert_allclose(given, 0.5 * np.square(errors), rtol=1e-6, atol=1e-7)


@given(seeds, st.floats(0, 1, width=32))
def test_retrace_against_rlax(rlax: Any, seed: int, lambda_: float) -> None:
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(T + 1, 4))
    pi = rng.dirichlet(np.ones(4), size=T + 1)
    mu = rng.uniform(0.05, 1, size=T + 1)
    a, r = rng.integers(0, 4, size=T + 1), rng.normal(size=T)
    t = np.arange(T)
    q_a, pi_a = q[t, a[:T]], pi[t, a[:T]]
    v_t = jaxsoft.policy_value(q, np.log(pi), 0.0)[1:]
    trace = jaxsoft.retrace_coefficients(np.log(pi_a / mu[:T]), lambda_=lambda_)
    given = jaxsoft.trace_targets(q_a, r, 0.9, v_t=v_t, trace_tm1=trace)
    c_t = lambda_ * np.minimum(1.0, pi[t, a[:T]] / mu[:T])[1:]
    hard = rlax.general_off_policy_returns_from_q_and_v(
        *(jnp.asarray(x) for x in (q_a[1:], np.asarray(v_t), r, np.full(T, 0.9), c_t))
    )
    np.testing.assert_allclose(given, hard, rtol=1e-6, atol=1e-6)
