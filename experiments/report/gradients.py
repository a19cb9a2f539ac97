"""Tables and figures of the gradients along runs, from gradients.csv and conditions.csv."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.analysis import statistics
from experiments.engine.collected import read_runs
from experiments.report.markdown import table
from experiments.report.tables import made
from experiments.studies import GRADIENTS
from jaxsoft.cli.plot import Line, Panel

__all__ = ["alike", "apart", "figures", "parts", "read"]

WEIGHTINGS = {"a2c": "c of A2C", "theory": "c = 1/τ"}
CONDITIONS = {
    "epsilon": "ε-greedy, ε",
    "temperature": "acting at another temperature, times τ",
    "age": "acting by old parameters, updates ago",
    "target age": "target network, updates ago",
}
NORM, TRACE = "norm, soft Q / PG", "trace of covariance, soft Q / PG"
# What is tabulated, in how many digits: cosines near 1 differ in what is left of it.
DIGITS = {
    "cosine": 5,
    NORM: 3,
    TRACE: 3,
    "E‖soft Q − PG‖² / trace of PG": 5,
    "noise share of ‖PG‖²": 3,
}


def read(folder: Path) -> pd.DataFrame:
    """The rows of gradients.csv, with the columns of DIGITS and each row's share of the run."""
    rows = pd.read_csv(folder / "gradients.csv")
    # A run ends with its last whole update.
    rows["share"] = (rows["step"] / rows["of_steps"]).round(2)
    trace, signal = rows["trace_policy"], rows["signal_policy"].clip(lower=0)
    values = (
        rows["cosine"],
        rows["norm_ratio"],
        rows["trace_soft_q"] / trace,
        rows["difference"] / trace,
        trace / (trace + signal),
    )
    return rows.assign(**dict(zip(DIGITS, values, strict=True)))


def parts(preset: str, folder: Path) -> dict[str, str]:
    """The pieces of table.md by name."""
    what = f"--preset {preset}" if preset in GRADIENTS.presets else "--runs …"
    return {
        "title": f"# {GRADIENTS.title}",
        "made": made(f"python -m experiments.gradients {what}", read_runs(folder)),
        "alike": alike(read(folder)),
        "apart": apart(pd.read_csv(folder / "conditions.csv")),
    }


def alike(rows: pd.DataFrame) -> str:
    """Cosine, norm ratio and variances, at the batch nearest to A2C's 80 steps."""
    # At the start the policy is its prior, and the gradients are the same.
    shares = np.unique(rows["share"])[2::2]
    batch = _usual_batch(rows)
    here = rows[(rows["batch"] == batch) & rows["share"].isin(shares)]
    body = []
    for weighting, word in WEIGHTINGS.items():
        of_kind = here[here["weighting"] == weighting]
        for (game, tau), at_tau in of_kind.groupby(["game", "tau"], sort=False):
            for share, seeds in at_tau.groupby("share"):
                spread = (_spread(seeds[name], digits) for name, digits in DIGITS.items())
                body.append([game, word, str(tau), f"{share:.0%}", batch, *spread])
    head = ["game", "weighting", "τ", "share of the run", "batch", *DIGITS]
    return table(pd.DataFrame(body, columns=head), left=2)


def _spread(values: pd.Series[float], digits: int) -> str:
    mean, deviation = statistics.mean_and_deviation(values.to_numpy())
    return f"{mean:.{digits}f}" + ("" if np.isnan(deviation) else f" ± {deviation:.{digits}f}")


def apart(rows: pd.DataFrame) -> str:
    """Differences of the expected gradients by condition, medians."""
    labels = {"none": "as the theorem requires"} | CONDITIONS
    values = ["kl", "variation", "as_acted", "reweighted"]
    body = []
    for game in rows["game"].unique():
        for what, label in labels.items():
            here = rows[(rows["game"] == game) & (rows["condition"] == what)]
            for x, medians in here.groupby("x", sort=False)[values].median().iterrows():
                place = f"{x:g}" if what in CONDITIONS else ""
                body.append([game, label, place, *medians.map("{:.1e}".format)])
    head = [
        "game", "", "", "KL(μ‖π)", "total variation", "difference, as acted",
        "difference, weighted by π/μ",
    ]  # fmt: skip
    return table(pd.DataFrame(body, columns=head), left=2)


def figures(folder: Path) -> list[tuple[str, str, list[list[Panel]]]]:
    """File, title and rows of panels of each figure."""
    rows, conditions = read(folder), pd.read_csv(folder / "conditions.csv")
    cosines = "Cosine of soft Q-learning's and policy gradient's gradients of one batch"
    broken = "The expected gradients, where a precondition of the theorem is broken"
    return [
        ("figure.png", cosines, _cosines(rows)),
        ("sizes.png", "Sizes and variances of the gradients", _sizes(rows)),
        ("conditions.png", broken, _conditions(conditions)),
    ]


def _cosines(rows: pd.DataFrame) -> list[list[Panel]]:
    """Over the batch at the end of the run, a line for each τ."""
    result = []
    for weighting, word in WEIGHTINGS.items():
        row = []
        for game, own in rows[rows["weighting"] == weighting].groupby("game", sort=False):
            last = own[own["share"] == own["share"].max()].groupby("tau")
            lines = [_line(f"τ = {tau:g}", here, "batch", "cosine") for tau, here in last]
            title = f"{game}, {word}, end of the run"
            row.append(_panel(title, "steps in the batch", "cosine", lines))
        result.append(row)
    return result


def _sizes(rows: pd.DataFrame) -> list[list[Panel]]:
    """Ratios over τ where there are several; of a run at one, over its steps."""
    result = []
    for name in (NORM, TRACE):
        row = []
        for game, whole in rows.groupby("game", sort=False):
            batch = _usual_batch(whole)
            own = whole[whole["batch"] == batch]
            x, x_label, scale = "tau", "temperature τ", "log"
            shown = {
                "start of the run, ": own[own["share"] == own["share"].min()],
                "end of the run, ": own[own["share"] == own["share"].max()],
            }
            if own["tau"].nunique() == 1:
                x, x_label, scale, shown = "step", "steps", "linear", {"": own}
            lines = [
                _line(at + word, here[here["weighting"] == weighting], x, name)
                for weighting, word in WEIGHTINGS.items()
                for at, here in shown.items()
            ]
            panel = _panel(f"{game}, batches of {batch}", x_label, name, lines)
            row.append(panel._replace(x_scale=scale))
        result.append(row)
    return result


def _conditions(rows: pd.DataFrame) -> list[list[Panel]]:
    """Medians and quartiles of the differences over how far a condition is broken."""
    differences = {"as_acted": "as acted", "reweighted": "weighted by π/μ"}
    rows = rows.assign(**rows[list(differences)].clip(lower=1e-9))
    result = []
    for game, own in rows.groupby("game", sort=False):
        row = []
        for what, label in CONDITIONS.items():
            lines = []
            for name, word in differences.items():
                by_place = own[own["condition"] == what].groupby("x")[name]
                middle = by_place.quantile(np.array([0.5, 0.25, 0.75])).unstack()
                lines.append(Line(word, middle.index.to_numpy(), *middle.to_numpy().T))
            panel = _panel(str(game), label, "relative difference", lines)
            row.append(panel._replace(y_range=(1e-8, 1.0)))
        result.append(row)
    return result


def _panel(title: str, x_label: str, y_label: str, lines: Sequence[Line]) -> Panel:
    return Panel(title, x_label, y_label, lines, x_scale="log", marked=True)


def _line(label: str, rows: pd.DataFrame, x: str, name: str) -> Line:
    """Interquartile means over seeds, with their intervals."""
    points = [
        (at, *statistics.iqm_estimate(seeds.to_numpy())) for at, seeds in rows.groupby(x)[name]
    ]
    return Line(label, *np.array(points).T)


def _usual_batch(rows: pd.DataFrame) -> int:
    """The one nearest to A2C's 16 x 5 steps."""
    batches = np.unique(rows["batch"])
    return int(batches[np.argmin(np.abs(batches - 80))])
