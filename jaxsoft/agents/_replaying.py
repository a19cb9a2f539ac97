"""What every agent with a replay has in common: when it learns, on what, and its target network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoft import _checks
from jaxsoft.agents import replay
from jaxsoft.agents._descent import Trained
from jaxsoft.agents.base import Metrics, Params, Rollout

__all__ = ["Learned", "Learner", "State", "averaged", "copied", "learner"]


class State(NamedTuple):
    """All that an agent with a replay knows.

    Attributes:
      params: of the network.
      optimiser: its state.
      target_params: parameters of the target network.
      temperature: the state of a `temperature.Temperature`.
      replay: the ring, or `None` where it was left out.
      steps: environment steps so far, uint32 [].
    """

    params: Params
    optimiser: Any
    target_params: Params
    temperature: Any
    replay: replay.Replay | None
    steps: Array


class Learned(NamedTuple):
    """What gradient steps change."""

    trained: Trained
    target_params: Params
    temperature: Any


Refresh = Callable[[Array, Params, Params], Params]
"""(environment steps, parameters, the target network's) -> the target network's."""


class Learner(NamedTuple):
    """Three of the functions of an `Agent`."""

    init: Callable[[Array], State]
    update: Callable[[State, Rollout, Array], tuple[State, Metrics]]
    forget: Callable[[State], State]


def copied(period: int, steps_per_gradient: int) -> Refresh:
    """All at once, when the count of steps meets, or has just passed, a multiple of `period`."""

    def refresh(steps: Array, params: Params, target: Params) -> Params:
        due = steps % period < steps_per_gradient
        return jax.tree.map(lambda new, old: jnp.where(due, new, old), params, target)

    return refresh


def averaged(rate: float) -> Refresh:
    """A little with each gradient step, θ' ← θ' + ρ(θ − θ')."""

    def refresh(steps: Array, params: Params, target: Params) -> Params:
        del steps
        return jax.tree.map(lambda new, old: old + rate * (new - old), params, target)

    return refresh


def learner(
    name: str,
    gradient_step: Callable[[Learned, Rollout, Array], tuple[Learned, dict[str, Array]]],
    *,
    init: Callable[[Array], tuple[Learned, replay.Replay]],
    refresh: Refresh,
    num_envs: int,
    stack: int,
    capacity: int,
    batch_size: int,
    n: int,
    learning_starts: int,
    steps_per_gradient: int,
    of_state: Callable[[State], dict[str, Array]] = lambda _: {},
) -> Learner:
    """Gradient steps on samples of a replay: those of each rollout after it has been added.

    Args:
      name: of the agent, for errors.
      gradient_step: (what is learned, B windows, key) -> (the same, means for the metrics).
      init: key -> (what is learned at first, an empty ring).
      refresh: of the target network, after each gradient step.
      num_envs: N.
      stack: C, frames of a stack.
      capacity: transitions in the replay.
      batch_size: B.
      n: steps of a window.
      learning_starts: transitions in the replay before the first gradient step.
      steps_per_gradient: environment steps for each gradient step.
      of_state: more for the metrics.
    """

    def start(key: Array) -> State:
        learned, ring = init(key)
        return State(
            params=learned.trained.params,
            optimiser=learned.trained.optimiser,
            target_params=learned.target_params,
            temperature=learned.temperature,
            replay=ring,
            steps=jnp.zeros((), jnp.uint32),
        )

    def update(state: State, rollout: Rollout, key: Array) -> tuple[State, Metrics]:
        assert state.replay is not None, "an agent that has forgotten its replay cannot learn"
        ring = replay.add(state.replay, rollout)
        updates = _updates(name, rollout, steps_per_gradient)
        offsets = steps_per_gradient * jnp.arange(1, updates + 1, dtype=jnp.uint32)

        def learn_once(learned: Learned, now: tuple[Array, Array]) -> Any:
            key, steps = now
            window = replay.sample(ring, key, batch_size, n, stack=stack)
            # A third one, beside the two into which `sample` splits it.
            learned, means = gradient_step(learned, window, jax.random.fold_in(key, 2))
            # Of no transition there is nothing to tell: all sums are 0.
            counted = jnp.where(jnp.any(window.weight[0] > 0), 1.0, 0.0)
            means = {name: jnp.where(counted > 0, x, 0) for name, x in means.items()}
            means["counted"] = counted
            target = refresh(steps, learned.trained.params, learned.target_params)
            return learned._replace(target_params=target), means

        def learn(learned: Learned) -> tuple[Learned, dict[str, Array]]:
            keys = jax.random.split(key, updates)
            learned, means = jax.lax.scan(learn_once, learned, (keys, state.steps + offsets))
            return learned, jax.tree.map(lambda x: jnp.sum(x, axis=0), means)

        def wait(learned: Learned) -> tuple[Learned, dict[str, Array]]:
            shapes = jax.eval_shape(learn, learned)[1]
            return learned, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        # The ring only goes in: under `vmap` both branches are taken and what comes out selected.
        held = ring.filled * num_envs >= min(learning_starts, capacity // num_envs * num_envs)
        ready = held & (replay.num_starts(ring, n, stack=stack) > 0)
        trained = Trained(state.params, state.optimiser)
        learned, sums = jax.lax.cond(
            ready, learn, wait, Learned(trained, state.target_params, state.temperature)
        )
        count = sums.pop("counted")
        sums |= {key: value * count for key, value in of_state(state).items()}
        params, optimised = learned.trained
        after = State(
            params,
            optimised,
            learned.target_params,
            learned.temperature,
            ring,
            state.steps + offsets[-1],
        )
        return after, Metrics(sums, count)

    def forget(state: State) -> State:
        return state._replace(replay=None)

    return Learner(start, update, forget)


def _updates(name: str, rollout: Rollout, steps_per_gradient: int) -> int:
    length, num_envs = rollout.discount.shape
    updates, rest = divmod(length * num_envs, steps_per_gradient)
    if rest or not updates:
        raise _checks.fail(
            name,
            f"rollouts of {length} x {num_envs} steps, {steps_per_gradient} to a gradient step",
            "a whole number of gradient steps a rollout",
            f"Choose T so that `steps_per_gradient` divides T * {num_envs}, or change the former.",
        )
    return updates
