"""What the losses share: the action taken, what is held fixed, the squared error."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _checks, boltzmann
from jaxsoft._typing import Float, Integer

__all__ = ["take_action"]


def take_action(
    values: Float[ArrayLike, "T *#B A"], a: Integer[ArrayLike, "T *#B"]
) -> Float[Array, "T *B"]:
    """The entry of each step's action, values[..., a].

    A masked sum instead of a gather, whose gradient would be a scatter; an index outside the
    actions gives NaN rather than a neighbour's value.

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
    a = _checks.actions(function, a_name, a, name, values)
    # In 8 bits one could not count to 128.
    a = a.astype(jnp.promote_types(a.dtype, jnp.int32))
    index = jax.lax.broadcasted_iota(a.dtype, values.shape, values.ndim - 1)
    chosen = index == a[..., None]
    taken = jnp.sum(jnp.where(chosen, values, 0), axis=-1)
    return jnp.where((a >= 0) & (a < values.shape[-1]), taken, jnp.nan)


def fixed(function: str, name: str, x: ArrayLike) -> Array:
    """The one place where a loss holds something fixed."""
    return jax.lax.stop_gradient(_checks.floating(function, name, x))


def half_square(function: str, **pair: ArrayLike) -> Array:
    args = _checks.sequences(function, **pair)
    prediction, target = args.arrays
    return (0.5 * jnp.square(prediction - target)).astype(args.dtype)


def log_ratio(
    function: str,
    log_pi: ArrayLike,
    a: ArrayLike,
    log_prior: ArrayLike | None,
    name: str = "log_pi_tm1",
) -> Array:
    """Log π(a) − log π̄(a)."""
    _checks.arguments(function, log_prior=log_prior)
    return take(function, name, boltzmann.log_ratio(function, name, log_pi, log_prior), a)
