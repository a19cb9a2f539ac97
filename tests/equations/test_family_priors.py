"""Several divergences as one: trust regions, damping, Munchausen, and full gradients' trap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxsoft
from tests.equations.test_family import TAUS, make_mdp, optimum, random_q
from tests.support import bridge, oracles
from tests.support.bridge import assert_close, assert_differs, lib, log_of


@pytest.fixture(params=TAUS)
def tau(request):
    return request.param


LAMBDA = 0.4


def mixed(*pairs):
    tau, log_prior = lib.mix_priors(*pairs)
    return float(tau), np.asarray(log_prior)


def prior_of(*pairs):
    _, log_prior = jaxsoft.mix_priors(*pairs)
    assert log_prior is not None
    return log_prior


# ---- The mixture itself --------------------------------------------------------------------------


def test_divergences_add_up_to_one(tau):
    """For any measures, three or more, and `None`, which is uniform here as everywhere."""
    rng = np.random.default_rng(0)
    priors = [np.log(rng.uniform(0.1, 2, size=(3, 4))) for _ in range(2)]
    policy = rng.dirichlet(np.ones(4), size=3)
    weights = (tau, LAMBDA, 0.2, 0.3)
    given = (*priors, None, 0.0)
    whole = sum(w * lib.kl_to_prior(np.log(policy), p) for w, p in zip(weights, given, strict=True))
    total, log_prior = mixed(*zip(weights, given, strict=True))
    assert_close(total, sum(weights))
    assert_close(total * lib.kl_to_prior(np.log(policy), log_prior), np.asarray(whole))
    expected = tau * priors[0] + LAMBDA * priors[1] - 0.2 * np.log(4)
    assert_close(log_prior, expected / total)


def test_a_reference_and_a_teacher(tau):
    """Its optimum is ref^(τ/(τ+λ)) teacher^(λ/(τ+λ)) e^(R/(τ+λ)), normalised."""
    reference, teacher = np.random.default_rng(1).dirichlet(np.ones(5), size=2)
    reward = np.random.default_rng(2).normal(size=5)
    total, log_prior = mixed((tau, np.log(reference)), (LAMBDA, np.log(teacher)))
    best = reference ** (tau / total) * teacher ** (LAMBDA / total) * np.exp(reward / total)
    assert_close(np.exp(lib.log_policy(reward, total, log_prior)), best / best.sum())


def test_temperatures_of_each_state():
    rng = np.random.default_rng(3)
    taus, prior = rng.uniform(0.1, 1, size=(3, 2)), np.log(rng.dirichlet(np.ones(4)))
    other = np.log(rng.dirichlet(np.ones(4), size=(3, 1)))
    tau, log_prior = jaxsoft.mix_priors((taus, prior), (0.3, other))
    assert tau.shape == (3, 2)
    expected = (taus[..., None] * prior + 0.3 * other) / (taus + 0.3)[..., None]
    assert_close(log_prior, expected)
    q = rng.normal(size=(3, 2, 4))
    assert lib.soft_value(q, tau, log_prior).shape == (3, 2)


def test_one_prior_alone_is_itself():
    tau, log_prior = jaxsoft.mix_priors((0.3, None), (0.2, None))
    assert log_prior is None
    assert_close(tau, 0.5)
    prior = np.log([0.2, 0.3, 0.5])
    np.testing.assert_array_equal(prior_of((0.3, prior)), prior)
    assert prior_of((0.3, 0.0), (0.1, -2.0)).shape == ()


MASKED = np.array([-np.inf, -0.5, -1.0])
OPEN = np.log([0.2, 0.3, 0.5])


def test_a_mask_binds_where_it_counts():
    """With weight 0 it is 0 · ∞, and must be nothing; no derivative is lost to it either."""
    np.testing.assert_array_equal(prior_of((0.3, OPEN), (0.0, MASKED)), OPEN)
    assert prior_of((0.3, OPEN), (1e-9, MASKED))[0] == -np.inf
    # All of weight 0: the hard maximum over what no prior masks.
    tau, log_prior = jaxsoft.mix_priors((0.0, OPEN), (0.0, MASKED))
    assert lib.soft_value(np.array([9.0, 1.0, 2.0]), tau, log_prior) == 2.0
    q = np.array([0.3, -0.2, 0.5])

    def value(weights, priors):
        return lib.soft_value(q, *jaxsoft.mix_priors(*zip(weights, priors, strict=True)))

    for weights in ((0.3, 0.2), (0.3, 0.0), (0.0, 0.3), (0.0, 0.0)):
        slopes = jax.grad(value, (0, 1))(weights, (OPEN, MASKED))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes)), weights
    log_prior = prior_of((np.array([0.3, 0.0]), MASKED), (0.1, OPEN))
    np.testing.assert_array_equal(np.isfinite(log_prior[:, 0]), [False, True])


@given(st.lists(st.floats(0, 10), min_size=2, max_size=4))
def test_a_mixture_has_the_derivatives_of_its_parts(weights):
    """∂/∂τ_i of the soft value is −KL to the i-th prior."""
    rng = np.random.default_rng(4)
    priors = np.log(rng.dirichlet(np.ones(3), size=len(weights)))
    weights = [w + 0.05 for w in weights]
    q = rng.normal(size=3)

    def value(weights):
        return lib.soft_value(q, *lib.mix_priors(*zip(weights, priors, strict=True)))

    log_pi = lib.log_policy(q, *lib.mix_priors(*zip(weights, priors, strict=True)))
    expected = [-lib.kl_to_prior(log_pi, prior) for prior in priors]
    np.testing.assert_allclose(jax.grad(value)(weights), expected, rtol=1e-9, atol=1e-12)


# ---- Trust regions -------------------------------------------------------------------------------


def sampled_path(mdp, seed, length=7):
    """States and actions of a path that the dynamics allow, and what the steps pay."""
    rng = np.random.default_rng(seed)
    states, actions, rewards = [0], [], []
    for _ in range(length):
        s = states[-1]
        a = rng.integers(mdp.prior.shape[1])
        s_next = rng.choice(len(mdp.prior), p=mdp.transition[s, a])
        actions.append(a)
        rewards.append(mdp.rewards[s, a, s_next, 0])
        states.append(int(s_next))
    return np.array(states), np.array(actions), np.array(rewards)


@pytest.mark.parametrize("n", [1, 3])
def test_trust_pcl(tau, n):
    """Path consistency with both divergences of each action, by the mixture."""
    mdp = make_mdp(tau)
    s, a, r = sampled_path(mdp, 0)
    rng = np.random.default_rng(1)
    v, log_pi = rng.normal(size=len(mdp.prior)), log_of(oracles.random_policy(2, mdp.prior))
    lagged = log_of(oracles.random_policy(3, mdp.prior))
    total, prior = mixed((tau, log_of(mdp.prior)), (LAMBDA, lagged))
    loss = lib.path_consistency_loss(
        v[s[:-1]], log_pi[s[:-1]], a, r_t=r, discount_t=mdp.gamma, v_t=v[s[1:]],
        tau=total, n=n, log_prior=prior[s[:-1]],
    )  # fmt: skip
    here = (s[:-1], a)
    penalty = tau * (log_pi - log_of(mdp.prior)) + LAMBDA * (log_pi - lagged)
    for t in range(len(a)):
        m = min(n, len(a) - t)
        steps = mdp.gamma ** np.arange(m) @ (r - penalty[here])[t : t + m]
        error = steps + mdp.gamma**m * v[s[t + m]] - v[s[t]]
        assert_close(loss[t], 0.5 * error**2)


def test_trust_pcl_vanishes_at_its_optimum(tau):
    """Path by path where dynamics are deterministic; the optimum is that of the mixture."""
    mdp = make_mdp(tau, branching=1)
    lagged = log_of(oracles.random_policy(3, mdp.prior))
    total, prior = mixed((tau, log_of(mdp.prior)), (LAMBDA, lagged))
    q = optimum(mdp, log_prior=prior, tau=total)
    v, log_pi = (np.asarray(f(q, total, prior)) for f in (lib.soft_value, lib.log_policy))
    s, a, r = sampled_path(mdp, 4)
    loss = lib.path_consistency_loss(
        v[s[:-1]], log_pi[s[:-1]], a, r_t=r, discount_t=mdp.gamma, v_t=v[s[1:]],
        tau=total, n=4, log_prior=prior[s[:-1]],
    )  # fmt: skip
    assert_close(loss, np.zeros(len(a)), of=1.0)


@pytest.mark.parametrize("n", [1, 3])
def test_unified_pcl(tau, n):
    """One Q gives both V and log π: n = 1 is the soft Bellman residual, any n a return of c = 1."""
    mdp = make_mdp(tau)
    s, a, r = sampled_path(mdp, 1)
    q, log_prior = random_q(mdp), log_of(mdp.prior)

    def loss(q):
        v, log_pi = lib.soft_value(q, tau, log_prior), lib.log_policy(q, tau, log_prior)
        return lib.path_consistency_loss(
            v[s[:-1]], log_pi[s[:-1]], a, r_t=r, discount_t=mdp.gamma, v_t=v[s[1:]],
            tau=tau, n=n, log_prior=log_prior[s[:-1]],
        )  # fmt: skip

    def by_returns(q):
        v, taken = lib.soft_value(q, tau, log_prior), q[s[:-1], a]
        delta = r + mdp.gamma * v[s[1:]] - taken
        return 0.5 * jnp.square(lib.n_step_advantages(delta, mdp.gamma, n=n))

    assert_close(loss(q), np.asarray(by_returns(q)))
    one, other = (jax.jacobian(f)(jnp.asarray(q)) for f in (loss, by_returns))
    assert_close(one, np.asarray(other))


def test_damping_is_a_trust_region(tau):
    """The damped tabular step is the optimum of the mixture, with ε = τ/(τ+λ)."""
    mdp = make_mdp(tau)
    target, old = random_q(mdp, 1), oracles.random_policy(4, mdp.prior)
    total, prior = mixed((tau, log_of(mdp.prior)), (LAMBDA, log_of(old)))
    epsilon = tau / total
    damped = oracles.damped_policy(mdp.prior, old, target, tau, epsilon)
    assert_close(np.exp(lib.log_policy(target, total, prior)), damped)
    # The library's damped loss is 0 there, V of the mixture's Q frozen.
    q_old = lib.q_from_policy(np.zeros(len(old)), log_of(old), tau, log_of(mdp.prior))
    new = (1 - epsilon) * q_old + epsilon * target
    s, a, _ = bridge.all_pairs(np.ones_like(old))
    loss = lib.damped_soft_q_loss(new[s], a, target[s, a], q_old_tm1=q_old[s], epsilon=epsilon)
    assert_close(loss, np.zeros(len(s)), of=1.0)
    assert_close(np.exp(lib.log_policy(new, tau, log_of(mdp.prior))), damped)


@pytest.mark.parametrize("sampled", [False, True])
def test_a_budget_of_divergence_weighs_whole_episodes(sampled):
    """λ of the second KL: the least of λε + λ log E e^{R/λ} tilts episodes by the KL ε.

    Episodes are all there are, by their probability, or some that were drawn, all alike.
    """
    mdp = make_mdp(0.5, acyclic=True, gamma=1.0)
    path = oracles.trajectories(mdp, oracles.random_policy(2, mdp.prior), 0, len(mdp.prior) - 1)
    reward, log_prior = path.rewards.sum(axis=1), np.log(path.probs)
    if sampled:
        drawn = np.random.default_rng(0).choice(len(reward), 40, p=path.probs)
        reward, log_prior = reward[drawn], None
    prior = np.full(len(reward), 1 / len(reward)) if sampled else path.probs

    def divergence(trust):
        tilted = prior * np.exp((reward - reward.max()) / trust)
        return oracles.kl(tilted / tilted.sum(), prior)

    def dual(trust, budget):
        return lib.soft_value(reward, trust, log_prior) + trust * budget

    kls = [divergence(trust) for trust in (0.1, 0.3, 1.0, 3.0)]
    assert np.all(np.diff(kls) < 0)  # the looser the bound, the smaller λ
    slope = jax.jit(jax.grad(dual))
    for trust, kl in zip((0.1, 0.3, 1.0, 3.0), kls, strict=True):
        log_tilted = lib.log_policy(reward, trust, log_prior)
        assert_close(lib.kl_to_prior(log_tilted, log_prior), kl)
        assert_close(slope(trust, 0.1), 0.1 - kl, of=kl)
    for budget in (0.05, 0.4):
        low, high = 1e-2, 1e3
        for _ in range(80):
            trust = np.sqrt(low * high)
            low, high = (trust, high) if slope(trust, budget) < 0 else (low, trust)
        assert_close(divergence(trust), np.asarray(budget))
        tilted = np.exp(lib.log_policy(reward, trust, log_prior))
        assert_close(dual(trust, budget), tilted @ reward)  # the most return within the budget


# ---- Munchausen ----------------------------------------------------------------------------------


def backup(mdp, reward, q, tau, log_prior):
    """Of every pair: `one_step_targets` of each successor, averaged."""
    targets = lib.one_step_targets(np.zeros(len(q)), mdp.gamma, q, tau=tau, log_prior=log_prior)
    return reward + mdp.transition @ np.asarray(targets)


def test_munchausen_is_value_iteration_in_a_trust_region(tau):
    """(τ_M, α): τ_M = τ + λ, α = λ/(τ + λ); policies are equal at every iteration."""
    mdp, log_prior = make_mdp(tau), log_of(make_mdp(tau).prior)
    tau_m, alpha = tau + LAMBDA, LAMBDA / (tau + LAMBDA)
    # The previous policy of the first iteration is the prior.
    q_m, log_old = np.zeros_like(log_prior), log_prior
    q, trust = np.zeros_like(log_prior), (tau_m, log_prior)
    for _ in range(300):
        log_pi = np.asarray(lib.log_policy(q, *trust))
        assert_close(lib.log_policy(q_m, tau_m, log_prior), log_pi)
        assert_close(q_m - alpha * tau_m * (log_old - log_prior), q, of=1.0)
        # Munchausen: the log-ratio of its own policy is paid, and the prior stays.
        ratio = log_pi - log_prior
        paid = alpha * tau_m * ratio
        advantage = alpha * (q_m - np.asarray(lib.soft_value(q_m, tau_m, log_prior))[:, None])
        assert_close(paid, advantage, of=1.0)  # advantage learning
        q_m = backup(mdp, mdp.mean_reward + paid, q_m, tau_m, log_prior)
        # The trust region: this policy is the next prior's part.
        q, log_old = backup(mdp, mdp.mean_reward, q, *trust), log_pi
        trust = mixed((tau, log_prior), (LAMBDA, log_pi))
    best = oracles.boltzmann(oracles.optimal_q(mdp), tau, mdp.prior)
    assert_close(np.exp(log_pi), best, 1e-6)  # of temperature (1 − α)τ_M


def test_a_clip_that_binds_breaks_munchausen(tau):
    mdp, log_prior = make_mdp(tau), log_of(make_mdp(tau).prior)
    tau_m, alpha = tau + LAMBDA, LAMBDA / (tau + LAMBDA)
    q = np.zeros_like(log_prior)
    for _ in range(300):
        ratio = np.asarray(lib.log_policy(q, tau_m, log_prior)) - log_prior
        paid = alpha * np.maximum(tau_m * ratio, -0.05)
        q = backup(mdp, mdp.mean_reward + paid, q, tau_m, log_prior)
    best = oracles.boltzmann(oracles.optimal_q(mdp), tau, mdp.prior)
    assert_differs(np.exp(lib.log_policy(q, tau_m, log_prior)), best, by=1e-2)


# ---- What a full gradient minimises --------------------------------------------------------------


def test_full_gradients_want_deterministic_dynamics(tau):
    """At Q* the semi-gradient is 0 in expectation; that of PCL is not, unless nothing is random."""
    norms = {}
    for branching in (1, 2):
        mdp = make_mdp(tau, branching=branching)
        q, log_prior = jnp.asarray(oracles.optimal_q(mdp)), log_of(mdp.prior)
        s, a, x = np.nonzero(mdp.transition)
        weights, r = mdp.transition[s, a, x], mdp.rewards[s, a, x, 0]

        def full(q, mdp=mdp, s=s, a=a, x=x, weights=weights, r=r, log_prior=log_prior):
            v, log_pi = lib.soft_value(q, mdp.tau, log_prior), lib.log_policy(q, mdp.tau, log_prior)
            return jnp.sum(weights * lib.path_consistency_loss(
                v[s], log_pi[s], a, r_t=r, discount_t=mdp.gamma, v_t=v[x],
                tau=mdp.tau, n=1, log_prior=log_prior[s],
            ))  # fmt: skip

        def semi(q, mdp=mdp, s=s, a=a, x=x, weights=weights, r=r, log_prior=log_prior):
            y = lib.one_step_targets(r, mdp.gamma, q[x], tau=mdp.tau, log_prior=log_prior[x])
            return jnp.sum(weights * lib.soft_q_loss(q[s], a, y))

        norms[branching] = [float(jnp.linalg.norm(jax.grad(f)(q))) for f in (semi, full)]
    assert max(*norms[1], norms[2][0]) < 1e-10
    assert norms[2][1] > 1e-2
