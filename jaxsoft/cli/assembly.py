"""From a configuration to the parts of a run: environment, network, agent, loop."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxsoft import _jax, environments
from jaxsoft.agents import networks
from jaxsoft.agents.base import Agent
from jaxsoft.agents.registry import Problem
from jaxsoft.cli.config import Config, look_up
from jaxsoft.training.graph import GraphLoop
from jaxsoft.training.host import HostLoop

__all__ = ["agent", "in_turn", "loop", "network", "options", "problem"]


def options(config: Config, *, playing: bool = False) -> dict[str, Any]:
    """EnvPool's options; in play, games are whole and rewards raw."""
    given: dict[str, Any] = {}
    if config.max_episode_steps is not None:
        given["max_episode_steps"] = config.max_episode_steps
    if look_up(config.game).is_atari and not playing:
        given |= {"episodic_life": config.episodic_life, "reward_clip": config.reward_clip}
    return given


def problem(config: Config) -> Problem:
    """What the agent is made for."""
    about = look_up(config.game)
    shape = about.observation.shape
    torso = networks.torso_for(
        shape,
        about.observation.dtype,
        hidden=config.hidden,
        dtype=jnp.dtype(config.dtype),
        centred=bool(config.centred),
        activation=config.activation or "tanh",
        layer_norm=bool(config.layer_norm),
    )
    stack = shape[0] if about.is_atari else 1
    return Problem(about.observation, about.action, torso, stack, config.steps)


def network(config: Config) -> Any:
    """The Flax network that the algorithm asks for."""
    return config.entry.network(problem(config))


def agent(config: Config) -> Agent:
    """The agent of the configuration's algorithm."""
    return config.entry.agent(config.settings, problem(config))


def in_turn(config: Config, device: jax.Device | None = None) -> bool:
    """Whether seeds had better learn one after the other on a device, or the default one."""
    if config.entry.seeds == "either":
        # Images keep all the cores of a CPU busy alone.
        images = len(look_up(config.game).observation.shape) == 3
        return images and _jax.platform(device) == "cpu"
    return config.entry.seeds == "in turn"


def loop(
    config: Config, *, driver: str = "auto", threads: int = 0, device: jax.Device | None = None
) -> GraphLoop | HostLoop:
    """The loop, stepping the emulators where the device can; `None` is the default device."""
    if driver == "auto":
        driver = "graph" if environments.runs_in_graph(device) else "host"
    num_envs = config.settings.num_envs
    shared: dict[str, Any] = {"num_envs": num_envs, "seeds": config.seeds}
    shared |= options(config) | {"num_threads": threads}
    how: dict[str, Any] = {
        "length": config.settings.rollout_length,
        "in_turn": in_turn(config, device),
    }
    if driver == "graph":
        return GraphLoop(environments.EnvPool(config.game, **shared), agent(config), **how)
    half = num_envs // 2
    parts = [(0, half), (half, num_envs)] if half else [(0, num_envs)]
    pools = [environments.HostEnvPool(config.game, part=part, **shared) for part in parts]
    return HostLoop(pools, agent(config), **how)
