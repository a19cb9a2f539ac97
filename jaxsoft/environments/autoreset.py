"""From EnvPool's words for the end of an episode to ours.

EnvPool ends an episode with its true last observation, and the *next* step ignores its action and
answers with the first observation of the new episode. That step is no transition: it must have no
weight in any loss, statistic or replay, and no sum may run across it. A lost life
(`episodic_life=True`) is followed by such a step as well, although the game continues.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxsoft.agents.base import TimeStep

__all__ = ["Answer", "Memory", "filled", "interpret"]


class Answer(NamedTuple):
    """EnvPool's own words for a step, [S, N, ...]."""

    frame: Array
    reward: Array
    score: Array
    done: Array  # terminated, or a life lost
    truncated: Array
    over: Array  # the game itself is


class Memory(NamedTuple):
    """What must be remembered of the last step to tell what the next one is."""

    observation: Array  # the newest frames, the last one last
    ended: Array  # an episode, for learning
    over: Array  # a game


def interpret(memory: Memory | None, answer: Answer) -> tuple[Memory, TimeStep]:
    """Turns EnvPool's answer into a step, with its frames stacked as EnvPool would.

    Args:
      memory: of the last step; `None` at the start, where everything is a reset.
      answer: of a pool with `stack_num=1` for images, [S, N, 1, H, W], or 3 for colours.

    Returns:
      (memory, step).
    """
    first = jnp.ones_like(answer.done) if memory is None else memory.over
    dummy = first if memory is None else memory.ended
    if memory is None or memory.observation.shape == answer.frame.shape:
        observation = answer.frame
    else:
        channels = answer.frame.shape[2]
        shifted = jnp.concatenate([memory.observation[:, :, channels:], answer.frame], axis=2)
        alone = filled(answer.frame, shifted.shape[2])
        mask = first.reshape(first.shape + (1,) * (shifted.ndim - first.ndim))
        observation = jnp.where(mask, alone, shifted)
    # A time limit that falls on the game's own end is no truncation. EnvPool says `truncated` and
    # not `done` then; only of Atari games does it say besides whether they are over.
    terminated = (answer.done | answer.truncated) & answer.over
    truncated = answer.truncated & ~terminated
    life_lost = answer.done & ~terminated & ~truncated
    over = terminated | truncated
    ended = over | life_lost
    reward = answer.reward.astype(jnp.float32)
    step = TimeStep(
        observation=observation,
        reward=reward,
        discount=1 - (terminated | life_lost).astype(reward.dtype),
        cut=ended | dummy,
        weight=1 - dummy.astype(reward.dtype),
        first=first,
        score=jnp.where(dummy, 0, answer.score).astype(reward.dtype),
        over=over,
    )
    return Memory(observation, ended, over), step


def filled(frame: Array, channels: int) -> Array:
    """A stack of nothing but this frame [S, N, c, H, W]."""
    return jnp.tile(frame, (1, 1, channels // frame.shape[2], 1, 1))
