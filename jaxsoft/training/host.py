"""The training loop for emulators that are stepped from the host."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoft import _checks
from jaxsoft.agents.base import Agent, Rollout, TimeStep
from jaxsoft.environments.autoreset import interpret
from jaxsoft.environments.envpool import HostEnvPool
from jaxsoft.training import launch, loop
from jaxsoft.training.collect import Finished, Games, assemble, no_games, score
from jaxsoft.training.loop import Actors, Report, TrainState

__all__ = ["HostLoop"]


class HostLoop:
    """The emulators driven from the host: while the device acts for one pool, the others emulate.

    It gives the results of `GraphLoop`.

    Args:
      pools: parts of the N environments, in their order; two overlap acting and emulation.
      agent: an `Agent`.
      length: T.
      in_turn: as for `GraphLoop`.
    """

    def __init__(
        self,
        pools: Sequence[HostEnvPool],
        agent: Agent,
        *,
        length: int,
        in_turn: bool = False,
    ) -> None:
        if not pools or len({pool.batch_shape[0] for pool in pools}) > 1:
            raise _checks.fail(
                "HostLoop",
                f"pools of shapes {[pool.batch_shape for pool in pools]}",
                "at least one pool, and the same number of seeds in all of them",
                "Make them with the same `seeds` and disjoint `part`s.",
            )
        self.pools = tuple(pools)
        self.in_turn = in_turn
        self.agent = agent
        self.length = _checks.count("HostLoop", "length", length)
        ends: list[int] = np.cumsum([pool.batch_shape[1] for pool in pools]).tolist()
        self.batch_shape = (pools[0].batch_shape[0], ends[-1])
        self._parts = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]
        self._keys = jax.jit(lambda key: loop.keys_of_steps(key, self.length))
        self._unfinished = False
        self._act = launch.jit(self._act_for, static_argnames="part")
        self._interpret = jax.jit(interpret)
        self._assemble = jax.jit(self._assembled)
        self._learn = launch.jit(
            lambda state, rollout: loop.learn(agent, state, rollout, in_turn), donate_argnums=0
        )

    @property
    def steps_per_update(self) -> int:
        """Environment steps of one seed in one update."""
        return self.length * self.batch_shape[1]

    def start(self) -> Actors:
        """Fresh games, also after an error."""
        started = [pool.reset() for pool in self.pools]
        step = _join([step for _, step in started])
        carry = loop.initial_carry(self.agent, self.batch_shape)
        games = no_games(self.batch_shape)
        self._unfinished = False
        return Actors([memory for memory, _ in started], step, carry, games)

    def run(
        self, state: TrainState, actors: Actors, updates: int
    ) -> tuple[TrainState, Actors, Report]:
        """Acts and learns for a number of updates; `state` is used up."""
        reports = []
        updates = _checks.count("HostLoop.run", "updates", updates)
        with self._finishing():
            for _ in range(updates):
                actors, rollout, finished = self._collect(state, actors)
                state, metrics = self._learn(state, rollout)
                reports.append(Report(metrics, finished))
        return state, actors, jax.tree.map(lambda *x: sum(x), *reports)

    def collect(self, state: TrainState, actors: Actors) -> tuple[Actors, Rollout]:
        """The rollout [T, S, N] that the next update would learn from, without the update."""
        with self._finishing():
            return self._collect(state, actors)[:2]

    @contextlib.contextmanager
    def _finishing(self) -> Iterator[None]:
        """An error inside leaves the emulators ahead of what the caller knows of them."""
        if self._unfinished:
            raise _checks.fail(
                "HostLoop",
                "emulators that an error left in the middle of a rollout",
                "emulators that stand where `actors` says",
                "Begin fresh games: actors = loop.start().",
            )
        self._unfinished = True
        yield
        self._unfinished = False

    def _collect(self, state: TrainState, actors: Actors) -> tuple[Actors, Rollout, Finished]:
        keys = self._keys(state.key)
        count = len(self.pools)
        memories = list(actors.environment)
        carries = [jax.tree.map(lambda x, i=part: x[:, i], actors.carry) for part in self._parts]
        acted: list[list[tuple[Array, Any]]] = [[] for _ in range(count)]
        steps: list[list[TimeStep]] = [[] for _ in range(count)]

        def send(i: int, t: int, step: TimeStep) -> None:
            part = self._parts[i].start, self._parts[i].stop
            action, carries[i], extras = self._act(state, carries[i], step, keys[t], part=part)
            acted[i].append((action, extras))
            self.pools[i].send(np.asarray(action))

        for i, part in enumerate(self._parts):
            send(i, 0, jax.tree.map(lambda x, part=part: x[:, part], actors.step))
        for t in range(1, self.length + 1):
            for i, pool in enumerate(self.pools):
                answer = jax.device_put(pool.recv())
                memories[i], step = self._interpret(memories[i], answer)
                steps[i].append(step)
                if t < self.length:
                    send(i, t, step)
        step, games, rollout, finished = self._assemble(actors.step, actors.games, acted, steps)
        return Actors(memories, step, _join(carries), games), rollout, finished

    def _act_for(
        self, state: TrainState, carry: Any, step: TimeStep, keys: Array, part: tuple[int, int]
    ) -> tuple[Array, Any, Any]:
        return loop.act(self.agent, self.batch_shape, state, carry, step, keys, slice(*part))

    @staticmethod
    def _assembled(
        start: TimeStep,
        games: Games,
        acted: list[list[tuple[Array, Any]]],
        steps: list[list[TimeStep]],
    ) -> tuple[TimeStep, Games, Rollout, Finished]:
        def over_time(parts: list[list[Any]]) -> Any:
            return _join([jax.tree.map(lambda *x: jnp.stack(x), *part) for part in parts], axis=2)

        (action, extras), joined = over_time(acted), over_time(steps)
        games, finished = score(games, joined)
        last = jax.tree.map(lambda x: x[-1], joined)
        return last, games, assemble(start, action, joined, extras), finished


def _join(parts: Sequence[Any], axis: int = 1) -> Any:
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=axis), *parts)
