"""Curves are what the rows say: weighed by games, gaps left open, drawn whatever there is."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from jaxsoft.cli import plot as plotting
from jaxsoft.cli.plot import learning_curve, smoothed
from jaxsoft.training.logs import CsvLog

NAN = float("nan")
Table = dict[str, np.ndarray]


def table(seeds: int, rows: int, *, games: int = 3, interval: float = 1e5) -> Table:
    """Seed s's return at its row i is i + 10 s."""
    cells = [
        (i * interval, s, i + 10.0 * s, games) for i in range(1, rows + 1) for s in range(seeds)
    ]
    columns = np.array(cells, float).reshape(-1, 4).T
    return dict(zip(plotting.NEEDED, columns, strict=True))


def texts(figure: Figure) -> list[str]:
    """The title, the legend, then what is written in and around the axes."""
    [axes], [legend] = figure.axes, figure.legends
    shown = [legend.get_title(), *legend.get_texts(), *axes.texts]
    words = [x.get_text() for x in shown]
    words += [axes.get_title("left"), axes.get_ylabel(), axes.get_xlabel()]
    return [text for text in words if text]


def lines(figure: Figure) -> list[np.ndarray]:
    return [np.array(line.get_xydata()) for line in figure.axes[0].lines]


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), int)


ROWS = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 4), st.floats(-1e3, 1e3)), min_size=1)


@given(rows=ROWS, window=st.floats(0, 60))
@example(rows=[(0, 0, 0.0), (10, 1, 1.0), (20, 0, 0.0)], window=40.0)
def test_smoothing_is_the_mean_over_games(rows: list, window: float) -> None:
    """Against every game listed by itself."""
    steps, episodes, returns = (np.array(column, float) for column in zip(*rows, strict=True))
    returns[episodes == 0] = NAN
    at = np.unique(steps)
    smooth = smoothed(at, steps, returns, episodes, window=window)
    games = [
        (s, r) for s, n, r in zip(steps, episodes, returns, strict=True) for _ in range(int(n))
    ]
    for x, y in zip(at, smooth, strict=True):
        near = [r for s, r in games if x - window / 2 <= s <= x + window / 2]
        inside = games and min(games)[0] <= x <= max(games)[0]
        np.testing.assert_allclose(y, np.mean(near) if near and inside else NAN, atol=1e-8)


def test_rows_without_games_are_gaps(tmp_path: Path, figure: list[Figure]) -> None:
    data = table(1, 10)
    data["episodes"][4] = 0
    data["episode_return"][4] = NAN
    learning_curve({"a": data}, tmp_path / "c.png", smooth=0)
    [line] = lines(figure[0])
    np.testing.assert_allclose(line[:, 1], [1, 2, 3, 4, NAN, 6, 7, 8, 9, 10])
    # The number of games counts, whatever stands in the cell.
    data["episode_return"][4] = 0.0
    learning_curve({"a": data}, tmp_path / "c.png", smooth=0)
    np.testing.assert_array_equal(lines(figure[1])[0], line)


def test_seeds_their_mean_and_their_spread(tmp_path: Path, figure: list[Figure]) -> None:
    for seeds in (1, 2, 3):
        learning_curve({"a": table(seeds, 20)}, tmp_path / "c.png", smooth=0)
        drawn = lines(figure[-1])
        assert len(drawn) == (1 if seeds == 1 else seeds + 1)
        x = np.arange(1, 21) * 0.1
        np.testing.assert_allclose(drawn[-1], np.stack([x, 10 * x + 5.0 * (seeds - 1)], axis=1))
        shades = figure[-1].axes[0].collections
        assert len(shades) == (seeds == 3)
    [shade] = shades
    heights = shade.get_paths()[0].get_extents()
    np.testing.assert_allclose([heights.y0, heights.y1], [11 - 10, 30 + 10])
    key = "thick: mean of 3 seeds · thin: each seed · shaded: ± one standard deviation"
    assert texts(figure[-1]) == ["a", key, "mean episode return", "million steps"]


def test_the_mean_ends_with_the_shortest_seed(tmp_path: Path, figure: list[Figure]) -> None:
    data = table(2, 10)
    short = {name: x[~((data["seed"] == 1) & (data["step"] > 6e5))] for name, x in data.items()}
    learning_curve({"a": short}, tmp_path / "c.png", smooth=0)
    known = [np.isfinite(line[:, 1]).sum() for line in lines(figure[0])]
    assert known == [10, 6, 6]


@pytest.mark.parametrize(
    ("interval", "frames", "label", "last"),
    [
        (10, 1, "steps", 100),
        (1e3, 1, "thousand steps", 10),
        (1e6, 4, "million steps (4 frames each)", 10),
    ],
)
def test_units(
    tmp_path: Path, figure: list[Figure], interval: float, frames: int, label: str, last: float
) -> None:
    data = table(1, 10, interval=interval)
    learning_curve({"a": data}, tmp_path / "c.png", frames_per_step=frames)
    assert texts(figure[0])[-1] == label
    assert lines(figure[0])[0][-1, 0] == last


@pytest.mark.parametrize("data", [{}, table(1, 0), table(2, 4, games=0)])
def test_before_the_first_game(tmp_path: Path, figure: list[Figure], data: Table) -> None:
    learning_curve({"a": data}, tmp_path / "c.png", title="Pong-v5")
    assert "no game has finished yet" in texts(figure[0])


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_single_row_is_seen(tmp_path: Path, seeds: int) -> None:
    blue = []
    for rows in (0, 1):
        learning_curve({"": table(seeds, rows)}, tmp_path / "c.png")
        pixels = picture(tmp_path / "c.png")
        blue.append(np.sum(pixels[..., 2] - pixels[..., 0] > 60))
    assert blue[0] == 0
    assert blue[1] > 100  # not cut in half by the axes' edge


def test_labels_do_not_overlap_and_stay_in_the_picture(
    tmp_path: Path, figure: list[Figure]
) -> None:
    names = ["a2c", "soft_dqn_entropy", "nstep_soft_q", "natural_pg", "pgq", "pcl", "dqn"]
    learning_curve({name: table(2, 10) for name in names}, tmp_path / "c.png", title="Catch-v0")
    [axes], [legend] = figure[0].axes, figure[0].legends
    shown = [legend.get_title(), *legend.get_texts()]
    assert [text.get_text() for text in shown] == ["Catch-v0", *names]
    boxes = [text.get_window_extent() for text in shown]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    width, height = figure[0].canvas.get_width_height()
    assert all(b.x0 >= 0 and b.x1 <= width and b.y1 <= height for b in boxes)
    assert min(box.y0 for box in boxes) >= axes.bbox.y1


def test_columns_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a: given no columns \['episodes'\]"):
        learning_curve({"a": {k: np.ones(1) for k in plotting.NEEDED[:3]}}, tmp_path / "c.png")


def write_run(directory: Path, config: dict | None) -> Path:
    with CsvLog(directory / "metrics.csv") as log:
        for step in range(1000, 5000, 1000):
            log.write({"step": step, "seed": 0, "episode_return": step / 7, "episodes": 2})
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_the_command(tmp_path: Path) -> None:
    pong = write_run(tmp_path / "a", {"game": "Pong-v5", "algorithm": "soft_q"})
    bare = write_run(tmp_path / "bare", None)
    out = tmp_path / "new" / "curve.png"
    command = [sys.executable, "-W", "error", "-m", "jaxsoft.cli", "plot"]
    subprocess.run(
        [*command, pong, bare, "--out", out],
        check=True,
        cwd=Path(plotting.__file__).parents[2],
    )
    assert min(picture(out).shape[:2]) > 600
    assert list(out.parent.iterdir()) == [out]


def test_names_of_runs(tmp_path: Path) -> None:
    a, b, c = (
        write_run(tmp_path / name, {"game": game, "algorithm": algorithm})
        for name, game, algorithm in [("a", "G", "dqn"), ("b", "G", "a2c"), ("c", "H", "a2c")]
    )
    bare = write_run(tmp_path / "bare", None)
    assert plotting.describe([a, b]) == (["dqn", "a2c"], "G")
    assert plotting.describe([a, b, c]) == (["G dqn", "G a2c", "H a2c"], "")
    assert plotting.describe([a, bare]) == (["G dqn", "bare"], "")
    assert plotting.describe([a, a / "../a"])[0] == [f"dqn ({a})", f"dqn ({a}/../a)"]


def test_mistakes_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = write_run(tmp_path / "a", {"algorithm": "dqn"})
    (tmp_path / "file").touch()
    for words, message in [
        ([tmp_path, "--out", "c.png"], "has no metrics.csv: give the folder of a run"),
        ([run, "--out", "c.gif"], "end it in .png, .svg or .pdf"),
        ([run, "--out", tmp_path / "file" / "c.png"], "Choose a directory that can be written to"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            plotting.main([str(word) for word in words])
        assert stopped.value.code
        assert message in capsys.readouterr().err
