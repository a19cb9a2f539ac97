"""What natural gradients cost, in plain gradients of the same batch, and what they gain.

    python -m benchmarks.natural [--json FILE] [--quick | --full]

Cost: networks, batches and sizes; the plain gradient is that of the mean of log π(a)Δ. `gram` and
`cg` are whole steps, `K alone` the Gram matrix, `K from the Jacobian` the same without structure.

Damping: how far either solver gets, and in which time, as the damping falls.

Descent: damped soft Q-learning's step (76) against SGD and Adam of the best of five step sizes, on
the squared error of one batch with fixed targets: what is left of it after the same time.
"""

import functools
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import jaxsoft
from benchmarks import harness
from benchmarks.harness import compiled
from jaxsoft.agents import networks
from jaxsoft.natural._gram import jacobian_gram, structured_gram
from jaxsoft.training.launch import keep_pages

ACTIONS = 6
Row = dict[str, Any]
Call = Callable[[], Any]


class Case:
    """A network, its parameters, and a batch."""

    def __init__(self, name: str, batch: int, width: int = 256) -> None:
        rng = np.random.default_rng(0)
        if name == "Nature CNN":
            torso: Any = networks.NatureCNN()
            inputs = jnp.asarray(rng.integers(0, 256, size=(batch, 4, 84, 84)), jnp.uint8)
        else:
            torso = networks.MLP((width, width))
            inputs = jnp.asarray(rng.normal(size=(batch, 64)), jnp.float32)
        self.name, self.batch = name, batch
        ndim = inputs.ndim - 1
        self.policy = networks.ActorCritic(torso, ACTIONS, ndim)
        self.values = networks.QNetwork(torso, ACTIONS, ndim)
        self.inputs = inputs
        self.actions = jnp.asarray(rng.integers(0, ACTIONS, size=batch))
        self.signal = jnp.asarray(rng.normal(size=batch), jnp.float32)
        self.params = self.policy.init(jax.random.key(0), inputs[:1])
        self.size = sum(x.size for x in jax.tree.leaves(self.params))

    def row(self, part: str) -> Row:
        return {"part": part, "network": self.name, "parameters": self.size, "batch": self.batch}

    def log_prob(self, params: Any) -> Array:
        said: Any = self.policy.apply(params, self.inputs)
        return jaxsoft.take_action(said[1], self.actions)

    def action_value(self, params: Any) -> Array:
        said: Any = self.values.apply(params, self.inputs)
        return jaxsoft.take_action(said, self.actions)

    def step(self, params: Any, solver: str, damping: float, iterations: int) -> Any:
        return jaxsoft.natural_gradient(
            self.log_prob,
            params,
            self.signal,
            damping=damping,
            solver=solver,
            max_iterations=iterations,
        )


def cost(cases: Iterable[tuple[Case, int, bool]], repetitions: int) -> list[Row]:
    rows = []
    for case, iterations, dense in cases:

        def loss(p: Any, case: Case = case) -> Array:
            return jnp.mean(case.log_prob(p) * case.signal)

        def linear(p: Any, case: Case = case) -> Any:
            return jax.linearize(case.log_prob, p)[1]

        def step(p: Any, solver: str, case: Case = case, iterations: int = iterations) -> Any:
            return case.step(p, solver, 1e-2, iterations)

        sides: dict[str, Callable[[Any], Any]] = {
            "plain gradient": jax.value_and_grad(loss),
            "K alone": lambda p, linear=linear: structured_gram(linear(p), p),  # type: ignore[misc]
            "gram": functools.partial(step, solver="gram"),
            f"cg, {iterations} iterations": functools.partial(step, solver="cg"),
        }
        if dense:
            sides["K from the Jacobian"] = lambda p, linear=linear: jacobian_gram(linear(p), p)  # type: ignore[misc]
        calls = {name: functools.partial(compiled(f), case.params) for name, f in sides.items()}
        reports = {s: call()[1] for s, call in calls.items() if s.startswith(("gram", "cg"))}
        seconds = harness.measure(calls, repetitions=repetitions)
        print(f"\n{case.name}, {case.size:,} parameters, batch {case.batch}")
        for side in seconds:
            row = case.row("cost") | {"side": side} | timed(seconds, side)
            if side in reports:
                row["residual"] = float(reports[side].residual)
            rows.append(row)
            show(side, row)
    return rows


def timed(seconds: dict[str, list[float]], side: str) -> Row:
    relative = harness.ratio(seconds, side, "plain gradient")
    return harness.summary(seconds[side]) | {
        f"plain_gradients_{key}": value for key, value in relative.items()
    }


def show(side: str, row: Row) -> None:
    note = f"   residual {row['residual']:.1e}" if "residual" in row else ""
    print(
        f"  {side:<24}{row['median_us'] / 1e3:10.1f} ms   {row['plain_gradients_median']:7.2f} "
        f"({row['plain_gradients_low']:.2f} - {row['plain_gradients_high']:.2f}) plain gradients"
        + note,
        flush=True,
    )


def damping(cases: Iterable[Case], repetitions: int) -> list[Row]:
    rows = []
    for case in cases:

        def loss(p: Any, case: Case = case) -> Array:
            return jnp.mean(case.log_prob(p) * case.signal)

        calls: dict[str, Call] = {
            "plain gradient": functools.partial(compiled(jax.value_and_grad(loss)), case.params)
        }
        for value in (1.0, 1e-2, 1e-4):
            for solver in ("gram", "cg"):
                step = functools.partial(case.step, solver=solver, damping=value, iterations=100)
                calls[f"{solver}, damping {value:g}"] = functools.partial(
                    compiled(step), case.params
                )
        reports = {side: f()[1] for side, f in calls.items() if side != "plain gradient"}
        seconds = harness.measure(calls, repetitions=repetitions)
        print(f"\n{case.name}, batch {case.batch}: at most 100 iterations")
        for side, report in reports.items():
            row = case.row("damping") | {"side": side} | timed(seconds, side)
            row |= {"residual": float(report.residual), "iterations": int(report.iterations)}
            rows.append(row)
            show(f"{side}, {row['iterations']} it.", row)
    return rows


def descent(cases: Iterable[Case], steps: int, repetitions: int) -> list[Row]:
    rows: list[Row] = []
    for case in cases:
        start = case.values.init(jax.random.key(0), case.inputs[:1])
        target = case.signal

        def loss(p: Any, case: Case = case, target: Array = target) -> Array:
            return jnp.mean(jnp.square(case.action_value(p) - target)) / 2

        def damped(p: Any, state: Any, case: Case = case, target: Array = target) -> Any:
            error = target - case.action_value(p)
            step, _ = jaxsoft.natural_gradient(
                case.action_value, p, error, damping=1e-2, solver="gram"
            )
            return jax.tree.map(jnp.add, p, step), state

        def first_order(
            optimiser: optax.GradientTransformation, p: Any, state: Any, loss: Any = loss
        ) -> Any:
            updates, state = optimiser.update(jax.grad(loss)(p), state, p)
            return optax.apply_updates(p, updates), state

        methods: dict[str, tuple[Any, Any]] = {"damped Q": (compiled(damped), None)}
        for name, make, sizes in (
            ("SGD", optax.sgd, (0.01, 0.03, 0.1, 0.3, 1.0)),
            ("Adam", optax.adam, (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
        ):
            for size in sizes:
                optimiser = make(size)
                f = compiled(functools.partial(first_order, optimiser))
                methods[f"{name}, {size:g}"] = (f, optimiser.init(start))
        timing = {
            name: functools.partial(methods[name][0], start, methods[name][1])
            for name in ("damped Q", "SGD, 0.1", "Adam, 0.001")
        }
        seconds = harness.measure(timing, repetitions=repetitions)
        each = {name.split(",")[0]: statistics.median(x) for name, x in seconds.items()}
        evaluate = compiled(loss)
        before = float(evaluate(start))
        best: dict[str, Row] = {}
        for name, (f, state) in methods.items():
            kind = name.split(",")[0]
            count = max(round(steps * each["damped Q"] / each[kind]), 1)
            now = start, state
            for _ in range(count):
                now = f(*now)
            left = float(evaluate(now[0])) / before
            row = case.row("descent") | {
                "side": name,
                "median_us": 1e6 * each[kind],
                "steps": count,
                "loss_left": left,
            }
            if np.isfinite(left) and (kind not in best or left < best[kind]["loss_left"]):
                best[kind] = row
        print(f"\n{case.name}, batch {case.batch}: the time of {steps} damped steps")
        for row in best.values():
            print(
                f"  {row['side']:<16}{row['median_us'] / 1e3:8.1f} ms a step   "
                f"{row['steps']:5} steps   {row['loss_left']:.1e} of the loss left",
                flush=True,
            )
        rows += best.values()
    return rows


def main() -> None:
    given = harness.arguments("Cost and gain of natural gradient steps.")
    if given.quick:
        case = Case("MLP", 80, 64)
        rows = cost([(case, 10, True)], 3) + damping([case], 3) + descent([case], 5, 3)
    else:
        cases = [(Case("MLP", 80), 10, True), (Case("MLP", 512), 10, True)]
        more = [Case("MLP", 16), Case("MLP", 80, 64), Case("MLP", 80, 1024)] if given.full else []
        cases += [(case, 10, case.size < 10**6) for case in more]
        images = (16, 80, 256) if given.full else (80,)
        cases += [(Case("Nature CNN", batch), 10, False) for batch in images]
        rows = cost(cases, 5)
        few = [Case("MLP", 80), Case("Nature CNN", 80)]
        rows += damping(few if given.full else few[:1], 3)
        rows += descent([*few, Case("MLP", 512)] if given.full else few[:1], 10, 5)
    harness.write(given, "natural", rows)


if __name__ == "__main__":
    keep_pages()
    main()
