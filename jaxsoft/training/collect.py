"""Rollouts: what a policy saw and did for T steps, and the scores of the games it finished.

Time is axis 0, as everywhere; the axes of the environments follow.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsoft.environments import Step

__all__ = ["Finished", "Games", "Rollout", "assemble", "no_games", "score"]


class Rollout(NamedTuple):
    """T transitions of N environments.

    Attributes:
      observation: at the T + 1 states [T+1, N, ...].
      action: [T, N].
      reward: [T, N].
      terminated: no value follows: the game's end, or a lost life, [T, N] bool.
      truncated: a time limit: bootstrap from the next observation, then cut, [T, N] bool.
      weight: 1, or 0 where an auto-reset made this no transition, [T, N].
      reset: whether a whole game starts at the T + 1 states [T+1, N] bool.
      kept: what the learner kept while it acted, a tree of [T, ...]; `None` where it did not.
    """

    observation: Array
    action: Array
    reward: Array
    terminated: Array
    truncated: Array
    weight: Array
    reset: Array
    kept: Any = None

    def discount(self, gamma: ArrayLike) -> Array:
        """γ, or 0 at a termination, [T, N]."""
        return jnp.where(self.terminated, 0.0, gamma).astype(self.reward.dtype)

    @property
    def cut(self) -> Array:
        """Where no sum goes on: after an end of any kind, and after what is no transition."""
        return self.terminated | self.truncated | (self.weight == 0)


def assemble(start: Step, action: Array, steps: Step, kept: Any = None) -> Rollout:
    """A rollout of what was seen at its start, the actions [T, ...] and the steps that followed."""

    def states(first: Array, rest: Array) -> Array:
        return jnp.concatenate([first[None], rest])

    return Rollout(
        observation=states(start.observation, steps.observation),
        action=action,
        reward=steps.reward,
        terminated=steps.terminated | steps.life_lost,
        truncated=steps.truncated,
        weight=(~steps.first).astype(steps.reward.dtype),
        reset=states(start.reset, steps.reset),
        kept=kept,
    )


class Games(NamedTuple):
    """The games being played: raw return and length so far, [S, N]."""

    score: Array
    length: Array


class Finished(NamedTuple):
    """Sums over the games finished: their number, returns, squared returns and lengths, [S]."""

    games: Array
    score: Array
    square: Array
    length: Array


def no_games(batch_shape: tuple[int, int]) -> Games:
    """Games of which nothing has been played."""
    return Games(jnp.zeros(batch_shape), jnp.zeros(batch_shape))


def score(games: Games, steps: Step) -> tuple[Games, Finished]:
    """Adds steps [T, S, N] to the games, and says what finished: whole games, raw rewards.

    A lost life ends no game, and an auto-reset is no step of one.
    """

    def add(games: Games, step: Step) -> tuple[Games, Finished]:
        total = games.score + jnp.where(step.first, 0.0, step.score)
        length = games.length + (1.0 - step.first)
        over = step.terminated | step.truncated
        ended = Finished(*(jnp.where(over, x, 0.0) for x in (1.0, total, total**2, length)))
        going_on = Games(jnp.where(over, 0.0, total), jnp.where(over, 0.0, length))
        return going_on, Finished(*(x.sum(-1) for x in ended))

    games, finished = jax.lax.scan(add, games, steps._replace(observation=None))  # type: ignore[arg-type]
    return games, Finished(*(x.sum(0) for x in finished))
