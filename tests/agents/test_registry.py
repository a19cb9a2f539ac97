"""Every entry of the registry makes an agent of its defaults, and that learns."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsoft.agents import on_policy
from jaxsoft.agents.base import Rollout
from jaxsoft.agents.networks import MLP, torso_for
from jaxsoft.agents.on_policy import Acted
from jaxsoft.agents.registry import ALGORITHMS, Problem, settings_of
from jaxsoft.agents.settings import OnPolicy, Settings, SettingsError
from jaxsoft.environments import Space
from tests.support.problems import space_for
from tests.support.trees import structure

A, STEPS = 4, 100_000
VECTORS = Problem(jax.ShapeDtypeStruct((5,), np.float32), Space.discrete(A), MLP((8,)), 1, STEPS)
SEEN = jax.ShapeDtypeStruct((4, 36, 40), np.uint8)
IMAGES = Problem(SEEN, Space.discrete(A), torso_for(SEEN.shape, SEEN.dtype), 4, STEPS)


def problem_of(entry, problem):
    return problem._replace(action=space_for(entry, A))


def random_rollout(agent, state, problem, length, num_envs):
    """What acting at random observations gives, with ends among it."""
    rng = np.random.default_rng(0)
    shape = (length + 1, num_envs, *problem.observation.shape)
    seen = rng.integers(0, 256, shape).astype(problem.observation.dtype)
    if seen.dtype == np.float32:
        seen = seen / np.float32(128) - 1

    def act(_, now):
        action, carry, extras = agent.act(state, None, *now)
        assert carry is None
        return None, (action, extras)

    keys = jax.random.split(jax.random.key(1), (length, num_envs))
    _, (action, extras) = jax.lax.scan(act, None, (jnp.asarray(seen[:-1]), keys))
    terminated, dummy = rng.random((2, length, num_envs)) < 0.2
    return Rollout(
        observation=jnp.asarray(seen),
        action=action,
        reward=jnp.asarray(rng.normal(size=action.shape[:2]), jnp.float32),
        discount=jnp.asarray(1 - (terminated & ~dummy), jnp.float32),
        cut=jnp.asarray(terminated | dummy),
        weight=jnp.asarray(1 - dummy, jnp.float32),
        first=jnp.zeros((length + 1, num_envs), bool),
        extras=extras,
    )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_defaults_make_an_agent_that_learns(name):
    """From a rollout as long and as wide as they say; one without weight teaches nothing."""
    with jax.enable_x64(False):
        entry = ALGORITHMS[name]
        problem = problem_of(entry, VECTORS)
        given = {}
        if entry.replays:
            given = {"capacity": 2_000, "learning_starts": 64, "batch_size": 8}
            given |= {"num_envs": 8, "rollout_length": 16}
        settings = settings_of(name, given, images=False)
        entry.check(name, settings, STEPS)
        agent = entry.agent(settings, problem)
        state = jax.jit(agent.init)(jax.random.key(0))
        size = settings.rollout_length, settings.num_envs
        rollout = random_rollout(agent, state, problem, *size)
        update = jax.jit(agent.update)
        after = state
        for key in jax.random.split(jax.random.key(2), 3):
            after, metrics = update(after, rollout, key)
            assert all(np.isfinite(x) for x in metrics.sums.values())
        assert metrics.updates > 0
        assert metrics.sums["skipped"] == 0
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params, state.params)
        assert all(x > 0 for x in jax.tree.leaves(moved))

        nothing = rollout._replace(weight=jnp.zeros_like(rollout.weight))
        for key in jax.random.split(jax.random.key(2), 3):
            empty, metrics = update(state, nothing, key)
            sums = dict(metrics.sums)
            sums.pop("epsilon", None)
            np.testing.assert_array_equal(list(sums.values()), 0)
        # Nothing but momentum that was there before could move them.
        jax.tree.map(np.testing.assert_array_equal, empty.params, state.params)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_defaults_for_images_make_a_program(name):
    entry = ALGORITHMS[name]
    with jax.enable_x64(False):
        settings = settings_of(name, {}, images=True)
        entry.check(name, settings, STEPS)
        agent = entry.agent(settings, problem_of(entry, IMAGES))
        state = jax.eval_shape(agent.init, jax.random.key(0))
        size = settings.rollout_length, settings.num_envs

        def learn(state, key):
            return agent.update(state, random_rollout(agent, state, IMAGES, *size), key)

        after, _ = jax.eval_shape(learn, state, jax.random.key(0))
        assert structure(after) == structure(state)
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_products_are_kept_where_they_are_used(name):
    """By those that follow a gradient, and do not differentiate what they bootstrap from."""
    entry = ALGORITHMS[name]
    settings = settings_of(name, {}, images=True)
    agent = entry.agent(settings, problem_of(entry, IMAGES))

    def extras(key):
        seen = jnp.zeros((3, *SEEN.shape), SEEN.dtype)
        return agent.act(agent.init(key), None, seen, jax.random.split(key, 3))[2]

    kept = jax.eval_shape(extras, jax.random.key(0))
    uses = name in ("a2c", "a2c_naive", "soft_q", "nstep_soft_q", "soft_pqn", "pgq")
    if issubclass(entry.settings, OnPolicy):
        assert isinstance(kept, Acted)
        assert kept.log_mu.shape == (3,)
        assert bool(kept.products) == uses
        assert all(x.shape[0] == 3 for x in kept.products)
    else:
        assert kept is None


def test_defaults_are_settings_of_the_entry():
    for name, entry in ALGORITHMS.items():
        names = {spec.name for spec in dataclasses.fields(entry.settings)}
        for table in (entry.images, entry.vectors, entry.fixed):
            assert set(table) <= names, name
        for images in (False, True):
            settings = settings_of(name, {}, images=images)
            assert isinstance(settings, Settings)
            assert settings.n is not None
            assert settings.n >= 1
            for key, value in entry.fixed.items():
                assert getattr(settings, key) == value
        assert settings_of(name, {"discount": 0.5}, images=True).discount == 0.5


def test_what_an_entry_cannot_run_is_refused():
    for name, entry in ALGORITHMS.items():
        settings = settings_of(name, {}, images=False)
        for key, value in entry.fixed.items():
            prior = "counting" if value == "uniform" else "uniform"
            other = {"tau": 0.7, "prior": prior, "n": 3}[key]
            changed: dict[str, Any] = {key: other}
            with pytest.raises(SettingsError, match=f"does not go with --algorithm {name}"):
                entry.check(name, dataclasses.replace(settings, **changed), STEPS)
        if entry.soft:
            with pytest.raises(SettingsError, match="it needs a soft policy"):
                entry.check(name, dataclasses.replace(settings, tau=0.0), STEPS)
            with pytest.raises(SettingsError, match="--final-tau 0 does not go with"):
                entry.check(name, dataclasses.replace(settings, final_tau=0.0), STEPS)


def test_unified_pcl_is_the_soft_bellman_residual():
    """At n = 1: ½(r + γV_Q(s') − Q(s,a))², differentiated also through V_Q(s'), by hand."""
    tau, gamma = 0.7, 0.9
    rng = np.random.default_rng(0)
    q = rng.normal(size=(6, 3, A))
    done = rng.random((5, 3)) < 0.3
    taken, reward = rng.integers(A, size=(5, 3)), rng.normal(size=(5, 3))
    rollout = Rollout(
        observation=jnp.asarray(q),
        action=jnp.asarray(taken),
        reward=jnp.asarray(reward),
        discount=jnp.asarray(1.0 - done),
        cut=jnp.asarray(done),
        weight=jnp.ones((5, 3)),
        first=jnp.zeros((6, 3), bool),
        extras=Acted(jnp.zeros((5, 3)), []),
    )
    entry = ALGORITHMS["unified_pcl"]
    given = {"n": 1, "tau": tau, "discount": gamma}
    objective = settings_of("unified_pcl", given, images=False).objective()
    # The parameters are the action values themselves.
    direction = on_policy.direction_of(
        on_policy.pcl, differentiates_target=entry.differentiates_target
    )
    gradient, means, _ = direction.of(
        lambda params, seen: params[: len(seen)],
        on_policy.q_head,
        jnp.asarray(q),
        rollout,
        objective,
    )
    expected, total = np.zeros_like(q), 0.0
    for t, n in np.ndindex(5, 3):
        weights = np.exp(q[t + 1, n] / tau) / A
        value = tau * np.log(weights.sum())
        discount = gamma * (not done[t, n])
        error = reward[t, n] + discount * value - q[t, n, taken[t, n]]
        total += error**2 / 2
        expected[t, n, taken[t, n]] -= error
        expected[t + 1, n] += discount * error * weights / weights.sum()
    np.testing.assert_allclose(means["loss"], total / 15, rtol=1e-12)
    np.testing.assert_allclose(gradient, expected / 15, atol=1e-13)
