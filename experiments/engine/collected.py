"""What a study's runs left, as rows of its curves.csv and runs.csv."""

from __future__ import annotations

import csv
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.analysis.curves import read_rows
from jaxsoft.agents.settings import flag
from jaxsoft.cli.config import ConfigError, from_json, to_json
from jaxsoft.training.logs import read_csv, writing

__all__ = ["CSVS", "Collected", "about_run", "curve_rows", "read", "together", "write", "write_csv"]


class Collected(NamedTuple):
    """The rows of a study's two CSVs."""

    curves: list[dict[str, str]]
    runs: list[dict[str, str]]


CSVS = tuple(f"{name}.csv" for name in Collected._fields)


def curve_rows(out: Path, game: str, variant: str) -> list[dict[str, str]]:
    """Rows of curves.csv of a run's folder."""
    data = read_csv(out / "metrics.csv")
    rows = []
    for i in range(len(data["step"])):
        row = {"game": game, "variant": variant}
        for name in ("seed", "step", "episode_return", "episodes", "episode_length"):
            row[name] = f"{data[name][i]:.6g}" if "_" in name else str(int(data[name][i]))
        rows.append(row)
    return rows


def read(folder: Path) -> Collected:
    """What a folder of results has."""
    return Collected(*(read_rows(folder / name) for name in CSVS))


def write(folder: Path, found: Collected) -> None:
    """Makes it what the folder has."""
    for name, rows in zip(CSVS, found, strict=True):
        write_csv(folder / name, rows)


def together(new: Collected, old: Collected) -> Collected:
    """Both, and of a seed that is in both the longer run; so machines add to results in turn."""
    settings: dict[tuple[str, str], str] = {}
    owner: dict[tuple[str, str, str], tuple[Collected, int]] = {}
    runs = []
    every = [(run, part) for part in (new, old) for run in part.runs]
    for run, part in sorted(every, key=lambda x: -int(x[0]["steps"])):
        seeds = run["seeds"].split()
        keys = [(run["game"], run["variant"], seed) for seed in seeds]
        by = settings.setdefault(keys[0][:2], run["settings"])
        if run["settings"] != by:
            raise ConfigError(
                f"The results have runs of {run['variant']} on {run['game']} by settings\n  {by}\n"
                f"and by\n  {run['settings']}\nName another folder by --results."
            )
        if not any(key in owner for key in keys):
            runs.append(run)
            owner |= dict.fromkeys(keys, (part, int(seeds[0])))
    games, variants = (
        list(dict.fromkeys(run[name] for part in (old, new) for run in part.runs))
        for name in ("game", "variant")
    )

    def place(row: Mapping[str, str]) -> tuple[int, int, int]:
        seed = row["seed"] if "seed" in row else row["seeds"].split()[0]
        first = owner[row["game"], row["variant"], seed][1]
        return games.index(row["game"]), variants.index(row["variant"]), first

    curves = [
        row
        for part in (new, old)
        for row in part.curves
        if owner.get((row["game"], row["variant"], row["seed"]), (None,))[0] is part
    ]
    return Collected(sorted(curves, key=place), sorted(runs, key=place))


def about_run(out: Path, variant: str = "") -> dict[str, str]:
    """A row of runs.csv of a run's folder: what it took, where, by which settings."""
    config = from_json(json.loads((out / "config.json").read_text()))
    sessions = json.loads((out / "run.json").read_text())["sessions"]
    last = sessions[-1]
    rate = len(config.seeds) * float(np.median(read_csv(out / "metrics.csv")["steps_per_second"]))
    settings = []
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
        "steps": str(max(session["to_step"] for session in sessions)),
        "of_steps": str(config.steps),
        "seconds": f"{sum(session['seconds'] for session in sessions):.0f}",
        "steps_per_second": f"{rate:.0f}",
        "disk_bytes": str(sum(file.stat().st_size for file in out.rglob("*") if file.is_file())),
        "device": last["device"],
        "processor": last["processor"],
        "jax": last["jax"],
        "commit": " ".join(commits),
        "began": sessions[0]["began"],
        "settings": shlex.join(settings),
    }


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replaces a file by rows of equal columns, as a whole."""
    whole = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        whole.replace(path)
