"""The gradients of soft Q-learning and policy gradient along real runs, and what parts them.

At every checkpoint of a run, new games are played by its policy. gradients.csv has, for batches of
several sizes out of them, how alike the two gradients of one batch are, and how each varies between
batches; conditions.csv has how far the two *expected* gradients are apart where actions come from
another policy than π, or targets from other parameters.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import jaxsoft
from jaxsoft.agents import on_policy
from jaxsoft.agents.base import Agent, Rollout
from jaxsoft.agents.on_policy import Heads
from jaxsoft.cli import assembly, evaluate
from jaxsoft.cli.config import ConfigError
from jaxsoft.training import checkpoints as checkpoint
from jaxsoft.training._json import sealed, unsealed
from jaxsoft.training.loop import TrainState
from jaxsoft.training.provenance import write_json

SHARES = 4
"""Parts of a run, at whose ends there is a checkpoint, and one before the first."""

EPSILONS = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0)
TEMPERATURES = (0.5, 0.8, 1.25, 2.0, 4.0)
AGES = (1, 4, 16, 64, 256)


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured at a checkpoint.

    Attributes:
      units: environments, whose rollouts are the smallest batches.
      warm_up: rollouts played before, so that not all games are at their beginning.
      ages: updates by which the acting policy lags behind.
    """

    units: int = 1024
    warm_up: int = 32
    ages: tuple[int, ...] = AGES


class _Probe:
    """What is measured at a run's checkpoints, each part of it compiled once.

    Args:
      trained: the run.
      size: how much.
    """

    def __init__(self, trained: evaluate.Trained, size: Size) -> None:
        self.config, self.size = trained.config, size
        self.objective = self.config.settings.objective()
        self.network = assembly.network(self.config).apply
        seed = self.config.seeds[0]
        many = dataclasses.replace(self.config.settings, num_envs=size.units)
        apart = dataclasses.replace(self.config, settings=many, seeds=(20_000 + seed,))
        self.players = assembly.loop(apart)
        self.players.agent = _without_extras(self.players.agent)
        again = dataclasses.replace(self.config, seeds=(30_000 + seed,))
        self.learning = assembly.loop(again)
        self.unit_gradients = jax.jit(self._unit_gradients)
        self.conditions = jax.jit(self._conditions)
        self.heads = jax.jit(self._heads)
        self.targets = jax.jit(self._targets)

    def play(self, agent_state: Any, key: Array) -> Rollout:
        """A rollout [T, units] of an agent's policy, in the midst of games."""
        actors = self.players.start()
        for i in range(self.size.warm_up + 1):
            actors, found = self.players.collect(_alone(agent_state, key, i), actors)
        rollout: Rollout = jax.tree.map(lambda x: x[:, 0], found)
        return rollout

    def _heads(self, params: Any, rollout: Rollout) -> Heads:
        return on_policy.actor_critic_head(
            self.network(params, rollout.observation), self.objective
        )

    def _targets(self, at: Heads, rollout: Rollout) -> Array:
        kl = jaxsoft.kl_to_prior(at.log_pi[:-1], self.objective.log_prior)
        return on_policy.soft_targets(at, kl, rollout, self.objective)

    def _unit_gradients(self, params: Any, rollout: Rollout, value_coef: Array) -> list[Any]:
        """Of soft Q and of policy gradient, [units, ...]."""
        objective = self.objective._replace(value_coef=value_coef)

        def unit(rollout: Rollout) -> list[Any]:
            wide = jax.tree.map(lambda x: x[:, None], rollout)
            # Steps that are no transitions are zeros of the mean, in every unit alike.
            share = jnp.mean(wide.weight)
            found = []
            for loss in (on_policy.soft_q, on_policy.a2c):
                direction = on_policy.direction_of(loss, differentiates_target=False)
                gradient, _, _ = direction.of(
                    self.network, on_policy.actor_critic_head, params, wide, objective
                )
                found.append(jax.tree.map(lambda x: share * x, gradient))
            return found

        by_unit = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), rollout)
        return jax.lax.map(unit, by_unit, batch_size=16)  # type: ignore[no-any-return]

    def _conditions(
        self, params: Any, rollout: Rollout, log_pi: Array, log_mu: Array, target: Array
    ) -> dict[str, Array]:
        """How far apart the expected gradients of π are, acting by μ [T, N, A], with targets y."""
        found = jaxsoft.check_equivalence(
            self.network,
            params,
            rollout.observation,
            rollout.action,
            r_t=rollout.reward,
            weight=rollout.weight,
            behaviour_log_pi=log_mu,
            target=target,
            **self.objective.on(rollout),
        )
        mu = jnp.exp(log_mu)
        kl = jnp.sum(jnp.where(mu > 0, mu * (log_mu - log_pi), 0), axis=-1)
        variation = 0.5 * jnp.sum(jnp.abs(mu - jnp.exp(log_pi)), axis=-1)
        weight = rollout.weight / jnp.sum(rollout.weight)
        return {
            "kl": jnp.sum(weight * kl),
            "variation": jnp.sum(weight * variation),
            "as_acted": found.expected_difference,
            "reweighted": found.reweighted_difference,
        }

    def gradient_rows(self, params: Any, rollout: Rollout) -> Iterator[dict[str, Any]]:
        """Rows of gradients.csv at one checkpoint, for A2C's weight c and for the theory's, 1/τ."""
        a2c, theory = self.objective.value_coef, 1 / self.objective.tau
        for kind, value_coef in (("a2c", a2c), ("theory", theory)):
            soft_q, policy = self.unit_gradients(params, rollout, jnp.asarray(value_coef))
            steps = self.config.settings.rollout_length
            while len(jax.tree.leaves(soft_q)[0]) >= 4:
                numbers = jax.device_get(_numbers(soft_q, policy))
                yield {"weighting": kind, "value_coef": value_coef, "batch": steps} | numbers
                soft_q, policy = _halved(soft_q), _halved(policy)
                steps *= 2

    def condition_rows(
        self, agent_state: Any, rollout: Rollout, key: Array
    ) -> Iterator[dict[str, Any]]:
        """Rows of conditions.csv at one checkpoint."""
        params = agent_state.params
        at = self.heads(params, rollout)
        log_pi, target = at.log_pi[:-1], self.targets(at, rollout)

        def row(what: str, x: float, params: Any, *arguments: Array) -> dict[str, Any]:
            numbers = self.conditions(params, rollout, *arguments)
            return {"condition": what, "x": x, **jax.device_get(numbers)}

        yield row("none", 0.0, params, log_pi, log_pi, target)
        for epsilon in EPSILONS:
            mixed = (1 - epsilon) * jnp.exp(log_pi) + epsilon / log_pi.shape[-1]
            yield row("epsilon", epsilon, params, log_pi, jnp.log(mixed), target)
        for times in TEMPERATURES:
            log_mu = jax.nn.log_softmax(log_pi / times)
            yield row("temperature", times, params, log_pi, log_mu, target)
        # From here π learns on, and the acting policy, or the target network, stays behind.
        state = jax.tree.map(jnp.array, _alone(agent_state, key, 0))
        actors, done = self.learning.start(), 0
        for age in self.size.ages:
            state, actors, _ = self.learning.run(state, actors, age - done)
            done = age
            later = jax.tree.map(lambda x: x[0], state.agent).params
            now = self.heads(later, rollout)
            log_pi_now = now.log_pi[:-1]
            yield row("age", age, later, log_pi_now, log_pi, self.targets(now, rollout))
            yield row("target age", age, later, log_pi_now, log_pi_now, target)


def _without_extras(agent: Agent) -> Agent:
    """Acts alike and keeps nothing for learning: of so many environments that would be much."""
    return agent._replace(act=lambda *args: (*agent.act(*args)[:2], None))


def _alone(agent_state: Any, key: Array, i: int) -> TrainState:
    """A loop's state of one seed."""
    one = jax.tree.map(lambda x: x[None], agent_state)
    return TrainState(one, jax.random.fold_in(key, i)[None], jnp.zeros((), jnp.int32))


@jax.jit
def _halved(x: Any) -> Any:
    """Means of pairs of batches: batches of twice the size."""
    return jax.tree.map(lambda g: (g[0::2] + g[1::2]) / 2, x)


@jax.jit
def _numbers(soft_q: Any, policy_gradient: Any) -> dict[str, Array]:
    """Statistics of batches' gradients [n, ...] by the two methods."""

    def inner(x: Any, y: Any) -> Array:
        parts = jax.tree.map(lambda a, b: jnp.sum(a * b, axis=range(1, a.ndim)), x, y)
        return jax.tree.reduce(jnp.add, parts)

    def mean(x: Any) -> Any:
        return jax.tree.map(lambda g: jnp.mean(g, axis=0, keepdims=True), x)

    count = len(jax.tree.leaves(soft_q)[0])
    squares = {"soft_q": inner(soft_q, soft_q), "policy": inner(policy_gradient, policy_gradient)}
    both = inner(soft_q, policy_gradient)
    apart = jax.tree.map(jnp.subtract, soft_q, policy_gradient)
    means = {"soft_q": mean(soft_q), "policy": mean(policy_gradient)}
    numbers = {
        "cosine": jnp.mean(both / jnp.sqrt(squares["soft_q"] * squares["policy"])),
        "norm_ratio": jnp.mean(jnp.sqrt(squares["soft_q"] / squares["policy"])),
        "difference": jnp.mean(inner(apart, apart)),
    }
    for name, square in squares.items():
        around = inner(means[name], means[name])[0]
        trace = (jnp.mean(square) - around) * count / max(count - 1, 1)
        numbers[f"trace_{name}"] = trace
        numbers[f"signal_{name}"] = around - trace / count
    return numbers


def measured(out: Path, size: Size) -> dict[str, list[dict[str, Any]]]:
    """The rows of a run's folder; what was measured before is read."""
    saved = checkpoint.saved_steps(out / "checkpoints")
    if not saved:
        raise ConfigError(f"{out} holds no run with a checkpoint. Name the --out of one.")
    steps = _nearest(saved, SHARES)
    about = {"steps": steps, **dataclasses.asdict(size), "ages": list(size.ages)}
    file = out / "gradients.json"
    if file.exists():
        # What is damaged is measured again.
        with contextlib.suppress(ValueError, KeyError):
            before = unsealed(json.loads(file.read_text()))
            if before["about"] == about:
                return {name: list(before[name]) for name in ("gradients", "conditions")}
    found = measure(out, size, steps)
    write_json(file, sealed({"about": about} | found))
    jax.clear_caches()
    return found


def measure(out: Path, size: Size, steps: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """Rows of gradients.csv and of conditions.csv of a run's folder, all seeds."""
    newest = evaluate.load(out)
    config = newest.config
    tau = config.settings.tau
    if config.algorithm not in ("soft_q", "a2c") or not tau > 0:
        raise ConfigError(
            f"{out} is a run of {config.algorithm} at τ = {tau:g}; expected soft_q or a2c "
            "at τ > 0, whose network has both gradients."
        )
    probe = _Probe(newest, size)
    gradients: list[dict[str, Any]] = []
    conditions: list[dict[str, Any]] = []
    for step in steps:
        trained = evaluate.load(out, step)
        for i, seed in enumerate(config.seeds):
            own = jax.tree.map(lambda x: x[i], trained.state.agent)  # noqa: B023
            key = jax.random.fold_in(jax.random.key(40_000 + seed), step)
            rollout = probe.play(own, key)
            where = {
                "game": config.game,
                "tau": tau,
                "seed": seed,
                "step": step,
                "of_steps": config.steps,
            }
            rows = probe.gradient_rows(own.params, rollout)
            gradients += [where | _plain(row) for row in rows]
            rows = probe.condition_rows(own, rollout, key)
            conditions += [where | _plain(row) for row in rows]
    return {"gradients": gradients, "conditions": conditions}


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: x if isinstance(x, (str, int)) else f"{float(x):.6g}" for name, x in row.items()}


def _nearest(steps: Sequence[int], shares: int) -> list[int]:
    """Of a run's checkpoints, those nearest to equal parts of it."""
    wanted = np.linspace(min(steps), max(steps), shares + 1)
    chosen: list[int] = sorted({min(steps, key=lambda s: abs(s - w)) for w in wanted})
    return chosen
