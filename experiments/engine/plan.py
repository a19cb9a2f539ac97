"""What runs will take, estimated from the runs whose results are committed."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import pandas as pd
from rich.table import Table

from experiments.engine.runs import Cell, ranges
from jaxsoft.agents.registry import ALGORITHMS

__all__ = ["costs", "plan"]


def costs(todo: Sequence[Cell], known: pd.DataFrame, device: str) -> pd.DataFrame:
    """What is left of runs, by the nearest runs that are known; NaN where there is none like it.

    Args:
      todo: the runs.
      known: rows of runs.csv.
      device: whose rates count.

    Returns:
      For each run, `rate` in steps per second of all seeds, `hours`, and `disk` in MB.
    """
    rows = []
    for cell in todo:
        alike = _nearest(cell, known)
        rate = alike.loc[alike["device"] == device, "steps_per_second"].median()
        disk = (alike["disk_bytes"] / 1e6 / (alike["seeds"].str.count(" ") + 1)).median()
        left = max(cell.steps - cell.done, 0) * len(cell.seeds)
        hours = left / rate / 3600 if left else 0.0
        rows.append({"rate": rate, "hours": hours, "disk": disk * len(cell.seeds)})
    return pd.DataFrame(rows)


def _nearest(cell: Cell, known: pd.DataFrame) -> pd.DataFrame:
    """Runs of the same game and algorithm, or else of what takes about as long."""
    algorithm = cell.config.algorithm
    alike = known[
        (known["settings"].str.contains("episodic-life") == cell.is_atari)
        & (known["algorithm"].map(_kind) == _kind(algorithm))
    ]
    for name, value in (("algorithm", algorithm), ("game", cell.game)):
        same = alike[alike[name] == value]
        alike = alike if same.empty else same
    return alike


def _kind(algorithm: str) -> str:
    """Algorithms of one kind take about as long."""
    return ALGORITHMS[algorithm].seeds


def plan(todo: Sequence[Cell], known: pd.DataFrame) -> Table:
    """What is to be run: how many steps, how long at the measured rate, how much disk."""
    device = jax.devices()[0].device_kind
    found = costs(todo, known, device)
    shown = pd.DataFrame(
        {
            "game": [cell.game for cell in todo],
            "variant": [cell.variant for cell in todo],
            "seeds": [ranges(cell.seeds) for cell in todo],
            "steps each": [f"{cell.steps:,}" for cell in todo],
            "done": [f"{min(1.0, cell.done / cell.steps):.0%}" for cell in todo],
            "steps/s": found["rate"].map("{:,.0f}".format).where(found["rate"] > 0, "not measured"),
            "hours": found["hours"].map("{:.2f}".format).where(found["hours"] >= 0, "?"),
            "disk, MB": found["disk"].map("{:,.1f}".format).where(found["disk"] >= 0, "?"),
        }
    )
    table = Table(title=f"To run, at the rates measured on this kind of device ({device})")
    for i, name in enumerate(shown):
        table.add_column(str(name), justify="right" if i > 1 else "left")
    for row in shown.itertuples(index=False):
        table.add_row(*row)
    table.add_section()
    steps = sum(cell.steps * len(cell.seeds) for cell in todo)
    hours, disk = (
        f"{found[name].sum():,.2f}" + (" + ?" if found[name].isna().any() else "")
        for name in ("hours", "disk")
    )
    table.add_row("all", "", "", f"{steps:,}", "", "", hours, disk)
    return table
