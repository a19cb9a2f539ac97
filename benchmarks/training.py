"""Environment steps per second of the training program: a budget, its scaling, its peers.

    python -m benchmarks.training [--json FILE] [--quick | --full]

Budget: the program's parts are measured beside it, interleaved. Environment: the emulators alone,
stepped inside a compiled program with random actions. Acting: the network's forward pass and the
draw of actions on T batches of N. Learning: one update on a rollout. They follow one another, so
that the rate they allow is 1 / (sum of their times).

Scaling: the whole program with more environments, longer rollouts, more seeds.

Peers: stable-baselines3's A2C on the same EnvPool game, where it is installed; both sides make one
pass over each rollout in one batch.
"""

import dataclasses
import importlib.util
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import harness
from benchmarks.harness import compiled
from jaxsoft.agents.registry import ALGORITHMS
from jaxsoft.cli import assembly
from jaxsoft.cli.config import Config, complete
from jaxsoft.environments import EnvPool
from jaxsoft.training.graph import GraphLoop
from jaxsoft.training.launch import keep_pages
from jaxsoft.training.loop import initial

Sides = dict[str, Callable[[], Any]]
Row = dict[str, Any]

BRIEFLY = ("a2c", "natural_pg", "soft_q")


class Size(NamedTuple):
    """What is trained on what, and how many updates are timed at once."""

    game: str
    algorithm: str
    num_envs: int
    length: int
    updates: int
    seeds: int = 1

    @property
    def steps(self) -> int:
        return self.seeds * self.num_envs * self.length * self.updates

    def row(self, part: str) -> Row:
        return {
            "part": part,
            "game": self.game,
            "algorithm": self.algorithm,
            "environments": self.num_envs,
            "rollout_length": self.length,
            "seeds": self.seeds,
        }


def config(size: Size, *, capacity: int = 20_000) -> Config:
    """What the command line would be given: the defaults, but learning from the first step on."""
    given = {
        "game": size.game,
        "algorithm": size.algorithm,
        "steps": 10_000_000,
        "seeds": tuple(range(size.seeds)),
        "num_envs": size.num_envs,
        "rollout_length": size.length,
    }
    if not has_replay(size.algorithm):
        return complete(given)
    whole = complete(given | {"capacity": capacity, "learning_starts": 64})
    # The command line refuses batches of more windows than there are yet; they cost the same.
    first = dataclasses.replace(whole.settings, learning_starts=1)  # type: ignore[call-arg]
    return dataclasses.replace(whole, settings=first)


def has_replay(algorithm: str) -> bool:
    return ALGORITHMS[algorithm].seeds == "side by side"


def pool(size: Size) -> EnvPool:
    options = assembly.options(config(size))
    return EnvPool(size.game, num_envs=size.num_envs, seeds=range(size.seeds), **options)


def whole(size: Size) -> Callable[[], Any]:
    """A call that trains on."""
    loop = assembly.loop(config(size), driver="graph")
    held: dict[str, Any] = {
        "state": initial(loop.agent, range(size.seeds)),
        "actors": loop.start(),
    }

    def call() -> Any:
        state, actors, report = loop.run(held["state"], held["actors"], size.updates)
        held.update(state=state, actors=actors)
        return report

    return call


def parts(size: Size) -> Sides:
    """The same in parts, for one seed."""
    alone, one = pool(size), assembly.agent(config(size))
    environment, step = alone.reset()
    steps = size.updates * size.length

    @compiled
    def emulate(environment: Any, key: Any) -> Any:
        def step(environment: Any, key: Any) -> Any:
            action = jax.random.randint(key, alone.batch_shape, 0, alone.action.categories)
            environment, then = alone.step(environment, action)
            return environment, then.reward.sum()

        return jax.lax.scan(step, environment, jax.random.split(key, steps))

    loop = GraphLoop(pool(size), one, length=size.length)
    _, rollout = loop.collect(initial(one, (0,)), loop.start())
    rollout = jax.tree.map(lambda x: x[:, 0], rollout)
    observation = jnp.asarray(step.observation[0])
    state = jax.tree.map(lambda x: x[0], initial(one, (0,)).agent)

    @compiled
    def act(state: Any, observation: Any, key: Any) -> Any:
        def step(total: Any, key: Any) -> Any:
            # The action of a step goes into the next observation: nothing can be hoisted.
            seen = observation + (total > 10**9).astype(observation.dtype)
            keys = jax.random.split(key, size.num_envs)
            action, _, extras = one.act(state, None, seen, keys)
            return total + action.sum(), extras

        zero = jnp.zeros((), jnp.int32)
        return jax.lax.scan(step, zero, jax.random.split(key, steps))

    @compiled
    def learn(state: Any, rollout: Any, key: Any) -> Any:
        def update(state: Any, key: Any) -> Any:
            state, metrics = one.update(state, rollout, key)
            return state, metrics.sums["loss"]

        # The state, too: where nothing takes it, one update alone would not be carried out.
        return jax.lax.scan(update, state, jax.random.split(key, size.updates))

    key = jax.random.key(0)
    return {
        "environment": lambda: emulate(environment, key),
        "acting": lambda: act(state, observation, key),
        "learning": lambda: learn(state, rollout, key),
    }


def budget(sizes: Sequence[Size], repetitions: int) -> list[Row]:
    rows = []
    for size in sizes:
        sides = {"whole": whole(size)} | parts(size)
        seconds = harness.measure(sides, repetitions=repetitions, at_least=0.0)
        median = {name: statistics.median(times) for name, times in seconds.items()}
        split = [seconds[name] for name in sides if name != "whole"]
        allowed = [sum(times) for times in zip(*split, strict=True)]
        shares = [a / w for a, w in zip(allowed, seconds["whole"], strict=True)]
        rates = {name: size.steps / x for name, x in median.items()}
        rates["allowed"] = size.steps / statistics.median(allowed)
        row = size.row("budget") | {
            "steps_per_second": {name: round(x, 1) for name, x in rates.items()},
            "share_of_allowed": spread(shares),
        }
        rows.append(row)
        share = row["share_of_allowed"]
        print(
            f"{size.game:<10}{size.algorithm:<17}{size.num_envs:>4} x {size.length:<4}"
            + "".join(f"{name} {rate:>9,.0f}   " for name, rate in rates.items())
            + f"share {share['median']:.2f} ({share['low']:.2f} - {share['high']:.2f})",
            flush=True,
        )
    return rows


def scaling(what: str, sizes: Sequence[Size], repetitions: int) -> list[Row]:
    sides = {str(i): whole(size) for i, size in enumerate(sizes)}
    seconds = harness.measure(sides, repetitions=repetitions, at_least=0.0)
    rows = []
    for size, times in zip(sizes, seconds.values(), strict=True):
        row = size.row(f"scaling: {what}")
        row["steps_per_second"] = spread([size.steps / x for x in times])
        rows.append(row)
        print(
            f"{what}: {size.game} {size.algorithm} {size.seeds} x {size.num_envs} x {size.length}"
            f"   {row['steps_per_second']['median']:,.0f} steps/s",
            flush=True,
        )
    return rows


def peers(sizes: Sequence[Size], repetitions: int) -> list[Row]:
    if importlib.util.find_spec("stable_baselines3") is None:
        print("stable-baselines3 is not installed: left out")
        return []
    theirs = importlib.import_module("benchmarks.peers.stable_baselines3")
    rows = []
    for size in sizes:
        options = {"episodic_life": True, "reward_clip": True}
        shape = (size.game, size.num_envs, size.length, size.updates)
        sides = {"jaxsoft": whole(size), "stable-baselines3": theirs.a2c(*shape, **options)}
        seconds = harness.measure(sides, repetitions=repetitions, at_least=0.0)
        faster = [
            b / a for a, b in zip(seconds["jaxsoft"], seconds["stable-baselines3"], strict=True)
        ]
        row = size.row("peers") | {
            "steps_per_second": {
                name: spread([size.steps / x for x in times]) for name, times in seconds.items()
            },
            "times_as_fast": spread(faster),
        }
        rows.append(row)
        rates = {name: x["median"] for name, x in row["steps_per_second"].items()}
        print(
            f"{size.game} {size.num_envs} x {size.length}   "
            + "   ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
            + f"   {row['times_as_fast']['median']:.2f} times as fast",
            flush=True,
        )
    return rows


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "low": round(min(values), 3),
        "high": round(max(values), 3),
    }


def main() -> None:
    given = harness.arguments("Training throughput: a budget, its scaling, its peers.")
    if given.quick:
        rows = budget([Size("Catch-v0", "a2c", 16, 8, 100), Size("Catch-v0", "dqn", 8, 4, 50)], 3)
        rows += scaling("seeds", [Size("Catch-v0", "a2c", 16, 8, 100, s) for s in (1, 4)], 3)
    else:
        rows = peers([Size("Pong-v5", "a2c", 16, 5, 8), Size("Pong-v5", "a2c", 64, 32, 1)], 5)
        replay = [name for name in ALGORITHMS if has_replay(name)]
        on_policy = [name for name in ALGORITHMS if name not in replay]
        several, replay = (on_policy, replay) if given.full else (BRIEFLY[:2], replay[:1])
        sizes = [Size("Pong-v5", name, 16, 5, 4) for name in several]
        sizes += [Size("Pong-v5", name, 64, 32, 1) for name in several[: 2 if given.full else 1]]
        sizes += [Size("Pong-v5", name, 8, 4, 8) for name in replay]
        sizes += [Size("Catch-v0", name, 16, 8, 200) for name in BRIEFLY[: 3 if given.full else 1]]
        sizes += [Size("Catch-v0", "dqn", 8, 4, 200)] if given.full else []
        rows += budget(sizes, 5)
        many = (8, 32, 128, 512) if given.full else (8, 128)
        rows += scaling("environments", [Size("Pong-v5", "a2c", n, 5, 512 // n) for n in many], 3)
        if given.full:
            long = (5, 32, 128)
            rows += scaling("steps an update", [Size("Pong-v5", "a2c", 16, t, 1) for t in long], 3)
        seeds = (1, 8, 32, 64) if given.full else (1, 32)
        rows += scaling("seeds", [Size("Catch-v0", "a2c", 16, 8, 100, s) for s in seeds], 3)
    harness.write(given, "training", rows)


if __name__ == "__main__":
    keep_pages()
    main()
