"""What can be said of thirty seeds, and not of two: intervals, comparisons, equivalence.

The resampling is SciPy's. The interquartile mean and its bootstrap interval over seeds are those of
Agarwal et al. (2021), *Deep Reinforcement Learning at the Edge of the Statistical Precipice*.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

__all__ = [
    "FEW",
    "Comparison",
    "Equivalence",
    "Estimate",
    "compare",
    "equivalence",
    "iqm",
    "iqm_estimate",
    "mean_and_deviation",
]

RESAMPLES = 5_000
CONFIDENCE = 0.95
FEW = 5
"""Seeds below which resampling them says nothing: of two and two, a third lie apart by chance."""

Array = np.ndarray[Any, Any]


class Estimate(NamedTuple):
    """A number, or an array of them, and its bootstrap interval; NaN of too few seeds."""

    value: Any
    low: Any
    high: Any


class Comparison(NamedTuple):
    """Two methods on one number per seed.

    Attributes:
      difference: of the interquartile means, first less second.
      improvement: the probability that a seed of the first does better than one of the second,
        a tie counting half.
    """

    difference: Estimate
    improvement: float


class Equivalence(NamedTuple):
    """Whether two methods' curves are nearer to each other than seeds of one method are.

    With d(x, y) the root mean square over time of x − y,

        ratio = d(mean of x, mean of y) / mean of d over pairs of seeds of one method

    is 0 for methods that do the same and 1 where the choice of method matters as much as the
    choice of seed. Equivalence is *shown* if the upper end of its one-sided 95 % bootstrap bound is
    below 1: chance makes resampled means more different than they are, so the bound is cautious.

    Attributes:
      distance: d of the mean curves.
      within: mean d of two seeds of one method.
      ratio: distance / within, its interval from `low` (5 %) to `high` (95 %).
      p: of the permutation test on the energy distance 2E d(x, y) − E d(x, x') − E d(y, y'), whose
        hypothesis is that the methods do not differ.
      paired: mean d of the two methods on one seed, over `within`; NaN if they have no seeds in
        common.
      counts: seeds of the first and of the second method in all but the numerator of `paired`.
    """

    distance: float
    within: float
    ratio: Estimate
    p: float
    paired: float
    counts: tuple[int, int]

    @property
    def shown(self) -> bool:
        """Whether the bound is below 1."""
        return bool(self.ratio.high < 1)


def iqm(x: Array, axis: int = 0) -> Any:
    """Mean of the middle half."""
    return stats.trim_mean(x, 0.25, axis=axis)


def mean_and_deviation(x: Array) -> tuple[float, float]:
    """The paper's: mean and standard deviation over seeds."""
    return float(np.mean(x)), float(np.std(x, ddof=1)) if len(x) > 1 else float("nan")


def iqm_estimate(x: Array) -> Estimate:
    """Interquartile mean over seeds and the ends of its interval, of [S, ...]."""
    if len(x) < FEW:
        nothing = np.full(x.shape[1:], np.nan)
        return Estimate(iqm(x), nothing, nothing)
    return Estimate(iqm(x), *_interval((x,), iqm))


def compare(x: Array, y: Array) -> Comparison:
    """The first method against the second, a number [S] of each seed."""

    def difference(a: Array, b: Array, axis: int = 0) -> Any:
        return iqm(a, axis) - iqm(b, axis)

    low, high = float("nan"), float("nan")
    if min(len(x), len(y)) >= FEW:
        low, high = map(float, _interval((x, y), difference))
    improvement = float(stats.mannwhitneyu(x, y).statistic) / (len(x) * len(y))
    return Comparison(Estimate(float(difference(x, y)), low, high), improvement)


def equivalence(x: Array, y: Array, *, same_seeds: bool = False) -> Equivalence:
    """Curves [S, T] of one method against those [S', T] of another; see `Equivalence`.

    Args:
      x: of the first.
      y: of the second.
      same_seeds: whether row i of both is of one seed, hence of the same start and the same luck.
        Then one method's first half is set against the other's second, where there are enough.
    """
    on_one_seed = float(np.diagonal(_apart(x, y)).mean()) if same_seeds else float("nan")
    if same_seeds and len(x) >= 2 * FEW:
        x, y = x[: len(x) // 2], y[len(x) // 2 :]
    alike = [_apart(z, z)[np.triu_indices(len(z), 1)] for z in (x, y)]
    within = float(np.concatenate(alike).mean()) if max(map(len, alike)) else float("nan")
    paired = on_one_seed / within if within else 0.0
    counts = len(x), len(y)
    nan = float("nan")
    far = float(np.sqrt(np.mean(np.square(x.mean(0) - y.mean(0)))))
    if min(counts) < 2 or np.isnan(far):
        return Equivalence(far, within, Estimate(nan, nan, nan), nan, paired, counts)
    both = np.concatenate([x, y])
    apart = _apart(both, both)
    first, second = np.arange(len(x)), np.arange(len(x), len(both))

    def distance(i: Array, j: Array) -> float:
        return float(np.sqrt(np.mean(np.square(both[i].mean(0) - both[j].mean(0)))))

    def ratio(i: Array, j: Array) -> float:
        far = distance(i, j)
        pairs = [apart[np.ix_(k, k)][np.triu_indices(len(k), 1)] for k in (i, j)]
        near = float(np.concatenate(pairs).mean())
        return far / near if near else (np.inf if far else 0.0)

    def energy(i: Array, j: Array) -> float:
        mean = [apart[np.ix_(a, b)].mean() for a, b in ((i, j), (i, i), (j, j))]
        return float(2 * mean[0] - mean[1] - mean[2])

    low, high = (
        _interval((first, second), ratio, confidence=0.9, vectorized=False)
        if min(counts) >= FEW
        else (nan, nan)
    )
    test = stats.permutation_test(
        (first, second),
        energy,
        permutation_type="independent",
        alternative="greater",
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    )
    estimate = Estimate(ratio(first, second), float(low), float(high))
    return Equivalence(far, within, estimate, float(test.pvalue), paired, counts)


def _apart(x: Array, y: Array) -> Array:
    """d of every row of one and every row of the other."""
    apart: Array = np.sqrt(np.mean(np.square(x[:, None] - y[None]), axis=-1))
    return apart


def _interval(
    samples: tuple[Array, ...],
    statistic: Callable[..., Any],
    *,
    confidence: float = CONFIDENCE,
    vectorized: bool = True,
) -> tuple[Array, Array]:
    """Of the percentile bootstrap over axis 0, each sample resampled alone; always the same one."""
    # One constant sample leaves nothing to resample, of which SciPy warns.
    with np.errstate(invalid="ignore"):
        found = stats.bootstrap(
            samples,
            statistic,
            axis=0,
            n_resamples=RESAMPLES,
            confidence_level=confidence,
            method="percentile",
            vectorized=vectorized,
            rng=np.random.default_rng(0),
        )
    return found.confidence_interval.low, found.confidence_interval.high
