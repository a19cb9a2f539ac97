"""Pictures: learning curves of runs side by side, and the panels that they are drawn in.

python -m jaxsoft.cli.plot runs/a runs/b --out curve.png
"""

from __future__ import annotations

import argparse
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from PIL import Image

from jaxsoft.training._json import read_texts
from jaxsoft.training.logs import read_csv, writing

__all__ = ["Line", "Panel", "draw", "learning_curve", "main", "smoothed"]

# Okabe and Ito's, less black and the yellow that white paper swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = "osD^vPX*"
# Dashes leave a curve visible that another one covers.
DASHES: tuple[Any, ...] = ("-", (0, (3, 1.3)))
GREY = "#555555"
_TICKS = {"color": GREY, "labelcolor": "#222222", "labelsize": 9}
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.dpi": 140,
    "grid.color": "#E4E4E4",
    "legend.fontsize": 10,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.title_fontsize": 13,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    **{f"{axis}tick.{name}": x for axis in "xy" for name, x in _TICKS.items()},
}
SIZE, LARGE, COLUMNS = (4.4, 3.2), (8.0, 4.6), 4
NEEDED = ("step", "seed", "episode_return", "episodes")


class Line(NamedTuple):
    """A line, with a band around it where `low` and `high` are given.

    Attributes:
      label: in the legend; lines of one label look the same in all panels.
      x: [T].
      y: [T], NaN where there is a gap.
      low: lower end of the band [T].
      high: its upper end [T].
      each: curves of single seeds [S, T], drawn thin.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    each: np.ndarray | None = None


class Panel(NamedTuple):
    """One pair of axes.

    Attributes:
      title: above them.
      x_label: below; on a linear axis, after "thousand" or "million" where x is large.
      y_label: on the left of the first panel of a row.
      lines: to draw.
      x_scale: "linear" or "log".
      marked: whether points have markers, and on a logarithmic axis ticks.
      marks: x -> a word to write there.
      y_range: ends of a logarithmic y axis; `None` is a linear axis.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    x_scale: str = "linear"
    marked: bool = False
    marks: Mapping[float, str] | None = None
    y_range: tuple[float, float] | None = None


@mpl.rc_context(STYLE)
def draw(
    rows: Sequence[Sequence[Panel | None]],
    out: Path,
    *,
    title: str = "",
    size: tuple[float, float] = SIZE,
) -> None:
    """Draws rows of panels under one legend.

    Args:
      rows: of panels, wrapped where there are many; `None` leaves a place empty.
      out: file of the picture; its suffix is the format.
      title: above the legend.
      size: of a panel, in inches.
    """
    wrapped = [row[i : i + COLUMNS] for row in rows for i in range(0, len(row), COLUMNS)]
    columns = max(map(len, wrapped))
    panels = [panel for row in wrapped for panel in row if panel is not None]
    labels = list(dict.fromkeys(line.label for panel in panels for line in panel.lines))
    looks = {
        label: {"color": colour, "linestyle": dash, "marker": marker}
        for label, colour, dash, marker in zip(
            labels, *map(itertools.cycle, (COLOURS, DASHES, MARKERS)), strict=False
        )
    }
    if not any(panel.marked for panel in panels):
        looks = {label: look | {"marker": ""} for label, look in looks.items()}
    width = max(size[0] * columns, 6.5)
    across = max(1, int(width / (0.085 * max(map(len, labels), default=1) + 0.6)))
    height = size[1] * len(wrapped) + 0.55 + 0.25 * -(-len(labels) // across)
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)
    figure = Figure(figsize=(width, height), layout=layout)
    grid = figure.subplots(len(wrapped), columns, squeeze=False)
    for axes_row, row in zip(grid, wrapped, strict=True):
        first = True
        for axes, panel in itertools.zip_longest(axes_row, row):
            if panel is None:
                axes.set_visible(False)
                continue
            _panel(axes, panel, looks)
            if first:
                axes.set_ylabel(panel.y_label)
            first = False
    figure.legend(
        handles=[Line2D([], [], linewidth=2.4, label=label, **looks[label]) for label in labels],
        loc="outside upper left",
        ncols=min(across, len(labels)) or 1,
        title=title,
        alignment="left",
    )
    _save(figure, out)


def _panel(axes: Axes, panel: Panel, looks: Mapping[str, Mapping[str, Any]]) -> None:
    longest = max((float(np.max(line.x)) for line in panel.lines), default=0.0)
    scale, unit = _unit(longest) if panel.x_scale == "linear" else (1.0, "")
    for line in panel.lines:
        look, x = looks[line.label], line.x / scale
        thin = {"color": look["color"], "linewidth": 0.7, "alpha": 0.35, "zorder": 2}
        for y in [] if line.each is None else line.each:
            _line(axes, x, y, thin)
        if line.low is not None and line.high is not None:
            axes.fill_between(
                x, line.low, line.high, color=look["color"], alpha=0.15, linewidth=0, zorder=1
            )
        _line(axes, x, line.y, {**look, "markersize": 5, "linewidth": 2.0, "zorder": 3})
    if panel.x_scale == "log":
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        places = sorted({float(x) for line in panel.lines for x in line.x})
        if panel.marked and len(places) < 8:
            axes.xaxis.set_major_locator(FixedLocator(places))
            axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0, longest / scale * (1.02 if panel.marked else 1) or 1)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    for place, word in (panel.marks or {}).items():
        axes.axvline(place, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
        axes.annotate(
            word, (place, 1), (2, -2), xycoords=("data", "axes fraction"), va="top",
            textcoords="offset points", fontsize=8, color=GREY,
        )  # fmt: skip
    if panel.y_range:
        axes.set_yscale("log")
        axes.set_ylim(panel.y_range)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.set(title=panel.title, xlabel=unit + panel.x_label)
    if not panel.lines:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no game has finished yet", ha="center", color=GREY)


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, style: dict[str, Any]) -> None:
    """A line; a point without neighbours, which it would not show, gets a dot."""
    axes.plot(x, y, **style)
    known = np.pad(np.isfinite(y), 1)
    alone = known[1:-1] & ~known[:-2] & ~known[2:]
    if alone.any() and not style.get("marker"):
        size = {"markersize": 3 + 1.2 * style["linewidth"], "markeredgewidth": 0}
        dots = {**style, **size, "linestyle": "", "marker": "o", "clip_on": False}
        axes.plot(x[alone], y[alone], **dots)


def _unit(longest: float) -> tuple[float, str]:
    """What a long axis counts in, and the word for it."""
    if longest >= 1e6:
        return 1e6, "million "
    return (1e3, "thousand ") if longest >= 1e4 else (1.0, "")


def _save(figure: Figure, out: Path) -> None:
    """Writes the whole file or nothing; a PNG as a palette, a third of the size."""
    FigureCanvasAgg(figure)
    picture = io.BytesIO()
    figure.savefig(picture, format=out.suffix[1:])
    if out.suffix == ".png":
        image = Image.open(picture).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        picture = io.BytesIO()
        image.save(picture, format="png", optimize=True)
    new = out.with_name(f".{out.stem}.new{out.suffix}")
    with writing(new):
        out.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(picture.getvalue())
        new.replace(out)


def learning_curve(
    runs: Mapping[str, str | Path | Mapping[str, np.ndarray]],
    out: str | Path,
    *,
    title: str = "",
    frames_per_step: int = 1,
    smooth: float = 0.03,
) -> None:
    """Draws mean episode return over steps: seeds thin, their mean thick.

    With three seeds or more, one standard deviation around the mean is shaded. The mean is drawn
    where every seed has a value: elsewhere the end of a seed would look like a change.

    Args:
      runs: label -> metrics.csv, or what `read_csv` made of one.
      out: file of the picture; its suffix is the format.
      title: above the picture.
      frames_per_step: named at the axis where it is not 1.
      smooth: width of the moving average, as a share of the longest run; 0 shows rows as they are.
    """
    tables = {label: _table(label, run) for label, run in runs.items()}
    longest = max((float(t["step"].max()) for t in tables.values() if t), default=0.0)
    lines = [
        _curve(label, table, smooth * longest)
        for label, table in tables.items()
        if table and np.any(_played(table))
    ]
    counts = sorted({1 if line.each is None else len(line.each) for line in lines})
    key = ""
    if counts and counts[-1] > 1:
        number = f"{counts[0]} seeds" if len(counts) == 1 else "the seeds"
        key = f"thick: mean of {number} · thin: each seed"
        key += " · shaded: ± one standard deviation" if counts[-1] > 2 else ""
    steps = "steps" if frames_per_step == 1 else f"steps ({frames_per_step} frames each)"
    panel = Panel(key, steps, "mean episode return", lines)
    draw([[panel]], Path(out), title=title, size=LARGE)


def _table(label: str, run: str | Path | Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    name, table = (label, run) if isinstance(run, Mapping) else (str(run), read_csv(run))
    if table and (lacking := [column for column in NEEDED if column not in table]):
        raise ValueError(
            f"{name}: given no columns {lacking}; expected {list(NEEDED)}, as CsvLog writes them. "
            "Restore the first line."
        )
    return table if table and len(table["step"]) else {}


def _played(table: Mapping[str, np.ndarray]) -> np.ndarray:
    """Rows in which a game finished."""
    played: np.ndarray = (table["episodes"] > 0) & np.isfinite(table["episode_return"])
    return played


def _curve(label: str, table: Mapping[str, np.ndarray], window: float) -> Line:
    """The smoothed seeds of a run, at the steps at which any of them reported."""
    at, seeds = np.unique(table["step"]), []
    for seed in np.unique(table["seed"][_played(table)]):
        own = table["seed"] == seed
        columns = (table[name][own] for name in ("step", "episode_return", "episodes"))
        seeds.append(smoothed(at, *columns, window=window))
    each = np.array(seeds)
    mean = each.mean(axis=0)
    if len(each) < 3:
        return Line(label, at, mean, each=each if len(each) > 1 else None)
    spread = each.std(axis=0, ddof=1)
    return Line(label, at, mean, mean - spread, mean + spread, each)


def smoothed(
    at: np.ndarray, steps: np.ndarray, returns: np.ndarray, episodes: np.ndarray, *, window: float
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
    # Around their mean, so that sums over a long run lose no digits.
    centre = np.average(returns, weights=episodes)
    sums = np.concatenate([[0.0], np.cumsum(episodes * (returns - centre))])
    low = np.searchsorted(steps, at - window / 2, side="left")
    high = np.searchsorted(steps, at + window / 2, side="right")
    known = (high > low) & (at >= steps[0]) & (at <= steps[-1])
    counted = np.where(known, games[high] - games[low], 1.0)
    return np.where(known, centre + (sums[high] - sums[low]) / counted, np.nan)


def describe(directories: Sequence[Path]) -> tuple[list[str], str]:
    """A label per run and a title, from config.json where there is one."""
    files = [directory / "config.json" for directory in directories]
    configs = [read_texts(file, "game", "algorithm") if file.exists() else {} for file in files]
    games = [config.get("game", "") for config in configs]
    same = len(set(games)) == 1
    names = [directory.resolve().name for directory in directories]
    labels = []
    for game, config, name in zip(games, configs, names, strict=True):
        words = ["" if same else game, config.get("algorithm", "")]
        labels.append(" ".join(filter(None, words)) or name)
    # Folders tell runs apart that would have the same label.
    labels = [
        label if labels.count(label) == 1 else f"{label} ({directory})"
        for label, directory in zip(labels, directories, strict=True)
    ]
    return labels, games[0] if same else ""


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="jaxsoft plot",
        usage="jaxsoft plot DIR [DIR ...] --out PATH [options]",
        description="Draws the learning curves of one or several runs into one picture.",
    )
    parser.add_argument(
        "runs",
        metavar="DIR",
        nargs="+",
        type=Path,
        help="folder of a run, with its metrics.csv; its config.json, if any, names the curve",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="PATH",
        help="picture to write: .png, .svg or .pdf",
    )
    parser.add_argument("--title", metavar="TEXT", help="above the picture; by default the game")
    parser.add_argument(
        "--smooth",
        type=float,
        default=0.03,
        metavar="SHARE",
        help="width of the moving average over games, as a share of the longest run; 0 for none "
        "(default %(default)s)",
    )
    parser.add_argument(
        "--frames-per-step",
        type=int,
        default=1,
        metavar="N",
        help="named at the axis: 4 on Atari (default %(default)s)",
    )
    given = parser.parse_args(words)
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
        parser.exit(2, f"error: {error}\n")
    print(given.out)
    return 0
