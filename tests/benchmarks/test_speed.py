"""Promises about speed, as ratios between sides that take turns in one run."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import harness, natural_gradient, recurrence

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _as_users_compile() -> Iterator[None]:
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        jax.config.update("jax_disable_most_optimizations", False)
        yield
        jax.config.update("jax_disable_most_optimizations", True)


def test_a_gram_step_of_the_nature_cnn_costs_a_few_plain_gradients() -> None:
    case = natural_gradient.Case("Nature CNN", 80)
    rows = {row["side"]: row for row in natural_gradient.cost([(case, 10, False)], 7)}
    assert rows["gram"]["plain_gradients_median"] < 6
    assert rows["K alone"]["plain_gradients_median"] < 3
    assert rows["gram"]["residual"] < 1e-4


@pytest.mark.parametrize(("length", "batch"), [(5, 16), (32, 256), (128, 256)])
def test_the_library_evaluates_whole_returns_as_fast_as_any_candidate(
    length: int, batch: int
) -> None:
    rng = np.random.default_rng(0)
    x, c = (jnp.asarray(rng.normal(size=(length, batch)), jnp.float32) for _ in range(2))
    sides = {
        name: functools.partial(jax.jit(f), x, c) for name, f in recurrence.whole(length).items()
    }
    seconds = harness.measure(sides, repetitions=9)
    assert min(harness.ratio(seconds, name, "library")["median"] for name in sides) > 0.5
