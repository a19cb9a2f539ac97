"""The runs of a study, each in a folder of its own, resumed where it stopped and run once.

Processes that carry out the same runs share them: a run that another process holds is skipped.
"""

from __future__ import annotations

import functools
import itertools
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from experiments.studies import Preset, Study
from jaxsoft.cli import train
from jaxsoft.cli.config import Config, look_up
from jaxsoft.cli.options import parse
from jaxsoft.training.lock import InUseError
from jaxsoft.training.provenance import read_sessions

__all__ = ["BINS", "Cell", "carry_out", "cells", "ranges"]

BINS = 40
"""Equal parts of a run for which its curve has one value each."""


@dataclass(frozen=True)
class Cell:
    """One run: a variant on a game, for some seeds, up to `steps`."""

    game: str
    variant: str
    seeds: tuple[int, ...]
    steps: int
    words: tuple[str, ...]
    out: Path

    @functools.cached_property
    def config(self) -> Config:
        """The settings."""
        return parse([*self.words, "--out", str(self.out)])[0]

    @property
    def is_atari(self) -> bool:
        """Whether the game is Atari's."""
        return look_up(self.game).is_atari

    @property
    def done(self) -> int:
        """Steps that the checkpoints of the run hold."""
        try:
            sessions = read_sessions(self.out / "run.json")
        except FileNotFoundError:
            return 0
        return max(int(session["to_step"]) for session in sessions)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do; a run by other settings is refused."""
        if not self.done:
            return False
        config = parse([*self.words, "--out", str(self.out), "--resume"])[0]
        per_update = config.settings.num_envs * config.settings.rollout_length
        return self.done >= self.steps // per_update * per_update


def cells(
    study: Study,
    preset: Preset,
    out: Path,
    *,
    games: Iterable[str] = (),
    variants: Iterable[str] = (),
    seeds: Iterable[int] = (),
    steps: int | None = None,
) -> list[Cell]:
    """The runs of a preset, or some of them, the most informative first."""
    games = tuple(games) or tuple(preset.steps)
    variants = tuple(variants) or tuple(study.variants)
    seeds = tuple(seeds) or tuple(range(preset.seeds))
    groups = [seeds] if preset.together else [(seed,) for seed in seeds]
    found = []
    for group, game, name in itertools.product(groups, games, variants):
        whole = preset.steps[game] if steps is None else steps
        length = preset.length(game) if steps is None else steps
        variant = study.variants[name]
        words = f"--game {game} --steps {whole} {preset.words} {variant.words} "
        words += f"{variant.by_game.get(game, '')} --seeds {' '.join(map(str, group))} "
        words += f"--report-every {max(1, length // BINS)} "
        words += f"--until {length}" if length < whole else ""
        place = out / game / name / ("" if preset.together else str(group[0]))
        found.append(Cell(game, name, group, length, tuple(shlex.split(words)), place))
    return found


def carry_out(todo: Sequence[Cell]) -> int:
    """Runs what is not finished; returns 0, or the status of the run that was interrupted."""
    for i, cell in enumerate(todo, start=1):
        if cell.finished:
            continue
        print(f"\n[{i}/{len(todo)}] {cell.game} {cell.variant}, seeds {ranges(cell.seeds)}")
        words = [*cell.words, "--out", str(cell.out), "--resume"]
        try:
            status = train.train(*parse(words))
        except InUseError:
            print(f"{cell.out}: another process is running it")
            continue
        if status:
            return status
        # Compiled programs belong to the emulators of their run.
        jax.clear_caches()
    return 0


def ranges(seeds: Sequence[int]) -> str:
    """Consecutive seeds by the first and the last."""
    whole = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]}–{seeds[-1]}" if whole else " ".join(map(str, seeds))
