"""What a run reports, and where it goes: metrics.csv, TensorBoard, a line on the terminal.

A row is one seed's report, a dict of plain numbers: `step`, `seed`, `episode_return` (mean over
the games finished since the seed's last row, NaN if none was), `episodes` (how many those were),
`steps_per_second`, then whatever the learner reports. A log takes rows, one `write` each.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import math
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import numpy as np
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

__all__ = ["CsvLog", "Progress", "Row", "TensorBoardLog", "read_csv", "writing"]

Row = Mapping[str, float | int]

_FIRST = ("step", "seed", "episode_return", "episodes", "steps_per_second")
_SHOWN = {"entropy": "entropy", "kl": "KL", "value_error": "V error", "td_error": "TD error"}
_BAR = (8, 40)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes an `OSError` inside name the file and say how to mend it."""
    try:
        yield
    except OSError as error:
        mend = "Choose a directory that can be written to"
        if error.errno in _FULL:
            mend = "Free some space, or move the run to another disk, and resume it"
        raise OSError(error.errno, f"{error.strerror or error}. {mend}", str(path)) from error


class CsvLog:
    """Rows in a CSV file that is whole whenever the process dies; NaN is an empty cell.

    The columns are those of the first row, `step`, `seed`, `episode_return`, `episodes` and
    `steps_per_second` first; later rows may lack some, but not bring others.

    Args:
      path: of the file; a fresh run's must not exist, or be empty.
      columns: to fix them before the first row.
      resume_step: to go on with a file, less its rows of later steps.
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
                f"(NaN where there is no number), or name them: CsvLog(path, columns)."
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


def _lines(path: Path) -> list[list[str]]:
    """The cells of every line; what follows the last line's end was torn by a kill."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line.split(",") for line in text.split("\n")[:-1]]
    for number, line in enumerate(lines[1:], start=2):
        try:
            _ = [float(cell or 0) for _, cell in zip(lines[0], line, strict=True)]
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: given {line}; expected {len(lines[0])} numbers, as many "
                f"as in the first line. Delete the line."
            ) from None
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


def read_csv(path: str | Path) -> dict[str, np.ndarray]:
    """The columns of a metrics.csv as float64, an empty cell being NaN.

    The file may be one that is being written, or whose process was killed as it wrote.
    """
    columns, *rows = _lines(Path(path)) or [[]]
    values = [[float(cell or "nan") for cell in row] for row in rows]
    return dict(zip(columns, np.reshape(values, [len(rows), len(columns)]).T, strict=True))


class TensorBoardLog:
    """Rows as TensorBoard's scalars, `seed_0/episode_return` and so on; NaN is left out.

    Args:
      directory: of the event files, made if need be.
      resume_step: to go on with a run: TensorBoard then hides what was logged of later steps.
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


class Progress:
    """A live line on a terminal, which leaves out what it has no room for; else plain lines.

    The return is the mean of the seeds' last known ones, ± their standard deviation.

    Args:
      label: game and algorithm.
      total: `step` at the run's end.
      start: `step` at which a resumed run begins.
      console: to write to, else standard output.
      every: seconds between plain lines, at least.
    """

    def __init__(
        self,
        label: str,
        total: int,
        *,
        start: int = 0,
        console: Console | None = None,
        every: float = 10.0,
    ) -> None:
        """Draws nothing yet."""
        # By itself Rich takes a file for a terminal where FORCE_COLOR is set, as CI likes to.
        self._console = console or Console(force_terminal=sys.stdout.isatty())
        live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = Live(self, console=self._console, refresh_per_second=2) if live else None
        self._label, self._total, self._step, self._every = label, total, start, every
        self._began, self._rate = time.monotonic(), math.nan
        self._printed: tuple[float, int | None] = (-math.inf, None)
        self._reports = deque([(self._began, start)], maxlen=20)
        self._returns: dict[float, float] = {}
        self._figures: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
        elif self._printed[1] != self._step:
            self._print()

    def update(self, step: int, rows: Iterable[Row]) -> None:
        """Shows a report: the steps done, and one row per seed."""
        rows = list(rows)
        if len(self._reports) == 2 and self._reports[0][0] == self._began:
            self._reports.popleft()  # compilation came before the first report
        now = time.monotonic()
        self._reports.append((now, step))
        then, before = self._reports[0]
        self._step, self._rate = step, (step - before) / max(now - then, 1e-9)
        returns = {row["seed"]: row.get("episode_return", math.nan) for row in rows}
        self._returns |= {seed: x for seed, x in returns.items() if math.isfinite(x)}
        figures = {}
        if known := list(self._returns.values()):
            mean = statistics.fmean(known)
            figures["return"] = f"return {_number(mean)}"
            if len(known) > 1:
                figures["return"] += f" ± {_number(statistics.stdev(known), like=mean)}"
        for column, name in _SHOWN.items():
            if given := [row[column] for row in rows if column in row]:
                finite = [x for x in given if math.isfinite(x)]
                figures[column] = f"{name} {_number(statistics.fmean(finite)) if finite else '–'}"
        self._figures = figures  # whole, since another thread draws it
        if self._live:
            self._live.refresh()
        elif now - self._printed[0] >= self._every:
            self._print()

    def message(self, text: str) -> None:
        """Prints a line, above the live one if there is one."""
        self._console.print(Text(text), soft_wrap=self._live is None)

    def _print(self) -> None:
        self._printed = (time.monotonic(), self._step)
        self.message("  ".join(self._fields().values()))

    def _fields(self) -> dict[str, str]:
        """What there is to show, from left to right."""
        now, left = time.monotonic(), self._total - self._step
        clock = f"{_duration(now - self._began)} so far"
        if left <= 0:
            clock = f"took {_duration(now - self._began)}"
        elif self._rate > 0:
            seconds = left / self._rate - (now - self._reports[-1][0])
            clock = f"{_duration(max(seconds, 0))} left"
        fields = {"label": self._label, "steps": f"{_count(self._step)}/{_count(self._total)}"}
        if self._rate > 0:
            fields["rate"] = f"{self._rate:,.0f} steps/s"
        return fields | {"clock": clock} | self._figures

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fields = self._fields()
        # Whatever it is, a label leaves room for the figures.
        fields["label"] = self._label[: max(options.max_width // 3, 12)].rstrip()
        for name in ("", "unit", *reversed(_SHOWN), "rate", "clock", "return"):
            fields.pop(name, None)
            if name == "unit" and "rate" in fields:
                fields["rate"] = fields["rate"].replace(" steps", "")
            width = options.max_width - sum(cell_len(text) + 2 for text in fields.values())
            if width >= _BAR[0]:
                break
        width = min(width, _BAR[1]) if width >= _BAR[0] else 0
        done = min(round(width * self._step / self._total), width)
        line = Text(no_wrap=True, overflow="crop", end="")
        line.append(fields.pop("label"), "bold").append("  ").append("━" * done, "cyan").append(
            "─" * (width - done), "dim"
        )
        for name, text in fields.items():
            line.append("  ").append(text, "bold" if name == "return" else "")
        yield line


def _count(n: int) -> str:
    return f"{n:,}" if n < 1_000_000 else f"{n / 1e6:,.1f}".removesuffix(".0") + "M"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))


def _number(x: float, like: float | None = None) -> str:
    """Three digits or so; with as many decimals as `like`, if given."""
    size = abs(x if like is None else like)
    if like is None and 0 < size < 1e-3:
        return f"{x:.0e}"
    return f"{x:,.{sum(size < bound for bound in (1, 10, 100))}f}"
