"""Agents of one's own: three functions, a memory of each game, and actions of any kind."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsoft.agents import replay
from jaxsoft.agents.base import Agent, Metrics, mean
from jaxsoft.environments import EnvPool, HostEnvPool
from jaxsoft.training.graph import GraphLoop
from jaxsoft.training.host import HostLoop
from jaxsoft.training.loop import initial
from tests.support.worlds import Plane, World

LENGTH, ENVS, SEEDS = 6, 3, (3, 5)
DRIVERS = ("graph", "host", "halves")


def loop_of(driver, game, agent, **options):
    """A loop on one pool, or from the host on two."""
    shared: dict[str, Any] = {"num_envs": ENVS, "seeds": SEEDS, "num_threads": 1} | options
    if driver == "graph":
        return GraphLoop(EnvPool(game, **shared), agent, length=LENGTH)
    parts = {"host": [(0, ENVS)], "halves": [(0, 1), (1, ENVS)]}[driver]
    pools = [HostEnvPool(game, part=part, **shared) for part in parts]
    return HostLoop(pools, agent, length=LENGTH)


def collected(loop, rollouts=5):
    """Rollouts [T, S, N], one after the other in time, and the carries [S, N] at their ends."""
    state, actors = initial(loop.agent, SEEDS), loop.start()
    found = []
    for i in range(rollouts):
        key = jax.vmap(jax.random.fold_in, (0, None))(state.key, i)
        actors, rollout = loop.collect(state._replace(key=key), actors)
        found.append(jax.tree.map(np.array, (rollout, actors.carry)))
    return found


# ---- Three functions -----------------------------------------------------------------------------


class Counted(NamedTuple):
    seen: Any
    draws: Any


def counting():
    """Acts at random, and counts what it is given to learn from."""

    def init(key):
        return Counted(jnp.zeros(()), jax.random.bits(key, dtype=jnp.uint32))

    def act(state, carry, observation, key):
        assert carry is None
        return jax.vmap(lambda k: jax.random.randint(k, (), 0, 2))(key), carry, None

    def update(state, rollout, key):
        assert rollout.extras is None
        state = Counted(state.seen + rollout.weight.sum(), jax.random.bits(key, dtype=jnp.uint32))
        return state, Metrics({"seen": rollout.weight.sum()}, jnp.ones(()))

    return Agent(init, act, update)


@pytest.mark.parametrize("driver", DRIVERS)
def test_three_functions_make_an_agent(driver):
    agent = counting()
    loop = loop_of(driver, "CartPole-v1", agent, max_episode_steps=5)
    state, _, report = loop.run(initial(agent, SEEDS), loop.start(), 4)
    # Of the 24 steps of an environment, those after its ends are none.
    assert np.all((state.agent.seen > 4 * 12) & (state.agent.seen < 24 * ENVS))
    np.testing.assert_array_equal(report.metrics.sums["seen"], state.agent.seen)
    np.testing.assert_array_equal(report.metrics.updates, 4)
    assert len({*state.agent.draws.tolist()}) == 2
    assert agent.greedy is None
    assert agent.initial_carry(3) is None
    assert agent.forget(state) is state


# ---- A memory of each game -----------------------------------------------------------------------

START = {"sum": 100.0, "age": 10}


def remembering(actions, start=START):
    """Acts at random; its carry are the sum of what it has seen in this game, and for how long."""

    def initial_carry(num_envs):
        return {
            "sum": jnp.full((num_envs, 2), start["sum"], jnp.float32),
            "age": jnp.full(num_envs, start["age"], jnp.int32),
        }

    def act(state, carry, observation, key):
        seen = observation.reshape(len(key), -1)[:, :2].astype(jnp.float32)
        carry = {"sum": carry["sum"] + seen, "age": carry["age"] + 1}
        action = jax.vmap(lambda k: jax.random.randint(k, (), 0, actions))(key)
        return action, carry, {"carry": carry, "drawn": (jax.vmap(jax.random.bits)(key),)}

    def update(state, rollout, key):
        age = mean(rollout.extras["carry"]["age"], rollout.weight)
        return state + age, Metrics({"age": age}, jnp.ones(()))

    return Agent(lambda key: jnp.zeros(()), act, update, initial_carry=initial_carry)


def check_memory(rollouts):
    """The carry is as it was at a game's start wherever one starts, and nowhere else."""
    sums = np.full((len(SEEDS), rollouts[0][0].action.shape[2], 2), np.nan, np.float32)
    age, starts = np.zeros(sums.shape[:2], int), 0
    for rollout, carry in rollouts:
        for t in range(LENGTH):
            first = rollout.first[t]
            sums = np.where(first[..., None], np.float32(START["sum"]), sums)
            seen = rollout.observation[t].reshape(*first.shape, -1)[..., :2]
            sums, age = sums + seen.astype(np.float32), np.where(first, START["age"], age) + 1
            np.testing.assert_array_equal(rollout.extras["carry"]["sum"][t], sums)
            np.testing.assert_array_equal(rollout.extras["carry"]["age"][t], age)
            starts += first.sum()
        np.testing.assert_array_equal(carry["sum"], sums)
        np.testing.assert_array_equal(carry["age"], age)
    return starts


@functools.cache
def remembered(driver):
    loop = loop_of(driver, "CartPole-v1", remembering(2), max_episode_steps=7)
    return collected(loop)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_memory_begins_where_a_game_does(driver):
    rollouts = remembered(driver)
    assert check_memory(rollouts) >= 3 * ENVS * len(SEEDS)
    drawn = np.concatenate([rollout.extras["drawn"][0] for rollout, _ in rollouts])
    assert len(np.unique(drawn)) == drawn.size  # a key each, every step


@pytest.mark.parametrize("driver", ["host", "halves"])
def test_memories_and_extras_are_the_same_in_both_loops(driver):
    jax.tree.map(np.testing.assert_array_equal, remembered(driver), remembered("graph"))


def test_a_memory_outlives_a_life():
    """What follows a lost life is no transition, but of the same game."""

    def seen_twice(world):
        step = world.step

        def stepped(state, action):
            state, then = step(state, action)
            return state, then._replace(observation=jnp.stack([then.observation] * 2, axis=-1))

        world.step, reset = stepped, world.reset
        world.reset = lambda: (
            reset()[0],
            reset()[1]._replace(observation=jnp.stack([reset()[1].observation] * 2, axis=-1)),
        )
        return world

    loop = GraphLoop(seen_twice(World(8, SEEDS)), remembering(2), length=LENGTH)
    rollouts = collected(loop)
    lives = [np.sum((x.weight[1:] == 0) & ~x.first[1:-1]) for x, _ in rollouts]
    assert sum(lives) > 10
    assert check_memory(rollouts) > 30


def test_a_memory_is_learned_from():
    """As `run` does it, over several updates: the sums of means over what counts."""
    agent = remembering(2)
    once = collected(loop_of("graph", "CartPole-v1", agent, max_episode_steps=7), 1)[0][0]
    loop = loop_of("graph", "CartPole-v1", agent, max_episode_steps=7)
    state = initial(agent, SEEDS)
    key = jax.vmap(jax.random.fold_in, (0, None))(state.key, 0)
    state, _, report = loop.run(state._replace(key=key), loop.start(), 1)
    age, weight = once.extras["carry"]["age"], once.weight
    expected = (age * weight).sum((0, 2)) / weight.sum((0, 2))
    np.testing.assert_allclose(report.metrics.sums["age"], expected, rtol=1e-6)
    np.testing.assert_allclose(state.agent, expected, rtol=1e-6)


# ---- Actions of any shape and dtype --------------------------------------------------------------


def drawing(low, high, size):
    """Draws actions of real numbers; its extras are their densities' logarithms."""

    def act(state, carry, observation, key):
        def draw(k):
            return jax.random.uniform(k, (size,), jnp.float32, low, high)

        action = jax.vmap(draw)(key)
        return action, carry, {"log_mu": -jnp.log(high - low) * size + 0 * action[:, 0]}

    return Agent(
        lambda key: jnp.zeros(()),
        act,
        lambda state, rollout, key: (state, Metrics({}, jnp.ones(()))),
    )


@functools.cache
def drawn(driver, game):
    size, bound = {"Pendulum-v1": (1, 2.0), "HalfCheetah-v5": (6, 1.0)}[game]
    with jax.enable_x64(False):
        loop = loop_of(driver, game, drawing(-bound, bound, size), max_episode_steps=8)
        return collected(loop)


@pytest.mark.parametrize("driver", ["host", "halves"])
@pytest.mark.parametrize("game", ["Pendulum-v1", "HalfCheetah-v5"])
def test_actions_of_real_numbers_are_the_same_in_both_loops(driver, game):
    graph = drawn("graph", game)
    jax.tree.map(np.testing.assert_array_equal, drawn(driver, game), graph)
    for rollout, _ in graph:
        assert rollout.action.dtype == rollout.observation.dtype == np.float32
        assert len(np.unique(rollout.action)) == rollout.action.size
    assert sum(rollout.first[1:].sum() for rollout, _ in graph) == 3 * ENVS * len(SEEDS)


class Model(NamedTuple):
    matrix: Any
    replay: Any


def modelling(environment, num_envs, rate=0.2):
    """Learns from a replay that s' = s + a: the matrix [2, 2] by which actions move it."""

    def init(key):
        extras = {"squared": jax.ShapeDtypeStruct((2, 1), np.float32)}
        ring = replay.init(
            num_envs * 64, num_envs, environment.observation, environment.action, extras=extras
        )
        return Model(jax.random.normal(key, (2, 2), jnp.float32), ring)

    def act(state, carry, observation, key):
        action = jax.vmap(lambda k: jax.random.normal(k, (2,), jnp.float32))(key)
        return action, carry, {"squared": jnp.square(action)[..., None]}

    def update(state, rollout, key):
        ring = replay.add(state.replay, rollout)
        window = replay.sample(ring, key, 64, 1)

        def loss(matrix):
            moved = window.observation[1] - window.observation[0] - window.action[0] @ matrix
            return mean(jnp.sum(jnp.square(moved), axis=-1), window.weight[0]) / 2

        value, slope = jax.value_and_grad(loss)(state.matrix)
        odd = jnp.square(window.action[0])[..., None] != window.extras["squared"][0]
        metrics = Metrics({"loss": value, "odd": jnp.sum(odd) * 1.0}, jnp.ones(()))
        return Model(state.matrix - rate * slope, ring), metrics

    return Agent(init, act, update)


def learned(weigh):
    world = Plane(4, SEEDS)
    agent = modelling(world, 4)
    whole = agent._replace(update=lambda s, rollout, key: agent.update(s, weigh(rollout), key))
    loop = GraphLoop(world, whole, length=LENGTH)
    state, _, report = loop.run(initial(whole, SEEDS), loop.start(), 100)
    np.testing.assert_array_equal(report.metrics.sums["odd"], 0)
    assert state.agent.replay.action.shape[1:] == (64, 4, 2)
    return np.asarray(state.agent.matrix)


def test_an_agent_learns_from_actions_of_real_numbers_in_a_replay():
    """To rounding, since it is the truth; but not where automatic resets count as transitions."""

    def spoilt(rollout):
        return rollout._replace(
            weight=jnp.ones_like(rollout.weight), first=jnp.zeros_like(rollout.first)
        )

    truth = np.broadcast_to(np.eye(2), (2, 2, 2))
    np.testing.assert_allclose(learned(lambda rollout: rollout), truth, atol=1e-5)
    assert np.abs(learned(spoilt) - truth).max() > 0.02
