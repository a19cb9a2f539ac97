"""Nuisance features: the policy's part of a joint regression, against dense least squares."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoft
from jaxsoft import SolveStatus
from tests.natural.test_natural import N, flat, problem
from tests.support import oracles

K = 3
solvers = pytest.mark.parametrize("solver", ["cg", "gram"])


def features(seed=5, columns=K):
    return np.random.default_rng(seed).normal(size=(N, columns))


def joint(psi, phi, advantage, damping, weight=None):
    """w of the ridge regression on [Ψ, Φ], whose ridge is on w alone; of least norm."""
    n, p = psi.shape
    share = np.full(n, 1 / n) if weight is None else weight / weight.sum()
    both = np.concatenate([psi, phi], axis=1) * np.sqrt(share)[:, None]
    ridge = np.concatenate([np.sqrt(damping) * np.eye(p), np.zeros((p, phi.shape[1]))], axis=1)
    right = np.concatenate([np.sqrt(share) * advantage, np.zeros(p)])
    return np.linalg.lstsq(np.concatenate([both, ridge]), right, rcond=None)[0][:p]


def scores(log_prob_fn, params):
    rows = jax.jacrev(log_prob_fn)(params)
    return np.concatenate([np.asarray(x).reshape(N, -1) for x in jax.tree.leaves(rows)], axis=1)


def solve(solver, nuisance, **given: Any):
    log_prob_fn, params, advantage = problem()
    options = {"damping": 1e-2, "tolerance": 1e-13} | given
    advantage = options.pop("advantage", advantage)
    w, info = jax.jit(
        lambda p, d, phi: jaxsoft.natural_gradient(
            log_prob_fn, p, d, nuisance=phi, solver=solver, **options
        )
    )(params, advantage, nuisance)
    assert info.status == SolveStatus.CONVERGED
    assert (info.iterations == 0) == (solver == "gram")
    return flat(w)


@solvers
@pytest.mark.parametrize("damping", [0.0, 1e-4, 1e-2, 1.0])
def test_it_is_the_joint_regression(solver, damping):
    log_prob_fn, params, advantage = problem()
    given = solve(solver, features(), damping=damping)
    psi = scores(log_prob_fn, params)
    if damping:
        wanted = joint(psi, features(), np.asarray(advantage), damping)
    else:
        left = np.eye(N) - features() @ np.linalg.pinv(features())
        wanted = np.linalg.pinv(left @ psi) @ np.asarray(advantage)
    np.testing.assert_allclose(given, wanted, rtol=1e-7, atol=1e-8 * np.abs(wanted).max())


@solvers
def test_on_a_batch_it_is_not_the_separate_one(solver):
    """The same solve on what a regression on the features alone leaves of the advantage."""
    _, _, advantage = problem()
    phi = features()
    left = np.asarray(advantage) - phi @ np.linalg.lstsq(phi, np.asarray(advantage), rcond=None)[0]
    together, apart = solve(solver, phi), solve(solver, None, advantage=left)
    assert np.linalg.norm(together - apart) > 0.02 * np.linalg.norm(together)


@solvers
def test_the_features_part_of_the_advantage_does_not_matter(solver):
    _, _, advantage = problem()
    moved = advantage + 10 * features() @ np.array([1.0, -2.0, 0.5])
    given = solve(solver, features(), advantage=moved)
    np.testing.assert_allclose(given, solve(solver, features()), rtol=1e-8, atol=1e-10)
    assert np.abs(solve(solver, None, advantage=moved) - solve(solver, None)).max() > 0.1


@solvers
def test_weights_also_weigh_the_features(solver):
    log_prob_fn, params, advantage = problem()
    weight = np.arange(N) % 3.0
    given = solve(solver, features(), weight=weight)
    wanted = joint(scores(log_prob_fn, params), features(), np.asarray(advantage), 1e-2, weight)
    np.testing.assert_allclose(given, wanted, rtol=1e-7, atol=1e-9)
    # What does not count may be anything.
    spoilt = np.where(weight[:, None] == 0, np.nan, features())
    np.testing.assert_allclose(solve(solver, spoilt, weight=weight), given, rtol=1e-9, atol=1e-12)


@solvers
def test_features_may_depend_on_each_other_and_have_any_unit(solver):
    phi = features()
    wanted = solve(solver, phi)
    more = np.concatenate([1e-15 * phi, phi @ np.ones((K, 2)), np.zeros((N, 1))], axis=1)
    np.testing.assert_allclose(solve(solver, more), wanted, rtol=1e-6, atol=1e-9)
    nothing = solve(solver, np.zeros((N, 0)))
    np.testing.assert_allclose(nothing, solve(solver, None), rtol=1e-10, atol=1e-13)


@solvers
def test_where_the_features_explain_everything_there_is_no_step(solver):
    log_prob_fn, params, advantage = problem()
    w, _ = jaxsoft.natural_gradient(
        log_prob_fn, params, advantage, nuisance=np.eye(N), solver=solver
    )
    np.testing.assert_allclose(flat(w), 0, atol=1e-10)


@solvers
def test_batch_axes_seeds_and_single_precision(solver):
    log_prob_fn, params, advantage = problem()
    options: dict[str, Any] = {"damping": 1e-2, "solver": solver}
    wanted = solve(solver, features())

    def shaped(phi):
        w, _ = jaxsoft.natural_gradient(
            lambda p: log_prob_fn(p).reshape(3, 4),
            params,
            advantage.reshape(3, 4),
            nuisance=phi.reshape(3, 4, K),
            tolerance=1e-12,
            **options,
        )
        return w

    many = jax.jit(jax.vmap(shaped))(jnp.stack([features(), features(6)]))
    first = flat(jax.tree.map(lambda x: x[0], many))
    np.testing.assert_allclose(first, wanted, rtol=1e-6, atol=1e-8)

    log_prob_fn, params, advantage = problem(jnp.float32)
    single, info = jaxsoft.natural_gradient(
        log_prob_fn, params, advantage, nuisance=jnp.asarray(features(), jnp.float32), **options
    )
    assert info.status == SolveStatus.CONVERGED
    np.testing.assert_allclose(flat(single), wanted, atol=1e-3 * np.abs(wanted).max())


def test_features_that_are_not_finite_are_reported():
    log_prob_fn, params, advantage = problem()
    _, info = jaxsoft.natural_gradient(
        log_prob_fn, params, advantage, nuisance=np.full((N, 1), np.nan)
    )
    assert info.status == SolveStatus.NON_FINITE


# ---- Enumerated: every state and action, or every episode, with its probability ------------------

THETA = 0.8 * np.random.default_rng(3).normal(size=3)


def linear_policy(mdp):
    """Log-probabilities [S, A] of logits that are linear in features: F is invertible."""
    shape = (*mdp.prior.shape, THETA.size)
    x = jnp.asarray(np.random.default_rng(4).normal(size=shape))
    return lambda theta: jax.nn.log_softmax(x @ theta)


@solvers
@pytest.mark.parametrize("tau", [0.3, 1.7])
def test_natural_actor_critic(solver, tau):
    """Regression of Q^π − τℓ on [∇log π, features of s]: w = F⁻¹g_ent, and V^π beside it."""
    mdp = oracles.random_mdp(0, gamma=0.8, tau=tau, normalised=False)
    log_pi_fn = linear_policy(mdp)
    log_pi = np.asarray(log_pi_fn(THETA))
    pi = np.exp(log_pi)
    states, actions = pi.shape
    q, v = oracles.policy_q(mdp, pi), oracles.policy_value(mdp, pi)
    ell = oracles.log_ratio(log_pi, mdp.prior)
    weight = (np.random.default_rng(1).dirichlet(np.ones(states))[:, None] * pi).ravel()
    one_hot = np.repeat(np.eye(states), actions, axis=0)
    psi = np.asarray(jax.jacobian(log_pi_fn)(THETA)).reshape(states * actions, -1)
    # The entropy-regularised policy gradient, (69), with the advantage in full.
    kl = oracles.kl(pi, mdp.prior)[:, None]
    delta = q - tau * kl - v[:, None]
    fisher = psi.T @ (weight[:, None] * psi)
    wanted = np.linalg.solve(fisher, psi.T @ (weight * (delta - tau * (ell - kl)).ravel()))

    def natural(advantage, nuisance=None):
        w, info = jaxsoft.natural_gradient(
            lambda theta: log_pi_fn(theta).ravel(),
            jnp.asarray(THETA),
            advantage.ravel(),
            damping=0.0,
            weight=weight,
            nuisance=nuisance,
            solver=solver,
            tolerance=1e-12,
        )
        assert info.status == SolveStatus.CONVERGED
        return w

    w = natural(q - tau * ell, one_hot)
    np.testing.assert_allclose(w, wanted, rtol=1e-8)
    left = (q - tau * ell).ravel() - psi @ np.asarray(w)
    in_states = one_hot.T @ (weight * left) / (one_hot.T @ weight)
    np.testing.assert_allclose(in_states, v, rtol=1e-8, atol=1e-9)
    # Tabular features take nothing away in expectation.
    np.testing.assert_allclose(natural(delta - tau * (ell - kl)), wanted, rtol=1e-8)
    np.testing.assert_allclose(natural(delta - tau * (ell - kl), one_hot), wanted, rtol=1e-8)


def episodes(mdp, pi):
    """(probability, states, actions, rewards) of every episode from state 0."""
    found: list[tuple[float, list[int], list[int], list[float]]] = []
    pending: list[Any] = [(1.0, [0], [], [])]
    while pending:
        chance, visited, acted, paid = pending.pop()
        if mdp.terminal[visited[-1]]:
            found.append((chance, visited[:-1], acted, paid))
            continue
        for a in range(pi.shape[1]):
            for r, s, share in mdp.outcomes(visited[-1], a):
                following = chance * pi[visited[-1], a] * share
                pending.append((following, [*visited, s], [*acted, a], [*paid, r]))
    return found


@solvers
@pytest.mark.parametrize("gamma", [0.8, 1.0])
def test_episodic_natural_actor_critic(solver, gamma):
    """Σ_t log π, a column of ones and returns: w = (ΣF_t)⁻¹∇J, and the constant is J."""
    tau = 0.4
    mdp = oracles.random_mdp(2, outcomes=1, acyclic=True, gamma=gamma, tau=tau)
    log_pi_fn = linear_policy(mdp)
    log_pi = np.asarray(log_pi_fn(THETA))
    ell = oracles.log_ratio(log_pi, mdp.prior)
    every = episodes(mdp, np.exp(log_pi))
    chance = np.array([p for p, *_ in every])
    np.testing.assert_allclose(chance.sum(), 1)
    returns = np.array(
        [
            sum(
                gamma**t * (r - tau * ell[s, a]) for t, (s, a, r) in enumerate(zip(*x, strict=True))
            )
            for _, *x in every
        ]
    )
    visits = np.zeros((len(every), *log_pi.shape))
    for row, (_, visited, acted, _) in zip(visits, every, strict=True):
        for s, a in zip(visited, acted, strict=True):
            row[s, a] += 1

    def log_prob_fn(theta):
        return jnp.tensordot(visits, log_pi_fn(theta), 2)

    def objective(theta):
        """J by the episodes' probabilities, of which the dynamics' part is held."""
        own = log_pi_fn(theta)
        shares = chance * jnp.exp(log_prob_fn(theta) - log_prob_fn(THETA))
        penalty = own - np.log(mdp.prior)
        costs = [
            sum(gamma**t * penalty[s, a] for t, (s, a) in enumerate(zip(x[0], x[1], strict=True)))
            for _, *x in every
        ]
        paid = [sum(gamma**t * r for t, r in enumerate(x[2])) for _, *x in every]
        return jnp.sum(shares * (jnp.asarray(paid) - tau * jnp.stack(costs)))

    scores_of_steps = np.asarray(jax.jacobian(log_pi_fn)(THETA))
    expected_visits = np.tensordot(chance, visits, 1)
    fisher = np.einsum("sa,sap,saq->pq", expected_visits, scores_of_steps, scores_of_steps)
    wanted = np.linalg.solve(fisher, jax.jit(jax.grad(objective))(jnp.asarray(THETA)))
    w, info = jaxsoft.natural_gradient(
        log_prob_fn,
        jnp.asarray(THETA),
        returns,
        damping=0.0,
        weight=chance,
        nuisance=np.ones((len(every), 1)),
        solver=solver,
        tolerance=1e-12,
    )
    assert info.status == SolveStatus.CONVERGED
    np.testing.assert_allclose(w, wanted, rtol=1e-8)
    psi = np.tensordot(visits, scores_of_steps, 2)
    constant = chance @ (returns - psi @ np.asarray(w))
    np.testing.assert_allclose(constant, objective(jnp.asarray(THETA)), rtol=1e-9)


def test_discounted_features_solve_another_system():
    """✎ Σγᵗ∇log π with discounted returns: (Σγ²ᵗF_t)⁻¹Σγ²ᵗg_t, not the natural gradient."""
    gamma, rng = 0.8, np.random.default_rng(0)
    # Two steps whose actions are independent and whose policies share θ.
    x = rng.normal(size=(2, 3, 2))
    rewards, theta = rng.normal(size=(2, 3)), jnp.asarray([0.3, -0.6])
    log_pi = jax.nn.log_softmax(jnp.asarray(x) @ theta)
    pairs = list(itertools.product(range(3), range(3)))
    chance = np.array([np.exp(log_pi[0, a] + log_pi[1, b]) for a, b in pairs])
    returns = np.array([rewards[0, a] + gamma * rewards[1, b] for a, b in pairs])

    def discounted(theta):
        own = jax.nn.log_softmax(jnp.asarray(x) @ theta)
        return jnp.stack([own[0, a] + gamma * own[1, b] for a, b in pairs])

    w, _ = jaxsoft.natural_gradient(
        discounted,
        theta,
        returns,
        damping=0.0,
        weight=chance,
        nuisance=np.ones((len(pairs), 1)),
        tolerance=1e-12,
    )
    psi = np.asarray(jax.jacobian(lambda t: jax.nn.log_softmax(jnp.asarray(x) @ t))(theta))
    pi = np.exp(np.asarray(log_pi))
    fishers = np.einsum("ta,tap,taq->tpq", pi, psi, psi)
    gradients = np.einsum("ta,tap,ta->tp", pi, psi, rewards)
    squares = gamma ** (2 * np.arange(2))
    wanted = np.linalg.solve(np.tensordot(squares, fishers, 1), squares @ gradients)
    np.testing.assert_allclose(w, wanted, rtol=1e-9)
    powers = gamma ** np.arange(2)
    natural = np.linalg.solve(np.tensordot(powers, fishers, 1), powers @ gradients)
    assert np.linalg.norm(natural - wanted) > 0.01 * np.linalg.norm(natural)
