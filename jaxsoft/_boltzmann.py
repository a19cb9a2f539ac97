"""What `boltzmann` computes with: statistics of each state, and derivatives of what they make.

Arrays here are checked and of the computing dtype: q [..., A], τ [..., 1] or [], and log π̄ a scalar
or of the rank of q; what there is to say of a state is [..., 1].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoft import _actions
from jaxsoft._actions import Parts

__all__ = [
    "Statistics",
    "divergence",
    "expectation",
    "kl",
    "log_policy",
    "log_ratio",
    "soft_value",
    "statistics",
    "top_of",
    "value",
]


class Statistics(NamedTuple):
    """What there is to say of a state, [..., 1]: all else follows without another reduction."""

    top: Array  # max of the allowed q
    log_mass: Array  # log Σ_a π̄(a)
    log_mean: Array  # log of the mean of exp(scaled) under the normalised prior
    log_norm: Array  # log π is scaled (plus log of the normalised prior, if not scalar) less this
    mean: Array  # Σ_a π(a) scaled(a)


def statistics(q: Array, tau: Array, log_prior: Array) -> Statistics:
    """The one computation under `soft_value` and `log_policy`."""
    form = _of_scalar_prior if log_prior.ndim == 0 else _of_prior
    return Statistics(*_actions.statistics(form, (q, log_prior), tau))


def top_of(q: Array, log_prior: Array) -> Array:
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


def value(b: Statistics, tau: Array) -> Array:
    return b.top + tau * (b.log_mass + b.log_mean)


def kl(b: Statistics) -> Array:
    return b.mean - (b.log_mass + b.log_mean)


@jax.custom_jvp
def divergence(log_pi: Array, log_prior: Array) -> Array:
    total: Array = _actions.statistics(_divergence_of, (log_pi, log_prior))
    return total


@divergence.defjvp
def _divergence_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    log_pi, log_prior = primals
    dlog_pi, dlog_prior = tangents
    pi = jnp.exp(log_pi)
    slope = pi * (jnp.where(pi != 0, log_pi - log_prior, 0) + 1)
    tangent = jnp.sum(slope * dlog_pi - pi * dlog_prior, axis=-1, keepdims=True)
    return divergence(log_pi, log_prior), tangent


def _divergence_of(log_pi: Parts, log_prior: Parts | Array) -> Array:
    def term(log_pi: Array, log_prior: Array) -> Array:
        return _weighted(jnp.exp(log_pi), log_pi - log_prior)

    return _actions.total(_actions.each(term, log_pi, log_prior))


def log_ratio(log_pi: Array, log_prior: Array) -> tuple[Array, Array]:
    """Where π(a) > 0, and log π − log π̄ there; 0 elsewhere."""
    taken = log_pi != -jnp.inf
    return taken, jnp.where(taken, log_pi, 0) - jnp.where(taken, log_prior, 0)


def expectation(pi: Array, x: Array) -> Array:
    return jnp.sum(pi * jnp.where(pi != 0, x, 0), axis=-1, keepdims=True)


@jax.custom_jvp
def soft_value(q: Array, tau: Array, log_prior: Array) -> Array:
    return value(statistics(q, tau, log_prior), tau)


@soft_value.defjvp
def _soft_value_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    q, tau, log_prior = primals
    dq, dtau, dlog_prior = tangents
    b = statistics(q, tau, log_prior)
    pi = jnp.exp(log_policy(q, tau, log_prior))
    tangent = expectation(pi, dq) - kl(b) * dtau
    return value(b, tau), tangent + tau * expectation(pi, dlog_prior)


@jax.custom_jvp
def log_policy(q: Array, tau: Array, log_prior: Array) -> Array:
    b = statistics(q, tau, log_prior)
    scaled = _scaled(q, log_prior, tau, b.top)
    return (
        scaled - b.log_norm
        if log_prior.ndim == 0
        else scaled + (log_prior - b.log_mass - b.log_norm)
    )


@log_policy.defjvp
def _log_policy_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    q, tau, log_prior = primals
    dq, dtau, dlog_prior = tangents
    b = statistics(q, tau, log_prior)
    scaled = _scaled(q, log_prior, tau, b.top)
    log_pi = log_policy(q, tau, log_prior)
    pi = jnp.exp(log_pi)
    # At τ = 0 the policy is piecewise constant: its derivative is zero, not 0/0.
    inverse = jnp.where(tau > 0, 1 / jnp.where(tau > 0, tau, 1), 0)
    # A ratio beyond the dtype's range belongs to an action with π(a) = 0: it must meet that
    # zero as a number, not as inf · 0.
    largest = jnp.finfo(q.dtype).max
    centred = jnp.maximum(scaled - b.mean, -largest)
    slope = jnp.clip(centred * inverse, -largest, largest)
    tangent = (
        (dq - expectation(pi, dq)) * inverse
        - slope * dtau
        + (dlog_prior - expectation(pi, dlog_prior))
    )
    return log_pi, jnp.where(log_pi == -jnp.inf, 0, tangent)
