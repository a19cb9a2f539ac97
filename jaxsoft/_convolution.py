"""A convolution that is fast on a CPU, with its gradients, inside loops and conditions too.

XLA computes a convolution on a CPU by matrix products over both operands' blocks only where its
axes lie as [N, H, W, C] * [k, k, C, F] -> [N, H', W', F]. JAX's gradients of it have them in other
orders, which XLA puts right at the top of a program alone: anywhere else they fall to a loop over
every number, many times as slow. Here both gradients are written as convolutions of the first kind,

    y  = x ∗ w,    x̄ = pad(ȳ) ∗ flip(w)ᵀ,    w̄ᵀ = xᵀ ∗ ȳᵀ

so that this bilinear function is closed under transposition, to any order of differentiation.
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxsoft import _jax

__all__ = ["NAME", "convolve"]

NAME = "channels_last_convolution"
# What an equation of `lax.conv_general_dilated` says of itself, for those who read programs.
_PARAMS: dict[str, Any] = {
    "window_strides": (1, 1),
    "padding": ((0, 0), (0, 0)),
    "lhs_dilation": (1, 1),
    "rhs_dilation": (1, 1),
    "dimension_numbers": lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)),
    "feature_group_count": 1,
    "batch_group_count": 1,
    "precision": None,
    "preferred_element_type": None,
}


def convolve(x: Array, w: Array) -> Array:
    """Their convolution without padding: x [N, H, W, C], w [k, k, C, F] -> [N, H-k+1, W-k+1, F]."""
    return _bind(x, w, **_PARAMS)


def _input_gradient(cotangent: Array, x: Any, w: Array, **params: Any) -> Array:
    del x
    rows, columns = (k - 1 for k in w.shape[:2])
    padded = jnp.pad(cotangent, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
    return _bind(padded, w[::-1, ::-1].swapaxes(2, 3), **params)


def _kernel_gradient(cotangent: Array, x: Array, w: Any, **params: Any) -> Array:
    del w
    kernel = _bind(x.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3), **params)
    return kernel.transpose(1, 2, 0, 3)


def _batched(operands: Any, axes: Any, **params: Any) -> tuple[Array, int]:
    (x, w), (x_axis, w_axis) = operands, axes
    bind = functools.partial(_bind, **params)
    if w_axis is None:
        x = jnp.moveaxis(x, x_axis, 0)
        y = bind(x.reshape(-1, *x.shape[2:]), w)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0
    if x_axis is None:
        w = jnp.moveaxis(w, w_axis, 3)
        y = bind(x, w.reshape(*w.shape[:3], -1))
        return y.reshape(*y.shape[:3], *w.shape[3:]), 3
    # One after the other, as each keeps all cores busy.
    pairs = jnp.moveaxis(x, x_axis, 0), jnp.moveaxis(w, w_axis, 0)
    return lax.map(lambda pair: bind(*pair), pairs), 0


def _shape(x: tuple[int, ...], w: tuple[int, ...]) -> tuple[int, ...]:
    (n, *size, _), (*window, _, features) = x, w
    return (n, *(a - b + 1 for a, b in zip(size, window, strict=True)), features)


_bind = _jax.bilinear(
    NAME,
    lax.conv_general_dilated,
    shape=_shape,
    transposes=(_input_gradient, _kernel_gradient),
    batch=_batched,
    options=tuple(_PARAMS),
)
