"""What the losses share: the action taken, what is held fixed, the squared error."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _actions, _checks, boltzmann
from jaxsoft._typing import Float, Integer

__all__ = ["take_action"]


def take_action(
    values: Float[ArrayLike, "T *#B A"], a: Integer[ArrayLike, "T *#B"]
) -> Float[Array, "T *B"]:
    """The entry of each step's action, values[..., a].

    Its gradient is a choice, not the scatter of a gather; an index outside the actions gives NaN
    rather than a neighbour's value.

    Args:
      values: [T, ..., A].
      a: action indices [T, ...].

    Returns:
      [T, ...].
    """
    return take("take_action", "values", values, a, "a")


def take(function: str, name: str, values: ArrayLike, a: ArrayLike, a_name: str = "a_tm1") -> Array:
    values = _checks.floating(function, name, values)
    _checks.action_values(function, name, values)
    return taken(values, _checks.actions(function, a_name, a, name, values))


@jax.custom_jvp
def taken(values: Array, a: Array) -> Array:
    # In 8 bits one could not count to 128.
    a = a[..., None].astype(jnp.promote_types(a.dtype, jnp.int32))
    found = jax.lax.platform_dependent(values, a, cpu=_gathered, default=_picked)
    return jnp.where((a >= 0) & (a < values.shape[-1]), found, jnp.nan)[..., 0]


@taken.defjvp
def _taken_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    values, a = primals
    chosen = _is_taken(values, a[..., None].astype(jnp.promote_types(a.dtype, jnp.int32)))
    return taken(values, a), jnp.sum(jnp.where(chosen, tangents[0], 0), axis=-1)


def taken_of_states(values: Array, a: Array) -> Array:
    """The values [T+1, ..., A] at the actions [T, ...], and at some action in the last state.

    Of the same shape, it is one pass over the values together with all that is made of them, and
    their gradient, of their own shape, needs no padding.
    """
    return taken(values, jnp.concatenate([a, jnp.zeros_like(a[:1])]))


def _gathered(values: Array, a: Array) -> Array:
    return jnp.take_along_axis(values, a, axis=-1, mode="clip")


def _picked(values: Array, a: Array) -> Array:
    if values.shape[-1] > _actions.MOST:
        return jnp.sum(jnp.where(_is_taken(values, a), values, 0), axis=-1, keepdims=True)
    each = enumerate(_actions.singles(values))
    return functools.reduce(jnp.add, (jnp.where(a == i, value, 0) for i, value in each))


def _is_taken(values: Array, a: Array) -> Array:
    return jax.lax.broadcasted_iota(a.dtype, values.shape, values.ndim - 1) == a


def fixed(function: str, name: str, x: ArrayLike) -> Array:
    """The one place where a loss holds something fixed."""
    return jax.lax.stop_gradient(_checks.floating(function, name, x))


def half_square(function: str, **pair: ArrayLike) -> Array:
    args = _checks.sequences(function, **pair)
    prediction, target = args.arrays
    return (0.5 * jnp.square(prediction - target)).astype(args.dtype)


def log_ratio(
    function: str,
    log_pi_a: Array,
    log_pi: ArrayLike,
    a: ArrayLike,
    log_prior: ArrayLike | None,
    name: str = "log_pi_tm1",
) -> Array:
    """Log π(a) − log π̄(a), where `log_pi_a` is what `log_pi` says of the actions."""
    _checks.arguments(function, log_prior=log_prior)
    log_pi, prior, dtype = boltzmann.pair(function, name, log_pi, log_prior)
    if prior.ndim:
        prior = take(function, name, jnp.broadcast_to(prior, log_pi.shape), a)
    return boltzmann.log_ratio(log_pi_a.astype(prior.dtype), prior).astype(dtype)
