"""What every agent with a replay has in common: when it learns, on what, and its target network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _checks, losses
from jaxsoft.agents import replay, temperature
from jaxsoft.agents._descent import Trained
from jaxsoft.agents.base import Agent, Metrics, Params, Rollout

__all__ = ["State", "agent_with_replay", "averaged", "copied", "critics", "one_step_target"]


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


class _Learned(NamedTuple):
    """What gradient steps change."""

    trained: Trained
    target_params: Params
    temperature: Any


GradientStep = Callable[
    [Trained, Params, ArrayLike, Rollout, Array], tuple[Trained, Array, dict[str, Array]]
]
"""(what is trained, target network's parameters, τ, B windows, key) -> (what is trained, mean KL to
the prior, means for the metrics)."""

Refresh = Callable[[Array, Params, Params], Params]
"""(environment steps, parameters, the target network's) -> the target network's."""


def copied(period: int, steps_per_gradient: int) -> Refresh:
    """All at once, when the count of steps meets, or has just passed, a multiple of `period`."""

    def refresh(steps: Array, params: Params, target: Params) -> Params:
        due = steps % period < steps_per_gradient
        return jax.tree.map(lambda new, old: jnp.where(due, new, old), params, target)

    return refresh


def averaged(name: str, rate: float) -> Refresh:
    """A little with each gradient step, θ' ← θ' + ρ(θ − θ')."""
    if not 0 < rate <= 1:
        raise _checks.fail(
            name, f"`averaging` = {rate}", "a share from 0 to 1", "The usual one is 0.005."
        )

    def refresh(steps: Array, params: Params, target: Params) -> Params:
        del steps
        return jax.tree.map(lambda new, old: old + rate * (new - old), params, target)

    return refresh


def one_step_target(window: Rollout, v_t: Array, discount: ArrayLike) -> Array:
    """Targets r + γv(s') of the first actions of windows [B]; v may be anything after an end."""
    following = jnp.where(window.discount[0] > 0, v_t, 0)
    return window.reward[0] + discount * window.discount[0] * following


def critics(q: Array, target: Array) -> tuple[Array, dict[str, Array]]:
    """Σ_k ½(Q_k − y)² of K networks' values [K, B], and what the metrics are told [B]."""
    loss = jnp.sum(jax.vmap(losses.value_loss, (0, None))(q, target), axis=0)
    return loss, {"critic_loss": loss, "q": q[0], "td_error": jnp.abs(q[0] - target)}


def agent_with_replay(
    name: str,
    gradient_step: GradientStep,
    *,
    act: Callable[..., tuple[Array, Any, Any]],
    greedy: Callable[..., tuple[Array, Any, Any]],
    init_params: Callable[[Array], Params],
    optimiser: optax.GradientTransformation,
    source: temperature.Temperature,
    refresh: Refresh,
    num_envs: int,
    observation: Any,
    action: Any,
    extras_of: Callable[[Params], Any] = lambda _: None,
    stack: int,
    capacity: int,
    batch_size: int,
    n: int,
    learning_starts: int,
    steps_per_gradient: int,
    of_state: Callable[[State], dict[str, Array]] = lambda _: {},
) -> Agent:
    """Gradient steps on samples of a replay: those of each rollout after it has been added.

    Args:
      name: of the agent, for errors.
      gradient_step: one of them.
      act: as that of an `Agent`.
      greedy: the same.
      init_params: key -> params.
      optimiser: any of Optax.
      source: of the temperature.
      refresh: of the target network, after each gradient step.
      num_envs: N.
      observation: shape and dtype of one.
      action: shape and dtype of one.
      extras_of: params -> a tree [1, ...] of what is kept of one action, of which shapes are taken.
      stack: C, frames of a stack.
      capacity: transitions in the replay.
      batch_size: B.
      n: steps of a window.
      learning_starts: transitions in the replay before the first gradient step.
      steps_per_gradient: environment steps for each gradient step.
      of_state: more for the metrics.
    """
    n, batch_size = _checks.count(name, "n", n), _checks.count(name, "batch_size", batch_size)
    steps_per_gradient = _checks.count(name, "steps_per_gradient", steps_per_gradient)
    _checks.arguments(name, learning_starts=learning_starts)

    def init(key: Array) -> State:
        params = init_params(key)
        extras = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), jax.eval_shape(extras_of, params)
        )
        return State(
            params=params,
            optimiser=optimiser.init(params),
            # A copy, since the state is to be donated and no buffer can be twice.
            target_params=jax.tree.map(jnp.copy, params),
            temperature=source.init(),
            replay=replay.init(capacity, num_envs, observation, action, extras=extras, stack=stack),
            steps=jnp.zeros((), jnp.uint32),
        )

    def update(state: State, rollout: Rollout, key: Array) -> tuple[State, Metrics]:
        assert state.replay is not None, "an agent that has forgotten its replay cannot learn"
        ring = replay.add(state.replay, rollout)
        updates = _updates(name, rollout, steps_per_gradient)
        offsets = steps_per_gradient * jnp.arange(1, updates + 1, dtype=jnp.uint32)

        def learn_once(learned: _Learned, now: tuple[Array, Array]) -> Any:
            key, steps = now
            window = replay.sample(ring, key, batch_size, n, stack=stack)
            # A third one, beside the two into which `sample` splits it.
            trained, kl, means = gradient_step(
                learned.trained,
                learned.target_params,
                source.value(learned.temperature),
                window,
                jax.random.fold_in(key, 2),
            )
            means |= temperature.told(source, learned.temperature)
            # Of no transition there is nothing to tell: all sums are 0.
            counted = jnp.where(jnp.any(window.weight[0] > 0), 1.0, 0.0)
            means = {name: jnp.where(counted > 0, x, 0) for name, x in means.items()}
            learned = _Learned(
                trained,
                refresh(steps, trained.params, learned.target_params),
                source.update(learned.temperature, kl),
            )
            return learned, means | {"counted": counted}

        def learn(learned: _Learned) -> tuple[_Learned, dict[str, Array]]:
            keys = jax.random.split(key, updates)
            learned, means = jax.lax.scan(learn_once, learned, (keys, state.steps + offsets))
            return learned, jax.tree.map(lambda x: jnp.sum(x, axis=0), means)

        def wait(learned: _Learned) -> tuple[_Learned, dict[str, Array]]:
            shapes = jax.eval_shape(learn, learned)[1]
            return learned, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        # The ring only goes in: under `vmap` both branches are taken and what comes out selected.
        held = ring.filled * num_envs >= min(learning_starts, capacity // num_envs * num_envs)
        ready = held & (replay.num_starts(ring, n, stack=stack) > 0)
        trained = Trained(state.params, state.optimiser)
        learned, sums = jax.lax.cond(
            ready, learn, wait, _Learned(trained, state.target_params, state.temperature)
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

    return Agent(init, act, update, greedy, forget=forget)


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
