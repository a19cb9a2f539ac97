"""Side-by-side timing: compiled outside the clock, interleaved, repeated; medians and spreads."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxsoft.training.launch import compiler_options
from jaxsoft.training.provenance import machine

Call = Callable[[], Any]


def arguments(description: str) -> argparse.Namespace:
    """The flags that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="few sizes, few repetitions")
    size.add_argument("--full", action="store_true", help="all sizes, as long as that takes")
    return parser.parse_args()


def measure(
    sides: Mapping[str, Call], *, repetitions: int, at_least: float = 0.02
) -> dict[str, list[float]]:
    """Seconds per call of each side: one figure a round, the sides taking turns."""
    loops = {}
    for name, call in sides.items():
        jax.block_until_ready(call())
        start = time.perf_counter()
        jax.block_until_ready(call())
        loops[name] = max(1, int(at_least / max(time.perf_counter() - start, 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repetitions):
        for name, call in sides.items():
            start = time.perf_counter()
            for _ in range(loops[name]):
                result = call()
            jax.block_until_ready(result)
            seconds[name].append((time.perf_counter() - start) / loops[name])
    return seconds


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles, in microseconds."""
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"median_us": 1e6 * median, "low_us": 1e6 * low, "high_us": 1e6 * high}


def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    """As the library's own loops are."""
    return jax.jit(f, compiler_options=compiler_options())


def ratio(seconds: Mapping[str, list[float]], name: str, to: str) -> dict[str, float]:
    """Quotient of two sides, round by round: the noise that both sides saw cancels."""
    rounds = [a / b for a, b in zip(seconds[name], seconds[to], strict=True)]
    low, median, high = statistics.quantiles(rounds, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def write(given: argparse.Namespace, module: str, rows: list[dict[str, Any]]) -> None:
    """The results with the command and the machine, where `--json` says."""
    path: Path | None = given.json
    if path is not None:
        flags = [flag for flag in ("quick", "full") if getattr(given, flag)]
        command = " ".join([f"python -m benchmarks.{module}", *(f"--{flag}" for flag in flags)])
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"command": command, "machine": machine(), "rows": rows}
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(f"written to {path}")
