"""Boltzmann algebra: its laws, its limits and the ends of floating point."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.test_util import check_grads

import jaxsoft
from tests.support import oracles

TAUS = (0.01, 0.3, 2.5)
MASK = np.array([True, False, True, True, False])

values = hnp.arrays(np.float64, (3, 5), elements=st.floats(-10, 10, width=32))
weights = hnp.arrays(np.float64, (3, 5), elements=st.floats(0.0625, 1, width=32))
temperatures = st.floats(1e-3, 1e3)


def priors(q: np.ndarray) -> dict[str, np.ndarray | float | None]:
    rng = np.random.default_rng(7)
    weight = rng.uniform(0.1, 2, size=q.shape)
    return {
        "uniform": None,
        "entropy": 0.0,
        "constant": -3.0,
        "measure": np.log(weight),
        "masked": np.where(MASK, np.log(weight), -np.inf),
        "one action": np.where(np.arange(5) == 2, 0.5, -np.inf),
        "shared": np.log(weight[0]),
        "tiny on the best": np.where(np.arange(5) == 0, -60.0, -1.0),
    }


def measure(q: np.ndarray, log_prior: np.ndarray | float | None) -> np.ndarray:
    log_prior = -np.log(q.shape[-1]) if log_prior is None else log_prior
    return np.exp(np.broadcast_to(np.asarray(log_prior, np.float64), q.shape))


PRIORS = list(priors(np.zeros((3, 5))))


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("tau", [0.0, *TAUS])
def test_value_and_policy_against_the_oracle(tau: float, prior: str) -> None:
    q = np.random.default_rng(0).normal(size=(3, 5))
    log_prior = priors(q)[prior]
    pi_bar = measure(q, log_prior)
    np.testing.assert_allclose(
        jaxsoft.soft_value(q, tau, log_prior), oracles.soft_value(q, tau, pi_bar), rtol=1e-12
    )
    if tau > 0:
        log_pi = jaxsoft.log_policy(q, tau, log_prior)
        np.testing.assert_allclose(
            log_pi, oracles.log_boltzmann(q, tau, pi_bar), rtol=1e-11, atol=1e-13
        )
        np.testing.assert_allclose(
            jaxsoft.kl_to_prior(log_pi, log_prior),
            oracles.kl(np.exp(np.asarray(log_pi)), pi_bar),
            rtol=1e-11,
            atol=1e-13,
        )


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("tau", TAUS)
def test_derivatives(tau: float, prior: str) -> None:
    q = np.random.default_rng(1).normal(size=(5,)) * tau
    log_prior = priors(np.zeros((3, 5)))[prior]
    log_prior = (
        log_prior[1] if isinstance(log_prior, np.ndarray) and log_prior.ndim == 2 else log_prior
    )
    allowed = measure(q, log_prior) > 0

    def value(q: jax.Array, tau: jax.Array) -> jax.Array:
        return jaxsoft.soft_value(q, tau, log_prior)

    def policy(q: jax.Array, tau: jax.Array) -> jax.Array:
        return jaxsoft.log_policy(q, tau, log_prior)[np.flatnonzero(allowed)]

    def divergence(q: jax.Array, tau: jax.Array) -> jax.Array:
        return jaxsoft.kl_to_prior(jaxsoft.log_policy(q, tau, log_prior), log_prior)

    args = (jnp.asarray(q), jnp.asarray(tau))
    for f in (value, policy, divergence):
        check_grads(f, args, order=2, modes=("fwd", "rev"), eps=1e-5 * tau, rtol=1e-4, atol=1e-4)
    by_q, by_tau = jax.grad(value, (0, 1))(*args)
    log_pi = jaxsoft.log_policy(q, tau, log_prior)
    np.testing.assert_allclose(by_q, np.exp(log_pi), rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(by_tau, -divergence(*args), rtol=1e-11, atol=1e-12)


def test_gradient_in_the_prior() -> None:
    q, log_prior = jnp.asarray([0.3, -1.0, 0.5]), jnp.asarray([-0.5, -1.0, -2.0])
    check_grads(lambda p: jaxsoft.soft_value(q, 0.3, p), (log_prior,), order=2, rtol=1e-4)
    check_grads(lambda p: jaxsoft.log_policy(q, 0.3, p), (log_prior,), order=2, rtol=1e-4)
    check_grads(lambda c: jaxsoft.soft_value(q, 0.3, c), (jnp.asarray(0.7),), order=1, rtol=1e-4)


def test_zero_temperature_is_the_hard_max_with_its_gradient() -> None:
    q = jnp.asarray([[1.0, 3.0, 2.0], [2.0, 2.0, 0.0], [9.0, 1.0, 1.0]])
    log_prior = jnp.asarray([[0.0, 0.0, 0.0], [np.log(0.2), np.log(0.6), 0.0], [-np.inf, 0.0, 0.0]])
    np.testing.assert_array_equal(jaxsoft.soft_value(q, 0.0, log_prior), [3.0, 2.0, 1.0])
    gradient = jax.grad(lambda q: jaxsoft.soft_value(q, 0.0, log_prior).sum())(q)
    # Ties are shared out by the prior, as in the limit.
    expected = np.array([[0, 1, 0], [0.25, 0.75, 0], [0, 0.5, 0.5]])
    np.testing.assert_allclose(gradient, expected, rtol=1e-14)
    np.testing.assert_allclose(np.exp(jaxsoft.log_policy(q, 0.0, log_prior)), expected, rtol=1e-14)
    jacobians = jax.jacobian(lambda q, t: jaxsoft.log_policy(q, t, log_prior), (0, 1))(q, 0.0)
    for jacobian in jacobians:
        np.testing.assert_array_equal(jacobian, np.zeros_like(jacobian))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("prior", PRIORS)
def test_the_ends_of_floating_point(dtype: jnp.dtype, prior: str) -> None:
    log_prior = priors(np.zeros((3, 5)))[prior]
    if isinstance(log_prior, np.ndarray):
        log_prior = np.asarray(jnp.asarray(log_prior, dtype))
    pi_bar = measure(np.zeros((3, 5)), log_prior)
    epsilon = float(jnp.finfo(dtype).eps)

    def value(q: jax.Array, tau: jax.Array) -> jax.Array:
        return jaxsoft.soft_value(q, tau, log_prior)

    def divergence(q: jax.Array, tau: jax.Array) -> jax.Array:
        return jaxsoft.kl_to_prior(jaxsoft.log_policy(q, tau, log_prior), log_prior)

    @jax.jit
    def everything(q: jax.Array, tau: jax.Array) -> tuple[jax.Array, ...]:
        slopes = jax.tree.leaves([jax.jacrev(f, (0, 1))(q, tau) for f in (value, divergence)])
        gradient = jax.grad(lambda q: value(q, tau).astype(jnp.float32).sum())(q)
        log_pi = jaxsoft.log_policy(q, tau, log_prior)
        return value(q, tau), divergence(q, tau), jnp.exp(log_pi), gradient, *slopes

    temperatures = (0.0, 1e-6, 1e-3, 1.0, 1e3, 1e6)
    scales = (0.0, 1e-30, 1e-3, 1.0, 1e6, 1e30)
    for tau, scale in itertools.product(temperatures, scales):
        q = jnp.asarray(np.random.default_rng(2).uniform(-1, 1, size=(3, 5)) * scale, dtype)
        single = np.float32(tau)
        results = everything(q, jnp.asarray(single))
        assert all(np.isfinite(np.asarray(x, float)).all() for x in results), (tau, scale)
        given, _, policy, gradient = (np.asarray(x, float) for x in results[:4])
        exact = np.asarray(q, np.longdouble)
        wanted = oracles.soft_value(exact, np.longdouble(single), pi_bar).astype(float)
        size = np.maximum(np.abs(wanted), tau * (np.abs(np.log(pi_bar.sum(-1))) + 1e-6) + scale)
        np.testing.assert_array_less(np.abs(given - wanted), 4 * epsilon * size + 1e-36)
        assert (policy[pi_bar == 0] == 0).all()
        np.testing.assert_allclose(policy.sum(-1), 1, atol=20 * epsilon)
        np.testing.assert_allclose(gradient, policy, atol=20 * epsilon)


@pytest.mark.parametrize("form", ["uniform", "counting", "scalar", "array"])
@pytest.mark.parametrize("actions", [2, 18, 1_000, 32_000, 256_000])
def test_single_precision_holds_for_many_actions(actions: int, form: str) -> None:
    rng = np.random.default_rng(actions)
    spread, peaked = 3 * rng.normal(size=actions), np.where(np.arange(actions) == 1, 10.0, 0.0)
    log_prior = {"uniform": None, "counting": 0.0, "scalar": -2.5, "array": -2.5}[form]
    given = np.full(actions, -2.5, np.float32) if form == "array" else log_prior
    offset = -np.log(actions) if log_prior is None else log_prior
    for q in (spread.astype(np.float32), peaked.astype(np.float32), np.zeros(actions, np.float32)):
        exact = q.astype(np.longdouble)
        log_sum = exact.max() + np.log(np.exp(exact - exact.max()).sum())
        np.testing.assert_allclose(
            jaxsoft.soft_value(q, 1.0, given), float(log_sum + offset), rtol=1e-6, atol=1e-6
        )
        log_pi = jaxsoft.log_policy(q, 1.0, given)
        np.testing.assert_allclose(log_pi, (exact - log_sum).astype(float), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(np.exp(np.asarray(log_pi, float)).sum(), 1, rtol=1e-6)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("q", [[1.0, 1.0, 0.0, 1.0, -2.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
def test_mixed_derivatives_at_ties(q: list[float], prior: str) -> None:
    log_prior = priors(np.zeros((1, 5)))[prior]
    given = log_prior[0] if isinstance(log_prior, np.ndarray) and log_prior.ndim == 2 else log_prior

    def policy(q: jax.Array, tau: jax.Array) -> jax.Array:
        return jnp.exp(jaxsoft.log_policy(q, tau, given))

    args, step = (jnp.asarray(q), jnp.asarray(0.7)), 1e-5
    by_tau_first = jax.jacfwd(jax.jacfwd(policy, 1), 0)(*args)
    by_q_first = jax.jacfwd(jax.jacfwd(policy, 0), 1)(*args)
    np.testing.assert_allclose(by_tau_first, by_q_first, rtol=1e-10, atol=1e-12)
    above, below = (jax.jacfwd(policy, 0)(args[0], args[1] + s) for s in (step, -step))
    np.testing.assert_allclose(by_tau_first, (above - below) / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("prior", [None, -1.0, np.log([0.2, 0.5, 0.3]), [-np.inf, -1.0, -0.5]])
@pytest.mark.parametrize("tau", [0.0, 0.5, np.nan])
def test_nan_comes_out_as_nan(tau: float, prior: float | np.ndarray | None) -> None:
    """Of a network that has diverged nothing must look healthy."""

    @jax.jit
    def everything(q: jax.Array, tau: jax.Array) -> tuple[jax.Array, ...]:
        log_prior = None if prior is None else jnp.asarray(prior)
        log_pi = jaxsoft.log_policy(q, tau, log_prior)
        return (
            jaxsoft.soft_value(q, tau, log_prior),
            log_pi[1:],
            jaxsoft.kl_to_prior(log_pi, log_prior),
            jaxsoft.policy_value(q, log_pi, tau, log_prior),
            jaxsoft.q_from_policy(jnp.asarray(1.0), log_pi, tau, log_prior)[1:],
            jax.grad(jaxsoft.soft_value)(q, tau, log_prior)[1:],
            jax.jacobian(lambda q: jaxsoft.log_policy(q, tau, log_prior)[1:])(q)[:, 1:],
        )

    for q in ([0.5, np.nan, 1.0], [0.5, 0.1, np.nan], [1.0, np.nan, np.nan], [0.0, np.inf, 1.0]):
        results = everything(jnp.asarray(q), jnp.asarray(tau))
        infinite = not np.isnan(tau) and not np.isnan(q).any()
        for result in results[infinite:]:
            assert np.isnan(result).all()
    if np.isnan(tau):
        assert all(np.isnan(x).all() for x in everything(jnp.asarray([0.5, 0.1, 1.0]), tau))


def test_a_prior_of_nan_is_not_a_mask() -> None:
    prior = jnp.asarray([-1.0, np.nan, -1.0])
    assert np.isnan(jax.jit(jaxsoft.log_policy)(jnp.zeros(3), 0.5, prior)).all()
    assert np.isnan(jax.jit(jaxsoft.soft_value)(jnp.zeros(3), 0.5, prior))


@pytest.mark.parametrize("tau", [0.0, 0.5])
@pytest.mark.parametrize("prior", [None, np.log([0.2, 0.5, 0.3])])
def test_an_action_of_value_minus_infinity_is_never_taken(
    tau: float, prior: np.ndarray | None
) -> None:
    q, kept = jnp.asarray([0.3, -np.inf, 0.8]), jnp.asarray([0.3, 0.8])
    measure = np.zeros(2) - np.log(3) if prior is None else prior[[0, 2]]
    log_pi = jaxsoft.log_policy(q, tau, prior)
    assert log_pi[1] == -np.inf
    np.testing.assert_allclose(
        log_pi[jnp.asarray([0, 2])],
        jaxsoft.log_policy(kept, tau, measure),
        rtol=1e-12,
        atol=1e-14,
    )
    gradient = jax.grad(lambda q: jaxsoft.soft_value(q, tau, prior))(q)
    np.testing.assert_allclose(gradient, np.exp(log_pi), rtol=1e-12)


@given(values, weights, temperatures)
def test_masked_equals_removed(q: np.ndarray, weight: np.ndarray, tau: float) -> None:
    log_prior = np.where(MASK, np.log(weight), -np.inf)
    kept, log_kept = q[:, MASK], np.log(weight)[:, MASK]
    idle = np.where(MASK, q, np.nan)
    for masked in (q, idle):
        np.testing.assert_allclose(
            jaxsoft.soft_value(masked, tau, log_prior),
            jaxsoft.soft_value(kept, tau, log_kept),
            rtol=1e-12,
            atol=1e-12,
        )
        log_pi = jaxsoft.log_policy(masked, tau, log_prior)
        log_pi_kept = jaxsoft.log_policy(kept, tau, log_kept)
        np.testing.assert_allclose(log_pi[:, MASK], log_pi_kept, rtol=1e-9, atol=1e-12)
        assert (log_pi[:, ~MASK] == -np.inf).all()
        np.testing.assert_allclose(
            jaxsoft.kl_to_prior(log_pi, log_prior),
            jaxsoft.kl_to_prior(log_pi_kept, log_kept),
            rtol=1e-9,
            atol=1e-12,
        )
    gradient = jax.grad(lambda q: jaxsoft.soft_value(q, tau, log_prior).sum())(idle)
    assert np.isfinite(gradient).all()


@given(values, weights, temperatures, st.floats(-100, 100))
def test_a_constant_shifts_the_value_and_leaves_the_policy(
    q: np.ndarray, weight: np.ndarray, tau: float, constant: float
) -> None:
    log_prior = np.log(weight)
    np.testing.assert_allclose(
        jaxsoft.soft_value(q + constant, tau, log_prior),
        jaxsoft.soft_value(q, tau, log_prior) + constant,
        rtol=1e-10,
        atol=1e-10,
    )
    np.testing.assert_allclose(
        jaxsoft.log_policy(q + constant, tau, log_prior),
        jaxsoft.log_policy(q, tau, log_prior),
        rtol=1e-9,
        atol=1e-12 / tau,
    )


@given(values, temperatures)
def test_bonus_and_penalty_differ_by_tau_log_a(q: np.ndarray, tau: float) -> None:
    bonus, penalty = jaxsoft.soft_value(q, tau, 0.0), jaxsoft.soft_value(q, tau)
    np.testing.assert_allclose(bonus - penalty, tau * np.log(5), rtol=1e-9, atol=1e-12)
    log_pi = jaxsoft.log_policy(q, tau)
    np.testing.assert_allclose(log_pi, jaxsoft.log_policy(q, tau, 0.0), rtol=1e-13)
    entropy = -np.sum(np.exp(log_pi) * np.maximum(log_pi, -1e300), axis=-1)
    np.testing.assert_allclose(jaxsoft.kl_to_prior(log_pi, 0.0), -entropy, atol=1e-12)
    np.testing.assert_allclose(jaxsoft.kl_to_prior(log_pi), np.log(5) - entropy, atol=1e-12)


@given(values, weights, temperatures)
def test_values_and_policies_are_two_views_of_q(
    q: np.ndarray, weight: np.ndarray, tau: float
) -> None:
    log_prior = np.where(MASK, np.log(weight), -np.inf)
    value, log_pi = jaxsoft.soft_value(q, tau, log_prior), jaxsoft.log_policy(q, tau, log_prior)
    back = jaxsoft.q_from_policy(value, log_pi, tau, log_prior)
    np.testing.assert_allclose(back[:, MASK], q[:, MASK], rtol=1e-9, atol=1e-9)
    assert (back[:, ~MASK] == -np.inf).all()
    np.testing.assert_allclose(
        jaxsoft.policy_value(q, log_pi, tau, log_prior), value, rtol=1e-9, atol=1e-9
    )


@given(values, values, weights, temperatures)
def test_no_policy_beats_the_boltzmann_policy(
    q: np.ndarray, logits: np.ndarray, weight: np.ndarray, tau: float
) -> None:
    other = jax.nn.log_softmax(logits)
    best = jaxsoft.soft_value(q, tau, np.log(weight))
    reached = jaxsoft.policy_value(q, other, tau, np.log(weight))
    assert (reached <= best + 1e-9 * (1 + np.abs(best))).all()
    # (6): what is missing is the divergence from the Boltzmann policy.
    boltzmann = jaxsoft.log_policy(q, tau, np.log(weight))
    lost = tau * jaxsoft.kl_to_prior(other, boltzmann)
    np.testing.assert_allclose(best - reached, lost, rtol=1e-7, atol=1e-9)


def test_policies_with_zeros() -> None:
    log_pi = jnp.asarray([0.0, -np.inf, -np.inf])
    np.testing.assert_allclose(jaxsoft.kl_to_prior(log_pi), np.log(3))
    np.testing.assert_allclose(jaxsoft.kl_to_prior(log_pi, jnp.asarray([-0.5, -np.inf, 0.0])), 0.5)
    assert jaxsoft.kl_to_prior(log_pi, jnp.asarray([-np.inf, 0.0, 0.0])) == np.inf
    np.testing.assert_array_equal(
        jaxsoft.q_from_policy(1.0, log_pi, 0.5, 0.0), [1.0, -np.inf, -np.inf]
    )
    gradient = jax.grad(lambda x: jaxsoft.kl_to_prior(jax.nn.log_softmax(x)))(
        jnp.asarray([0.0, -1e4, 5.0])
    )
    assert np.isfinite(gradient).all()


def test_temperature_per_state() -> None:
    q = np.random.default_rng(3).normal(size=(4, 2, 3))
    tau = np.asarray([[0.1], [0.0], [1.0], [5.0]])
    together = jaxsoft.soft_value(q, tau)
    apart = [jaxsoft.soft_value(row, t) for row, t in zip(q, tau[:, 0], strict=True)]
    np.testing.assert_allclose(together, apart, rtol=1e-13)
    np.testing.assert_allclose(
        jaxsoft.log_policy(q, tau)[2], jaxsoft.log_policy(q[2], 1.0), rtol=1e-13
    )


def test_priors_broadcast_both_ways() -> None:
    q = np.random.default_rng(4).normal(size=(3, 4))
    per_state = np.log(np.random.default_rng(5).uniform(size=(6, 3, 4)))
    raised = jaxsoft.soft_value(q, 0.3, per_state)
    assert raised.shape == (6, 3)
    np.testing.assert_allclose(raised[2], jaxsoft.soft_value(q, 0.3, per_state[2]), rtol=1e-13)
    constant = jaxsoft.soft_value(q, 0.3, per_state[0, :, :1])
    by_hand = [jaxsoft.soft_value(q[i], 0.3, per_state[0, i, 0]) for i in range(3)]
    np.testing.assert_allclose(constant, by_hand, rtol=1e-13)


def test_samples_follow_the_policy() -> None:
    q = np.asarray([1.0, 0.0, 2.0, 0.5])
    log_prior = np.log(
        [0.4, 0.1, 0.5, 0.0], where=[True, True, True, False], out=np.full(4, -np.inf)
    )
    for dtype, tau in itertools.product((jnp.float32, jnp.bfloat16), (0.5, 0.0)):
        log_pi = jaxsoft.log_policy(q.astype(dtype), tau, log_prior.astype(dtype))
        draws = jaxsoft.sample_actions(jax.random.key(0), jnp.broadcast_to(log_pi, (100_000, 4)))
        assert draws.dtype == jnp.int32
        frequency = np.bincount(draws, minlength=4) / draws.size
        expected = np.exp(np.asarray(log_pi, float))
        noise = np.sqrt(expected * (1 - expected) / draws.size)
        assert (np.abs(frequency - expected) <= 5 * noise + 0.005 * (dtype == jnp.bfloat16)).all()
        assert frequency[3] == 0


def test_one_key_per_state() -> None:
    log_pi = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), [3, 5, 4]))
    keys = jax.random.split(jax.random.key(1), (3, 5))
    drawn = jaxsoft.sample_actions(keys, log_pi)
    assert drawn.dtype == jnp.int32
    for i, j in np.ndindex(3, 5):
        assert drawn[i, j] == jaxsoft.sample_actions(keys[i, j], log_pi[i, j])
    raw = jax.random.key_data(keys)
    np.testing.assert_array_equal(jaxsoft.sample_actions(raw, log_pi), drawn)
    np.testing.assert_array_equal(
        jaxsoft.sample_actions(raw[0, 0], log_pi), jaxsoft.sample_actions(keys[0, 0], log_pi)
    )


def test_half_precision_does_not_starve_rare_actions() -> None:
    """Gumbel noise of bfloat16 would hardly ever draw the last action."""
    log_pi = jnp.log(jnp.asarray([0.9, 0.09, 0.009, 0.001])).astype(jnp.bfloat16)
    expected = np.exp(np.asarray(log_pi, float))
    expected /= expected.sum()
    draws = jaxsoft.sample_actions(jax.random.key(0), jnp.broadcast_to(log_pi, (200_000, 4)))
    frequency = np.bincount(draws, minlength=4) / draws.size
    noise = np.sqrt(expected * (1 - expected) / draws.size)
    assert (np.abs(frequency - expected) <= 5 * noise).all()
