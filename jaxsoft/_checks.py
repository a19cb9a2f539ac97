"""Mistakes in shape, rank and dtype, caught at the public functions.

Every message says what was given, what was expected and how to mend it. Checks read static
properties only, except that hyperparameters and actions which are concrete (not being traced)
are also checked for their values.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike


def fail(function: str, given: str, expected: str, mend: str) -> ValueError:
    return ValueError(f"jaxsoft.{function}: given {given}; expected {expected}. {mend}")


def concrete(x: object) -> bool:
    return not isinstance(x, jax.core.Tracer)


def floating(function: str, name: str, x: ArrayLike) -> Array:
    """`x` as an array of a floating dtype; Python numbers are welcome, integer arrays are not."""
    if isinstance(x, (bool, int, float)):
        return jnp.asarray(float(x))
    array = jnp.asarray(x)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"jaxsoft.{function}: given `{name}` of dtype {array.dtype}; expected a floating "
            f"dtype. Cast it: {name}.astype(jnp.float32)."
        )
    return array


def at_least(function: str, name: str, x: ArrayLike, bound: float) -> None:
    """A hyperparameter that is concrete must not be below `bound`, nor NaN."""
    if concrete(x) and not bool(np.all(np.asarray(x) >= bound)):
        raise fail(
            function,
            f"`{name}` = {x}",
            f"{name} >= {bound:g}",
            f"Pass a {name} of at least {bound:g}.",
        )


def count(function: str, name: str, n: object) -> int:
    """A static count of at least one."""
    if isinstance(n, (bool, np.bool_)) or not isinstance(n, (int, np.integer)):
        raise TypeError(
            f"jaxsoft.{function}: given `{name}` = {n!r} of type {type(n).__name__}; expected a "
            f"Python int, since it fixes the program's structure. Mark it static "
            f"(static_argnames={name!r}) where the call is jitted."
        )
    if n < 1:
        raise fail(
            function, f"`{name}` = {n}", f"{name} >= 1", "One step is the shortest lookahead."
        )
    return int(n)


def common_shape(function: str, **arrays: Array) -> tuple[int, ...]:
    """The common shape [T, ...] of per-step arrays; scalars go with every shape."""
    shapes = {name: x.shape for name, x in arrays.items() if x.ndim}
    given = ", ".join(f"`{name}` {list(shape)}" for name, shape in shapes.items())
    if not shapes:
        raise fail(
            function,
            "scalars only (" + ", ".join(f"`{name}`" for name in arrays) + ")",
            "arrays whose axis 0 is time, [T, ...]",
            "Add the time axis: x[None].",
        )
    if len({len(shape) for shape in shapes.values()}) > 1:
        raise fail(
            function,
            given,
            "the same number of axes everywhere, axis 0 being time",
            "Add the missing axes explicitly, e.g. x[:, None] for a [T] array beside [T, B].",
        )
    if len({shape[0] for shape in shapes.values()}) > 1:
        raise fail(
            function,
            given,
            "the same length T along axis 0 (time)",
            "T transitions take x[:-1] for their starts (`_tm1`) and x[1:] for their ends (`_t`) "
            "of the T + 1 states' values.",
        )
    try:
        return np.broadcast_shapes(*shapes.values())
    except ValueError:
        raise fail(
            function,
            given,
            "batch axes that are equal or 1",
            "Check which axes are batch axes.",
        ) from None


def action_values(function: str, name: str, x: Array, *, time: bool = True) -> None:
    """Values are [..., A], or [T, ..., A] where there must be a time axis."""
    if x.ndim < 1 + time:
        axes, mend = ("[T, ..., A]", "x[None]") if time else ("[..., A]", "jnp.stack(values)")
        raise fail(
            function,
            f"`{name}` {list(x.shape)}",
            f"{axes}: {'axis 0 is time and ' if time else ''}the last axis is actions",
            f"Add the missing axis: {mend}.",
        )
    if x.shape[-1] == 0:
        raise fail(
            function,
            f"`{name}` {list(x.shape)}",
            "at least one action along the last axis",
            "Check the network's number of outputs.",
        )


def states(function: str, name: str, x: ArrayLike, step_name: str, step: ArrayLike) -> Array:
    """Values at the T + 1 states of a rollout of T transitions, of which `step` is an array."""
    array = floating(function, name, x)
    steps = jnp.shape(step)[:1]
    if not steps or array.ndim == 0 or array.shape[0] != steps[0] + 1:
        raise fail(
            function,
            f"`{name}` {list(array.shape)} beside `{step_name}` {list(jnp.shape(step))}",
            "T + 1 entries along axis 0 for T transitions: the states before and after each",
            "Evaluate the network on the rollout's observations and the one after the last.",
        )
    return array


def actions(function: str, name: str, a: ArrayLike, values_name: str, values: Array) -> Array:
    """Action indices [T, ...] which belong to `values` [T, ..., A]."""
    array = jnp.asarray(a)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(
            f"jaxsoft.{function}: given `{name}` of dtype {array.dtype}; expected integer action "
            f"indices. Cast them: {name}.astype(jnp.int32)."
        )
    if array.shape != values.shape[:-1]:
        raise fail(
            function,
            f"`{name}` {list(array.shape)} beside `{values_name}` {list(values.shape)}",
            f"`{name}` {list(values.shape[:-1])}, one action a step",
            f"`{values_name}` has one more axis than `{name}`, the actions, and the same others.",
        )
    if concrete(a) and array.size:
        low, high = int(np.min(np.asarray(a))), int(np.max(np.asarray(a)))
        if low < 0 or high >= values.shape[-1]:
            raise fail(
                function,
                f"`{name}` from {low} to {high}",
                f"indices from 0 to {values.shape[-1] - 1}, the last axis of `{values_name}`",
                "Check the order of the arguments and the number of actions.",
            )
    return array


class Sequences(NamedTuple):
    """Checked per-step arrays in the computing dtype, their common shape, the result's dtype."""

    arrays: tuple[Array, ...]
    shape: tuple[int, ...]
    dtype: np.dtype


def sequences(function: str, **inputs: ArrayLike) -> Sequences:
    """Per-step floating arrays [T, ...] and scalars, ready to be combined."""
    arrays = {name: floating(function, name, x) for name, x in inputs.items()}
    shape = common_shape(function, **arrays)
    dtype = result_dtype(*arrays.values())
    compute = computing_dtype(dtype)
    return Sequences(tuple(x.astype(compute) for x in arrays.values()), shape, dtype)


def result_dtype(*arrays: Array) -> np.dtype:
    """The dtype of a result: that of its arrays; scalars (hyperparameters) never widen it."""
    ranked = [x for x in arrays if x.ndim] or list(arrays)
    return jnp.result_type(*ranked)


def computing_dtype(dtype: np.dtype) -> np.dtype:
    """Half precision is for storage: exponentials and long sums need at least float32."""
    return jnp.promote_types(dtype, jnp.float32)
