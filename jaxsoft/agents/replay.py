"""Replay: the newest steps of N environments in a ring on the device, every frame stored once.

A row of the ring is one step of all N environments: what was seen at s_t and what was done there.
The next state is the next row's. At an episode's end that row is the automatic reset's, which holds
the true last observation and has weight 0; so nothing is stored twice, and nothing is lost.

Of a stack of frames only the newest is stored, and a stack is rebuilt from the rows before it: a
million 84×84 images take 7.06 GB. Adding writes in place wherever the old ring is not needed
again: donated to `jit`, or carried through `scan`, also under `vmap`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoft import _checks
from jaxsoft.agents.base import Extras, Rollout

__all__ = ["Replay", "add", "init", "num_starts", "sample"]


class Replay(NamedTuple):
    """A ring of L rows.

    Attributes:
      frame: newest frames of stacks, or whole observations, [L, N, ...].
      action: [L, N, *A].
      reward: float32 [L, N].
      discount: float32 [L, N], 0 where no value follows, else 1.
      cut: [L, N] bool, whether no sum continues past the row.
      weight: float32 [L, N], 0 for what is no transition.
      first: whether a whole game starts at the row's state [L, N] bool.
      extras: what the agent kept of each action, a tree of [L, N, ...].
      cursor: the row written next, int32 [].
      filled: rows that have been written, int32 [].
    """

    frame: Array
    action: Array
    reward: Array
    discount: Array
    cut: Array
    weight: Array
    first: Array
    extras: Extras
    cursor: Array
    filled: Array


def init(
    capacity: int,
    num_envs: int,
    observation: Any,
    action: Any,
    *,
    extras: Extras = None,
    stack: int = 1,
) -> Replay:
    """An empty ring of L = ⌊capacity / N⌋ rows.

    Args:
      capacity: transitions of all environments together; what N does not divide is left out.
      num_envs: N.
      observation: anything with the shape and dtype of one, such as a `jax.ShapeDtypeStruct`.
      action: the same of one action.
      extras: a tree of the same, of one action's extras that are worth keeping.
      stack: C, where observations are stacks [C, ...] of frames that shift by one a step and are
        all the first frame when a game starts; 1 stores observations whole.
    """
    name = "replay.init"
    shape, stack = tuple(observation.shape), _checks.count(name, "stack", stack)
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
        frame=ring(observation.dtype, shape[1:] if stack > 1 else shape),
        action=ring(action.dtype, tuple(action.shape)),
        reward=ring(jnp.float32),
        discount=ring(jnp.float32),
        cut=ring(bool),
        weight=ring(jnp.float32),
        first=ring(bool),
        extras=jax.tree.map(lambda x: ring(x.dtype, tuple(x.shape)), extras),
        cursor=jnp.zeros((), jnp.int32),
        filled=jnp.zeros((), jnp.int32),
    )


def add(replay: Replay, rollout: Rollout) -> Replay:
    """Writes a rollout's T steps over the oldest rows.

    The last of its T + 1 observations is the first of the next rollout and is written with it.
    Where a restart breaks that chain, `first` tells, and `sample` checks it.

    Args:
      replay: the ring; donate it, or carry it.
      rollout: T ≤ L transitions of the N environments, T not the same each time if need be; its
        extras in the form that the ring was made for.
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
    if rollout.action.shape[1:] != replay.action.shape[1:]:
        raise _checks.fail(
            "replay.add",
            f"actions {list(rollout.action.shape)}",
            f"[T, {', '.join(map(str, replay.action.shape[1:]))}], as the ring was made for",
            "Make the ring for these actions (replay.init).",
        )
    kept, given = (
        jax.tree.map(lambda x: str(list(x.shape[1:])), tree)
        for tree in (replay.extras, rollout.extras)
    )
    if kept != given:
        raise _checks.fail(
            "replay.add",
            f"extras {given} of each step",
            f"{kept}, as the ring was made for",
            "Make the ring for these extras, or add only those that it was made for.",
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
        discount=write(replay.discount, rollout.discount),
        cut=write(replay.cut, rollout.cut),
        weight=write(replay.weight, rollout.weight),
        first=write(replay.first, rollout.first[:-1]),
        extras=jax.tree.map(write, replay.extras, rollout.extras),
        cursor=(replay.cursor + length) % rows,
        filled=jnp.minimum(replay.filled + length, rows),
    )


def num_starts(replay: Replay, n: int, *, stack: int = 1) -> Array:
    """How many steps of an environment windows can start from: `filled` − n − (C − 1), or 0."""
    return jnp.maximum(replay.filled - (n + stack - 1), 0)


def sample(replay: Replay, key: Array, batch_size: int, n: int, *, stack: int = 1) -> Rollout:
    """B windows of n consecutive steps, uniformly from all that lie in the ring.

    Those whose first stack or last state is not in the ring are not drawn, so it must hold
    `num_starts` > 0. Windows may start from an automatic reset (weight 0) and continue behind an
    episode's end, as rollouts do: use `weight[0]` and `cut`. A row with a value to follow, behind
    which a game starts, has lost its next state (the environments were restarted): it becomes an
    automatic reset.

    Args:
      replay: the ring.
      key: for this sample.
      batch_size: B.
      n: steps.
      stack: C, as for `init`.

    Returns:
      A `Rollout` of T = n, with B windows instead of environments.
    """
    name = "replay.sample"
    batch_size, n = _checks.count(name, "batch_size", batch_size), _checks.count(name, "n", n)
    rows, num_envs = replay.reward.shape
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
    first = take(replay.first, states)
    game = jax.lax.cummax(jnp.where(first, states, 1 - stack))[stack - 1 :]
    frames = states[stack - 1 :, :, None] + states[None, None, :stack, 0]
    observation = take(replay.frame, jnp.maximum(frames, game[..., None]))

    steps = states[stack - 1 : -1]
    cut, weight, discount = (
        take(ring, steps) for ring in (replay.cut, replay.weight, replay.discount)
    )
    lost = first[stack:] & (weight > 0) & (discount > 0)
    return Rollout(
        observation=observation if stack > 1 else observation[:, :, 0],
        action=take(replay.action, steps),
        reward=take(replay.reward, steps),
        discount=discount,
        cut=(cut | lost).at[:-1].max(lost[1:]),
        weight=jnp.where(lost, 0, weight),
        first=first[stack - 1 :],
        extras=jax.tree.map(lambda ring: take(ring, steps), replay.extras),
    )


def _room(function: str, rows: int, num_envs: int, stack: int, n: int = 1) -> None:
    if rows < stack + n:
        raise _checks.fail(
            function,
            f"a capacity of {rows} steps of {num_envs} environments",
            f"at least {stack + n}: a stack of {stack} and {n} steps behind it",
            f"Raise `capacity` to {num_envs * (stack + n)} or, far better, much more.",
        )
