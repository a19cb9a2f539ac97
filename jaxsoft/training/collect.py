"""From time steps to rollouts, and the scores of the games that finished.

Time is axis 0, as everywhere; the axes of the environments follow.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoft.agents.base import Rollout, TimeStep

__all__ = ["Finished", "Games", "assemble", "no_games", "score"]


def assemble(start: TimeStep, action: Array, steps: TimeStep, extras: Any = None) -> Rollout:
    """A rollout of what was seen at its start, the actions [T, ...] and the steps that followed."""

    def states(first: Array, rest: Array) -> Array:
        return jnp.concatenate([first[None], rest])

    return Rollout(
        observation=states(start.observation, steps.observation),
        action=action,
        reward=steps.reward,
        discount=steps.discount,
        cut=steps.cut,
        weight=steps.weight,
        first=states(start.first, steps.first),
        extras=extras,
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


def score(games: Games, steps: TimeStep) -> tuple[Games, Finished]:
    """Adds steps [T, S, N] to the games, and says what finished: whole games, raw rewards.

    A lost life ends no game, and an automatic reset is no step of one.
    """

    def add(games: Games, step: tuple[Array, Array, Array]) -> tuple[Games, Finished]:
        reward, weight, over = step
        total, length = games.score + reward, games.length + weight
        ended = Finished(*(jnp.where(over, x, 0.0) for x in (1.0, total, total**2, length)))
        playing = Games(jnp.where(over, 0.0, total), jnp.where(over, 0.0, length))
        return playing, Finished(*(x.sum(-1) for x in ended))

    games, finished = jax.lax.scan(add, games, (steps.score, steps.weight, steps.over))
    return games, Finished(*(x.sum(0) for x in finished))
