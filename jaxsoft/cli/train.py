"""Trains one algorithm on one game: `jaxsoft train --help`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxsoft.cli import assembly, evaluate, memory, plot
from jaxsoft.cli.config import Config, ConfigError, Runtime, look_up, to_json
from jaxsoft.cli.options import called, parse, stop_with
from jaxsoft.training.checkpoints import Checkpoints
from jaxsoft.training.lock import Lock
from jaxsoft.training.logs import CsvLog, TensorBoardLog, writing
from jaxsoft.training.loop import Report, TrainState, initial
from jaxsoft.training.progress import Progress
from jaxsoft.training.provenance import Sessions, write_json

__all__ = ["Folder", "RunError", "main", "train"]

VERSION = 3
"""Of what a checkpoint holds; another one is refused."""

CALL_SECONDS = 0.5
"""What a call of the compiled program should take: short enough to answer a signal at once."""


class RunError(RuntimeError):
    """A run that cannot continue, with what to do about it."""


class _Signals:
    """SIGINT and SIGTERM ask the run to save and leave; a second one leaves at once.

    Only a process's main thread may handle signals. In another one they are left as they are.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        main = threading.current_thread() is threading.main_thread()
        for number in (signal.SIGINT, signal.SIGTERM) if main else ():
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: object) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number


class Folder:
    """A folder of one writer, which is as it was before if that fails before it has `begun`."""

    def __init__(self, path: Path) -> None:
        """Makes it and locks it."""
        self.begun = False
        self._path = path
        self._made = [each for each in (path, *path.parents) if not each.exists()]
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = Lock(path)
        except OSError:
            self._unmake()
            raise
        self._there = self._found()

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        failed = error is not None and not self.begun
        for new in self._found() - self._there if failed else ():
            if new.is_dir():
                shutil.rmtree(new, ignore_errors=True)
            else:
                new.unlink(missing_ok=True)
        self._lock.release()
        if failed:
            self._unmake()

    def _found(self) -> set[Path]:
        """All but the lock, which goes with its release."""
        found = {*self._path.glob("*"), *self._path.glob("tensorboard/*")}
        return found - {self._path / "lock"}

    def _unmake(self) -> None:
        with contextlib.suppress(OSError):
            for new in self._made:
                new.rmdir()  # and not what another run has begun to write to


def train(config: Config, runtime: Runtime) -> int:
    """Carries out a run in `runtime.out`; returns 0, or 128 + the signal that ended it."""
    if runtime.video is not None:
        evaluate.check_video(config, runtime.video)
    last = _last(config, runtime)
    memory.check(config, save_replay=runtime.save_replay)
    with memory.explained(config), Folder(runtime.out) as folder:
        return _train(config, runtime, last, folder)


def _train(config: Config, runtime: Runtime, last: int, folder: Folder) -> int:
    """The run, once the folder is its own."""
    out = runtime.out
    settings = to_json(config)
    resumed = _resumes(out, runtime.resume)
    with _Signals() as signals:
        loop = assembly.loop(config, driver=runtime.driver, threads=runtime.env_threads)
        state = initial(loop.agent, config.seeds)
        with Checkpoints(
            out / "checkpoints", keep=runtime.keep, config=settings, version=VERSION
        ) as checkpoints:
            begun = 0
            if resumed and checkpoints.latest() is not None:
                begun, held = evaluate.restore(checkpoints, loop.agent, state)
                state = _joined(held, state)
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
                run = _Run(
                    config, runtime, loop, state, (csv, board), progress, checkpoints, sessions
                )
                run.advance(done, last, signals, folder)
    _draw(config, out)
    if signals.received is not None:
        print(f"Saved in {out}; continue with: {called()} train --resume --out {out}")
        return 128 + signals.received
    if runtime.video is not None:
        evaluate.record(evaluate.load(out), runtime.video)
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

    def advance(self, done: int, total: int, signals: _Signals, folder: Folder) -> None:
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
            folder.begun = True
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
        """A checkpoint, written while the run continues."""
        step = done * self.loop.steps_per_update
        held = self.state
        if not self.runtime.save_replay:
            held = evaluate.forgotten(self.loop.agent, held)
        self.checkpoints.save(step, held)
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
            updates = total.metrics.updates[i]
            row = {
                "step": done * self.loop.steps_per_update,
                "seed": seed,
                "episode_return": total.finished.score[i] / games if games else float("nan"),
                "episodes": int(games),
                "steps_per_second": rate,
                "episode_length": total.finished.length[i] / games if games else float("nan"),
            }
            for name, x in total.metrics.sums.items():
                row[name] = float(x[i] / updates) if updates else float("nan")
            rows.append({name: x if isinstance(x, int) else float(x) for name, x in row.items()})
            for log in self.logs:
                log.write(rows[-1])
        self.progress.update(done * self.loop.steps_per_update, rows)
        skipped = total.metrics.sums["skipped"]
        if self.runtime.on_nan == "stop" and np.any(skipped > 0):
            seed = self.config.seeds[int(np.argmax(skipped))]
            raise RunError(
                f"seed {seed} had {int(np.max(skipped))} gradients that were not finite before "
                f"step {done * self.loop.steps_per_update:_}. None was applied, and the "
                "checkpoints are of before. Lower --learning-rate or --max-gradient-norm, or "
                "continue without such updates by --resume --on-nan skip."
            )


def _last(config: Config, runtime: Runtime) -> int:
    """The update that the run ends with."""
    settings = config.settings
    until = runtime.until or config.steps
    per_update = settings.num_envs * settings.rollout_length
    if until < per_update:
        raise ConfigError(
            f"--until {until:_} is less than one update, --num-envs {settings.num_envs} x "
            f"--rollout-length {settings.rollout_length}. Give at least {per_update}."
        )
    return min(until // per_update, config.updates)


def _joined(held: TrainState, fresh: TrainState) -> TrainState:
    """The state of a checkpoint; what it does not hold, such as a replay, begins fresh."""
    return jax.tree.map(  # type: ignore[no-any-return]
        lambda kept, new: new if kept is None else kept, held, fresh, is_leaf=lambda x: x is None
    )


def _resumes(out: Path, resume: bool) -> bool:
    """Whether there is a run to resume; one that is not to be resumed is not touched."""
    there = (out / "config.json").exists()
    if there and not resume:
        raise ConfigError(
            f"--out {out} holds a run already. Continue it by --resume, or name another folder."
        )
    return there


def _draw(config: Config, out: Path) -> None:
    plot.learning_curve(
        {config.algorithm: out / "metrics.csv"},
        out / "curve.png",
        title=config.game,
        frames_per_step=4 if look_up(config.game).is_atari else 1,
    )


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    try:
        return train(*parse(words))
    except (ConfigError, RunError, ImportError, OSError, ValueError) as error:
        return stop_with(error)
