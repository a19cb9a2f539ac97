"""Boltzmann algebra: action values <-> policies, over the last axis.

Everything is relative to a prior π̄, which may be any non-negative measure over actions:

====================  ==============================  ==========================================
`log_prior`           measure                         regulariser
====================  ==============================  ==========================================
`None`                uniform, π̄(a) = 1/|A|           KL penalty against uniform, eq. (82)
`0.0`                 counting, π̄(a) = 1              entropy bonus: KL = −entropy, eq. (83)
an array              any, also per state             KL to that prior
`-inf` in an array    no measure on that action       the action is masked
====================  ==============================  ==========================================

and τ = 0 is the hard maximum over the allowed actions, eq. (81). So the soft and the hard, the
penalty and the bonus, the masked and the unmasked are one function each.

Half-precision inputs are computed in float32 and returned in their own dtype; scalars (τ) never
widen the result. At least one action must be allowed in each state.

Reference: Schulman, Chen and Abbeel (2017), *Equivalence Between Policy Gradients and Soft
Q-Learning*, sections 2 and 3.2; equation numbers throughout are the paper's.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _actions, _checks
from jaxsoft._actions import Parts
from jaxsoft._typing import Float, Integer, Key

__all__ = [
    "kl_to_prior",
    "log_policy",
    "policy_value",
    "q_from_policy",
    "sample_actions",
    "soft_value",
]


def soft_value(
    q: Float[ArrayLike, "*#B A"],
    tau: Float[ArrayLike, "*#B"],
    log_prior: Float[ArrayLike, "..."] | None = None,
) -> Float[Array, "*B"]:
    """Soft state value: the log-partition function of the action values.

        V_Q(s) = τ log Σ_a π̄(a|s) exp(Q(s,a)/τ)                                  (29), (11), (55)

    Exact at τ = 0, where it is the maximum over the allowed actions. Its derivatives are
    ∂V/∂Q = π_Q and ∂V/∂τ = −KL[π_Q‖π̄], finite at every τ ≥ 0.

    Args:
      q: action values [..., A].
      tau: temperature τ ≥ 0, a scalar or one axis fewer than `q` (each equal or 1).
      log_prior: log π̄, broadcasting against `q`; `None` is uniform, `0.0` counting.

    Returns:
      [...], in the dtype of `q`.

    Correction: (11) prints exp(q)/τ where exp(q/τ) is meant; (55) is an expectation over π̄.
    """
    return value("soft_value", "q", q, tau, log_prior)


def log_policy(
    q: Float[ArrayLike, "*#B A"],
    tau: Float[ArrayLike, "*#B"],
    log_prior: Float[ArrayLike, "..."] | None = None,
) -> Float[Array, "*B A"]:
    """Log-probabilities of the Boltzmann policy.

        log π_Q(a|s) = log π̄(a|s) + (Q(s,a) − V_Q(s))/τ              (28), (30), (10), (12), (56)

    Masked actions get −inf. At τ = 0 the policy is π̄ restricted to the maximising actions and
    its derivative is zero, as it is almost everywhere.

    Args:
      q: action values [..., A].
      tau: temperature τ ≥ 0, a scalar or one axis fewer than `q` (each equal or 1).
      log_prior: log π̄, broadcasting against `q`; `None` is uniform, `0.0` counting.

    Returns:
      [..., A], in the dtype of `q`; exponentiated, it sums to one for any prior measure.
    """
    args, dtype = _enter("log_policy", q, tau, log_prior)
    return _log_policy(*args).astype(dtype)


def kl_to_prior(
    log_pi: Float[ArrayLike, "*#B A"], log_prior: Float[ArrayLike, "..."] | None = None
) -> Float[Array, "*B"]:
    """Divergence of a policy from the prior; minus the entropy when `log_prior` is `0.0`.

        KL(s) = Σ_a π(a|s) (log π(a|s) − log π̄(a|s))                                  (1), (26)

    An action with π(a) = 0 contributes nothing, also where it is masked; π(a) > 0 on a masked
    action gives +inf.

    Args:
      log_pi: log-probabilities [..., A].
      log_prior: log π̄, broadcasting against `log_pi`; `None` is uniform, `0.0` counting.

    Returns:
      [...], in the dtype of `log_pi`.
    """
    return kl("kl_to_prior", "log_pi", log_pi, log_prior)


def policy_value(
    q: Float[ArrayLike, "*#B A"],
    log_pi: Float[ArrayLike, "*#B A"],
    tau: Float[ArrayLike, "*#B"],
    log_prior: Float[ArrayLike, "..."] | None = None,
) -> Float[Array, "*B"]:
    """Soft state value of any policy, Boltzmann or not.

        V_π(s) = Σ_a π(a|s) Q(s,a) − τ KL[π‖π̄](s)                             (26), (33), (31)

    It is at most `soft_value`, with equality at the Boltzmann policy, (27). As the objective of
    a bandit with mean rewards `q` it is η(π) of (1).

    Args:
      q: action values [..., A]; those of actions with π(a) = 0 are not used.
      log_pi: log-probabilities, of the shape of `q`.
      tau: temperature τ ≥ 0, a scalar or one axis fewer than `q` (each equal or 1).
      log_prior: log π̄, broadcasting against `q`; `None` is uniform, `0.0` counting.

    Returns:
      [...], in the dtype of `q`.
    """
    (q, tau, _), dtype = _enter("policy_value", q, tau, log_prior)
    log_pi = _checks.floating("policy_value", "log_pi", log_pi)
    _checks.same_shape("policy_value", "log_pi", log_pi, "q", q.shape)
    pi = jnp.exp(log_pi.astype(q.dtype))
    expected_q = _expectation(pi, q)
    divergence = kl("policy_value", "log_pi", log_pi.astype(q.dtype), log_prior)[..., None]
    return (expected_q - tau * divergence)[..., 0].astype(dtype)


def q_from_policy(
    value: Float[ArrayLike, "*#B"],
    log_pi: Float[ArrayLike, "*#B A"],
    tau: Float[ArrayLike, "*#B"],
    log_prior: Float[ArrayLike, "..."] | None = None,
) -> Float[Array, "*B A"]:
    """Action values of which `value` is the soft value and `log_pi` the Boltzmann policy.

        Q(s,a) = V(s) + τ (log π(a|s) − log π̄(a|s))                                   (57), (14)

    The inverse of (`soft_value`, `log_policy`). An action with π(a) = 0 gets −inf.

    Args:
      value: state values [...].
      log_pi: log-probabilities [..., A].
      tau: temperature τ ≥ 0, a scalar or of the rank of `value` (axes equal or 1).
      log_prior: log π̄, broadcasting against `log_pi`; `None` is uniform, `0.0` counting.

    Returns:
      [..., A], in the dtype of `value` and `log_pi`.
    """
    value = _checks.floating("q_from_policy", "value", value)
    (log_pi, tau, log_prior), dtype = _enter("q_from_policy", log_pi, tau, log_prior, name="log_pi")
    if value.shape != log_pi.shape[:-1]:
        raise _checks.fail(
            "q_from_policy",
            f"{list(value.shape)} and {list(log_pi.shape)}",
            "value [...] to hold one number per state of log_pi [..., A]",
            "Drop a trailing axis of size one from the value head: value[..., 0].",
        )
    dtype = jnp.promote_types(value.dtype, dtype) if value.ndim else dtype
    taken, ratio = _log_ratio(log_pi, log_prior)
    q = value.astype(log_pi.dtype)[..., None] + tau * ratio
    return jnp.where(taken, q, -jnp.inf).astype(dtype)


def sample_actions(
    key: Key[Array, "*#B"], log_pi: Float[ArrayLike, "*#B A"]
) -> Integer[Array, "*B"]:
    """Actions drawn from a policy, one per state; those with π(a) = 0 are never drawn.

    Args:
      key: a JAX random key, used once; or one per state, [...].
      log_pi: log-probabilities [..., A] (of `log_policy`, say).

    Returns:
      int32 [...].
    """
    log_pi = _checks.floating("sample_actions", "log_pi", log_pi)
    _checks.action_values("sample_actions", "log_pi", log_pi, time=False)
    # Gumbel noise in half precision has too few values: it would bias the draws.
    logits = log_pi.astype(_checks.computing_dtype(log_pi.dtype))
    key = _checks.keys("sample_actions", "key", key)
    if key.shape not in ((), logits.shape[:-1]):
        raise _checks.fail(
            "sample_actions",
            f"{list(key.shape)} and {list(logits.shape)}",
            "key to be one key, or one per state of log_pi, without its last axis",
            "Split it: jax.random.split(key, log_pi.shape[:-1]).",
        )
    draw = jax.random.categorical
    for _ in key.shape:
        draw = jax.vmap(draw)
    return draw(key, logits).astype(jnp.int32)


def value(
    function: str, name: str, q: ArrayLike, tau: ArrayLike, log_prior: ArrayLike | None
) -> Array:
    """`soft_value`, of what another function calls `name`."""
    args, dtype = _enter(function, q, tau, log_prior, name=name)
    return _soft_value(*args)[..., 0].astype(dtype)


def kl(function: str, name: str, log_pi: ArrayLike, log_prior: ArrayLike | None) -> Array:
    """`kl_to_prior`, of what another function calls `name`."""
    log_pi, log_prior, dtype = pair(function, name, log_pi, log_prior)
    return _kl(log_pi, log_prior)[..., 0].astype(dtype)


def value_and_kl(
    function: str, name: str, q: ArrayLike, tau: ArrayLike, log_prior: ArrayLike | None
) -> tuple[Array, ArrayLike]:
    """`soft_value`, and the Boltzmann policy's `kl_to_prior`, [...] each, from one exponential.

    Targets are made of these. The derivatives are those of the arithmetic, not exact at τ = 0,
    where a static τ gives a divergence of zero, since nothing depends on it.
    """
    args, dtype = _enter(function, q, tau, log_prior, name=name)
    if _checks.concrete(tau) and np.all(np.asarray(tau) == 0):
        return _top(args[0], args[2])[..., 0].astype(dtype), 0.0
    b = _boltzmann(*args)
    value, kl = _value(b, args[1]), _kl_of_boltzmann(b)
    return value[..., 0].astype(dtype), kl[..., 0].astype(dtype)


def log_prior_of(log_prior: ArrayLike | None, number_of_actions: int) -> ArrayLike:
    """The measure that `None` stands for, made explicit."""
    return -math.log(number_of_actions) if log_prior is None else log_prior


def _enter(
    function: str, q: ArrayLike, tau: ArrayLike, log_prior: ArrayLike | None, name: str = "q"
) -> tuple[tuple[Array, Array, Array], jnp.dtype]:
    """Checks and broadcasts; returns ((q [..., A], tau [..., 1] or [], log π̄), result dtype)."""
    q, log_prior, dtype = pair(function, name, q, log_prior)
    tau = _checks.floating(function, "tau", tau).astype(q.dtype)
    if tau.ndim:
        batch = q.shape[:-1]
        if tau.ndim != len(batch) or any(
            n not in (1, m) for n, m in zip(tau.shape, batch, strict=True)
        ):
            raise _checks.fail(
                function,
                str(list(tau.shape)),
                f"tau to be a scalar, or {list(batch)} with any axis 1, for {name} {list(q.shape)}",
                "Reshape tau, or vmap over it.",
            )
        tau = tau[..., None]
    return (q, tau, log_prior), dtype


def pair(
    function: str, name: str, x: ArrayLike, log_prior: ArrayLike | None
) -> tuple[Array, Array, jnp.dtype]:
    """`x` [..., A] and log π̄, a scalar or of the rank of `x`, in the computing dtype."""
    array = _checks.floating(function, name, x)
    _checks.action_values(function, name, array, time=False)
    actions = array.shape[-1]
    prior = _checks.floating(function, "log_prior", log_prior_of(log_prior, actions))
    dtype = _checks.result_dtype(array, prior)
    compute = _checks.computing_dtype(dtype)
    array, prior = array.astype(compute), prior.astype(compute)
    if prior.ndim == 0:
        return array, prior, dtype
    try:
        shape = np.broadcast_shapes(array.shape, prior.shape)
    except ValueError:
        shape = ()
    if not shape or shape[-1] != actions:
        raise _checks.fail(
            function,
            str(list(prior.shape)),
            f"a log_prior that broadcasts against {name} {list(array.shape)}",
            f"Its last axis is actions, {actions} or 1; add batch axes in front of it.",
        )
    prior = prior.reshape((1,) * (len(shape) - prior.ndim) + prior.shape)
    return (
        jnp.broadcast_to(array, shape),
        jnp.broadcast_to(prior, (*prior.shape[:-1], actions)),
        dtype,
    )


class _Boltzmann(NamedTuple):
    """What there is to say of a state, [..., 1]: all else follows without another reduction."""

    top: Array  # max of the allowed q
    log_mass: Array  # log Σ_a π̄(a)
    log_mean: Array  # log of the mean of exp(scaled) under the normalised prior
    log_norm: Array  # log π is scaled (plus log of the normalised prior, if not scalar) less this
    mean: Array  # Σ_a π(a) scaled(a)


def _boltzmann(q: Array, tau: Array, log_prior: Array) -> _Boltzmann:
    """The one computation under `soft_value` and `log_policy`."""
    form = _of_scalar_prior if log_prior.ndim == 0 else _of_prior
    return _Boltzmann(*_actions.statistics(form, (q, log_prior), tau))


def _top(q: Array, log_prior: Array) -> Array:
    top: Array = _actions.statistics(_largest_allowed, (q, log_prior))
    return top


def _largest_allowed(q: Parts, log_prior: Parts | Array) -> Array:
    return _actions.largest(_actions.each(_allowed, q, log_prior))


def _allowed(q: Array, log_prior: Array) -> Array:
    return jnp.where(log_prior != -jnp.inf, q, -jnp.inf)


def _scaled(q: Array, log_prior: Array, tau: Array, top: Array) -> Array:
    """(q − top)/τ ≤ 0, and 0 on masked actions."""
    gap = jnp.where(log_prior != -jnp.inf, q, top) - top
    # At τ = 0 a gap of 0 stays 0, and any other is −∞. NaN passes every one of these tests.
    hard = jnp.where(gap < 0, -jnp.inf, gap)
    return jnp.where(tau == 0, hard, gap / jnp.where(tau == 0, 1, tau))


def _weighted(weight: Array, x: Array) -> Array:
    return weight * jnp.where(weight != 0, x, 0)


# For τ above the gaps the mean is 1 − O(gap/τ): τ log(mean) keeps its digits only as log1p of a
# sum of expm1. Where little of the prior is near the best action that sum nears −1 and loses them,
# and the usual log-sum-exp is the exact form.


def _of_scalar_prior(q: Parts, log_prior: Array, tau: Array) -> tuple[Array, ...]:
    each, total = _actions.each, _actions.total
    size = sum(part.shape[-1] for part in q)
    top = _largest_allowed(q, log_prior)
    scaled = each(_scaled, q, log_prior, tau, top)
    weights, log_size = each(jnp.exp, scaled), jnp.full((), math.log(size), top.dtype)
    mass, deficit = total(weights), total(each(_expm1, scaled, weights)) / size
    near, is_near = jnp.log1p(jnp.maximum(deficit, -0.5)), deficit > -0.5
    log_mean = jnp.where(is_near, near, jnp.log(mass) - log_size)
    log_norm = jnp.where(is_near, near + log_size, jnp.log(mass))
    mean = total(each(_weighted, weights, scaled)) / mass
    return top, jnp.broadcast_to(log_prior + log_size, top.shape), log_mean, log_norm, mean


def _of_prior(q: Parts, log_prior: Parts, tau: Array) -> tuple[Array, ...]:
    each, total = _actions.each, _actions.total
    top = _largest_allowed(q, log_prior)
    scaled = each(_scaled, q, log_prior, tau, top)
    log_mass = _log_sum_exp(log_prior)
    log_share = each(jnp.subtract, log_prior, log_mass)
    deficits = each(lambda share, x: jnp.exp(share) * _expm1(x, jnp.exp(x)), log_share, scaled)
    deficit = total(deficits)
    near = jnp.log1p(jnp.maximum(deficit, -0.5))
    far = _log_sum_exp(each(jnp.add, log_share, scaled))
    log_mean = jnp.where(deficit > -0.5, near, far)
    weights = each(lambda share, x: jnp.exp(x + (share - log_mean)), log_share, scaled)
    return top, log_mass, log_mean, log_mean, total(each(_weighted, weights, scaled))


def _expm1(x: Array, exp_x: Array) -> Array:
    """exp(x) − 1 of x ≤ 0, for which XLA would take another transcendental function."""
    if x.dtype != jnp.float32:
        return jnp.expm1(x)
    series = jnp.ones_like(x)
    for k in range(6, 1, -1):
        series = 1 + x / k * series
    return jnp.where(x > -0.25, x * series, exp_x - 1)


def _log_sum_exp(x: Parts) -> Array:
    top = _actions.largest(x)
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))
    return top + jnp.log(_actions.total(_actions.each(lambda x: jnp.exp(x - top), x)))


def _value(b: _Boltzmann, tau: Array) -> Array:
    return b.top + tau * (b.log_mass + b.log_mean)


def _kl_of_boltzmann(b: _Boltzmann) -> Array:
    return b.mean - (b.log_mass + b.log_mean)


@jax.custom_jvp
def _kl(log_pi: Array, log_prior: Array) -> Array:
    kl: Array = _actions.statistics(_kl_of, (log_pi, log_prior))
    return kl


@_kl.defjvp
def _kl_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    log_pi, log_prior = primals
    dlog_pi, dlog_prior = tangents
    pi = jnp.exp(log_pi)
    slope = pi * (jnp.where(pi != 0, log_pi - log_prior, 0) + 1)
    tangent = jnp.sum(slope * dlog_pi - pi * dlog_prior, axis=-1, keepdims=True)
    return _kl(log_pi, log_prior), tangent


def _kl_of(log_pi: Parts, log_prior: Parts | Array) -> Array:
    def term(log_pi: Array, log_prior: Array) -> Array:
        return _weighted(jnp.exp(log_pi), log_pi - log_prior)

    return _actions.total(_actions.each(term, log_pi, log_prior))


def log_ratio(log_pi: Array, log_prior: Array) -> Array:
    """Log π − log π̄, −inf where π(a) = 0."""
    taken, ratio = _log_ratio(log_pi, log_prior)
    return jnp.where(taken, ratio, -jnp.inf)


def _log_ratio(log_pi: Array, log_prior: Array) -> tuple[Array, Array]:
    """Where π(a) > 0, and log π − log π̄ there; 0 elsewhere."""
    taken = log_pi != -jnp.inf
    return taken, jnp.where(taken, log_pi, 0) - jnp.where(taken, log_prior, 0)


def _expectation(pi: Array, x: Array) -> Array:
    return jnp.sum(pi * jnp.where(pi != 0, x, 0), axis=-1, keepdims=True)


@jax.custom_jvp
def _soft_value(q: Array, tau: Array, log_prior: Array) -> Array:
    return _value(_boltzmann(q, tau, log_prior), tau)


@_soft_value.defjvp
def _soft_value_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    q, tau, log_prior = primals
    dq, dtau, dlog_prior = tangents
    b = _boltzmann(q, tau, log_prior)
    pi = jnp.exp(_log_policy(q, tau, log_prior))
    tangent = _expectation(pi, dq) - _kl_of_boltzmann(b) * dtau
    return _value(b, tau), tangent + tau * _expectation(pi, dlog_prior)


@jax.custom_jvp
def _log_policy(q: Array, tau: Array, log_prior: Array) -> Array:
    b = _boltzmann(q, tau, log_prior)
    scaled = _scaled(q, log_prior, tau, b.top)
    return (
        scaled - b.log_norm
        if log_prior.ndim == 0
        else scaled + (log_prior - b.log_mass - b.log_norm)
    )


@_log_policy.defjvp
def _log_policy_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    q, tau, log_prior = primals
    dq, dtau, dlog_prior = tangents
    b = _boltzmann(q, tau, log_prior)
    scaled = _scaled(q, log_prior, tau, b.top)
    log_pi = _log_policy(q, tau, log_prior)
    pi = jnp.exp(log_pi)
    # At τ = 0 the policy is piecewise constant: its derivative is zero, not 0/0.
    inverse = jnp.where(tau > 0, 1 / jnp.where(tau > 0, tau, 1), 0)
    # A ratio beyond the dtype's range belongs to an action with π(a) = 0: it must meet that
    # zero as a number, not as inf · 0.
    largest = jnp.finfo(q.dtype).max
    centred = jnp.maximum(scaled - b.mean, -largest)
    slope = jnp.clip(centred * inverse, -largest, largest)
    tangent = (
        (dq - _expectation(pi, dq)) * inverse
        - slope * dtau
        + (dlog_prior - _expectation(pi, dlog_prior))
    )
    return log_pi, jnp.where(log_pi == -jnp.inf, 0, tangent)
