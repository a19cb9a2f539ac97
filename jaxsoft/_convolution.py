"""A convolution that is fast on a CPU, with its gradients, and XLA's own everywhere else.

XLA computes a convolution on a CPU by matrix products over both operands' blocks only where its
axes lie as [N, H, W, C] * [k, k, C, F] -> [N, H', W', F], without strides or dilations. JAX's
gradients of it are none of these, which XLA puts right at the top of a program alone: anywhere else
they fall to a loop over every number, many times as slow. On a CPU the stride is therefore moved
into the channels, and both gradients are convolutions of the first kind:

    y  = x ∗ w,    x̄ = pad(ȳ) ∗ flip(w)ᵀ,    w̄ᵀ = xᵀ ∗ ȳᵀ

Which form it is, the platform that a program is compiled for decides. So each of the three is a
primitive, and no form is to be seen before: they are the derivatives of one trilinear function of
x, w and ȳ, and closed under transposition and `vmap`, to any order of differentiation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoft import _jax

__all__ = ["NAME", "convolve"]

NAME = "channels_last_convolution"
# What an equation of `lax.conv_general_dilated` says of itself, for those who read programs. With
# operands of more than these four axes, the first ones are batches of both.
_PARAMS: dict[str, Any] = {
    "padding": ((0, 0), (0, 0)),
    "lhs_dilation": (1, 1),
    "rhs_dilation": (1, 1),
    "dimension_numbers": lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)),
    "feature_group_count": 1,
    "batch_group_count": 1,
    "precision": None,
    "preferred_element_type": None,
}


def convolve(x: Array, w: Array, stride: int = 1) -> Array:
    """Their convolution without padding: x [N, H, W, C], w [k, k, C, F] -> [N, H', W', F].

    H' = (H - k) // s + 1; the stride s must divide k.
    """
    return _forward(x, w, window_strides=(stride, stride), **_PARAMS)


# ---- XLA's own: `sides` are those of the image or of the kernel ----------------------------------


def _native_input(cotangent: Array, w: Array, *, sides: Any, **params: Any) -> Array:
    x = jax.ShapeDtypeStruct((cotangent.shape[0], *sides, w.shape[2]), cotangent.dtype)
    return _transposed(lambda x: lax.conv_general_dilated(x, w, **params), x, cotangent)


def _native_kernel(x: Array, cotangent: Array, *, sides: Any, **params: Any) -> Array:
    w = jax.ShapeDtypeStruct((*sides, x.shape[3], cotangent.shape[3]), x.dtype)
    return _transposed(lambda w: lax.conv_general_dilated(x, w, **params), w, cotangent)


# ---- On a CPU ------------------------------------------------------------------------------------


def _cpu_forward(x: Array, w: Array, **params: Any) -> Array:
    stride, _ = params["window_strides"]
    return _plain(_image_blocks(x, stride), _kernel_blocks(w, stride), params)


def _cpu_input(cotangent: Array, w: Array, *, sides: Any, **params: Any) -> Array:
    stride, _ = params["window_strides"]
    x = jax.ShapeDtypeStruct((cotangent.shape[0], *sides, w.shape[2]), cotangent.dtype)
    w = _kernel_blocks(w, stride)
    rows, columns = (k - 1 for k in w.shape[:2])
    padded = jnp.pad(cotangent, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
    blocks = _plain(padded, w[::-1, ::-1].swapaxes(2, 3), params)
    return _transposed(lambda x: _image_blocks(x, stride), x, blocks)


def _cpu_kernel(x: Array, cotangent: Array, *, sides: Any, **params: Any) -> Array:
    stride, _ = params["window_strides"]
    w = jax.ShapeDtypeStruct((*sides, x.shape[3], cotangent.shape[3]), x.dtype)
    x = _image_blocks(x, stride)
    blocks = _plain(x.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3), params)
    return _transposed(lambda w: _kernel_blocks(w, stride), w, blocks.transpose(1, 2, 0, 3))


def _plain(x: Array, w: Array, params: dict[str, Any]) -> Array:
    return lax.conv_general_dilated(x, w, **params | {"window_strides": (1, 1)})


def _image_blocks(x: Array, stride: int) -> Array:
    """[N, H, W, C] -> [N, H // s, W // s, s·s·C]."""
    n, height, width, channels = x.shape
    height, width = height // stride, width // stride
    x = x[:, : height * stride, : width * stride]
    x = x.reshape(n, height, stride, width, stride, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, height, width, stride * stride * channels)


def _kernel_blocks(w: Array, stride: int) -> Array:
    """[k, k, C, F] -> [k / s, k / s, s·s·C, F]."""
    rows, columns, channels, features = w.shape
    rows, columns = rows // stride, columns // stride
    w = w.reshape(rows, stride, columns, stride, channels, features)
    return w.transpose(0, 2, 1, 3, 4, 5).reshape(rows, columns, -1, features)


def _transposed(f: Callable[[Array], Array], x: jax.ShapeDtypeStruct, cotangent: Array) -> Array:
    result: Array = jax.linear_transpose(f, x)(cotangent)[0]
    return result


# ---- The three primitives ------------------------------------------------------------------------


def _forward_shape(x: Any, w: Any, *, window_strides: Any, **_: Any) -> tuple[int, ...]:
    outputs = zip(x[-3:-1], w[-4:-2], window_strides, strict=True)
    return (*x[:-3], *((a - k) // s + 1 for a, k, s in outputs), w[-1])


def _input_shape(cotangent: Any, w: Any, *, sides: Any, **_: Any) -> tuple[int, ...]:
    return (*cotangent[:-3], *sides, w[-2])


def _kernel_shape(x: Any, cotangent: Any, *, sides: Any, **_: Any) -> tuple[int, ...]:
    return (*x[:-4], *sides, x[-1], cotangent[-1])


def _to_input(cotangent: Array, x: Any, w: Array, **params: Any) -> Array:
    return _input(cotangent, w, sides=x.aval.shape[-3:-1], **params)


def _to_kernel(cotangent: Array, x: Array, w: Any, **params: Any) -> Array:
    return _kernel(x, cotangent, sides=w.aval.shape[-4:-2], **params)


def _input_to_cotangent(x: Array, _: Any, w: Array, *, sides: Any, **params: Any) -> Array:
    del sides
    return _forward(x, w, **params)


def _input_to_kernel(x: Array, cotangent: Array, w: Any, *, sides: Any, **params: Any) -> Array:
    del sides
    return _to_kernel(cotangent, x, w, **params)


def _kernel_to_input(w: Array, x: Any, cotangent: Array, *, sides: Any, **params: Any) -> Array:
    del sides
    return _to_input(cotangent, x, w, **params)


def _kernel_to_cotangent(w: Array, x: Array, _: Any, *, sides: Any, **params: Any) -> Array:
    del sides
    return _forward(x, w, **params)


def _over_batches(f: Callable[..., Array], *, in_turn: bool) -> Callable[..., Array]:
    def over(a: Array, b: Array, **params: Any) -> Array:
        if a.ndim == 4:
            return f(a, b, **params)
        one: Callable[..., Array] = functools.partial(over, **params)
        return lax.map(lambda pair: one(*pair), (a, b)) if in_turn else jax.vmap(one)(a, b)

    return over


def _primitive(
    name: str,
    native: Callable[..., Array],
    on_cpu: Callable[..., Array],
    merged: tuple[tuple[int, int], tuple[int, int]],
    **rules: Any,
) -> Callable[..., Array]:
    """For each operand, `merged` is where a batch of it goes: an axis of it, and of the result."""

    def batched(operands: Any, axes: Any, **params: Any) -> tuple[Array, int]:
        if None not in axes:
            a, b = (jnp.moveaxis(x, axis, 0) for x, axis in zip(operands, axes, strict=True))
            return bind(a, b, **params), 0
        side = 0 if axes[1] is None else 1
        into, out = (axis + operands[1 - side].ndim - 4 for axis in merged[side])
        x = jnp.moveaxis(operands[side], axes[side], into)
        size, given = x.shape[into : into + 2], list(operands)
        given[side] = x.reshape(*x.shape[:into], -1, *x.shape[into + 2 :])
        y = bind(*given, **params)
        return y.reshape(*y.shape[:out], *size, *y.shape[out + 1 :]), out

    bind = _jax.bilinear(
        name,
        _over_batches(native, in_turn=False),
        # One after the other, as each keeps all cores busy.
        on_cpu=_over_batches(on_cpu, in_turn=True),
        batch=batched,
        **rules,
    )
    return bind


_OPTIONS = ("window_strides", *_PARAMS)
_forward = _primitive(
    NAME,
    lax.conv_general_dilated,
    _cpu_forward,
    merged=((0, 0), (3, 3)),
    shape=_forward_shape,
    transposes=(_to_input, _to_kernel),
    options=_OPTIONS,
)
_input = _primitive(
    f"{NAME}_input",
    _native_input,
    _cpu_input,
    merged=((0, 0), (2, 3)),
    shape=_input_shape,
    transposes=(_input_to_cotangent, _input_to_kernel),
    options=(*_OPTIONS, "sides"),
)
_kernel = _primitive(
    f"{NAME}_kernel",
    _native_kernel,
    _cpu_kernel,
    merged=((3, 2), (3, 3)),
    shape=_kernel_shape,
    transposes=(_kernel_to_input, _kernel_to_cotangent),
    options=(*_OPTIONS, "sides"),
)
