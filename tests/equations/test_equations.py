"""The paper's equations, one by one: the library against the oracle, away from every symmetry.

Priors are not uniform, gamma < 1 (but for (48), (51)), tau is never 1. Where the paper misprints an
equation its printed form is evaluated too, and must fail. (58)-(65) and the solves of section 5
have a file of their own, test_theorem.py. docs/equations.md is the index.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoft
from tests.support import bridge, oracles
from tests.support.bridge import (
    HEADS,
    TAUS,
    all_pairs,
    assert_close,
    assert_differs,
    lib,
    log_of,
    paths,
    soft_deltas,
)
from tests.support.oracles import PRINTED

equation = pytest.mark.equation
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rough": {"terminals": 1, "masked": True, "normalised": False},
}


@pytest.fixture(params=TAUS)
def tau(request):
    return request.param


@pytest.fixture(params=range(2))
def bandit(request, tau):
    return oracles.random_bandit(request.param, tau=tau)


def make_mdp(variant, seed, tau, **options):
    """One reward for each transition: it is random already through s'."""
    return oracles.random_mdp(seed, outcomes=1, tau=tau, **VARIANTS[variant], **options)


@pytest.fixture(params=VARIANTS)
def mdp(request, tau):
    return make_mdp(request.param, 3, tau)


@pytest.fixture(params=VARIANTS)
def episodic(request, tau):
    """Every episode ends within three steps."""
    return make_mdp(request.param, 5, tau, acyclic=True)


@pytest.fixture
def policy(mdp):
    return oracles.random_policy(11, mdp.prior)


def some_q(mdp, seed=7):
    """Q [S, A] whose gaps are of the order of tau."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(len(mdp.prior), 1)) + 2 * mdp.tau * rng.normal(size=mdp.prior.shape)


def some_v(mdp, seed=8):
    return np.random.default_rng(seed).normal(size=len(mdp.prior))


def library_kl(policy, mdp):
    return lib.kl_to_prior(log_of(policy), log_of(mdp.prior))


def library_boltzmann(q, mdp):
    """V_Q [S], log pi_Q [S, A] and KL [S]."""
    log_prior = log_of(mdp.prior)
    log_pi = lib.log_policy(q, mdp.tau, log_prior)
    return (
        lib.soft_value(q, mdp.tau, log_prior),
        log_pi,
        lib.kl_to_prior(log_pi, log_prior),
    )


# ---- Boltzmann algebra: sections 2, 3.1, 3.2 and (55)-(57) ---------------------------------------


@equation(1)
def test_bandit_objective(bandit):
    policy = oracles.random_policy(1, bandit.prior)
    eta = lib.policy_value(bandit.mean_reward, log_of(policy), bandit.tau, log_of(bandit.prior))
    assert_close(eta, oracles.bandit_objective(bandit, policy))


@equation(2, 10, 12, 28, 30, 56)
def test_boltzmann_policy(mdp):
    q, log_prior = some_q(mdp), log_of(mdp.prior)
    log_pi = lib.log_policy(q, mdp.tau, log_prior)
    assert_close(log_pi, oracles.log_boltzmann(q, mdp.tau, mdp.prior))
    unnormalised = mdp.prior * np.exp((q - q.max(axis=-1, keepdims=True)) / mdp.tau)
    assert_close(jnp.exp(log_pi), unnormalised / unnormalised.sum(axis=-1, keepdims=True))
    v = lib.soft_value(q, mdp.tau, log_prior)
    assert_close(log_pi, log_prior + (q - np.asarray(v)[:, None]) / mdp.tau)


@equation(3, 4, 5)
def test_divergence_from_the_boltzmann_policy(bandit):
    tau, log_prior = bandit.tau, log_of(bandit.prior)
    policy = oracles.random_policy(2, bandit.prior)
    r, log_pi = bandit.mean_reward, log_of(policy)
    to_boltzmann = lib.kl_to_prior(log_pi, lib.log_policy(r, tau, log_prior))
    assert_close(to_boltzmann, oracles.kl(policy, oracles.boltzmann(r, tau, bandit.prior)), 1e-9)
    log_normaliser = lib.soft_value(r, tau, log_prior) / tau
    expanded = lib.kl_to_prior(log_pi, log_prior) - policy @ r / tau + log_normaliser
    assert_close(to_boltzmann, expanded)


@equation(6, 27)
def test_boltzmann_policy_maximises_the_objective(mdp, policy):
    q, tau, log_prior = some_q(mdp), mdp.tau, log_of(mdp.prior)
    v, best, _ = library_boltzmann(q, mdp)
    value = lib.policy_value(q, log_of(policy), tau, log_prior)
    loss = tau * lib.kl_to_prior(log_of(policy), best)
    assert_close(value, np.asarray(v - loss))
    assert np.all(loss > 0)
    slope = jax.grad(
        lambda x: jnp.sum(lib.policy_value(q, lib.log_policy(x, tau, log_prior), tau, log_prior))
    )
    assert_close(slope(jnp.asarray(q)), np.zeros_like(q), of=1.0)
    assert np.max(np.abs(slope(jnp.asarray(q + tau * some_q(mdp, 9))))) > 1e-3


@equation(11, 29, 55)
def test_soft_value(mdp):
    q = some_q(mdp)
    v = lib.soft_value(q, mdp.tau, log_of(mdp.prior))
    assert_close(v, oracles.soft_value(q, mdp.tau, mdp.prior))
    assert_differs(PRINTED["11"](q, mdp.tau, mdp.prior), v)
    assert_differs(PRINTED["55"](q, mdp.tau, mdp.prior), v)


@equation(13, 31)
def test_soft_value_is_the_value_of_the_boltzmann_policy(mdp):
    q = some_q(mdp)
    v, log_pi, kl = library_boltzmann(q, mdp)
    assert_close(v, oracles.state_value(mdp, oracles.boltzmann(q, mdp.tau, mdp.prior), q))
    assert_close(lib.policy_value(q, log_pi, mdp.tau, log_of(mdp.prior)), v)
    assert_close(np.sum(np.exp(log_pi) * q, axis=-1) - mdp.tau * np.asarray(kl), v)


@equation(14, 57)
def test_q_from_its_value_and_policy(mdp):
    q, tau, log_prior = some_q(mdp), mdp.tau, log_of(mdp.prior)
    v, log_pi, _ = library_boltzmann(q, mdp)
    assert_close(lib.q_from_policy(v, log_pi, tau, log_prior), np.where(mdp.prior > 0, q, -np.inf))
    policy, v = oracles.random_policy(3, mdp.prior), some_v(mdp)
    expected = v[:, None] + tau * oracles.log_ratio(log_of(policy), mdp.prior)
    q = lib.q_from_policy(v, log_of(policy), tau, log_prior)
    assert_close(q, np.where(mdp.prior > 0, expected, -np.inf))
    assert_close(lib.soft_value(q, tau, log_prior), v)
    assert_close(lib.log_policy(q, tau, log_prior), log_of(policy))


# ---- The bandit's gradients: section 2 -----------------------------------------------------------


@pytest.fixture(params=HEADS)
def arm(request, bandit):
    """A bandit, an agent of one state for it, its parameters, and how to enumerate (a, r)."""
    model = bridge.MODELS["mlp"](1, len(bandit.prior))
    agent, theta = bridge.make_agent(model, request.param, bandit.prior[None], bandit.tau)
    a, m = np.array(list(np.ndindex(bandit.rewards.shape))).T

    def outcomes(policy):
        return np.zeros_like(a), a, bandit.rewards[a, m], policy[a] * bandit.reward_probs[m]

    return bandit, agent, theta, outcomes


@equation(7)
def test_bandit_policy_gradient(arm):
    bandit, agent, theta, outcomes = arm
    s, a, r, weights = outcomes(agent.policy(theta)[0])
    estimate = -bridge.gradient(
        lambda h: lib.policy_gradient_loss(h.log_pi, a, r, tau=bandit.tau, log_prior=h.log_prior),
        agent, theta, s, weights,
    )  # fmt: skip
    assert_close(estimate, oracles.bandit_policy_gradient(bandit, agent, theta))
    objective = oracles.gradient(
        lambda x: oracles.bandit_objective(bandit, agent.policy(x)[0]), theta
    )
    assert_close(estimate, objective)
    direct = bridge.gradient(
        lambda h: lib.policy_value(bandit.mean_reward[None], h.log_pi, bandit.tau, h.log_prior),
        agent, theta, np.zeros(1, int),
    )  # fmt: skip
    assert_close(direct, objective)


@equation(8, 9, 15, 16, 17)
def test_bandit_squared_error(arm):
    """Under any sampling policy; (16), (17) expand Q into its value and its policy."""
    bandit, agent, theta, outcomes = arm
    s, a, r, weights = outcomes(oracles.random_policy(4, bandit.prior))

    def loss(h):
        return lib.soft_q_loss(h.q, a, r)

    error = agent.q(theta)[0, a] - r
    assert_close(loss(bridge.heads(agent, theta, s)), 0.5 * error**2)
    gradient = bridge.gradient(loss, agent, theta, s, weights)
    assert_close(gradient, weights * error @ oracles.jacobian(agent.q, theta)[0, a])
    streams = bridge.samples(
        lambda h: bandit.tau * lib.take_action(h.log_pi, a) + h.v, agent, theta, s
    )
    assert_close(gradient, weights * error @ streams)


@equation(18, 19, 20, 21)
def test_gradient_of_the_divergence(arm):
    _, agent, theta, _ = arm
    slope = bridge.gradient(
        lambda h: lib.kl_to_prior(h.log_pi, h.log_prior), agent, theta, np.zeros(1, int)
    )
    score = oracles.jacobian(agent.log_policy, theta)[0]
    assert_close(slope, (agent.policy(theta) * agent.ratio(theta))[0] @ score)
    assert_close(slope, oracles.jacobian(agent.kl, theta)[0, 0])


@equation(22, 23)
def test_bandit_equivalence(arm):
    bandit, agent, theta, outcomes = arm
    tau = bandit.tau
    s, a, r, weights = outcomes(agent.policy(theta)[0])
    v, kl = agent.value(theta)[s], agent.kl(theta)[s, 0]
    soft_q = bridge.gradient(lambda h: lib.soft_q_loss(h.q, a, r), agent, theta, s, weights)
    policy_part = bridge.gradient(
        lambda h: lib.policy_gradient_loss(h.log_pi, a, r - v, tau=tau, log_prior=h.log_prior),
        agent, theta, s, weights,
    )  # fmt: skip
    value_part = bridge.gradient(
        lambda h: lib.value_loss(h.v, r - tau * kl), agent, theta, s, weights
    )
    assert_close(soft_q, tau * policy_part + value_part)
    assert_close(policy_part, -oracles.bandit_policy_gradient(bandit, agent, theta))
    for number in ("22", "23"):
        assert_differs(PRINTED[number](bandit, agent, theta), soft_q)


# ---- Values and backups: sections 3.1, 3.3, 3.4 --------------------------------------------------


@equation(24, 25, 26)
def test_values_are_whole_returns(episodic):
    """From any V: at the end of an episode nothing of it is left."""
    policy, v = oracles.random_policy(6, episodic.prior), some_v(episodic)
    kl, length = library_kl(policy, episodic), len(policy) - 1
    path = paths(episodic, policy, length, "state")
    delta = soft_deltas(episodic, path, v, kl)
    v_pi = v + path.mean(lib.n_step_advantages(delta, path.discounts, n=length)[0])
    assert_close(v_pi, oracles.policy_value(episodic, policy))
    q_pi = q_targets(episodic, paths(episodic, policy, length), v, kl, length)
    assert_close(q_pi, oracles.policy_q(episodic, policy))
    again = lib.policy_value(q_pi, log_of(policy), episodic.tau, log_of(episodic.prior))
    assert_close(again, v_pi)


def q_targets(mdp, path, v, kl, n):
    """Mean of the library's n-step targets from each state and action, [S, A]."""
    starts = path.states[:-1]
    advantage = lib.n_step_advantages(soft_deltas(mdp, path, v, kl), path.discounts, n=n)
    return path.mean(lib.soft_q_targets(advantage, v[starts], kl[starts], tau=mdp.tau)[0])


@equation(32, 34, 37)
@pytest.mark.parametrize("n", [1, 3])
def test_backup_of_v(mdp, policy, n):
    v, path = some_v(mdp), paths(mdp, policy, n, "state")
    delta = soft_deltas(mdp, path, v, library_kl(policy, mdp))
    backup = v + path.mean(lib.n_step_advantages(delta, path.discounts, n=n)[0])
    assert_close(backup, oracles.v_backup(mdp, policy, v, n))
    assert_differs(PRINTED["37"](mdp, policy, v, n), backup)


@equation(33, 35)
@pytest.mark.parametrize("n", [1, 3])
def test_backup_of_q(mdp, policy, n):
    """The bootstrap is E_pi[Q] - tau KL of the fixed policy."""
    q, path = some_q(mdp), paths(mdp, policy, n)
    v = lib.policy_value(q, log_of(policy), mdp.tau, log_of(mdp.prior))
    backup = q_targets(mdp, path, v, library_kl(policy, mdp), n)
    assert_close(backup, oracles.q_backup(mdp, policy, q, n))


@equation(36)
def test_errors(mdp, policy):
    v, kl, path = some_v(mdp), oracles.kl(policy, mdp.prior), paths(mdp, policy, 2)
    here, there = path.states[:-1], path.states[1:]
    expected = oracles.deltas(path.rewards, path.discounts, v[here], v[there], kl[here], mdp.tau)
    assert_close(soft_deltas(mdp, path, v, kl), expected)
    assert_close(path.rewards - mdp.tau * kl[here] + path.discounts * v[there] - v[here], expected)


@equation(38, 39, 45)
def test_boltzmann_backup(mdp, policy):
    """One-step targets are unbiased whatever policy acts."""
    q = some_q(mdp)
    path = paths(mdp, policy, 1)
    target = lib.one_step_targets(
        path.rewards,
        path.discounts,
        q[path.states[1:]],
        tau=mdp.tau,
        log_prior=log_of(mdp.prior)[path.states[1:]],
    )
    backup = path.mean(target[0])
    assert_close(backup, oracles.boltzmann_backup(mdp, q))
    assert_differs(PRINTED["38"](mdp, q), backup)


@equation(40, 41, 46, 47)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_n_step_targets_are_unbiased(mdp, policy, n):
    """Their later actions must be the Boltzmann policy's; the first is free."""
    q = some_q(mdp)
    v, log_pi, kl = library_boltzmann(q, mdp)
    expected = oracles.boltzmann_backup(mdp, q, n)
    backup = q_targets(mdp, paths(mdp, np.exp(log_pi), n), v, kl, n)
    assert_close(backup, expected)
    off_policy = q_targets(mdp, paths(mdp, policy, n), v, kl, n)
    if n == 1:
        assert_close(off_policy, expected)
    else:
        assert_differs(off_policy, expected)


@equation(42)
def test_lambda_targets_of_truncated_paths(mdp):
    q, lambda_ = some_q(mdp), 0.7
    v, log_pi, kl = library_boltzmann(q, mdp)
    path = paths(mdp, np.exp(log_pi), 3)
    backups = [oracles.boltzmann_backup(mdp, q, n) for n in (1, 2, 3)]
    expected = (1 - lambda_) * (backups[0] + lambda_ * backups[1]) + lambda_**2 * backups[2]
    assert_close(lambda_targets(mdp, path, v, kl, lambda_), expected)
    few, many = (PRINTED["42"](mdp, q, lambda_, terms) for terms in (200, 400))
    assert_differs(few, many, by=0.3)


@equation(42, 43)
@pytest.mark.parametrize("lambda_", [0.0, 0.6, 1.0])
def test_lambda_targets(episodic, lambda_):
    q = some_q(episodic)
    v, log_pi, kl = library_boltzmann(q, episodic)
    path = paths(episodic, np.exp(log_pi), len(q) - 1)
    backup = lambda_targets(episodic, path, v, kl, lambda_)
    if lambda_ < 1:
        assert_close(backup, oracles.td_lambda_backup(episodic, q, lambda_))
    first = np.asarray(v + episodic.tau * kl)[:, None]
    assert_close(backup, first + oracles.expected_td_sum(episodic, q, lambda_))
    assert_differs(PRINTED["43"](episodic, q, lambda_), backup)


def lambda_targets(mdp, path, v, kl, lambda_):
    starts = path.states[:-1]
    advantage = lib.lambda_advantages(
        soft_deltas(mdp, path, v, kl), path.discounts, lambda_=lambda_
    )
    return path.mean(lib.soft_q_targets(advantage, v[starts], kl[starts], tau=mdp.tau)[0])


# ---- One sequence, step by step: sections 3.5, 3.6, 6.1 ------------------------------------------


class Sequence:
    """Random arrays [T] with terminations and cuts, and Q at T + 1 states."""

    def __init__(self, tau, seed=0, length=9, actions=3):
        rng = np.random.default_rng(seed)
        self.tau, self.length = tau, length
        self.r = rng.normal(size=length)
        self.discount = np.where(np.arange(length) == 4, 0.0, rng.uniform(0.8, 1.0, length))
        self.cut = np.isin(np.arange(length), [1, 4])
        self.a = rng.integers(actions, size=length)
        self.prior = rng.dirichlet(np.full(actions, 3.0), size=length + 1)
        self.q = rng.normal(size=(length + 1, 1)) + 2 * tau * rng.normal(size=self.prior.shape)
        self.v = oracles.soft_value(self.q, tau, self.prior)
        self.log_pi = oracles.log_boltzmann(self.q, tau, self.prior)
        self.kl = oracles.kl(np.exp(self.log_pi), self.prior)[:-1]

    def delta(self, kl=None):
        kl = self.kl if kl is None else kl
        return lib.td_errors(
            self.v[:-1], self.r, self.discount, v_t=self.v[1:], kl_tm1=kl, tau=self.tau
        )


@pytest.fixture(params=range(2))
def sequence(request, tau):
    return Sequence(tau, request.param)


STEPS = pytest.mark.parametrize("n", [1, 3, 4, 50])


@equation(44, 46, 47)
@STEPS
@pytest.mark.parametrize("cuts", [False, True])
def test_soft_q_learning(sequence, n, cuts):
    x, cut = sequence, sequence.cut if cuts else None
    expected = oracles.n_step_q_targets(x.r, x.discount, x.v[1:], x.kl, x.tau, n, cut)
    advantage = lib.n_step_advantages(x.delta(), x.discount, n=n, cut_t=cut)
    target = lib.soft_q_targets(advantage, x.v[:-1], x.kl, tau=x.tau)
    assert_close(target, expected)
    whole_target = lib.n_step_soft_q_targets(
        x.v, x.kl, x.r, discount_t=x.discount, tau=x.tau, n=n, cut_t=cut
    )
    assert_close(whole_target, expected)
    other = x.q[::-1]  # the network that learns; x.q is its target network
    error = other[np.arange(x.length), x.a] - expected
    assert_close(lib.soft_q_loss(other[:-1], x.a, target), 0.5 * error**2)

    def whole(q):
        return lib.n_step_soft_q(
            q,
            x.a,
            x.r,
            discount_t=x.discount,
            tau=x.tau,
            n=n,
            target_q=x.q,
            log_prior=log_of(x.prior),
            cut_t=cut,
        )

    assert_close(whole(other), 0.5 * error**2)
    slope = np.zeros_like(x.q)
    slope[np.arange(x.length), x.a] = error
    assert_close(jax.grad(lambda q: jnp.sum(whole(q)))(jnp.asarray(other)), slope)


@equation(43)
@pytest.mark.parametrize("cuts", [False, True])
def test_lambda_advantages_step_by_step(sequence, cuts):
    x, cut = sequence, sequence.cut if cuts else None
    expected = oracles.lambda_advantages(np.asarray(x.delta()), x.discount, 0.7, cut)
    assert_close(lib.lambda_advantages(x.delta(), x.discount, lambda_=0.7, cut_t=cut), expected)


@equation(53, 54)
@STEPS
@pytest.mark.parametrize("cuts", [False, True])
def test_value_fitting(sequence, n, cuts):
    x, cut = sequence, sequence.cut if cuts else None
    expected = oracles.n_step_value_targets(x.r, x.discount, x.v[1:], x.kl, x.tau, n, cut)
    target = x.v[:-1] + lib.n_step_advantages(x.delta(), x.discount, n=n, cut_t=cut)
    assert_close(target, expected)
    v = x.v[1:]
    assert_close(lib.value_loss(v, target), 0.5 * (v - expected) ** 2)
    slope = jax.grad(lambda v: jnp.sum(lib.value_loss(v, target)))(jnp.asarray(v))
    assert_close(slope, v - expected)
    if n <= x.length and not cuts:
        printed = PRINTED["54"](x.r, x.discount, x.v[:-1], n)
        assert abs(printed - expected[0]) > 1e-3 * abs(expected[0])


@equation(79, 80, 84, 85, 86)
@STEPS
@pytest.mark.parametrize("cuts", [False, True])
def test_actor_critic_step_by_step(sequence, n, cuts):
    """Proper and naive: the KL stands in the return, or in this step's loss alone."""
    x, cut = sequence, sequence.cut if cuts else None
    steps = np.arange(x.length)
    for kl, algorithm in ((x.kl, lib.actor_critic), (0 * x.kl, lib.naive_actor_critic)):
        returns = oracles.n_step_value_targets(x.r, x.discount, x.v[1:], kl, x.tau, n, cut)
        advantage = returns - x.v[:-1]
        policy = x.tau * x.kl - x.log_pi[steps, x.a] * advantage
        loss = algorithm(
            x.v, x.log_pi, x.a, r_t=x.r, discount_t=x.discount, tau=x.tau,
            n=n, value_coef=0.7, log_prior=log_of(x.prior), cut_t=cut,
        )  # fmt: skip
        assert_close(loss, policy + 0.7 * 0.5 * advantage**2)


@equation(79, 80)
@pytest.mark.parametrize("n", [1, 3])
def test_bootstrap_of_both_estimators(sequence, n):
    x = sequence
    values = (x.r, x.discount, x.v[:-1])
    for kl, printed in (
        (x.kl, PRINTED["80"](*values, x.kl, x.tau, n)),
        (0 * x.kl, PRINTED["79"](*values, n)),
    ):
        advantage = lib.n_step_advantages(x.delta(kl), x.discount, n=n)[0]
        expected = oracles.n_step_value_targets(x.r, x.discount, x.v[1:], kl, x.tau, n)[0]
        assert_close(advantage, expected - x.v[0])
        assert_differs(printed, advantage)


# ---- Policy gradients: sections 3.6 and 6.1 ------------------------------------------------------


def learner(mdp, head="actor_critic", kind="linear"):
    states, actions = mdp.prior.shape
    return bridge.make_agent(bridge.MODELS[kind](states, actions), head, mdp.prior, mdp.tau)


class Episodes:
    """All episodes of an agent from state 0, and policy gradients on them."""

    def __init__(self, mdp, agent, theta):
        self.mdp, self.agent, self.theta, self.length = mdp, agent, theta, len(mdp.prior) - 1
        self.path = path = paths(mdp, agent.policy(theta), self.length, "state")
        self.here = path.states[:-1]
        self.kl = library_kl(agent.policy(theta), mdp)
        self.weights = path.probs * (path.starts[0] == 0) * ~mdp.terminal[self.here]

    def returns(self, kl):
        """sum_{d >= 0} gamma^d (r - tau KL)_{t+d}, [T, K]."""
        delta = soft_deltas(self.mdp, self.path, np.zeros(len(kl)), kl)
        return lib.n_step_advantages(delta, self.path.discounts, n=self.length)

    def policy_gradient(self, advantage, discounting=1.0):
        path, tau = self.path, self.mdp.tau
        return -bridge.gradient(
            lambda h: lib.policy_gradient_loss(
                h.log_pi, path.actions, advantage, tau=tau, log_prior=h.log_prior
            ),
            self.agent, self.theta, self.here, self.weights * discounting,
        )  # fmt: skip


@pytest.fixture(params=HEADS)
def episodes(request, episodic):
    return Episodes(episodic, *learner(episodic, request.param))


@pytest.fixture(params=HEADS)
def undiscounted(request, tau):
    mdp = make_mdp("plain", 5, tau, acyclic=True, gamma=1.0)
    return Episodes(mdp, *learner(mdp, request.param))


@equation(48, 51)
def test_undiscounted_policy_gradient(undiscounted):
    """Proper returns give the gradient of the objective; rewards alone are biased as predicted."""
    x = undiscounted
    agent, theta = x.agent, x.theta
    objective = oracles.gradient(
        lambda y: oracles.finite_horizon_objective(x.mdp, agent.policy(y), 0, x.length), theta
    )
    assert_close(x.policy_gradient(x.returns(x.kl)), objective)
    rewards_only = x.policy_gradient(x.returns(0.0 * x.kl))
    later = np.cumsum(np.asarray(x.kl)[x.here[::-1]] * ~x.mdp.terminal[x.here[::-1]], axis=0)[::-1]
    score = oracles.jacobian(agent.log_policy, theta)[x.here, x.path.actions]
    bias = x.mdp.tau * np.einsum("tk,tkp->p", x.weights * later, score)
    assert_close(rewards_only - objective, bias, of=objective)
    assert_differs(rewards_only, objective, by=1e-4)


@equation(49)
def test_discounted_policy_gradient_by_returns(episodes):
    x = episodes
    returns = x.returns(x.kl)
    zero = np.zeros_like(x.path.rewards)
    without_first = lib.soft_q_targets(returns, zero, x.kl[x.here], tau=x.mdp.tau)
    arguments = (x.mdp, x.agent, x.theta, 0, x.length)
    expected = oracles.gradient_by_returns(*arguments)
    assert_close(x.policy_gradient(without_first), expected)
    assert_close(x.policy_gradient(returns), expected)
    assert_differs(PRINTED["49"](*arguments), expected)


@equation(50)
def test_discounted_policy_gradient_by_values(episodes):
    """And with gamma^t before each step, but not without, the gradient of the return."""
    x = episodes
    policy = x.agent.policy(x.theta)
    advantage = oracles.policy_q(x.mdp, policy) - oracles.policy_value(x.mdp, policy)[:, None]
    gradient = x.policy_gradient(advantage[x.here, x.path.actions])
    assert_close(gradient, oracles.gradient_by_values(x.mdp, x.agent, x.theta, 0, x.length))
    assert_close(gradient, x.policy_gradient(x.returns(x.kl)))
    of_return = oracles.gradient(
        lambda y: oracles.policy_value(x.mdp, x.agent.policy(y))[0], x.theta
    )
    assert_close(x.policy_gradient(x.returns(x.kl), x.path.accumulated), of_return)
    assert_differs(gradient, of_return)


@equation(52)
@pytest.mark.parametrize("n", [1, 2])
def test_n_step_policy_gradient(episodes, n):
    x = episodes
    mdp, agent, theta, v = x.mdp, x.agent, x.theta, some_v(x.mdp)
    policy, kl = agent.policy(theta), oracles.kl(agent.policy(theta), x.mdp.prior)
    delta = soft_deltas(mdp, x.path, v, x.kl)
    gradient = x.policy_gradient(lib.n_step_advantages(delta, x.path.discounts, n=n))
    q = oracles.q_backup_by_paths(mdp, policy, kl, v, n)
    weights = oracles.visits(mdp, policy, 0, x.length).sum(axis=0)[:, None] * policy
    advantage = q - (v + mdp.tau * kl)[:, None]
    expected = -oracles.expect(weights, oracles.policy_samples(agent, theta, advantage))
    assert_close(gradient, expected)
    assert_differs(PRINTED["52"](agent, theta, weights, advantage), gradient, by=1e-4)


@equation(79, 80)
@pytest.mark.parametrize("n", [1, 3])
def test_naive_and_proper_estimators(mdp, n):
    """The naive one is biased by tau E[grad log pi sum_{0<d<n} gamma^d KL_{t+d}]."""
    agent, theta = learner(mdp)
    policy, v, tau = agent.policy(theta), agent.value(theta), mdp.tau
    start = np.random.default_rng(0).dirichlet(np.ones(len(v))) * ~mdp.terminal
    path, kl = paths(mdp, policy, n, "state"), oracles.kl(policy, mdp.prior)
    first = np.zeros_like(path.rewards)
    first[0] = start[path.starts[0]] * path.probs

    def estimate(algorithm, value_coef=0.0):
        return -bridge.gradient(
            lambda h: algorithm(
                h.v, h.log_pi, path.actions,
                r_t=path.rewards, discount_t=path.discounts, tau=tau, n=n,
                value_coef=value_coef, log_prior=h.log_prior,
            ),
            agent, theta, path.states, first,
        )  # fmt: skip

    weights = start[:, None] * policy
    q, naive_q = (oracles.q_backup_by_paths(mdp, policy, x, v, n) for x in (kl, 0 * kl))
    proper, naive = (
        estimate(algorithm) for algorithm in (lib.actor_critic, lib.naive_actor_critic)
    )
    for value, actual in ((q, proper), (naive_q, naive)):
        samples = oracles.policy_samples(agent, theta, value - v[:, None])
        assert_close(actual, -oracles.expect(weights, samples))
    bias = oracles.expect(weights * (naive_q - q), oracles.jacobian(agent.log_policy, theta))
    assert_close(naive - proper, bias, of=proper)
    assert (np.max(np.abs(bias)) > 1e-5 * np.max(np.abs(proper))) == (n > 1)
    value_part = oracles.value_samples(agent, theta, q - tau * kl[:, None])
    assert_close(
        estimate(lib.actor_critic, 0.5) - proper, -0.5 * oracles.expect(weights, value_part)
    )


@equation(80)
def test_first_divergence_centres_the_advantage(mdp, policy):
    v, kl, path = oracles.policy_value(mdp, policy), library_kl(policy, mdp), paths(mdp, policy, 2)
    for penalty, mean in ((kl, 0.0 * kl), (0.0 * kl, mdp.tau * kl)):
        delta = soft_deltas(mdp, path, v, kl).at[0].add(mdp.tau * (kl - penalty)[path.states[0]])
        advantage = path.mean(lib.n_step_advantages(delta, path.discounts, n=2)[0])
        assert_close(np.sum(policy * advantage, axis=-1), mean, of=1.0)


# ---- Natural gradients, equation by equation: section 5 ------------------------------------------


class Old:
    """An agent before and after an update, all pairs of its states and actions, and advantages."""

    def __init__(self, tau, head, seed=4):
        mdp = oracles.random_mdp(seed, normalised=False, tau=tau)
        self.tau, rng = tau, np.random.default_rng(seed)
        self.agent, self.theta = learner(mdp, head)
        self.new = self.theta + 0.3 * rng.normal(size=self.theta.shape)
        policy = self.agent.policy(self.theta)
        self.table = rng.dirichlet(np.ones(len(policy)))[:, None] * policy
        self.s, self.a, self.weights = all_pairs(self.table)
        self.advantage = tau * rng.normal(size=policy.shape)
        self.delta = self.advantage[self.s, self.a]
        self.target = (
            self.agent.value(self.theta)[:, None] + tau * self.agent.kl(self.theta) + self.advantage
        )  # Q_hat of (72), [S, A]
        self.at_old = bridge.heads(self.agent, self.theta, self.s)
        self.at_new = bridge.heads(self.agent, self.new, self.s)

    def take(self, table):
        return table[self.s, self.a]

    def frozen_q(self, h):
        """Q_theta with V of theta_old."""
        return lib.q_from_policy(self.at_old.v, h.log_pi, self.tau, h.log_prior)

    def regression(self, step, tau=None):
        return lambda h: lib.natural_regression_loss(
            h.log_pi,
            self.a,
            self.delta,
            log_pi_old_tm1=self.at_old.log_pi,
            tau=self.tau if tau is None else tau,
            step_size=step,
            log_prior=h.log_prior,
        )

    def damped(self, epsilon):
        return lambda h: lib.damped_soft_q_loss(
            self.frozen_q(h),
            self.a,
            self.take(self.target),
            q_old_tm1=self.at_old.q,
            epsilon=epsilon,
        )

    def gauss_newton(self, loss):
        return bridge.gauss_newton_step(loss, self.agent, self.theta, self.s, self.weights)

    @functools.cached_property
    def solver(self):
        def log_prob(theta):
            return lib.take_action(bridge.heads(self.agent, theta, self.s).log_pi, self.a)

        @functools.partial(jax.jit, static_argnames="solver")
        def solve(advantage, damping, solver):
            return jaxsoft.natural_gradient(
                log_prob, jnp.asarray(self.theta), advantage,
                damping=damping, solver=solver, weight=self.weights, tolerance=1e-11,
            )  # fmt: skip

        return solve

    def natural(self, advantage, damping=0.0, solver="cg"):
        direction, info = self.solver(advantage, damping, solver)
        assert int(info.status) == jaxsoft.SolveStatus.CONVERGED
        return np.asarray(direction)


@functools.cache
def make_old(tau, head):
    return Old(tau, head)


@pytest.fixture(params=HEADS)
def old(request, tau):
    return make_old(tau, request.param)


@equation(66)
@pytest.mark.parametrize(("solver", "damping"), [("cg", 0.0), ("gram", 0.1)])
def test_least_squares_of_the_score(old, solver, damping):
    score = old.take(oracles.jacobian(old.agent.log_policy, old.theta))
    # The oracle's N samples count alike: weights go in as roots.
    root = np.sqrt(old.weights * len(old.weights))
    expected = oracles.natural_direction(root[:, None] * score, root * old.delta, damping)
    assert_close(old.natural(old.delta, damping, solver), expected, 1e-8)


@equation(67)
def test_change_of_the_log_policy(old):
    """The step is w itself, to first order; the printed form counts epsilon twice."""
    epsilon, agent = 1e-4, old.agent
    score = old.take(oracles.jacobian(agent.log_policy, old.theta))
    w = epsilon * old.natural(old.delta / old.tau)
    moved = bridge.heads(agent, jnp.asarray(old.theta + w), old.s).log_pi
    change = lib.take_action(moved, old.a) - lib.take_action(old.at_old.log_pi, old.a)
    assert_close(change, score @ w, 30 * epsilon)
    assert_differs(PRINTED["67"](score, w, epsilon), change, by=0.9)


@equation(68)
def test_regression_on_advantages(old):
    epsilon = 0.3
    change = old.take(old.agent.ratio(old.new) - old.agent.ratio(old.theta))
    loss = old.regression(epsilon, tau=0.0)(old.at_new)
    assert_close(loss, 0.5 * (change - epsilon * old.delta) ** 2)
    step = old.gauss_newton(old.regression(epsilon, tau=0.0))
    assert_close(step, epsilon * old.natural(old.delta), 1e-8)


@equation(69, 70)
def test_entropy_regularised_gradient(old):
    agent, theta, tau = old.agent, old.theta, old.tau
    gradient = -bridge.gradient(
        lambda h: lib.policy_gradient_loss(
            h.log_pi, old.a, old.delta, tau=tau, log_prior=h.log_prior
        ),
        agent, theta, old.s, old.weights,
    )  # fmt: skip
    samples = oracles.policy_samples(agent, theta, old.advantage)
    assert_close(gradient, -oracles.expect(old.table, samples))
    bracket = old.take(old.advantage - tau * (agent.ratio(theta) - agent.kl(theta)))
    centred = bridge.gradient(
        lambda h: bracket * lib.take_action(h.log_pi, old.a), agent, theta, old.s, old.weights
    )
    assert_close(centred, gradient)
    expected = oracles.natural_gradient(agent, theta, old.table, old.advantage)
    assert_close(old.natural(bracket), expected, 1e-8)


@equation(71)
def test_natural_regression(old):
    epsilon, agent, theta = 0.3, old.agent, old.theta
    arguments = (agent, theta, old.advantage, epsilon)
    expected = old.take(oracles.natural_residual(*arguments)(old.new))
    loss = old.regression(epsilon)(old.at_new)
    assert_close(loss, 0.5 * expected**2)
    assert_differs(0.5 * old.take(PRINTED["71"](*arguments)(old.new)) ** 2, loss)
    step = old.gauss_newton(old.regression(epsilon))
    natural = epsilon * oracles.natural_gradient(agent, theta, old.table, old.advantage)
    assert_close(step, natural, 1e-8)
    printed = oracles.gauss_newton_step(PRINTED["71"](*arguments), theta, old.table)
    assert_close(printed, natural / (1 + epsilon * old.tau), 1e-8)


@equation(72, 73)
def test_soft_q_regression_with_frozen_value(old):
    tau, agent = old.tau, old.agent
    loss = lib.soft_q_loss(old.frozen_q(old.at_new), old.a, old.take(old.target))
    goal = old.advantage / tau + agent.kl(old.theta)
    ratio = agent.ratio(old.new)
    assert_close(loss, 0.5 * tau**2 * old.take(ratio - goal) ** 2, 1e-9)
    printed = PRINTED["73"](agent, old.theta, old.advantage)
    assert_differs(0.5 * tau**2 * old.take(ratio - printed) ** 2, loss)


@equation(74, 75, 76)
def test_damped_target(old):
    tau, epsilon, agent, theta = old.tau, 0.3, old.agent, old.theta
    gain = old.take(old.advantage + tau * (agent.kl(theta) - agent.ratio(theta)))
    q_old = lib.take_action(old.at_old.q, old.a)
    assert_close(old.take(old.target) - np.asarray(q_old), gain, of=1.0)
    expected = lib.soft_q_loss(old.frozen_q(old.at_new), old.a, q_old + epsilon * gain)
    assert_close(old.damped(epsilon)(old.at_new), expected)
    assert_close(
        old.damped(1.0)(old.at_new),
        lib.soft_q_loss(old.frozen_q(old.at_new), old.a, old.take(old.target)),
    )
    assert_close(old.damped(0.0)(old.at_old), np.zeros_like(gain), of=1.0, tolerance=1e-20)


@equation(77, 78)
def test_damped_q_learning_is_natural_regression(old):
    tau, epsilon, agent, theta = old.tau, 0.3, old.agent, old.theta
    loss = old.damped(epsilon)(old.at_new)
    residual = oracles.damped_q_residual(agent, theta, old.target, epsilon)(old.new)
    assert_close(loss, 0.5 * old.take(residual) ** 2, 1e-9)
    assert_close(loss, tau**2 * np.asarray(old.regression(epsilon / tau)(old.at_new)), 1e-9)
    printed = PRINTED["78"](agent, theta, old.advantage, epsilon)(old.new)
    assert_differs(0.5 * old.take(printed) ** 2, loss)
    step = old.gauss_newton(old.damped(epsilon))
    natural = oracles.natural_gradient(agent, theta, old.table, old.advantage)
    assert_close(step, epsilon / tau * natural, 1e-8)
    assert_close(step, old.gauss_newton(old.regression(epsilon / tau)), 1e-8)


# ---- Experiments and related work: sections 6.2, 6.3, 7 ------------------------------------------


@equation(81, 82, 83)
def test_one_step_targets(tau):
    rng = np.random.default_rng(0)
    r, discount, q = rng.normal(size=6), np.full(6, 0.9), rng.normal(size=(6, 5))
    hard = r + discount * q.max(axis=-1)
    for log_prior in (None, 0.0):
        assert_close(lib.one_step_targets(r, discount, q, tau=0.0, log_prior=log_prior), hard)
    top = q.max(axis=-1)
    log_sum = tau * np.log(np.sum(np.exp((q - top[:, None]) / tau), axis=-1)) + top
    penalty = lib.one_step_targets(r, discount, q, tau=tau)
    bonus = lib.one_step_targets(r, discount, q, tau=tau, log_prior=0.0)
    assert_close(penalty, r + discount * (log_sum - tau * np.log(5)))
    assert_close(bonus, r + discount * log_sum)
    for number, target in (("82", penalty), ("83", bonus)):
        printed = [PRINTED[number](*x, tau) for x in zip(r, discount, q, strict=True)]
        assert_differs(printed, target)


@equation(84, 85, 86)
@pytest.mark.parametrize("head", HEADS)
def test_actor_critic_losses(tau, head):
    """Delta and V_hat are held fixed; tau (L_policy + L_value/tau) is soft Q's in expectation."""
    mdp = oracles.random_mdp(2, masked=True, tau=tau)
    agent, theta = learner(mdp, head)
    policy, v, kl = agent.policy(theta), agent.value(theta)[:, None], agent.kl(theta)
    table = np.full((len(v), 1), 0.25) * policy
    s, a, weights = all_pairs(table)
    y = agent.q(theta) + np.random.default_rng(1).normal(size=policy.shape)
    target, v_hat = y[s, a], (y - tau * kl)[s, a]

    def gradient(loss):
        return bridge.gradient(loss, agent, theta, s, weights)

    def policy_loss(h):
        # What an implementation would write; no gradient may pass through Delta.
        delta = target - h.v - tau * lib.kl_to_prior(h.log_pi, h.log_prior)
        return lib.policy_gradient_loss(h.log_pi, a, delta, tau=tau, log_prior=h.log_prior)

    def value_loss(h):
        return lib.value_loss(h.v, target - tau * lib.kl_to_prior(h.log_pi, h.log_prior))

    def a2c(c):
        return lambda h: lib.a2c_loss(
            h.v, h.log_pi, a, target_t=target, tau=tau, value_coef=c, log_prior=h.log_prior
        )

    at = bridge.heads(agent, theta, s)
    policy_value = (tau * kl - agent.log_policy(theta) * (y - v - tau * kl))[s, a]
    assert_close(policy_loss(at), policy_value)
    assert_close(value_loss(at), 0.5 * (v[s, 0] - v_hat) ** 2)
    assert_close(a2c(0.7)(at), policy_value + 0.7 * 0.5 * (v[s, 0] - v_hat) ** 2)

    actor, critic = gradient(policy_loss), gradient(value_loss)
    samples = oracles.policy_samples(agent, theta, y - v - tau * kl)
    assert_close(actor, oracles.expect(table, samples))
    assert_close(critic, oracles.expect(table, oracles.value_samples(agent, theta, y - tau * kl)))
    assert_close(gradient(a2c(0.7)), actor + 0.7 * critic)
    soft_q = gradient(lambda h: lib.soft_q_loss(h.q, a, target))
    assert_close(soft_q, tau * gradient(a2c(1 / tau)))
    for number, correct in (("84", actor), ("85", critic), ("86", soft_q)):
        assert_differs(PRINTED[number](agent, theta, table, y), correct)


@equation(87)
def test_pgq_value(mdp):
    """In each prior; the printed form is the entropy's, prior 1."""
    tau, v = mdp.tau, some_v(mdp)
    policy = oracles.random_policy(3, mdp.prior)
    s, a, _ = all_pairs(policy)
    rng = np.random.default_rng(0)
    returns, backups = rng.normal(size=(2, len(s)))
    for prior, log_prior in ((mdp.prior, log_of(mdp.prior)[s]), (np.ones_like(mdp.prior), 0.0)):
        q = oracles.pgq_q(v, log_of(policy), tau, prior)
        q = np.where(policy > 0, q, 0.0)
        assert_close(np.sum(policy * q, axis=-1), v)
        loss = lib.pgq_loss(
            v[s],
            log_of(policy)[s],
            a,
            return_t=returns,
            backup_t=backups,
            tau=tau,
            mixing=0.3,
            value_coef=0.5,
            log_prior=log_prior,
        )
        expected = 0.7 * (q[s, a] - returns) ** 2 + 0.3 * (q[s, a] - backups) ** 2
        assert_close(loss, 0.5 * expected)
    if np.all(policy > 0):
        printed = PRINTED["87"](v, log_of(policy), tau)[s, a]
        wrong = 0.35 * (printed - returns) ** 2 + 0.15 * (printed - backups) ** 2
        assert_differs(wrong, loss, by=1e-4)


def consistency(mdp, path, v, log_pi, n):
    here, there = path.states[:-1], path.states[1:]
    return lib.path_consistency_loss(
        v[here],
        log_pi[here],
        path.actions,
        r_t=path.rewards,
        discount_t=path.discounts,
        v_t=v[there],
        tau=mdp.tau,
        n=n,
        log_prior=log_of(mdp.prior)[here],
    )


def alive(mdp, path):
    return ~mdp.terminal[path.states[:-1]]


@equation(88)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("branching", [1, 2])
def test_sum_of_advantages(tau, variant, branching):
    """Along each path if dynamics are deterministic, else in expectation; any policy may act."""
    n, mdp = 3, make_mdp(variant, 6, tau, branching=branching)
    policy, acting = (oracles.random_policy(seed, mdp.prior) for seed in (12, 13))
    path = paths(mdp, acting, n, "state")
    v, q, here = oracles.policy_value(mdp, policy), oracles.policy_q(mdp, policy), path.states[:-1]
    advantage = (q[here, path.actions] - v[here]) * alive(mdp, path)
    lhs = lib.n_step_advantages(advantage, path.discounts, n=n)[0]
    delta = soft_deltas(mdp, path, v, np.zeros_like(v)) * alive(mdp, path)
    rhs = lib.n_step_advantages(delta, path.discounts, n=n)[0]
    assert_close(path.mean(lhs - rhs), np.zeros_like(v), of=1.0)
    printed = PRINTED["88"](mdp, policy, oracles.trajectories(mdp, acting, 0, n))
    for error in (lhs - rhs, printed):
        size = np.max(np.abs(error))
        assert size < 1e-10 if branching == 1 else size > 0.1


@equation(89)
def test_optimal_advantage(mdp, policy):
    """tau log(pi/prior) is the advantage of pi for the optimal pi, and for no other."""
    q = oracles.optimal_q(mdp)
    allowed = mdp.prior > 0
    v, log_pi, _ = library_boltzmann(q, mdp)
    optimal = np.exp(np.asarray(log_pi))
    for pi, equal in ((optimal, True), (policy, False)):
        log_ratio = lib.q_from_policy(0 * v, log_of(pi), mdp.tau, log_of(mdp.prior))
        advantage = oracles.policy_q(mdp, pi) - oracles.policy_value(mdp, pi)[:, None]
        error = np.max(np.abs(np.asarray(log_ratio) - advantage)[allowed & (pi > 1e-300)])
        assert error < 1e-9 if equal else error > 1e-2


@equation(90)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n", [1, 3])
def test_path_consistency(tau, variant, n):
    """Zero at the optimum along any path; for any Boltzmann pair, the sum of Bellman errors."""
    mdp = make_mdp(variant, 6, tau, branching=1)
    path = paths(mdp, oracles.random_policy(13, mdp.prior), 3, "state")
    v, log_pi, _ = library_boltzmann(oracles.optimal_q(mdp), mdp)
    loss = consistency(mdp, path, v, log_pi, n) * alive(mdp, path)
    assert_close(loss, np.zeros_like(path.rewards), of=1.0, tolerance=1e-20)
    q = some_q(mdp)
    v, log_pi, _ = library_boltzmann(q, mdp)
    here, there = path.states[:-1], path.states[1:]
    bellman = path.rewards + path.discounts * v[there] - q[here, path.actions]
    errors = np.sum((path.accumulated * np.asarray(bellman))[:n], axis=0)
    loss = consistency(mdp, path, v, log_pi, n)
    assert_close(loss[0], 0.5 * errors**2)
    assert np.max(loss[0]) > 1e-2


@equation(90)
def test_path_consistency_of_stochastic_dynamics(mdp):
    """At the optimum it is zero in expectation only, and the squared error is biased."""
    q = oracles.optimal_q(mdp)
    v, log_pi, _ = library_boltzmann(q, mdp)
    path = paths(mdp, oracles.random_policy(13, mdp.prior), 2, "state")
    here = path.states[:-1]
    loss = consistency(mdp, path, v, log_pi, 2)[0]
    assert np.max(path.mean(loss)) > 1e-2
    log_ratio = lib.q_from_policy(0 * v, log_pi, 1.0, log_of(mdp.prior))
    taken = lib.take_action(log_ratio[here], path.actions)
    delta = lib.td_errors(
        v[here], path.rewards, path.discounts, v_t=v[path.states[1:]], kl_tm1=taken, tau=mdp.tau
    ) * alive(mdp, path)
    errors = lib.n_step_advantages(delta, path.discounts, n=2)[0]
    assert_close(path.mean(errors), np.zeros(len(v)), of=1.0)
    live = alive(mdp, path)[0]
    assert_close(loss[live], 0.5 * np.asarray(errors)[live] ** 2)


@equation(90)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("n", [1, 3])
def test_path_consistency_is_differentiated_in_full(sequence, head, n):
    """Into every V and log pi on the path, the bootstrap included."""
    x = sequence
    agent, theta = bridge.make_agent(bridge.MODELS["linear"](*x.prior.shape), head, x.prior, x.tau)
    steps = np.arange(x.length)

    def loss(h):
        return lib.path_consistency_loss(
            h.v[:-1],
            h.log_pi[:-1],
            x.a,
            r_t=x.r,
            discount_t=x.discount,
            v_t=h.v[1:],
            tau=x.tau,
            n=n,
            log_prior=h.log_prior[:-1],
        )

    def errors(r, v, ratio):
        return oracles.path_consistency_errors(
            r, x.discount, v[:-1], v[1:], ratio[steps, x.a], x.tau, n
        )

    actual = errors(x.r, agent.value(theta), agent.ratio(theta))
    assert_close(loss(bridge.heads(agent, jnp.asarray(theta))), 0.5 * actual**2)
    slopes = (oracles.jacobian(agent.value, theta), oracles.jacobian(agent.ratio, theta))
    slope = [
        errors(0 * x.r, v, ratio)
        for v, ratio in zip(*(np.moveaxis(y, -1, 0) for y in slopes), strict=False)
    ]
    gradient = bridge.gradient(loss, agent, theta, np.arange(x.length + 1))
    assert_close(gradient, np.array(slope) @ actual)
