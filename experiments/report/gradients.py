"""table.md and figures of the gradients along runs, from gradients.csv and conditions.csv."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.analysis import statistics
from experiments.analysis.curves import read_rows
from experiments.report import panels
from experiments.report.panels import Line, Panel
from experiments.report.tables import digest, made, markdown, page
from experiments.studies import GRADIENTS

__all__ = ["FIGURES", "build", "parts"]

Row = Mapping[str, str]

FIGURES = ("figure.png", "sizes.png", "conditions.png")
WEIGHTINGS = {"a2c": "c of A2C", "theory": "c = 1/τ"}
CONDITIONS = {
    "epsilon": "ε-greedy, ε",
    "temperature": "acting at another temperature, times τ",
    "age": "acting by old parameters, updates ago",
    "target age": "target network, updates ago",
}


def parts(name: str, preset: str, folder: Path) -> dict[str, str]:
    """The pieces of table.md by name."""
    del name
    runs = read_rows(folder / "runs.csv")
    command = f"python -m experiments.gradients --preset {preset}"
    if preset not in GRADIENTS.presets:
        command = "python -m experiments.gradients --runs …"
    return {
        "title": f"# {GRADIENTS.title}",
        "made": made(command, runs),
        "alike": alike(read_rows(folder / "gradients.csv")),
        "apart": apart(read_rows(folder / "conditions.csv")),
    }


def build(name: str, preset: str, folder: Path) -> dict[str, str]:
    """Makes table.md and the FIGURES of a folder from its CSVs; returns the pieces."""
    found = parts(name, preset, folder)
    (folder / "table.md").write_text(page(found))
    source = digest(folder, GRADIENTS)
    rows = read_rows(folder / "gradients.csv")
    panels.draw(
        _alike_panels(rows),
        folder / "figure.png",
        title="Cosine of soft Q-learning's and policy gradient's gradients of one batch",
        source=source,
    )
    panels.draw(
        _size_panels(rows),
        folder / "sizes.png",
        title="Sizes and variances of the gradients",
        source=source,
    )
    panels.draw(
        _apart_panels(read_rows(folder / "conditions.csv")),
        folder / "conditions.png",
        title="The expected gradients, where a precondition of the theorem is broken",
        source=source,
    )
    return found


def alike(rows: Sequence[Row]) -> str:
    """Cosine, norm ratio and variances, at the batch nearest to A2C's 80 steps."""
    head = [
        "game", "weighting", "τ", "steps, of the run", "batch", "cosine", "norm, soft Q / PG",
        "trace of covariance, soft Q / PG", "E‖soft Q − PG‖² / that trace of PG",
        "noise in PG, of its square",
    ]  # fmt: skip
    batch = _usual_batch(rows)
    body = []
    for kind, word in WEIGHTINGS.items():
        for game, tau in _keys(rows, "game", "tau"):
            # At the start the policy is its prior, and they are the same.
            for share in _shares(rows)[2::2]:
                here = [
                    row
                    for row in rows
                    if (row["game"], row["tau"], row["weighting"]) == (game, tau, kind)
                    and _share(row) == share
                    and int(row["batch"]) == batch
                ]
                if here:
                    body.append(
                        [game, word, tau, f"{share:.0%}", str(batch)]
                        + [
                            _spread([value(row) for row in here], _DIGITS.get(name, 3))
                            for name, value in _VALUES.items()
                        ]
                    )
    return markdown(head, body, left=2)


def _trace_ratio(row: Row) -> float:
    return float(row["trace_soft_q"]) / float(row["trace_policy"])


def _noise(row: Row) -> float:
    trace, signal = float(row["trace_policy"]), max(float(row["signal_policy"]), 0.0)
    return trace / (trace + signal)


_VALUES: dict[str, Callable[[Row], float]] = {
    "cosine": lambda row: float(row["cosine"]),
    "norm, soft Q / PG": lambda row: float(row["norm_ratio"]),
    "trace of covariance, soft Q / PG": _trace_ratio,
    "difference": lambda row: float(row["difference"]) / float(row["trace_policy"]),
    "noise": _noise,
}

# Cosines that are near 1 in three digits differ in what is left.
_DIGITS = {"cosine": 5, "difference": 5}


def apart(rows: Sequence[Row]) -> str:
    """Differences of the expected gradients by condition."""
    head = [
        "game", "", "", "KL(μ‖π)", "total variation", "difference, as acted",
        "difference, weighted by π/μ",
    ]  # fmt: skip
    body = []
    for game in dict.fromkeys(row["game"] for row in rows):
        order = ["none", *CONDITIONS]
        keys = _keys([r for r in rows if r["game"] == game], "condition", "x")
        for what, x in sorted(keys, key=lambda key: order.index(key[0])):
            here = [r for r in rows if (r["game"], r["condition"], r["x"]) == (game, what, x)]
            medians = [
                float(np.median([float(row[name]) for row in here]))
                for name in ("kl", "variation", "as_acted", "reweighted")
            ]
            label = CONDITIONS.get(what, "all as the theorem wants it")
            shown = f"{float(x):g}" if what in CONDITIONS else ""
            body.append([game, label, shown, *(f"{value:.1e}" for value in medians)])
    return markdown(head, body, left=2)


def _alike_panels(rows: Sequence[Row]) -> list[list[Panel]]:
    """Cosines over the batch at the end of the run, a line for each τ."""
    games = list(dict.fromkeys(row["game"] for row in rows))
    taus = sorted({float(row["tau"]) for row in rows})
    result = []
    for kind, word in WEIGHTINGS.items():
        here = [row for row in rows if row["weighting"] == kind]
        row = []
        for game in games:
            own = [r for r in here if r["game"] == game]
            batches = sorted({int(r["batch"]) for r in own})
            last = _shares(own)[-1]
            lines = [
                _line(f"τ = {tau:g}", [(b, _of(own, tau, last, b, "cosine")) for b in batches])
                for tau in taus
            ]
            title = f"{game}, {word}, end of the run"
            row.append(Panel(title, "steps in the batch", "cosine", lines, marked=True))
        result.append(row)
    return result


def _size_panels(rows: Sequence[Row]) -> list[list[Panel]]:
    """Ratios over τ where there are several; of a run at one, its course."""
    games = list(dict.fromkeys(row["game"] for row in rows))
    result = []
    for name in ("norm, soft Q / PG", "trace of covariance, soft Q / PG"):
        row = []
        for game in games:
            lines, unit = [], ""
            own = [r for r in rows if r["game"] == game]
            taus, shares = sorted({float(r["tau"]) for r in own}), _shares(own)
            batch = _usual_batch(own)
            for kind, word in WEIGHTINGS.items():
                here = [r for r in own if r["weighting"] == kind]
                if len(taus) > 1:
                    unit = "temperature τ"
                    for at, share in (("start", shares[0]), ("end", shares[-1])):
                        points = [(tau, _of(here, tau, share, batch, name)) for tau in taus]
                        lines.append(_line(f"{at} of the run, {word}", points))
                else:
                    unit = "million steps"
                    points = [(share, _of(here, taus[0], share, batch, name)) for share in shares]
                    steps = int(here[0]["of_steps"]) / 1e6
                    lines.append(_line(word, [(max(x * steps, 0.01), y) for x, y in points]))
            row.append(Panel(f"{game}, batches of {batch}", unit, name, lines, marked=True))
        result.append(row)
    return result


def _line(label: str, points: Sequence[tuple[float, list[float]]]) -> Line:
    estimates = [statistics.iqm_estimate(np.array(values)) for _, values in points]
    y, low, high = (np.array(part) for part in zip(*estimates, strict=True))
    return Line(label, np.array([x for x, _ in points]), y, low, high)


def _of(rows: Sequence[Row], tau: float, share: float, batch: int, name: str) -> list[float]:
    return [
        _VALUES[name](row)
        for row in rows
        if float(row["tau"]) == tau and _share(row) == share and int(row["batch"]) == batch
    ]


def _apart_panels(rows: Sequence[Row]) -> list[list[Panel]]:
    result = []
    for game in dict.fromkeys(row["game"] for row in rows):
        row = []
        for what, label in CONDITIONS.items():
            here = [r for r in rows if (r["game"], r["condition"]) == (game, what)]
            places = sorted({float(r["x"]) for r in here})
            lines = []
            for name, word in (("as_acted", "as acted"), ("reweighted", "weighted by π/μ")):
                values = [
                    [max(float(r[name]), 1e-9) for r in here if float(r["x"]) == x] for x in places
                ]
                quartiles = np.array([np.quantile(v, (0.5, 0.25, 0.75)) for v in values]).T
                lines.append(Line(word, np.array(places), *quartiles))
            row.append(
                Panel(game, label, "relative difference", lines, marked=True, y_range=(1e-8, 1.0))
            )
        result.append(row)
    return result


def _usual_batch(rows: Sequence[Row]) -> int:
    """The one nearest to A2C's 16 x 5 steps."""
    return min(sorted({int(row["batch"]) for row in rows}), key=lambda b: abs(b - 80))


def _share(row: Row) -> float:
    """Of the run, which ends with its last whole update."""
    return round(int(row["step"]) / int(row["of_steps"]), 2)


def _keys(rows: Sequence[Row], *names: str) -> list[tuple[str, ...]]:
    return list(dict.fromkeys(tuple(row[name] for name in names) for row in rows))


def _shares(rows: Sequence[Row]) -> list[float]:
    return sorted({_share(row) for row in rows})


def _spread(values: Sequence[float], digits: int) -> str:
    mean, deviation = statistics.mean_and_deviation(np.array(values))
    return f"{mean:.{digits}f}" + ("" if np.isnan(deviation) else f" ± {deviation:.{digits}f}")
