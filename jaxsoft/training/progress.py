"""What a run shows while it is running: one line on a terminal."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterable
from datetime import timedelta
from typing import Self

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from jaxsoft.training.logs import Row

__all__ = ["Progress"]

_SHOWN = {"entropy": "entropy", "kl": "KL", "td_error": "TD error"}
_BAR = (8, 40)


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
        # Compilation comes before the first report, so that speed is told from the second on.
        self._reports: deque[tuple[float, int]] = deque(maxlen=20)
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
        now = time.monotonic()
        self._reports.append((now, step))
        then, before = self._reports[0]
        self._step = step
        if len(self._reports) > 1:
            self._rate = (step - before) / max(now - then, 1e-9)
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
