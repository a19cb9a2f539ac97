"""Learning curves from metrics.csv, of one run or of several side by side.

python -m experiments.plotting runs/a runs/b --out curve.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from jaxsoft.training.logs import read_csv, writing

__all__ = ["learning_curve", "main", "plain", "smoothed", "unit_of"]

# Okabe and Ito's, less black and the yellow that white paper swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
GREY = "#555555"
SIZE, DPI, FONT = (8.0, 4.8), 160, 13.0
NEEDED = ("step", "seed", "episode_return", "episodes")


class Curve(NamedTuple):
    """One run on the steps at which any of its seeds reported, NaN where there is no value."""

    steps: np.ndarray
    seeds: np.ndarray  # [seeds, steps]

    @property
    def mean(self) -> np.ndarray:
        """Where every seed has a value: elsewhere a seed's end would look like a change."""
        mean: np.ndarray = self.seeds.mean(axis=0)
        return mean

    @property
    def spread(self) -> np.ndarray:
        spread: np.ndarray = self.seeds.std(axis=0, ddof=1)
        return spread


def smoothed(
    at: np.ndarray, steps: np.ndarray, returns: np.ndarray, episodes: np.ndarray, window: float
) -> np.ndarray:
    """Mean return of the games that finished within half a `window` of each step in `at`.

    Each row counts by its number of games. NaN where the window holds no game, and before the
    first and after the last.
    """
    played = (episodes > 0) & np.isfinite(returns)
    steps, returns, episodes = steps[played], returns[played], episodes[played]
    if not steps.size:
        return np.full(at.shape, np.nan)
    order = np.argsort(steps, kind="stable")
    steps, returns, episodes = steps[order], returns[order], episodes[order]
    games = np.concatenate([[0.0], np.cumsum(episodes)])
    # About their mean, so that sums over a long run lose no digits.
    centre = np.average(returns, weights=episodes)
    sums = np.concatenate([[0.0], np.cumsum(episodes * (returns - centre))])
    low = np.searchsorted(steps, at - window / 2, side="left")
    high = np.searchsorted(steps, at + window / 2, side="right")
    known = (high > low) & (at >= steps[0]) & (at <= steps[-1])
    counted = np.where(known, games[high] - games[low], 1.0)
    return np.where(known, centre + (sums[high] - sums[low]) / counted, np.nan)


def curve(data: Mapping[str, np.ndarray], window: float) -> Curve | None:
    """The smoothed seeds of a run, or `None` if no game has finished."""
    if not data:
        return None
    played = (data["episodes"] > 0) & np.isfinite(data["episode_return"])
    grid = np.unique(data["step"])
    seeds = []
    for seed in np.unique(data["seed"][played]):
        rows = data["seed"] == seed
        steps, returns, episodes = (
            data[name][rows] for name in ("step", "episode_return", "episodes")
        )
        seeds.append(smoothed(grid, steps, returns, episodes, window))
    return Curve(grid, np.array(seeds)) if seeds else None


def learning_curve(
    runs: Mapping[str, str | Path | Mapping[str, np.ndarray]],
    out: str | Path,
    *,
    title: str = "",
    frames_per_step: int = 1,
    smooth: float = 0.03,
) -> None:
    """Draws mean episode return over steps: seeds thin, their mean thick.

    With three seeds or more, one standard deviation about the mean is shaded. The mean is drawn
    where every seed has a value.

    Args:
      runs: label -> metrics.csv, or what `read_csv` made of one.
      out: file of the picture; its suffix is the format.
      title: above the picture.
      frames_per_step: named at the axis where it is not 1.
      smooth: width of the moving average, as a share of the longest run; 0 shows rows as they are.
    """
    out = Path(out)
    tables = {label: _table(label, run) for label, run in runs.items()}
    longest = max((float(t["step"].max()) for t in tables.values() if t), default=0.0)
    curves = {label: curve(table, smooth * longest) for label, table in tables.items()}
    drawn = {label: c for label, c in curves.items() if c is not None}

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=SIZE, dpi=DPI, layout=layout)
    axes = figure.add_subplot()
    scale, unit = unit_of(longest)
    for c, colour in zip(drawn.values(), _cycle(len(drawn)), strict=True):
        _draw(axes, c, scale, colour)
    axes.set_xlim(0, longest / scale or 1)
    _dress(axes, title, unit, frames_per_step, _key(drawn.values()))
    if drawn:
        _name(axes, drawn)
    else:
        axes.set_yticks([])
        if not longest:
            axes.set_xticks([])
        axes.text(
            0.5,
            0.5,
            "no game has finished yet",
            transform=axes.transAxes,
            ha="center",
            va="center",
            color=GREY,
            fontsize=FONT,
        )

    # A reader, or a killed process, never meets half a picture.
    new = out.with_name(f".{out.stem}.new{out.suffix}")
    with writing(new):
        out.parent.mkdir(parents=True, exist_ok=True)
        FigureCanvasAgg(figure)
        figure.savefig(new)
        new.replace(out)


def _table(label: str, run: str | Path | Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    table = run if isinstance(run, Mapping) else read_csv(run)
    if table and (lacking := [name for name in NEEDED if name not in table]):
        raise ValueError(
            f"{label}: given no columns {lacking}; expected {list(NEEDED)}, as CsvLog writes them."
        )
    return table if table and len(table["step"]) else {}


def _cycle(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def unit_of(longest: float) -> tuple[float, str]:
    """What a long axis counts in, and the word for it."""
    if longest >= 1e6:
        return 1e6, "million "
    return (1e3, "thousand ") if longest >= 1e4 else (1.0, "")


def plain(axes: Axes, font: float) -> None:
    """Axes that do not stand out."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=font, color=GREY, labelcolor="#222222")
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)


def _draw(axes: Axes, c: Curve, scale: float, colour: str) -> None:
    x = c.steps / scale
    if len(c.seeds) > 1:
        for y in c.seeds:
            _line(axes, x, y, color=colour, linewidth=0.9, alpha=0.4, zorder=2)
    if len(c.seeds) > 2:
        low, high = c.mean - c.spread, c.mean + c.spread
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0, zorder=1)
    _line(axes, x, c.mean, color=colour, linewidth=2.6, zorder=3)


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, **style: Any) -> None:
    """A line; a point without neighbours, which it would not show, gets a dot."""
    axes.plot(x, y, solid_capstyle="round", solid_joinstyle="round", **style)
    known = np.pad(np.isfinite(y), 1)
    alone = known[1:-1] & ~known[:-2] & ~known[2:]
    size = 3 + 1.2 * float(style.pop("linewidth"))
    if alone.any():
        dots: dict[str, Any] = {"markersize": size, "markeredgewidth": 0, "clip_on": False}
        axes.plot(x[alone], y[alone], "o", **dots, **style)


def _key(curves: Collection[Curve]) -> str:
    """What the lines mean."""
    counts = sorted({len(c.seeds) for c in curves})
    if not counts or counts[-1] < 2:
        return ""
    number = f"{counts[0]} seeds" if len(counts) == 1 else "the seeds"
    shade = " · shaded: ± one standard deviation" if counts[-1] > 2 else ""
    return f"thick: mean of {number} · thin: each seed{shade}"


def _dress(axes: Axes, title: str, unit: str, frames: int, key: str) -> None:
    axes.set_xlabel(
        f"{unit}steps" + (f" ({frames} frames each)" if frames != 1 else ""), fontsize=FONT
    )
    axes.set_ylabel("mean episode return", fontsize=FONT)
    axes.set_title(title, loc="left", fontsize=FONT + 3, pad=26 if key else 12)
    axes.annotate(
        key,
        (0, 1),
        (0, 8),
        xycoords="axes fraction",
        textcoords="offset points",
        color=GREY,
        fontsize=FONT - 2,
    )
    plain(axes, FONT - 1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))


def _name(axes: Axes, drawn: Mapping[str, Curve]) -> None:
    """Labels the curves at their ends, none upon another."""
    ends = []
    for (label, c), colour in zip(drawn.items(), _cycle(len(drawn)), strict=True):
        last = c.seeds[:, np.flatnonzero(np.isfinite(c.seeds).any(axis=0))[-1]]
        ends.append((last[np.isfinite(last)].mean(), label, colour))
    ends.sort(key=lambda end: end[0])
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    gap = (high - low) * 1.35 * FONT / 72 / (SIZE[1] * 0.72)
    heights = _apart([end[0] for end in ends], gap, low + gap / 2, high - gap / 2)
    for (_, label, colour), height in zip(ends, heights, strict=True):
        axes.annotate(
            label,
            (1, height),
            (8, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=FONT,
            fontweight="bold",
            annotation_clip=False,
        )


def _apart(heights: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """Ascending `heights` in [low, high], moved as little as makes them at least `gap` apart."""
    # Less i·gap, that is the nearest ascending sequence: pool neighbours that are not.
    blocks: list[list[float]] = []
    for i, height in enumerate(heights):
        blocks.append([height - i * gap])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    pooled = np.concatenate([[np.mean(block)] * len(block) for block in blocks])
    top = max(high - gap * (len(heights) - 1), low)
    spaced: np.ndarray = np.clip(pooled, low, top) + gap * np.arange(len(heights))
    return spaced


def describe(directories: Sequence[Path]) -> tuple[list[str], str]:
    """A label per run and a title, from config.json where there is one."""
    configs = []
    for directory in directories:
        file = directory / "config.json"
        configs.append(json.loads(file.read_text()) if file.exists() else {})
    games = [config.get("game", "") for config in configs]
    same = len(set(games)) == 1
    names = [directory.resolve().name for directory in directories]
    labels = []
    for game, config, name in zip(games, configs, names, strict=True):
        words = ["" if same else game, config.get("algorithm", "")]
        labels.append(" ".join(filter(None, words)) or name)
    # Of runs that would be called the same, the folders tell which is which.
    labels = [
        label if labels.count(label) == 1 else f"{label} ({directory})"
        for label, directory in zip(labels, directories, strict=True)
    ]
    return labels, games[0] if same else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.plotting",
        description="Draw the learning curves of one or several runs into one picture.",
    )
    parser.add_argument(
        "runs",
        metavar="DIR",
        nargs="+",
        type=Path,
        help="folder of a run, with its metrics.csv; its config.json, if any, names the curve",
    )
    parser.add_argument(
        "--out", required=True, type=Path, help="picture to write: .png, .svg or .pdf"
    )
    parser.add_argument("--title", help="above the picture (default: the game)")
    parser.add_argument(
        "--smooth",
        type=float,
        default=0.03,
        metavar="SHARE",
        help="width of the moving average over games, as a share of the longest run; 0 for none "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--frames-per-step",
        type=int,
        default=1,
        metavar="N",
        help="named at the axis: 4 on Atari (default: %(default)s)",
    )
    given = parser.parse_args(arguments)
    for directory in given.runs:
        if not (directory / "metrics.csv").exists():
            parser.error(f"{directory} has no metrics.csv: give the folder of a run (its --out)")
    if given.out.suffix not in (".png", ".svg", ".pdf"):
        parser.error(f"--out {given.out}: end it in .png, .svg or .pdf")
    try:
        labels, game = describe(given.runs)
        runs = {label: d / "metrics.csv" for label, d in zip(labels, given.runs, strict=True)}
        title = game if given.title is None else given.title
        learning_curve(
            runs, given.out, title=title, frames_per_step=given.frames_per_step, smooth=given.smooth
        )
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    print(given.out)


if __name__ == "__main__":
    main()
