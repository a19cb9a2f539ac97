"""What the losses share, and their derivatives by what is not a parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoft
from tests.core.test_invariance import CASES, HYPER, make_inputs

INTEGERS = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("actions", [2, 127, 128, 129, 255, 256, 300])
def test_actions_of_any_integer_dtype(dtype: type, actions: int) -> None:
    values = jnp.arange(1.0, actions + 1)[None].repeat(3, 0)
    last = min(actions - 1, int(np.iinfo(dtype).max))
    a: np.ndarray = np.asarray([0, last // 2, last], dtype)
    np.testing.assert_array_equal(jaxsoft.take_action(values, a), a.astype(float) + 1)
    np.testing.assert_array_equal(jax.jit(jaxsoft.take_action)(values, a), a.astype(float) + 1)
    gradient = jax.grad(lambda v: jaxsoft.take_action(v, a).sum())(values)
    np.testing.assert_array_equal(gradient, np.eye(actions)[a])


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint32])
def test_a_traced_action_beyond_the_last_is_nan(dtype: type) -> None:
    a = jnp.asarray([0, 5, -1 if np.iinfo(dtype).min < 0 else np.iinfo(dtype).max], dtype)
    taken = jax.jit(jaxsoft.take_action)(jnp.ones((3, 4)), a)
    np.testing.assert_array_equal(taken, [1, np.nan, np.nan])


# Those that hold a target of their own making fixed have τ in what is fixed, too.
OWN_TARGETS = ("actor_critic", "naive_actor_critic", "tied_soft_q", "n_step_soft_q", "a2c_loss")


@pytest.mark.parametrize("name", [x for x in CASES if x not in OWN_TARGETS])
@pytest.mark.parametrize("hyperparameter", HYPER)
def test_hyperparameters_are_ordinary_inputs(name: str, hyperparameter: str) -> None:
    x = make_inputs((2,))

    def total(value: jax.Array) -> jax.Array:
        return CASES[name](x, HYPER | {hyperparameter: value}).sum()

    at, step = HYPER[hyperparameter], 1e-5
    wanted = (total(jnp.asarray(at + step)) - total(jnp.asarray(at - step))) / (2 * step)
    np.testing.assert_allclose(jax.grad(total)(jnp.asarray(at)), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["tied_soft_q_loss", "pgq_loss", "policy_gradient_loss"])
def test_the_prior_is_an_ordinary_input(name: str) -> None:
    x, direction = make_inputs((2,)), np.random.default_rng(1).normal(size=(7, 2, 4))

    def total(length: jax.Array) -> jax.Array:
        return CASES[name](x | {"log_prior": x["log_prior"] + length * direction}, HYPER).sum()

    step = 1e-5
    wanted = (total(jnp.asarray(step)) - total(jnp.asarray(-step))) / (2 * step)
    np.testing.assert_allclose(jax.grad(total)(jnp.asarray(0.0)), wanted, rtol=1e-6, atol=1e-7)
