"""What every entry of the registry compiles, lowered for the platforms that are not there."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsoft.agents.base import Rollout
from jaxsoft.agents.networks import torso_for
from jaxsoft.agents.registry import ALGORITHMS, Problem, settings_of
from tests.support import platforms
from tests.support.platforms import ELSEWHERE, lowered
from tests.support.problems import space_for

A, STEPS, T, N = 4, 100_000, 4, 2
OBSERVATIONS = {
    "images": jax.ShapeDtypeStruct((4, 36, 40), np.uint8),
    "vectors": jax.ShapeDtypeStruct((5,), np.float32),
}


def shape(dtype, *sizes):
    return jax.ShapeDtypeStruct(sizes, dtype)


def over_time(tree):
    return jax.tree.map(lambda x: shape(x.dtype, T, *x.shape), tree)


def programs(name, kind, dtype):
    """Name -> (function, shapes of its arguments)."""
    entry, one = ALGORITHMS[name], OBSERVATIONS[kind]
    given: dict[str, Any] = {"num_envs": N, "rollout_length": T}
    if entry.replays:
        given |= {"capacity": 200, "learning_starts": 64}
    torso = torso_for(one.shape, one.dtype, hidden=(8,), dtype=dtype)
    problem = Problem(
        one, space_for(entry, A), torso, one.shape[0] if kind == "images" else 1, STEPS
    )
    agent = entry.agent(settings_of(name, given, images=kind == "images"), problem)
    key = jax.eval_shape(lambda: jax.random.key(0))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), N))
    state, seen = jax.eval_shape(agent.init, key), shape(one.dtype, N, *one.shape)
    acting = state, None, seen, keys
    action, _, extras = jax.eval_shape(agent.act, *acting)
    number, truth = shape(np.float32, T, N), shape(np.bool_, T, N)
    rollout = Rollout(
        observation=shape(one.dtype, T + 1, *seen.shape),
        action=over_time(action),
        reward=number,
        discount=number,
        cut=truth,
        weight=number,
        first=shape(np.bool_, T + 1, N),
        extras=over_time(extras),
    )
    assert agent.greedy is not None
    return {
        "init": (agent.init, (key,)),
        "act": (agent.act, acting),
        "greedy": (agent.greedy, acting),
        "update": (agent.update, (state, rollout, key)),
    }


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", OBSERVATIONS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_agent(name, kind, dtype):
    strides = ["stride = [4, 4]", "stride = [2, 2]"] if kind == "images" else []
    # Of the gradient into the kernels.
    dilations = ["rhs_dilate = [4, 4]", "rhs_dilate = [2, 2]"] if kind == "images" else []
    with jax.enable_x64(False):
        for what, (f, shapes) in programs(name, kind, dtype).items():
            for platform, text in lowered(f, *shapes, platforms=ELSEWHERE).items():
                platforms.assert_for(platform, text)
                if what != "init":
                    found = "\n".join(platforms.convolutions(text))
                    native = strides + (dilations if what == "update" else [])
                    assert [x for x in native if x not in found] == []
                    assert ("bf16" in text) == (dtype == jnp.bfloat16)
