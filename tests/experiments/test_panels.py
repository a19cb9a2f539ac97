"""Panels show the lines that they are given, where they are given, by one key."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments.report import panels
from experiments.report.panels import Line, Panel

X = np.array([10_000.0, 20_000.0, 40_000.0])


def line(label: str, slope: float = 1.0, **more: np.ndarray) -> Line:
    return Line(label, X, slope * X, **more)


def drawn(rows: list[list[Panel | None]], figure: list[Figure], out: Path) -> Figure:
    panels.draw(rows, out / "figure.png", title="Title", source="source")
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
    low, high = band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()
    assert (low, high) == (X[0] - 2, X[-1] + 2)
    with Image.open(tmp_path / "figure.png") as image:
        assert image.info["Source"] == "source"
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


def test_a_label_has_one_look_and_one_place_in_the_key(
    figure: list[Figure], tmp_path: Path
) -> None:
    first = Panel("G", "x", "y", [line("a"), line("b", 2.0)])
    second = Panel("H", "x", "y", [line("b", 3.0)])
    found = drawn([[first, second]], figure, tmp_path)
    [key] = found.legends
    assert [text.get_text() for text in key.get_texts()] == ["a", "b"]
    looks = [[(x.get_color(), x.get_linestyle()) for x in axes.lines] for axes in found.axes]
    assert looks[0][1] == looks[1][0] != looks[0][0]


def test_places_may_be_empty_and_rows_are_wrapped(figure: list[Figure], tmp_path: Path) -> None:
    one = Panel("G", "x", "y", [line("a")])
    found = drawn([[one] * 5, [None, one]], figure, tmp_path)
    shape = [[axes.get_visible() for axes in found.axes[i : i + 4]] for i in (0, 4, 8)]
    assert shape == [[True] * 4, [True, False, False, False], [False, True, False, False]]
    # The y axis is named where a row begins, wherever that is.
    assert [bool(axes.get_ylabel()) for axes in found.axes[8:10]] == [False, True]


@pytest.mark.parametrize(("marked", "x_log"), [(False, True), (True, False)])
def test_logarithmic_axes_have_plain_numbers(
    marked: bool, x_log: bool, figure: list[Figure], tmp_path: Path
) -> None:
    one = Panel("G", "seconds", "y", [line("a")], marked=marked, x_log=x_log)
    [axes] = drawn([[one]], figure, tmp_path).axes
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "seconds"
    assert axes.xaxis.get_major_formatter()(1000.0, 0) == "1000"
    assert (axes.lines[0].get_marker() != "None") == marked
