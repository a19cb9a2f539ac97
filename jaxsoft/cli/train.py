"""Trains one algorithm on one game: `python -m experiments.train --help`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxsoft import environments
from jaxsoft.cli import assembly, evaluate
from jaxsoft.cli import plot as plotting
from jaxsoft.cli.config import Config, ConfigError, Runtime, complete, to_json
from jaxsoft.cli.options import parse, stop_with
from jaxsoft.training.checkpoints import Checkpoints
from jaxsoft.training.launch import keep_pages
from jaxsoft.training.logs import CsvLog, Progress, TensorBoardLog, writing
from jaxsoft.training.loop import Report, TrainState, initial
from jaxsoft.training.provenance import Sessions, write_json

VERSION = 1
"""Of what a checkpoint holds; another one is refused."""

CALL_SECONDS = 0.5
"""What a call of the compiled program should take: short enough to heed a signal at once."""


class RunError(RuntimeError):
    """A run that cannot go on, with what to do about it."""


class _Signals:
    """SIGINT and SIGTERM ask the run to save and leave; a second one leaves at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: object) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number


def train(config: Config, runtime: Runtime) -> int:
    """Carries out a run in `runtime.out`; returns 0, or 128 + the signal that ended it."""
    about = environments.about(config.game)
    config = complete(config, images=len(about.observation_shape) == 3, atari=about.is_atari)
    if runtime.video is not None:
        evaluate.check_video(config, about, runtime.video)
    last = _last(config, runtime)
    out = runtime.out
    settings = to_json(config)
    resumed = _prepare(out, runtime.resume)
    with (
        _Signals() as signals,
        Checkpoints(
            out / "checkpoints", keep=runtime.keep, config=settings, version=VERSION
        ) as checkpoints,
    ):
        loop = assembly.loop(config, about, driver=runtime.driver, threads=runtime.env_threads)
        state = initial(loop.learner, config.seeds)
        begun = 0
        if resumed and checkpoints.latest() is not None:
            begun, held = evaluate.restore(checkpoints, state)
            state = _join(state, held)
        else:
            write_json(out / "config.json", settings | {"version": VERSION})
        resume_step = begun if resumed else None
        sessions = Sessions(out / "run.json", begun)
        done = begun // loop.steps_per_update
        last = max(done, last)
        total = last * loop.steps_per_update
        with (
            CsvLog(out / "metrics.csv", resume_step=resume_step) as csv,
            TensorBoardLog(out / "tensorboard", resume_step=resume_step) as board,
            Progress(f"{config.game} {config.algorithm}", total, start=begun) as progress,
        ):
            run = _Run(config, runtime, loop, state, (csv, board), progress, checkpoints, sessions)
            run.go_on(done, last, signals)
    _draw(config, out, about.is_atari)
    if signals.received is not None:
        print(f"Saved in {out}; go on with: python -m experiments.train --resume --out {out}")
        return 128 + signals.received
    if runtime.video is not None:
        evaluate.record(out, runtime.video)
    return 0


class _Run:
    """A run's loop: calls of the compiled program, and between them reports and checkpoints."""

    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        loop: Any,
        state: TrainState,
        logs: Sequence[Any],
        progress: Progress,
        checkpoints: Checkpoints,
        sessions: Sessions,
    ) -> None:
        self.config, self.runtime, self.loop, self.state = config, runtime, loop, state
        self.logs, self.progress = logs, progress
        self.checkpoints, self.sessions = checkpoints, sessions
        self.reports: list[Report] = []
        self.reported_at = time.monotonic()
        self.reported = 0

    def go_on(self, done: int, total: int, signals: _Signals) -> None:
        """From an update to another."""
        every = self.runtime.report_every or max(1, self.config.steps // 100)
        period = max(1, every // self.loop.steps_per_update)
        kept = self.runtime.checkpoint_steps
        apart = max(1, kept // self.loop.steps_per_update) if kept else total
        if kept and done == 0:
            self.save(0)
        actors = self.loop.start()
        self.reported, saved_at, size = done, time.monotonic(), 1
        while done < total and signals.received is None:
            until = min(total, *((done // x + 1) * x for x in (period, apart)))
            count = min(size, until - done)
            start = time.monotonic()
            self.state, actors, report = self.loop.run(self.state, actors, count)
            self.reports.append(jax.block_until_ready(report))
            took = time.monotonic() - start
            done += count
            # By doubling, since the first call compiles.
            size = max(1, min(2 * size, int(size * CALL_SECONDS / took)))
            due = time.monotonic() - saved_at >= self.runtime.checkpoint_seconds
            due |= done % apart == 0
            if done == until or due:
                self.report(done)
            if due:
                self.save(done)
                saved_at = time.monotonic()
        if self.reports:
            self.report(done)
        self.save(done)
        self.checkpoints.wait()

    def save(self, done: int) -> None:
        """A checkpoint, written while the run goes on."""
        step = done * self.loop.steps_per_update
        self.checkpoints.save(step, _held(self.state, self.runtime.save_replay))
        self.sessions.update(step)

    def report(self, done: int) -> None:
        """A row for each seed; the one time that metrics leave the device."""
        reports = jax.device_get(self.reports)
        self.reports = []
        total: Report = jax.tree.map(lambda *x: np.sum(np.stack(x), axis=0), *reports)
        now = time.monotonic()
        steps = (done - self.reported) * self.loop.steps_per_update
        rate = steps / max(now - self.reported_at, 1e-9)
        self.reported_at, self.reported = now, done
        rows = []
        for i, seed in enumerate(self.config.seeds):
            games = total.finished.games[i]
            updates = total.metrics["updates"][i]
            row = {
                "step": done * self.loop.steps_per_update,
                "seed": seed,
                "episode_return": total.finished.score[i] / games if games else float("nan"),
                "episodes": int(games),
                "steps_per_second": rate,
                "episode_length": total.finished.length[i] / games if games else float("nan"),
            }
            for name, x in total.metrics.items():
                if name != "updates":
                    row[name] = float(x[i] / updates) if updates else float("nan")
            rows.append({name: x if isinstance(x, int) else float(x) for name, x in row.items()})
            for log in self.logs:
                log.write(rows[-1])
        self.progress.update(done * self.loop.steps_per_update, rows)
        skipped = total.metrics["skipped"]
        if self.runtime.on_nan == "stop" and np.any(skipped > 0):
            seed = self.config.seeds[int(np.argmax(skipped))]
            raise RunError(
                f"seed {seed} had {int(np.max(skipped))} gradients that were not finite before "
                f"step {done * self.loop.steps_per_update:_}. None was applied, and the "
                "checkpoints are of before. Lower --learning-rate or --max-gradient-norm, or go "
                "on without such updates by --resume --on-nan skip."
            )


def _last(config: Config, runtime: Runtime) -> int:
    """The update that the run ends with."""
    until = runtime.until or config.steps
    per_update = config.num_envs * config.rollout_length
    if until < per_update:
        raise ConfigError(
            f"--until {until:_} is less than one update, {config.num_envs} environments x "
            f"{config.rollout_length} steps. Give at least {per_update}."
        )
    return min(until // per_update, assembly.updates(config))


def _held(state: TrainState, save_replay: bool) -> TrainState:
    """What a checkpoint holds of the state."""
    return state if save_replay else evaluate.without_replay(state)


def _join(state: TrainState, held: TrainState) -> TrainState:
    """The state of a checkpoint; a replay that it does not hold begins empty."""
    if hasattr(held.learner, "replay") and held.learner.replay is None:
        return held._replace(learner=held.learner._replace(replay=state.learner.replay))
    return held


def _prepare(out: Path, resume: bool) -> bool:
    """Whether there is a run to go on with; one that is not to be is not touched."""
    there = (out / "config.json").exists()
    if there and not resume:
        raise ConfigError(
            f"--out {out} holds a run already. Go on with it by --resume, or name another folder."
        )
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    return there


def _draw(config: Config, out: Path, atari: bool) -> None:
    plotting.learning_curve(
        {config.algorithm: out / "metrics.csv"},
        out / "curve.png",
        title=config.game,
        frames_per_step=4 if atari else 1,
    )


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    try:
        return train(*parse(words))
    except (ConfigError, RunError, OSError, ValueError) as error:
        return stop_with(error)


if __name__ == "__main__":
    keep_pages()
    sys.exit(main())
