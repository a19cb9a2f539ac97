"""Panels show the lines that they are given, where they are given, under one legend."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from jaxsoft.cli.plot import Line, Panel, draw

X = np.array([10_000.0, 20_000.0, 40_000.0])


def line(label: str, slope: float = 1.0, **more: np.ndarray) -> Line:
    return Line(label, X, slope * X, **more)


def drawn(rows: list[list[Panel | None]], figure: list[Figure], out: Path) -> Figure:
    draw(rows, out / "figure.png", title="Title")
    return figure[-1]


def test_lines_bands_and_single_seeds(figure: list[Figure], tmp_path: Path) -> None:
    each = np.stack([X - 1, X + 1])
    whole = line("a", low=X - 2, high=X + 2, each=each)
    found = drawn([[Panel("G", "steps", "return", [whole])]], figure, tmp_path)
    [axes] = found.axes
    assert axes.get_title("left") == "G"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("thousand steps", "return")
    shown = [np.asarray(x.get_xydata()) for x in axes.lines]
    np.testing.assert_allclose([x[:, 1] for x in shown], [*each, X])
    np.testing.assert_allclose([x[:, 0] for x in shown], [X / 1000] * 3)
    [band] = axes.collections
    heights = np.asarray(band.get_paths()[0].vertices)[:, 1]
    assert (heights.min(), heights.max()) == (X[0] - 2, X[-1] + 2)
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


def test_a_label_has_one_look_and_one_place_in_the_legend(
    figure: list[Figure], tmp_path: Path
) -> None:
    first = Panel("G", "x", "y", [line("a"), line("b", 2.0)])
    second = Panel("H", "x", "y", [line("b", 3.0)])
    found = drawn([[first, second]], figure, tmp_path)
    [legend] = found.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    assert legend.get_title().get_text() == "Title"
    looks = [[(x.get_color(), x.get_linestyle()) for x in axes.lines] for axes in found.axes]
    assert looks[0][1] == looks[1][0] != looks[0][0]


def test_places_may_be_empty_and_rows_are_wrapped(figure: list[Figure], tmp_path: Path) -> None:
    one = Panel("G", "x", "y", [line("a")])
    found = drawn([[one] * 5, [None, one]], figure, tmp_path)
    shape = [[axes.get_visible() for axes in found.axes[i : i + 4]] for i in (0, 4, 8)]
    assert shape == [[True] * 4, [True, False, False, False], [False, True, False, False]]
    # The y axis is named where a row begins, wherever that is.
    assert [bool(axes.get_ylabel()) for axes in found.axes[8:10]] == [False, True]


@pytest.mark.parametrize("marked", [False, True])
def test_logarithmic_axes_have_plain_numbers(
    marked: bool, figure: list[Figure], tmp_path: Path
) -> None:
    one = Panel("G", "seconds", "y", [line("a")], "log", marked)
    [axes] = drawn([[one]], figure, tmp_path).axes
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "seconds"
    assert axes.xaxis.get_major_formatter()(1000.0, 0) == "1000"
    assert bool(axes.lines[0].get_marker()) == marked
    # A marked point has a tick.
    assert (set(axes.get_xticks()) == set(X)) == marked


def test_words_are_written_at_their_places(figure: list[Figure], tmp_path: Path) -> None:
    one = Panel("G", "x", "y", [line("a")], "log", marked=True, marks={20_000.0: "here"})
    [axes] = drawn([[one]], figure, tmp_path).axes
    [word] = axes.texts
    assert isinstance(word, Annotation)
    assert (word.get_text(), word.xy[0]) == ("here", 20_000.0)


def test_a_range_makes_the_y_axis_logarithmic(figure: list[Figure], tmp_path: Path) -> None:
    one = Panel("G", "x", "y", [line("a")], y_range=(1.0, 1e5))
    [axes] = drawn([[one]], figure, tmp_path).axes
    assert axes.get_yscale() == "log"
    assert axes.get_ylim() == (1.0, 1e5)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_suffix_is_the_format(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"figure{suffix}"
    draw([[Panel("G", "x", "y", [line("a")])]], out)
    begin = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    assert out.read_bytes().startswith(begin)
