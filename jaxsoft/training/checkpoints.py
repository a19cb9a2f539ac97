"""Checkpoints of a training state, written in the background by Orbax.

A checkpoint is the directory DIR/STEP. It comes into being by a rename once everything is in it,
and goes by a rename before anything of it is deleted, so what has a plain number for its name is
whole at whatever moment a process is killed. DIR/STEP/about/metadata holds as JSON what the
arrays are and which configuration they come from, DIR/STEP/about/checksums those of the files.
"""

from __future__ import annotations

import errno
import json
import logging
import operator
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp  # type: ignore[import-untyped]

from jaxsoft import _checks
from jaxsoft.training import _about, _checksums, _leaves
from jaxsoft.training._about import About, saved_steps
from jaxsoft.training.lock import Lock

__all__ = ["Checkpoints", "read_config", "saved_steps"]

PyTree = Any

# How many bytes of an array are compressed, written and read as one, beside others.
_CHUNK = 1 << 26
# Seconds. Orbax's 600 are too few for gigabytes on a slow disk.
_TIMEOUT = 24 * 3600
# What TensorStore only quotes, in a ValueError.
_SYSTEM_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)

# Orbax logs every step of a save, and the tracebacks of errors that are raised here.
logging.getLogger("absl").addFilter(
    lambda record: record.levelno > logging.ERROR or "orbax" not in record.pathname
)


class Checkpoints:
    """The checkpoints of one run in one directory; also a context manager.

    One process at a time writes to a directory, held by a `Lock` until `close`; others may read it
    with `write=False`.

    A run continues from the checkpoint that it last saved or restored. The first save after an
    earlier step was restored deletes the later ones, before it begins. Where none was restored,
    nothing is saved beside the checkpoints of another run.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int = 3,
        config: Mapping[str, Any],
        version: int = 1,
        write: bool = True,
    ) -> None:
        """Opens the directory; with `write`, makes it and deletes what a kill left unfinished.

        Args:
          directory: of this run alone.
          keep: how many checkpoints stay, the latest; while one is written, there is one more.
          config: what the run was made with, as JSON can hold it, stored with each checkpoint.
          version: of what a state means, stored with each checkpoint.
          write: whether `save` may be called.

        Raises:
          OSError: the directory cannot be made or written to, or another process does
            (`lock.InUseError`).
          ValueError: with `write`, its newest checkpoint is of another configuration or version.
        """
        if keep < 1:
            raise _checks.fail("Checkpoints", f"`keep` = {keep}", "keep >= 1", "Keep at least one.")
        try:
            self._config = json.loads(json.dumps(dict(config)))
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"jaxsoft.Checkpoints: given a `config` that JSON cannot hold ({error}); expected "
                "numbers, strings, booleans, None, and lists and mappings of them. Convert it."
            ) from error
        self._directory = Path(directory).absolute()
        self._keep, self._version, self._write = keep, version, write
        self._last: int | None = None
        self._writing: int | None = None
        self._lock: Lock | None = None
        if write:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                if not os.access(self._directory, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"jaxsoft.Checkpoints: given {self._directory} ({error.strerror}); expected a "
                    "directory to write to, or where one can be made. Choose another --out.",
                ) from error
            self._lock = Lock(self._directory)
            try:
                self._tidy()
                latest = self.latest()
                if latest is not None:
                    self._check_settings(self._about(latest))
            except BaseException:
                self._lock.release()
                raise
        # Where Orbax cannot make its directories in the background, its threads wait for them for
        # minutes, and the process cannot end.
        options = ocp.AsyncOptions(timeout_secs=_TIMEOUT, create_directories_asynchronously=False)
        self._checkpointer = ocp.AsyncCheckpointer(
            _checksums.Handler(
                composite_options=ocp.CompositeOptions(async_options=options),
                about=ocp.JsonCheckpointHandler(),
                state=ocp.PyTreeCheckpointHandler(),
            ),
            async_options=options,
        )

    def save(self, step: int, state: PyTree) -> None:
        """Copies `state` into the host's memory, and writes it in the background.

        Once this returns, `state` may be donated. It first waits for the save before it. Of the
        step last saved or restored nothing is done.

        Args:
          step: not below the one last saved or restored.
          state: a tree of arrays, typed keys among them, and Python numbers.

        Raises:
          OSError: this save cannot begin, or the one before it failed. The checkpoints on disk
            are as they were, and a later save may succeed.
        """
        self.wait()
        step = operator.index(step)
        if step == self._last:
            return
        steps = saved_steps(self._directory)
        if not self._write or step < (self._last or 0) or (self._last is None and steps):
            before = "nothing" if self._last is None else f"step {self._last}"
            raise _checks.fail(
                "Checkpoints.save",
                f"step {step}, having last saved or restored {before}, for {self._directory} with "
                f"the checkpoints {steps}, open for writing: {self._write}",
                "a later step, in a directory that has none or that one was restored from",
                "Restore the step to continue from, or choose another --out.",
            )
        leaves, _ = _leaves.flatten(state)
        about = About(
            version=self._version,
            config=self._config,
            leaves={name: _leaves.describe(name, leaf) for name, leaf in leaves.items()},
            keys={
                name: str(jax.random.key_impl(x)) for name, x in leaves.items() if _leaves.is_key(x)
            },
        )
        # Orbax takes neither an array of no elements nor a tree of no arrays.
        arrays = {name: _leaves.owned_copy(leaf) for name, leaf in leaves.items() if np.size(leaf)}
        arrays["step"] = np.asarray(step)
        # TensorStore continues its other writes after one failed; they may outlive its tidying.
        self._tidy()
        with self._storing(step):
            for later in steps:
                if self._last is not None and later > self._last:
                    self._remove(later)
            self._checkpointer.save(
                self._directory / str(step),
                args=_checksums.Items(
                    about=ocp.args.JsonSave(about._asdict()),
                    state=ocp.args.PyTreeSave(
                        arrays,
                        save_args={name: ocp.SaveArgs(chunk_byte_size=_CHUNK) for name in arrays},
                    ),
                ),
            )
        self._writing = step

    def wait(self) -> None:
        """Returns once everything saved is on disk.

        Raises:
          OSError: it could not be written. The checkpoints before it are as they were.
        """
        if self._writing is None:
            return
        with self._storing(self._writing):
            self._checkpointer.wait_until_finished()
        self._last, self._writing = self._writing, None
        self._tidy()

    def latest(self) -> int | None:
        """The step of the newest finished checkpoint, `None` if there is none."""
        return max(saved_steps(self._directory), default=None)

    def restore(self, like: PyTree, step: int | None = None) -> tuple[int, PyTree]:
        """Reads a checkpoint, bit for bit what was saved.

        Args:
          like: what the state is like: arrays, `jax.ShapeDtypeStruct`s, Python numbers. Arrays go
            where those of `like` were explicitly put, or else to the default device, wherever
            they were when they were saved.
          step: the newest one's if `None`.

        Returns:
          (step, state).

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: it is of other settings or of another structure.
          OSError: it cannot be read, or is not what was saved.
        """
        self.wait()
        steps = saved_steps(self._directory)
        step = max(steps, default=None) if step is None else operator.index(step)
        if step is None or step not in steps:
            wanted = "the newest checkpoint" if step is None else f"step {step}"
            raise FileNotFoundError(
                f"jaxsoft.Checkpoints.restore: given {self._directory} to read {wanted} from; "
                f"expected one of the steps there: {steps}. Check the directory and the step."
            )
        about = self._about(step)
        self._check_settings(about)
        leaves, structure = _leaves.flatten(like)
        given = {name: _leaves.describe(name, leaf) for name, leaf in leaves.items()}
        if given != about.leaves:
            raise _checks.fail(
                "Checkpoints.restore",
                f"a `like` that differs from {self._directory / str(step)} in:"
                + _about.differences(given, about.leaves),
                "the structure that was saved",
                "Use the networks and settings of that run, or choose another --out.",
            )
        names = [name for name, leaf in leaves.items() if 0 not in np.shape(leaf)] + ["step"]
        as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
        try:
            _checksums.check(self._directory / str(step))
            arrays = self._checkpointer.restore(
                self._directory / str(step),
                args=_checksums.Items(
                    state=ocp.args.PyTreeRestore(
                        item=dict.fromkeys(names, 0),
                        restore_args=dict.fromkeys(names, as_numpy),
                    )
                ),
            )["state"]
        except Exception as error:
            raise _about.unreadable(self._directory, step, error, write=self._write) from error
        self._last = step
        # Popped, so that a large state is not in memory twice.
        return step, structure.unflatten(
            _leaves.as_leaf(leaf, arrays.pop(name, None), about.keys.get(name))
            for name, leaf in leaves.items()
        )

    def close(self) -> None:
        """Waits for what was saved, then ends the background work."""
        self._write = False
        try:
            self.wait()
        finally:
            self._checkpointer.close()
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _about(self, step: int) -> About:
        return _about.read(self._directory, step, write=self._write)

    def _check_settings(self, about: About) -> None:
        given = _about.flat({"version": self._version, "config": self._config})
        stored = _about.flat({"version": about.version, "config": about.config})
        if given != stored:
            raise _checks.fail(
                "Checkpoints",
                f"settings that differ from those of {self._directory} in:"
                + _about.differences(given, stored),
                "the settings its checkpoints were made with",
                "Use the same settings (a run's are in config.json), or choose another --out.",
            )

    @contextmanager
    def _storing(self, step: int) -> Iterator[None]:
        """Makes an `OSError` of any failure, and cleans up after it."""
        try:
            yield
        except Exception as error:
            self._writing = None
            self._tidy()
            number = getattr(error, "errno", None) or next(
                (n for n in _SYSTEM_ERRORS if os.strerror(n) in str(error)), errno.EIO
            )
            raise OSError(
                number,
                f"jaxsoft.Checkpoints: given step {step} to save in {self._directory}; expected "
                f"to be able to write it, but: {error}. The checkpoints there are as they were. "
                f"Mend this ({os.strerror(number)}), or choose another --out.",
            ) from error

    def _remove(self, step: int) -> None:
        removed = self._directory / f"{step}.removed"
        (self._directory / str(step)).rename(removed)
        shutil.rmtree(removed, ignore_errors=True)

    def _tidy(self) -> None:
        """Deletes what is unfinished, or half deleted, or not kept. Not to be called in a save."""
        for path in self._directory.iterdir():
            if re.match(r"[0-9]+\.", path.name):
                shutil.rmtree(path, ignore_errors=True)
        for step in saved_steps(self._directory)[: -self._keep]:
            self._remove(step)


def read_config(directory: str | os.PathLike[str]) -> tuple[dict[str, Any], int]:
    """The (config, version) that the newest checkpoint in a directory was saved with."""
    path = Path(directory).absolute()
    steps = saved_steps(path)
    if not steps:
        raise FileNotFoundError(
            f"jaxsoft.read_config: given {path}, where there is no checkpoint; expected a "
            "directory that a run saved checkpoints in. Check the path."
        )
    about = _about.read(path, steps[-1], write=False)
    return about.config, about.version
