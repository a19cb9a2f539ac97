"""What a natural gradient costs, in plain gradients of the same batch.

    python -m benchmarks.natural_gradient [--json FILE] [--quick]

Networks: the Nature CNN (1.7 M parameters) on 84×84×4 frames, and an MLP. The plain gradient is
that of the mean of log π(a)Δ.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import jaxsoft
from benchmarks import harness
from jaxsoft._gram import jacobian_gram, structured_gram

ACTIONS = 6


class NatureCNN(nn.Module):
    @nn.compact
    def __call__(self, frames: Array) -> Array:
        x = frames.astype(jnp.float32) / 255
        for features, kernel, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            x = nn.relu(nn.Conv(features, (kernel, kernel), stride, padding="VALID")(x))
        x = nn.relu(nn.Dense(512)(x.reshape(len(x), -1)))
        return jax.nn.log_softmax(nn.Dense(ACTIONS)(x))


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        for width in (256, 256):
            x = jnp.tanh(nn.Dense(width)(x))
        return jax.nn.log_softmax(nn.Dense(ACTIONS)(x))


def frames(size: int) -> Array:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, 256, size=(size, 84, 84, 4)), jnp.uint8)


def features(size: int) -> Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(size, 64)), jnp.float32)


def sides(network: nn.Module, inputs: Array, *, iterations: int, dense: bool) -> dict[str, Any]:
    size = len(inputs)
    rng = np.random.default_rng(1)
    actions = jnp.asarray(rng.integers(0, ACTIONS, size=size))
    advantage = jnp.asarray(rng.normal(size=size), jnp.float32)
    params = network.init(jax.random.key(0), inputs)

    def log_prob_fn(p: Any) -> Array:
        return jaxsoft.take_action(network.apply(p, inputs), actions)

    def loss(p: Any) -> Array:
        return jnp.mean(log_prob_fn(p) * advantage)

    def step(p: Any, solver: str) -> Any:
        return jaxsoft.natural_gradient(
            log_prob_fn, p, advantage, damping=1e-2, solver=solver, max_iterations=iterations or 1
        )

    def linear(p: Any) -> Any:
        return jax.linearize(log_prob_fn, p)[1]

    calls = {
        "plain gradient": jax.value_and_grad(loss),
        "K alone": lambda p: structured_gram(linear(p), p),
        "gram": functools.partial(step, solver="gram"),
    }
    if iterations:
        calls[f"cg, {iterations} iterations"] = functools.partial(step, solver="cg")
    if dense:
        calls["K from the Jacobian"] = lambda p: jacobian_gram(linear(p), p)
    return {name: functools.partial(jax.jit(f), params) for name, f in calls.items()}


def main() -> None:
    args = harness.arguments("Cost of natural gradient steps.")
    cases = [
        ("MLP", MLP(), features(80), 10, True),
        ("MLP", MLP(), features(512), 10, True),
        ("Nature CNN", NatureCNN(), frames(80), 10, False),
        ("Nature CNN", NatureCNN(), frames(256), 0, False),
    ]
    rows = []
    for name, network, inputs, iterations, dense in cases[: 1 if args.quick else None]:
        calls = sides(network, inputs, iterations=iterations, dense=dense)
        reports = {s: call()[1] for s, call in calls.items() if s.startswith(("gram", "cg"))}
        seconds = harness.measure(calls, repetitions=5)
        print(f"\n{name}, batch {len(inputs)}")
        for side, each in seconds.items():
            figures, relative = (
                harness.summary(each),
                harness.ratio(seconds, side, "plain gradient"),
            )
            row = {"network": name, "batch": len(inputs), "side": side} | figures
            row |= {f"plain_gradients_{key}": value for key, value in relative.items()}
            note = ""
            if side in reports:
                row["residual"] = float(reports[side].residual)
                row["iterations"] = int(reports[side].iterations)
                note = f"   residual {row['residual']:.1e}, {row['iterations']} iterations"
            rows.append(row)
            print(
                f"  {side:<24}{figures['median_us'] / 1e3:10.1f} ms   {relative['median']:6.2f} "
                f"({relative['low']:.2f} – {relative['high']:.2f}) plain gradients{note}"
            )
    harness.write(args.json, "python -m benchmarks.natural_gradient", rows)


if __name__ == "__main__":
    main()
