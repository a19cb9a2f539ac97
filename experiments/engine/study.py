"""Carries out a study: its runs, then one CSV, one table and one figure of all of them.

    python -m experiments.figure3 --preset quick --out runs/figure3

Every run is one of `experiments.train`, in a folder of its own, and is gone on with where it was.
The same command, started twice, shares the work: a run that another process is at is left to it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import functools
import itertools
import json
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.analysis.curves import BINS
from experiments.engine import collected
from experiments.engine.collected import Collected
from experiments.report import tables as report
from experiments.studies import STUDIES, Preset, Study
from jaxsoft.agents.registry import ALGORITHMS
from jaxsoft.cli import train
from jaxsoft.cli.config import Config, ConfigError, look_up
from jaxsoft.cli.options import parse, stop_with
from jaxsoft.training.logs import writing

__all__ = ["Cell", "carry_out", "cells", "collect", "cost", "main"]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of `experiments.train`: a variant on a game, for some seeds, as far as `steps`."""

    game: str
    variant: str
    seeds: tuple[int, ...]
    steps: int
    words: tuple[str, ...]
    out: Path

    @functools.cached_property
    def config(self) -> Config:
        """The settings, completed."""
        return parse([*self.words, "--out", str(self.out)])[0]

    @property
    def done(self) -> int:
        """Steps that the run's checkpoints have."""
        try:
            sessions = json.loads((self.out / "run.json").read_text())["sessions"]
        except FileNotFoundError:
            return 0
        return max(int(session["to_step"]) for session in sessions)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do; a run by other settings is refused."""
        if not self.done:
            return False
        config = parse([*self.words, "--out", str(self.out), "--resume"])[0]
        per_update = config.settings.num_envs * config.settings.rollout_length
        return self.done >= self.steps // per_update * per_update


def cells(
    study: Study,
    preset: Preset,
    out: Path,
    *,
    games: Iterable[str] = (),
    variants: Iterable[str] = (),
    seeds: Iterable[int] = (),
    steps: int | None = None,
) -> list[Cell]:
    """The runs of a preset, or some of them, in the order in which they tell most."""
    games = tuple(games) or tuple(preset.steps)
    variants = tuple(variants) or tuple(study.variants)
    seeds = tuple(seeds) or tuple(range(preset.seeds))
    groups = [seeds] if preset.together else [(seed,) for seed in seeds]
    found = []
    for group, game, name in itertools.product(groups, games, variants):
        whole = preset.steps[game] if steps is None else steps
        length = preset.length(game) if steps is None else steps
        words = ["--game", game, "--steps", str(whole), *shlex.split(preset.words)]
        variant = study.variants[name]
        words += shlex.split(f"{variant.words} {variant.by_game.get(game, '')}")
        words += ["--seeds", *map(str, group), "--report-every", str(max(1, length // BINS))]
        if length < whole:
            words += ["--until", str(length)]
        place = out / game / name
        place = place if preset.together else place / str(group[0])
        found.append(Cell(game, name, group, length, tuple(words), place))
    return found


class Cost(NamedTuple):
    """What is left of runs; NaN where nothing like it was measured.

    Attributes:
      rate: steps a second of all seeds.
      hours: of what is not done.
      disk: MB.
    """

    rate: float
    hours: float
    disk: float


def cost(cell: Cell, known: Sequence[dict[str, str]], device: str) -> Cost:
    """By the committed runs of the same game and algorithm, or else of the nearest."""
    rate, size = _known(cell, known, device)
    left = (cell.steps - min(cell.done, cell.steps)) * len(cell.seeds)
    return Cost(rate, left / rate / 3600 if left else 0.0, size * len(cell.seeds))


def plan(todo: Sequence[Cell], known: Sequence[dict[str, str]]) -> Table:
    """What is to be run: how many steps, how long at the measured rate, how much disk."""
    device = jax.devices()[0].device_kind
    table = Table(title=f"To run, at the rates measured on this kind of device ({device})")
    for name in ("game", "variant"):
        table.add_column(name)
    for name in ("seeds", "steps each", "done", "steps/s", "hours", "disk, MB"):
        table.add_column(name, justify="right")
    costs = [cost(cell, known, device) for cell in todo]
    for cell, (rate, hours, disk) in zip(todo, costs, strict=True):
        table.add_row(
            cell.game,
            cell.variant,
            _ranges(cell.seeds),
            f"{cell.steps:,}",
            f"{min(1.0, cell.done / cell.steps):.0%}",
            "not measured" if np.isnan(rate) else f"{rate:,.0f}",
            "?" if np.isnan(hours) else f"{hours:.2f}",
            "?" if np.isnan(disk) else f"{disk:,.1f}",
        )
    table.add_section()
    steps = sum(cell.steps * len(cell.seeds) for cell in todo)
    totals = []
    for values in ([x.hours for x in costs], [x.disk for x in costs]):
        more = " + ?" if np.isnan(values).any() else ""
        totals.append(f"{np.nansum(values):,.2f}{more}")
    table.add_row("all", "", "", f"{steps:,}", "", "", *totals)
    return table


def _known(cell: Cell, known: Sequence[dict[str, str]], device: str) -> tuple[float, float]:
    """Steps/s of all seeds and MB a seed, of the nearest runs that were measured."""
    images = _has_images(cell.game)
    algorithm = cell.config.algorithm
    alike = [
        row
        for row in known
        if _has_images(row["game"]) == images and _kind(row["algorithm"]) == _kind(algorithm)
    ]
    for name, value in (("algorithm", algorithm), ("game", cell.game)):
        alike = [row for row in alike if row[name] == value] or alike
    rates = [float(row["steps_per_second"]) for row in alike if row["device"] == device]
    sizes = [float(row["disk_bytes"]) / 1e6 / len(row["seeds"].split()) for row in alike]
    return (
        float(np.median(rates)) if rates else float("nan"),
        float(np.median(sizes)) if sizes else float("nan"),
    )


def _kind(algorithm: str) -> str:
    """Algorithms of one kind take about as long."""
    return ALGORITHMS[algorithm].seeds


def _has_images(game: str) -> bool:
    return len(look_up(game).observation.shape) == 3


def _ranges(seeds: Sequence[int]) -> str:
    whole = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]}–{seeds[-1]}" if whole else " ".join(map(str, seeds))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether no other process is at the folder; none comes to it meanwhile."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


def carry_out(todo: Sequence[Cell]) -> int:
    """Runs what is not finished; 0, or the status of the run that was broken off."""
    for i, cell in enumerate(todo, start=1):
        if cell.finished:
            continue
        with _alone(cell.out) as mine:
            if not mine:
                print(f"{cell.out}: another process is at it")
                continue
            print(f"\n[{i}/{len(todo)}] {cell.game} {cell.variant}, seeds {_ranges(cell.seeds)}")
            words = [*cell.words, "--out", str(cell.out), "--resume"]
            status = train.train(*parse(words))
            if status:
                return status
        # What a run compiled is of its own emulators.
        jax.clear_caches()
    return 0


def collect(todo: Sequence[Cell]) -> Collected:
    """The rows of curves.csv and runs.csv of the cells that have begun."""
    found = Collected([], [])
    for cell in todo:
        if cell.done and (cell.out / "metrics.csv").exists():
            found.curves.extend(collected.curve_rows(cell.out, cell.game, cell.variant))
            about = collected.about_run(cell.out, cell.variant)
            found.runs.append(about | {"of_steps": str(cell.steps)})
    return found


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
        "table.md and figure.png. Can be broken\noff at any time; the same command goes on. "
        "Started twice it shares the work, best with one\ncore each: taskset -c 0 python -m …",
        epilog=f"presets:\n{presets}\n\nvariants:\n{variants}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--preset", required=True, choices=tuple(study.presets), help="how much to run, see below"
    )
    parser.add_argument("--out", type=Path, help=f"folder of the runs (default runs/{name}/PRESET)")
    parser.add_argument(
        "--results",
        type=Path,
        help="folder of the figure, table and CSVs (default --out); other runs that it has stay",
    )
    parser.add_argument("--games", nargs="+", default=[], metavar="ID", help="only these")
    parser.add_argument(
        "--variants",
        nargs="+",
        default=[],
        metavar="NAME",
        choices=tuple(study.variants),
        help="only these",
    )
    parser.add_argument(
        "--seeds", nargs="+", default=[], type=int, metavar="N", help="these instead"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="of every seed, instead")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--plan", action="store_true", help="say what would be run, and end")
    what.add_argument(
        "--collect", action="store_true", help="run nothing: figure and table of what there is"
    )
    return parser


def main(name: str, words: Sequence[str] | None = None, *, prog: str = "") -> int:
    """The command of a study."""
    study = STUDIES[name]
    parser = _parser(name, study, prog or f"python -m experiments.{name}")
    given = parser.parse_args(words)
    preset = study.presets[given.preset]
    out = given.out or Path("runs") / name / given.preset
    results = given.results or out
    try:
        unknown = sorted(set(given.games) - set(preset.steps)) if given.steps is None else []
        if unknown:
            raise ConfigError(
                f"--games {' '.join(unknown)}: --preset {given.preset} has "
                f"{', '.join(preset.steps)}. Give one of these, or --steps as well."
            )
        chosen = {"games": given.games, "variants": given.variants, "seeds": given.seeds}
        todo = cells(study, preset, out, **chosen, steps=given.steps)
        for cell in todo:
            _ = cell.config  # is refused now, not after hours
        console = Console()
        console.width = max(console.width, 110)
        if not given.collect:
            console.print(plan(todo, report.measured()))
        if given.plan:
            return 0
        began = time.monotonic()
        status = 0 if given.collect else carry_out(todo)
        every = cells(study, preset, out, seeds=given.seeds, steps=given.steps, games=given.games)
        found = collect(every)
        if not found.runs:
            raise ConfigError(f"--out {out} has no run that has begun, and no figure is drawn.")
        if results != out and (results / "runs.csv").exists():
            found = collected.together(found, collected.read(results))
        collected.write(results, found)
        report.build(name, given.preset, results)
        console.print()
        print((results / "table.md").read_text())
        print(f"{results / 'figure.png'}: {time.monotonic() - began:.0f} s")
    except (ConfigError, train.RunError, OSError, ValueError) as error:
        return stop_with(error)
    if status:
        print(f"Go on by the same command: {shlex.join(['python', *sys.orig_argv[1:]])}")
    return status
