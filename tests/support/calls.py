"""A valid call of every public function, by the roles of its arguments."""

import inspect
import operator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsoft

T, B, A, N = 5, 2, 3, 6
# Names of these modules are used with the module's: `squashed.log_ratio`.
MODULES = {x: m for x in jaxsoft.__all__ if isinstance(m := getattr(jaxsoft, x), ModuleType)}
NAMES = set(jaxsoft.__all__) - MODULES.keys() - {"load_policy"}
NAMES |= {f"{x}.{y}" for x, m in MODULES.items() for y in set(m.__all__) - set(jaxsoft.__all__)}
PUBLIC = {name: operator.attrgetter(name)(jaxsoft) for name in sorted(NAMES)}
FUNCTIONS = [name for name, x in PUBLIC.items() if inspect.isfunction(x)]
# What fixes the program's structure, though it is a number.
STATIC = {"planning.estimate_value": ("tau", "epsilon", "discount")}


def log_probs(params: dict[str, jax.Array]) -> jax.Array:
    return jax.nn.log_softmax(jnp.ones((N, 4)) @ params["w"])[:, 0]


def model(key: object, states: jax.Array, actions: jax.Array) -> tuple[jax.Array, jax.Array]:
    del key
    return 1 / (1.0 + actions), states


def step(state: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.sin(state + noise), jnp.sum(state * noise, axis=-1)


def values(params: dict[str, jax.Array], observations: object = None) -> jax.Array:
    del observations
    return jnp.broadcast_to(params["w"][0], (T + 1, B, A))


def _arguments() -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def real(*shape: int) -> np.ndarray:
        return rng.normal(size=shape)

    def log_policy(*shape: int) -> np.ndarray:
        return np.log(rng.dirichlet(np.ones(A), size=shape))

    numbers = dict.fromkeys(("discount_t", "epsilon", "lambda_", "mixing", "tau"), 0.5)
    numbers |= {"clip_c": 1.0, "clip_rho": 1.0, "damping": 0.1, "step_size": 0.1}
    numbers |= {"bandwidth": 0.5, "coefficient": 0.5, "discount": 0.5, "high": 1.0, "low": -1.0}
    numbers |= {"tolerance": 1e-3, "value_coef": 0.5, "max_iterations": 9, "n": 3}
    numbers |= {"group_axis": 1, "max_exponent": 5.0, "target_kl": 0.1}
    steps: tuple[str, ...] = (
        "advantage_t",
        "backup_t",
        "delta_t",
        "log_ratio",
        "log_ratio_chosen",
        "log_ratio_rejected",
        "log_ratio_tm1",
        "log_rho_tm1",
        "log_weight",
        "q_a",
        "q_a_tm1",
        "r_t",
        "return_",
        "return_t",
        "target",
    )
    steps += ("target_t", "v_t", "v_tm1", "value_target")
    actions = rng.integers(0, A, size=(T, B)).astype(np.int32)
    return numbers | {
        **{name: real(T, B) for name in steps},
        **{name: abs(real(T, B)) for name in ("kl", "kl_tm1", "trace_tm1")},
        **{name: real(T, B, A) for name in ("q_old_tm1", "q_t", "q_tm1", "values")},
        **{name: real(T + 1, B) for name in ("v", "value")},
        **{name: real(T + 1, B, A) for name in ("q", "target_q")},
        **{x: log_policy(T, B) for x in ("behaviour_log_pi", "log_pi_old_tm1", "log_pi_tm1")},
        **{name: real(T, B, A) for name in ("g_tm1", "log_std", "mean", "noise", "states", "u")},
        **{name: real(T, B, N, A) for name in ("at", "particles", "score")},
        "a": actions,
        "a_tm1": actions,
        "advantage": real(N),
        "cut_t": rng.random((T, B)) < 0.2,
        "error_loss": jnp.square,
        "gradient": {"w": real(4, A)},
        "key": jax.random.key(0),
        "leave_one_out": True,
        "log_pi": log_policy(T + 1, B),
        "log_pi_a_tm1": -abs(real(T, B)),
        "log_prior": log_policy(),
        "log_prob_fn": log_probs,
        "metric": real(T, B, A, A),
        "model": model,
        "network_fn": values,
        "nuisance": real(N, 2),
        "observations": None,
        "params": {"w": real(4, A)},
        "player": lambda states: states > 0,
        "q_fn": values,
        "samples": lambda epsilon: 2,
        "solver": "gram",
        "state": np.float64(0.5),
        "step": step,
        "trace": {"w": real(4, A)},
        "v_gradient": real(T, B, A),
        "weight": np.ones((T, B)),
    }


ARGUMENTS = _arguments()


def arguments(function: str) -> dict[str, Any]:
    """What the function takes, all of it; of `mix_priors` one pair."""
    if function == "mix_priors":
        return {name: ARGUMENTS[name] for name in ("tau", "log_prior")}
    names = inspect.signature(PUBLIC[function]).parameters
    given = {name: ARGUMENTS[name] for name in names}
    if function == "natural_gradient":
        given["weight"] = np.ones(N)
    if function == "value_gradient_loss":
        given["target_t"] = given["g_tm1"] / 2
    if function == "trace_targets":  # of the actions taken
        given["q_tm1"] = given["r_t"]
    return given


def call(function: str, **given: Any) -> Any:
    """Calls it, with some of its arguments replaced."""
    given = arguments(function) | given
    if function == "mix_priors":
        other = np.log([0.2, 0.3, 0.5])
        return jaxsoft.mix_priors((given["tau"], given["log_prior"]), (0.25, other))
    return operator.attrgetter(function)(jaxsoft)(**given)


def optional(function: str, argument: str) -> bool:
    if function == "mix_priors":
        return argument == "log_prior"
    return inspect.signature(PUBLIC[function]).parameters[argument].default is None
