"""What the compiled programs hold at their peak, against the bytes that they must.

    python -m benchmarks.memory [--json FILE] [--quick | --full]

Peak: arguments, results and temporaries of a program, as its compiler gives them, less what it
updates in place. Must: for a rollout its frames, each once, and what else it records; for an update
the parameters, the optimiser's state and a gradient as well; for a replay a frame for each
transition; for a natural gradient the parameters twice, the batch and, with "gram", the matrix.
Activations are not counted as a must: they could be computed again. The peak of the whole process
is given at the end.
"""

import resource
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, natural
from benchmarks.training import Size, config
from jaxsoft.cli import assembly
from jaxsoft.cli.config import Config
from jaxsoft.training.graph import GraphLoop
from jaxsoft.training.launch import keep_pages
from jaxsoft.training.loop import initial

Row = dict[str, Any]
FRAME = 84 * 84


def held(compiled: Any) -> int:
    """Bytes at the peak of a program."""
    sizes = compiled.memory_analysis()
    arguments, results = sizes.argument_size_in_bytes, sizes.output_size_in_bytes
    return int(arguments + results + sizes.temp_size_in_bytes - sizes.alias_size_in_bytes)


def nbytes(tree: Any) -> int:
    """Bytes of arrays, or of the shapes of some."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.number)]
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in leaves)


def row(what: str, must: int, peak: int) -> Row:
    print(f"{what:<44}{must / 1e6:>10,.1f} MB must   {peak / 1e6:>10,.1f} MB peak", flush=True)
    return {"what": what, "must_bytes": must, "peak_bytes": peak, "ratio": peak / must}


def graph_loop(config: Config) -> GraphLoop:
    loop = assembly.loop(config, driver="graph")
    assert isinstance(loop, GraphLoop)
    return loop


def training(size: Size) -> list[Row]:
    loop = graph_loop(config(size))
    state, actors = jax.eval_shape(lambda: initial(loop.agent, (0,))), loop.start()
    name = f"{size.algorithm}, {size.num_envs} x {size.length}"
    # A frame for each step, and those below the first in its stack; action, reward and ends.
    rollout = size.num_envs * ((size.length + 4) * FRAME + size.length * 16)
    collect = loop._collected.lower(state, actors).compile()
    update = loop._run.lower(state, actors, 1).compile()
    learning = nbytes(state.agent) + nbytes(state.agent.params)
    return [
        row(f"{name}: a rollout", rollout, held(collect) - nbytes(state.agent)),
        row(f"{name}: an update", rollout + learning, held(update)),
    ]


def replay(transitions: int) -> list[Row]:
    size = Size("Pong-v5", "dqn", 8, 4, 1)
    loop = graph_loop(config(size, capacity=transitions))
    state = jax.eval_shape(lambda: initial(loop.agent, (0,)))
    must = transitions * FRAME
    update = loop._run.lower(state, loop.start(), 1).compile()
    return [
        row(f"replay of {transitions:,}: at rest", must, nbytes(state.agent.replay)),
        row(f"replay of {transitions:,}: in an update", must, held(update)),
    ]


def a_natural_gradient(batch: int, solver: str) -> Row:
    case = natural.Case("Nature CNN", batch)

    def plain(params: Any) -> Any:
        return jax.grad(lambda p: case.log_prob(p).mean())(params)

    def step(params: Any) -> Any:
        return case.step(params, solver, 1e-2, 100)

    must = 2 * nbytes(case.params) + case.inputs.nbytes
    must += 4 * batch**2 if solver == "gram" else 0
    program = jax.jit(plain if solver == "plain gradient" else step)
    # The batch is a constant of the program, which its arguments do not count.
    peak = held(program.lower(case.params).compile()) + case.inputs.nbytes
    return row(f"Nature CNN, batch {batch}: {solver}", must, peak)


def main() -> None:
    given = harness.arguments("Peak memory of the compiled programs.")
    rows = training(Size("Pong-v5", "a2c", 16, 5, 1))
    if not given.quick:
        rows += training(Size("Pong-v5", "a2c", 64, 32, 1))
        rows += training(Size("Pong-v5", "a2c", 256, 32, 1))
    rows += replay(10_000 if given.quick else 1_000_000)
    for batch in (80,) if given.quick else (80, 256):
        rows += [a_natural_gradient(batch, solver) for solver in ("plain gradient", "gram", "cg")]
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows.append({"what": "host process, compilation included", "peak_bytes": peak})
    print(f"host process, compilation included: {peak / 1e6:,.0f} MB")
    on_device = jax.devices()[0].memory_stats()
    if on_device:
        rows.append({"what": "device", "peak_bytes": on_device["peak_bytes_in_use"]})
    harness.write(given, "memory", rows)


if __name__ == "__main__":
    keep_pages()
    main()
