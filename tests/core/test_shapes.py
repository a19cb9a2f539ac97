"""The shapes in the annotations are true: checked at run time, on every public function."""

import inspect
import operator
import re
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped

import jaxsoft
from jaxsoft import _typing
from tests.core.test_invariance import CASES, HYPER, Hyper, Inputs, make_inputs
from tests.support import calls


def log_prob_fn(p: dict[str, Any], x: Inputs) -> Any:
    return jaxsoft.take_action(jaxsoft.log_policy(p["q"], 0.3)[:-1], x["a"])


# Beside the table of test_invariance: functions that take functions, keys, or go by another name.
CALLS: dict[str, Callable[[Inputs, Hyper], Any]] = CASES | {
    "retrace_coefficients": lambda x, h: jaxsoft.retrace_coefficients(
        x["log_rho"], lambda_=h["lambda_"]
    ),
    "v_trace": lambda x, h: jaxsoft.v_trace(
        x["x"],
        x["discount"],
        x["log_rho"],
        lambda_=h["lambda_"],
        cut_t=x["cut"],
        clip_rho=1.0,
        clip_c=1.0,
    ),
    "naive_actor_critic, all": lambda x, h: jaxsoft.naive_actor_critic(
        x["v"],
        x["log_pi"],
        x["a"],
        r_t=x["r"],
        discount_t=x["discount"],
        tau=h["tau"],
        value_coef=h["c"],
        cut_t=x["cut"],
    ),
    "group_advantages": lambda x, h: jaxsoft.group_advantages(x["x"], 0),
    "preference_loss": lambda x, h: jaxsoft.preference_loss(x["log_rho"], x["v"], tau=h["tau"]),
    "sample_actions": lambda x, h: jaxsoft.sample_actions(jax.random.key(0), x["log_pi"]),
    "natural_gradient": lambda x, h: jaxsoft.natural_gradient(
        lambda p: log_prob_fn(p, x),
        {"q": x["q"]},
        x["x"],
        damping=1e-2,
        weight=jnp.ones_like(x["x"]),
        nuisance=x["q"][:-1],
    ),
    "planning.estimate_value": lambda x, h: calls.call("planning.estimate_value"),
    "squashed.sample": lambda x, h: jaxsoft.squashed.sample(jax.random.key(0), x["q"], x["log_pi"]),
    "traces.update": lambda x, h: jaxsoft.traces.update(
        {"w": x["x"]}, {"w": x["r"]}, h["tau"], h["lambda_"]
    ),
    "scale_by_fisher": lambda x, h: jaxsoft.scale_by_fisher(damping=1e-2),
    "damped_natural_q": lambda x, h: jaxsoft.damped_natural_q(
        lambda p: p["q"],
        {"q": x["q"]},
        x["a"],
        r_t=x["r"],
        discount_t=x["discount"],
        tau=h["tau"],
        epsilon=h["epsilon"],
        damping=1e-2,
        log_prior=0.0,
        cut_t=x["cut"],
        weight=jnp.ones_like(x["x"]),
    ),
    "check_equivalence": lambda x, h: jaxsoft.check_equivalence(
        lambda p, _: p["q"],
        {"q": x["q"]},
        None,
        x["a"],
        r_t=x["r"],
        discount_t=x["discount"],
        tau=h["tau"],
        log_prior=0.0,
        cut_t=x["cut"],
        weight=jnp.ones_like(x["x"]),
        behaviour_log_pi=x["log_pi"][:-1],
    ),
}
FUNCTIONS = {name: calls.PUBLIC[name] for name in calls.FUNCTIONS}


SHAPED = re.compile(r"Float|Integer|Shaped|Key|Scalar")


def shapes(function: types.FunctionType) -> dict[str, str]:
    """Its annotations that have shapes, as they are written."""
    return {name: text for name, text in function.__annotations__.items() if SHAPED.search(text)}


def checked(function: types.FunctionType, **changes: str) -> Callable[..., Any]:
    """The function, checking its shapes, some of them changed."""
    copy = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__annotations__ = {
        name: eval(text, vars(_typing) | function.__globals__)
        for name, text in (shapes(function) | changes).items()
    }
    return jaxtyped(copy, typechecker=beartype)


CHECKED = {name: checked(function) for name, function in FUNCTIONS.items()}


def trace(call: Callable[[Inputs, Hyper], Any], x: Inputs) -> None:
    """Shapes are known without computing anything."""

    def traced(x: Inputs) -> None:
        call(x, HYPER)

    jax.eval_shape(traced, x)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("name", CALLS)
def test_right_shapes_pass(
    name: str, batch: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for function, checking in CHECKED.items():
        monkeypatch.setattr(f"jaxsoft.{function}", checking)
    trace(CALLS[name], make_inputs(batch))


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_annotation_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one, as soon as it asks for other axes."""
    name, call, x = name.split(",", maxsplit=1)[0], CALLS[name], make_inputs(())
    function = operator.attrgetter(name)(jaxsoft)
    given: dict[str, Any] = {"return": True}

    def recorded(*args: Any, **kwargs: Any) -> Any:
        given.update(inspect.signature(function).bind(*args, **kwargs).arguments)
        return function(*args, **kwargs)

    monkeypatch.setattr(f"jaxsoft.{name}", recorded)
    trace(call, x)
    for argument, text in shapes(function).items():
        # `log_prior` may have any shape that broadcasts.
        if given.get(argument) is None or "'...'" in text:
            continue
        wrong = re.sub(r"'([TS] )?(?=\*)", r"'\1two more ", text)
        wrong = wrong.replace("''", "'two more'").replace("Scalar", 'Float[ArrayLike, "two more"]')
        assert wrong != text
        monkeypatch.setattr(f"jaxsoft.{name}", checked(function, **{argument: wrong}))
        with pytest.raises(TypeCheckError):
            trace(call, x)


def test_every_function_is_called_with_every_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {(name, argument) for name, x in FUNCTIONS.items() for argument in shapes(x)}
    for name, original in FUNCTIONS.items():

        def recorded(
            *args: Any, name: str = name, function: Callable[..., Any] = original, **kwargs: Any
        ) -> Any:
            arguments = inspect.signature(function).bind(*args, **kwargs).arguments
            missing.difference_update(
                (name, argument) for argument, value in arguments.items() if value is not None
            )
            return function(*args, **kwargs)

        monkeypatch.setattr(f"jaxsoft.{name}", recorded)
    for call in CALLS.values():
        trace(call, make_inputs(()))
    assert {argument for _, argument in missing} == {"return"}


def test_jaxtyping_is_not_needed() -> None:
    code = (
        "import sys, typing; sys.modules['jaxtyping'] = None; import jaxsoft, jax.typing; "
        "assert jaxsoft.soft_value([[1.0, 1.0]], 0.5) == 1.0; "
        "hints = typing.get_type_hints(jaxsoft.td_errors); "
        "assert hints['r_t'] == jax.typing.ArrayLike and hints['return'] == jax.Array"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
