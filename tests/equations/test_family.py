"""The family that the algebra has: methods that are one call, and the laws of what was added.

By enumeration or quadrature, at temperatures that are not 1 and under priors that are not uniform.
Trust regions and sequences of tokens have files of their own beside this one, and replay windows
are in tests/agents/test_windows.py. docs/equations.md is the index.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jaxsoft
from tests.support import bridge, oracles
from tests.support.bridge import assert_close, assert_differs, lib, log_of

TAUS = (0.1, 0.5, 1.7)


@pytest.fixture(params=TAUS)
def tau(request):
    return request.param


def make_mdp(tau, seed=3, **options):
    return oracles.random_mdp(seed, outcomes=1, tau=tau, **options)


@pytest.fixture
def mdp(tau):
    return make_mdp(tau)


def random_q(mdp, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(len(mdp.prior), 1)) + 2 * mdp.tau * rng.normal(size=mdp.prior.shape)


def optimum(mdp, reward=None, log_prior=None, tau=None):
    """Soft Q* [S, A] of any reward and measure, by the library's targets, state by state."""
    reward = mdp.mean_reward if reward is None else reward
    log_prior = log_of(mdp.prior) if log_prior is None else log_prior
    tau = mdp.tau if tau is None else tau
    q, nothing = np.zeros_like(reward), np.zeros(len(reward))
    for _ in range(500):
        following = lib.one_step_targets(nothing, mdp.discounts, q, tau=tau, log_prior=log_prior)
        q = reward + mdp.transition @ np.asarray(following)
    return q


# ---- Soft actor-critic ---------------------------------------------------------------------------


def test_the_actor_of_discrete_sac(mdp, tau):
    """It is the policy gradient of all actions, and E[τℓ − Q] = τKL[π‖π_Q] − V_Q."""
    q, states = random_q(mdp), np.arange(len(mdp.prior))
    agent, theta = bridge.make_agent(
        oracles.mlp(0, *mdp.prior.shape), "actor_critic", mdp.prior, tau
    )

    def actor(h):
        return -lib.policy_value(jax.lax.stop_gradient(q), h.log_pi, tau, h.log_prior)

    objective = oracles.gradient(
        lambda x: np.sum(agent.policy(x) * (tau * agent.ratio(x) - q)), theta
    )
    gradient = bridge.gradient(actor, agent, theta, states)
    assert_close(gradient, objective)
    s, a, weights = bridge.all_pairs(agent.policy(theta))
    by_policy_gradient = bridge.gradient(
        lambda h: lib.policy_gradient_loss(h.log_pi, a, q[s, a], tau=tau, log_prior=h.log_prior),
        agent, theta, s, weights,
    )  # fmt: skip
    assert_close(by_policy_gradient, gradient)
    h = bridge.heads(agent, theta, states)
    best = lib.log_policy(q, tau, h.log_prior)
    short = tau * lib.kl_to_prior(h.log_pi, best)
    assert_close(actor(h), np.asarray(short - lib.soft_value(q, tau, h.log_prior)))


def test_the_critic_of_discrete_sac(mdp, tau):
    """Its target is soft Q's less γτKL[π‖π_Q], and the least of two networks stands in it."""
    q1, q2, policy = random_q(mdp, 1), random_q(mdp, 2), oracles.random_policy(5, mdp.prior)
    value = lib.policy_value(np.minimum(q1, q2), log_of(policy), tau, log_of(mdp.prior))
    expected = oracles.state_value(mdp, policy, np.minimum(q1, q2))
    assert_close(value, expected)
    soft = oracles.soft_value(np.minimum(q1, q2), tau, mdp.prior)
    pi_q = oracles.boltzmann(np.minimum(q1, q2), tau, mdp.prior)
    assert_close(soft - value, tau * oracles.kl(policy, pi_q), of=soft)


def test_soft_policy_iteration_rises_to_soft_q(mdp, tau):
    policy, log_prior = oracles.random_policy(6, mdp.prior), log_of(mdp.prior)
    q = np.full_like(log_prior, -np.inf)
    for _ in range(60):
        last, q = q, oracles.policy_q(mdp, policy)
        assert np.all(q >= last - 1e-11)
        policy = np.exp(np.asarray(lib.log_policy(q, tau, log_prior)))
    assert_close(q, oracles.optimal_q(mdp))


def test_draws_of_the_value(mdp, tau):
    """Their mean is `policy_value`; at π_Q each of them is V_Q, whatever the action."""
    q, log_prior = random_q(mdp), log_of(mdp.prior)
    for log_pi in (log_of(oracles.random_policy(7, mdp.prior)), lib.log_policy(q, tau, log_prior)):
        draws = lib.sampled_value(q, log_pi - log_prior, tau)
        mean = np.sum(np.exp(log_pi) * draws, axis=-1)
        assert_close(mean, lib.policy_value(q, log_pi, tau, log_prior))
    soft = np.asarray(lib.soft_value(q, tau, log_prior))
    assert_close(draws, np.broadcast_to(soft[:, None], q.shape))


def test_the_actor_learns_through_its_action():
    """Nothing is held fixed: the gradient along the path, of no variance at π_Q.

    Q(a) = −a²/2 and π̄ uniform on the line: π_Q is N(0, τ). Actions are m + s·noise.
    """
    tau, noise = 0.3, np.linspace(-2.0, 2.0, 9)

    def loss(m, s):
        a = m + s * noise
        held_m, held_s = map(jax.lax.stop_gradient, (m, s))  # the path alone
        log_ratio = -0.5 * ((a - held_m) / held_s) ** 2 - jnp.log(held_s)
        return -lib.sampled_value(-0.5 * a**2, log_ratio, tau)

    at_best = jax.jacobian(loss, (0, 1))(0.0, np.sqrt(tau))
    assert_close(at_best[0], np.zeros_like(noise), of=1.0)
    assert_close(at_best[1], np.zeros_like(noise), of=1.0)
    away = jax.jacobian(loss)(0.4, np.sqrt(tau))
    assert_close(away, np.full_like(noise, 0.4))


@pytest.mark.parametrize("scale", [0.01, 30.0])
def test_the_unit_of_action_cancels(scale):
    """Densities of c·a differ by log c; log-ratios, and so values and losses, do not."""
    rng = np.random.default_rng(0)
    q, log_pi, log_prior = rng.normal(size=(3, 5))
    other = [x - np.log(scale) for x in (log_pi, log_prior)]
    value = lib.sampled_value(q, other[0] - other[1], 0.3)
    assert_close(value, lib.sampled_value(q, log_pi - log_prior, 0.3))


# ---- The temperature of a target divergence ------------------------------------------------------


def test_the_dual_of_the_temperature(tau):
    mdp = make_mdp(tau)
    q, log_prior, target = random_q(mdp), log_of(mdp.prior), 0.07

    def dual(t):
        return jnp.sum(lib.soft_value(q, t, log_prior) + t * target)

    policy = oracles.boltzmann(q, tau, mdp.prior)
    kl = oracles.kl(policy, mdp.prior)
    assert_close(jax.grad(dual)(tau), np.sum(target - kl), of=kl)
    loss = jax.grad(lambda t, kl: jnp.sum(lib.temperature_loss(t, kl, target)), (0, 1))(tau, kl)
    assert_close(loss[0], np.sum(target - kl), of=kl)
    np.testing.assert_array_equal(loss[1], np.zeros_like(kl))  # the actor is not to please τ
    variance = np.sum(policy * q**2, -1) - np.sum(policy * q, -1) ** 2
    assert_close(jax.grad(jax.grad(dual))(tau), np.sum(variance) / tau**3)
    assert_close(lib.temperature_loss(tau, kl, target), tau * (target - kl))
    by_logarithm = jax.grad(lambda x: jnp.sum(lib.temperature_loss(jnp.exp(x), kl, target)))
    assert_close(by_logarithm(np.log(tau)), tau * np.sum(target - kl), of=kl)


def test_the_dual_is_least_at_the_constrained_optimum():
    bandit = oracles.random_bandit(0, tau=1.0)
    q, prior = bandit.mean_reward, bandit.prior
    greatest = -np.log(prior[np.argmax(q)])
    target = 0.4 * greatest

    def kl_at(tau):
        log_pi = lib.log_policy(q, tau, np.log(prior))
        return float(lib.kl_to_prior(log_pi, np.log(prior)))

    low, high = 1e-3, 1e3
    for _ in range(80):
        tau = np.sqrt(low * high)
        step = jax.grad(lib.temperature_loss)(tau, kl_at(tau), target)
        low, high = (tau, high) if step < 0 else (low, tau)  # τ rises while KL > κ
    assert_close(kl_at(tau), target)
    best = oracles.boltzmann(q, tau, prior)
    assert_close(lib.soft_value(q, tau, np.log(prior)) + tau * target, best @ q)
    # Of no use beyond: as τ falls the divergence ends at −log π̄(best).
    assert greatest - 1e-3 < kl_at(1e-3) <= greatest + 1e-12
    rng = np.random.default_rng(1)
    for other in rng.dirichlet(np.ones(4), size=200):
        share = 1.0
        while oracles.kl(share * other + (1 - share) * prior, prior) > target:
            share *= 0.9
        assert (share * other + (1 - share) * prior) @ q <= best @ q


def test_a_target_entropy_is_minus_a_target_divergence():
    """SAC's E[τ(−log π − H̄)]; the unit entropy −1 on (−1, 1) is κ = 1 + log 2 to uniform."""
    log_pi, entropy, tau = np.log([0.2, 0.5, 0.3]), 0.6, 0.4
    kl = lib.kl_to_prior(log_pi, 0.0)
    by_samples = np.exp(log_pi) @ np.asarray(lib.temperature_loss(tau, log_pi, -entropy))
    assert_close(lib.temperature_loss(tau, kl, -entropy), by_samples)
    assert_close(by_samples, tau * (-np.exp(log_pi) @ log_pi - entropy))
    width, points = np.exp(-1.0), np.linspace(-0.5, 0.5, 1001)  # uniform of entropy −1
    to_uniform = np.mean(np.full_like(points, -np.log(width) + np.log(2.0)))
    assert_close(to_uniform, 1 + np.log(2.0))


def test_the_temperature_from_samples(tau):
    """MPO's dual: τκ + τ log mean exp(Q/τ)."""
    q = np.random.default_rng(0).normal(size=(4, 9))
    dual = jax.grad(lambda t: jnp.sum(lib.soft_value(q, t, None) + 0.1 * t))
    expected = [oracles.gradient(
        lambda t: np.sum(t * 0.1 + t * np.log(np.mean(np.exp(q / t), -1))), np.array(tau)[None]
    )]  # fmt: skip
    assert_close(dual(tau), np.asarray(expected)[0, 0])


# ---- Soft values of samples ----------------------------------------------------------------------


def test_soft_values_by_importance_sampling(tau):
    bandit = oracles.random_bandit(1, actions=3, tau=tau)
    q, prior, mu = bandit.mean_reward, bandit.prior, np.array([0.5, 0.2, 0.3])
    exact, last = oracles.soft_value(q, tau, prior), -np.inf
    for m in (1, 2, 4):
        samples = np.array(list(itertools.product(range(3), repeat=m)))
        probs = np.prod(mu[samples], axis=1)
        log_weight = np.log(prior / mu)[samples]
        value = lib.soft_value(q[samples], tau, log_weight - np.log(m))
        weights = np.exp(log_weight + q[samples] / tau)
        assert_close(value, tau * np.log(np.mean(weights, axis=1)))
        normalised = weights / weights.sum(axis=1, keepdims=True)
        assert_close(np.exp(lib.log_policy(q[samples], tau, log_weight)), normalised)
        assert_close(probs @ np.exp(value / tau), np.exp(exact / tau))
        assert last < probs @ np.asarray(value) < exact  # from below, and increasing
        last = probs @ np.asarray(value)
    best = oracles.boltzmann(q, tau, prior)
    one = lib.soft_value(q[:, None], tau, np.log(prior / best)[:, None])
    assert_close(one, np.full(3, exact))


def test_a_divergence_from_samples_is_no_bound():
    """Soft values come from below, hence KL from above: at the optimal critic f = log(π/π̄)."""
    pi, prior = np.array([0.05, 0.15, 0.8]), np.array([0.6, 0.3, 0.1])
    samples = np.array(list(itertools.product(range(3), repeat=4)))
    log_mean = lib.soft_value(np.log(pi / prior)[samples], 1.0, None)
    estimate = pi @ np.log(pi / prior) - np.prod(prior[samples], axis=1) @ np.asarray(log_mean)
    assert estimate > oracles.kl(pi, prior) + 0.1


def test_other_names_of_the_soft_value(tau):
    q, prior = random_q(make_mdp(tau)), make_mdp(tau).prior
    omega = 1 / tau
    mellowmax = np.log(np.mean(np.exp(omega * q), axis=-1)) / omega
    assert_close(lib.soft_value(q, 1 / omega, None), mellowmax)
    least = -lib.soft_value(-q, tau, np.log(prior))
    opponent = oracles.boltzmann(-q, tau, prior)
    worth = np.sum(opponent * q, axis=-1) + tau * oracles.kl(opponent, prior)
    assert_close(least, worth)
    other = oracles.random_policy(1, prior)
    assert np.all(np.sum(other * q, axis=-1) + tau * oracles.kl(other, prior) > least)


# ---- The loss whose minimum is a soft value ------------------------------------------------------


def value_gradient(v, q, tau, **options):
    def total(v):
        return jnp.sum(jaxsoft.soft_value_loss(v, q, tau=tau, **options))

    return jax.grad(total)(jnp.asarray(v))


@pytest.mark.parametrize("normalised", [True, False])
def test_the_loss_is_least_at_the_soft_value(tau, normalised):
    mdp = make_mdp(tau, masked=True, normalised=normalised)
    q, mu = random_q(mdp), oracles.random_policy(2, np.ones_like(mdp.prior))
    log_weight, v = log_of(mdp.prior) - np.log(mu), random_q(mdp, 1)[:, :1]
    options = {"log_weight": log_weight, "max_exponent": np.inf}
    soft = oracles.soft_value(q, tau, mdp.prior)[:, None]
    at = np.broadcast_to(v, q.shape)
    mean = np.sum(mu * value_gradient(at, q, tau, **options), axis=-1)
    assert_close(mean, tau * (1 - np.exp((soft - v) / tau))[:, 0])
    best = np.broadcast_to(soft, q.shape)
    assert_close(np.sum(mu * value_gradient(best, q, tau, **options), -1), 0 * mean, of=tau)
    # ρe^z is π_Q/μ there: the default clips none of these.
    clipped = value_gradient(best, q, tau, log_weight=log_weight)
    assert_close(clipped, np.asarray(value_gradient(best, q, tau, **options)))
    # Its mean is least by V − soft value, whatever the measure: curvature E ρe^z = 1.
    curvature = jax.jvp(lambda x: value_gradient(x, q, tau, **options), (best,), (np.ones_like(q),))
    assert_close(np.sum(mu * curvature[1], axis=-1), np.ones(len(q)))


@pytest.mark.parametrize("log_weight", [0.0, 0.7, -3.0])
def test_the_loss_to_the_last_digit(log_weight):
    """Also where z is tiny: there it is ½(Q − V)²."""
    for tau, tolerance in ((0.3, 1e-14), (30.0, 1e-14), (1e6, 1e-12)):
        gaps = np.array([-5.0, -0.7, -1e-3, -1e-9, 0.0, 1e-9, 1e-5, 0.1499, 0.1501, 2.0])
        z = (gaps / tau).astype(np.longdouble)
        terms = z**2 * sum(z**k / np.prod(np.arange(1.0, k + 3)) for k in range(24))
        whole = np.where(abs(z) < 1, terms, np.exp(z) - z - 1)
        expected = np.longdouble(tau) ** 2 * (
            whole + np.expm1(np.longdouble(log_weight)) * np.exp(z)
        )
        given = jaxsoft.soft_value_loss(
            np.zeros(10), gaps, tau=tau, log_weight=log_weight, max_exponent=np.inf
        )
        size = 0 if log_weight == 0 else tau**2
        np.testing.assert_allclose(
            given, expected.astype(float), rtol=10 * tolerance, atol=tolerance * size
        )
    np.testing.assert_allclose(
        jaxsoft.soft_value_loss(np.zeros(10), gaps, tau=1e7), 0.5 * gaps**2, rtol=1e-6
    )


def test_derivatives_of_the_loss():
    gaps = np.array([-0.9, -1e-4, 0.0, 0.3, 2.2, 4.0])
    for most in (np.inf, 3.0):
        check_grads(
            lambda v, t, most=most: jaxsoft.soft_value_loss(v, gaps, tau=t, max_exponent=most),
            (jnp.zeros(6), jnp.full(6, 0.8)), order=2, rtol=1e-5, atol=1e-6,
        )  # fmt: skip

    def of_held(q, log_weight):
        return jnp.sum(jaxsoft.soft_value_loss(np.zeros(6), q, tau=0.8, log_weight=log_weight))

    for slope in jax.grad(of_held, (0, 1))(jnp.asarray(gaps), jnp.zeros(6)):
        np.testing.assert_array_equal(slope, np.zeros(6))


def test_a_large_residual_does_not_explode():
    """e⁶⁰, at τ = 0.1 and a residual of 6; the clip goes on linearly and biases V down."""
    unbounded = value_gradient([0.0], np.array([6.0]), 0.1, max_exponent=np.inf)
    assert unbounded < -1e24
    bounded = value_gradient([0.0], np.array([6.0]), 0.1)
    assert_close(bounded, 0.1 * (1 - np.exp([10.0])))
    in_single = value_gradient(jnp.zeros(1, jnp.float32), jnp.full(1, 60.0, jnp.float32), 0.1)
    assert np.isfinite(in_single).all()
    # An action rarer than e^−c: the gradient is negative at the soft value no more.
    prior, q, tau = np.array([1 - 1e-6, 1e-6]), np.array([0.0, 3.0]), 0.1
    soft = oracles.soft_value(q, tau, prior)
    at = np.full(2, soft)
    assert prior @ np.asarray(value_gradient(at, q, tau)) > 1e-2
    assert abs(prior @ np.asarray(value_gradient(at, q, tau, max_exponent=20.0))) < 1e-9


def test_actions_that_the_prior_forbids_only_lower_the_value():
    gradient = value_gradient(np.zeros(2), np.array([5.0, -5.0]), 0.3, log_weight=-np.inf)
    np.testing.assert_allclose(gradient, [0.3, 0.3], rtol=1e-14)
    loss = jaxsoft.soft_value_loss(np.zeros(2), np.array([5.0, -5.0]), tau=0.3, log_weight=-np.inf)
    np.testing.assert_allclose(loss, 0.09 * (-1 - np.array([5.0, -5.0]) / 0.3), rtol=1e-14)


# ---- One loss for actions of any kind ------------------------------------------------------------


def test_tied_soft_q_is_an_actor_critic_path_by_path(tau):
    """With Q = V + τℓ, and all brackets fixed; it is the core of `tied_soft_q_loss`."""
    mdp = make_mdp(tau)
    agent, theta = bridge.make_agent(
        oracles.mlp(0, *mdp.prior.shape), "actor_critic", mdp.prior, tau
    )
    s, a, _ = bridge.all_pairs(np.ones_like(mdp.prior))
    y, c = np.random.default_rng(3).normal(size=len(s)), 0.7

    def tied(h):
        log_pi_a, log_prior_a = (lib.take_action(x, a) for x in (h.log_pi, h.log_prior))
        return lib.tied_loss(
            h.v, log_pi_a, log_pi_a - log_prior_a, target_t=y, tau=tau, value_coef=c
        )

    v, ratio = agent.value(theta)[s], agent.ratio(theta)[s, a]

    def actor_critic(h):
        policy = -lib.take_action(h.log_pi, a) * (y - v - tau * ratio)
        return policy + c / 2 * (h.v - (y - tau * ratio)) ** 2

    def whole(h):
        return lib.tied_soft_q_loss(
            h.v, h.log_pi, a, target_t=y, tau=tau, value_coef=c, log_prior=h.log_prior
        )

    gradients = bridge.samples(tied, agent, theta, s)
    assert_close(gradients, bridge.samples(actor_critic, agent, theta, s))
    assert_close(gradients, bridge.samples(whole, agent, theta, s))
    h = bridge.heads(agent, theta, s)
    assert_close(tied(h), 0.5 * (v + tau * ratio - y) ** 2)
    assert_close(whole(h), np.asarray(tied(h)))


def test_the_theorem_for_densities(tau):
    """A Gaussian policy and prior by quadrature; ξ is gone in the expectation alone."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights, c = weights / weights.sum(), 0.6
    theta = jnp.asarray([0.3, -0.4, 0.2])  # mean, log of the deviation, value
    actions = np.asarray(theta[0] + jnp.exp(theta[1]) * nodes)  # a_t ∼ π, fixed
    y = np.sin(actions) + 0.3 * actions**2  # any target

    def log_density(m, log_s):
        return -0.5 * ((actions - m) / jnp.exp(log_s)) ** 2 - log_s - 0.5 * np.log(2 * np.pi)

    def tied(x):
        log_pi, log_prior = log_density(x[0], x[1]), log_density(0.1, 0.5)
        v = jnp.broadcast_to(x[2], (40,))
        return lib.tied_loss(v, log_pi, log_pi - log_prior, target_t=y, tau=tau, value_coef=c)

    def kl(x):
        variance = jnp.exp(2 * x[1])
        return 0.5 * ((variance + (x[0] - 0.1) ** 2) / np.exp(1.0) - 1) + 0.5 - x[1]

    held = float(kl(theta))

    def actor_critic(x):
        policy = -log_density(x[0], x[1]) * (y - float(theta[2]) - tau * held) + tau * kl(x)
        return policy + c / 2 * (x[2] - (y - tau * held)) ** 2

    one, other = (np.asarray(jax.jacobian(f)(theta)) for f in (tied, actor_critic))
    assert_close(weights @ one, weights @ other)
    assert_differs(one, other)


# ---- Composition and fine-tuning -----------------------------------------------------------------


@pytest.mark.parametrize("weights", [(0.3, 0.7), (1.0, 1.0), (1.6, -0.8)])
def test_composition_is_exact_with_a_correction(tau, weights):
    """Which is a soft Q of reward 0 under the measure π̄Π(π_i/π̄)^w, learned by the usual targets."""
    mdp = make_mdp(tau)
    log_prior, rng = log_of(mdp.prior), np.random.default_rng(1)
    rewards = rng.normal(size=(2, *mdp.prior.shape))
    qs = [optimum(mdp, r) for r in rewards]
    ratios = [np.asarray(lib.log_policy(q, tau, log_prior)) - log_prior for q in qs]
    mixed, ratio = (sum(w * x for w, x in zip(weights, y, strict=True)) for y in (qs, ratios))
    correction = optimum(mdp, np.zeros_like(mixed), log_prior + ratio)
    reward = sum(w * r for w, r in zip(weights, rewards, strict=True))
    whole = optimum(mdp, reward)
    assert_close(whole, mixed + correction)
    assert_differs(whole, mixed)
    if weights != (0.3, 0.7):
        return
    # A mean: an upper bound, whose defect is a Rényi divergence.
    d = -np.log(np.sum(np.exp(log_prior + ratio), axis=-1))
    values = sum(w * lib.soft_value(q, tau, log_prior) for w, q in zip(weights, qs, strict=True))
    assert_close(lib.soft_value(mixed, tau, log_prior), np.asarray(values - tau * d))
    policy = oracles.boltzmann(mixed, tau, mdp.prior)
    upper, defect = np.zeros_like(mixed), np.zeros_like(mixed)
    for _ in range(500):
        upper = mdp.gamma * mdp.transition @ (tau * d + upper.max(-1))
        defect = mdp.gamma * mdp.transition @ np.sum(policy * (upper + defect), -1)
    assert np.all((mixed - upper <= whole + 1e-12) & (whole <= mixed + 1e-12))
    task = oracles.MDP(
        mdp.transition, np.broadcast_to(reward[..., None, None], mdp.rewards.shape),
        np.ones(1), mdp.prior, mdp.gamma, tau, mdp.terminal,
    )  # fmt: skip
    assert np.all(oracles.policy_q(task, policy) >= whole - defect - 1e-12)
    double = optimum(mdp, 2 * reward, tau=2 * tau)
    assert_close(double, 2 * whole)


def test_fine_tuning_is_exact(tau):
    """With the old policy as prior the old reward still counts, at τ_2/τ_1."""
    mdp, old_tau = make_mdp(tau), 0.4
    log_prior, rng = log_of(mdp.prior), np.random.default_rng(2)
    old, new = rng.normal(size=(2, *mdp.prior.shape))
    q_old = optimum(mdp, old, tau=old_tau)
    log_old = np.asarray(lib.log_policy(q_old, old_tau, log_prior))
    v_old = np.asarray(lib.soft_value(q_old, old_tau, log_prior))
    tuned, share = optimum(mdp, new, log_old), tau / old_tau
    both = optimum(mdp, new + share * old)
    log_pi = lib.log_policy(tuned, tau, log_old)
    assert_close(log_pi, np.asarray(lib.log_policy(both, tau, log_prior)))
    value = lib.soft_value(both, tau, log_prior) - share * v_old
    assert_close(lib.soft_value(tuned, tau, log_old), np.asarray(value))
    # τℓ of an optimum is shaping: as a reward its soft value is 0.
    ratio = log_old - log_prior
    alone = optimum(mdp, old_tau * ratio, tau=old_tau)
    assert_close(lib.soft_value(alone, old_tau, log_prior), np.zeros(len(old)), of=1.0)
    assert_close(lib.log_policy(alone, old_tau, log_prior), log_old)
    # Any other policy as prior is a reward of τ_2ℓ, optimal or not.
    other = log_of(oracles.random_policy(3, mdp.prior))
    by_prior = lib.soft_value(optimum(mdp, new, other), tau, other)
    by_reward = lib.soft_value(optimum(mdp, new + tau * (other - log_prior)), tau, log_prior)
    assert_close(by_prior, np.asarray(by_reward))


def test_one_task_or_the_other(tau):
    """τ log Σ c_i exp(Q_i/τ): for deterministic dynamics, γ = 1 and final rewards that differ."""
    mdp = make_mdp(tau, branching=1, acyclic=True, gamma=1.0)
    final, share = mdp.transition @ mdp.terminal.astype(float) > 0, np.array([0.3, 1.2])
    goals = np.random.default_rng(4).normal(size=(2, *mdp.prior.shape))
    rewards = [np.where(final, g, mdp.mean_reward) for g in goals]
    either = tau * np.log(np.tensordot(share, np.exp(np.array(rewards) / tau), 1))
    whole = optimum(mdp, np.where(final, either, mdp.mean_reward))
    qs = np.array([optimum(mdp, r) for r in rewards])
    live = ~mdp.terminal
    assert_close(tau * np.log(np.tensordot(share, np.exp(qs / tau), 1))[live], whole[live])


# ---- Donsker-Varadhan ----------------------------------------------------------------------------


def test_what_a_policy_is_short_of_the_soft_value(mdp, tau):
    q, policy, log_prior = random_q(mdp), oracles.random_policy(8, mdp.prior), log_of(mdp.prior)
    for measure in (log_prior, 0.0, None, 3 * log_prior):
        soft = lib.soft_value(q, tau, measure)
        short = soft - lib.policy_value(q, log_of(policy), tau, measure)
        best = lib.log_policy(q, tau, measure)
        assert_close(short, np.asarray(tau * lib.kl_to_prior(log_of(policy), best)))
    # The divergence is the most of E_π f − log E_π̄ exp f; π̄e^f/Z tells how much another f lacks.
    f = random_q(mdp, 1)
    bound = np.sum(policy * f, axis=-1) - np.asarray(lib.soft_value(f, 1.0, log_prior))
    lack = lib.kl_to_prior(log_of(policy), lib.log_policy(f, 1.0, log_prior))
    assert_close(bound + lack, np.asarray(lib.kl_to_prior(log_of(policy), log_prior)))


def test_two_action_values(mdp, tau):
    one, two, log_prior = random_q(mdp, 1), random_q(mdp, 2), log_of(mdp.prior)
    (v1, v2), (p1, p2) = (
        [np.asarray(f(q, tau, log_prior)) for q in (one, two)]
        for f in (lib.soft_value, lib.log_policy)
    )
    kl = np.asarray(lib.kl_to_prior(p1, p2))
    low, high = (np.sum(np.exp(p) * (two - one), axis=-1) for p in (p1, p2))
    assert_close(tau * kl, v2 - v1 - low)
    assert np.all((low <= v2 - v1) & (v2 - v1 <= high))
    most = np.max(np.abs(two - one), axis=-1)
    assert np.all((np.abs(v2 - v1) <= most) & (kl <= 2 * most / tau))


# ---- Noise in action values ----------------------------------------------------------------------


@pytest.mark.parametrize("correlation", [0.0, 0.6, -0.5])
def test_the_lesser_of_two_noisy_values_is_too_small(correlation):
    """By s√((1 − ρ)/π), which is s/√π where their errors are independent, for any policy."""
    mdp, scale = make_mdp(0.5), 0.3
    q, log_prior = random_q(mdp)[0], log_of(mdp.prior[0])
    log_pi = log_of(oracles.random_policy(1, mdp.prior[0]))
    # The errors' mean and half difference are independent; the minimum has a kink at 0.
    node, weight = np.polynomial.legendre.leggauss(60)
    node, weight = np.concatenate([node - 1, node + 1]) * 5, np.tile(weight, 2) * 5
    weight *= np.exp(-0.5 * node**2) / np.sqrt(2 * np.pi)
    mean = node[:, None] * scale * np.sqrt((1 + correlation) / 2)
    half = node * scale * np.sqrt((1 - correlation) / 2)
    one, two = (mean + sign * half for sign in (1, -1))
    probs = weight[:, None] * weight
    assert_close(np.sum(probs * one * two), correlation * scale**2, of=scale**2)
    lesser = jnp.minimum(q + one[..., None], q + two[..., None])
    policy = jnp.broadcast_to(log_pi, lesser.shape)
    bias = probs * (lib.policy_value(lesser, policy, 0.5, log_prior) -
                    lib.policy_value(q, log_pi, 0.5, log_prior))  # fmt: skip
    assert_close(np.sum(bias), -scale * np.sqrt((1 - correlation) / np.pi))


def test_the_soft_value_of_noisy_values_is_too_large(tau):
    """By s²(1 − Σπ²)/(2τ) to first order in s², hence the less the greater τ is."""
    mdp = make_mdp(tau)
    q, prior = random_q(mdp)[0], mdp.prior[0]
    policy = oracles.boltzmann(q, tau, prior)
    first = (1 - np.sum(policy**2)) / (2 * tau)
    node, weight = np.polynomial.hermite_e.hermegauss(16)
    error = np.stack(np.meshgrid(node, node, node, indexing="ij"), axis=-1)
    probs = np.prod(np.meshgrid(weight, weight, weight, indexing="ij"), axis=0)
    exact = lib.soft_value(q, tau, np.log(prior))
    short = []
    for scale in (0.1 * tau, 0.05 * tau):
        noisy = lib.soft_value(q + scale * error, tau, np.log(prior))
        bias = np.sum(probs * (noisy - exact)) / probs.sum()
        assert bias > 0
        assert abs(bias / (scale**2 * first) - 1) < 0.02
        short.append(bias - scale**2 * first)
    # What is left is of the fourth order.
    assert 14 < short[0] / short[1] < 18
