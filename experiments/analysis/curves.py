"""A study's curves as arrays: every seed on one grid, and the numbers that sum a seed up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.analysis import statistics
from experiments.engine import collected
from experiments.engine.collected import CELL, Collected
from experiments.engine.runs import BINS
from experiments.studies import Study

__all__ = ["Curves", "Results", "curves", "load", "nearness"]

MEASURES = ("episode_return", "episode_length")


class Curves(NamedTuple):
    """A variant on a game.

    Attributes:
      steps: ends of the parts of the run [T], up to where every seed is.
      measures: name -> mean over the games finished in each part [S, T]; where there were none,
        that of the part before, and before the first game, that of the first.
      final: name -> mean over the games of the last tenth of that [S].
      seeds: which [S].
    """

    steps: np.ndarray
    measures: Mapping[str, np.ndarray]
    final: Mapping[str, np.ndarray]
    seeds: np.ndarray

    def area(self, name: str = "episode_return") -> np.ndarray:
        """Mean over the run [S]."""
        area: np.ndarray = self.measures[name].mean(axis=1)
        return area

    def reached(self, goal: float, name: str = "episode_return") -> np.ndarray:
        """Steps after which each seed first had a mean of `goal`, infinite if never [S]."""
        there = self.measures[name] >= goal
        first = self.steps[np.argmax(there, axis=1)]
        return np.where(there.any(axis=1), first, np.inf)


Data = dict[tuple[str, str], Curves]


class Results(NamedTuple):
    """The results of a study.

    Attributes:
      study: what was run.
      curves: (game, variant) -> curves, by game as run and by variant as defined.
      runs: rows of runs.csv.
    """

    study: Study
    curves: Data
    runs: pd.DataFrame

    @property
    def games(self) -> list[str]:
        """In the order in which they were run."""
        return list(dict.fromkeys(game for game, _ in self.curves))

    def varied(self, measure: str) -> Data:
        """The curves without games that cannot vary in a measure, as Catch in its length."""
        if measure == MEASURES[0]:
            return self.curves
        seen: dict[str, list[np.ndarray]] = {game: [] for game in self.games}
        for (game, _), curve in self.curves.items():
            seen[game].append(curve.measures[measure].ravel())
        spread = {game: np.ptp(np.concatenate(values)) for game, values in seen.items()}
        return {key: curve for key, curve in self.curves.items() if spread[key[0]]}

    def seconds_per_step(self) -> Mapping[tuple[str, str], float]:
        """(game, variant) -> seconds of a step of one seed, on a machine that runs all at once."""
        rates = self.runs.groupby(CELL)["steps_per_second"].median()
        return (1 / rates).to_dict()  # type: ignore[return-value]


def load(study: Study, folder: Path) -> Results:
    """The results in a folder."""
    found = collected.read(folder)
    data = curves(found)
    games, variants = [game for game, _ in data], list(study.variants)
    order = sorted(data, key=lambda key: (games.index(key[0]), variants.index(key[1])))
    return Results(study, {key: data[key] for key in order}, found.runs)


def curves(found: Collected) -> Data:
    """(game, variant) -> curves; what came after the steps of a run does not count."""
    lengths = found.runs.groupby(CELL)["of_steps"].last().to_dict()
    return {
        key: _curves(rows[rows["step"] <= lengths[key]], lengths[key])
        for (game, variant), rows in found.curves.groupby(CELL, sort=False)
        for key in [(str(game), str(variant))]
    }


def _curves(rows: pd.DataFrame, length: int) -> Curves:
    width = length / BINS
    seeds = rows["seed"].unique()
    reached = int(rows.groupby("seed")["step"].max().min())
    count = max(1, min(BINS, int(np.ceil(reached / width - 0.5))))
    part = np.ceil(rows["step"] / width).astype(int).clip(1, BINS).rename("part")
    late = (rows["step"] > 0.9 * reached) & (rows["step"] <= reached)
    measures, final = {}, {}
    for name in MEASURES:
        # A row counts by its games.
        weighed = pd.DataFrame({"sum": rows[name] * rows["episodes"], "games": rows["episodes"]})
        weighed["sum"] = weighed["sum"].where(rows["episodes"] > 0, 0.0)
        by_part = weighed.groupby([rows["seed"], part]).sum()
        mean = (by_part["sum"] / by_part["games"]).unstack("part")
        mean = mean.reindex(index=seeds, columns=range(1, count + 1)).ffill(axis=1).bfill(axis=1)
        at_end = weighed[late].groupby(rows["seed"]).sum().reindex(seeds)
        measures[name] = mean.to_numpy()
        final[name] = (at_end["sum"] / at_end["games"]).fillna(mean[count]).to_numpy()
    ends = np.minimum(width * np.arange(1, count + 1), max(reached, width * (count - 1)))
    return Curves(ends, measures, final, seeds)


def nearness(x: Curves, y: Curves, *, measure: str = MEASURES[0]) -> statistics.Equivalence:
    """Whether two variants are equivalent, on what both have run."""
    both = x.measures[measure], y.measures[measure]
    count = min(c.shape[1] for c in both)
    same = np.array_equal(x.seeds, y.seeds)
    return statistics.equivalence(*(c[:, :count] for c in both), same_seeds=same)
