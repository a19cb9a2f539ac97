"""From a configuration to the parts of a run: environment, network, learner, loop."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxsoft import environments
from jaxsoft.agents import networks, off_policy, on_policy
from jaxsoft.agents.base import Learner
from jaxsoft.cli.config import Config
from jaxsoft.cli.defaults import NATURAL, REPLAY
from jaxsoft.training.loop import GraphLoop, HostLoop

# A fifth of a second for a game of Atari, and a study asks for each many times.
look_up = functools.cache(environments.about)


def options(config: Config, about: environments.About, *, playing: bool = False) -> dict[str, Any]:
    """EnvPool's options; in play, games are whole and rewards raw."""
    given: dict[str, Any] = {}
    if config.max_episode_steps is not None:
        given["max_episode_steps"] = config.max_episode_steps
    if about.is_atari and not playing:
        given |= {"episodic_life": config.episodic_life, "reward_clip": config.reward_clip}
    return given


def network(config: Config, about: environments.About) -> Any:
    """The Flax network that the algorithm asks for."""
    torso = networks.torso_for(
        about.observation_shape,
        about.observation_dtype,
        hidden=config.hidden,
        dtype=jnp.dtype(config.dtype),
        centred=bool(config.centred),
    )
    plain_q = config.algorithm in (*REPLAY, "nstep_soft_q", "damped_q")
    kind = networks.QNetwork if plain_q else networks.ActorCritic
    return kind(torso, about.num_actions, len(about.observation_shape))


def optimiser(config: Config) -> optax.GradientTransformation:
    """Clipping and descent; RMSProp with TensorFlow's ε and start, as A2C had it."""
    rate: Any = config.learning_rate
    if config.schedule == "linear":
        rate = optax.linear_schedule(config.learning_rate, 0.0, gradient_steps(config))
    methods = {
        "rmsprop": lambda: optax.rmsprop(rate, decay=0.99, eps=1e-5, initial_scale=1.0),
        "adam": lambda: optax.adam(rate),
        "sgd": lambda: optax.sgd(rate),
    }
    clip = optax.clip_by_global_norm(config.max_gradient_norm)
    return optax.chain(clip, methods[config.optimiser]())


def updates(config: Config) -> int:
    """Rollouts of a whole run."""
    return config.steps // (config.num_envs * config.rollout_length)


def gradient_steps(config: Config) -> int:
    """Gradient steps of a whole run."""
    if config.algorithm in REPLAY:
        return max(1, (config.steps - config.learning_starts) // config.steps_per_gradient)
    return updates(config)


def objective(config: Config) -> on_policy.Objective:
    """What the configuration maximises."""
    log_prior = None if config.prior == "uniform" else 0.0
    return on_policy.Objective(config.tau, config.discount, config.n, config.value_coef, log_prior)


def learner(config: Config, about: environments.About) -> Learner:
    """The learner of the configuration's algorithm."""
    net = network(config, about)
    shape, dtype = about.observation_shape, about.observation_dtype

    def init_params(key: jax.Array) -> Any:
        return net.init(key, jnp.zeros((1, *shape), dtype))

    if config.algorithm in REPLAY:
        return off_policy.learner(
            net.apply,
            init_params,
            optimiser=optimiser(config),
            epsilon=optax.linear_schedule(
                1.0, config.epsilon, max(1, int(config.epsilon_share * config.steps))
            ),
            num_envs=config.num_envs,
            observation_shape=shape,
            observation_dtype=dtype,
            stack=shape[0] if about.is_atari else 1,
            capacity=config.capacity,
            batch_size=config.batch_size,
            discount=config.discount,
            tau=config.tau,
            log_prior=objective(config).log_prior,
            n=config.n,
            learning_starts=config.learning_starts,
            steps_per_update=config.steps_per_gradient,
            target_period=config.target_period,
        )
    gradient = None
    if config.algorithm in NATURAL:
        kind = {"natural_pg": on_policy.natural_pg, "damped_q": on_policy.damped_q}
        gradient = kind[config.algorithm](damping=config.damping, solver=config.solver)
    return on_policy.learner(
        net.apply,
        init_params,
        on_policy.ALGORITHMS.get(config.algorithm),
        gradient=gradient,
        optimiser=optimiser(config),
        objective=objective(config),
    )


def in_turn(config: Config, about: environments.About) -> bool:
    """Whether seeds had better learn one after the other."""
    if config.algorithm in REPLAY:
        return False  # each turn would copy a replay in and out
    # Solves have conditions in them, and images keep all the cores of a CPU busy alone.
    images = len(about.observation_shape) == 3
    return config.algorithm in NATURAL or (images and jax.default_backend() == "cpu")


def loop(
    config: Config, about: environments.About, *, driver: str = "auto", threads: int = 0
) -> GraphLoop | HostLoop:
    """The loop, stepping the emulators where the device can."""
    if driver == "auto":
        driver = "graph" if environments.runs_in_graph() else "host"
    shared: dict[str, Any] = {"num_envs": config.num_envs, "seeds": config.seeds}
    shared |= options(config, about) | {"num_threads": threads}
    how: dict[str, Any] = {"length": config.rollout_length, "in_turn": in_turn(config, about)}
    if driver == "graph":
        pool = environments.EnvPool(config.game, **shared)
        return GraphLoop(pool, learner(config, about), **how)
    half = config.num_envs // 2
    parts = [(0, half), (half, config.num_envs)] if half else [(0, config.num_envs)]
    pools = [environments.HostEnvPool(config.game, part=part, **shared) for part in parts]
    return HostLoop(pools, learner(config, about), **how)
