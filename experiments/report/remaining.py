"""What the presets have that there are no results of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.engine.collected import RESULTS, measured, read_runs
from experiments.engine.plan import costs
from experiments.engine.runs import Cell, cells
from experiments.report import markdown
from experiments.report.tables import command
from experiments.studies import STUDIES

__all__ = ["left", "table"]


def table(results: Path = RESULTS) -> str:
    """The presets that are not run in full, and what the rest would take."""
    known, rows = measured(results), []
    for name, study in STUDIES.items():
        for key, preset in study.presets.items():
            todo = cells(study, preset, Path("nowhere"))
            rest = left(todo, results / name / key)
            if not rest:
                continue
            steps = sum(cell.steps * len(cell.seeds) for cell in rest)
            total = costs(rest, known, "cpu").sum(skipna=False)
            size = f"{len(preset.steps)} × {len(study.variants)} × {preset.seeds}"
            rows.append(
                {
                    "": f"`{command(name, key)}`",
                    "games × variants × seeds": size,
                    "runs left": f"{len(rest)} of {len(todo)}",
                    "million steps": f"{steps / 1e6:,.0f}",
                    "days of one process on a CPU": _number(total["hours"] / 24),
                    "GB": _number(total["disk"] / 1e3),
                }
            )
    return markdown.table(pd.DataFrame(rows))


def _number(x: float) -> str:
    return "not measured" if np.isnan(x) else f"{x:,.1f}"


def left(todo: Sequence[Cell], folder: Path) -> list[Cell]:
    """The runs that a folder of results lacks, or a percent and more of them, and what it lacks."""
    done: dict[tuple[object, object, int], int] = {}
    if (folder / "runs.csv").exists():
        for run in read_runs(folder).itertuples():
            seeds = map(int, str(run.seeds).split())
            done |= {(run.game, run.variant, seed): int(str(run.steps)) for seed in seeds}
    found = []
    for cell in todo:
        had = min(done.get((cell.game, cell.variant, seed), 0) for seed in cell.seeds)
        if had < 0.99 * cell.steps:
            found.append(dataclasses.replace(cell, steps=cell.steps - had))
    return found
