"""Every public function under random arguments: a right result, or a clear error. Slow.

What is given differs from a valid call in one to three arguments, by shape, dtype, value or kind.
A call may

    return     with the shape that the arguments' shapes broadcast to, of the usual kind of
               dtype, and without NaN where no argument has any
    refuse     in a sentence that names the function called and an argument

and nothing else: any other error is unclear, any other result silently wrong.
"""

import re
import warnings
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import calls
from tests.support.calls import A, B, N, T

pytestmark = pytest.mark.slow

EXAMPLES = 1_000
KINDS: list[Any] = [None, "text", "", b"x", {}, {"q": 1.0}, (), [], [[1.0], [1.0, 2.0]], 1j]
KINDS += [np.array("x"), np.array([None]), np.datetime64("2020"), -1, 0, 2, 3, True, 0.5]
KINDS += [10**400, 10**5000, object(), lambda *_: None, lambda *_: "text", lambda *_: 1.0]
NUMBERS = [np.nan, np.inf, -np.inf, -1.0, -1e-30, 0.0, 1e-45, 1e-30, 0.3, 1.0, 1.5, 1e30, 1e300]
SHAPES = [(), (0,), (1,), (T,), (T + 1,), (B,), (A,), (N,), (T, 1), (1, B), (T, B), (T + 1, B)]
SHAPES += [(T, B, A), (T + 1, B, A), (T, 1, A), (T, B, 1), (0, B), (0, B, A), (T, B, 0), (B, T)]
SHAPES += [(T + 1, 1, A), (1, 1, A), (2, T, B), (2, T, B, A), (T, A, B), (1, T + 1, B, A)]
# What a network makes of its parameters and observations is its own affair.
OTHERS = ("gradient", "noise", "observations", "params", "state", "trace")
DTYPES = [np.float64, np.float32, np.float16, jnp.bfloat16, np.int8, np.uint8, np.int64]
DTYPES += [np.uint32, bool, complex, object, "U3"]


def mutant(rng: np.random.Generator, value: Any) -> Any:
    """Something like `value`, or not at all."""
    like = np.asarray(value) if isinstance(value, (np.ndarray, float, int)) else np.zeros((T, B))
    match rng.integers(6):
        case 0:
            return KINDS[rng.integers(len(KINDS))]
        case 1:
            number = NUMBERS[rng.integers(len(NUMBERS))]
            return [number, np.float32(number), np.full(like.shape, number)][rng.integers(3)]
        case 2:
            shape = SHAPES[rng.integers(len(SHAPES))]
            return rng.integers(0, A, shape) if like.dtype.kind == "i" else rng.normal(size=shape)
        case 3:
            return like.astype(DTYPES[rng.integers(len(DTYPES))])
        case 4:
            spoilt = like.astype(float).copy()
            if spoilt.size:
                spoilt.flat[rng.integers(spoilt.size)] = NUMBERS[rng.integers(len(NUMBERS))]
            return spoilt if like.dtype.kind == "f" else spoilt.astype(int)
    return [like.tolist(), jnp.asarray(like), like[..., None], like[:-1] if like.ndim else [like]][
        rng.integers(4)
    ]


def has_nan(tree: Any) -> bool:
    leaves = jax.tree.leaves(tree)
    return any(
        np.isnan(np.asarray(x, np.complex128)).any()
        for x in leaves
        if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)
    )


def is_extreme(given: dict[str, Any]) -> bool:
    """Whether ∞ − ∞ or an overflow may be what was asked for."""
    for x in jax.tree.leaves(list(given.values())):
        if isinstance(x, (float, int, np.ndarray, np.generic, jax.Array)):
            array = np.asarray(x)
            if array.dtype.kind in "fiub" or array.dtype == jnp.bfloat16:
                values = abs(array.astype(float))
                if not (values <= 1e4).all():
                    return True
    return False


# Of one state after another, not of transitions between them.
OF_STATES = {"kl_to_prior", "log_policy", "policy_value", "q_from_policy", "sample_actions"}
OF_STATES |= {"soft_value", "squashed.action", "squashed.log_ratio", "squashed.sample"}
# Whose results are no arrays of steps.
OTHER_RESULTS = {"check_equivalence", "damped_natural_q", "natural_gradient", "scale_by_fisher"}
OTHER_RESULTS |= {"mix_priors", "planning.estimate_value", "preference_loss", "traces.update"}


def broadcast(function: str, given: dict[str, Any]) -> tuple[int, ...]:
    """The shape that the arguments' shapes, without actions, have together."""
    shapes = []
    for name, value in (calls.arguments(function) | given).items():
        usual: tuple[int, ...] = np.shape(calls.arguments(function)[name])
        shape: tuple[int, ...] = (
            np.shape(value) if usual or isinstance(value, (np.ndarray, jax.Array)) else ()
        )
        if name in ("high", "log_prior", "low") or len(usual) == 3:
            shape = shape[:-1]
        if len(usual) == 4:
            shape = shape[:-2]
        of_state = usual[:1] == (T + 1,) or (name == "log_prior" and shape[:1] == (T + 1,))
        if of_state and function not in OF_STATES:
            shape = (shape[0] - 1, *shape[1:])
        shapes.append(shape)
    return np.broadcast_shapes(*shapes)


def outcome(function: str, given: dict[str, Any]) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = calls.call(function, **given)
    except (ValueError, TypeError) as error:
        names = "|".join(map(re.escape, calls.arguments(function)))
        text = str(error)
        clear = re.fullmatch(rf"{function}: expected .*, got .+\. .+\.", text, re.DOTALL)
        return "clear" if clear and re.search(rf"\b({names})\b", text) else f"unclear: {error!r}"
    except Exception as error:
        return f"unclear: {error!r}"
    leaves = [x for x in jax.tree.leaves(result) if not callable(x)]
    if has_nan(leaves) and not has_nan(list(given.values())) and not is_extreme(given):
        return "silent: NaN of numbers"
    wanted = calls.call(function)
    if str(jax.tree.structure(wanted)) != str(jax.tree.structure(result)):
        return "silent: another structure"
    if function not in OTHER_RESULTS:
        try:
            together = broadcast(function, given)
        except ValueError:
            return "silent: shapes that do not broadcast"
        if any(x.shape[: len(together)] != together for x in leaves):
            return f"silent: {[x.shape for x in leaves]} of {together}"
    for x, y in zip(leaves, [y for y in jax.tree.leaves(wanted) if not callable(y)], strict=True):
        if jnp.issubdtype(x.dtype, jnp.floating) != jnp.issubdtype(y.dtype, jnp.floating):
            return f"silent: {x.dtype} for {y.dtype}"
    return "right"


@pytest.mark.parametrize("function", calls.FUNCTIONS)
def test_every_call_is_right_or_refused(function: str) -> None:
    rng = np.random.default_rng(len(function))
    arguments = calls.arguments(function)
    names = [x for x in arguments if x not in OTHERS]
    counts: Counter[str] = Counter()
    wrong: dict[str, dict[str, Any]] = {}
    for _ in range(EXAMPLES):
        number = min(len(names), 1 + int(rng.integers(3)))
        chosen = rng.choice(names, size=number, replace=False)
        with np.errstate(all="ignore"):
            given = {str(name): mutant(rng, arguments[str(name)]) for name in chosen}
        result = outcome(function, given)
        counts[result.split(":")[0]] += 1
        if result not in ("right", "clear"):
            wrong.setdefault(result[:160], given)
    print(function, dict(counts))
    # Some integers are too long to be printed.
    assert not wrong, "\n".join(f"{k}: {list(v)}" for k, v in list(wrong.items())[:12])
