"""Where the temperature τ comes from: a number, a schedule, or the agent's own state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

__all__ = ["Temperature", "constant", "held", "of", "scheduled"]


class Temperature(NamedTuple):
    """A source of τ as pure functions; its state is part of the agent's.

    Attributes:
      init: () -> state.
      value: state -> τ, [].
      update: (state, kl) -> state after a gradient step, kl being the mean KL to the prior over
        its batch, a scalar.
    """

    init: Callable[[], Any]
    value: Callable[[Any], ArrayLike]
    update: Callable[[Any, Array], Any]


def _unchanged(state: Any, kl: Array) -> Any:
    del kl
    return state


def constant(tau: ArrayLike) -> Temperature:
    """τ as a constant of the program; a plain 0.0 makes it the one for the hard maximum."""
    return Temperature(tuple, lambda _: tau, _unchanged)


def held(tau: ArrayLike) -> Temperature:
    """τ as a number in the agent's state: seeds side by side can have one each."""
    return Temperature(lambda: jnp.asarray(tau, jnp.float32), lambda state: state, _unchanged)


def scheduled(schedule: Callable[[Array], ArrayLike]) -> Temperature:
    """τ as a function of the gradient steps taken, such as one of Optax's schedules."""
    return Temperature(lambda: jnp.zeros((), jnp.int32), schedule, lambda count, _: count + 1)


def of(tau: ArrayLike | Temperature | Callable[[Array], ArrayLike]) -> Temperature:
    """A number, a schedule or a `Temperature` as a `Temperature`."""
    if isinstance(tau, Temperature):
        return tau
    return scheduled(tau) if callable(tau) else constant(tau)
