"""The line that a run shows: what it says, and that it fits."""

import io
import math
import os
import pty
import re
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from jaxsoft.training import progress
from jaxsoft.training.progress import Progress

NAN = float("nan")


def row(step: int, seed: int = 0, **more: float) -> dict[str, float]:
    base = {"step": step, "seed": seed, "episode_return": NAN, "episodes": 0}
    return base | {"steps_per_second": 1e3} | more


def report(step: int, scale: float = 1.0, seeds: int = 3) -> list[dict[str, float]]:
    return [
        row(step, i, entropy=1.0, kl=0.0123, td_error=0.5) | {"episode_return": scale * (i + 1)}
        for i in range(seeds)
    ]


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def groups(pattern: str, line: str) -> tuple[str, ...]:
    found = re.search(pattern, line)
    assert found is not None
    return found.groups()


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1e3
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def drawn(width: int, clock: Clock, label: str = "Pong-v5 soft_q", scale: float = 1.0) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    shown = Progress(label, 10_000_000, console=console)
    for step in (1_000_000, 1_100_000):
        clock.now += 10
        shown.update(step, report(step, scale))
    console.file.seek(0)
    console.file.truncate()
    console.print(shown)
    return printed(console)


def test_a_wide_terminal_shows_everything(clock: Clock) -> None:
    line = drawn(150, clock)
    for text in (
        "Pong-v5 soft_q  ━━━",
        "  1.1M/10M  10,000 steps/s  0:14:50 left  return 2.00 ± 1.00  ",
        "entropy 1.00  KL 0.012  TD error 0.500",
    ):
        assert text in line


def test_less_important_figures_go_first(clock: Clock) -> None:
    words = ["TD error", "KL", "entropy", "/s", "left", "return", "1.1M/10M", "Pong"]
    before = set(words)
    for width in range(160, 19, -1):
        line = drawn(width, clock)
        shown = {word for word in words if word in line}
        assert shown <= before
        assert shown == set(words[len(words) - len(shown) :])
        before = shown
        assert line.count("━") + line.count("─") in range(8 if width >= 40 else 0, 41)
    assert drawn(40, clock, "long " * 20).startswith("long long lon  ━")
    assert {"/s", "left", "return"} <= {w for w in words if w in drawn(80, clock)}


@given(
    width=st.integers(20, 200),
    label=st.text("abc 汉_", min_size=1, max_size=90),
    scale=st.floats(-1e12, 1e12),
)
def test_no_line_is_wrapped(width: int, label: str, scale: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        line = drawn(width, Clock(patch), label, scale)
    assert "\n" not in line
    assert cell_len(line) <= width


def test_plain_lines_now_and_then(clock: Clock) -> None:
    console = Console(file=io.StringIO(), force_terminal=False, width=40)
    with Progress("Pong", 1000, console=console) as shown:
        shown.message("a [b]long[/b] message " + "x" * 60)
        for step in range(10, 1010, 10):
            clock.now += 0.5
            shown.update(step, report(step))
    lines = printed(console).splitlines()
    assert "\x1b" not in printed(console)
    assert lines[0] == "a [b]long[/b] message " + "x" * 60
    done = [groups(r"^Pong  ([\d,]+)/1,000", line)[0].replace(",", "") for line in lines[1:]]
    assert done == ["10", "210", "410", "610", "810", "1000"]
    assert lines[-1] == (
        "Pong  1,000/1,000  20 steps/s  took 0:00:50  return 2.00 ± 1.00  entropy 1.00  KL 0.012  "
        "TD error 0.500"
    )


def test_the_last_report_is_printed_once(clock: Clock) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with Progress("Pong", 10, console=console) as shown:
        clock.now += 1
        shown.update(10, report(10))
    assert printed(console).count("\n") == 1


def test_returns_are_the_last_known_and_losses_the_last(clock: Clock) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with Progress("Pong", 100, console=console, every=0) as shown:
        shown.update(1, [row(1, 0, episode_return=4.0), row(1, 1, kl=NAN)])
        shown.update(2, [row(2, 0), row(2, 1, episode_return=6.0, kl=0.5)])
        shown.update(3, [row(3, 0), row(3, 1, kl=NAN)])
    lines = printed(console).splitlines()
    assert lines[0].endswith("return 4.00  KL –")
    assert lines[1].endswith("return 5.00 ± 1.41  KL 0.500")
    assert lines[2].endswith("return 5.00 ± 1.41  KL –")


@pytest.mark.parametrize("terminal", [False, True])
def test_compilation_is_in_no_estimate(clock: Clock, terminal: bool) -> None:
    """Nothing is told of speed and of the time left before a second report."""
    console = Console(file=io.StringIO(), width=200, force_terminal=terminal, color_system=None)
    clocks = ["0:00:00 so far", "0:01:40 so far", "100 steps/s  0:01:10 left"]
    clocks += ["100 steps/s  0:01:00 left"]
    shown = Progress("Pong", 10_000, start=1000, console=console, every=0)
    for step, seconds, expected in zip(
        (1000, 2000, 3000, 4000), (0, 100, 10, 10), clocks, strict=True
    ):
        clock.now += seconds
        if step > 1000:
            shown.update(step, [])
        fields = shown._fields()
        assert "  ".join(fields[name] for name in ("rate", "clock") if name in fields) == expected
        if terminal:
            console.print(shown)
        assert step == 1000 or expected in printed(console)


def test_on_a_real_terminal() -> None:
    width = 80
    code = (
        "import time; from jaxsoft.training.progress import Progress\n"
        "with Progress('Pong soft_q', 100) as p:\n"
        "  for i in range(1, 5):\n"
        "    time.sleep(0.1); p.update(25 * i, [{'step': 1, 'seed': 0, 'episode_return': i}])\n"
        "    if i == 2: p.message('halfway')\n"
    )
    parent, child = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(width), "LINES": "24"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=child, env=environment)
    os.close(child)
    out = b""
    while chunk := _read(parent):
        out += chunk
    assert process.wait() == 0
    os.close(parent)
    text = out.decode()
    assert "\x1b[2K" in text  # redrawn in place
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", text)
    ended = [line.split("\r")[-1] for line in plain.split("\r\n")]
    assert ended[0] == "halfway"
    assert re.fullmatch(r"Pong soft_q  ━+  100/100  .*took 0:00:0\d  return 4\.00", ended[1])
    assert all(len(line) <= width for line in re.split("[\r\n]+", plain))


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux: the other side has closed it
        return b""


def test_a_file_gets_no_control_characters() -> None:
    code = (
        "from jaxsoft.training.progress import Progress\n"
        "with Progress('Pong', 10) as p: p.update(5, []); p.update(10, [])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        env=os.environ | {"FORCE_COLOR": "1"},
    )
    assert b"\x1b" not in out.stdout
    assert [line.split()[1] for line in out.stdout.decode().splitlines()] == ["5/10", "10/10"]
    assert not out.stderr


@pytest.mark.parametrize(
    ("x", "text"),
    [(0, "0.000"), (0.01234, "0.012"), (1e-5, "1e-05"), (-20.26, "-20.3"), (12345.6, "12,346")],
)
def test_numbers_are_short(x: float, text: str) -> None:
    assert progress._number(x) == text


def test_infinite_figures_do_not_stop_a_run(clock: Clock) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with Progress("Pong", 10, console=console) as shown:
        shown.update(1, [row(1, kl=math.inf, episode_return=-math.inf)])
    assert printed(console).rstrip().endswith("KL –")
