"""The channels-last convolution against XLA's own, through every transformation, in float64."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxsoft._convolution import convolve
from jaxsoft.agents.networks import ActorCritic, NatureCNN
from tests.support.bridge import assert_trees_close

X, W = (3, 5, 6, 2), (2, 3, 2, 4)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def xla(x, w, stride=1):
    numbers, strides = ("NHWC", "HWIO", "NHWC"), (stride, stride)
    return jax.lax.conv_general_dilated(x, w, strides, "VALID", dimension_numbers=numbers)


def assert_same(f, *args, stride=1):
    forms = (functools.partial(form, stride=stride) for form in (convolve, xla))
    for actual, expected in zip(*map(f, forms), strict=True):
        assert_trees_close(actual(*args), expected(*args))


def weighted(f):
    """A scalar, so that all entries' gradients differ."""
    return lambda x, w: jnp.sum(jnp.sin(f(x, w)))


def test_it_is_a_convolution():
    x, w = normal(0, *X), normal(1, *W)
    y = convolve(x, w)
    assert y.shape == (3, 4, 4, 4)
    assert_trees_close(y, xla(x, w))
    assert_trees_close(jax.jit(convolve)(x, w), xla(x, w))
    assert jax.eval_shape(convolve, x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)) == (
        jax.ShapeDtypeStruct(y.shape, jnp.bfloat16)
    )


@pytest.mark.parametrize(("stride", "kernel"), [(1, (2, 3)), (2, (2, 4))])
def test_derivatives_of_any_order_and_mode(stride, kernel):
    x, w = normal(0, *X), normal(1, *kernel, *W[2:])
    check_grads(functools.partial(convolve, stride=stride), (x, w), order=3)

    def derivatives(f):
        g = weighted(f)
        yield jax.grad(g, (0, 1))
        yield lambda x, w: jax.jvp(jax.grad(g, (0, 1)), (x, w), (w[:1, :1, :, :1].sum() * x, w))
        yield lambda x, w: jax.grad(lambda x: jnp.sum(jax.grad(g, 1)(x, w) ** 2))(x)
        yield lambda x, w: jax.linearize(f, x, w)[1](x + 1, w)

    assert_same(derivatives, x, w, stride=stride)


@pytest.mark.parametrize(
    "axes", [(0, None), (3, None), (None, 0), (None, 4), (None, 2), (0, 0), (2, 4)]
)
def test_batches(axes):
    """One sample's gradients, one seed's kernel: `vmap` outside and inside of `grad`."""
    x_axis, w_axis = axes
    x = normal(0, *X) if x_axis is None else jnp.moveaxis(normal(0, 7, *X), 0, x_axis)
    w = normal(1, *W) if w_axis is None else jnp.moveaxis(normal(1, 7, *W), 0, w_axis)

    def batched(f):
        yield jax.vmap(f, axes)
        yield jax.vmap(jax.grad(weighted(f), (0, 1)), axes)
        yield jax.grad(weighted(jax.vmap(f, axes)), (0, 1))

    assert_same(batched, x, w)


@pytest.mark.parametrize("inner", [(0, 0), (1, None), (None, 1)])
@pytest.mark.parametrize("outer", [(0, 0), (1, None), (None, 0)])
def test_batches_of_batches(inner, outer):
    """Some with one of both operands, and one of one of them: a kernel's samples for every seed."""
    x, w = normal(0, *X), normal(1, *W)
    for axes in (inner, outer):
        size = 7 if axes is inner else 2
        x, w = (
            y if axis is None else jnp.stack([y * (i + 1) for i in range(size)], axis)
            for y, axis in zip((x, w), axes, strict=True)
        )

    def batched(f):
        yield jax.vmap(jax.vmap(f, inner), outer)
        yield jax.vmap(jax.vmap(jax.grad(weighted(f), (0, 1)), inner), outer)

    assert_same(batched, x, w)


@pytest.mark.parametrize("axes", [(0, None), (0, 0)])
def test_loops(axes):
    """Inside `lax.map`, whose body's operands are those of a loop."""
    x, w = normal(0, 7, *X), normal(1, *([7] if axes[1] == 0 else []), *W)
    expected = jax.vmap(jax.grad(weighted(xla), (0, 1)), axes)(x, w)

    def one(pair):
        return jax.grad(weighted(convolve), (0, 1))(*pair)

    kernels = jnp.stack([w] * 7) if axes[1] is None else w
    actual = jax.lax.map(one, (x, kernels))
    assert_trees_close(actual, expected)


def test_all_convolutions_of_a_gradient_are_those_that_xla_computes_well():
    """In a loop, too, where it puts no other right; so it is one of time, not of values."""
    network = ActorCritic(NatureCNN(native=False), 4, 3)
    x = jnp.zeros((2, 4, 84, 84), jnp.uint8)
    params = network.init(jax.random.key(0), x)
    forward: Callable[..., Any] = network.apply

    def loss(params):
        v, log_pi = forward(params, x)
        return jnp.sum(v) + jnp.sum(log_pi[:, 0])

    def descend(_, params):
        return jax.tree.map(lambda p, g: p - g, params, jax.grad(loss)(params))

    program = jax.jit(lambda p: jax.lax.fori_loop(0, 3, descend, p)).lower(params).compile()
    text = program.as_text()
    assert text is not None
    found = re.findall(r" convolution\(.*?dim_labels=([^,\s]+)", text)
    fused = re.findall(r"dim_labels=([^,\s]+)", text)
    # Three forward, three of kernels, two of inputs; none of the images.
    assert found == fused == ["b01f_01io->b01f"] * 8
