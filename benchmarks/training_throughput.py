"""Environment steps per second of the training loop, against what its parts allow.

    python -m benchmarks.training_throughput --json benchmarks/results/training_throughput_cpu.json

The parts are measured beside it, in turns: the emulators alone, stepped inside a compiled program
with random actions; acting alone, the network's forward pass and the draw of actions on T batches
of N; learning alone, the gradient of the loss on a rollout and the optimiser's step. Emulation,
acting and learning follow one another, so that the rate they allow is 1 / (sum of their times).
"""

import statistics
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import harness
from jaxsoft import environments, networks, on_policy
from jaxsoft.environments import EnvPool
from jaxsoft.launch import keep_pages
from jaxsoft.learner import Learner
from jaxsoft.loop import GraphLoop, initial


def a2c_learner(about: environments.About, algorithm: str, length: int) -> Learner:
    """The paper's A2C and the soft Q-learning that is tied to it."""
    shape, dtype = about.observation_shape, about.observation_dtype
    torso = networks.torso_for(shape, dtype)
    network = networks.ActorCritic(torso, about.num_actions, len(shape))
    return on_policy.learner(
        network.apply,
        lambda key: network.init(key, jnp.zeros((1, *shape), dtype)),
        on_policy.ALGORITHMS[algorithm],
        optimiser=optax.chain(
            optax.clip_by_global_norm(0.5),
            optax.rmsprop(7e-4, decay=0.99, eps=1e-5, initial_scale=1.0),
        ),
        objective=on_policy.Objective(n=length),
    )


def parts(game: str, algorithm: str, num_envs: int, length: int, updates: int) -> dict[str, Any]:
    """Functions without arguments that carry out `updates` updates, whole and in parts."""
    about = environments.about(game)
    learner = a2c_learner(about, algorithm, length)
    options = {"episodic_life": True, "reward_clip": True} if about.is_atari else {}

    def pool() -> EnvPool:
        return EnvPool(game, num_envs=num_envs, **options)

    loop = GraphLoop(pool(), learner, length=length)
    held = {"state": initial(learner, (0,)), "actors": loop.start()}

    def whole() -> Any:
        state, actors, report = loop.run(held["state"], held["actors"], updates)
        held.update(state=state, actors=actors)
        return report

    alone = pool()
    environment, step = alone.reset()

    @jax.jit
    def emulate(environment: Any, key: Any) -> Any:
        def one(environment: Any, key: Any) -> Any:
            action = jax.random.randint(key, (1, num_envs), 0, about.num_actions)
            environment, then = alone.step(environment, action)
            return environment, then.reward.sum()

        return jax.lax.scan(one, environment, jax.random.split(key, updates * length))

    state = jax.tree.map(lambda x: x[0], initial(learner, (0,)).learner)
    observation = jnp.asarray(step.observation[0])
    _, rollout = loop.collect(initial(learner, (0,)), loop.start())
    rollout = jax.tree.map(lambda x: x[:, 0], rollout)

    @jax.jit
    def act(state: Any, observation: Any, key: Any) -> Any:
        def one(total: Any, key: Any) -> Any:
            # The action of a step goes into the next observation: nothing can be hoisted.
            seen = observation + (total > 10**9).astype(observation.dtype)
            keys = jax.random.split(key, num_envs)
            return total + learner.act(state, seen, keys).sum(), None

        zero = jnp.zeros((), jnp.int32)
        return jax.lax.scan(one, zero, jax.random.split(key, updates * length))[0]

    @jax.jit
    def learn(state: Any, rollout: Any, key: Any) -> Any:
        def one(state: Any, key: Any) -> Any:
            state, metrics = learner.update(state, rollout, key)
            return state, metrics["loss"]

        return jax.lax.scan(one, state, jax.random.split(key, updates))

    key = jax.random.key(0)
    return {
        "whole": whole,
        "environment": lambda: emulate(environment, key),
        "acting": lambda: act(state, observation, key),
        "learning": lambda: learn(state, rollout, key),
    }


def rows(quick: bool) -> list[dict[str, Any]]:
    sizes = [("Pong-v5", 16, 5, 8), ("Pong-v5", 64, 32, 1), ("Catch-v0", 16, 8, 500)]
    if quick:
        sizes = [("Catch-v0", 16, 8, 100)]
    out = []
    for game, num_envs, length, updates in sizes:
        for algorithm in ("a2c", "soft_q"):
            sides = parts(game, algorithm, num_envs, length, updates)
            seconds = harness.measure(sides, repetitions=3 if quick else 9, at_least=0.0)
            steps = num_envs * length * updates
            allowed = [
                sum(times)
                for times in zip(*(seconds[name] for name in sides if name != "whole"), strict=True)
            ]
            shares = [a / w for a, w in zip(allowed, seconds["whole"], strict=True)]
            row = {
                "game": game,
                "algorithm": algorithm,
                "environments": num_envs,
                "rollout_length": length,
                "steps_per_second": {
                    name: round(steps / statistics.median(times), 1)
                    for name, times in (seconds | {"allowed": allowed}).items()
                },
                "share_of_allowed": {
                    "median": statistics.median(shares),
                    "low": min(shares),
                    "high": max(shares),
                },
            }
            out.append(row)
            show(row)
    return out


def show(row: dict[str, Any]) -> None:
    rates, share = row["steps_per_second"], row["share_of_allowed"]
    size = f"{row['environments']:>4} x {row['rollout_length']:<4}"
    print(
        f"{row['game']:<10}{row['algorithm']:<8}{size}"
        + "".join(f"{name} {rate:>9,.0f}   " for name, rate in rates.items())
        + f"share {share['median']:.2f} ({share['low']:.2f}-{share['high']:.2f})",
        flush=True,
    )


def main() -> None:
    given = harness.arguments("Training throughput against that of its parts.")
    command = "python -m benchmarks.training_throughput"
    harness.write(given.json, command, rows(given.quick))


if __name__ == "__main__":
    keep_pages()
    main()
