"""The training loop: act, step, learn, for many seeds and many updates in one call.

`GraphLoop` compiles all of it into one program; `HostLoop` steps the emulators from the host, for
devices that they cannot be stepped on. Both take a `Learner`, train S independent seeds side by
side, and give the same results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoft import _checks
from jaxsoft.agents.base import Learner, Metrics
from jaxsoft.environments import Environment, HostEnvPool, Step, interpret
from jaxsoft.training.collect import Finished, Games, Rollout, assemble, no_games, score
from jaxsoft.training.launch import compiler_options

__all__ = ["Actors", "GraphLoop", "HostLoop", "Report", "TrainState", "initial"]


class TrainState(NamedTuple):
    """All that learning depends on, and what a checkpoint holds; leading axis S.

    Attributes:
      learner: the learner's state.
      key: [S].
      updates: rollouts learned from, [].
    """

    learner: Any
    key: Array
    updates: Array


class Actors(NamedTuple):
    """The environments' side, which only begins anew after a restart."""

    environment: Any
    step: Step
    games: Games


class Report(NamedTuple):
    """Sums over a call's updates, still on the device; leading axis S.

    Attributes:
      metrics: the learner's, each times the gradient steps of its update.
      finished: games finished.
    """

    metrics: Metrics
    finished: Finished


def initial(learner: Learner, seeds: Sequence[int]) -> TrainState:
    """The state at the start; seed s gets what it would get alone."""

    def one(key: Array) -> tuple[Any, Array]:
        key, init_key = jax.random.split(key)
        return learner.init(init_key), key

    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    # Compiled whole: a replay would be there twice while a seed's axis is added to it. In turn:
    # the QR decompositions of an orthogonal start, as a batch, can wait for each other for ever
    # (jaxlib 0.10.2, on as many cores as there are of them at once).
    states, keys = jax.jit(over_seeds(one, len(seeds), [0], in_turn=True))(keys)
    return TrainState(states, keys, jnp.zeros((), jnp.int32))


def over_seeds(
    f: Callable[..., Any], seeds: int, in_axes: Sequence[int], *, in_turn: bool = False
) -> Callable[..., Any]:
    """A function for each of S seeds: by `vmap`, or one after the other; for one, itself."""

    def apart(*args: Any) -> Any:
        def first(axis: int, arg: Any) -> Any:
            return jax.tree.map(lambda x: jnp.moveaxis(x, axis, 0), arg)

        leading = [first(axis, arg) for axis, arg in zip(in_axes, args, strict=True)]
        if seeds > 1:
            return jax.lax.map(lambda now: f(*now), tuple(leading))
        alone = jax.tree.map(lambda x: x[0], leading)
        return jax.tree.map(lambda x: jnp.asarray(x)[None], f(*alone))

    return jax.vmap(f, tuple(in_axes)) if seeds > 1 and not in_turn else apart


class GraphLoop:
    """Everything in one compiled program.

    Args:
      environment: an `Environment`; its step is traced into the program.
      learner: a `Learner`.
      length: T, steps of each environment between updates.
      in_turn: whether the seeds learn one after the other in the place of side by side. That is
        quicker where one seed fills the device, or where its program has conditions, of which
        seeds side by side must compute both branches.
    """

    def __init__(
        self, environment: Environment, learner: Learner, *, length: int, in_turn: bool = False
    ) -> None:
        self.environment = environment
        self.in_turn = in_turn
        self.learner = learner
        self.length = _checks.count("GraphLoop", "length", length)
        self.batch_shape = environment.batch_shape
        # The number of updates is data: a shorter last call compiles nothing anew.
        options = compiler_options()
        self._run = jax.jit(self._updates, donate_argnums=0, compiler_options=options)
        self._collected = jax.jit(
            lambda state, actors: self._collect(state, actors)[:2], compiler_options=options
        )

    @property
    def steps_per_update(self) -> int:
        """Environment steps of one seed in one update."""
        return self.length * self.batch_shape[1]

    def start(self) -> Actors:
        """Fresh games."""
        state, step = self.environment.reset()
        return Actors(state, step, no_games(self.batch_shape))

    def run(
        self, state: TrainState, actors: Actors, updates: int
    ) -> tuple[TrainState, Actors, Report]:
        """Acts and learns for a number of updates; `state` is used up."""
        updates = _checks.count("GraphLoop.run", "updates", updates)
        return self._run(state, actors, updates)  # type: ignore[no-any-return]

    def collect(self, state: TrainState, actors: Actors) -> tuple[Actors, Rollout]:
        """The rollout [T, S, N] that the next update would learn from, without the update."""
        return self._collected(state, actors)  # type: ignore[no-any-return]

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
        state, metrics = _learn(self.learner, state, rollout, self.in_turn)
        return state, actors, Report(metrics, finished)

    def _collect(self, state: TrainState, actors: Actors) -> tuple[Actors, Rollout, Finished]:
        def step(carry: tuple[Any, Step], keys: Array) -> tuple[tuple[Any, Step], Any]:
            environment, now = carry
            action, kept = _act(
                self.learner, self.batch_shape, state, now.observation, keys, keep=True
            )
            environment, then = self.environment.step(environment, action)
            return (environment, then), (action, then, kept)

        (environment, last), (action, steps, kept) = jax.lax.scan(
            step, (actors.environment, actors.step), _keys_of_steps(state.key, self.length)
        )
        games, finished = score(actors.games, steps)
        rollout = assemble(actors.step, action, steps, kept)
        return Actors(environment, last, games), rollout, finished


class HostLoop:
    """The emulators driven from the host: while the device acts for one pool, the others emulate.

    Args:
      pools: parts of the N environments, in their order; two overlap acting and emulation.
      learner: a `Learner`.
      length: T.
      in_turn: as for `GraphLoop`.
    """

    def __init__(
        self,
        pools: Sequence[HostEnvPool],
        learner: Learner,
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
        self.learner = learner
        self.length = _checks.count("HostLoop", "length", length)
        ends: list[int] = np.cumsum([pool.batch_shape[1] for pool in pools]).tolist()
        self.batch_shape = (pools[0].batch_shape[0], ends[-1])
        self._parts = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]
        self._keys = jax.jit(lambda key: _keys_of_steps(key, self.length))
        options = compiler_options()
        self._act = jax.jit(self._act_for, static_argnames="part", compiler_options=options)
        self._interpret = jax.jit(interpret)
        self._assemble = jax.jit(self._assembled)
        self._learn = jax.jit(
            lambda state, rollout: _learn(learner, state, rollout, in_turn),
            donate_argnums=0,
            compiler_options=options,
        )

    @property
    def steps_per_update(self) -> int:
        """Environment steps of one seed in one update."""
        return self.length * self.batch_shape[1]

    def start(self) -> Actors:
        """Fresh games."""
        started = [pool.reset() for pool in self.pools]
        step = _join([step for _, step in started])
        return Actors([memory for memory, _ in started], step, no_games(self.batch_shape))

    def run(
        self, state: TrainState, actors: Actors, updates: int
    ) -> tuple[TrainState, Actors, Report]:
        """Acts and learns for a number of updates; `state` is used up."""
        reports = []
        for _ in range(_checks.count("HostLoop.run", "updates", updates)):
            actors, rollout, finished = self._collect(state, actors)
            state, metrics = self._learn(state, rollout)
            reports.append(Report(metrics, finished))
        return state, actors, jax.tree.map(lambda *x: sum(x), *reports)

    def collect(self, state: TrainState, actors: Actors) -> tuple[Actors, Rollout]:
        """The rollout [T, S, N] that the next update would learn from, without the update."""
        return self._collect(state, actors)[:2]

    def _collect(self, state: TrainState, actors: Actors) -> tuple[Actors, Rollout, Finished]:
        keys = self._keys(state.key)
        count = len(self.pools)
        memories = list(actors.environment)
        actions: list[list[Array]] = [[] for _ in range(count)]
        steps: list[list[Step]] = [[] for _ in range(count)]

        def send(i: int, t: int, observation: Array) -> None:
            action = self._act(
                state, observation, keys[t], part=(self._parts[i].start, self._parts[i].stop)
            )
            actions[i].append(action)
            self.pools[i].send(np.asarray(action))

        for i, part in enumerate(self._parts):
            send(i, 0, actors.step.observation[:, part])
        for t in range(1, self.length + 1):
            for i, pool in enumerate(self.pools):
                answer = jax.device_put(pool.recv())
                memories[i], step = self._interpret(memories[i], answer)
                steps[i].append(step)
                if t < self.length:
                    send(i, t, step.observation)
        step, games, rollout, finished = self._assemble(actors.step, actors.games, actions, steps)
        return Actors(memories, step, games), rollout, finished

    def _act_for(
        self, state: TrainState, observation: Array, keys: Array, part: tuple[int, int]
    ) -> Array:
        return _act(self.learner, self.batch_shape, state, observation, keys, slice(*part))[0]

    @staticmethod
    def _assembled(
        start: Step, games: Games, actions: list[list[Array]], steps: list[list[Step]]
    ) -> tuple[Step, Games, Rollout, Finished]:
        action = jnp.concatenate([jnp.stack(x) for x in actions], axis=2)
        joined = _join([jax.tree.map(lambda *x: jnp.stack(x), *part) for part in steps], axis=2)
        games, finished = score(games, joined)
        last = jax.tree.map(lambda x: x[-1], joined)
        return last, games, assemble(start, action, joined), finished


class _Keys(NamedTuple):
    next: Array
    act: Array
    learn: Array


def _split(key: Array) -> _Keys:
    """One update's keys of each seed, [S] each."""
    return _Keys(*jnp.moveaxis(jax.vmap(lambda k: jax.random.split(k, 3))(key), 1, 0))


def _keys_of_steps(key: Array, length: int) -> Array:
    """The keys to act by in the update of key [S]: [T, S]."""
    return jax.vmap(lambda k: jax.random.split(k, length), out_axes=1)(_split(key).act)


def _act(
    learner: Learner,
    batch_shape: tuple[int, int],
    state: TrainState,
    observation: Array,
    key: Array,
    part: slice = slice(None),
    *,
    keep: bool = False,
) -> tuple[Array, Any]:
    """Actions [S, n] of a part of the environments, which no other part has an influence on.

    And what the learner keeps of them, if it is to and does.
    """
    seeds, environments = batch_shape

    def one(state: Any, observation: Array, key: Array) -> tuple[Array, Any]:
        keys = jax.random.split(key, environments)[part]
        if keep and learner.act_and_keep is not None:
            return learner.act_and_keep(state, observation, keys)
        return learner.act(state, observation, keys), None

    return over_seeds(one, seeds, [0, 0, 0])(state.learner, observation, key)  # type: ignore[no-any-return]


def _learn(
    learner: Learner, state: TrainState, rollout: Rollout, in_turn: bool
) -> tuple[TrainState, Metrics]:
    keys = _split(state.key)
    seeds = len(keys.next)
    learned, metrics = over_seeds(learner.update, seeds, [0, 1, 0], in_turn=in_turn)(
        state.learner, rollout, keys.learn
    )
    updates = metrics["updates"]
    summed = {
        name: x if name == "updates" else jnp.where(updates > 0, x * updates, 0)
        for name, x in metrics.items()
    }
    return TrainState(learned, keys.next, state.updates + 1), summed


def _join(steps: Sequence[Step], axis: int = 1) -> Step:
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=axis), *steps)  # type: ignore[no-any-return]
