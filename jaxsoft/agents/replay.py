"""Replay: the newest steps of N environments in a ring on the device, every frame stored once.

A row of the ring is one step of all N environments: what was seen at s_t and what was done there.
The next state is the next row's. At an episode's end that row is the auto-reset step, which holds
the true last observation and has weight 0; so nothing is stored twice, and nothing is lost.

Of a stack of frames only the newest is stored, and a stack is rebuilt from the rows before it: a
million 84×84 images take 7.06 GB. Adding writes in place wherever the old ring is not needed
again: donated to `jit`, or carried through `scan`, under `vmap`, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoft import _checks
from jaxsoft.training.collect import Rollout

__all__ = ["Replay", "add", "init", "num_starts", "sample"]


class Replay(NamedTuple):
    """A ring of L rows.

    Attributes:
      frame: newest frames of stacks, or whole observations, [L, N, ...].
      action: int32 [L, N].
      reward: float32 [L, N].
      terminated: [L, N] bool.
      truncated: [L, N] bool.
      weight: float32 [L, N], 0 for what is no transition.
      reset: whether a whole game starts at the row's state [L, N] bool.
      cursor: the row written next, int32 [].
      filled: rows that have been written, int32 [].
    """

    frame: Array
    action: Array
    reward: Array
    terminated: Array
    truncated: Array
    weight: Array
    reset: Array
    cursor: Array
    filled: Array


def init(
    capacity: int, num_envs: int, observation_shape: Sequence[int], dtype: Any, *, stack: int = 1
) -> Replay:
    """An empty ring of L = ⌊capacity / N⌋ rows.

    Args:
      capacity: transitions of all environments together; what N does not divide is left out.
      num_envs: N.
      observation_shape: of one observation, *O.
      dtype: of observations.
      stack: C, where observations are stacks [C, ...] of frames that shift by one a step and are
        all the first frame when a game starts; 1 stores observations whole.
    """
    name = "replay.init"
    shape, stack = tuple(observation_shape), _checks.count(name, "stack", stack)
    num_envs = _checks.count(name, "num_envs", num_envs)
    rows = _checks.count(name, "capacity", capacity) // num_envs
    _room(name, rows, num_envs, stack)
    if stack > 1 and shape[:1] != (stack,):
        raise _checks.fail(
            name,
            f"`stack` = {stack} for observations {list(shape)}",
            "a stack along the first axis of an observation, [stack, ...]",
            "Pass stack=1, which stores observations whole.",
        )

    # An array each: a buffer cannot be donated twice.
    def ring(dtype: Any, shape: tuple[int, ...] = ()) -> Array:
        return jnp.zeros((rows, num_envs, *shape), dtype)

    return Replay(
        frame=ring(dtype, shape[1:] if stack > 1 else shape),
        action=ring(jnp.int32),
        reward=ring(jnp.float32),
        terminated=ring(bool),
        truncated=ring(bool),
        weight=ring(jnp.float32),
        reset=ring(bool),
        cursor=jnp.zeros((), jnp.int32),
        filled=jnp.zeros((), jnp.int32),
    )


def add(replay: Replay, rollout: Rollout) -> Replay:
    """Writes a rollout's T steps over the oldest rows.

    The last of its T + 1 observations is the first of the next rollout and is written with it.
    Where a restart breaks that chain, `reset` tells, and `sample` heeds it.

    Args:
      replay: the ring; donate it, or carry it.
      rollout: T ≤ L transitions of the N environments, T not the same each time if need be.
    """
    rows, num_envs, *frame_shape = replay.frame.shape
    length = rollout.action.shape[0]
    shape = rollout.observation.shape
    whole = list(shape[2:]) == frame_shape
    if (
        shape[:2] != (length + 1, num_envs)
        or not (whole or list(shape[3:]) == frame_shape)
        or length > rows
    ):
        raise _checks.fail(
            "replay.add",
            f"a rollout of {length} steps with observations {list(shape)}",
            f"[T+1, {num_envs}, ...] of frames {frame_shape} and T <= {rows}, the ring's rows",
            "Make the ring for these observations (replay.init), and larger than a rollout.",
        )
    observation = rollout.observation[:-1]
    written = (replay.cursor + jnp.arange(length, dtype=jnp.int32)) % rows

    def write(ring: Array, steps: Array) -> Array:
        # Not a dynamic_update_slice: rollouts may wrap, and under `vmap` this one is the faster.
        return ring.at[written].set(
            steps.astype(ring.dtype), unique_indices=True, mode="promise_in_bounds"
        )

    return Replay(
        frame=write(replay.frame, observation if whole else observation[:, :, -1]),
        action=write(replay.action, rollout.action),
        reward=write(replay.reward, rollout.reward),
        terminated=write(replay.terminated, rollout.terminated),
        truncated=write(replay.truncated, rollout.truncated),
        weight=write(replay.weight, rollout.weight),
        reset=write(replay.reset, rollout.reset[:-1]),
        cursor=(replay.cursor + length) % rows,
        filled=jnp.minimum(replay.filled + length, rows),
    )


def num_starts(replay: Replay, n: int, *, stack: int = 1) -> Array:
    """How many steps of an environment windows can start from: `filled` − n − (C − 1), or 0."""
    return jnp.maximum(replay.filled - (n + stack - 1), 0)


def sample(replay: Replay, key: Array, batch_size: int, n: int, *, stack: int = 1) -> Rollout:
    """B windows of n consecutive steps, uniformly from all that lie in the ring.

    Those whose first stack or last state is not in the ring are not drawn, so it must hold
    `num_starts` > 0. Windows may start from an auto-reset step (weight 0) and go on behind an
    episode's end, as rollouts do: heed `weight[0]` and `cut`. A row behind which a game starts that
    nothing led to (the environments were restarted) is made an auto-reset step.

    Args:
      replay: the ring.
      key: for this sample.
      batch_size: B.
      n: steps.
      stack: C, as for `init`.

    Returns:
      A `Rollout` of T = n, B windows in the place of environments.
    """
    name = "replay.sample"
    batch_size, n = _checks.count(name, "batch_size", batch_size), _checks.count(name, "n", n)
    rows, num_envs = replay.action.shape
    _room(name, rows, num_envs, stack, n)
    env_key, start_key = jax.random.split(key)
    env = jax.random.randint(env_key, (1, batch_size), 0, num_envs, jnp.int32)
    starts = num_starts(replay, n, stack=stack)
    start = jax.random.randint(start_key, (1, batch_size), 0, starts, jnp.int32)
    # The oldest row stands at the cursor once the ring is full.
    start = replay.cursor - replay.filled + rows + (stack - 1) + start

    def take(ring: Array, offset: Array) -> Array:
        shape = (...,) + (None,) * (offset.ndim - 2)
        index = ((start[shape] + offset) % rows, env[shape])
        return ring.at[index].get(mode="promise_in_bounds")

    # A stack reaches back to the first frame of its game, and repeats that one.
    states = jnp.arange(1 - stack, n + 1, dtype=jnp.int32)[:, None]
    reset = take(replay.reset, states)
    game = jax.lax.cummax(jnp.where(reset, states, 1 - stack))[stack - 1 :]
    frames = states[stack - 1 :, :, None] + states[None, None, :stack, 0]
    observation = take(replay.frame, jnp.maximum(frames, game[..., None]))

    steps = states[stack - 1 : -1]
    truncated, weight = take(replay.truncated, steps), take(replay.weight, steps)
    lost = reset[stack:] & (weight > 0)
    return Rollout(
        observation=observation if stack > 1 else observation[:, :, 0],
        action=take(replay.action, steps),
        reward=take(replay.reward, steps),
        terminated=take(replay.terminated, steps),
        truncated=truncated.at[:-1].set(truncated[:-1] | lost[1:]),
        weight=jnp.where(lost, 0, weight),
        reset=reset[stack - 1 :],
    )


def _room(function: str, rows: int, num_envs: int, stack: int, n: int = 1) -> None:
    if rows < stack + n:
        raise _checks.fail(
            function,
            f"a capacity of {rows} steps of {num_envs} environments",
            f"at least {stack + n}: a stack of {stack} and {n} steps behind it",
            f"Raise `capacity` to {num_envs * (stack + n)} or, far better, much more.",
        )
