"""The linear recurrence under every return: whole, or a window of n terms."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _checks

# Terms of a chain that one kernel of an accelerator computes.
_BLOCK = 16


def suffix_sums(x: Array, coefficient: Array, window: int | None = None) -> Array:
    """G_t = Σ_{d<window} (Π_{k<d} c_{t+k}) x_{t+d} along axis 0, to its end without a window.

    Each platform has its form, by measurement (`benchmarks/recurrence.py`) and by what compilers
    make of it (`benchmarks/accelerators.py`). The sequential scan streams through memory once: on
    a CPU it is the fastest or near it, and a TPU's compiler makes one call of it. On a GPU it
    would be T kernels in a row: there it is blocks, log₁₆ T levels of them. A window is log n
    levels of shorter ones, without a division and without a difference of prefix sums, as exact
    as the plain sum also across zeros.
    """
    if window is not None and window < x.shape[0]:
        # The base is a level's work: two is the least, and larger ones are fewer levels.
        narrow, wide = (functools.partial(by_windows, window=window, base=b) for b in (2, _BLOCK))
        return _choose(x, coefficient, cpu=narrow, tpu=narrow, default=wide)
    return _choose(x, coefficient, cpu=by_scan, tpu=by_scan, default=by_blocks)


def _choose(x: Array, coefficient: Array, **forms: Callable[[Array, Array], Array]) -> Array:
    sums: Array = jax.lax.platform_dependent(x, coefficient, **forms)
    return sums


# The bodies are at module level: a new function object in every call would compile again.


def _step(following: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
    here = inputs[0] + inputs[1] * following
    return here, here


def by_scan(x: Array, coefficient: Array) -> Array:
    return jax.lax.scan(_step, jnp.zeros(x.shape[1:], x.dtype), (x, coefficient), reverse=True)[1]


def by_blocks(x: Array, coefficient: Array) -> Array:
    """Sums and products of blocks; of these the same, which are what follows each block.

    Levels are kept apart, and from what uses them: merged into one kernel they would compute
    their chains again for every result, and take seconds to compile.
    """
    length = x.shape[0]
    size = min(length, _BLOCK)
    if not size:
        return x
    # Adding zeros behind the end is exact.
    pad = [(0, -length % size)] + [(0, 0)] * (x.ndim - 1)
    x, c = (jnp.pad(y, pad).reshape(-1, size, *y.shape[1:]) for y in (x, coefficient))
    steps = [
        tuple(jax.lax.index_in_dim(y, k, 1, keepdims=False) for y in (x, c)) for k in range(size)
    ]
    following = jnp.zeros_like(steps[0][0])
    if len(x) > 1:
        sums, products = steps[-1]
        for x_k, c_k in steps[-2::-1]:
            sums, products = x_k + c_k * sums, c_k * products
        sums, products = jax.lax.optimization_barrier((sums, products))
        following = shift(by_blocks(sums, products), 1)
    out = []
    for x_k, c_k in reversed(steps):
        following = x_k + c_k * following
        out.append(following)
    sums = jnp.stack(out[::-1], 1).reshape(-1, *x.shape[2:])[:length]
    return jax.lax.optimization_barrier(sums)  # type: ignore[no-any-return]


def by_windows(x: Array, coefficient: Array, window: int, base: int) -> Array:
    # `sums` and `products` cover `width` steps; `total` gathers the widths that are digits of the
    # window, the shorter ones behind the longer.
    total, sums, products, width = jnp.zeros_like(x), x, coefficient, 1
    while True:
        window, digit = divmod(window, base)
        for _ in range(digit):
            total = sums + products * shift(total, width)
        if not window:
            return total
        longer, product = sums, products
        for _ in range(base - 1):
            longer = sums + products * shift(longer, width)
            product = products * shift(product, width)
        sums, products, width = longer, product, base * width


def shift(x: Array, steps: int) -> Array:
    """x_{t+steps}, with zeros behind the end."""
    return jnp.concatenate([x[steps:], jnp.zeros_like(x[:steps])])


def continuation(
    function: str, args: _checks.Sequences, discount: Array, cut_t: ArrayLike | None
) -> Array:
    """Discounts [T, ...] that are 0 after a cut, of the shape that all arrays have together."""
    discount = jnp.broadcast_to(discount, args.shape)
    if cut_t is None:
        return discount
    cut = _checks.real(function, "cut_t", cut_t).astype(discount.dtype)
    _checks.common_shape(function, cut_t=cut, discount_t=discount)
    return discount * (1 - cut)


def weighted_sums(
    function: str, args: _checks.Sequences, cut_t: ArrayLike | None, window: int | None = None
) -> Array:
    """`suffix_sums` of per-step arrays (x, coefficient), which end at cuts."""
    x, coefficient = args.arrays
    coefficient = continuation(function, args, coefficient, cut_t)
    return suffix_sums(jnp.broadcast_to(x, coefficient.shape), coefficient, window)
