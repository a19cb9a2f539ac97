"""Mistakes are caught at the door, by a sentence: what must hold, what was given, how to fix it."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoft
from jaxsoft import squashed
from tests.support import calls

T, B, A = 5, 2, 3
r, v, kl = (np.full((T, B), x) for x in (1.0, 0.5, 0.1))
q = np.zeros((T, B, A))
log_pi = np.log(np.full((T, B, A), 1 / A))
a = np.zeros((T, B), np.int32)
states = np.zeros((T + 1, B, A))
PARAMS = {"w": np.zeros((4, A))}


log_probs = calls.log_probs
equivalence = functools.partial(calls.call, "check_equivalence")


MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    # Ranks and shapes.
    "no time axis": (
        lambda: jaxsoft.td_errors(0.0, 1.0, 0.9, v_t=0.0, kl_tm1=0.0, tau=0.1),
        "axis 0 is time",
    ),
    "no time axis, q": (lambda: jaxsoft.soft_q_loss(q[0, 0], a[0, 0], r[0, 0]), "axis 0 is time"),
    "no actions": (lambda: jaxsoft.soft_value(0.5, 0.1), "last axis is actions"),
    "zero actions": (lambda: jaxsoft.soft_value(np.zeros((3, 0)), 0.1), "at least one action"),
    "one step short": (
        lambda: jaxsoft.td_errors(v, r, 0.9, v_t=v[1:], kl_tm1=kl, tau=0.1),
        (
            r"^td_errors: expected v_tm1 and v_t to have the same length along time, got 5 and 4\. "
            r"For values at T \+ 1 states pass v_tm1=v\[:-1\] and v_t=v\[1:\]\.$"
        ),
    ),
    "one step long": (lambda: jaxsoft.value_loss(np.zeros((T + 1, B)), r), "got 6 and 5"),
    "no batch axis": (lambda: jaxsoft.n_step_advantages(r, v[:, 0], n=3), r"x\[:, None\]"),
    "square transposed": (
        lambda: jaxsoft.policy_gradient_loss(log_pi, a, r.T, tau=0.1),
        "same length along time",
    ),
    "batches differ": (lambda: jaxsoft.value_loss(v, np.zeros((T, 7))), "batch axes"),
    "cut of another shape": (
        lambda: jaxsoft.lambda_advantages(r, 0.9, lambda_=0.9, cut_t=np.zeros(T)),
        "same number of axes",
    ),
    "actions of another shape": (lambda: jaxsoft.soft_q_loss(q, a[:-1], r), "one action per step"),
    "one-hot actions": (
        lambda: jaxsoft.soft_q_loss(q, np.zeros((T, B, A), np.int32), r),
        "one action per step",
    ),
    "old values of another shape": (
        lambda: jaxsoft.damped_soft_q_loss(q, a, r, q_old_tm1=q[..., 0], epsilon=0.1),
        "one action per step",
    ),
    "prior of another size": (lambda: jaxsoft.log_policy(q, 0.1, np.zeros(A + 1)), "broadcasts"),
    "tau of another shape": (lambda: jaxsoft.soft_value(q, np.ones(B)), "a scalar, or"),
    "value head keeps its axis": (
        lambda: jaxsoft.q_from_policy(v[..., None], log_pi, 0.1),
        r"value\[..., 0\]",
    ),
    "policy of another shape": (
        lambda: jaxsoft.policy_value(q, log_pi[0], 0.1),
        "to have the same shape",
    ),
    "T states for T actions": (
        lambda: jaxsoft.n_step_soft_q(q, a, r, discount_t=0.9, tau=0.1),
        "one more entry along time than a_tm1",
    ),
    "T values for T actions": (
        lambda: jaxsoft.actor_critic(v, log_pi, a, r_t=r, discount_t=0.9, tau=0.1),
        "one more entry along time than a_tm1",
    ),
    "keys of another shape": (
        lambda: jaxsoft.sample_actions(jax.random.split(jax.random.key(0), T), log_pi),
        "one per state",
    ),
    # Dtypes.
    "float actions": (lambda: jaxsoft.soft_q_loss(q, a.astype(float), r), "integer action"),
    "integer values": (lambda: jaxsoft.soft_value(np.zeros((3, 2), int), 0.1), "floating dtype"),
    "integer rewards": (lambda: jaxsoft.td_errors(v, a, 0.9, v_t=v, kl_tm1=kl, tau=0.1), "astype"),
    "complex values": (lambda: jaxsoft.soft_value(q + 0j, 0.1), "floating dtype"),
    # Values.
    "action too large": (
        lambda: jaxsoft.soft_q_loss(q, a + A, r),
        "to index the 3 actions of q_tm1",
    ),
    "negative action": (
        lambda: jaxsoft.soft_q_loss(q, a - 1, r),
        "to index the 3 actions of q_tm1",
    ),
    "a prior with another axis": (
        lambda: calls.call("actor_critic", log_prior=np.zeros((2, 1, B, A))),
        "^actor_critic: expected log_prior to have no more axes than log_pi, got one of 4 axes",
    ),
    "a prior with another axis, for values": (
        lambda: calls.call("n_step_soft_q", log_prior=np.zeros((1, T + 1, B, A))),
        "^n_step_soft_q: expected log_prior to have no more axes than target_q",
    ),
    "negative tau": (lambda: jaxsoft.soft_value(q, -0.1), "tau >= 0"),
    "negative tau, an array": (lambda: jaxsoft.log_policy(q, jnp.asarray(-1.0)), "tau >= 0"),
    "tau is NaN": (lambda: jaxsoft.one_step_targets(r, 0.9, q, tau=np.nan), "tau >= 0"),
    "n of zero": (lambda: jaxsoft.n_step_advantages(r, 0.9, n=0), "n >= 1"),
    "n is a float": (lambda: jaxsoft.n_step_advantages(r, 0.9, n=5.0), "Python int"),  # type: ignore[arg-type]
    "n is traced": (
        lambda: jax.jit(lambda n: jaxsoft.n_step_advantages(r, 0.9, n=n))(3),
        "static_argnames",
    ),
    "negative epsilon": (
        lambda: jaxsoft.damped_soft_q_loss(q, a, r, q_old_tm1=q, epsilon=-0.1),
        "epsilon >= 0",
    ),
    # Of several divergences, groups and samples.
    "nothing to mix": (jaxsoft.mix_priors, "pairs"),
    "no pair": (lambda: jaxsoft.mix_priors((0.1, None), ()), "pairs"),  # type: ignore[arg-type]
    "uniform over how many": (
        lambda: jaxsoft.mix_priors((0.1, None), (0.1, 0.0)),
        r"tells of how many actions None is the uniform one.*-math\.log\(A\)",
    ),
    "priors of other sizes": (
        lambda: jaxsoft.mix_priors((0.1, np.zeros(2)), (0.1, np.zeros(3))),
        "of all pairs to broadcast",
    ),
    "a temperature per step beside a prior of more axes": (
        lambda: jaxsoft.mix_priors((np.ones(T), np.zeros((T, B, A)))),
        "Add batch axes",
    ),
    "a ratio of another shape": (lambda: jaxsoft.sampled_value(v, v[0], 0.1), "the same shape"),
    "the temperature of another batch": (
        lambda: jaxsoft.sampled_value(v, v, np.ones(B)),
        r"tau to be a scalar, or \[5, 2\] with any axis 1, for q_a \[5, 2\]",
    ),
    "a soft value without temperature": (
        lambda: jaxsoft.soft_value_loss(v, r, tau=0.0),
        "tau > 0",
    ),
    "divergences of another batch": (
        lambda: jaxsoft.temperature_loss(np.ones(3), np.ones(B), 0.1),
        "each equal or 1",
    ),
    "a group of one": (lambda: jaxsoft.group_advantages(r[:1], 0), "at least 2 entries"),
    "no such axis": (lambda: jaxsoft.group_advantages(r, 2), "an axis of return_"),
    "sequences of other batches": (
        lambda: jaxsoft.preference_loss(r, r[:, :1].T, tau=0.1),
        "each equal or 1",
    ),
    # Natural gradients.
    "solver misspelt": (
        lambda: jaxsoft.natural_gradient(log_probs, PARAMS, np.ones(6), solver="Gram"),
        "'cg' or 'gram'",
    ),
    "advantage of another shape": (
        lambda: jaxsoft.natural_gradient(log_probs, PARAMS, np.ones(5)),
        "to have the same shape",
    ),
    "weight of another shape": (
        lambda: jaxsoft.natural_gradient(log_probs, PARAMS, np.ones(6), weight=np.ones(5)),
        "to have the same shape",
    ),
    "a negative weight": (
        lambda: jaxsoft.natural_gradient(log_probs, PARAMS, np.ones(6), weight=-np.ones(6)),
        "weight >= 0 and finite",
    ),
    "negative damping": (
        lambda: jaxsoft.natural_gradient(log_probs, PARAMS, np.ones(6), damping=-1e-3),
        "damping >= 0",
    ),
    "no parameters": (
        lambda: jaxsoft.natural_gradient(lambda p: jnp.zeros(6), {}, np.ones(6)),
        "params to hold arrays",
    ),
    "integer parameters": (
        lambda: jaxsoft.natural_gradient(log_probs, {"w": np.zeros((4, A), int)}, np.ones(6)),
        "floating dtype",
    ),
    "no samples": (
        lambda: jaxsoft.natural_gradient(lambda p: log_probs(p)[:0], PARAMS, np.ones(0)),
        "at least one sample",
    ),
    "features of another shape": (
        lambda: jaxsoft.natural_gradient(log_probs, PARAMS, np.ones(6), nuisance=np.ones((5, 2))),
        r"^natural_gradient: expected nuisance to hold K features of each .* \[5, 2\] and \[6\]\.",
    ),
    "one feature without its axis": (
        lambda: jaxsoft.natural_gradient(log_probs, PARAMS, np.ones(6), nuisance=np.ones(6)),
        r"A single feature is a column: x\[..., None\]",
    ),
    "no iterations": (
        lambda: jaxsoft.natural_gradient(log_probs, PARAMS, np.ones(6), max_iterations=0),
        "max_iterations >= 1",
    ),
    "undamped Gram in a chain": (
        lambda: jaxsoft.scale_by_fisher(damping=0.0, solver="gram"),
        "damping > 0",
    ),
    "undamped temperature": (
        lambda: jaxsoft.damped_natural_q(
            lambda p: jnp.asarray(states), PARAMS, a, r_t=r, discount_t=0.9, tau=0.0, epsilon=0.1
        ),
        "tau > 0",
    ),
    "n is a float, in an algorithm": (
        lambda: calls.call("actor_critic", n=2.5),
        "^actor_critic: expected n to be a Python int",
    ),
    "target of one trajectory": (
        lambda: equivalence(target=np.zeros(T)),
        r"target and a_tm1 to have the same shape, got \[5\] and \[5, 2\]",
    ),
    "value target of one trajectory": (
        lambda: equivalence(value_target=lambda p: jnp.zeros((T, 1))),
        r"value_target\(params\) and a_tm1 to have the same shape",
    ),
    "weight of one trajectory": (
        lambda: equivalence(weight=np.ones((T, 1))),
        "weight and a_tm1 to have the same shape",
    ),
    "nothing counts": (lambda: equivalence(weight=np.zeros((T, B))), "weight above 0 at some step"),
    "a loss of the mean error": (
        lambda: equivalence(error_loss=lambda x: jnp.mean(x**2)),
        r"error_loss\(errors\) and a_tm1",
    ),
    "no temperature": (lambda: equivalence(tau=0.0), "tau > 0"),
    "a temperature per step": (lambda: equivalence(tau=np.ones(T)), "tau to be a scalar"),
    "behaviour of the taken actions alone": (
        lambda: equivalence(behaviour_log_pi=v),
        "log μ of every action",
    ),
    # Continuous actions and states.
    "a number instead of a vector": (
        lambda: squashed.log_ratio(0.5, 0.0, 0.0),
        r"u to be \[..., D\], whose last axis is dimensions",
    ),
    "a standard deviation for all": (
        lambda: squashed.log_ratio(q, q, np.zeros(A)),
        r"u and log_std to have the same axes \[..., D\]",
    ),
    "dimensions differ": (lambda: squashed.log_ratio(q, q, q[..., :1]), "have the same axes"),
    "keys of another shape, continuous": (
        lambda: squashed.sample(jax.random.split(jax.random.key(0), T), q, q),
        "one per state of mean",
    ),
    "an empty box": (lambda: squashed.action(q, 1.0, -1.0), "low < high"),
    "an infinite box": (lambda: squashed.action(q, -np.inf, 1.0), "low finite"),
    "a box per step": (lambda: squashed.action(q, -np.ones((T, A)), 1.0), "per dimension of u"),
    "one point and no set": (
        lambda: jaxsoft.stein_direction(q[0, 0], q[0], q[0]),
        "to be .*N, D.*, whose last axis",
    ),
    "scores of other particles": (
        lambda: jaxsoft.stein_direction(q, q, q[:, :1]),
        "score and particles to have the same shape",
    ),
    "no particles": (
        lambda: jaxsoft.stein_direction(q, q[:, :0], q[:, :0]),
        "particles to be at least one",
    ),
    "no bandwidth": (lambda: jaxsoft.stein_direction(q, q, q, bandwidth=0.0), "bandwidth > 0"),
    "all the states": (
        lambda: calls.call("value_gradients.targets", states=states),
        "same length along time",
    ),
    "gradients of another batch": (
        lambda: calls.call("value_gradients.targets", v_gradient=q[:, :1]),
        "v_gradient and states to have the same shape",
    ),
    "noise of another length": (
        lambda: calls.call("value_gradients.targets", noise={"action": q[1:]}),
        "noise to hold arrays",
    ),
    "a model of one state": (
        lambda: calls.call("value_gradients.targets", step=lambda s, noise: (s, s.sum())),
        r"step\(states, noise\) to be .* jax\.vmap\(step\)",
    ),
    "a model without rewards": (
        lambda: calls.call("value_gradients.targets", step=lambda s, noise: s),
        r"step\(states, noise\) to be",
    ),
    "a metric for all": (
        lambda: jaxsoft.value_gradient_loss(q, q, metric=np.eye(A)),
        r"metric\[None\]",
    ),
    # Planning.
    "an undiscounted plan": (
        lambda: calls.call("planning.estimate_value", discount=1.0),
        "discount < 1",
    ),
    "a hard plan": (lambda: calls.call("planning.estimate_value", tau=0.0), "tau > 0"),
    "a temperature that is traced": (
        lambda: jax.jit(lambda tau: calls.call("planning.estimate_value", tau=tau))(0.5),
        "tau to be a Python float, since it fixes the program's structure",
    ),
    "an error of nothing": (
        lambda: calls.call("planning.estimate_value", epsilon=0.0),
        "epsilon > 0",
    ),
    "more than can be": (
        lambda: calls.call("planning.estimate_value", discount=0.99),
        "an epsilon that 4,194,304 calls of the model are enough for",
    ),
    "a measure": (
        lambda: calls.call("planning.estimate_value", log_prior=np.zeros(A)),
        "log_prior to be a distribution, .* one of mass 3",
    ),
    "half a sample": (
        lambda: calls.call("planning.estimate_value", samples=lambda epsilon: 0.5),
        r"samples\(epsilon\) to be a Python int",
    ),
    "a model of one action": (
        lambda: calls.call("planning.estimate_value", model=lambda *x: (jnp.zeros(()), x[1])),
        "as many floating rewards",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_explained(name: str) -> None:
    call, words = MISTAKES[name]
    with pytest.raises((ValueError, TypeError), match=words) as raised:
        call()
    function, _, rest = str(raised.value).partition(": ")
    assert function in calls.FUNCTIONS
    # What must hold, what was given, how to fix it.
    assert re.fullmatch(r"expected .+, got .+\. [A-Z'a-z].+\.", rest)


# `observations` go to the network as they are, `params` are a tree of arrays.
FREE = ("observations", "params", "solver", "key", "noise", "state", "trace", "gradient")
HYPERPARAMETERS = {
    "bandwidth": (-1.0, np.inf),
    "clip_c": (-1.0,),
    "clip_rho": (-1.0,),
    "cut_t": (-1.0, 2.0),
    "damping": (-1e-3, np.inf),
    "discount": (-0.1, 1.01),
    "discount_t": (-0.1, 1.01),
    "epsilon": (-0.1, np.inf),
    "high": (np.inf,),
    "lambda_": (-0.1, 1.01),
    "low": (-np.inf,),
    "max_exponent": (-1.0,),
    "mixing": (-0.1, 1.01),
    "step_size": (np.inf,),
    "target_kl": (np.inf,),
    "tau": (-0.1, np.inf),
    "tolerance": (-1.0, np.inf),
    "value_coef": (np.inf,),
}
BAD = {
    "None": None,
    "a string": "0.5",
    "an object": object(),
    "a ragged list": [[1.0], [1.0, 2.0]],
    "an array of objects": np.array([None, "x"], object),
    "an array of strings": np.array(["0.5"]),
    "complex numbers": np.ones((T, B), complex),
    "a dictionary": {"x": 1.0},
}
EVERY = [(name, argument) for name in calls.FUNCTIONS for argument in calls.arguments(name)]


def refused(name: str, **given: Any) -> None:
    [argument] = given
    with pytest.raises((ValueError, TypeError)) as raised:
        calls.call(name, **given)
    assert re.fullmatch(
        rf"{name}: expected .*\b{argument}\b.*, got .+\. .+\.", str(raised.value), re.DOTALL
    )


@pytest.mark.parametrize(("name", "argument"), [x for x in EVERY if x[1] not in FREE])
def test_what_is_no_array_is_refused_by_name(name: str, argument: str) -> None:
    for value in BAD.values():
        if not (value is None and calls.optional(name, argument)):
            refused(name, **{argument: value})


@pytest.mark.parametrize(("name", "argument"), [x for x in EVERY if x[1] in HYPERPARAMETERS])
def test_hyperparameters_out_of_range_are_refused_by_name(name: str, argument: str) -> None:
    for value in (*HYPERPARAMETERS[argument], np.nan):
        for given in (value, np.float32(value), jnp.asarray(value), np.full((T, B), value)):
            refused(name, **{argument: given})


@pytest.mark.parametrize("name", calls.FUNCTIONS)
def test_right_calls_pass(name: str) -> None:
    calls.call(name)


def test_updates_without_the_log_probabilities() -> None:
    optimiser = jaxsoft.scale_by_fisher()
    state = optimiser.init(PARAMS)
    with pytest.raises(ValueError, match="an update without log_prob_fn"):
        optimiser.update(PARAMS, state, PARAMS)
    with pytest.raises(ValueError, match="an update without params"):
        optimiser.update(PARAMS, state, log_prob_fn=log_probs)


def test_traced_values_pass_and_a_traced_action_out_of_range_is_not_silent() -> None:
    assert np.isfinite(jax.jit(jaxsoft.soft_value)(q, 0.1)).all()
    loss = jax.jit(jaxsoft.soft_q_loss)(q, a + A, r)
    assert np.isnan(loss).all()
