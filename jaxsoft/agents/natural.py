"""Directions that a linear solve finds: natural policy gradient and damped soft Q-learning."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

import jaxsoft
from jaxsoft.agents.base import NetworkFn, Params, Rollout, mean
from jaxsoft.agents.on_policy import Direction, Head, Heads, Objective, soft_targets, starts_of

__all__ = ["damped_q", "natural_pg"]


def natural_pg(*, damping: ArrayLike = 1e-2, solver: str = "gram") -> Direction:
    """Natural policy gradient and Gauss-Newton on the value, one solve for both.

        min_w ½E[(∇log π·w − A)² + c(∇V·w − (V̂ − V))²] + ½λ‖w‖²            (66), (69)-(71), (53)

    A = Δ − τ(log(π/π̄) − KL). The two regressions share the trunk, hence the sum of their
    curvatures: with V frozen it is the natural policy gradient, λ-damped.

    Args:
      damping: λ.
      solver: as in `jaxsoft.natural_gradient`.
    """

    def of(
        network: NetworkFn, head: Head, params: Params, rollout: Rollout, objective: Objective
    ) -> tuple[Params, dict[str, Array], Heads]:
        at = head(network(params, rollout.observation), objective)
        kl = jaxsoft.kl_to_prior(at.log_pi[:-1], objective.log_prior)
        target = soft_targets(at, kl, rollout, objective)
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
            here = head(network(p, states), objective)
            return jnp.where(is_policy, jaxsoft.take_action(here.log_pi, actions), root * here.v)

        errors = jnp.concatenate([policy_error, root * value_error])
        # The mean is over the rows, of which every transition has two.
        descent, residual = _solve(rows, params, errors, jnp.asarray(damping) / 2, solver, weight)
        loss = mean(jnp.square(policy_error) / 2, rollout.weight)
        return descent, {"loss": loss, "residual": residual}, starts_of(at)

    return Direction(of)


def damped_q(*, damping: ArrayLike = 1e-2, solver: str = "gram") -> Direction:
    """Damped soft Q-learning by its Gauss-Newton step, V included.

        min_w ½E[(∇Q·w − (y − Q))²] + ½λ‖w‖²,   θ ← θ + εw                     (72)-(78), (44)

    The optimiser's step size is ε, the share of the new target in (1 − ε)Q_old + εy.
    `jaxsoft.damped_natural_q` is the same with V frozen.

    Args:
      damping: λ.
      solver: as in `jaxsoft.natural_gradient`.
    """

    def of(
        network: NetworkFn, head: Head, params: Params, rollout: Rollout, objective: Objective
    ) -> tuple[Params, dict[str, Array], Heads]:
        at = head(network(params, rollout.observation), objective)
        kl = jaxsoft.kl_to_prior(at.log_pi[:-1], objective.log_prior)
        error = soft_targets(at, kl, rollout, objective)
        error = error - jaxsoft.take_action(at.q[:-1], rollout.action)

        def taken(p: Params) -> Array:
            here = head(network(p, rollout.observation[:-1]), objective)
            return jaxsoft.take_action(here.q, rollout.action)

        descent, residual = _solve(taken, params, error, damping, solver, rollout.weight)
        loss = mean(jnp.square(error) / 2, rollout.weight)
        return descent, {"loss": loss, "residual": residual}, starts_of(at)

    return Direction(of)


def _solve(
    rows: Callable[[Params], Array],
    params: Params,
    errors: Array,
    damping: ArrayLike,
    solver: str,
    weight: Array,
) -> tuple[Params, Array]:
    """The direction to descend, and the solve's residual; zero where no transition counts."""
    direction, info = jaxsoft.natural_gradient(
        rows, params, errors, damping=damping, solver=solver, weight=weight
    )
    return jax.tree.map(jnp.negative, direction), info.residual
