"""The optimiser's step: what is taken, and what is not where gradients are not finite."""

import functools

import jax
import numpy as np
import optax
import pytest

from jaxsoft.agents._descent import Trained, descend

PARAMS = {"w": np.arange(6.0).reshape(2, 3) - 2, "b": np.array([0.5, -0.0], np.float32)}


def gradients_with(value):
    """One entry of one leaf is `value`."""
    w = np.ones((2, 3))
    w[1, 2] = value
    return {"w": w, "b": np.ones(2, np.float32)}


def bits(tree):
    return [(x.dtype, x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


ADAM = optax.adamw(0.1)  # whose step depends on the parameters too
step = jax.jit(functools.partial(descend, ADAM))


@functools.cache
def trained():
    """After a step, so that no moment is zero."""
    return step(Trained(PARAMS, ADAM.init(PARAMS)), gradients_with(1.0))[0]


def test_a_step():
    state, gradients = trained(), gradients_with(-2.0)
    after, metrics = step(state, gradients)
    updates, expected = ADAM.update(gradients, state.optimiser, state.params)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(close, after.params, optax.apply_updates(state.params, updates))
    jax.tree.map(close, after.optimiser, expected)
    np.testing.assert_allclose(metrics["gradient_norm"], np.sqrt(7 + 4))
    assert metrics["skipped"] == 0
    assert set(metrics) == {"gradient_norm", "skipped"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_step_is_taken_without_finite_gradients(value):
    state = trained()
    after, metrics = step(state, gradients_with(value))
    assert bits(after) == bits(state)
    assert metrics["skipped"] == 1
    assert not np.isfinite(metrics["gradient_norm"])


def test_one_seed_skips_and_the_other_does_not():
    state = trained()
    both = jax.tree.map(lambda x: np.stack([x, x]), state)
    gradients = jax.tree.map(lambda *x: np.stack(x), gradients_with(np.nan), gradients_with(3.0))
    after, metrics = jax.jit(jax.vmap(step))(both, gradients)
    first, second = (jax.tree.map(lambda x, i=i: np.asarray(x)[i], after) for i in range(2))
    assert bits(first) == bits(state)
    expected, _ = step(state, gradients_with(3.0))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), second, expected)
    assert np.any(second.params["w"] != state.params["w"])
    np.testing.assert_array_equal(metrics["skipped"], [1, 0])
    np.testing.assert_array_equal(np.isfinite(metrics["gradient_norm"]), [False, True])
