"""A study's curves.csv as arrays: every seed on one grid, and the numbers that a seed comes to."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["BINS", "Curves", "read", "read_rows"]

BINS = 40
"""Equal parts of a run that its curve has one value each of."""


class Curves(NamedTuple):
    """A variant on a game.

    Attributes:
      steps: ends of the parts of the run [T], up to where every seed is.
      measures: name -> mean over the games finished in each part [S, T]; where none was, that of
        the part before, and before the first, that of the first.
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


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read(path: Path, lengths: Mapping[tuple[str, str], int]) -> dict[tuple[str, str], Curves]:
    """(game, variant) -> curves.

    Args:
      path: of curves.csv.
      lengths: (game, variant) -> steps of a whole run; what came after them does not count.
    """
    by_cell: dict[tuple[str, str], dict[int, list[dict[str, str]]]] = {}
    for row in read_rows(path):
        key = row["game"], row["variant"]
        if int(row["step"]) <= lengths[key]:
            by_cell.setdefault(key, {}).setdefault(int(row["seed"]), []).append(row)
    return {key: _curves(seeds, lengths[key]) for key, seeds in by_cell.items()}


def _curves(seeds: Mapping[int, list[dict[str, str]]], length: int) -> Curves:
    names = ("episode_return", "episode_length")
    width = length / BINS
    reached = min(max(int(row["step"]) for row in rows) for rows in seeds.values())
    count = max(1, min(BINS, int(np.ceil(reached / width - 0.5))))
    grids: dict[str, list[np.ndarray]] = {name: [] for name in names}
    final: dict[str, list[float]] = {name: [] for name in names}
    for rows in seeds.values():
        step = np.array([int(row["step"]) for row in rows])
        games = np.array([int(row["episodes"]) for row in rows], float)
        part = np.clip(np.ceil(step / width).astype(int) - 1, 0, BINS - 1)
        late = (step > 0.9 * reached) & (step <= reached)
        for name in names:
            value = np.where(games > 0, [float(row[name]) for row in rows], 0.0)
            number = np.bincount(part, games, BINS)[:count]
            total = np.bincount(part, games * value, BINS)[:count]
            mean = np.where(number > 0, total / np.maximum(number, 1), np.nan)
            grids[name].append(_filled(mean))
            counted = games[late].sum()
            final[name].append(
                float((games * value)[late].sum() / counted) if counted else grids[name][-1][-1]
            )
    ends = np.minimum(width * np.arange(1, count + 1), max(reached, width * (count - 1)))
    return Curves(
        ends,
        {name: np.array(grid) for name, grid in grids.items()},
        {name: np.array(x) for name, x in final.items()},
        np.array(list(seeds)),
    )


def _filled(x: np.ndarray) -> np.ndarray:
    known = np.flatnonzero(np.isfinite(x))
    if not known.size:
        return x
    last = np.maximum.accumulate(np.where(np.isfinite(x), np.arange(len(x)), known[0]))
    filled: np.ndarray = x[last]
    return filled
