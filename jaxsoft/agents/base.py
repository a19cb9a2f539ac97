"""What a training loop asks of a learner, and the optimiser step that all learners share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxsoft.training.collect import Rollout

__all__ = ["Learner", "Metrics", "NetworkFn", "Params", "Trained", "descend"]

Params = Any
Metrics = dict[str, Array]

NetworkFn = Callable[[Params, Array], Any]
"""(params, observations [..., *O]) -> q [..., A], or (v [...], log_pi [..., A])."""


class Learner(NamedTuple):
    """One learner as pure functions of arrays, `vmap`-able over seeds.

    Attributes:
      init: key -> state.
      act: (state, observations [N, ...], keys [N]) -> actions [N]; a key an environment.
      update: (state, rollout, key) -> (state, metrics), metrics being means over the gradient
        steps taken and their number, "updates"; with 0 updates the others do not count.
      act_and_keep: as `act`, and a tree of arrays that `update` can use: the rollout's `kept`,
        with time stacked before. A loop may do without.
    """

    init: Callable[[Array], Any]
    act: Callable[[Any, Array, Array], Array]
    update: Callable[[Any, Rollout, Array], tuple[Any, Metrics]]
    act_and_keep: Callable[[Any, Array, Array], tuple[Array, Any]] | None = None


class Trained(NamedTuple):
    """Parameters and their optimiser's state."""

    params: Params
    optimiser: Any


def descend(
    optimiser: optax.GradientTransformation, trained: Trained, gradients: Params
) -> tuple[Trained, Metrics]:
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
