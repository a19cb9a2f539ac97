"""What both loops share: the state of a run, its keys, acting and learning for S seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoft.agents.base import Agent, Metrics, Rollout, TimeStep
from jaxsoft.training.collect import Finished, Games

__all__ = ["Actors", "Report", "TrainState", "initial", "over_seeds"]


class TrainState(NamedTuple):
    """All that learning depends on, and what a checkpoint holds; leading axis S.

    Attributes:
      agent: the agent's state.
      key: [S].
      updates: rollouts learned from, [].
    """

    agent: Any
    key: Array
    updates: Array


class Actors(NamedTuple):
    """The environments' side, which only begins again after a restart.

    Attributes:
      environment: the environment's state.
      step: the last of its steps, [S, N, ...].
      carry: what the agent remembers of the games, [S, N, ...].
      games: their scores so far.
    """

    environment: Any
    step: TimeStep
    carry: Any
    games: Games


class Report(NamedTuple):
    """Sums over a call's updates, still on the device; leading axis S.

    Attributes:
      metrics: the agent's.
      finished: games finished.
    """

    metrics: Metrics
    finished: Finished


def initial(
    agent: Agent | Callable[[Any], Agent], seeds: Sequence[int], hyper: Any = None
) -> TrainState:
    """The state at the start; seed s gets what it would get alone.

    Args:
      agent: an `Agent`, or a function that makes one of a seed's share of `hyper`.
      seeds: of the S agents.
      hyper: a tree of [S, ...]: numbers in which the seeds differ, such as a temperature that the
        agent's state holds (`temperature.held`). Any such agent then acts and learns for all.
    """

    def one(key: Array, own: Any) -> tuple[Any, Array]:
        made = agent if isinstance(agent, Agent) else agent(own)
        key, init_key = jax.random.split(key)
        return made.init(init_key), key

    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    # Compiled whole: a replay would be there twice while a seed's axis is added to it. In turn:
    # the QR decompositions of an orthogonal start, as a batch, can wait for each other for ever
    # (jaxlib 0.10.2, on as many cores as there are of them at once).
    states, keys = jax.jit(over_seeds(one, len(seeds), [0, 0], in_turn=True))(keys, hyper)
    return TrainState(states, keys, jnp.zeros((), jnp.int32))


def over_seeds(
    f: Callable[..., Any], seeds: int, in_axes: Sequence[int], *, in_turn: bool = False
) -> Callable[..., Any]:
    """A function for each of S seeds: by `vmap`, or one after the other; for one, itself."""

    def apart(*args: Any) -> Any:
        def first(axis: int, arg: Any) -> Any:
            return jax.tree.map(lambda x: jnp.moveaxis(x, axis, 0), arg)

        leading = [first(axis, arg) for axis, arg in zip(in_axes, args, strict=True)]
        if seeds > 1:
            return jax.lax.map(lambda now: f(*now), tuple(leading))
        alone = jax.tree.map(lambda x: x[0], leading)
        return jax.tree.map(lambda x: jnp.asarray(x)[None], f(*alone))

    return jax.vmap(f, tuple(in_axes)) if seeds > 1 and not in_turn else apart


class Keys(NamedTuple):
    """One update's keys of each seed, [S] each."""

    next: Array
    act: Array
    learn: Array


def split(key: Array) -> Keys:
    """The keys of the update of `key` [S]."""
    return Keys(*jnp.moveaxis(jax.vmap(lambda k: jax.random.split(k, 3))(key), 1, 0))


def keys_of_steps(key: Array, length: int) -> Array:
    """The keys to act by in the update of `key` [S]: [T, S]."""
    return jax.vmap(lambda k: jax.random.split(k, length), out_axes=1)(split(key).act)


def initial_carry(agent: Agent, batch_shape: tuple[int, int]) -> Any:
    """What the agent remembers of S·N games that have just begun, [S, N, ...]."""
    seeds, num_envs = batch_shape
    return jax.tree.map(
        lambda x: jnp.broadcast_to(x, (seeds, *jnp.shape(x))), agent.initial_carry(num_envs)
    )


def act(
    agent: Agent,
    batch_shape: tuple[int, int],
    state: TrainState,
    carry: Any,
    step: TimeStep,
    key: Array,
    part: slice = slice(None),
) -> tuple[Array, Any, Any]:
    """(actions, carry, extras) [S, n, ...] of a part of the environments, apart from all others."""
    seeds, environments = batch_shape

    def one(state: Any, carry: Any, first: Array, observation: Array, key: Array) -> Any:
        keys = jax.random.split(key, environments)[part]

        def again(new: Array, old: Array) -> Array:
            return jnp.where(first.reshape(first.shape + (1,) * (old.ndim - 1)), new, old)

        if jax.tree.leaves(carry):
            carry = jax.tree.map(again, agent.initial_carry(len(first)), carry)
        return agent.act(state, carry, observation, keys)

    args = state.agent, carry, step.first, step.observation, key
    return over_seeds(one, seeds, [0] * len(args))(*args)  # type: ignore[no-any-return]


def learn(
    agent: Agent, state: TrainState, rollout: Rollout, in_turn: bool
) -> tuple[TrainState, Metrics]:
    """One update of every seed from rollouts [T, S, N, ...]."""
    keys = split(state.key)
    learned, metrics = over_seeds(agent.update, len(keys.next), [0, 1, 0], in_turn=in_turn)(
        state.agent, rollout, keys.learn
    )
    return TrainState(learned, keys.next, state.updates + 1), metrics
