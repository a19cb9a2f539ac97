"""Mistakes in shape, rank and dtype, caught at the public functions.

Every message is a sentence on what must hold and what was given, and one on how to fix it. Checks
read static properties only, except that hyperparameters and actions which are concrete (not being
traced) are also checked for their values.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple, TypeGuard

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
    """Whether the values of `x` can be read here: neither traced nor in another process."""
    return not isinstance(x, jax.core.Tracer) and getattr(x, "is_fully_addressable", True)


class _Range(NamedTuple):
    """What a hyperparameter may be, where it is concrete."""

    low: float
    high: float
    fix: str
    finite: bool = True

    def __str__(self) -> str:
        if np.isfinite(self.low) and np.isfinite(self.high):
            return f"in [{self.low:g}, {self.high:g}]"
        at_least = [f">= {self.low:g}"] if np.isfinite(self.low) else []
        return " and ".join(at_least + ["finite"] * self.finite)


# By role: one name has one meaning in all functions.
_RANGES = {
    "bandwidth": _Range(0, np.inf, "Pass a length such as 0.5, or None."),
    "clip_c": _Range(0, np.inf, "Infinity clips nothing.", finite=False),
    "clip_rho": _Range(0, np.inf, "Infinity clips nothing.", finite=False),
    "cut_t": _Range(0, 1, "It is 1 or True where a trajectory ends after that transition, else 0."),
    "damping": _Range(0, np.inf, "Pass the ridge of the Fisher matrix, such as 1e-3."),
    "discount": _Range(0, 1, "Pass a discount, such as 0.99."),
    "discount_t": _Range(0, 1, "Pass a discount, such as 0.99, and 0 at a termination."),
    "epsilon": _Range(0, np.inf, "It is the share of the new target, or an error to allow."),
    "high": _Range(-np.inf, np.inf, "Pass the greatest action of a bounded box."),
    "lambda_": _Range(0, 1, "At 0 one step is summed, at 1 the whole rollout."),
    "learning_starts": _Range(0, np.inf, "At 0 learning starts with the first rollout."),
    "low": _Range(-np.inf, np.inf, "Pass the least action of a bounded box."),
    "max_exponent": _Range(0, np.inf, "Infinity clips nothing.", finite=False),
    "mixing": _Range(0, 1, "It is the share of Q-learning."),
    "step_size": _Range(-np.inf, np.inf, "Pass the length of the natural gradient step."),
    "target_kl": _Range(-np.inf, np.inf, "Minus a target entropy is that of the counting measure."),
    "tau": _Range(0, np.inf, "At 0 the maximum is hard."),
    "tolerance": _Range(0, 1, "It bounds the relative residual."),
    "value_coef": _Range(-np.inf, np.inf, "Pass the weight of the value loss, such as 0.5."),
    "weight": _Range(0, np.inf, "Pass 0 for what does not count, and 1 for what does."),
}


def real(function: str, name: str, x: object) -> Array:
    """`x` as an array of real numbers, integers and booleans among them."""
    return _array(function, name, x, "real numbers", (jnp.floating, jnp.integer, jnp.bool_))


def floating(function: str, name: str, x: object) -> Array:
    """`x` as an array of a floating dtype; Python numbers are welcome, integer arrays are not."""
    x = float(x) if _is_number(x) else x
    return _array(function, name, x, "a floating dtype", (jnp.floating,))


def _array(function: str, name: str, x: Any, what: str, kinds: tuple[Any, ...]) -> Array:
    try:
        array = jnp.asarray(x)
    except (TypeError, ValueError, OverflowError):
        array = None
    if array is None or not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
        is_numeric = array is not None and jnp.issubdtype(array.dtype, jnp.number)
        raise TypeError(
            sentence(
                function,
                str(array.dtype) if array is not None else said(x),
                f"{name} to be an array of {what}",
                f"Cast it: {name}.astype(jnp.float32)."
                if is_numeric
                else "Pass a NumPy or JAX array, or a number.",
            )
        )
    in_range(function, name, x)
    return array


def in_range(function: str, name: str, x: object) -> None:
    """A hyperparameter that is concrete must be what its name allows, and not NaN."""
    allowed = _RANGES.get(name)
    if allowed is None or not concrete(x):
        return
    values = np.asarray(x)
    right = (values >= allowed.low) & (values <= allowed.high)
    wrong = values[~(right & (np.isfinite(values) | (not allowed.finite)))]
    if wrong.size:
        raise fail(function, f"{wrong.flat[0]}", f"{name} {allowed}", allowed.fix)


def arguments(function: str, **inputs: object) -> None:
    """Checks by role, at the function that was called and not deep in what it is made of."""
    steps: dict[str, Array] = {}
    for name, x in inputs.items():
        match name:
            case "n":
                count(function, name, x)
            case "cut_t" | "weight" | "log_prior" if x is None:
                pass
            case "log_prior":
                floating(function, name, x)
            case "a_tm1" | "cut_t" | "weight":
                steps[name] = real(function, name, x)
            case _:
                steps[name] = floating(function, name, x)
    if any(x.ndim for x in steps.values()):
        common_shape(function, **steps)


def scalar(function: str, name: str, x: object, *, positive: str = "") -> Array:
    """A hyperparameter that is one number, above 0 where `positive` says how to fix what is not."""
    array = floating(function, name, x)
    if array.ndim:
        raise fail(
            function, str(list(array.shape)), f"{name} to be a scalar", "Use vmap for several."
        )
    if positive and concrete(x) and not np.asarray(x) > 0:
        raise fail(function, str(x), f"{name} > 0", positive)
    return array


def same_shape(
    function: str, name: str, x: object, other: str, shape: tuple[int, ...], fix: str = ""
) -> Array:
    """`x` as an array of the very shape of `other`, where broadcasting would be a mistake."""
    array = real(function, name, x)
    if array.shape != shape:
        raise fail(
            function,
            f"{list(array.shape)} and {list(shape)}",
            f"{name} and {other} to have the same shape",
            fix or f"Broadcast it explicitly, if that is meant: jnp.broadcast_to({name}, …).",
        )
    return array


def callable_(function: str, name: str, x: object, signature: str) -> None:
    if not callable(x):
        raise TypeError(
            sentence(function, said(x), f"{name} to be a function, {signature}", "Pass one.")
        )


def keys(function: str, name: str, x: Any) -> Array:
    """Typed random keys, of such or of raw ones."""
    try:
        is_typed = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        array: Array = x if is_typed else jax.random.wrap_key_data(x)
    except (AttributeError, TypeError, ValueError):
        raise TypeError(
            sentence(function, said(x), f"{name} to be a JAX key", "Make one: jax.random.key(0).")
        ) from None
    return array


def _is_number(x: object) -> TypeGuard[float]:
    # An integer that no float holds is left to be refused.
    return isinstance(x, (bool, float)) or (isinstance(x, int) and abs(x) < 2**1000)


def flag(function: str, name: str, x: object) -> bool:
    """A static choice between two."""
    if not isinstance(x, (bool, np.bool_)):
        raise TypeError(
            sentence(function, said(x), f"{name} to be True or False", "Pass one of the two.")
        )
    return bool(x)


def axis(function: str, name: str, x: object, array_name: str, array: Array, least: int) -> int:
    """A static axis of an array, of at least so many entries."""
    if isinstance(x, (bool, np.bool_)) or not isinstance(x, (int, np.integer)):
        raise TypeError(
            sentence(
                function,
                said(x),
                f"{name} to be a Python int, since it fixes the program's structure",
                f"Where the call is jitted, make it static: static_argnames={name!r}.",
            )
        )
    if not -array.ndim <= x < array.ndim or array.shape[x] < least:
        raise fail(
            function,
            f"{said(x)} and {list(array.shape)}",
            f"{name} to be an axis of {array_name}, with at least {least} entries",
            "Check which axis holds what is compared.",
        )
    return int(x)


def said(x: object) -> str:
    match x:
        case None | str():
            return repr(x)
        case int():
            return repr(x) if _is_number(x) else "an integer that is too large"
        case list() | tuple():
            return f"a {type(x).__name__} that is no array of numbers"
        case _ if hasattr(x, "dtype"):
            return f"an array of dtype {x.dtype}"
    return f"a {type(x).__name__}"


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


def states(function: str, name: str, x: ArrayLike, **steps: ArrayLike) -> Array:
    """Values at the T + 1 states of a rollout of T transitions, of which `steps` are arrays."""
    array = floating(function, name, x)
    for step_name, step in steps.items():
        shape = real(function, step_name, step).shape
        if not shape or array.ndim == 0 or array.shape[0] != shape[0] + 1:
            raise fail(
                function,
                f"{list(array.shape)} and {list(shape)}",
                f"{name} to have one more entry along time than {step_name}",
                "Evaluate the network at all T + 1 states: those of the T actions and the one "
                "after.",
            )
    return array


def actions(function: str, name: str, a: ArrayLike, values_name: str, values: Array) -> Array:
    """Action indices [T, ...] which belong to `values` [T, ..., A]."""
    array = real(function, name, a)
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
    return _ready(arrays, common_shape(function, **arrays))


def _ready(arrays: dict[str, Array], shape: tuple[int, ...]) -> Sequences:
    dtype = result_dtype(*arrays.values())
    compute = computing_dtype(dtype)
    return Sequences(tuple(x.astype(compute) for x in arrays.values()), shape, dtype)


def vectors(function: str, *, per_set: bool = False, **inputs: ArrayLike) -> Sequences:
    """Arrays of vectors [..., D], or of sets of any number of them [..., N, D].

    They have the same number of axes; those of the batch may be 1.
    """
    own, axes = (2, "[..., N, D]") if per_set else (1, "[..., D]")
    arrays = {name: floating(function, name, x) for name, x in inputs.items()}
    for name, x in arrays.items():
        if x.ndim < own:
            raise fail(
                function,
                str(list(x.shape)),
                f"{name} to be {axes}, whose last axis is dimensions",
                "Add the missing axis: x[..., None].",
            )
    for (one, x), (other, y) in itertools.combinations(arrays.items(), 2):
        batches = zip(x.shape[:-own], y.shape[:-own], strict=False)
        differ = any(m != n and 1 not in (m, n) for m, n in batches)
        if x.ndim != y.ndim or x.shape[-1] != y.shape[-1] or differ:
            raise fail(
                function,
                f"{list(x.shape)} and {list(y.shape)}",
                f"{one} and {other} to have the same axes {axes}, those of the batch equal or 1",
                f"Broadcast it explicitly, if that is meant: jnp.broadcast_to({other}, …).",
            )
    batch = np.broadcast_shapes(*(x.shape[:-own] for x in arrays.values()))
    first = next(iter(arrays.values()))
    return _ready(arrays, (*batch, *first.shape[-own:]))


def elementwise(function: str, **inputs: ArrayLike) -> Sequences:
    """The same of arrays [...], none of whose axes need be time; all may be scalars."""
    arrays = {name: floating(function, name, x) for name, x in inputs.items()}
    shapes = {name: x.shape for name, x in arrays.items() if x.ndim}
    for (one, x), (other, y) in itertools.combinations(shapes.items(), 2):
        if len(x) != len(y) or any(m != n and 1 not in (m, n) for m, n in zip(x, y, strict=True)):
            raise fail(
                function,
                f"{list(x)} and {list(y)}",
                f"{one} and {other} to have the same number of axes, each equal or 1",
                "Add the missing axes explicitly, e.g. x[:, None] for a [T] array beside [T, B].",
            )
    return _ready(arrays, np.broadcast_shapes(*shapes.values()))


def result_dtype(*arrays: Array) -> np.dtype:
    """The dtype of a result: that of its arrays; scalars (hyperparameters) never widen it."""
    ranked = [x for x in arrays if x.ndim] or list(arrays)
    return jnp.result_type(*ranked)


def computing_dtype(dtype: np.dtype) -> np.dtype:
    """Half precision is for storage: exponentials and long sums need at least float32."""
    return jnp.promote_types(dtype, jnp.float32)
