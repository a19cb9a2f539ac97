"""The figure of a study: learning curves, or what variants reached over a setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.analysis import statistics
from experiments.analysis.curves import Results
from experiments.report.tables import NAMES
from jaxsoft.cli.plot import Line, Panel

__all__ = ["panels"]

Rows = list[list[Panel | None]]


def panels(results: Results) -> Rows:
    """Rows of panels, a column for each game."""
    return _sweep(results) if results.study.x_label else _curves(results)


def _curves(results: Results) -> Rows:
    study = results.study
    few = max(len(curve.seeds) for curve in results.curves.values()) < statistics.FEW
    rows = []
    for i, measure in enumerate(study.measures):
        if i == 0 or few:
            spread = "" if few else " ± std"
            rows.append(_row(results, measure, f"mean{spread}", _mean))
        if not few:
            rows.append(_row(results, measure, "IQM and 95 %", _middle))
    if study.by_time:
        seconds = results.seconds_per_step()
        last = _row(results, study.measures[0], "IQM and 95 %", _middle, seconds)
        rows.append(last)
    return rows


def _row(
    results: Results,
    measure: str,
    what: str,
    summary: Callable[[np.ndarray], dict[str, np.ndarray]],
    seconds: Mapping[tuple[str, str], float] | None = None,
) -> list[Panel | None]:
    lines: dict[str, list[Line]] = {}
    for (game, name), curve in results.varied(measure).items():
        x = curve.steps * (seconds[game, name] if seconds else 1)
        line = Line(results.study.variants[name].label, x, **summary(curve.measures[measure]))
        lines.setdefault(game, []).append(line)
    settings = results.runs.groupby("game")["settings"].first()

    def panel(game: str) -> Panel:
        label, scale = "steps", "linear"
        if seconds:
            label, scale = "machine seconds per seed", "log"
        elif "episodic-life" in settings[game]:  # a setting of Atari games alone
            label = "steps (4 frames each)"
        return Panel(game, label, f"{NAMES[measure]}, {what}", lines[game], scale)

    return [panel(game) if game in lines else None for game in results.games]


def _mean(y: np.ndarray) -> dict[str, np.ndarray]:
    """The mean over seeds; its band where there are three, and each where they are few."""
    found = {"y": y.mean(axis=0)}
    if len(y) > 2:
        spread = y.std(axis=0, ddof=1)
        found |= {"low": found["y"] - spread, "high": found["y"] + spread}
    return found | ({"each": y} if 1 < len(y) < statistics.FEW else {})


def _middle(y: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(("y", "low", "high"), statistics.iqm_estimate(y), strict=True))


def _sweep(results: Results) -> Rows:
    values = {}
    for measure in results.study.measures:
        what = f"{NAMES[measure]}, last tenth"
        values[what] = {key: curve.final[measure] for key, curve in results.curves.items()}
        if measure == "episode_return":
            what = f"{NAMES[measure]}, mean of the run"
            values[what] = {key: curve.area() for key, curve in results.curves.items()}
    return [_sweep_row(results, what, own) for what, own in values.items()]


def _sweep_row(
    results: Results, what: str, values: Mapping[tuple[str, str], np.ndarray]
) -> list[Panel | None]:
    study = results.study
    lines: dict[str, dict[str, list[tuple[float, ...]]]] = {game: {} for game in results.games}
    for (game, name), value in values.items():
        point = (study.variants[name].x, *statistics.iqm_estimate(value))
        lines[game].setdefault(study.variants[name].line, []).append(point)
    drawn = {
        game: [Line(label, *np.array(points).T) for label, points in own.items()]
        for game, own in lines.items()
    }
    look: dict[str, Any] = {"x_scale": "log", "marked": True, "marks": study.x_marks}
    return [Panel(game, study.x_label, what, own, **look) for game, own in drawn.items()]
