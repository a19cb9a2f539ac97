"""The linear recurrence under every return: whole, or a window of n terms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def suffix_sums(x: Array, coefficient: Array, window: int | None = None) -> Array:
    """G_t = Σ_{d<window} (Π_{k<d} c_{t+k}) x_{t+d} along axis 0, to its end without a window.

    Chosen by measurement (`benchmarks/recurrence.py`): on a CPU the sequential scan streams
    through memory once and is the fastest form or near it, but has no window. The window by
    doubling costs log₂ n passes, has no division and no difference of prefix sums, so it is as
    exact as the plain sum also across zeros. Elsewhere than on a CPU, where T tiny kernels in a
    row are slow, the whole recurrence is an associative scan.
    """
    if window is not None and window < x.shape[0]:
        return by_doubling(x, coefficient, window)
    sums: Array = jax.lax.platform_dependent(
        x, coefficient, cpu=by_scan, default=by_associative_scan
    )
    return sums


# The bodies are at module level: a new function object in every call would compile again.


def _step(following: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
    here = inputs[0] + inputs[1] * following
    return here, here


def _combine(later: tuple[Array, Array], earlier: tuple[Array, Array]) -> tuple[Array, Array]:
    return earlier[0] + earlier[1] * later[0], earlier[1] * later[1]


def by_scan(x: Array, coefficient: Array) -> Array:
    return jax.lax.scan(_step, jnp.zeros(x.shape[1:], x.dtype), (x, coefficient), reverse=True)[1]


def by_associative_scan(x: Array, coefficient: Array) -> Array:
    sums: Array = jax.lax.associative_scan(_combine, (x, coefficient), reverse=True)[0]
    return sums


def by_doubling(x: Array, coefficient: Array, window: int) -> Array:
    # `sums` and `products` cover `width` steps; `total` gathers the widths that are set in the
    # binary form of the window, the shorter ones behind the longer.
    total, sums, products, width = jnp.zeros_like(x), x, coefficient, 1
    while True:
        if window & width:
            total = sums + products * shift(total, width)
        if 2 * width > window:
            return total
        sums = sums + products * shift(sums, width)
        products = products * shift(products, width)
        width *= 2


def shift(x: Array, steps: int) -> Array:
    """x_{t+steps}, with zeros behind the end."""
    return jnp.concatenate([x[steps:], jnp.zeros_like(x[:steps])])
