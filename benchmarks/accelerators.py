"""What XLA makes of the library for an NVIDIA H100 and a TPU v5e, on a machine that has neither.

    python -m benchmarks.accelerators [--json FOLDER] [--quick] [--platform gpu|tpu] [--only PART …]

Everything is compiled from shapes, and nothing runs: there are kernels, bytes, temporaries and
seconds to compile, and no time. `make accelerators` installs what it needs, 1.7 GB.

`must`: what a network said is read once, its gradient written once, the rollout read once. Seconds
to compile are medians of up to three on this machine, to be compared with each other. Autotuning
is off, which needs a device: library calls are not the best ones. Each platform has a process of
its own. With --only or --algorithms, what else a results' file has stays in it.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxsoft
from benchmarks import hlo, losses, recurrence
from jaxsoft.agents import networks
from jaxsoft.agents.base import Rollout
from jaxsoft.agents.registry import ALGORITHMS, Problem, settings_of
from jaxsoft.cli import assembly
from jaxsoft.cli.config import complete
from jaxsoft.environments import Space
from jaxsoft.training import loop as loops
from jaxsoft.training.provenance import machine

Row = dict[str, Any]
Shapes = Any
"""A tree of `jax.ShapeDtypeStruct`."""
Program = tuple[Row, Callable[..., Any], tuple[Shapes, ...], int]
"""(what names it, a function, shapes of its arguments, bytes that it must move or 0)."""

PARTS = ("losses", "recurrence", "agents", "natural", "training")
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_LOG_DIR": "disabled",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "XLA_FLAGS": "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false",
}
_H100 = """
gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536 }
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
A = 6  # of Pong
QUICKLY = ("a2c", "soft_q")
_LONG = 10.0  # seconds, after which nothing is compiled again


def devices(platform: str) -> Sequence[Any]:
    """One that is not there."""
    if platform == "tpu":
        return topologies.get_topology_desc("v5e:2x2", "tpu").devices[:1]
    jax.devices()  # finds the plugins
    return topologies.get_topology_desc("", "cuda", topology="1x1x1", target_config=_H100).devices


def shape(dtype: Any, *sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def size(tree: Shapes) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def with_key_data(f: Callable[..., Any], *like: Shapes) -> tuple[Callable[..., Any], Shapes]:
    """`f` with the bits of keys for keys, which cannot be sharded; and the shapes of such."""

    def is_key(x: Any) -> bool:
        return bool(jnp.issubdtype(x.dtype, jax.dtypes.prng_key))

    def bits(x: Any) -> Any:
        return jax.eval_shape(jax.random.key_data, x) if is_key(x) else shape(x.dtype, *x.shape)

    def wrapped(*args: Any) -> Any:
        keys = jax.tree.map(
            lambda x, y: jax.random.wrap_key_data(x) if is_key(y) else x, args, like
        )
        return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, f(*keys))

    return wrapped, jax.tree.map(bits, like)


def compiled(f: Callable[..., Any], arguments: Shapes, on: Sequence[Any], times: int) -> Any:
    """(the executable, seconds from tracing to the end, one figure each time)."""
    sharding = NamedSharding(Mesh(np.array(on), ("data",)), PartitionSpec())
    seconds, executable = list[float](), None
    while len(seconds) < times and sum(seconds) < _LONG:
        jax.clear_caches()
        start = time.perf_counter()
        executable = jax.jit(f, in_shardings=sharding).lower(*arguments).compile()
        seconds.append(time.perf_counter() - start)
    return executable, seconds


def measured(program: Program, on: Sequence[Any], times: int = 3) -> Row:
    """What was compiled, or the error."""
    name, f, arguments, must = program
    f, arguments = with_key_data(f, *arguments)
    try:
        executable, seconds = compiled(f, arguments, on, times)
    except Exception as error:
        return name | {"error": f"{type(error).__name__}: {error}"[:300]}
    work = hlo.work(executable.as_text())
    row = name | {
        "kernels": work.kernels,
        "launches": work.launches,
        "moved_bytes": work.moved,
        "temporary_bytes": executable.memory_analysis().temp_size_in_bytes,
        "compile_seconds": statistics.median(seconds),
    }
    if on[0].platform == "tpu":
        # What XLA itself counts has the memory beside the cores in it.
        row |= {
            "far_bytes": work.far,
            "counted_bytes": executable.cost_analysis()["bytes accessed"],
        }
    else:
        row["whole_bytes"] = work.whole
    if must:
        row["must_bytes"] = must
        row["ratio"] = row.get("far_bytes", work.moved) / must
    return row


# ---- What is compiled ----------------------------------------------------------------------------


def of_losses(quick: bool) -> Iterator[Program]:
    sizes = [(1024, 4096, 4), (128, 4096, 18), (32, 64, 4), (5, 16, 4)]
    for length, batch, actions in sizes[1:2] if quick else sizes:
        f32, states = jnp.float32, (length + 1, batch)
        said = {
            "q": shape(f32, *states, actions),
            "logits": shape(f32, *states, actions),
            "v": shape(f32, *states),
        }
        rollout = {
            "r": shape(f32, length, batch),
            "discount": shape(f32, length, batch),
            "a": shape(jnp.int32, length, batch),
        }
        for loss, (wanted, sides) in losses.LOSSES.items():
            net = {name: said[name] for name in wanted}
            for side, form in sides.items():
                name = {"part": "losses", "loss": loss, "T": length, "B": batch, "A": actions}
                must = 2 * size(net) + size(rollout)
                yield name | {"side": side}, jax.value_and_grad(form), (net, rollout), must


def of_recurrence(quick: bool) -> Iterator[Program]:
    for length in (128,) if quick else (5, 32, 128, 1024):
        for batch in (4096,) if quick else (64, 4096):
            x = shape(jnp.float32, length, batch)
            cases: dict[Any, Any] = {"all": recurrence.whole(length)}
            cases |= {n: recurrence.windowed(n) for n in (5, 20, 128) if n < length}
            for window, forms in cases.items():
                for side, form in forms.items():
                    # Unrolled over time, these take minutes.
                    if side == "unrolled" and length > 32:
                        continue
                    name = {"part": "recurrence", "T": length, "B": batch, "n": window}
                    yield name | {"side": side}, form, (x, x), 3 * size(x)


def an_agent(algorithm: str, environments: int, length: int, dtype: Any) -> dict[str, Program]:
    """`act`, `update`, and the gradient of the network alone, on images."""
    entry, one = ALGORITHMS[algorithm], shape(np.uint8, 4, 84, 84)
    given: dict[str, Any] = {"num_envs": environments, "rollout_length": length}
    if entry.replays:
        given |= {"capacity": 20_000, "learning_starts": 10_000}
    torso = networks.torso_for(one.shape, one.dtype, dtype=dtype)
    numbers = Space((A,), np.dtype(np.float32), low=-1.0, high=1.0)
    space = numbers if entry.actions == "numbers" else Space.discrete(A)
    problem = Problem(one, space, torso, 4, 1_000_000)
    agent = entry.agent(settings_of(algorithm, given, images=True), problem)
    key = jax.eval_shape(lambda: jax.random.key(0))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), environments))
    state = jax.eval_shape(agent.init, key)
    seen = shape(np.uint8, environments, *one.shape)
    action, _, extras = jax.eval_shape(agent.act, state, None, seen, keys)

    def over_time(tree: Shapes, times: int = length) -> Shapes:
        return jax.tree.map(lambda x: shape(x.dtype, times, *x.shape), tree)

    number: Any = shape(np.float32, length, environments)
    truth: Any = shape(np.bool_, length, environments)
    rollout = Rollout(
        observation=over_time(seen, length + 1),
        action=over_time(action),
        reward=number,
        discount=number,
        cut=truth,
        weight=number,
        first=over_time(shape(np.bool_, environments), length + 1),
        extras=over_time(extras),
    )
    network = entry.network(problem)
    batch = shape(np.uint8, length * environments, *one.shape)
    params = jax.eval_shape(network.init, key, batch)

    def total(params: Any, batch: Any) -> Any:
        return sum(jnp.sum(x) for x in jax.tree.leaves(network.apply(params, batch)))

    name = {
        "part": "agents",
        "algorithm": algorithm,
        "environments": environments,
        "rollout_length": length,
        "dtype": jnp.dtype(dtype).name,
    }
    return {
        "act": (name | {"what": "act"}, agent.act, (state, None, seen, keys), 0),
        "network": (name | {"what": "network"}, jax.grad(total), (params, batch), 0),
        "update": (name | {"what": "update"}, agent.update, (state, rollout, key), 0),
    }


def of_agents(algorithms: Sequence[str], quick: bool, on: Sequence[Any]) -> Iterator[Row]:
    for algorithm in algorithms:
        for environments, length in ((16, 5),) if quick else ((16, 5), (64, 32)):
            for dtype in (jnp.float32, jnp.bfloat16):
                programs = an_agent(algorithm, environments, length, dtype)
                rows = {what: measured(program, on) for what, program in programs.items()}
                if not any("error" in row for row in rows.values()):
                    seconds = {what: row["compile_seconds"] for what, row in rows.items()}
                    rows["update"]["to_network"] = seconds["update"] / seconds["network"]
                yield from (rows["act"], rows["update"])


def of_natural(quick: bool) -> Iterator[Program]:
    batch = shape(np.uint8, 80, 4, 84, 84)
    network = networks.ActorCritic(networks.NatureCNN(), A, 3)
    params = jax.eval_shape(network.init, jax.eval_shape(lambda: jax.random.key(0)), batch)
    actions, signal = shape(jnp.int32, 80), shape(jnp.float32, 80)

    def step(params: Any, batch: Any, actions: Any, signal: Any, solver: str) -> Any:
        def log_prob(p: Any) -> Any:
            said: Any = network.apply(p, batch)
            return jaxsoft.take_action(said[1], actions)

        return jaxsoft.natural_gradient(log_prob, params, signal, damping=1e-2, solver=solver)

    for solver in ("gram",) if quick else ("gram", "cg"):
        name = {"part": "natural", "network": "Nature CNN", "batch": 80, "side": solver}
        arguments = (params, batch, actions, signal)
        yield name, functools.partial(step, solver=solver), arguments, 0


def of_training(on: Sequence[Any]) -> Iterator[Program]:
    """Act, step, learn: one program, with EnvPool's own calls in it."""
    for algorithm in ("a2c", "soft_q"):
        name: Row = {"game": "Pong-v5", "algorithm": algorithm}
        size = {"num_envs": 64, "rollout_length": 32}
        config = complete(name | size | {"steps": 1_000_000})
        loop: Any = assembly.loop(config, driver="graph", device=on[0])
        state = jax.eval_shape(lambda loop=loop: loops.initial(loop.agent, (0,)))
        actors = jax.eval_shape(loop.start)
        name |= {"part": "training", "environments": 64, "rollout_length": 32}
        yield name, loop._updates, (state, actors, shape(jnp.int32)), 0


# ---- The table, and what it is held to -----------------------------------------------------------

# What names a row, in order.
NAMES = (
    *("platform", "part", "loss", "T", "B", "A", "n", "game", "network", "algorithm"),
    *("environments", "rollout_length", "batch", "dtype", "what", "side"),
)
# Figures that are the same each time, and how much more of one is worse.
EXACT, MORE = ("kernels", "launches", "moved_bytes", "temporary_bytes"), 1.1
# Below these a change is one of rounding or of a scalar kernel.
FLOOR = {"kernels": 2, "launches": 2, "moved_bytes": 1 << 16, "temporary_bytes": 1 << 20}
SLOWER = 1.5


def name_of(row: Row) -> str:
    return ", ".join(str(row[key]) for key in NAMES if key in row)


def compile_ratio(row: Row, rows: Sequence[Row]) -> float | None:
    """Seconds to compile, in those of what is compiled beside it in the same run."""
    if row.get("side") == "jaxsoft":
        same = [x for x in rows if name_of(x | {"side": "jaxsoft"}) == name_of(row)]
        hand = [x.get("compile_seconds") for x in same if x["side"] == "jax by hand"]
        return row["compile_seconds"] / hand[0] if hand and hand[0] else None
    return row.get("to_network")


def worse(fresh: Sequence[Row], committed: Sequence[Row]) -> list[str]:
    """What is worse than it was: missing, failing, more of anything, compiled more slowly."""
    now, found = {name_of(row): row for row in fresh}, []
    for before in committed:
        name = name_of(before)
        if "error" in before:
            continue
        row = now.get(name)
        if row is None:
            found.append(f"{name}: not there any more")
            continue
        if "error" in row:
            found.append(f"{name}: {row['error']}")
            continue
        found += [
            f"{name}: {key} {before[key]:,} -> {row[key]:,}"
            for key in EXACT
            if row[key] > MORE * before[key] and row[key] > before[key] + FLOOR[key]
        ]
        ratios = [compile_ratio(x, rows) for x, rows in ((before, committed), (row, fresh))]
        if None not in ratios and ratios[1] > SLOWER * ratios[0]:  # type: ignore[operator]
            found.append(
                f"{name}: compiles in {ratios[0]:.1f} -> {ratios[1]:.1f} of what is beside"
            )
    return found


def line(row: Row) -> str:
    head = f"{name_of(row):<66}"
    if "error" in row:
        return f"{head} {row['error'][:100]}"
    parts = [f"{row['kernels']:>4} kernels", f"{row['launches']:>6,} launches"]
    parts += [
        f"{row['ratio']:>7.2f} x must"
        if "ratio" in row
        else f"{row['moved_bytes'] / 1e6:>8,.1f} MB"
    ]
    parts += [f"{row['temporary_bytes'] / 1e6:>7,.1f} MB held", f"{row['compile_seconds']:>6.2f} s"]
    if "to_network" in row:
        parts.append(f"{row['to_network']:.1f} x its network")
    return f"{head} {'  '.join(parts)}"


def rows_of(
    platform: str, parts: Sequence[str], quick: bool, algorithms: Sequence[str] | None = None
) -> Iterator[Row]:
    on = devices(platform)
    for part in parts:
        match part:
            case "losses":
                programs = of_losses(quick)
            case "recurrence":
                programs = of_recurrence(quick)
            case "natural":
                programs = of_natural(quick)
            case "agents":
                yield from of_agents(algorithms or (QUICKLY if quick else [*ALGORITHMS]), quick, on)
                continue
            case _:
                # EnvPool has calls for CPUs and for CUDA.
                programs = of_training(on) if platform == "gpu" else iter(())
        for program in programs:
            yield measured(program, on)


def compile_all(given: argparse.Namespace) -> None:
    """In a process of its own for the platform."""
    rows: list[Row] = []
    path = given.json / f"accelerators_{given.platform}.json" if given.json else None
    some = set(given.only) < set(PARTS) or given.algorithms
    before = json.loads(path.read_text())["rows"] if some and path and path.exists() else []
    for row in rows_of(given.platform, given.only, given.quick, given.algorithms):
        rows.append({"platform": given.platform} | row)
        print(line(rows[-1]), flush=True)
        if path:
            # Each time, so that an end of any kind loses nothing.
            write(path, given, before, rows)
    if path:
        print(f"written to {path}")


def write(path: Path, given: argparse.Namespace, before: list[Row], rows: list[Row]) -> None:
    """The rows, and those of before that they do not replace."""
    again = {name_of(row) for row in rows}
    others = [row for row in before if name_of(row) not in again]
    what = {"gpu": "an NVIDIA H100", "tpu": "a TPU v5e"}[given.platform]
    content = {
        "command": "python -m benchmarks.accelerators" + " --quick" * given.quick,
        "machine": machine() | {"device": f"compiled for {what}"},
        "rows": sorted(others + rows, key=lambda row: PARTS.index(row["part"])),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(content, indent=1) + "\n")
    fresh.replace(path)


def check(folder: Path, results: Path) -> None:
    """Ends the process with what is worse than the committed results."""
    found = []
    for platform in ("gpu", "tpu"):
        paths = [x / f"accelerators_{platform}.json" for x in (folder, results)]
        if all(path.exists() for path in paths):
            found += worse(*(json.loads(path.read_text())["rows"] for path in paths))
    if found:
        raise SystemExit("worse than the committed results:\n" + "\n".join(found))
    print(f"nothing is worse than in {results}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="also write the results there")
    parser.add_argument("--quick", action="store_true", help="one size of everything")
    parser.add_argument("--platform", choices=("gpu", "tpu"), help="one of both alone")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="some parts")
    names = list(ALGORITHMS)
    parser.add_argument("--algorithms", nargs="+", choices=names, help="some of the agents")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="compare, and compile nothing")
    given = parser.parse_args()
    if given.check:
        check(given.check, Path(__file__).parent / "results")
    elif given.platform and os.environ.get("JAXSOFT_COMPILES_FOR") == given.platform:
        compile_all(given)
    else:
        for platform in [given.platform] if given.platform else ["gpu", "tpu"]:
            own = _ENVIRONMENT | {"JAXSOFT_COMPILES_FOR": platform}
            command = [sys.executable, "-m", "benchmarks.accelerators", *sys.argv[1:]]
            command += [] if given.platform else ["--platform", platform]
            done = subprocess.run(command, env=os.environ | own, check=False)
            if done.returncode:
                raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
