"""The command of a study: its runs, then one CSV, one table and one figure of all of them.

    python -m experiments.figure3 --preset quick --out runs/figure3

The same command resumes what was interrupted; started twice, the processes share the runs.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.engine import collected, plan, runs
from experiments.report import publish
from experiments.studies import STUDIES, Study
from jaxsoft.cli import train
from jaxsoft.cli.config import ConfigError
from jaxsoft.cli.options import stop_with

__all__ = ["add_flags", "main"]


def _parser(name: str, study: Study, prog: str) -> argparse.ArgumentParser:
    presets = "\n".join(
        f"  {key:<8}{preset.about}:\n          {len(preset.steps)} games, {preset.seeds} seeds, "
        f"{min(map(preset.length, preset.steps)):,} to "
        f"{max(map(preset.length, preset.steps)):,} steps"
        for key, preset in study.presets.items()
    )
    variants = "\n".join(f"  {key:<26}{x.label}" for key, x in study.variants.items())
    parser = argparse.ArgumentParser(
        prog=prog,
        description=f"{study.title}.\nTrains every variant, then writes curves.csv, runs.csv, "
        "table.md and figure.png. Can be interrupted\nat any time; the same command resumes it. "
        "Started twice it shares the work, best with one\ncore each: taskset -c 0 python -m …",
        epilog=f"presets:\n{presets}\n\nvariants:\n{variants}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--preset", required=True, choices=tuple(study.presets), help="how much to run, see below"
    )
    add_flags(parser, f"runs/{name}/PRESET")
    parser.add_argument(
        "--variants", nargs="+", default=[], metavar="NAME", choices=tuple(study.variants),
        help="only these",
    )  # fmt: skip
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--plan", action="store_true", help="print what would be run, and exit")
    what.add_argument(
        "--collect", action="store_true", help="run nothing: figure and table of what there is"
    )
    return parser


def add_flags(parser: argparse.ArgumentParser, out: str) -> None:
    """The flags that say which runs of a preset are meant, and where they are."""
    parser.add_argument("--out", type=Path, help=f"folder of the runs (default {out})")
    parser.add_argument(
        "--results", type=Path, help="folder of CSVs, tables and figures (default --out)"
    )
    parser.add_argument("--games", nargs="+", default=[], metavar="ID", help="only these")
    parser.add_argument("--seeds", nargs="+", default=[], type=int, metavar="N", help="only these")
    parser.add_argument("--steps", type=int, metavar="N", help="of every seed, instead")


def main(name: str, words: Sequence[str] | None = None, *, prog: str = "") -> int:
    """The command of a study."""
    study = STUDIES[name]
    given = _parser(name, study, prog or f"python -m experiments.{name}").parse_args(words)
    preset = study.presets[given.preset]
    out = given.out or Path("runs") / name / given.preset
    results = given.results or out
    some = {"games": given.games, "seeds": given.seeds, "steps": given.steps}
    try:
        unknown = sorted(set(given.games) - set(preset.steps)) if given.steps is None else []
        if unknown:
            raise ConfigError(
                f"--games {' '.join(unknown)}: --preset {given.preset} has "
                f"{', '.join(preset.steps)}. Give one of these, or --steps as well."
            )
        todo = runs.cells(study, preset, out, variants=given.variants, **some)
        for cell in todo:
            _ = cell.config  # is refused now, not after hours
        if not given.collect:
            console = Console()
            console.width = max(console.width, 110)
            console.print(plan.plan(todo, collected.measured()))
        if given.plan:
            return 0
        began = time.monotonic()
        status = 0 if given.collect else runs.carry_out(todo)
        found = collected.collect(runs.cells(study, preset, out, **some))
        if found is None:
            raise ConfigError(f"--out {out} has no run that has begun, and no figure is drawn.")
        if results != out and (results / "runs.csv").exists():
            found = collected.together(found, collected.read(results))
        collected.write(results, found)
        publish.write(name, given.preset, results)
        print()
        print((results / "table.md").read_text())
        print(f"{results / 'figure.png'}: {time.monotonic() - began:.0f} s")
    except (ConfigError, train.RunError, OSError, ValueError) as error:
        return stop_with(error)
    if status:
        print(f"Resume with the same command: {shlex.join(['python', *sys.orig_argv[1:]])}")
    return status
