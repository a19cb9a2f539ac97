"""Actions that are real numbers within bounds, and what networks are told of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoft import _checks, squashed

__all__ = ["Box", "box"]


class Box(NamedTuple):
    """Actions [*A] within bounds, of D numbers each.

    Attributes:
      one: shape and dtype of an action.
      size: D.
      outer: u [..., D], before the squash -> actions [..., *A].
      inner: actions [..., *A] -> the same in units of their box, tanh u, in (−1, 1) [..., D].
      random: (keys [N]) -> actions of the uniform distribution [N, *A].
    """

    one: jax.ShapeDtypeStruct
    size: int
    outer: Callable[[Array], Array]
    inner: Callable[[Array], Array]
    random: Callable[[Array], Array]


def box(name: str, low: Any, high: Any, dtype: Any) -> Box:
    """The box between two bounds.

    Args:
      name: of what asks for it, for errors.
      low: least actions [*A].
      high: greatest actions [*A].
      dtype: of an action.
    """
    low, high = np.broadcast_arrays(np.asarray(low), np.asarray(high))
    if not (low.size and np.all(np.isfinite(low) & np.isfinite(high) & (low < high))):
        raise _checks.fail(
            name,
            f"bounds {low.tolist()} and {high.tolist()}",
            "finite numbers, the least below the greatest",
            "Give bounds: the policy is uniform within them at first.",
        )
    centre, scale = (high + low) / 2, (high - low) / 2

    def outer(u: Array) -> Array:
        action = squashed.action(u, low.ravel(), high.ravel())
        return action.reshape(u.shape[:-1] + low.shape).astype(dtype)

    def inner(action: Array) -> Array:
        batch = action.shape[: action.ndim - low.ndim]
        wide = action.astype(_checks.computing_dtype(action.dtype))
        middle = wide - jnp.broadcast_to(centre, wide.shape)
        return (middle / jnp.broadcast_to(scale, wide.shape)).reshape(*batch, -1)

    def random(keys: Array) -> Array:
        return jax.vmap(
            lambda key: jax.random.uniform(key, low.shape, minval=low, maxval=high).astype(dtype)
        )(keys)

    one = jax.ShapeDtypeStruct(low.shape, jax.dtypes.canonicalize_dtype(dtype))
    return Box(one, low.size, outer, inner, random)
