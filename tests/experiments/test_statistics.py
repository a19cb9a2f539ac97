"""Intervals cover, comparisons have the right sign, and equivalence is shown only where it is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from experiments.analysis import statistics

NUMBERS = hnp.arrays(np.float64, st.integers(4, 24), elements=st.floats(-50, 50))


@given(NUMBERS)
def test_iqm_is_the_mean_of_what_two_quarters_leave(x: np.ndarray) -> None:
    cut = len(x) // 4
    middle = np.sort(x)[cut : len(x) - cut]
    np.testing.assert_allclose(statistics.iqm(x), middle.mean(), atol=1e-9)


def test_iqm_does_not_hear_of_one_wild_seed() -> None:
    x = np.arange(8.0)
    assert statistics.iqm(np.append(x, 1e9)) == statistics.iqm(np.append(x, 100.0))


@pytest.mark.parametrize("shape", [(), (5,)])
def test_an_interval_contains_its_estimate_and_shifts_with_it(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=(20, *shape))
    value, low, high = statistics.iqm_estimate(x)
    assert np.shape(low) == shape
    np.testing.assert_array_equal(value, statistics.iqm(x))
    assert np.all(low < value)
    assert np.all(value < high)
    shifted = statistics.iqm_estimate(x + 3.0)
    np.testing.assert_allclose(shifted, (value + 3, low + 3, high + 3))


def test_intervals_cover_about_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 300)
    rng = np.random.default_rng(1)
    _, low, high = statistics.iqm_estimate(rng.normal(size=(30, 400)))
    covered = np.mean((low < 0) & (high > 0))
    assert 0.88 < covered < 0.985


def test_a_comparison_is_antisymmetric_and_counts_ties_half() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=12), rng.normal(size=15) + 0.5
    forth, back = statistics.compare(x, y), statistics.compare(y, x)
    np.testing.assert_allclose(forth.difference.value, -back.difference.value)
    assert forth.improvement == pytest.approx(1 - back.improvement)
    wins = np.mean((x[:, None] > y) + 0.5 * (x[:, None] == y))
    assert forth.improvement == pytest.approx(wins)
    assert statistics.compare(x, x).improvement == pytest.approx(0.5)
    assert forth.difference.low < forth.difference.value < forth.difference.high


def walks(seed: int, seeds: int = 30, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.normal(size=(seeds, 20)), axis=1) + shift


def test_methods_that_do_the_same_are_nearer_than_seeds() -> None:
    found = [statistics.equivalence(walks(i), walks(i + 100)) for i in range(4)]
    assert all(e.shown for e in found)
    assert np.median([e.p for e in found]) > 0.1
    assert all(e.counts == (30, 30) for e in found)


def test_methods_that_differ_are_not() -> None:
    found = statistics.equivalence(walks(0), walks(1, shift=9.0))
    assert not found.shown
    assert found.p < 0.01
    assert found.ratio.low < found.ratio.value < found.ratio.high


def test_distances_are_those_of_loops() -> None:
    x, y = walks(3, 4), walks(4, 3)

    def d(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(((a - b) ** 2).mean()))

    within = [d(z[i], z[j]) for z in (x, y) for i in range(len(z)) for j in range(i)]
    found = statistics.equivalence(x, y)
    assert found.distance == pytest.approx(d(x.mean(0), y.mean(0)))
    assert found.within == pytest.approx(np.mean(within))
    assert found.ratio.value == pytest.approx(found.distance / found.within)


def test_seeds_in_common_are_paired_and_then_kept_apart() -> None:
    x = walks(5)
    found = statistics.equivalence(x, x + 0.1, same_seeds=True)
    assert found.counts == (15, 15)
    assert found.paired == pytest.approx(0.1 / found.within)
    # One half against the other: not the distance of a seed to itself.
    assert found.distance > 0.11


def test_too_few_seeds_show_nothing() -> None:
    one = statistics.equivalence(walks(0, 1), walks(1, 1), same_seeds=True)
    assert not one.shown
    assert np.isnan(one.ratio.value)
    assert one.distance > 0
    assert np.isnan(statistics.mean_and_deviation(np.array([1.0]))[1])
    few = statistics.equivalence(walks(0, 4), walks(1, 5))
    assert few.ratio.value > 0
    assert 0 < few.p <= 1
    nothing = np.full((2, 20), np.nan)
    assert np.isnan(statistics.equivalence(nothing, nothing).p)
    assert np.isnan(few.ratio.high)
    assert not few.shown
    x = np.arange(5.0)
    for count, none in ((1, True), (4, True), (5, False)):
        assert np.isnan(statistics.iqm_estimate(x[:count]).low) == none
        assert np.isnan(statistics.compare(x, x[:count]).difference.low) == none


def test_seeds_that_do_not_differ_at_all() -> None:
    flat = np.ones((10, 20))
    assert statistics.equivalence(flat, flat).shown
    assert not statistics.equivalence(flat, flat + 1).shown
