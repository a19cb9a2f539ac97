"""The two theorems, (58)-(65) with section 6.3 and (66)-(78), by enumeration of all actions.

Soft Q-learning's expected gradient is a policy gradient's plus a value loss's, to rounding, for any
network and any target; where a precondition is broken, it misses by exactly what theory predicts.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
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
)
from tests.support.oracles import PRINTED, Model

equation = pytest.mark.equation


# ---- The main theorem ----------------------------------------------------------------------------


class Case:
    """A network on four states, any law of states, actions from its policy and a random target."""

    def __init__(self, tau, kind, head):
        mdp = oracles.random_mdp(2, tau=tau, normalised=False, masked=kind == "linear")
        self.tau, self.prior, rng = tau, mdp.prior, np.random.default_rng(5)
        model = bridge.MODELS[kind](*self.prior.shape)
        self.agent, self.theta = bridge.make_agent(model, head, self.prior, tau)
        self.policy = self.agent.policy(self.theta)
        self.law = rng.dirichlet(np.ones(len(self.prior)))[:, None]
        self.s, self.a, self.weights = all_pairs(self.law * self.policy)
        self.q, self.kl = self.agent.q(self.theta), self.agent.kl(self.theta)
        self.v = self.agent.value(self.theta)[:, None]
        # As far from Q as the gaps between actions: no term hides the others at any tau.
        self.aim_at(self.q + tau * rng.normal(size=self.q.shape))

    def aim_at(self, y):
        self.y, self.y_taken = y, self.take(y)
        self.delta, self.v_hat = y - self.v - self.tau * self.kl, y - self.tau * self.kl

    def with_target(self, y):
        other = copy.copy(self)
        other.aim_at(y)
        return other

    def take(self, table):
        return np.broadcast_to(table, self.policy.shape)[self.s, self.a]

    def take_samples(self, samples):
        return samples[self.s, self.a]

    def gradient(self, loss, weights=None):
        weights = self.weights if weights is None else weights
        return bridge.gradient(loss, self.agent, self.theta, self.s, weights)

    def samples(self, loss):
        return bridge.samples(loss, self.agent, self.theta, self.s)

    def soft_q(self, h):
        return lib.soft_q_loss(h.q, self.a, self.y_taken)

    def policy_loss(self, h):
        return lib.policy_gradient_loss(
            h.log_pi, self.a, self.take(self.delta), tau=self.tau, log_prior=h.log_prior
        )

    def value_loss(self, h):
        return lib.value_loss(h.v, self.take(self.v_hat))

    def actor_critic(self, h):
        """The right side of the theorem."""
        return self.tau * self.policy_loss(h) + self.value_loss(h)

    def tied(self, c, y=None):
        y = self.y_taken if y is None else y
        return lambda h: lib.tied_soft_q_loss(
            h.v, h.log_pi, self.a, target_t=y, tau=self.tau, value_coef=c, log_prior=h.log_prior
        )

    def a2c(self, c, y=None):
        y = self.y_taken if y is None else y
        return lambda h: lib.a2c_loss(
            h.v, h.log_pi, self.a, target_t=y, tau=self.tau, value_coef=c, log_prior=h.log_prior
        )


make_case = functools.cache(Case)


@pytest.fixture(params=TAUS)
def tau(request):
    return request.param


@pytest.fixture(params=bridge.MODELS)
def kind(request):
    return request.param


@pytest.fixture(params=HEADS)
def head(request):
    return request.param


@pytest.fixture
def case(tau, kind, head):
    return make_case(tau, kind, head)


@equation(58, 59)
def test_gradient_of_the_soft_q_loss(case):
    expected = oracles.soft_q_samples(case.agent, case.theta, case.y)
    assert_close(case.samples(case.soft_q), case.take_samples(expected))
    objective = oracles.gradient(
        lambda x: case.weights @ (0.5 * (case.agent.q(x) - case.y)[case.s, case.a] ** 2), case.theta
    )
    assert_close(case.gradient(case.soft_q), objective)


@equation(60, 61, 62)
def test_substitutions(case):
    """Q - y = tau (l - KL) - Delta, and grad Q = tau grad log pi + grad V."""
    error = case.take(case.tau * (case.agent.ratio(case.theta) - case.kl) - case.delta)
    at = bridge.heads(case.agent, jnp.asarray(case.theta), case.s)
    assert_close(np.asarray(lib.take_action(at.q, case.a)) - case.y_taken, error, of=case.q)
    streams = case.samples(lambda h: case.tau * lib.take_action(h.log_pi, case.a) + h.v)
    assert_close((case.weights * error) @ streams, case.gradient(case.soft_q))


@equation(63, 64)
def test_vanishing_terms(case):
    score = case.samples(lambda h: lib.take_action(h.log_pi, case.a))
    ratio, zero = case.take(case.agent.ratio(case.theta)), np.zeros(case.theta.size)
    assert_close(case.weights * case.take(case.kl) @ score, zero, of=score)
    log_pi, log_prior = log_of(case.policy), log_of(case.prior)
    kl = lib.kl_to_prior(log_pi, log_prior)
    assert_close(kl, case.kl[:, 0])
    assert_differs(PRINTED["63"](case.policy, case.prior), kl)
    slope = case.gradient(lambda h: lib.kl_to_prior(h.log_pi, h.log_prior))
    assert_close(case.weights * ratio @ score, slope, of=score)


@equation(65)
def test_theorem(case):
    """E[grad soft Q] = tau E[grad policy] + E[grad value] = tau E[grad A2C], c = 1/tau."""
    tau, soft_q = case.tau, case.gradient(case.soft_q)
    assert_close(soft_q, case.gradient(case.actor_critic))
    assert_close(soft_q, tau * case.gradient(case.a2c(1 / tau)))
    assert_close(soft_q, tau * case.gradient(case.tied(1 / tau)))
    assert np.max(np.abs(soft_q)) > 1e-4 * tau


@equation(65)
def test_scaled_streams(case):
    """Section 6.3: 1/tau into the advantage stream and c into the value stream make it A2C's."""
    for c in (0.5, 3.0):
        tied, a2c = case.gradient(case.tied(c)), case.gradient(case.a2c(c))
        assert_close(tied, a2c)
        parts = case.gradient(case.policy_loss) + c * case.gradient(case.value_loss)
        assert_close(a2c, parts)
    expected = oracles.tied_samples(case.agent, case.theta, case.y, 3.0)
    assert_close(case.samples(case.tied(3.0)), case.take_samples(expected))


@equation(65, 87)
def test_pgq_mixes_the_two(case):
    """One target makes it the tied loss, sample by sample; two give each its share."""
    tau, c = case.tau, 0.5
    other = case.take(case.y + tau * np.random.default_rng(6).normal(size=case.y.shape))

    def pgq(returns, backups, mixing):
        kl = case.take(tau * case.kl)
        return lambda h: lib.pgq_loss(
            h.v,
            h.log_pi,
            case.a,
            return_t=returns - kl,
            backup_t=backups - kl,
            tau=tau,
            mixing=mixing,
            value_coef=c,
            log_prior=h.log_prior,
        )

    same = pgq(case.y_taken, case.y_taken, 0.3)
    assert_close(case.samples(same), case.samples(case.tied(c)))
    mixed = 0.7 * case.gradient(case.a2c(c)) + 0.3 * case.gradient(case.tied(c, other))
    assert_close(case.gradient(pgq(case.y_taken, other, 0.3)), mixed)


@equation(65)
@pytest.mark.parametrize("estimator", ["n_step", "lambda"])
def test_theorem_for_any_returns(tau, head, estimator):
    """Only the first action need be the policy's: later ones and the target network may differ."""
    mdp = oracles.random_mdp(4, outcomes=1, tau=tau, terminals=1)
    model = bridge.MODELS["linear"](*mdp.prior.shape)
    agent, theta = bridge.make_agent(model, head, mdp.prior, tau)
    frozen = agent.q(model.init(9))
    path = paths(mdp, oracles.random_policy(3, mdp.prior), 3)
    weights = 0.25 * agent.policy(theta)[path.starts] * path.probs
    log_prior, here = log_of(mdp.prior), path.states[:-1]
    v = lib.soft_value(frozen, tau, log_prior)
    kl = lib.kl_to_prior(lib.log_policy(frozen, tau, log_prior), log_prior)
    delta = bridge.soft_deltas(mdp, path, v, kl)
    if estimator == "n_step":
        advantage = lib.n_step_advantages(delta, path.discounts, n=2)
    else:
        advantage = lib.lambda_advantages(delta, path.discounts, lambda_=0.8)
    y = lib.soft_q_targets(advantage, v[here], kl[here], tau=tau)[:1]
    actions, first = path.actions[:1], path.states[:1]

    def gradient(loss):
        return bridge.gradient(loss, agent, theta, first, weights[None])

    soft_q = gradient(lambda h: lib.soft_q_loss(h.q, actions, y))
    for loss in (lib.a2c_loss, lib.tied_soft_q_loss):
        actor_critic = gradient(
            lambda h, loss=loss: loss(
                h.v,
                h.log_pi,
                actions,
                target_t=y,
                tau=tau,
                value_coef=1 / tau,
                log_prior=h.log_prior,
            )
        )
        assert_close(soft_q, tau * actor_critic)


@equation(58, 65)
@pytest.mark.parametrize("n", [1, 2])
def test_theorem_on_whole_rollouts(tau, head, n):
    """The algorithms, one call each, have the same expected gradient over all their steps."""
    mdp = oracles.random_mdp(4, outcomes=1, tau=tau, terminals=1, masked=True)
    agent, theta = bridge.make_agent(
        bridge.MODELS["linear"](*mdp.prior.shape), head, mdp.prior, tau
    )
    path = paths(mdp, agent.policy(theta), 2, "state")
    alive = ~mdp.terminal[path.states[:-1]]
    weights = path.probs * alive
    steps = {"r_t": path.rewards, "discount_t": path.discounts, "tau": tau}

    def gradient(loss):
        return bridge.gradient(loss, agent, theta, path.states, weights)

    soft_q = gradient(
        lambda h: lib.n_step_soft_q(h.q, path.actions, **steps, n=n, log_prior=h.log_prior)
    )
    rest = {**steps, "n": n, "value_coef": 1 / tau}
    for algorithm in (lib.actor_critic, lib.tied_soft_q):
        other = gradient(
            lambda h, algorithm=algorithm: algorithm(
                h.v, h.log_pi, path.actions, **rest, log_prior=h.log_prior
            )
        )
        assert_close(soft_q, tau * other)


# ---- Sample by sample, and with each precondition broken -----------------------------------------


@equation(65)
def test_sampled_gradients_differ_by_xi(case):
    """Whatever the target; and xi has no mean in any state."""
    tau = case.tau
    difference = case.samples(case.soft_q) - case.samples(case.actor_critic)
    xi = oracles.residual_samples(case.agent, case.theta)
    scale = case.samples(case.soft_q)
    assert_close(difference, case.take_samples(xi), of=scale)
    assert np.max(np.abs(difference)) > 1e-3 * np.max(np.abs(scale))
    mean = np.einsum("sa,sap->sp", case.policy, xi)
    assert_close(mean, np.zeros_like(mean), of=scale)
    other = case.with_target(case.y + 7 * tau)
    assert_close(
        other.samples(other.soft_q) - other.samples(other.actor_critic), difference, of=scale
    )


@equation(65)
def test_variances(case):
    """trCov(PG) = trCov(soft Q) + E |xi|^2 where E[y | s, a] = Q."""
    noise = case.tau * np.random.default_rng(1).uniform(0.5, 1.5, size=case.q.shape)
    both = [case.with_target(case.q + sign * noise) for sign in (-1, 1)]
    probs = np.concatenate([case.weights, case.weights]) / 2

    def trace(loss):
        gradients = [loss(x) for x in both]
        return oracles.trace_covariance(probs, np.concatenate(gradients))

    soft_q = trace(lambda x: x.samples(x.soft_q))
    actor_critic = trace(lambda x: x.samples(x.actor_critic))
    xi = case.take_samples(oracles.residual_samples(case.agent, case.theta))
    excess = case.weights @ np.sum(xi**2, axis=-1)
    assert excess > 1e-4 * soft_q
    assert_close(actor_critic, soft_q + excess)


ACTING: dict[str, Callable[[Any], np.ndarray]] = {
    "uniform": lambda case: (case.prior > 0) / np.sum(case.prior > 0, axis=-1, keepdims=True),
    "epsilon_greedy": lambda case: 0.9 * case.policy + 0.1 * ACTING["uniform"](case),
    "twice_tau": lambda case: oracles.boltzmann(case.q, 2 * case.tau, case.prior),
}


@equation(65)
@pytest.mark.parametrize("acting", ACTING)
def test_wrong_acting_policy(case, acting):
    """The residual is the mean of xi; the weight pi/mu in front of both losses repairs it."""
    mu = case.law * ACTING[acting](case)
    xi = oracles.residual_samples(case.agent, case.theta)
    weights = case.take(mu)
    soft_q = case.gradient(case.soft_q, weights)
    actor_critic = case.gradient(case.actor_critic, weights)
    assert_close(soft_q - actor_critic, oracles.expect(mu, xi), of=soft_q)
    assert_differs(actor_critic, soft_q, by=1e-4)
    weights = weights * case.take(case.law * case.policy) / weights
    assert_close(case.gradient(case.soft_q, weights), case.gradient(case.actor_critic, weights))
    c = 0.5
    assert_close(case.gradient(case.tied(c), weights), case.gradient(case.a2c(c), weights))


def assert_residual(soft_q, actor_critic, residual):
    assert_close(soft_q - actor_critic, residual, of=soft_q)
    assert_differs(actor_critic, soft_q, by=1e-3)


@equation(65)
def test_differentiated_target(case):
    """y = r + gamma V_theta(s'): the residual is -E[(Q - y) grad y]; as a target it is held."""
    agent, theta, tau = case.agent, case.theta, case.tau
    following = np.roll(np.arange(len(case.v)), 1)[case.s]
    r = case.y_taken - 0.9 * agent.value(theta)[following]  # so that y is the case's y

    def gradient(loss):
        """Of loss(h, y), the network seen at both ends of the transitions."""
        both = np.stack([case.s, following])
        return bridge.gradient(
            lambda h: loss(jax.tree.map(lambda x: x[0], h), r + 0.9 * h.v[1]),
            agent, theta, both, case.weights,
        )  # fmt: skip

    zero = np.zeros_like(r)
    moving = gradient(lambda h, y: lib.soft_q_loss(h.q - y[:, None], case.a, zero))
    error = case.weights * (case.take(case.q) - case.y_taken)
    residual = -error @ (0.9 * oracles.jacobian(agent.value, theta)[following])
    assert_residual(moving, case.gradient(case.actor_critic), residual)
    assert_close(gradient(lambda h, y: lib.soft_q_loss(h.q, case.a, y)),
                 case.gradient(case.soft_q))  # fmt: skip
    for loss in (lib.a2c_loss, lib.tied_soft_q_loss):
        held = gradient(
            lambda h, y, loss=loss: loss(
                h.v,
                h.log_pi,
                case.a,
                target_t=y,
                tau=tau,
                value_coef=1 / tau,
                log_prior=h.log_prior,
            )
        )
        assert_close(tau * held, case.gradient(case.soft_q))


@equation(65, 85)
def test_differentiated_value_target(case):
    """The residual is E[(V - V_hat) grad V_hat]; as a target, V_hat is held."""
    tau = case.tau

    def v_hat(h):
        return case.y_taken - tau * lib.kl_to_prior(h.log_pi, h.log_prior)

    def moving(h):
        return lib.value_loss(h.v - v_hat(h), np.zeros_like(case.y_taken))

    actor_critic = case.gradient(lambda h: tau * case.policy_loss(h) + moving(h))
    error = case.weights * case.take(case.v - case.v_hat)
    residual = -tau * error @ oracles.jacobian(case.agent.kl, case.theta)[case.s, 0]
    assert_residual(case.gradient(case.soft_q), actor_critic, residual)
    held = case.gradient(lambda h: lib.value_loss(h.v, v_hat(h)))
    assert_close(held, case.gradient(case.value_loss))


@equation(65, 84)
def test_differentiated_advantage(case):
    """The residual is tau E[log pi grad Delta]; as an advantage, Delta is held."""
    tau = case.tau

    def delta(h):
        return case.y_taken - h.v - tau * lib.kl_to_prior(h.log_pi, h.log_prior)

    def moving(h):
        log_pi = lib.take_action(h.log_pi, case.a)
        kl = lib.kl_to_prior(h.log_pi, h.log_prior)
        return tau * (tau * kl - log_pi * delta(h)) + case.value_loss(h)

    slope = -oracles.jacobian(case.agent.value, case.theta)[case.s]
    slope -= tau * oracles.jacobian(case.agent.kl, case.theta)[case.s, 0]
    log_pi = case.take(case.agent.log_policy(case.theta))
    residual = tau * (case.weights * log_pi) @ slope
    assert_residual(case.gradient(case.soft_q), case.gradient(moving), residual)
    held = case.gradient(
        lambda h: lib.policy_gradient_loss(
            h.log_pi, case.a, delta(h), tau=tau, log_prior=h.log_prior
        )
    )
    assert_close(held, case.gradient(case.policy_loss))


@equation(65)
def test_huber(case):
    """The residual is E[(clip(Q - y) - (Q - y)) grad Q]."""
    bound = 0.5 * case.tau

    def huber(h):
        error = lib.take_action(h.q, case.a) - case.y_taken
        size = jnp.abs(error)
        return jnp.where(size < bound, 0.5 * error**2, bound * (size - 0.5 * bound))

    error = case.take(case.q) - case.y_taken
    excess = case.weights * (np.clip(error, -bound, bound) - error)
    residual = excess @ oracles.jacobian(case.agent.q, case.theta)[case.s, case.a]
    assert_residual(case.gradient(huber), case.gradient(case.actor_critic), residual)


@equation(65)
def test_moving_prior(case):
    """The residual is tau E[grad log prior (tau - (Q - y))]; held fixed, the prior is harmless."""
    tau, rng = case.tau, np.random.default_rng(8)
    slope = 0.3 * rng.normal(size=(*case.prior.shape, case.theta.size))  # of log prior
    agent = replace(case.agent, prior=case.prior * np.exp(slope @ case.theta))
    y = agent.q(case.theta) + tau * rng.normal(size=case.q.shape)
    target, kl = case.take(y), case.take(agent.kl(case.theta))
    weights = case.take(case.law * agent.policy(case.theta))
    delta, v_hat = target - agent.value(case.theta)[case.s] - tau * kl, target - tau * kl

    def gradient(loss, moving):
        def total(theta):
            with jax.numpy_rank_promotion("allow"):
                raw, value = agent.model.heads(theta, jnp.tanh)
            log_prior = log_of(case.prior) + jnp.asarray(slope) @ theta
            log_prior = log_prior if moving else jax.lax.stop_gradient(log_prior)
            out = bridge.algebra(raw, value, tau, log_prior, agent.head)
            return jnp.sum(weights * loss(jax.tree.map(lambda x: x[case.s], out)))

        return np.asarray(jax.grad(total)(jnp.asarray(case.theta)))

    def soft_q(h):
        return lib.soft_q_loss(h.q, case.a, target)

    def actor_critic(h):
        policy = lib.policy_gradient_loss(h.log_pi, case.a, delta, tau=tau, log_prior=h.log_prior)
        return tau * policy + lib.value_loss(h.v, v_hat)

    error = agent.q(case.theta)[case.s, case.a] - target
    residual = (weights * tau * (tau - error)) @ slope[case.s, case.a]
    assert_residual(gradient(soft_q, True), gradient(actor_critic, True), residual)
    assert_close(gradient(soft_q, False), gradient(actor_critic, False))


@equation(65)
def test_mixed_conventions(tau):
    """Q = V + tau log pi on KL targets biases the value stream by -c tau log|A| E[grad V]."""
    case, c = make_case(tau, "mlp", "actor_critic"), 0.5
    shift = tau * np.log(case.prior.shape[1])

    def gradient(log_prior, y):
        return case.gradient(
            lambda h: lib.tied_soft_q_loss(
                h.v, h.log_pi, case.a, target_t=y, tau=tau, value_coef=c, log_prior=log_prior
            )
        )

    penalty = gradient(None, case.y_taken)
    assert_close(gradient(0.0, case.y_taken - shift), penalty)
    bias = -c * shift * case.weights @ oracles.jacobian(case.agent.value, case.theta)[case.s]
    mixed = gradient(0.0, case.y_taken)
    assert_close(mixed - penalty, bias, of=penalty)
    assert_differs(mixed, penalty, by=1e-4)


# ---- Natural gradients ---------------------------------------------------------------------------
# Networks of few parameters, none of which leaves the policy as it is: their F is invertible.


def gauge_tabular(states=6, actions=3):
    """A logit for each action but the last, whose logit is 0; V is a linear map of them."""
    size = states * (actions - 1)
    place = np.eye(size).reshape(size, states, actions - 1)
    place = np.concatenate([place, np.zeros((size, states, 1))], axis=-1)
    to_value = np.random.default_rng(0).normal(size=(states, size))
    return Model(
        size,
        lambda w, _tanh=None: (
            (w @ place.reshape(size, -1)).reshape(states, actions),
            to_value @ w,
        ),
    )


def action_mlp(states=6, actions=3, inputs=3, hidden=2):
    """One tanh layer on features of state and action; V reads the same trunk and output weights."""
    phi = np.random.default_rng(1).normal(size=(states, actions + 1, inputs))
    trunk = inputs * hidden

    def heads(w, tanh=np.tanh):
        out = tanh(phi @ w[:trunk].reshape(inputs, hidden)) @ w[trunk:]
        return out[:, :-1], out[:, -1]

    return Model(trunk + hidden, heads)


def separate(model):
    """The same network twice: its policy has parameters of its own, its V others."""
    n = model.size
    return Model(
        2 * n, lambda w, tanh=np.tanh: (model.heads(w[:n], tanh)[0], model.heads(w[n:], tanh)[1])
    )


NETWORKS = {
    "tabular": gauge_tabular,
    "linear": lambda: oracles.linear(0, 6, 3),
    "mlp": action_mlp,
}


class Update:
    """One damped update of a network from theta_old, over all pairs of state and action."""

    epsilon = 0.3

    def __init__(self, tau, model, head):
        rng = np.random.default_rng(3)
        self.tau = tau
        prior = oracles.random_mdp(2, states=6, normalised=False).prior
        self.agent, self.theta = bridge.make_agent(model, head, prior, tau)
        policy = self.agent.policy(self.theta)
        self.table = rng.dirichlet(np.full(6, 3.0))[:, None] * policy
        self.s, self.a, self.weights = all_pairs(self.table)
        self.advantage = tau * rng.normal(size=policy.shape)
        self.y = self.agent.value(self.theta)[:, None] + tau * self.agent.kl(self.theta)
        self.y = self.y + self.advantage
        self.y_taken = self.y[self.s, self.a]
        self.old = bridge.heads(self.agent, jnp.asarray(self.theta), self.s)

    def damped(self, *, frozen, epsilon=None):
        epsilon = self.epsilon if epsilon is None else epsilon

        def loss(h):
            q = h.q
            if frozen:
                q = lib.q_from_policy(self.old.v, h.log_pi, self.tau, h.log_prior)
            return lib.damped_soft_q_loss(
                q, self.a, self.y_taken, q_old_tm1=self.old.q, epsilon=epsilon
            )

        return loss

    def gauss_newton(self, loss, theta=None):
        theta = self.theta if theta is None else theta
        return bridge.gauss_newton_step(loss, self.agent, theta, self.s, self.weights)

    @property
    def natural(self):
        return oracles.natural_gradient(self.agent, self.theta, self.table, self.advantage)


@equation(66, 69, 70, 71, 74, 75, 76, 77, 78)
@pytest.mark.parametrize("network", NETWORKS)
def test_damped_q_learning_is_a_natural_gradient(tau, head, network):
    """V frozen: one Gauss-Newton step is the natural step of size epsilon/tau."""
    update = Update(tau, NETWORKS[network](), head)
    step = update.gauss_newton(update.damped(frozen=True))
    natural = update.epsilon / tau * update.natural
    assert_close(step, natural, 1e-9)

    def regression(h):
        return lib.natural_regression_loss(
            h.log_pi,
            update.a,
            update.advantage[update.s, update.a],
            log_pi_old_tm1=update.old.log_pi,
            tau=tau,
            step_size=update.epsilon / tau,
            log_prior=h.log_prior,
        )

    assert_close(update.gauss_newton(regression), natural, 1e-9)


@equation(77)
@pytest.mark.parametrize("network", NETWORKS)
def test_separate_value_parameters(tau, network):
    """V free: the policy's block stays exact, and V's is its own regression on Delta."""
    update = Update(tau, separate(NETWORKS[network]()), "actor_critic")
    step = update.gauss_newton(update.damped(frozen=False, epsilon=update.epsilon))
    half = update.theta.size // 2
    alone = replace(update.agent, model=NETWORKS[network]())
    natural = oracles.natural_gradient(alone, update.theta[:half], update.table, update.advantage)
    assert_close(step[:half], update.epsilon / tau * natural, 1e-8)
    slope = oracles.jacobian(update.agent.value, update.theta)[:, half:]
    law = update.table.sum(axis=1)
    curvature = np.einsum("s,sp,sq->pq", law, slope, slope)
    mean = np.sum(update.table * update.advantage, axis=1) @ slope
    # There may be fewer states than parameters: the step is defined by its effect on V.
    assert_close(curvature @ step[half:], update.epsilon * mean, 1e-8)


@equation(77)
@pytest.mark.parametrize("network", NETWORKS)
def test_shared_value_parameters(tau, head, network):
    """V free: epsilon (tau^2 F + E grad V grad V')^-1 (tau g + E grad V Delta), not natural."""
    update = Update(tau, NETWORKS[network](), head)
    agent, theta, table = update.agent, update.theta, update.table
    step = update.gauss_newton(update.damped(frozen=False))
    slope, fisher = oracles.jacobian(agent.value, theta), oracles.fisher(agent, theta, table)
    curvature = tau**2 * fisher + np.einsum("s,sp,sq->pq", table.sum(axis=1), slope, slope)
    g = -oracles.expect(table, oracles.policy_samples(agent, theta, update.advantage))
    mean = np.sum(table * update.advantage, axis=1) @ slope
    expected = update.epsilon * np.linalg.solve(curvature, tau * g + mean)
    assert_close(step, expected, 1e-8)
    assert_differs(step, update.epsilon / tau * update.natural, by=1e-2)


@equation(74)
def test_damping_only_scales_a_plain_gradient(tau, head):
    update = Update(tau, NETWORKS["mlp"](), head)

    def gradient(loss):
        return bridge.gradient(loss, update.agent, update.theta, update.s, update.weights)

    undamped = gradient(lambda h: lib.soft_q_loss(h.q, update.a, update.y_taken))
    assert_close(gradient(update.damped(frozen=False)), update.epsilon * undamped)


@equation(74, 77)
def test_tabular_solution(tau):
    """pi_new ~ prior^eps pi_old^(1-eps) exp(eps Q_hat/tau), where the loss is zero."""
    update = Update(tau, NETWORKS["tabular"](), "q")
    old, epsilon, prior = update.agent.q(update.theta), update.epsilon, update.agent.prior
    new = (1 - epsilon) * old + epsilon * update.y
    loss = lib.damped_soft_q_loss(
        new[update.s], update.a, update.y_taken, q_old_tm1=old[update.s], epsilon=epsilon
    )
    assert_close(loss, np.zeros_like(loss), of=1.0, tolerance=1e-25)
    policy = update.agent.policy(update.theta)
    expected = oracles.damped_policy(prior, policy, update.y, tau, epsilon)
    assert_close(lib.log_policy(new, tau, log_of(prior)), log_of(expected))


@equation(78)
def test_nonlinear_solve_differs_by_the_order_of_epsilon(head):
    update, errors = Update(0.3, NETWORKS["mlp"](), head), []
    for epsilon in (0.002, 0.001):
        loss = update.damped(frozen=True, epsilon=epsilon)
        first = update.gauss_newton(loss)
        theta = update.theta + first
        for _ in range(6):
            theta = theta + update.gauss_newton(loss, theta)
        errors.append(np.linalg.norm(theta - update.theta - first) / np.linalg.norm(first))
    assert errors[1] > 1e-5
    assert 1.7 < errors[0] / errors[1] < 2.3


@equation(66, 69, 77, 78)
@pytest.mark.parametrize(
    ("solver", "n", "head"), [("cg", 2, "actor_critic"), ("gram", 1, "q")], ids=["cg", "gram"]
)
def test_damped_natural_q(tau, solver, n, head):
    """The whole update, one call on rollouts, against dense matrices; weight 0 counts for none."""
    mdp = oracles.random_mdp(2, outcomes=1, tau=tau, terminals=1)
    agent, theta = bridge.make_agent(
        bridge.MODELS["linear"](*mdp.prior.shape), head, mdp.prior, tau
    )
    policy, kl = agent.policy(theta), agent.kl(theta)[:, 0]
    v, law = agent.value(theta), np.array([0.2, 0.5, 0.3, 0.0])
    path = paths(mdp, policy, n)
    table, weight = law[:, None] * policy, np.zeros_like(path.rewards)
    weight[0] = table[path.starts] * path.probs
    epsilon, damping = 0.3, 0.1

    @jax.jit
    def solve(theta):
        return jaxsoft.damped_natural_q(
            lambda x: bridge.heads(agent, x, path.states).q,
            theta,
            path.actions,
            r_t=path.rewards,
            discount_t=path.discounts,
            tau=tau,
            n=n,
            epsilon=epsilon,
            damping=damping,
            solver=solver,
            weight=3.0 * weight,
            log_prior=log_of(mdp.prior)[path.states],
        )

    step, info = solve(theta)
    assert int(info.status) == jaxsoft.SolveStatus.CONVERGED
    advantage = oracles.q_backup_by_paths(mdp, policy, kl, v, n) - (v + tau * kl)[:, None]
    g = -oracles.expect(table, oracles.policy_samples(agent, theta, advantage))
    curvature = oracles.fisher(agent, theta, table) + damping * np.eye(theta.size)
    assert_close(step, epsilon / tau * np.linalg.solve(curvature, g), 1e-8)
