"""A study's table.md and figure.png, made from its curves.csv and runs.csv and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.analysis import curves, statistics
from experiments.analysis.curves import Curves, read_rows
from experiments.analysis.statistics import Estimate
from experiments.report import panels
from experiments.report.panels import Line, Panel
from experiments.studies import STUDIES, Study
from jaxsoft.cli.config import look_up

__all__ = [
    "build",
    "command",
    "digest",
    "interval",
    "load",
    "made",
    "markdown",
    "measured",
    "nearness",
    "number",
    "page",
    "parts",
    "varied",
]

RESULTS = Path(__file__).parents[1] / "results"
FIGURES = ("figure.png",)

NAMES = {"episode_return": "return", "episode_length": "length of a game"}

Data = dict[tuple[str, str], Curves]


def markdown(head: Sequence[str], body: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table whose first columns are words and whose others are numbers."""
    rule = ["---"] * left + ["--:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *body])


def measured(results: Path = RESULTS) -> list[dict[str, str]]:
    """What the committed runs took."""
    return [row for file in sorted(results.glob("*/*/runs.csv")) for row in read_rows(file)]


def number(x: float) -> str:
    """Three digits or so."""
    if not np.isfinite(x):
        return "–" if np.isnan(x) else "∞"
    size = abs(x)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{x:,.{digits}f}".replace("-", "−")


def interval(x: Estimate) -> str:
    """A number with its interval, if there is one."""
    if np.isnan(x.low):
        return number(x.value)
    return f"{number(x.value)} [{number(x.low)}, {number(x.high)}]"


def load(name: str, folder: Path) -> tuple[Study, Data, list[dict[str, str]]]:
    """(study, curves, runs) of a folder."""
    runs = read_rows(folder / "runs.csv")
    lengths = {(row["game"], row["variant"]): int(row["of_steps"]) for row in runs}
    return STUDIES[name], curves.read(folder / "curves.csv", lengths), runs


def parts(name: str, preset: str, folder: Path) -> dict[str, str]:
    """The pieces of table.md by name."""
    return _parts(name, preset, *load(name, folder))


def _parts(
    name: str, preset: str, study: Study, data: Data, runs: list[dict[str, str]]
) -> dict[str, str]:
    found = {"title": f"# {study.title}", "made": made(command(name, preset), runs)}
    found |= {NAMES[measure]: table(study, data, measure) for measure in study.measures}
    if study.pairs and (text := pairs(study, data)):
        found["pairs"] = text
    if study.goals:
        found["goals"] = goals(study, data, runs)
    return found | {"runs": "Runs:\n\n" + runs_table(runs)}


def build(name: str, preset: str, folder: Path) -> dict[str, str]:
    """Makes table.md and figure.png of a folder from its CSVs; returns the pieces."""
    study, data, runs = load(name, folder)
    found = _parts(name, preset, study, data, runs)
    (folder / "table.md").write_text(page(found))
    rows = _sweep_panels(study, data) if study.x_label else _curve_panels(study, data, runs)
    panels.draw(rows, folder / "figure.png", title=study.title, source=digest(folder, study))
    return found


def page(found: Mapping[str, str]) -> str:
    """The text of table.md."""
    return "\n\n".join(found.values()) + "\n"


def digest(folder: Path, study: Study) -> str:
    """Of all that the figures of a folder are made from."""
    whole = hashlib.sha256(repr(study).encode())
    for file in sorted(folder.glob("*.csv")):
        whole.update(file.read_bytes())
    return whole.hexdigest()


def command(name: str, preset: str) -> str:
    """What makes the results of a preset."""
    module = name if name.startswith("figure") else f"questions {name}"
    return f"python -m experiments.{module} --preset {preset}"


def made(by: str, runs: Sequence[Mapping[str, str]]) -> str:
    """Where results come from."""
    seconds = sum(float(row["seconds"]) for row in runs)
    steps = sum(int(row["steps"]) * len(row["seeds"].split()) for row in runs)
    took = f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min"
    device, processor, jax, commit = (
        ", ".join(dict.fromkeys(x for row in runs for x in row[name].split(sep)))
        for name, sep in (("device", "\n"), ("processor", "\n"), ("jax", "\n"), ("commit", " "))
    )
    return (
        f"`{by}`: {len(runs)} runs, {steps / 1e6:,.1f} million steps, {took} of runs; "
        f"device {device} ({processor}), JAX {jax}, commit {commit}."
    )


def table(study: Study, data: Data, measure: str) -> str:
    """What each variant reached, and against the one that the others are compared with."""
    what = NAMES[measure]
    head = [
        "game", "", "seeds", "steps", f"{what}, last tenth: mean ± std", "IQM [95 %]",
        "mean of the run: IQM [95 %]",
    ]  # fmt: skip
    against = study.against
    if against:
        head += [f"IQM − that of {study.variants[against].label}", "P(greater)"]
    body = []
    for (game, variant), curve in _ordered(study, varied(data, measure)):
        final = curve.final[measure]
        mean, deviation = statistics.mean_and_deviation(final)
        cells = [
            game,
            study.variants[variant].label,
            str(len(final)),
            f"{curve.steps[-1]:,.0f}",
            number(mean) + ("" if np.isnan(deviation) else f" ± {number(deviation)}"),
            interval(statistics.iqm_estimate(final)),
            interval(statistics.iqm_estimate(curve.area(measure))),
        ]
        if against:
            other = data.get((game, against))
            if variant == against or other is None:
                cells += ["", ""]
            else:
                found = statistics.compare(final, other.final[measure])
                few = np.isnan(found.difference.low)
                cells += [interval(found.difference), "–" if few else f"{found.improvement:.2f}"]
        body.append(cells)
    return markdown(head, body, left=2)


def varied(data: Data, measure: str) -> Data:
    """Without the games that cannot vary in a measure other than the return, as Catch in length."""
    if measure == "episode_return":
        return data
    seen: dict[str, list[np.ndarray]] = {}
    for (game, _), curve in data.items():
        seen.setdefault(game, []).append(curve.measures[measure].ravel())
    told = {game for game, values in seen.items() if np.ptp(np.concatenate(values)) != 0}
    return {key: curve for key, curve in data.items() if key[0] in told}


def nearness(x: Curves, y: Curves, measure: str = "episode_return") -> statistics.Equivalence:
    """Whether two variants are equivalent, on what both have run."""
    curves = x.measures[measure], y.measures[measure]
    count = min(c.shape[1] for c in curves)
    same = np.array_equal(x.seeds, y.seeds)
    return statistics.equivalence(*(c[:, :count] for c in curves), same_seeds=same)


def pairs(study: Study, data: Data) -> str:
    """The tests of equivalence."""
    head = [
        "game", "pair", "seeds", "distance of the mean curves", "of two seeds of one method",
        "ratio [90 %]", "nearer than seeds?", "p, no difference", "of the pair on one seed, ratio",
    ]  # fmt: skip
    body = []
    for game in dict.fromkeys(game for game, _ in data):
        for first, second in study.pairs:
            if (game, first) not in data or (game, second) not in data:
                continue
            found = nearness(data[game, first], data[game, second])
            enough = np.isfinite(found.ratio.high)
            labels = (study.variants[name].label for name in (first, second))
            body.append(
                [
                    game,
                    " – ".join(labels),
                    f"{found.counts[0]} + {found.counts[1]}",
                    number(found.distance),
                    number(found.within),
                    interval(found.ratio),
                    ("yes" if found.shown else "not shown") if enough else "too few seeds",
                    "–" if np.isnan(found.p) else f"{found.p:.3f}",
                    number(found.paired),
                ]
            )
    return markdown(head, body, left=2) if body else ""


def goals(study: Study, data: Data, runs: list[dict[str, str]]) -> str:
    """Steps, and seconds of the machine, after which half of the seeds had reached a return."""
    head = ["game", "", "return", "seeds there", "median steps", "seconds a seed, of the machine"]
    seconds = _seconds_a_step(runs)
    body = []
    for (game, variant), curve in _ordered(study, data):
        if game in study.goals:
            goal = study.goals[game]
            reached = curve.reached(goal)
            there = np.isfinite(reached)
            median = float(np.quantile(reached, 0.5, method="higher"))
            took = median * seconds[game, variant]
            body.append(
                [
                    game,
                    study.variants[variant].label,
                    number(goal),
                    f"{there.sum()} of {len(there)}",
                    number(median),
                    number(took),
                ]
            )
    return markdown(head, body, left=2)


def runs_table(runs: list[dict[str, str]]) -> str:
    """What was run."""
    head = ["game", "variant", "seeds", "steps", "of", "minutes", "steps/s", "commit"]
    body = []
    for row in runs:
        seeds = row["seeds"].split()
        shown = f"{seeds[0]}–{seeds[-1]}" if len(seeds) > 2 else ", ".join(seeds)
        cells = [row["game"], row["variant"], shown]
        cells += [f"{int(row[name]):,}" for name in ("steps", "of_steps")]
        cells += [f"{float(row['seconds']) / 60:.1f}", f"{int(row['steps_per_second']):,}"]
        body.append([*cells, row["commit"]])
    return markdown(head, body, left=2)


def _ordered(study: Study, data: Data) -> list[tuple[tuple[str, str], Curves]]:
    """By game as it was run, and by variant as it is defined."""
    games = list(dict.fromkeys(game for game, _ in data))
    names = list(study.variants)
    return sorted(data.items(), key=lambda x: (games.index(x[0][0]), names.index(x[0][1])))


def _seconds_a_step(runs: list[dict[str, str]]) -> dict[tuple[str, str], float]:
    """Of one seed, when its machine has the seeds' work to do at once."""
    rates: dict[tuple[str, str], list[float]] = {}
    for row in runs:
        rates.setdefault((row["game"], row["variant"]), []).append(float(row["steps_per_second"]))
    return {key: 1 / float(np.median(rate)) for key, rate in rates.items()}


def _frames(game: str) -> str:
    return "steps (4 frames each)" if look_up(game).is_atari else "steps"


def _curve_panels(study: Study, data: Data, runs: list[dict[str, str]]) -> list[list[Panel | None]]:
    games = list(dict.fromkeys(game for game, _ in data))
    rows: list[list[Panel | None]] = []

    def row(
        what: str, data: Data, line: Callable[[str, str, Curves], Line], unit: str = ""
    ) -> None:
        drawn: dict[str, list[Line]] = {}
        for (game, variant), c in _ordered(study, data):
            drawn.setdefault(game, []).append(line(game, variant, c))
        panels = {g: Panel(g, unit or _frames(g), what, lines) for g, lines in drawn.items()}
        rows.append([panels.get(game) for game in games])

    few = max(len(c.seeds) for c in data.values()) < statistics.FEW
    for measure in study.measures:

        def mean(game: str, variant: str, c: Curves, measure: str = measure) -> Line:
            del game
            y = c.measures[measure]
            low = high = None
            if len(y) > 2:
                spread = y.std(axis=0, ddof=1)
                low, high = y.mean(0) - spread, y.mean(0) + spread
            each = y if 1 < len(y) < statistics.FEW else None
            return Line(study.variants[variant].label, c.steps, y.mean(0), low, high, each)

        def middle(game: str, variant: str, c: Curves, measure: str = measure) -> Line:
            del game
            y = c.measures[measure]
            ends = statistics.iqm_interval(y)
            return Line(study.variants[variant].label, c.steps, statistics.iqm(y), *ends)

        name, varying = NAMES[measure], varied(data, measure)
        if measure == study.measures[0]:
            row(f"{name}, " + ("mean" if few else "mean ± std"), varying, mean)
        if not few:
            row(f"{name}, IQM and 95 %", varying, middle)
        elif measure != study.measures[0]:
            row(f"{name}, mean", varying, mean)
    if study.by_time:
        seconds = _seconds_a_step(runs)

        def timed(game: str, variant: str, c: Curves) -> Line:
            line = middle(game, variant, c, study.measures[0])
            return line._replace(x=c.steps * seconds[game, variant])

        what = f"{NAMES[study.measures[0]]}, IQM and 95 %"
        row(what, data, timed, "seconds of the machine, a seed")
        rows[-1] = [panel and panel._replace(x_log=True) for panel in rows[-1]]
    return rows


def _sweep_panels(study: Study, data: Data) -> list[list[Panel]]:
    games = list(dict.fromkeys(game for game, _ in data))
    values: list[tuple[str, Callable[[Curves], np.ndarray]]] = []
    for measure in study.measures:
        name = NAMES[measure]
        values.append((f"{name}, last tenth", lambda c, m=measure: c.final[m]))  # type: ignore[misc]
        if measure == "episode_return":
            values.append((f"{name}, mean of the run", lambda c: c.area()))
    rows = []
    for what, value in values:
        row = []
        for game in games:
            lines: dict[str, list[tuple[float, Estimate]]] = {}
            for (at, name), c in _ordered(study, data):
                if at == game:
                    variant = study.variants[name]
                    point = statistics.iqm_estimate(value(c))
                    lines.setdefault(variant.line, []).append((variant.x, point))
            drawn = [
                Line(label, *(np.array(x) for x in zip(*((x, *e) for x, e in points), strict=True)))
                for label, points in lines.items()
            ]
            row.append(Panel(game, study.x_label, what, drawn, True, study.x_marks))
        rows.append(row)
    return rows
