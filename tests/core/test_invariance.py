"""One table of every per-step function × ranks, dtypes and transformations."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import jaxsoft
from tests.support import calls

T, A = 6, 4
TAU, LAMBDA, EPSILON, C = 0.3, 0.7, 0.2, 0.5
Inputs = dict[str, Array]
Hyper = Mapping[str, Array | float]


def make_inputs(
    batch: tuple[int, ...], dtype: jnp.dtype = jnp.float64, seed: int = 0, length: int = T
) -> Inputs:
    """A random rollout: `states` arrays have T + 1 entries, the others T."""
    rng = np.random.default_rng(seed)

    def real(*shape: int) -> Array:
        return jnp.asarray(rng.normal(size=shape), dtype)

    def log_probs(*shape: int) -> Array:
        return jax.nn.log_softmax(real(*shape))

    step, states = (length, *batch), (length + 1, *batch)
    return {
        "r": real(*step),
        "discount": jnp.asarray(
            rng.choice([0.0, 0.9, 0.99], size=step, p=[0.1, 0.45, 0.45]), dtype
        ),
        "cut": jnp.asarray(rng.random(step) < 0.2),
        "a": jnp.asarray(rng.integers(0, A, size=step), jnp.int32),
        "v": real(*states),
        "q": real(*states, A),
        "q_old": real(*states, A),
        "log_pi": log_probs(*states, A),
        "log_old": log_probs(*states, A),
        "log_prior": log_probs(*states, A),
        "log_rho": 0.5 * real(*step),
        "x": real(*step),
    }


HYPER = {"tau": TAU, "lambda_": LAMBDA, "epsilon": EPSILON, "c": C}


def mixed(x: Inputs, h: Hyper) -> tuple[Array, Array]:
    tau, prior = jaxsoft.mix_priors((h["tau"], x["log_prior"]), (h["epsilon"], x["log_pi"]))
    assert prior is not None
    return tau, prior


CASES: dict[str, Callable[[Inputs, Hyper], Array]] = {
    "soft_value": lambda x, h: jaxsoft.soft_value(x["q"], h["tau"], x["log_prior"]),
    "soft_value, uniform": lambda x, h: jaxsoft.soft_value(x["q"], h["tau"]),
    "soft_value, entropy": lambda x, h: jaxsoft.soft_value(x["q"], h["tau"], 0.0),
    "log_policy": lambda x, h: jaxsoft.log_policy(x["q"], h["tau"], x["log_prior"]),
    "kl_to_prior": lambda x, h: jaxsoft.kl_to_prior(x["log_pi"], x["log_prior"]),
    "policy_value": lambda x, h: jaxsoft.policy_value(
        x["q"], x["log_pi"], h["tau"], x["log_prior"]
    ),
    "q_from_policy": lambda x, h: jaxsoft.q_from_policy(
        x["v"], x["log_pi"], h["tau"], x["log_prior"]
    ),
    "sampled_value": lambda x, h: jaxsoft.sampled_value(x["x"], x["log_rho"], h["tau"]),
    "mix_priors": lambda x, h: mixed(x, h)[1],
    "mix_priors, value": lambda x, h: jaxsoft.soft_value(x["q"], *mixed(x, h)),
    "td_errors": lambda x, h: jaxsoft.td_errors(
        x["v"][:-1], x["r"], x["discount"], v_t=x["v"][1:], kl_tm1=x["x"], tau=h["tau"]
    ),
    "n_step_advantages, 1": lambda x, h: jaxsoft.n_step_advantages(
        x["x"], x["discount"], n=1, cut_t=x["cut"]
    ),
    "n_step_advantages, 3": lambda x, h: jaxsoft.n_step_advantages(
        x["x"], x["discount"], n=3, cut_t=x["cut"]
    ),
    "n_step_advantages, all": lambda x, h: jaxsoft.n_step_advantages(x["x"], x["discount"], n=T),
    "lambda_advantages": lambda x, h: jaxsoft.lambda_advantages(
        x["x"], x["discount"], lambda_=h["lambda_"], cut_t=x["cut"]
    ),
    "soft_q_targets": lambda x, h: jaxsoft.soft_q_targets(
        x["x"], x["v"][:-1], x["log_rho"], tau=h["tau"]
    ),
    "n_step_soft_q_targets": lambda x, h: jaxsoft.n_step_soft_q_targets(
        x["v"],
        x["log_rho"],
        x["r"],
        discount_t=x["discount"],
        tau=h["tau"],
        n=3,
        cut_t=x["cut"],
    ),
    "one_step_targets": lambda x, h: jaxsoft.one_step_targets(
        x["r"], x["discount"], x["q"][1:], tau=h["tau"], log_prior=x["log_prior"][1:]
    ),
    "trace_targets": lambda x, h: jaxsoft.trace_targets(
        x["x"],
        x["r"],
        x["discount"],
        v_t=x["v"][1:],
        trace_tm1=jaxsoft.retrace_coefficients(x["log_rho"], lambda_=h["lambda_"]),
        cut_t=x["cut"],
    ),
    "tree_backup_coefficients": lambda x, h: jaxsoft.tree_backup_coefficients(
        x["log_rho"], lambda_=h["lambda_"]
    ),
    "v_trace, errors": lambda x, h: (
        jaxsoft.v_trace(
            x["x"], x["discount"], x["log_rho"], lambda_=h["lambda_"], cut_t=x["cut"]
        ).errors
    ),
    "v_trace, advantages": lambda x, h: (
        jaxsoft.v_trace(
            x["x"], x["discount"], x["log_rho"], lambda_=h["lambda_"], cut_t=x["cut"]
        ).advantages
    ),
    "squashed.action": lambda x, h: jaxsoft.squashed.action(x["q"], -1.0, h["c"]),
    "squashed.log_ratio": lambda x, h: jaxsoft.squashed.log_ratio(x["q"], x["q_old"], x["log_pi"]),
    "stein_direction": lambda x, h: jaxsoft.stein_direction(
        x["q"][..., None, :],
        jnp.stack([x["q_old"], x["log_pi"]], -2),
        jnp.stack([x["log_old"], x["q"]], -2),
        bandwidth=h["c"],
    )[..., 0, :],
    "stein_direction, median": lambda x, h: jaxsoft.stein_direction(
        x["q"][..., None, :],
        jnp.stack([x["q_old"], x["log_pi"]], -2),
        jnp.stack([x["log_old"], x["q"]], -2),
    )[..., 0, :],
    "value_gradients.targets": lambda x, h: jaxsoft.value_gradients.targets(
        calls.step,
        x["q"][:-1],
        x["log_pi"][:-1],
        x["q_old"][1:],
        discount_t=x["discount"],
        lambda_=h["lambda_"],
        cut_t=x["cut"],
    ),
    "value_gradient_loss": lambda x, h: jaxsoft.value_gradient_loss(
        x["q"][:-1],
        x["q_old"][:-1],
        metric=x["log_pi"][:-1, ..., None] * x["log_pi"][:-1, ..., None, :],
    ),
    "soft_q_loss": lambda x, h: jaxsoft.soft_q_loss(x["q"][:-1], x["a"], x["x"]),
    "policy_gradient_loss": lambda x, h: jaxsoft.policy_gradient_loss(
        x["log_pi"][:-1], x["a"], x["x"], tau=h["tau"], log_prior=x["log_prior"][:-1]
    ),
    "value_loss": lambda x, h: jaxsoft.value_loss(x["v"][:-1], x["x"]),
    "a2c_loss": lambda x, h: jaxsoft.a2c_loss(
        x["v"][:-1],
        x["log_pi"][:-1],
        x["a"],
        target_t=x["x"],
        tau=h["tau"],
        value_coef=h["c"],
        log_prior=x["log_prior"][:-1],
    ),
    "tied_soft_q_loss": lambda x, h: jaxsoft.tied_soft_q_loss(
        x["v"][:-1],
        x["log_pi"][:-1],
        x["a"],
        target_t=x["x"],
        tau=h["tau"],
        value_coef=h["c"],
        log_prior=x["log_prior"][:-1],
    ),
    "tied_loss": lambda x, h: jaxsoft.tied_loss(
        x["v"][:-1], x["x"], x["log_rho"], target_t=x["r"], tau=h["tau"], value_coef=h["c"]
    ),
    "soft_value_loss": lambda x, h: jaxsoft.soft_value_loss(
        x["v"][:-1], x["x"], tau=h["tau"], log_weight=x["log_rho"], max_exponent=3.0
    ),
    "temperature_loss": lambda x, h: jaxsoft.temperature_loss(h["tau"], x["x"], 0.1),
    "damped_soft_q_loss": lambda x, h: jaxsoft.damped_soft_q_loss(
        x["q"][:-1], x["a"], x["x"], q_old_tm1=x["q_old"][:-1], epsilon=h["epsilon"]
    ),
    "natural_regression_loss": lambda x, h: jaxsoft.natural_regression_loss(
        x["log_pi"][:-1],
        x["a"],
        x["x"],
        log_pi_old_tm1=x["log_old"][:-1],
        tau=h["tau"],
        step_size=h["epsilon"],
        log_prior=x["log_prior"][:-1],
    ),
    "path_consistency_loss": lambda x, h: jaxsoft.path_consistency_loss(
        x["v"][:-1],
        x["log_pi"][:-1],
        x["a"],
        r_t=x["r"],
        discount_t=x["discount"],
        v_t=x["v"][1:],
        tau=h["tau"],
        n=3,
        log_prior=x["log_prior"][:-1],
        cut_t=x["cut"],
    ),
    "pgq_loss": lambda x, h: jaxsoft.pgq_loss(
        x["v"][:-1],
        x["log_pi"][:-1],
        x["a"],
        return_t=x["x"],
        backup_t=x["r"],
        tau=h["tau"],
        mixing=h["epsilon"],
        value_coef=h["c"],
        log_prior=x["log_prior"][:-1],
    ),
    "take_action": lambda x, h: jaxsoft.take_action(x["q"][:-1], x["a"]),
    "n_step_soft_q": lambda x, h: jaxsoft.n_step_soft_q(
        x["q"],
        x["a"],
        x["r"],
        discount_t=x["discount"],
        tau=h["tau"],
        n=3,
        target_q=x["q_old"],
        log_prior=x["log_prior"],
        cut_t=x["cut"],
    ),
    "actor_critic": lambda x, h: jaxsoft.actor_critic(
        x["v"],
        x["log_pi"],
        x["a"],
        r_t=x["r"],
        discount_t=x["discount"],
        tau=h["tau"],
        n=3,
        value_coef=h["c"],
        log_prior=x["log_prior"],
        cut_t=x["cut"],
    ),
    "naive_actor_critic": lambda x, h: jaxsoft.naive_actor_critic(
        x["v"],
        x["log_pi"],
        x["a"],
        r_t=x["r"],
        discount_t=x["discount"],
        tau=h["tau"],
        n=3,
        log_prior=x["log_prior"],
    ),
    "tied_soft_q": lambda x, h: jaxsoft.tied_soft_q(
        x["v"],
        x["log_pi"],
        x["a"],
        r_t=x["r"],
        discount_t=x["discount"],
        tau=h["tau"],
        n=3,
        value_coef=h["c"],
        log_prior=x["log_prior"],
        cut_t=x["cut"],
    ),
}
# At τ = 0 they have no limit.
WARM = ("soft_value_loss",)
everywhere = pytest.mark.parametrize("name", CASES)


@everywhere
def test_batches_agree_with_vmap_and_single_trajectories(name: str) -> None:
    case = CASES[name]
    x = make_inputs((2, 3))
    whole = case(x, HYPER)
    nested = jax.vmap(jax.vmap(case, (1, None), 1), (1, None), 1)(x, HYPER)
    single = case({k: v[:, 1, 2] for k, v in x.items()}, HYPER)
    np.testing.assert_allclose(whole, nested, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(whole[:, 1, 2], single, rtol=1e-12, atol=1e-12)


@everywhere
@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_rollout_of_no_steps_has_no_results(name: str, batch: tuple[int, ...]) -> None:
    x = make_inputs(batch, length=0)
    # Functions of states alone have the one state.
    length = CASES[name](make_inputs(batch), HYPER).shape[0] - T
    for result in (CASES[name](x, HYPER), jax.jit(CASES[name])(x, HYPER)):
        assert result.shape[: 1 + len(batch)] == (length, *batch)


RECURRENCES = [x for x in CASES if "advantages" in x or "trace" in x]


@pytest.mark.parametrize("name", RECURRENCES)
@pytest.mark.parametrize("wide", ["cut", "discount", "x", "log_rho", "r"])
def test_batch_axes_of_one_broadcast_in_every_argument(name: str, wide: str) -> None:
    whole = make_inputs((3,))
    narrow = {k: v if k == wide else v[:, :1] for k, v in whole.items()}
    repeated = {k: jnp.broadcast_to(v, whole[k].shape) for k, v in narrow.items()}
    result, wanted = (CASES[name](x, HYPER) for x in (narrow, repeated))
    result = jnp.broadcast_to(result, wanted.shape)
    np.testing.assert_allclose(result, wanted, rtol=1e-12, atol=1e-12)


@everywhere
def test_jit_agrees_and_does_not_recompile_for_new_values(name: str) -> None:
    case = CASES[name]
    traces = 0

    @jax.jit
    def counted(x: Inputs, h: Hyper) -> Array:
        nonlocal traces
        traces += 1
        return case(x, h)

    for seed, tau in ((0, 0.3), (1, 2.5), (2, 0.2 if name in WARM else 0.0)):
        x, h = make_inputs((2,), seed=seed), HYPER | {"tau": tau}
        np.testing.assert_allclose(counted(x, h), case(x, h), rtol=1e-12, atol=1e-12)
    assert traces == 1


@everywhere
def test_hyperparameters_may_be_vmapped(name: str) -> None:
    case = CASES[name]
    x = make_inputs((2,))
    many = {k: jnp.asarray([v, 1.25 * v, 0.5 * v]) for k, v in HYPER.items()}
    batched = jax.vmap(case, (None, 0))(x, many)
    for i in range(3):
        one = case(x, {k: v[i] for k, v in many.items()})
        np.testing.assert_allclose(batched[i], one, rtol=1e-12, atol=1e-12)


@everywhere
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 3e-5), (jnp.bfloat16, 0.02)])
def test_lower_precision_is_kept_and_close(name: str, dtype: jnp.dtype, tolerance: float) -> None:
    case = CASES[name]
    low = make_inputs((2, 3), dtype)
    high = {k: v.astype(jnp.float64) if v.dtype == dtype else v for k, v in low.items()}
    result = case(low, HYPER)
    assert result.dtype == dtype
    wanted = np.asarray(case(high, HYPER))
    # In half precision the functions that call others round in between.
    np.testing.assert_allclose(
        result.astype(jnp.float64), wanted, rtol=tolerance, atol=tolerance * np.abs(wanted).max()
    )


@everywhere
def test_strongly_typed_hyperparameters_do_not_widen(name: str) -> None:
    x = make_inputs((2,), jnp.float32)
    hyper = {k: jnp.asarray(v, jnp.float64) for k, v in HYPER.items()}
    assert CASES[name](x, hyper).dtype == jnp.float32


@everywhere
def test_works_inside_scan_and_grad(name: str) -> None:
    case = CASES[name]
    x = make_inputs((2,))
    floats = {k: v for k, v in x.items() if jnp.issubdtype(v.dtype, jnp.floating)}

    def total(floats: Inputs) -> Array:
        result = case(x | floats, HYPER)
        return jnp.sum(jnp.where(jnp.isfinite(result), result, 0))

    def step(carry: Inputs, _: None) -> tuple[Inputs, Array]:
        value, gradient = jax.value_and_grad(total)(carry)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, carry, gradient), value

    end, values = jax.lax.scan(step, floats, None, length=2)
    assert np.isfinite(values).all()
    assert all(np.isfinite(v).all() for v in end.values())


def test_the_table_is_complete() -> None:
    elsewhere = {
        "Equivalence",
        "FisherState",
        "Preconditions",
        "SolveInfo",
        "SolveStatus",
        "VTrace",
        "check_equivalence",
        "damped_natural_q",
        "group_advantages",
        "natural_gradient",
        "planning.estimate_value",
        "preference_loss",
        "sample_actions",
        "scale_by_fisher",
        "squashed.sample",
        "traces.update",
    }
    tested = {name.split(",")[0] for name in CASES} | {"retrace_coefficients"}
    assert tested | elsewhere == calls.PUBLIC.keys()
