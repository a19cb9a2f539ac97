"""How the registry's entries become agents: networks, optimisers and schedules put together."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsoft.agents import (
    networks,
    off_policy,
    on_policy,
    soft_actor_critic,
    soft_q_svgd,
    temperature,
    trust_pcl,
)
from jaxsoft.agents.base import Agent

__all__ = [
    "HEADS",
    "Make",
    "Problem",
    "actor_and_critic",
    "along",
    "descending",
    "from_replay",
    "network_for",
    "sampling",
    "trusting",
]


class Problem(NamedTuple):
    """What an agent is made for.

    Attributes:
      observation: shape and dtype of one.
      action: the `Space` of one.
      torso: a Flax module from [N, *O] to features [N, F].
      stack: frames of which an observation is a stack, else 1.
      steps: environment steps of the whole run, which set the schedules.
    """

    observation: Any
    action: Any
    torso: Any
    stack: int
    steps: int

    @property
    def num_actions(self) -> int:
        """A of finitely many actions, D of real numbers."""
        return int(self.action.categories or math.prod(self.action.shape))


Make = Callable[..., Agent]
"""(head, settings, problem, *, differentiates_target) -> agent."""

# Name of a head -> the network that has it, and what its output means.
HEADS: dict[str, tuple[type[Any], on_policy.Head]] = {
    "actor_critic": (networks.ActorCritic, on_policy.actor_critic_head),
    "q": (networks.QNetwork, on_policy.q_head),
}


def network_for(head: str, problem: Problem) -> Any:
    """The Flax network of a head."""
    ndim = len(problem.observation.shape)
    if head == "soft_actor_critic":
        continuous = not problem.action.categories
        return networks.SoftActorCritic(problem.torso, problem.num_actions, ndim, continuous)
    if head == "sampling_actor_critic":
        return networks.SamplingActorCritic(problem.torso, problem.num_actions, ndim)
    return HEADS[head][0](problem.torso, problem.num_actions, ndim)


def descending(loss: on_policy.StepLoss) -> Make:
    """Agents that follow the gradient of a loss."""

    def make(head: str, settings: Any, problem: Problem, *, differentiates_target: bool) -> Agent:
        return on_policy.agent(
            *_network(head, problem),
            loss,
            head=HEADS[head][1],
            optimiser=_optimiser(settings, problem),
            objective=_objective(settings, problem),
            differentiates_target=differentiates_target,
        )

    return make


def along(direction: Callable[..., on_policy.Direction]) -> Make:
    """Agents that follow the direction that a solve finds."""

    def make(head: str, settings: Any, problem: Problem, *, differentiates_target: bool) -> Agent:
        del differentiates_target
        return on_policy.agent_along(
            *_network(head, problem),
            direction(damping=settings.damping, solver=settings.solver),
            head=HEADS[head][1],
            optimiser=_optimiser(settings, problem),
            objective=_objective(settings, problem),
        )

    return make


def from_replay(
    head: str, settings: Any, problem: Problem, *, differentiates_target: bool
) -> Agent:
    """Agents that learn from a replay."""
    del differentiates_target
    falling = max(1, int(settings.epsilon_share * problem.steps))
    objective = _objective(settings, problem)
    network, init_params = _network(head, problem)
    return off_policy.agent(
        network,
        init_params,
        **_of_replay(settings, problem, objective),
        epsilon=optax.linear_schedule(1.0, settings.epsilon, falling),
        log_prior=objective.log_prior,
        n=objective.n,
        target_period=settings.target_period,
        **settings.targets(),
    )


def actor_and_critic(
    head: str, settings: Any, problem: Problem, *, differentiates_target: bool
) -> Agent:
    """Agents of a policy and action values that share nothing, which learn from a replay."""
    del differentiates_target
    apply, init_params = _network(head, problem)
    objective, space = _objective(settings, problem), problem.action
    if space.categories:
        kind = soft_actor_critic.categories(space.categories, log_prior=objective.log_prior)
    else:
        kind = soft_actor_critic.box(**_bounds(space), volume=objective.log_prior is not None)
    return soft_actor_critic.agent(
        functools.partial(apply, method="policy"),
        functools.partial(apply, method="values"),
        init_params,
        kind,
        **_of_replay(settings, problem, objective),
        averaging=settings.averaging,
    )


def sampling(head: str, settings: Any, problem: Problem, *, differentiates_target: bool) -> Agent:
    """Agents of a sampler and action values that share nothing, which learn from a replay."""
    del differentiates_target
    apply, init_params = _network(head, problem)
    objective = _objective(settings, problem)
    return soft_q_svgd.agent(
        functools.partial(apply, method="sample"),
        functools.partial(apply, method="values"),
        init_params,
        **_bounds(problem.action),
        volume=objective.log_prior is not None,
        **_of_replay(settings, problem, objective),
        averaging=settings.averaging,
        particles=settings.particles,
        proposals=settings.proposals,
    )


def trusting(head: str, settings: Any, problem: Problem, *, differentiates_target: bool) -> Agent:
    """Agents that learn path consistency from a replay, within a trust region."""
    del differentiates_target
    objective = _objective(settings, problem)
    network, init_params = _network(head, problem)
    return trust_pcl.agent(
        network,
        init_params,
        **_of_replay(settings, problem, objective),
        trust=settings.trust,
        log_prior=objective.log_prior,
        n=objective.n,
        averaging=settings.averaging,
    )


def _bounds(space: Any) -> dict[str, Any]:
    """What an agent is told of its box."""
    low, high = (np.broadcast_to(bound, space.shape) for bound in (space.low, space.high))
    return {"low": low, "high": high, "dtype": space.dtype}


def _of_replay(settings: Any, problem: Problem, objective: on_policy.Objective) -> dict[str, Any]:
    """What every agent with a replay is given."""
    return {
        "optimiser": _optimiser(settings, problem),
        "num_envs": settings.num_envs,
        "observation": problem.observation,
        "stack": problem.stack,
        "capacity": settings.capacity,
        "batch_size": settings.batch_size,
        "discount": objective.discount,
        "tau": objective.tau,
        "learning_starts": settings.learning_starts,
        "steps_per_gradient": settings.steps_per_gradient,
    }


def _objective(settings: Any, problem: Problem) -> on_policy.Objective:
    """With τ as the settings have it change."""
    objective: on_policy.Objective = settings.objective()
    if settings.final_tau is not None:
        updates = settings.gradient_steps(problem.steps)
        tau: Any = optax.linear_schedule(settings.tau, settings.final_tau, updates)
    elif settings.target_kl is not None or settings.target_entropy is not None:
        # The greatest entropy, by which the KLs to the two measures differ.
        most = math.log(problem.num_actions)
        if not problem.action.categories:
            most = problem.num_actions * math.log(2)
        target = settings.target_kl
        if target is None:
            target = most - settings.target_entropy
        target -= 0 if objective.log_prior is None else most
        tau = temperature.tuned(target, start=settings.tau, learning_rate=settings.tau_rate or 1e-2)
    else:
        return objective
    return objective._replace(tau=tau)


def _network(head: str, problem: Problem) -> tuple[Callable[..., Any], Callable[..., Any]]:
    network = network_for(head, problem)

    def init_params(key: jax.Array) -> Any:
        one = jnp.zeros((1, *problem.observation.shape), problem.observation.dtype)
        return network.init(key, one)

    return network.apply, init_params


def _optimiser(settings: Any, problem: Problem) -> optax.GradientTransformation:
    """Clipping and descent; RMSProp with TensorFlow's ε and start, as A2C had it."""
    rate: Any = settings.learning_rate
    if settings.schedule == "linear":
        rate = optax.linear_schedule(rate, 0.0, settings.gradient_steps(problem.steps))
    methods = {
        "rmsprop": lambda: optax.rmsprop(rate, decay=0.99, eps=1e-5, initial_scale=1.0),
        "adam": lambda: optax.adam(rate),
        "sgd": lambda: optax.sgd(rate),
    }
    clip = optax.clip_by_global_norm(settings.max_gradient_norm)
    return optax.chain(clip, methods[settings.optimiser]())
