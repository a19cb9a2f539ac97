"""The headline calls are the blocks, composed; and they learn what enumeration says is optimal."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import jaxsoft
from jaxsoft import boltzmann, returns
from tests.support import oracles

T, B, A, TAU, GAMMA = 6, 3, 4, 0.3, 0.9
RNG = np.random.default_rng(0)
Q, Q_OLD = RNG.normal(size=(2, T + 1, B, A))
V = RNG.normal(size=(T + 1, B))
LOG_PI = np.asarray(jax.nn.log_softmax(RNG.normal(size=(T + 1, B, A))))
LOG_PRIOR = np.log(RNG.dirichlet(np.ones(A), size=(T + 1, B)))
ACTIONS = RNG.integers(0, A, size=(T, B))
REWARDS = RNG.normal(size=(T, B))
DISCOUNTS = GAMMA * (RNG.random((T, B)) > 0.2)
CUTS = RNG.random((T, B)) < 0.2


def oracle_targets(v: np.ndarray, kl: np.ndarray, n: int) -> np.ndarray:
    return np.stack(
        [
            oracles.n_step_q_targets(
                REWARDS[:, b], DISCOUNTS[:, b], v[1:, b], kl[:-1, b], TAU, n, CUTS[:, b]
            )
            for b in range(B)
        ],
        axis=1,
    )


@pytest.mark.parametrize("n", [1, 2, 5, 99])
def test_n_step_soft_q(n: int) -> None:
    prior = np.exp(LOG_PRIOR)
    v = oracles.soft_value(Q_OLD, TAU, prior)
    kl = oracles.kl(oracles.boltzmann(Q_OLD, TAU, prior), prior)
    taken = np.take_along_axis(Q[:-1], ACTIONS[..., None], -1)[..., 0]
    expected = 0.5 * (taken - oracle_targets(v, kl, n)) ** 2
    given = jaxsoft.n_step_soft_q(
        Q,
        ACTIONS,
        REWARDS,
        discount_t=DISCOUNTS,
        tau=TAU,
        n=n,
        target_q=Q_OLD,
        log_prior=LOG_PRIOR,
        cut_t=CUTS,
    )
    np.testing.assert_allclose(given, expected, rtol=1e-11)


def test_one_step_soft_q_is_q_learning() -> None:
    target = jaxsoft.one_step_targets(
        REWARDS, DISCOUNTS, Q_OLD[1:], tau=TAU, log_prior=LOG_PRIOR[1:]
    )
    np.testing.assert_allclose(
        jaxsoft.n_step_soft_q(
            Q,
            ACTIONS,
            REWARDS,
            discount_t=DISCOUNTS,
            tau=TAU,
            n=1,
            target_q=Q_OLD,
            log_prior=LOG_PRIOR,
        ),
        jaxsoft.soft_q_loss(Q[:-1], ACTIONS, target),
        rtol=1e-11,
    )


@pytest.mark.parametrize("n", [1, 3, 99])
@pytest.mark.parametrize("naive", [True, False])
def test_policy_gradients(n: int, naive: bool) -> None:
    call = jaxsoft.naive_actor_critic if naive else jaxsoft.actor_critic
    prior = np.exp(LOG_PRIOR)
    kl = oracles.kl(np.exp(LOG_PI), prior)
    target = oracle_targets(V, 0 * kl if naive else kl, n)
    value_target = target - (0 if naive else TAU * kl[:-1])
    log_pi_a = np.take_along_axis(LOG_PI[:-1], ACTIONS[..., None], -1)[..., 0]
    expected = (
        -log_pi_a * (value_target - V[:-1])
        + TAU * kl[:-1]
        + 0.25 * 0.5 * (V[:-1] - value_target) ** 2
    )
    given = call(
        V,
        LOG_PI,
        ACTIONS,
        r_t=REWARDS,
        discount_t=DISCOUNTS,
        tau=TAU,
        n=n,
        value_coef=0.25,
        log_prior=LOG_PRIOR,
        cut_t=CUTS,
    )
    np.testing.assert_allclose(given, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("log_prior", [None, 0.0, LOG_PRIOR[0, 0], LOG_PRIOR[:1], LOG_PRIOR])
def test_tied_soft_q(log_prior: Any) -> None:
    kl = jaxsoft.kl_to_prior(LOG_PI, log_prior)
    rest: dict[str, Any] = {"discount_t": DISCOUNTS, "tau": TAU, "n": 3, "cut_t": CUTS}
    target = jaxsoft.n_step_soft_q_targets(V, kl[:-1], REWARDS, **rest)
    starts = log_prior[:-1] if np.shape(log_prior) == LOG_PRIOR.shape else log_prior
    np.testing.assert_array_equal(
        jaxsoft.tied_soft_q(
            V, LOG_PI, ACTIONS, r_t=REWARDS, **rest, value_coef=0.25, log_prior=log_prior
        ),
        jaxsoft.tied_soft_q_loss(
            V[:-1],
            LOG_PI[:-1],
            ACTIONS,
            target_t=target,
            tau=TAU,
            value_coef=0.25,
            log_prior=starts,
        ),
    )


def test_the_actor_critic_is_its_loss_on_soft_q_targets() -> None:
    rest: dict[str, Any] = {"discount_t": DISCOUNTS, "tau": TAU, "n": 3, "cut_t": CUTS}
    target = jaxsoft.n_step_soft_q_targets(V, jaxsoft.kl_to_prior(LOG_PI[:-1]), REWARDS, **rest)

    def whole(v: Array, log_pi: Array) -> Array:
        return jaxsoft.actor_critic(v, log_pi, ACTIONS, r_t=REWARDS, **rest)

    def composed(v: Array, log_pi: Array) -> Array:
        return jaxsoft.a2c_loss(v[:-1], log_pi[:-1], ACTIONS, target_t=target, tau=TAU)

    at = jnp.asarray(V), jnp.asarray(LOG_PI)
    np.testing.assert_array_equal(whole(*at), composed(*at))
    one, other = (jax.grad(lambda *x, f=f: f(*x).sum(), (0, 1))(*at) for f in (whole, composed))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("name", ["actor_critic", "naive_actor_critic", "tied_soft_q"])
def test_divergence_and_advantages_are_computed_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    for module, function in ((boltzmann, "kl"), (returns, "n_step_advantages")):
        original = getattr(module, function)

        def counted(*args: Any, original: Any = original, **kwargs: Any) -> Array:
            calls.append(original.__name__)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, function, counted)
    getattr(jaxsoft, name)(V, LOG_PI, ACTIONS, r_t=REWARDS, discount_t=DISCOUNTS, tau=TAU)
    assert sorted(calls) == ["kl", "n_step_advantages"]


def test_targets_are_held_fixed() -> None:
    def soft_q(q: Array) -> Array:
        return jaxsoft.n_step_soft_q(q, ACTIONS, REWARDS, discount_t=DISCOUNTS, tau=TAU).sum()

    def fixed(q: Array) -> Array:
        return jaxsoft.n_step_soft_q(
            q, ACTIONS, REWARDS, discount_t=DISCOUNTS, tau=TAU, target_q=Q
        ).sum()

    np.testing.assert_allclose(jax.grad(soft_q)(Q), jax.grad(fixed)(Q), rtol=1e-12)
    assert (jax.grad(soft_q)(Q)[-1] == 0).all()
    by_v, by_pi = jax.grad(
        lambda v, p: jaxsoft.actor_critic(
            v, p, ACTIONS, r_t=REWARDS, discount_t=DISCOUNTS, tau=TAU
        ).sum(),
        (0, 1),
    )(V, LOG_PI)
    assert (by_v[-1] == 0).all()
    assert (by_pi[-1] == 0).all()


@pytest.mark.parametrize("tau", [0.05, 1.0])
def test_soft_q_learning_finds_the_optimal_q(tau: float) -> None:
    mdp = oracles.random_mdp(0, tau=tau, gamma=0.8)
    optimum = oracles.optimal_q(mdp)
    states, actions = (x.ravel() for x in np.indices(optimum.shape))
    successors = [
        (i, r, s_next, p)
        for i, (s, a) in enumerate(zip(states, actions, strict=True))
        for r, s_next, p in mdp.outcomes(s, a)
    ]
    row, r, s_next, p = (np.asarray(x) for x in zip(*successors, strict=True))
    log_prior = np.log(mdp.prior)

    @jax.jit
    def sweep(q: Array) -> Array:
        def loss(table: Array) -> Array:
            pairs = jnp.stack([table[states[row]], table[s_next]])
            priors = jnp.stack([log_prior[states[row]], log_prior[s_next]])
            each = jaxsoft.n_step_soft_q(
                pairs,
                actions[row][None],
                r[None],
                discount_t=mdp.gamma,
                tau=tau,
                n=1,
                log_prior=priors,
            )
            return jnp.sum(p * each[0])

        return q - jax.grad(loss)(q)

    q = jnp.zeros_like(optimum)
    for _ in range(150):
        q = sweep(q)
    np.testing.assert_allclose(q, optimum, atol=1e-9)


@pytest.mark.parametrize("solver", ["cg", "gram"])
def test_damped_natural_q_is_the_tabular_closed_form(solver: str) -> None:
    """With a softmax table and every action, π_new ∝ π̄^ε π_old^{1−ε} exp(εQ̂/τ), exactly."""
    prior = np.random.default_rng(3).dirichlet(np.ones(A))
    q_old, rewards = np.random.default_rng(4).normal(size=(2, A))
    pi_old = oracles.boltzmann(q_old, TAU, prior)
    for epsilon in (0.1, 0.7):
        step, info = jaxsoft.damped_natural_q(
            lambda q: jnp.stack([jnp.broadcast_to(q, (A, A)), jnp.zeros((A, A))]),
            jnp.asarray(q_old),
            np.arange(A)[None],
            r_t=rewards[None],
            discount_t=0.0,
            tau=TAU,
            epsilon=epsilon,
            damping=0.0,
            solver=solver,
            log_prior=np.log(prior),
            weight=pi_old[None],
        )
        assert info.status == jaxsoft.SolveStatus.CONVERGED
        exact = oracles.damped_policy(prior, pi_old, rewards, TAU, epsilon)
        new = oracles.boltzmann(q_old + np.asarray(step), TAU, prior)
        np.testing.assert_allclose(new, exact, rtol=1e-8)


@pytest.mark.parametrize("prior", ["uniform", "masked", "per state"])
def test_hard_values_are_the_limit_that_a_traced_temperature_takes(prior: str) -> None:
    masked = np.where(np.arange(A) == Q_OLD.argmax(-1)[..., None], -np.inf, LOG_PRIOR)
    log_prior = {"uniform": None, "masked": masked[0, 0], "per state": masked}[prior]

    def losses(tau: float | Array) -> Array:
        return jaxsoft.n_step_soft_q(
            Q,
            ACTIONS,
            REWARDS,
            discount_t=DISCOUNTS,
            tau=tau,
            n=3,
            target_q=Q_OLD,
            log_prior=log_prior,
        )

    allowed = Q_OLD if log_prior is None else np.where(log_prior > -np.inf, Q_OLD, -np.inf)
    v = allowed.max(-1)
    uncut = np.zeros_like(CUTS)
    target = np.stack(
        [
            oracles.n_step_q_targets(
                REWARDS[:, b], DISCOUNTS[:, b], v[1:, b], 0 * v[:-1, b], 0.0, 3, uncut[:, b]
            )
            for b in range(B)
        ],
        axis=1,
    )
    taken = np.take_along_axis(Q[:-1], ACTIONS[..., None], -1)[..., 0]
    np.testing.assert_allclose(losses(0.0), 0.5 * (taken - target) ** 2, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(losses)(0.0), losses(0.0), rtol=1e-12)


@pytest.mark.parametrize("index", [-1, -A, A, 2**30])
def test_an_index_that_is_no_action_takes_nan(index: int) -> None:
    actions = jnp.asarray(ACTIONS).at[0, 0].set(index)
    taken = jax.jit(jaxsoft.take_action)(Q[:-1], actions)
    assert np.isnan(taken[0, 0])
    np.testing.assert_array_equal(np.isnan(taken).sum(), 1)
