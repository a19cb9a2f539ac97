"""The optimiser step that all agents share."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxsoft.agents.base import Params, check_shape, mean

__all__ = ["Trained", "descend", "mean_loss"]


class Trained(NamedTuple):
    """Parameters and their optimiser's state."""

    params: Params
    optimiser: Any


def mean_loss(name: str, losses: Array, weight: Array) -> Array:
    """What is differentiated: the mean of one number per transition, or an error that says so."""
    check_shape(name, losses, weight, differentiable=True)
    return mean(losses, weight)


def descend(
    optimiser: optax.GradientTransformation, trained: Trained, gradients: Params
) -> tuple[Trained, dict[str, Array]]:
    """One optimiser step, or none where the gradients are not finite.

    The norm of the gradients is in the metrics, and whether they were `skipped`: parameters are
    never lost to a NaN, whatever the loop decides to do about it.
    """
    norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(norm)
    updates, state = optimiser.update(gradients, trained.optimiser, trained.params)
    stepped = Trained(optax.apply_updates(trained.params, updates), state)
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), stepped, trained)
    return kept, {"gradient_norm": norm, "skipped": 1.0 - finite}
