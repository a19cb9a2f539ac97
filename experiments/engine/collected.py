"""What runs leave: their rows of curves.csv and runs.csv, and folders of results made of them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.engine.runs import Cell
from jaxsoft.agents.settings import flag
from jaxsoft.cli.config import ConfigError, to_json
from jaxsoft.cli.config import read as read_config
from jaxsoft.training import checkpoints
from jaxsoft.training.logs import read_csv, writing
from jaxsoft.training.provenance import read_sessions

__all__ = [
    "CELL",
    "RESULTS",
    "Collected",
    "about_run",
    "collect",
    "measured",
    "read",
    "read_runs",
    "together",
    "write",
    "write_csv",
]

CELL = ["game", "variant"]
"""The columns that say which curves of a study rows belong to."""

RESULTS = Path(__file__).parents[1] / "results"
# Seeds are a list, and a commit or a version may look like a number.
_TEXT = dict.fromkeys(("variant", "seeds", "device", "jax", "commit", "settings"), str)


class Collected(NamedTuple):
    """The two CSVs of a study.

    Attributes:
      curves: a row for each seed and part of a run.
      runs: a row for each run; its `seeds` are separated by spaces.
    """

    curves: pd.DataFrame
    runs: pd.DataFrame


def read_runs(folder: Path) -> pd.DataFrame:
    """The runs.csv of a folder of results."""
    return pd.read_csv(folder / "runs.csv", dtype=_TEXT)


def read(folder: Path) -> Collected:
    """Both CSVs of a folder of results."""
    return Collected(pd.read_csv(folder / "curves.csv", dtype={"variant": str}), read_runs(folder))


def measured(results: Path = RESULTS) -> pd.DataFrame:
    """All committed runs."""
    return pd.concat([read_runs(file.parent) for file in sorted(results.glob("*/*/runs.csv"))])


def write(folder: Path, found: Collected) -> None:
    """Replaces both CSVs of a folder of results."""
    write_csv(folder / "curves.csv", found.curves)
    write_csv(folder / "runs.csv", found.runs)


def write_csv(path: Path, rows: pd.DataFrame) -> None:
    """Replaces a file as a whole."""
    whole = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        rows.to_csv(whole, index=False, float_format="%.6g", na_rep="nan")
        whole.replace(path)


def collect(todo: Sequence[Cell]) -> Collected | None:
    """The rows of the runs that have begun; `None` if none has."""
    begun = [cell for cell in todo if cell.done and (cell.out / "metrics.csv").exists()]
    if not begun:
        return None
    runs = [about_run(cell.out, cell.variant) | {"of_steps": cell.steps} for cell in begun]
    return Collected(pd.concat(map(_curve, begun), ignore_index=True), pd.DataFrame(runs))


def _curve(cell: Cell) -> pd.DataFrame:
    names = ["seed", "step", "episodes", "episode_return", "episode_length"]
    rows = pd.DataFrame(read_csv(cell.out / "metrics.csv", names))
    rows = rows[["seed", "step", "episode_return", "episodes", "episode_length"]]
    rows = rows.astype(dict.fromkeys(("seed", "step", "episodes"), int))
    if others := sorted({*rows["seed"]} - {*cell.seeds}):
        raise ConfigError(
            f"{cell.out / 'metrics.csv'} has rows of the seeds {others}, which the run is not of. "
            "Restore the file from a copy."
        )
    rows.insert(0, "game", cell.game)
    rows.insert(1, "variant", cell.variant)
    return rows


def about_run(out: Path, variant: str = "") -> dict[str, Any]:
    """A row of runs.csv from the folder of a run: what it took, where, by which settings."""
    config, _ = read_config(out)
    place = out / "checkpoints"
    if checkpoints.saved_steps(place) and checkpoints.read_config(place)[0] != to_json(config):
        raise ConfigError(
            f"{out / 'config.json'} has other settings than the newest checkpoint there, which the "
            "run was made with. Restore it from a copy."
        )
    sessions = read_sessions(out / "run.json")
    rates = read_csv(out / "metrics.csv", ["steps_per_second"])["steps_per_second"]
    rate = len(config.seeds) * np.median(rates)
    settings: list[str] = []
    for name, value in to_json(config).items():
        if name not in ("game", "seeds"):
            word = flag(name) if value is not False else flag(f"no_{name}")
            many = value if isinstance(value, list) else [value]
            settings += [word, *([] if isinstance(value, bool) else map(str, many))]
    commits = dict.fromkeys(session["commit"] or "unknown" for session in sessions)
    return {
        "game": config.game,
        "variant": variant or config.algorithm,
        "algorithm": config.algorithm,
        "seeds": " ".join(map(str, config.seeds)),
        "steps": max(session["to_step"] for session in sessions),
        "of_steps": config.steps,
        "seconds": round(sum(session["seconds"] for session in sessions)),
        "steps_per_second": round(rate),
        "disk_bytes": sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
        **{name: sessions[-1][name] for name in ("device", "processor", "jax")},
        "commit": " ".join(commits),
        "began": sessions[0]["began"],
        "settings": shlex.join(settings),
    }


def together(new: Collected, old: Collected) -> Collected:
    """Both, and where a seed is in both the longer run: several machines can add to results."""
    runs = pd.concat([old.runs.assign(part="old"), new.runs.assign(part="new")], ignore_index=True)
    for (game, variant), settings in runs.groupby(CELL)["settings"]:
        if settings.nunique() > 1:
            raise ConfigError(
                f"The results have runs of {variant} on {game} by settings\n  "
                + "\nand by\n  ".join(settings.unique())
                + "\nName another folder by --results."
            )
    owners = runs.assign(seed=runs["seeds"].str.split()).explode("seed").astype({"seed": int})
    owners = owners.sort_values("steps", kind="stable")
    owners = owners.drop_duplicates([*CELL, "seed"], keep="last")
    seeds = owners.sort_values("seed").groupby(level=0)["seed"]
    kept = runs.loc[seeds.first().index].assign(
        seeds=seeds.agg(lambda x: " ".join(map(str, x))), first=seeds.first()
    )
    curves = pd.concat([old.curves.assign(part="old"), new.curves.assign(part="new")])
    curves = curves.merge(owners[[*CELL, "seed", "part"]])
    return Collected(
        _arranged(curves, "seed", "step")[new.curves.columns],
        _arranged(kept, "first")[new.runs.columns],
    )


def _arranged(rows: pd.DataFrame, *by: str) -> pd.DataFrame:
    """By game and variant as they first appear, then `by`."""
    ranks = {f"{name} rank": pd.factorize(rows[name])[0] for name in CELL}
    return rows.assign(**ranks).sort_values([*ranks, *by], ignore_index=True)
