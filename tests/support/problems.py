"""What agents are made for in tests."""

import jax.numpy as jnp
import numpy as np

from jaxsoft.agents.base import Rollout
from jaxsoft.agents.registry import Algorithm
from jaxsoft.environments import Space


def space_for(entry: Algorithm, categories: int) -> Space:
    """Actions that an algorithm can choose among: so many, or some real numbers."""
    if entry.actions == "numbers":
        return Space((2,), np.dtype(np.float32), low=np.array([-1.0, 0.0]), high=2.0)
    return Space.discrete(categories)


def rollout_of(actions, states, seed=0, ends=0.25):
    """Actions [T, N, ...] at random states, which are one-hot; some episodes end, some are cut."""
    rng = np.random.default_rng(seed)
    steps, envs = actions.shape[:2]
    terminated, dummy = rng.random((2, steps, envs)) < ends
    return Rollout(
        observation=jnp.asarray(np.eye(states)[rng.integers(states, size=(steps + 1, envs))]),
        action=actions,
        reward=jnp.asarray(rng.normal(size=(steps, envs))),
        discount=jnp.asarray(1.0 - (terminated & ~dummy)),
        cut=jnp.asarray(terminated | dummy),
        weight=jnp.asarray(1.0 - dummy),
        first=jnp.zeros((steps + 1, envs), bool),
    )
