"""Soft Q-learning's and policy gradient's gradients along runs.

python -m experiments.gradients --preset quick
python -m experiments.gradients --runs runs/figure3/cpu/Pong-v5/soft_q/0 --results DIR
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments.command import add_flags
from experiments.engine import collected, gradients, runs
from experiments.report import publish
from experiments.studies import GRADIENTS
from jaxsoft.cli import train
from jaxsoft.cli.config import ConfigError
from jaxsoft.cli.options import stop_with
from jaxsoft.training.launch import keep_pages


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.gradients",
        description="Compares the gradients of soft Q-learning and policy gradient at the "
        "checkpoints of runs, on new games. Writes gradients.csv, conditions.csv, table.md and "
        "figures. Can be interrupted at any time; the same command resumes it.",
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--preset", choices=tuple(GRADIENTS.presets), help="train on small games at five τ first"
    )
    what.add_argument(
        "--runs", nargs="+", type=Path, metavar="DIR", help="folders of runs of soft_q or a2c"
    )
    add_flags(parser, "runs/gradients/PRESET")
    parser.add_argument(
        "--units", type=int, default=1024, help="environments to play in (default: %(default)s)"
    )
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    parser = _parser()
    given = parser.parse_args(words)
    out = given.out or Path("runs") / "gradients" / (given.preset or "runs")
    results = given.results or out
    if given.units < 4 or given.units & (given.units - 1):
        parser.error(f"--units {given.units}: give a power of two, 4 or more, to halve batches by")
    if given.runs and (given.games or given.seeds or given.steps or given.out):
        parser.error("--games, --seeds, --steps and --out go with --preset: leave them out")
    began = time.monotonic()
    try:
        folders = given.runs
        if given.preset:
            some = {"games": given.games, "seeds": given.seeds, "steps": given.steps}
            todo = [
                dataclasses.replace(
                    cell,
                    words=(*cell.words, "--checkpoint-steps", str(cell.steps // gradients.SHARES)),
                )
                for cell in runs.cells(GRADIENTS, GRADIENTS.presets[given.preset], out, **some)
            ]
            if status := runs.carry_out(todo):
                return status
            if others := [str(cell.out) for cell in todo if not cell.finished]:
                raise ConfigError(
                    f"Another process is still running {', '.join(others)}. Run the same command "
                    "again when it has finished."
                )
            folders = [cell.out for cell in todo]
        found: list[dict[str, list[dict[str, object]]]] = []
        for folder in folders:
            print(folder, flush=True)
            found.append(gradients.measured(folder, gradients.Size(units=given.units)))
        for name in ("gradients", "conditions"):
            rows = pd.DataFrame([row for own in found for row in own[name]])
            collected.write_csv(results / f"{name}.csv", rows)
        about = pd.DataFrame(map(collected.about_run, folders))
        collected.write_csv(results / "runs.csv", about)
        publish.write("gradients", results.name, results)
    except (ConfigError, train.RunError, OSError, ValueError) as error:
        return stop_with(error)
    print((results / "table.md").read_text())
    print(f"{results}: {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    keep_pages()
    sys.exit(main())
