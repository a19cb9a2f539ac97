"""On-policy learners: one actor, one learner, and the algorithms as short functions.

An algorithm is a function from what the network says at a rollout's T + 1 states, and the rollout,
to per-step losses [T, N]. Policy gradient and soft Q-learning differ in one line of it:

    a2c      a2c_loss(v, log π, a, y, τ, c)
    soft_q   tied_soft_q_loss(v, log π, a, y, τ, c)

with the same n-step soft targets y. The natural-gradient algorithms are not gradients of a loss;
they are functions from parameters to a step. Either kind can be a function of your own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

import jaxsoft
from jaxsoft import _checks, losses
from jaxsoft.agents import _reuse
from jaxsoft.agents.base import Learner, Metrics, NetworkFn, Params, Trained, descend
from jaxsoft.training.collect import Rollout

__all__ = [
    "ALGORITHMS",
    "Gradient",
    "Heads",
    "Objective",
    "StepLoss",
    "a2c",
    "a2c_naive",
    "damped_q",
    "gradient_of",
    "heads",
    "learner",
    "natural_pg",
    "nstep_soft_q",
    "pcl",
    "pgq",
    "soft_q",
]


class Objective(NamedTuple):
    """What is maximised, E Σ γᵗ(r − τKL[π‖π̄]), and how its gradient is estimated.

    Attributes:
      tau: τ.
      discount: γ.
      n: steps to the bootstrap; any n ≥ T is the whole rollout.
      value_coef: c, the weight of the value loss.
      log_prior: log π̄; `None` is uniform (a KL penalty), `0.0` counting (an entropy bonus), or
        [A], the same in every state.
    """

    tau: jax.typing.ArrayLike = 0.01
    discount: jax.typing.ArrayLike = 0.99
    n: int = 5
    value_coef: jax.typing.ArrayLike = 0.5
    log_prior: jax.typing.ArrayLike | None = None


class Heads(NamedTuple):
    """Value, policy and action values at the T + 1 states of a rollout, tied by (57).

    Attributes:
      v: [T+1, N].
      log_pi: [T+1, N, A].
      q: [T+1, N, A].
    """

    v: Array
    log_pi: Array
    q: Array


StepLoss = Callable[[Heads, Rollout, Objective], Array]
"""(heads, rollout, objective) -> losses [T, N]."""

Gradient = Callable[[NetworkFn, Params, Rollout, Objective], tuple[Params, Metrics]]
"""(network, params, rollout, objective) -> (a direction to descend, metrics)."""


def heads(network: NetworkFn, params: Params, observation: Array, objective: Objective) -> Heads:
    """What the network says, completed: Q from (V, π), or V and π from Q."""
    return completed(network(params, observation), objective)


def completed(out: Any, objective: Objective) -> Heads:
    """All of the heads from a network's output at the same states."""
    tau, log_prior = objective.tau, objective.log_prior
    if isinstance(out, tuple):
        v, log_pi = out
        return Heads(v, log_pi, jaxsoft.q_from_policy(v, log_pi, tau, log_prior))
    return Heads(
        jaxsoft.soft_value(out, tau, log_prior), jaxsoft.log_policy(out, tau, log_prior), out
    )


def soft_targets(at: Heads, rollout: Rollout, objective: Objective) -> Array:
    """n-step soft Q targets y [T, N], (47)."""
    return jaxsoft.n_step_soft_q_targets(
        at.v,
        jaxsoft.kl_to_prior(at.log_pi, objective.log_prior),
        rollout.reward,
        discount_t=rollout.discount(objective.discount),
        tau=objective.tau,
        n=objective.n,
        cut_t=rollout.cut,
    )


def a2c(at: Heads, rollout: Rollout, objective: Objective) -> Array:
    """Advantage actor-critic with the entropy in the return, (80), (84)-(86)."""
    target = soft_targets(at, rollout, objective)
    return losses.a2c_loss(
        at.v[:-1],
        at.log_pi[:-1],
        rollout.action,
        target_t=target,
        tau=objective.tau,
        value_coef=objective.value_coef,
        log_prior=objective.log_prior,
    )


def soft_q(at: Heads, rollout: Rollout, objective: Objective) -> Array:
    """Soft Q-learning on Q = V + τ log(π/π̄), scaled as A2C is, §6.3."""
    target = soft_targets(at, rollout, objective)
    return losses.tied_soft_q_loss(
        at.v[:-1],
        at.log_pi[:-1],
        rollout.action,
        target_t=target,
        tau=objective.tau,
        value_coef=objective.value_coef,
        log_prior=objective.log_prior,
    )


def a2c_naive(at: Heads, rollout: Rollout, objective: Objective) -> Array:
    """Advantage actor-critic with an entropy bonus outside the return, (79)."""
    return jaxsoft.naive_actor_critic(
        at.v,
        at.log_pi,
        rollout.action,
        r_t=rollout.reward,
        discount_t=rollout.discount(objective.discount),
        tau=objective.tau,
        n=objective.n,
        value_coef=objective.value_coef,
        log_prior=objective.log_prior,
        cut_t=rollout.cut,
    )


def nstep_soft_q(at: Heads, rollout: Rollout, objective: Objective) -> Array:
    """n-step soft Q-learning on plain action values, acting by their policy, (44)-(47)."""
    target = soft_targets(at, rollout, objective)
    return losses.soft_q_loss(at.q[:-1], rollout.action, target)


def pcl(at: Heads, rollout: Rollout, objective: Objective) -> Array:
    """Path consistency learning, (90)."""
    return losses.path_consistency_loss(
        at.v[:-1],
        at.log_pi[:-1],
        rollout.action,
        r_t=rollout.reward,
        discount_t=rollout.discount(objective.discount),
        v_t=at.v[1:],
        tau=objective.tau,
        n=objective.n,
        log_prior=objective.log_prior,
        cut_t=rollout.cut,
    )


def pgq(at: Heads, rollout: Rollout, objective: Objective) -> Array:
    """Half policy gradient on n-step returns, half Q-learning on r + γ max Q̃, (87)."""
    kl = jaxsoft.kl_to_prior(at.log_pi, objective.log_prior)
    returns = at.v[:-1] + _advantages(at, rollout, objective, kl[:-1])
    centred = at.q - objective.tau * kl[..., None]
    backups = jaxsoft.one_step_targets(
        rollout.reward, rollout.discount(objective.discount), centred[1:], tau=0.0
    )
    return losses.pgq_loss(
        at.v[:-1],
        at.log_pi[:-1],
        rollout.action,
        return_t=returns,
        backup_t=backups,
        tau=objective.tau,
        value_coef=objective.value_coef,
        log_prior=objective.log_prior,
    )


def gradient_of(step_loss: StepLoss, *, through_last: bool = True) -> Gradient:
    """The gradient of a loss's mean over the transitions that count.

    Args:
      step_loss: (heads, rollout, objective) -> losses [T, N].
      through_last: whether it has a gradient into the heads of the last state, which other losses
        only bootstrap from. Without, the network is not differentiated there, 1/(T + 1) of it.
    """

    def gradient(
        network: NetworkFn, params: Params, rollout: Rollout, objective: Objective
    ) -> tuple[Params, Metrics]:
        observation, kept = rollout.observation, rollout.kept
        ends: tuple[Heads, ...] = ()
        if not through_last:
            ends = (heads(network, params, observation[-1:], objective),)
            observation = observation[:-1]
        if kept and not through_last:
            out, pull = _reuse.pullback(network, params, observation, kept)
        else:
            out, pull = jax.vjp(lambda p: network(p, observation), params)

        def loss(out: Any) -> tuple[Array, Heads]:
            parts = completed(out, objective), *ends
            at = Heads(*(jnp.concatenate(states) for states in zip(*parts, strict=True)))
            return _mean(step_loss(at, rollout, objective), rollout.weight), at

        (value, at), cotangents = jax.value_and_grad(loss, has_aux=True)(out)
        [gradients] = pull(cotangents)
        return gradients, {"loss": value} | _describe(at, rollout, objective)

    return gradient


def natural_pg(*, damping: jax.typing.ArrayLike = 1e-2, solver: str = "gram") -> Gradient:
    """Natural policy gradient and Gauss-Newton on the value, one solve for both.

        min_w ½E[(∇log π·w − A)² + c(∇V·w − (V̂ − V))²] + ½λ‖w‖²            (66), (69)-(71), (53)

    A = Δ − τ(log(π/π̄) − KL). The two regressions share the trunk, hence the sum of their
    curvatures: with V frozen it is the natural policy gradient, λ-damped.

    Args:
      damping: λ.
      solver: as in `jaxsoft.natural_gradient`.
    """

    def gradient(
        network: NetworkFn, params: Params, rollout: Rollout, objective: Objective
    ) -> tuple[Params, Metrics]:
        at = heads(network, params, rollout.observation, objective)
        target = soft_targets(at, rollout, objective)
        kl = jaxsoft.kl_to_prior(at.log_pi[:-1], objective.log_prior)
        value_error = target - objective.tau * kl - at.v[:-1]
        policy_error = target - jaxsoft.take_action(at.q[:-1], rollout.action)
        root = jnp.sqrt(jnp.asarray(objective.value_coef)).astype(value_error.dtype)

        taken = rollout.action
        # Every state twice, so that each row belongs to one sample, as the Gram solver needs it.
        states, actions, weight = (
            jnp.concatenate([x, x]) for x in (rollout.observation[:-1], taken, rollout.weight)
        )
        is_policy = jnp.arange(len(actions)) < len(taken)
        is_policy = is_policy.reshape(-1, *(1,) * (taken.ndim - 1))

        def rows(p: Params) -> Array:
            here = heads(network, p, states, objective)
            return jnp.where(is_policy, jaxsoft.take_action(here.log_pi, actions), root * here.v)

        errors = jnp.concatenate([policy_error, root * value_error])
        # The mean is over the rows, of which every transition has two.
        descent, residual = _solve(rows, params, errors, jnp.asarray(damping) / 2, solver, weight)
        return descent, {
            "loss": _mean(jnp.square(policy_error) / 2, rollout.weight),
            "residual": residual,
        } | _describe(at, rollout, objective)

    return gradient


def damped_q(*, damping: jax.typing.ArrayLike = 1e-2, solver: str = "gram") -> Gradient:
    """Damped soft Q-learning by its Gauss-Newton step.

        min_w ½E[(∇Q·w − (y − Q))²] + ½λ‖w‖²,   θ ← θ + εw                     (72)-(78), (44)

    The optimiser's step size is ε, the share of the new target in (1 − ε)Q_old + εy.

    Args:
      damping: λ.
      solver: as in `jaxsoft.natural_gradient`.
    """

    def gradient(
        network: NetworkFn, params: Params, rollout: Rollout, objective: Objective
    ) -> tuple[Params, Metrics]:
        at = heads(network, params, rollout.observation, objective)
        error = soft_targets(at, rollout, objective)
        error = error - jaxsoft.take_action(at.q[:-1], rollout.action)

        def taken(p: Params) -> Array:
            here = heads(network, p, rollout.observation[:-1], objective)
            return jaxsoft.take_action(here.q, rollout.action)

        descent, residual = _solve(taken, params, error, damping, solver, rollout.weight)
        return descent, {
            "loss": _mean(jnp.square(error) / 2, rollout.weight),
            "residual": residual,
        } | _describe(at, rollout, objective)

    return gradient


ALGORITHMS: dict[str, StepLoss] = {
    "a2c": a2c,
    "a2c_naive": a2c_naive,
    "soft_q": soft_q,
    "nstep_soft_q": nstep_soft_q,
    "pcl": pcl,
    "pgq": pgq,
}
# These differentiate what they bootstrap from.
_RESIDUAL = (pcl,)


def learner(
    network: NetworkFn,
    init_params: Callable[[Array], Params],
    algorithm: StepLoss | None = None,
    *,
    gradient: Gradient | None = None,
    optimiser: optax.GradientTransformation,
    objective: Objective,
) -> Learner:
    """A learner that acts by its policy and takes one optimiser step a rollout.

    Args:
      network: (params, observations [..., *O]) -> q [..., A], or (v [...], log_pi [..., A]).
      init_params: key -> params.
      algorithm: per-step losses; or else
      gradient: a direction to descend.
      optimiser: any of Optax; clipping belongs into it.
      objective: handed to the algorithm.

    Returns:
      A `Learner`.
    """
    if (algorithm is None) == (gradient is None):
        raise _checks.fail(
            "on_policy.learner",
            "neither `algorithm` nor `gradient`" if algorithm is None else "both of them",
            "one of the two",
            "`algorithm` gives per-step losses, `gradient` a direction.",
        )
    bootstraps = algorithm in ALGORITHMS.values() and algorithm not in _RESIDUAL
    if algorithm is not None:
        # Of a loss of the user's own nothing is known.
        gradient = gradient_of(algorithm, through_last=not bootstraps)
    assert gradient is not None
    direction = gradient

    def init(key: Array) -> Trained:
        params = init_params(key)
        return Trained(params, optimiser.init(params))

    def act(state: Trained, observation: Array, keys: Array) -> Array:
        return _sampled(heads(network, state.params, observation, objective), keys)

    def act_and_keep(state: Trained, observation: Array, keys: Array) -> tuple[Array, Any]:
        out, kept = _reuse.kept(network, state.params, observation)
        return _sampled(completed(out, objective), keys), kept

    def update(state: Trained, rollout: Rollout, key: Array) -> tuple[Trained, Metrics]:
        del key
        gradients, metrics = direction(network, state.params, rollout, objective)
        state, step = descend(optimiser, state, gradients)
        return state, metrics | step | {"updates": jnp.ones(())}

    return Learner(init, act, update, act_and_keep if bootstraps else None)


def _sampled(at: Heads, keys: Array) -> Array:
    return jaxsoft.sample_actions(keys, at.log_pi)


def _advantages(at: Heads, rollout: Rollout, objective: Objective, kl: Array) -> Array:
    discount = rollout.discount(objective.discount)
    delta = jaxsoft.td_errors(
        at.v[:-1], rollout.reward, discount, v_t=at.v[1:], kl_tm1=kl, tau=objective.tau
    )
    return jaxsoft.n_step_advantages(delta, discount, n=objective.n, cut_t=rollout.cut)


def _mean(x: Array, weight: Array) -> Array:
    return jnp.sum(weight * x) / jnp.maximum(jnp.sum(weight), 1)


def _describe(at: Heads, rollout: Rollout, objective: Objective) -> Metrics:
    starts = jax.lax.stop_gradient(Heads(*(x[:-1] for x in at)))
    kl = jaxsoft.kl_to_prior(starts.log_pi, objective.log_prior)
    advantage = _advantages(jax.lax.stop_gradient(at), rollout, objective, kl)
    per_step = {
        "value": starts.v,
        "value_error": jnp.abs(advantage),
        "entropy": -jaxsoft.kl_to_prior(starts.log_pi, 0.0),
        "kl": jaxsoft.kl_to_prior(starts.log_pi),
    }
    return {name: _mean(x, rollout.weight) for name, x in per_step.items()}


def _solve(
    rows: Callable[[Params], Array],
    params: Params,
    errors: Array,
    damping: jax.typing.ArrayLike,
    solver: str,
    weight: Array,
) -> tuple[Params, Array]:
    """The direction to descend, and the solve's residual; zero where no transition counts."""
    counts = jnp.any(weight > 0)
    direction, info = jaxsoft.natural_gradient(
        rows,
        params,
        jnp.where(counts, errors, 0),
        damping=damping,
        solver=solver,
        weight=jnp.where(counts, weight, 1),
    )
    return jax.tree.map(jnp.negative, direction), info.residual
