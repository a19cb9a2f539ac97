"""A small world in JAX that ends and begins its games as EnvPool does, and its exact solution."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoft.agents.base import TimeStep
from jaxsoft.environments import Space

PLACES, ACTIONS, LIMIT = 6, 2, 7
GAMMA, TAU = 0.9, 0.5
GO_ON, OVER, LIFE = range(3)

# Every place is also one where games end, so that what follows an end would change its value.
NEXT = np.array([[1, 2], [3, 0], [4, 1], [5, 2], [0, 3], [2, 4]])
REWARD = np.array([[0.5, -1.0], [0.25, 1.0], [-0.5, 0.75], [1.5, -0.25], [0.0, 2.0], [-1.0, 0.5]])
END = np.array(
    [[GO_ON, GO_ON], [LIFE, GO_ON], [GO_ON, OVER], [OVER, GO_ON], [GO_ON, LIFE], [GO_ON, GO_ON]]
)
TRAP = 100.0  # the reward of a step that is none


class State(NamedTuple):
    place: Array
    clock: Array
    games: Array
    ended: Array
    over: Array


class World:
    """[S, N] games. The step after an end ignores its action and pays what must not be counted.

    After a game the next begins somewhere else, after a lost life it continues elsewhere. A time
    limit cuts games off; what is seen does not tell the time.
    """

    observation = Space.discrete(PLACES)
    action = Space.discrete(ACTIONS)

    def __init__(self, num_envs, seeds=(0,)):
        self.batch_shape = (len(seeds), num_envs)
        self.begin = np.array([[seed + i for i in range(num_envs)] for seed in seeds], np.int32)

    def reset(self):
        no = jnp.zeros(self.batch_shape, bool)
        zero = jnp.zeros(self.batch_shape, jnp.int32)
        nothing = jnp.zeros(self.batch_shape, jnp.float32)
        games = jnp.asarray(self.begin)
        state = State(games % PLACES, zero, games, no, no)
        return state, TimeStep(
            observation=state.place,
            reward=nothing,
            discount=1 + nothing,
            cut=~no,
            weight=nothing,
            first=~no,
            score=nothing,
            over=no,
        )

    def step(self, state, action):
        over, ended = state.over, state.ended
        here = (state.place, action)
        games = state.games + over
        moved = jnp.where(ended, (state.place + 1) % PLACES, jnp.asarray(NEXT, jnp.int32)[here])
        place = jnp.where(over, games % PLACES, moved)
        clock = jnp.where(over, 0, state.clock + ~ended)
        kind = jnp.where(ended, GO_ON, jnp.asarray(END)[here])
        paid = jnp.asarray(REWARD, jnp.float32)[here]
        no_value = kind != GO_ON
        truncated = ~ended & (kind == GO_ON) & (clock >= LIMIT)
        now_over = (kind == OVER) | truncated
        step = TimeStep(
            observation=place,
            reward=jnp.where(ended, TRAP, paid),
            discount=1 - no_value.astype(jnp.float32),
            cut=no_value | truncated | ended,
            weight=1 - ended.astype(jnp.float32),
            first=over,
            # Apart from the reward, as the raw score of a clipped one would be.
            score=jnp.where(ended, 0, 4 * paid),
            over=now_over,
        )
        return State(place, clock, games, no_value | truncated, now_over), step


def soft_value(q):
    return TAU * np.log(np.mean(np.exp(q / TAU), axis=-1))


def solve(end=END):
    """Q* [places, actions] by value iteration, under the uniform prior; every end is terminal."""
    q = np.zeros((PLACES, ACTIONS))
    for _ in range(600):
        q = REWARD + GAMMA * (end == GO_ON) * soft_value(q)[NEXT]
    return q


class Plane:
    """[S, N] games of which states and actions are points: s' = s + a, for `limit` steps each.

    The reward is a₀ − s₁. The step after a time limit ignores its action, and pays a trap.
    """

    observation = Space((2,), np.dtype(np.float32))
    action = Space((2,), np.dtype(np.float32), low=-1, high=1)

    def __init__(self, num_envs, seeds=(0,), limit=5):
        self.batch_shape = (len(seeds), num_envs)
        self.limit = limit
        own = np.add.outer(np.array(seeds), np.arange(num_envs))
        self.begin = np.stack([own, -own], axis=-1).astype(np.float32)

    def reset(self):
        clock = jnp.zeros(self.batch_shape, jnp.int32)
        place, yes = jnp.asarray(self.begin), jnp.ones(self.batch_shape, bool)
        nothing = jnp.zeros(self.batch_shape, jnp.float32)
        step = TimeStep(place, nothing, 1 + nothing, yes, nothing, yes, nothing, ~yes)
        return (place, clock), step

    def step(self, state, action):
        place, clock = state
        ended = clock >= self.limit
        moved = jnp.where(ended[..., None], jnp.asarray(self.begin), place + action)
        clock = jnp.where(ended, 0, clock + 1)
        paid = action[..., 0] - place[..., 1]
        over, weight = clock >= self.limit, 1 - ended.astype(jnp.float32)
        step = TimeStep(
            observation=moved,
            reward=jnp.where(ended, TRAP, paid),
            discount=jnp.ones_like(paid),
            cut=over | ended,
            weight=weight,
            first=ended,
            score=weight * paid,
            over=over,
        )
        return (moved, clock), step
