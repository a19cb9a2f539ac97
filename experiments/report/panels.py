"""Figures of many panels, a column for each game: learning curves, and lines over a setting."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from PIL import Image, PngImagePlugin

from jaxsoft.cli.plot import COLOURS, GREY, plain, unit_of
from jaxsoft.training.logs import writing

__all__ = ["Line", "Panel", "draw"]

WIDTH, HEIGHT, DPI, FONT, COLUMNS = 4.4, 3.2, 120, 11.0, 4
MARKERS = "osD^vPX*"


class Line(NamedTuple):
    """A line with its band.

    Attributes:
      label: in the key; lines of one label have one colour in all panels.
      x: [T].
      y: [T].
      low: lower end of the band [T], or `None`.
      high: its upper end.
      each: of single seeds [S, T], drawn thin, or `None`.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    each: np.ndarray | None = None


class Panel(NamedTuple):
    """One picture.

    Attributes:
      title: above it.
      x_label: below it.
      y_label: left of it, where it begins a row.
      lines: what it has.
      marked: whether its points are marked, on a logarithmic axis.
      marks: words at places of the x axis.
      y_range: of a logarithmic y axis; `None` is a linear one.
      x_log: whether the x axis is logarithmic without marks, too.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    marked: bool = False
    marks: Mapping[float, str] | None = None
    y_range: tuple[float, float] | None = None
    x_log: bool = False


def draw(
    rows: Sequence[Sequence[Panel | None]],
    out: Path,
    *,
    title: str,
    source: str,
) -> None:
    """Draws rows of panels, a row of many games wrapped, with one key for all.

    Args:
      rows: of panels; `None` leaves a place empty.
      out: the .png to write.
      title: above all.
      source: what it is drawn from; kept in the file, as "Source".
    """
    wrapped = [row[i : i + COLUMNS] for row in rows for i in range(0, len(row), COLUMNS)]
    widest = max(len(row) for row in wrapped)
    panels = [panel for row in wrapped for panel in row if panel is not None]
    labels = list(dict.fromkeys(x.label for panel in panels for x in panel.lines))
    style = {label: (COLOURS[i % len(COLOURS)], MARKERS[i % 8]) for i, label in enumerate(labels)}
    # Lines that lie upon each other are both to be seen.
    dashes = {label: ("-", (0, (3, 1.3)))[i % 2] for i, label in enumerate(labels)}
    width = max(WIDTH * widest, 6.5)
    across = max(1, int(width / (0.085 * max(map(len, labels), default=1) + 0.6)))
    extra = 0.55 + 0.25 * -(-len(labels) // across)
    figure = Figure(
        figsize=(width, HEIGHT * len(wrapped) + extra),
        dpi=DPI,
        layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06),
    )
    grid = figure.subplots(len(wrapped), widest, squeeze=False)
    for axes_row, row in zip(grid, wrapped, strict=True):
        first = True
        for axes, panel in itertools.zip_longest(axes_row, row):
            if panel is None:
                axes.set_visible(False)
            else:
                _panel(axes, panel, style, dashes, first=first)
                first = False
    marked = any(panel.marked for panel in panels)
    handles = [_handle(label, style[label], dashes[label], marked) for label in labels]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=min(across, len(labels)) or 1,
        frameon=False,
        fontsize=FONT - 1,
        handlelength=2.4,
        title=title,
        title_fontsize=FONT + 2,
        alignment="left",
    )
    FigureCanvasAgg(figure)
    _save(figure, out, source)


def _handle(label: str, style: tuple[str, str], dash: Any, marked: bool) -> Line2D:
    marker = style[1] if marked else ""
    return Line2D([], [], color=style[0], linestyle=dash, marker=marker, linewidth=2.4, label=label)


def _panel(
    axes: Axes,
    panel: Panel,
    style: Mapping[str, tuple[str, str]],
    dashes: Mapping[str, Any],
    *,
    first: bool,
) -> None:
    longest = max((float(np.max(x.x)) for x in panel.lines if len(x.x)), default=0.0)
    logarithmic = panel.marked or panel.x_log
    scale, unit = (1.0, "") if logarithmic else unit_of(longest)
    for line in panel.lines:
        colour, marker = style[line.label]
        x = line.x / scale
        if line.each is not None:
            for y in line.each:
                axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.35, zorder=2)
        if line.low is not None and line.high is not None:
            axes.fill_between(x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
        options: dict[str, Any] = {"marker": marker, "markersize": 5} if panel.marked else {}
        axes.plot(
            x, line.y, color=colour, linestyle=dashes[line.label], linewidth=2.0, zorder=3,
            solid_capstyle="round", **options,
        )  # fmt: skip
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    if panel.marked:
        places = sorted({float(x) for line in panel.lines for x in line.x})
        if len(places) < 8:
            axes.xaxis.set_major_locator(FixedLocator(places))
            axes.xaxis.set_minor_locator(NullLocator())
        for place, word in (panel.marks or {}).items():
            axes.axvline(place, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
            axes.annotate(
                word, (place, 1), (2, -2), xycoords=("data", "axes fraction"), va="top",
                textcoords="offset points", fontsize=FONT - 3, color=GREY,
            )  # fmt: skip
    elif not logarithmic:
        axes.set_xlim(0, longest / scale or 1)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if panel.y_range:
        axes.set_yscale("log")
        axes.set_ylim(panel.y_range)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.set_title(panel.title, loc="left", fontsize=FONT)
    axes.set_xlabel(unit + panel.x_label, fontsize=FONT - 1)
    if first:
        axes.set_ylabel(panel.y_label, fontsize=FONT - 1)
    plain(axes, FONT - 2)


def _save(figure: Figure, out: Path, source: str) -> None:
    """As a palette, which is a third of the size, and as a whole or not at all."""
    raw = io.BytesIO()
    figure.savefig(raw, format="png")
    image = Image.open(raw).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    info = PngImagePlugin.PngInfo()
    info.add_text("Source", source)
    whole = out.with_name(f".{out.name}.{os.getpid()}")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        image.save(whole, format="png", optimize=True, pnginfo=info)
        whole.replace(out)
