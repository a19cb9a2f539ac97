"""The training loop as one compiled program: act, step, learn, for many seeds and updates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoft import _checks
from jaxsoft.agents.base import Agent, Rollout, TimeStep
from jaxsoft.environments.base import Environment
from jaxsoft.training import launch, loop
from jaxsoft.training.collect import Finished, assemble, no_games, score
from jaxsoft.training.loop import Actors, Report, TrainState

__all__ = ["GraphLoop"]


class GraphLoop:
    """Everything in one compiled program.

    Args:
      environment: an `Environment`; its step is traced into the program.
      agent: an `Agent`.
      length: T, steps of each environment between updates.
      in_turn: whether the seeds learn one after the other instead of side by side. That is
        faster where one seed fills the device, or where its program has conditions, of which
        seeds side by side must compute both branches.
    """

    def __init__(
        self, environment: Environment, agent: Agent, *, length: int, in_turn: bool = False
    ) -> None:
        self.environment = environment
        self.in_turn = in_turn
        self.agent = agent
        self.length = _checks.count("GraphLoop", "length", length)
        self.batch_shape = environment.batch_shape
        # The number of updates is data: a shorter last call compiles nothing new.
        self._run = launch.jit(self._updates, donate_argnums=0)
        self._collected = launch.jit(lambda state, actors: self._collect(state, actors)[:2])

    @property
    def steps_per_update(self) -> int:
        """Environment steps of one seed in one update."""
        return self.length * self.batch_shape[1]

    def start(self) -> Actors:
        """Fresh games."""
        state, step = self.environment.reset()
        carry = loop.initial_carry(self.agent, self.batch_shape)
        return Actors(state, step, carry, no_games(self.batch_shape))

    def run(
        self, state: TrainState, actors: Actors, updates: int
    ) -> tuple[TrainState, Actors, Report]:
        """Acts and learns for a number of updates; `state` is used up."""
        updates = _checks.count("GraphLoop.run", "updates", updates)
        return self._run(state, actors, updates)  # type: ignore[no-any-return]

    def collect(self, state: TrainState, actors: Actors) -> tuple[Actors, Rollout]:
        """The rollout [T, S, N] that the next update would learn from, without the update."""
        return self._collected(state, actors)  # type: ignore[no-any-return]

    def rollout_like(self, state: TrainState) -> Rollout:
        """Shapes and dtypes of a rollout, from those of a state; nothing is computed."""
        return self._collected.eval_shape(state, jax.eval_shape(self.start))[1]  # type: ignore[no-any-return]

    def _updates(
        self, state: TrainState, actors: Actors, updates: Array
    ) -> tuple[TrainState, Actors, Report]:
        _, _, shapes = jax.eval_shape(self._update, state, actors)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def update(_: Array, carry: Any) -> Any:
            state, actors, sums = carry
            state, actors, report = self._update(state, actors)
            return state, actors, jax.tree.map(jnp.add, sums, report)

        return jax.lax.fori_loop(0, updates, update, (state, actors, nothing))  # type: ignore[no-any-return]

    def _update(self, state: TrainState, actors: Actors) -> tuple[TrainState, Actors, Report]:
        actors, rollout, finished = self._collect(state, actors)
        state, metrics = loop.learn(self.agent, state, rollout, self.in_turn)
        return state, actors, Report(metrics, finished)

    def _collect(self, state: TrainState, actors: Actors) -> tuple[Actors, Rollout, Finished]:
        def step(carry: tuple[Any, TimeStep, Any], keys: Array) -> tuple[Any, Any]:
            environment, now, remembered = carry
            action, remembered, extras = loop.act(
                self.agent, self.batch_shape, state, remembered, now, keys
            )
            environment, then = self.environment.step(environment, action)
            return (environment, then, remembered), (action, then, extras)

        begin = actors.environment, actors.step, actors.carry
        (environment, last, remembered), (action, steps, extras) = jax.lax.scan(
            step, begin, loop.keys_of_steps(state.key, self.length)
        )
        games, finished = score(actors.games, steps)
        rollout = assemble(actors.step, action, steps, extras)
        return Actors(environment, last, remembered, games), rollout, finished
