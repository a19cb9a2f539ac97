"""Mistakes in shape, rank and dtype, caught at the public functions.

Every message is a sentence on what must hold and what was given, and one on how to fix it. Checks
read static properties only, except that hyperparameters and actions which are concrete (not being
traced) are also checked for their values.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike


def sentence(function: str, given: str, expected: str, fix: str) -> str:
    return f"{function}: expected {expected}, got {given}. {fix}"


def fail(function: str, given: str, expected: str, fix: str) -> ValueError:
    """The error to raise for a shape or a value."""
    return ValueError(sentence(function, given, expected, fix))


def concrete(x: object) -> bool:
    return not isinstance(x, jax.core.Tracer)


def floating(function: str, name: str, x: ArrayLike) -> Array:
    """`x` as an array of a floating dtype; Python numbers are welcome, integer arrays are not."""
    if isinstance(x, (bool, int, float)):
        return jnp.asarray(float(x))
    array = jnp.asarray(x)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            sentence(
                function,
                str(array.dtype),
                f"{name} to have a floating dtype",
                f"Cast it: {name}.astype(jnp.float32).",
            )
        )
    return array


def at_least(function: str, name: str, x: ArrayLike, bound: float) -> None:
    """A hyperparameter that is concrete must not be below `bound`, nor NaN."""
    if concrete(x) and not bool(np.all(np.asarray(x) >= bound)):
        raise fail(function, str(x), f"{name} >= {bound:g}", f"Raise {name} to {bound:g} or more.")


def count(function: str, name: str, n: object) -> int:
    """A static count of at least one."""
    if isinstance(n, (bool, np.bool_)) or not isinstance(n, (int, np.integer)):
        raise TypeError(
            sentence(
                function,
                f"{n!r} of type {type(n).__name__}",
                f"{name} to be a Python int, since it fixes the program's structure",
                f"Where the call is jitted, make it static: static_argnames={name!r}.",
            )
        )
    if n < 1:
        raise fail(function, str(n), f"{name} >= 1", f"Raise {name} to 1 or more.")
    return int(n)


def common_shape(function: str, **arrays: Array) -> tuple[int, ...]:
    """The common shape [T, ...] of per-step arrays; scalars fit every shape."""
    shapes = {name: x.shape for name, x in arrays.items() if x.ndim}
    if not shapes:
        raise fail(
            function,
            "scalars alone",
            f"one of {', '.join(arrays)} to be an array [T, ...], whose axis 0 is time",
            "Add the time axis: x[None].",
        )
    for (one, x), (other, y) in itertools.combinations(shapes.items(), 2):
        if len(x) != len(y):
            raise fail(
                function,
                f"{list(x)} and {list(y)}",
                f"{one} and {other} to have the same number of axes, of which axis 0 is time",
                "Add the missing axes explicitly, e.g. x[:, None] for a [T] array beside [T, B].",
            )
        if x[0] != y[0]:
            raise fail(
                function,
                f"{x[0]} and {y[0]}",
                f"{one} and {other} to have the same length along time",
                "For values at T + 1 states pass v_tm1=v[:-1] and v_t=v[1:].",
            )
        if any(m != n and 1 not in (m, n) for m, n in zip(x, y, strict=True)):
            raise fail(
                function,
                f"{list(x)} and {list(y)}",
                f"{one} and {other} to have batch axes that are equal or 1",
                "Check which axes are batch axes.",
            )
    return np.broadcast_shapes(*shapes.values())


def action_values(function: str, name: str, x: Array, *, time: bool = True) -> None:
    """Values are [..., A], or [T, ..., A] where there must be a time axis."""
    if x.ndim < 1 + time:
        axes, first = ("[T, ..., A]", "axis 0 is time and ") if time else ("[..., A]", "")
        fix = "x[None]" if time else "jnp.stack(values)"
        raise fail(
            function,
            str(list(x.shape)),
            f"{name} to be {axes}, where {first}the last axis is actions",
            f"Add the missing axis: {fix}.",
        )
    if x.shape[-1] == 0:
        raise fail(
            function,
            str(list(x.shape)),
            f"{name} to have at least one action along the last axis",
            "Check the network's number of outputs.",
        )


def states(function: str, name: str, x: ArrayLike, step_name: str, step: ArrayLike) -> Array:
    """Values at the T + 1 states of a rollout of T transitions, of which `step` is an array."""
    array = floating(function, name, x)
    steps = jnp.shape(step)[:1]
    if not steps or array.ndim == 0 or array.shape[0] != steps[0] + 1:
        raise fail(
            function,
            f"{list(array.shape)} and {list(jnp.shape(step))}",
            f"{name} to have one more entry along time than {step_name}",
            "Evaluate the network at all T + 1 states: those of the T actions and the one after.",
        )
    return array


def actions(function: str, name: str, a: ArrayLike, values_name: str, values: Array) -> Array:
    """Action indices [T, ...] which belong to `values` [T, ..., A]."""
    array = jnp.asarray(a)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(
            sentence(
                function,
                str(array.dtype),
                f"{name} to be integer action indices",
                f"Cast them: {name}.astype(jnp.int32).",
            )
        )
    if array.shape != values.shape[:-1]:
        raise fail(
            function,
            f"{list(array.shape)} and {list(values.shape)}",
            f"{name} [T, ...] to hold one action per step of {values_name} [T, ..., A]",
            f"{values_name} has one more axis than {name}, the actions, and the same others.",
        )
    if concrete(a) and array.size:
        low, high = int(np.min(np.asarray(a))), int(np.max(np.asarray(a)))
        if low < 0 or high >= values.shape[-1]:
            raise fail(
                function,
                f"indices from {low} to {high}",
                f"{name} to index the {values.shape[-1]} actions of {values_name}",
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
