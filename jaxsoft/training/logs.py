"""What a run reports, and where it is kept: metrics.csv and TensorBoard.

A row is one seed's report, a dict of plain numbers: `step`, `seed`, `episode_return` (mean over
the games finished since the seed's last row, NaN if none was), `episodes` (how many those were),
`steps_per_second`, then whatever the agent reports. A log takes rows, one `write` each.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

__all__ = ["CsvLog", "Row", "TensorBoardLog", "read_csv", "writing"]

Row = Mapping[str, float | int]

_FIRST = ("step", "seed", "episode_return", "episodes", "steps_per_second")
_COUNTS = {"step", "seed", "episodes"}
_NUMBER = re.compile(r"-?((0|[1-9][0-9]*)(\.[0-9]+)?(e[-+]?[0-9]+)?|inf|nan)|")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes an `OSError` inside name the file and say how to fix it."""
    try:
        yield
    except OSError as error:
        fix = "Choose a directory that can be written to"
        if error.errno in _FULL:
            fix = "Free some space, or move the run to another disk, and resume it"
        raise OSError(error.errno, f"{error.strerror or error}. {fix}", str(path)) from error


class CsvLog:
    """Rows in a CSV file that is whole whenever the process dies; NaN is an empty cell.

    The columns are those of the first row, `step`, `seed`, `episode_return`, `episodes` and
    `steps_per_second` first; later rows may lack some, but not bring others.

    Args:
      path: of the file; a fresh run's must not exist, or be empty.
      columns: to fix them before the first row.
      resume_step: to continue a file, less its rows of later steps.
    """

    def __init__(
        self, path: str | Path, columns: Iterable[str] = (), *, resume_step: int | None = None
    ) -> None:
        """Opens the file."""
        self._path = path = Path(path)
        self._columns: list[str] = []
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            written = path.exists() and path.stat().st_size > 0
        if written and resume_step is None:
            raise FileExistsError(
                errno.EEXIST,
                "This run has been begun: resume it, or choose another directory",
                str(path),
            )
        if written and resume_step is not None:
            self._columns = _keep(path, resume_step)
        with writing(path):
            # Unbuffered: a line is handed over whole, and nothing is left to a later flush.
            self._file = path.open("ab", buffering=0)
        if new := [name for name in columns if name not in self._columns]:
            self._fix(new)

    def write(self, row: Row) -> None:
        """Appends a row."""
        if lacking := [name for name in _FIRST[:2] if name not in row]:
            raise ValueError(
                f"{self._path}: given a row without {lacking}; expected `step` and `seed` in every "
                f"row. Add them."
            )
        if new := [name for name in row if name not in self._columns]:
            self._fix(new)
        self._append([_cell(name, row.get(name, math.nan)) for name in self._columns])

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fix(self, names: list[str]) -> None:
        if self._columns:
            raise ValueError(
                f"{self._path}: given the unknown columns {names}; expected only "
                f"{self._columns}, which the first row fixed. Let the first row have every column "
                f"(NaN where there is no number), or name them: CsvLog(path, columns). Of a run "
                f"that is resumed, restore the first line."
            )
        self._columns = [*_FIRST, *(name for name in names if name not in _FIRST)]
        self._append(self._columns)

    def _append(self, cells: list[str]) -> None:
        line = memoryview((",".join(cells) + "\n").encode())
        whole = os.fstat(self._file.fileno()).st_size
        with writing(self._path):
            try:
                while line:
                    line = line[self._file.write(line) :]
            except OSError:
                os.truncate(self._file.fileno(), whole)
                raise


def _cell(name: str, value: float) -> str:
    text = "" if value != value else str(value)
    try:
        float(text or 0)
    except ValueError:
        raise TypeError(f"given `{name}` = {value!r}; expected a number: float({name}).") from None
    return text


def _number(cell: str) -> float:
    """Of a cell as `_cell` wrote it; Python itself reads 1_0 and 1e999 as well."""
    number = float(cell or "nan") if _NUMBER.fullmatch(cell) else math.nan
    if (math.isnan(number) and cell not in ("", "nan")) or (
        math.isinf(number) and "inf" not in cell
    ):
        raise ValueError(cell)
    return number


def _lines(path: Path) -> list[list[str]]:
    """The cells of every line; what follows the last line's end was torn by a kill."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line.split(",") for line in text.split("\n")[:-1]]
    columns = lines[0] if lines else [*_FIRST]
    if len({*columns, ""}) <= len(columns) or not {"step", "seed"} <= {*columns}:
        raise ValueError(
            f"{path}, line 1: given {columns}; expected the names of the columns, each once, and "
            "step and seed among them. Restore the line, or move the file away: a run that is "
            "resumed begins another."
        )
    for number, line in enumerate(lines[1:], start=2):
        try:
            row = dict(zip(columns, map(_number, line), strict=True))
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: given {line}; expected {len(columns)} numbers, as many "
                f"as line 1 has names. Delete line {number}, or restore line 1 if it is that one."
            ) from None
        for name in _COUNTS & row.keys():
            empty = name == "episodes" and math.isnan(row[name])
            if not (empty or (row[name] >= 0 and row[name].is_integer())):
                raise ValueError(
                    f"{path}, line {number}: given {name} = {row[name]}; expected a whole number "
                    "of at least 0. Correct the line, or delete it."
                )
    return lines


def _keep(path: Path, last_step: int) -> list[str]:
    """Drops the rows after `last_step`, at once or not at all; returns the columns."""
    columns, *rows = _lines(path) or [[]]
    kept = [columns, *(row for row in rows if float(row[columns.index("step")]) <= last_step)]
    new = path.with_name(path.name + ".new")
    with writing(new):
        new.write_text("".join(",".join(row) + "\n" for row in kept if row), encoding="utf-8")
        new.replace(path)
    return columns


def read_csv(path: str | Path, needed: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """The columns of a metrics.csv as float64, an empty cell being NaN.

    The file may be one that is being written, or whose process was killed as it wrote.

    Args:
      path: of the file.
      needed: columns that must be there, with at least one row, and with a finite number wherever
        `train` writes one; with `step` and `seed`, each seed's steps must increase.
    """
    needed = list(needed)
    columns, *rows = _lines(Path(path)) or [[]]
    values = [[_number(cell) for cell in row] for row in rows]
    table = dict(zip(columns, np.reshape(values, [len(rows), len(columns)]).T, strict=True))
    for name in needed:
        if name not in table or not rows:
            raise ValueError(
                f"{path}: given {len(rows)} rows of {columns}; expected a row at least, and the "
                f"column {name}. Restore the file from a copy."
            )
        gaps = ~np.isfinite(table[name])
        if name not in (*_COUNTS, "steps_per_second"):
            gaps &= table["episodes"] > 0
        if gaps.any():
            line = 2 + int(np.argmax(gaps))
            raise ValueError(
                f"{path}, line {line}: given {name} = {table[name][line - 2]}; expected a finite "
                "number. Correct the line, or delete it."
            )
    if {"step", "seed"} <= {*needed}:
        for seed in np.unique(table["seed"]):
            if (np.diff(table["step"][table["seed"] == seed]) <= 0).any():
                raise ValueError(
                    f"{path}: given steps of seed {seed:g} that do not increase from line to line; "
                    "expected each once. Correct or delete the lines."
                )
    return table


class TensorBoardLog:
    """Rows as TensorBoard's scalars, `seed_0/episode_return` and so on; NaN is left out.

    Args:
      directory: of the event files, made if need be.
      resume_step: to continue a run: TensorBoard then hides what was logged of later steps.
    """

    def __init__(self, directory: str | Path, resume_step: int | None = None) -> None:
        """Makes a file."""
        # The writer below SummaryWriter's queue and thread: they would hide a full disk from the
        # training loop, and block it once the queue is full.
        try:
            writer = importlib.import_module("tensorboardX.event_file_writer")
            proto = importlib.import_module("tensorboardX.proto.event_pb2")
        except ImportError as error:
            raise ImportError(
                "tensorboardX is not installed: pip install 'jaxsoft[train]', or log without it."
            ) from error
        self._event, self._directory = proto.Event, Path(directory)
        # tensorboardX names files by the second: one resumed at once would overwrite its own.
        suffix = f".{time.time_ns()}"
        with writing(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
            self._writer = writer.EventsWriter(str(self._directory / "events"), suffix)
        if resume_step is not None:
            start = proto.SessionLog(status=proto.SessionLog.START)
            self._write(proto.Event(step=resume_step + 1, session_log=start))

    def write(self, row: Row) -> None:
        """Writes a row's scalars."""
        event = self._event(step=int(row["step"]))
        for name, value in row.items():
            if name not in ("step", "seed") and not math.isnan(value):
                event.summary.value.add(tag=f"seed_{row['seed']:.0f}/{name}", simple_value=value)
        self._write(event)

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        with writing(self._directory):
            self._writer.write_event(event)
            self._writer.flush()
