"""Statistics of the actions, each state's few numbers, in the form that suits the platform.

A reduction over so short an axis as that of the actions is a kernel of its own on an accelerator,
or many lanes of which a few are used. There the actions are taken apart, and all that is said of a
state becomes one kernel that reads it once. On a CPU the reductions are faster.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["MOST", "each", "kept", "largest", "singles", "statistics", "total"]

# Beyond these the reductions are long enough, and programs of single actions too long.
MOST = 32

Parts = tuple[Array, ...]
"""What there is of the actions, [..., A], in parts along that axis."""


def statistics(f: Callable[..., Any], actions: tuple[Array, ...], *others: Array) -> Any:
    """`f(*actions, *others)`, with each of `actions` as `Parts`, or as it is if it is a scalar.

    Args:
      f: a function at module level, so that nothing is traced anew; it goes over `Parts` by `each`
        and comes down to states [..., 1] by `total` and `largest`.
      actions: the first is [..., A], the others of its rank with A entries, or scalars.
      *others: as `f` has them.
    """
    size = actions[0].shape[-1]
    whole, apart = _forms(f, len(actions))
    if not 1 < size <= MOST:
        return whole(*actions, *others)
    return jax.lax.platform_dependent(*actions, *others, cpu=whole, default=apart)


def each(f: Callable[..., Array], *xs: Array | Parts) -> Parts:
    """`f` of each part; arrays go with all of them."""
    count = max(len(x) for x in xs if isinstance(x, tuple))
    columns = (x if isinstance(x, tuple) else (x,) * count for x in xs)
    return tuple(f(*row) for row in zip(*columns, strict=True))


def total(x: Parts) -> Array:
    """Σ_a x_a, [..., 1]."""
    return functools.reduce(jnp.add, (jnp.sum(part, axis=-1, keepdims=True) for part in x))


def largest(x: Parts) -> Array:
    """max_a x_a, [..., 1]."""
    return functools.reduce(jnp.maximum, (jnp.max(part, axis=-1, keepdims=True) for part in x))


@jax.custom_jvp
def kept(*xs: Array) -> tuple[Array, ...]:
    """The same, computed once and together: what uses it is not merged with what makes it.

    To compilers only; their derivatives are not held back.
    """
    return jax.lax.optimization_barrier(xs)  # type: ignore[no-any-return]


@kept.defjvp
def _kept_jvp(primals: Any, tangents: Any) -> Any:
    return kept(*primals), tangents


def singles(x: Array) -> Parts:
    """Every action a part of its own."""
    return tuple(x[..., a : a + 1] for a in range(x.shape[-1]))


@functools.cache
def _forms(f: Callable[..., Any], number: int) -> tuple[Callable[..., Any], ...]:
    def form(parts: Callable[[Array], Parts], *args: Array) -> Any:
        actions = (parts(x) if x.ndim else x for x in args[:number])
        return f(*actions, *args[number:])

    return functools.partial(form, lambda x: (x,)), functools.partial(form, singles)
