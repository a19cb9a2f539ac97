"""A study's curves are means over games, on one grid for all seeds."""

import numpy as np
import pandas as pd
import pytest

from experiments.analysis import curves
from experiments.engine.collected import Collected

NAMES = ("seed", "step", "episode_return", "episodes", "episode_length")
Row = tuple[int, int, float, int, float]


def read(rows: list[Row], length: int = 400) -> curves.Curves:
    cell = {"game": "G", "variant": "v"}
    found = Collected(
        pd.DataFrame(rows, columns=NAMES).assign(**cell),
        pd.DataFrame([cell | {"of_steps": length}]),
    )
    return curves.curves(found)["G", "v"]


def test_rows_of_one_part_are_averaged_by_games() -> None:
    rows = [(0, 10 * i, float(i), 1, 2.0 * i) for i in range(1, 41)]
    rows[0:1] = [(0, 4, 0.0, 1, 1.0), (0, 10, 4.0, 3, 5.0)]
    found = read(rows)
    assert found.steps[-1] == 400
    np.testing.assert_allclose(found.measures["episode_return"][0, :3], [3.0, 2.0, 3.0])
    np.testing.assert_allclose(found.measures["episode_length"][0, :3], [4.0, 4.0, 6.0])
    assert found.area()[0] == pytest.approx((3 + sum(range(2, 41))) / 40)
    # The last tenth: steps beyond 360.
    assert found.final["episode_return"][0] == pytest.approx(np.mean([37, 38, 39, 40]))


def test_the_last_tenth_counts_games_not_rows() -> None:
    rows = [(0, 10 * i, 1.0, 1, 1.0) for i in range(1, 40)]
    rows += [(0, 400, 9.0, 7, 1.0)]
    late = [1.0] * 3 + [9.0] * 7
    assert read(rows).final["episode_return"][0] == pytest.approx(np.mean(late))


def test_parts_without_a_game_have_the_value_before() -> None:
    nan = float("nan")
    rows = [(0, 10 * i, nan, 0, nan) for i in range(1, 41)]
    rows[4] = (0, 50, 5.0, 1, 1.0)
    rows[9] = (0, 100, 7.0, 1, 1.0)
    y = read(rows).measures["episode_return"][0]
    np.testing.assert_array_equal(y, [5.0] * 9 + [7.0] * 31)
    assert read(rows).final["episode_return"][0] == 7.0


def test_all_seeds_end_where_the_slowest_is() -> None:
    rows = [(0, 10 * i, 1.0, 1, 1.0) for i in range(1, 41)]
    rows += [(3, 10 * i, 2.0, 1, 1.0) for i in range(1, 21)]
    found = read(rows)
    assert found.measures["episode_return"].shape == (2, 20)
    np.testing.assert_array_equal(found.seeds, [0, 3])


def test_the_last_tenth_is_of_what_every_seed_has_run() -> None:
    rows = [(0, 10 * i, float(i), 1, 1.0) for i in range(1, 41)]
    rows += [(3, 10 * i, float(i), 1, 1.0) for i in range(1, 21)]
    np.testing.assert_array_equal(read(rows).final["episode_return"], [19.5, 19.5])


def test_what_came_after_the_run_does_not_count() -> None:
    rows = [(0, 10 * i, float(i), 1, 1.0) for i in range(1, 41)]
    found = read([*rows, (0, 410, 99.0, 9, 9.0)])
    assert found.measures["episode_return"].max() == found.final["episode_return"].max() + 1.5 == 40


def test_goals_are_reached_once() -> None:
    rows = [(0, 10 * i, 1.0 if i in (5, 9) else 0.0, 1, 1.0) for i in range(1, 41)]
    rows += [(1, 10 * i, 0.0, 1, 1.0) for i in range(1, 41)]
    np.testing.assert_array_equal(read(rows).reached(1.0), [50, np.inf])
