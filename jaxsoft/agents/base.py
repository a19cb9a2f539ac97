"""What passes between environments, agents and training loops.

An environment answers with a `TimeStep`, a loop collects them into a `Rollout`, and an `Agent` acts
and learns. Nothing here is more than arrays and functions, so an environment, an agent or a loop of
your own needs nothing else of this package.

The end of an episode has one vocabulary everywhere. Of a transition s → s':

    discount    1, or 0 where no value follows: the game is over by its own rules, or a life is lost
    cut         no sum continues past it: an end of any kind, or no transition at all
    weight      1, or 0 where it is no transition: an automatic reset led from s to s'

and of a state, `first`: a whole game starts there. Truncation is a cut with discount 1: the value
of s', the true last observation, is bootstrapped from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxsoft import _checks

__all__ = ["Agent", "Metrics", "NetworkFn", "Params", "Rollout", "TimeStep", "mean"]

Params = Any
"""A tree of arrays."""
State = Any
"""All that an agent has learned: a tree of arrays."""
Carry = Any
"""What an agent remembers of each game being played: a tree of [N, ...], or `None`."""
Extras = Any
"""What an agent wants to know again when it learns: a tree of [N, ...], or `None`."""

NetworkFn = Callable[[Params, Array], Any]
"""(params, observations [..., *O]) -> what the head of an algorithm makes sense of."""


class TimeStep(NamedTuple):
    """What follows an action, of shape [..., N] each; leading axes are the caller's.

    Attributes:
      observation: what is seen now [..., N, *O]; at an end, the true last observation.
      reward: float32, to learn from (clipped, if the environment was made so).
      discount: float32, 0 where no value follows, else 1.
      cut: bool, whether no sum continues past this transition.
      weight: float32, 0 where no transition led here, else 1.
      first: bool, whether a whole game starts with this observation.
      score: float32, the raw reward, for reports; 0 where `weight` is.
      over: bool, whether a whole game ends with this transition, for reports.
    """

    observation: Array
    reward: Array
    discount: Array
    cut: Array
    weight: Array
    first: Array
    score: Array
    over: Array


class Rollout(NamedTuple):
    """T transitions of N environments: what an agent saw and did.

    Attributes:
      observation: at the T + 1 states [T+1, N, *O].
      action: [T, N, *A], of the environment's shape and dtype.
      reward: [T, N].
      discount: [T, N], 0 where no value follows, else 1; an agent multiplies it by its γ.
      cut: [T, N] bool, whether no sum continues past the transition.
      weight: [T, N], 0 where it is no transition: it must not count in any mean.
      first: [T+1, N] bool, whether a whole game starts at the state.
      extras: what the agent's `act` returned with each action, a tree of [T, N, ...].
    """

    observation: Array
    action: Array
    reward: Array
    discount: Array
    cut: Array
    weight: Array
    first: Array
    extras: Extras = None


class Metrics(NamedTuple):
    """Sums and the number of things summed, so that metrics of several updates simply add up.

    Attributes:
      sums: name -> sum over gradient steps of a mean over transitions, [].
      updates: the count, of gradient steps that had transitions, []; with 0 the sums are 0.
    """

    sums: dict[str, Array]
    updates: Array


def _no_carry(num_envs: int) -> Carry:
    del num_envs


def _all_of_it(state: State) -> State:
    return state


class Agent(NamedTuple):
    """An agent as pure functions of arrays, which a loop may `vmap` over seeds.

    Three functions make an agent; the others have defaults for one without memory.

    Attributes:
      init: key -> state.
      act: (state, carry, observation [N, *O], key [N]) -> (action [N, *A], carry, extras), with a
        key for each environment, so that what one does depends on no other: N environments in
        one batch act as they would in two halves.
      update: (state, rollout, key) -> (state, `Metrics`).
      greedy: as `act`, by the best action; `None` where there is no such thing.
      initial_carry: N -> carry at the start of N games. A loop puts it back wherever a game starts.
      forget: state -> state without what can be gathered again, such as a replay: `None` stands
        for each part that is left out. That is what evaluation and checkpoints hold.
    """

    init: Callable[[Array], State]
    act: Callable[[State, Carry, Array, Array], tuple[Array, Carry, Extras]]
    update: Callable[[State, Rollout, Array], tuple[State, Metrics]]
    greedy: Callable[[State, Carry, Array, Array], tuple[Array, Carry, Extras]] | None = None
    initial_carry: Callable[[int], Carry] = _no_carry
    forget: Callable[[State], State] = _all_of_it


def mean(x: Array, weight: Array) -> Array:
    """Σwx / Σw over the transitions that count, and 0 where none does, [].

    Args:
      x: of the shape of `weight`; of transitions that do not count it may be NaN.
      weight: w, 0 or 1.
    """
    check_shape("mean", x, weight)
    total = jnp.sum(jnp.where(weight == 0, 0, weight * x))
    return total / jnp.maximum(jnp.sum(weight), 1)


def check_shape(name: str, x: Array, weight: Array, *, differentiable: bool = False) -> None:
    """Refuses, by the name of what it comes from, what is not one number per transition."""
    dtype = jnp.result_type(x)
    is_right = jnp.issubdtype(dtype, jnp.floating) or not differentiable
    if jnp.shape(x) != weight.shape or not is_right:
        raise _checks.fail(
            name,
            f"{dtype}{list(jnp.shape(x))}",
            f"one number per transition, of a floating dtype and the shape {list(weight.shape)}",
            "Return it unreduced: the mean is taken over the transitions that count.",
        )
