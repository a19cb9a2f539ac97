"""Every public function is lowered for the platforms that are not there, in their own form."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoft
from jaxsoft import _recurrence
from tests.core.test_invariance import CASES, HYPER, make_inputs
from tests.support import calls, platforms
from tests.support.platforms import ELSEWHERE, lowered, operations

PLATFORMS = ("cpu", *ELSEWHERE)


def single(x: Any) -> Any:
    return np.float32(x) if getattr(x, "dtype", None) == np.float64 else x


def assert_lowers(f, *args):
    for platform, text in lowered(f, *args, platforms=ELSEWHERE).items():
        platforms.assert_for(platform, text)


@pytest.mark.parametrize("name", [x for x in calls.FUNCTIONS if x != "scale_by_fisher"])
def test_every_function(name: str) -> None:
    arrays = float | dict | np.ndarray | jax.Array
    given = {key: x for key, x in calls.arguments(name).items() if isinstance(x, arrays)}
    given = {key: x for key, x in given.items() if key not in calls.STATIC.get(name, ())}
    assert_lowers(lambda x: calls.call(name, **x), jax.tree.map(single, given))


@pytest.mark.parametrize("name", CASES)
def test_every_function_with_its_gradients(name: str) -> None:
    """In batches, as `test_invariance` calls it."""
    x = jax.eval_shape(lambda: make_inputs((2,), jnp.dtype(jnp.float32)))
    hyper = {key: np.float32(value) for key, value in HYPER.items()}
    floats = {key: y for key, y in x.items() if jnp.issubdtype(y.dtype, jnp.floating)}

    def f(floats: Any, rest: Any, hyper: Any) -> Any:
        return jax.value_and_grad(lambda y: jnp.sum(CASES[name](rest | y, hyper)))(floats)

    assert_lowers(f, floats, {key: y for key, y in x.items() if key not in floats}, hyper)


@pytest.mark.parametrize("solver", ["cg", "gram"])
def test_preconditioning(solver: str) -> None:
    fisher = jaxsoft.scale_by_fisher(solver=solver)

    def f(params: Any) -> Any:
        return fisher.update(params, fisher.init(params), params, log_prob_fn=calls.log_probs)

    assert_lowers(f, {"w": np.ones((4, calls.A), np.float32)})


def test_each_platform_solves_by_a_library_of_its_own() -> None:
    def f(params: Any, advantage: Any) -> Any:
        return jaxsoft.natural_gradient(calls.log_probs, params, advantage, solver="gram")

    params = {"w": np.ones((4, calls.A), np.float32)}
    texts = lowered(f, params, np.ones(calls.N, np.float32), platforms=PLATFORMS)
    found = {x: {name.split("_")[0] for name in platforms.calls(y)} for x, y in texts.items()}
    # A TPU has no eigenvalues, and Cholesky's factorisation there is an operation.
    assert found == {"cpu": {"lapack"}, "cuda": {"cusolver"}, "tpu": set()}


@pytest.mark.parametrize("window", [None, 3, 20])
def test_the_platform_has_its_recurrence(window: int | None) -> None:
    """Alone: the others are not in the program, and what is chosen by is a constant."""
    x = jax.ShapeDtypeStruct((40, 3), jnp.float32)
    forms = {"cpu": _recurrence.by_scan, "cuda": _recurrence.by_blocks, "tpu": _recurrence.by_scan}
    if window:
        two, sixteen = (
            functools.partial(_recurrence.by_windows, window=window, base=base) for base in (2, 16)
        )
        forms = {"cpu": two, "cuda": sixteen, "tpu": two}

    def f(x: Any, c: Any) -> Any:
        return _recurrence.suffix_sums(x, c, window)

    for platform, text in lowered(f, x, x, platforms=PLATFORMS).items():
        [alone] = lowered(forms[platform], x, x, platforms=(platform,)).values()
        found, expected = operations(text), operations(alone)
        for choosing in ("case", "constant", "return"):
            found.pop(choosing, None)
            expected.pop(choosing, None)
        assert found == expected
        platforms.assert_for(platform, text)


@pytest.mark.parametrize("prior", [0.0, np.zeros(4, np.float32)])
def test_an_accelerator_takes_the_actions_apart(prior: Any) -> None:
    """So that all that is said of a state is one kernel; a CPU reduces over them."""
    q = jax.ShapeDtypeStruct((5, 3, 4), jnp.float32)
    a = jax.ShapeDtypeStruct((5, 3), jnp.int32)

    def f(q: Any, a: Any) -> Any:
        value = jaxsoft.soft_value(q, 0.3, prior)
        return value, jaxsoft.kl_to_prior(q, prior), jaxsoft.losses.take_action(q, a)

    for platform, text in lowered(f, q, a, platforms=PLATFORMS).items():
        # Those over one action are none to a compiler.
        reductions = re.findall(r"stablehlo\.reduce\(.*tensor<5x3x4xf32>, tensor<f32>", text)
        assert bool(reductions) == (platform == "cpu")


@pytest.mark.parametrize("name", CASES)
def test_the_forms_of_other_platforms_say_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With their derivatives, and those of these. No platform is needed to run a form."""
    x = make_inputs((2,), length=20)
    floats = {key: y for key, y in x.items() if jnp.issubdtype(y.dtype, jnp.floating)}
    rng = np.random.default_rng(1)
    tangents = jax.tree.map(lambda y: jnp.asarray(rng.normal(size=y.shape)), floats)

    def f(floats: Any) -> Any:
        return jnp.sum(jnp.sin(CASES[name](x | floats, HYPER)))

    def everything() -> Any:
        return f(floats), jax.jvp(jax.grad(f), (floats,), (tangents,))

    expected = everything()
    chosen = []

    def elsewhere(*args: Any, default: Any, **forms: Any) -> Any:
        chosen.append(forms)
        return default(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", elsewhere)
    given = everything()
    for one, other in zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    pure = ["td_errors", "soft_q_targets", "q_from", "retrace", "tree_backup", "value_loss"]
    pure += ["sampled_value", "mix_priors", "soft_value_loss", "temperature_loss", "tied_loss"]
    pure += ["squashed", "stein", "value_gradient"]
    assert chosen or name.startswith(tuple(pure))
