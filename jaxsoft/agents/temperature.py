"""Where the temperature τ comes from: a number, a schedule, or the agent's own state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _checks, losses

__all__ = ["Temperature", "constant", "held", "of", "scheduled", "told", "tuned"]


class Temperature(NamedTuple):
    """A source of τ as pure functions; its state is part of the agent's.

    Attributes:
      init: () -> state.
      value: state -> τ, [].
      update: (state, kl) -> state after a gradient step, kl being the mean KL to the prior over
        its batch, a scalar.
      by_kl: whether `update` looks at the KL, which not every agent knows.
    """

    init: Callable[[], Any]
    value: Callable[[Any], ArrayLike]
    update: Callable[[Any, Array], Any]
    by_kl: bool = False


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


def tuned(target_kl: ArrayLike, *, start: float = 1.0, learning_rate: float = 3e-4) -> Temperature:
    """τ so that the policy's KL to its prior becomes κ: it rises while the KL is greater.

    Descends on the dual τ(κ − KL) in log τ, by Adam. A target entropy H̄ is κ = log A − H̄ for A
    actions and the uniform prior, and −H̄ for the counting one.

    Args:
      target_kl: κ, greater than the least KL that the prior's measure allows.
      start: τ at first.
      learning_rate: of Adam.
    """
    if not start > 0:
        raise _checks.fail("temperature.tuned", f"`start` = {start}", "τ > 0", "Start from 1.0.")
    optimiser = optax.adam(learning_rate)

    def init() -> tuple[Array, Any]:
        log_tau = jnp.log(jnp.asarray(start, jnp.float32))
        return log_tau, optimiser.init(log_tau)

    def update(state: Any, kl: Array) -> Any:
        log_tau, memory = state

        def dual(log_tau: Array) -> Array:
            return losses.temperature_loss(jnp.exp(log_tau), kl, target_kl)

        step, memory = optimiser.update(jax.grad(dual)(log_tau), memory)
        return log_tau + step, memory

    return Temperature(init, lambda state: jnp.exp(state[0]), update, by_kl=True)


def told(source: Temperature, state: Any) -> dict[str, Array]:
    """τ for the metrics, where it changes."""
    return {"tau": jnp.asarray(source.value(state))} if jax.tree.leaves(state) else {}


def of(
    tau: ArrayLike | Temperature | Callable[[Array], ArrayLike], name: str | None = None
) -> Temperature:
    """A number, a schedule or a `Temperature` as a `Temperature`.

    Args:
      tau: one of these.
      name: of the agent that checks it, if it is a number.
    """
    if isinstance(tau, Temperature):
        return tau
    if callable(tau):
        return scheduled(tau)
    if name is not None:
        _checks.arguments(name, tau=tau)
    return constant(tau)
