"""What was trained as a function from observations to actions, for one's own program."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoft import _checks
from jaxsoft.agents.base import Agent
from jaxsoft.cli import evaluate
from jaxsoft.cli.config import look_up, to_json
from jaxsoft.environments import Space

__all__ = ["Policy"]

_KINDS = {"f": jnp.floating, "i": jnp.integer}
"""Kinds of numbers of which any precision will do."""


class Policy:
    """A trained agent that acts and no longer learns.

    `policy(observation, key)` and `policy.act(observation, key)` are the same.

    Attributes:
      observation: the `Space` of one observation, as the environment gives it.
      action: the `Space` of one action; actions of a game are counted from 0.
      config: every setting of the training run, by name.
      step: environment steps that the agent learned from.

    Args:
      trained: a run as one of its checkpoints has it.
      seed: which of its agents, by default the first.
      how: `"sampled"`, as it acted in training, or `"greedy"`, by its best action.
    """

    def __init__(
        self, trained: evaluate.Trained, *, seed: int | None = None, how: str = "sampled"
    ) -> None:
        config, agent = trained.config, trained.agent
        seed = config.seeds[0] if seed is None else seed
        acts = {"sampled": agent.act, "greedy": agent.greedy}
        if acts.get(how) is None:
            known = [name for name, act in acts.items() if act is not None]
            raise _checks.fail(
                "load_policy", f"`how` = {how!r}", f"one of {known}", "Choose one of these."
            )
        if seed not in config.seeds:
            raise _checks.fail(
                "load_policy",
                f"`seed` = {seed}",
                f"one of the run's seeds {list(config.seeds)}",
                "Choose one of these, or leave it out for the first.",
            )
        if jax.tree.leaves(agent.initial_carry(1)):
            raise _checks.fail(
                "load_policy",
                f"--algorithm {config.algorithm}, whose agent remembers its games",
                "an agent that acts by what it sees now",
                "Call the agent's `act` with its carry (jaxsoft.cli.evaluate.load).",
            )
        about = look_up(config.game)
        one_hot = about.one_hot
        self.observation = Space.discrete(one_hot) if one_hot else about.observation
        self.action = about.action
        self.config = to_json(config)
        self.step = trained.step
        self._how = how
        self._state = jax.tree.map(lambda x: x[config.seeds.index(seed)], trained.state.agent)
        self._act: Any = jax.jit(_batched(acts[how], agent, self.observation, one_hot))

    def __repr__(self) -> str:
        """Says what was trained, how far, and how it acts."""
        game, algorithm = self.config["game"], self.config["algorithm"]
        return f"Policy({game}, {algorithm}, step {self.step:_}, {self._how})"

    def __call__(self, observation: Any, key: Array | None = None) -> Array:
        """As `act`."""
        return self.act(observation, key)

    def act(self, observation: Any, key: Array | None = None) -> Array:
        """Actions for observations.

        Args:
          observation: one [*O], or a batch [..., *O].
          key: one JAX key for all of them; needed unless it acts greedily.

        Returns:
          Actions [...], each drawn apart.
        """
        if key is None and self._how == "greedy":
            key = jax.random.key(0)
        if isinstance(key, Array) and key.dtype == jnp.uint32:
            key = jax.random.wrap_key_data(key)  # of jax.random.PRNGKey
        if not isinstance(key, Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            fix = "Pass jax.random.key(seed), a new one with each call."
            raise TypeError(_checks.sentence("Policy", f"`key` = {key}", "one JAX key", fix))
        if key.ndim:
            raise _checks.fail(
                "Policy", f"keys of shape {list(key.shape)}", "one key", "Pass one of them."
            )
        return self._act(self._state, self._checked(observation), key)  # type: ignore[no-any-return]

    def _checked(self, observation: Any) -> Any:
        """The observations in their space's dtype."""
        shape, dtype = self.observation.shape, self.observation.dtype
        seen = observation if isinstance(observation, Array) else np.asarray(observation)
        kind = _KINDS.get(dtype.kind, dtype)
        if not jnp.issubdtype(seen.dtype, kind):
            raise TypeError(
                _checks.sentence(
                    "Policy",
                    f"dtype {seen.dtype}",
                    f"observations of dtype {dtype}, as {self.config['game']} gives them",
                    "Cast them, if they mean the same.",
                )
            )
        if seen.shape[seen.ndim - len(shape) :] != shape:
            raise _checks.fail(
                "Policy",
                f"shape {list(seen.shape)}",
                f"an observation of shape {list(shape)}, as {self.config['game']} gives it, or a "
                "batch of them",
                "Leading axes are the batch's.",
            )
        return seen.astype(dtype)


def _batched(act: Any, agent: Agent, space: Space, one_hot: int) -> Any:
    """(state, observations [..., *O], key) -> actions [...]."""

    def batched(state: Any, observation: Array, key: Array) -> Array:
        batch = observation.shape[: observation.ndim - len(space.shape)]
        flat = observation.reshape(-1, *space.shape)
        seen = jax.nn.one_hot(flat, one_hot) if one_hot else flat
        count = len(flat)
        keys = jax.random.split(key, count)
        action, _, _ = act(state, agent.initial_carry(count), seen, keys)
        return action.reshape(batch + action.shape[1:])  # type: ignore[no-any-return]

    return batched
