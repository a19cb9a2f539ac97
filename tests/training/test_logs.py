"""The logs keep what they were given, whatever happens to the process, and the line fits."""

import errno
import io
import itertools
import math
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tensorboardX.proto.event_pb2 import SessionLog

from jaxsoft.training import logs as metrics
from jaxsoft.training.logs import CsvLog, Progress, TensorBoardLog, read_csv
from tests.support.tensorboard import events, scalars

FIRST = ["step", "seed", "episode_return", "episodes", "steps_per_second"]
NAN = float("nan")


def row(step: int, seed: int = 0, **more: float) -> dict[str, float]:
    base = {"step": step, "seed": seed, "episode_return": NAN, "episodes": 0}
    return base | {"steps_per_second": 1e3} | more


def steps(path: Path) -> list[float]:
    return read_csv(path).get("step", np.array([])).tolist()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "metrics.csv"


# metrics.csv


@given(st.lists(st.tuples(st.integers(0, 2**50), st.floats(allow_nan=True)), min_size=1))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    path = tmp_path_factory.mktemp("csv") / "metrics.csv"
    with CsvLog(path) as log:
        for step, x in rows:
            log.write(row(step, loss=x))
    table = read_csv(path)
    np.testing.assert_array_equal(table["step"], [step for step, _ in rows])
    np.testing.assert_array_equal(table["loss"], [x for _, x in rows])
    assert np.isnan(table["episode_return"]).all()


def test_the_first_row_fixes_the_columns(path: Path) -> None:
    with CsvLog(path) as log:
        log.write({"loss": 0.5, "seed": 1, "step": 8, "kl": np.float32(0.1)})
        log.write({"step": 16, "seed": 1})
        assert path.read_text() == (
            "step,seed,episode_return,episodes,steps_per_second,loss,kl\n8,1,,,,0.5,0.1\n16,1,,,,,\n"
        )
        with pytest.raises(ValueError, match=r"entropy.*NaN where there is no number"):
            log.write(row(24, entropy=1.0))
        with pytest.raises(ValueError, match=r"without.*seed"):
            log.write({"step": 24})
        with pytest.raises(TypeError, match="`kl` = True; expected a number"):
            log.write(row(24, kl=True))
    assert steps(path) == [8, 16]


def test_columns_named_beforehand(path: Path) -> None:
    with CsvLog(path, ["loss", "step"]) as log:
        log.write(row(1))
    assert list(read_csv(path)) == [*FIRST, "loss"]


@pytest.mark.parametrize("last", range(0, 50, 10))
def test_a_resumed_run_has_every_step_once(path: Path, last: int) -> None:
    with CsvLog(path) as log:
        for step, seed in itertools.product(range(10, 50, 10), (0, 1)):
            log.write(row(step, seed, loss=step / 3))
    before = path.read_text()
    with CsvLog(path, resume_step=last) as log:
        assert before.startswith(path.read_text())
        for step, seed in itertools.product(range(last + 10, 60, 10), (0, 1)):
            log.write(row(step, seed, loss=step / 3))
    wanted = [step for step in range(10, 60, 10) for _ in range(2)]
    assert steps(path) == wanted
    assert path.read_text().startswith(before[: before.index("\n")])
    assert list(path.parent.iterdir()) == [path]


def test_a_resumed_run_keeps_its_columns(path: Path) -> None:
    with CsvLog(path) as log:
        log.write(row(1, loss=1.0))
    with CsvLog(path, resume_step=1) as log, pytest.raises(ValueError, match=r"unknown.*'new'"):
        log.write(row(2, new=1.0))


def test_every_torn_file_can_be_read_and_resumed(path: Path) -> None:
    with CsvLog(path) as log:
        for step in (1, 2, 3):
            log.write(row(step, loss=1.25))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        complete = max(whole[:length].count(b"\n") - 1, 0)
        assert steps(path) == [1, 2, 3][:complete]
        with CsvLog(path, resume_step=3) as log:
            log.write(row(4, loss=1.25))
        assert steps(path) == [*[1, 2, 3][:complete], 4]


def test_a_killed_process_leaves_whole_lines(path: Path) -> None:
    code = (
        "import itertools, pathlib; from jaxsoft.metrics import CsvLog\n"
        f"log = CsvLog(pathlib.Path({str(path)!r}))\n"
        "for i in itertools.count(): log.write({'step': i, 'seed': 0, 'loss': i / 7})"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size > 10_000) and time.monotonic() < deadline:
        seen = steps(path) if path.exists() else []
        assert seen == list(range(len(seen)))
    process.send_signal(signal.SIGKILL)
    process.wait()
    table = read_csv(path)
    assert path.read_bytes().endswith(b"\n")
    np.testing.assert_array_equal(table["loss"], np.arange(len(table["step"])) / 7)


def test_a_fresh_run_does_not_overwrite(path: Path) -> None:
    with CsvLog(path) as log:
        log.write(row(1))
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"resume it, or choose.*metrics\.csv"):
        CsvLog(path)
    assert path.read_bytes() == before
    path.write_bytes(b"")  # a run that was killed before its first row
    CsvLog(path).close()


def test_a_full_disk(path: Path) -> None:
    """The kernel's own partial write: all the bytes that fit, then an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with CsvLog(path) as log:
        log.write(row(1))
        before = path.read_bytes()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, hard))
            with pytest.raises(OSError, match=r"Free some space.*resume.*metrics\.csv") as caught:
                log.write(row(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.errno == errno.EFBIG
        assert path.read_bytes() == before
        log.write(row(3))
    assert steps(path) == [1, 3]


def test_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"directory that can be written to.*file/metrics\.csv"):
        CsvLog(tmp_path / "file" / "metrics.csv")
    with pytest.raises(OSError, match=r"directory that can be written to.*file"):
        TensorBoardLog(tmp_path / "file")


def test_a_spoilt_line_is_named(path: Path) -> None:
    with CsvLog(path) as log:
        log.write(row(1))
    for spoilt in ("1,2\n", "1,0,x,0,0\n"):
        whole = path.read_text()
        path.write_text(whole + spoilt)
        with pytest.raises(ValueError, match=r"metrics\.csv, line 3.*expected 5 numbers.*Delete"):
            read_csv(path)
        path.write_text(whole)


# TensorBoard


def test_scalars(tmp_path: Path) -> None:
    with TensorBoardLog(tmp_path / "tb") as log:
        log.write(row(8, 3, loss=0.5))
        rows = [(8, "seed_3/episodes", 0), (8, "seed_3/steps_per_second", 1000)]
        # On the disk already, in case the process dies.
        assert scalars(events(tmp_path / "tb")) == [*rows, (8, "seed_3/loss", 0.5)]


def test_a_resumed_run_hides_later_steps(tmp_path: Path) -> None:
    for resume, step in ((None, 4), (None, 9), (4, 5), (4, 5)):  # all within a second
        with TensorBoardLog(tmp_path, resume_step=resume) as log:
            log.write({"step": step, "seed": 0, "loss": 1.0})
    found = events(tmp_path)
    kept: list[tuple[int, str, float]] = []
    for event in found:  # as TensorBoard does
        if event.session_log.status == SessionLog.START:
            kept = [scalar for scalar in kept if scalar[0] < event.step]
        kept += scalars([event])
    assert len(scalars(found)) == 4
    assert [step for step, *_ in kept] == [4, 5]


# The line


def report(step: int, scale: float = 1.0, seeds: int = 3) -> list[dict[str, float]]:
    return [
        row(step, i, entropy=1.0, kl=0.0123, value_error=0.5) | {"episode_return": scale * (i + 1)}
        for i in range(seeds)
    ]


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1e3
        monkeypatch.setattr(metrics.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def drawn(width: int, clock: Clock, label: str = "Pong-v5 soft_q", scale: float = 1.0) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    progress = Progress(label, 10_000_000, console=console)
    for step in (1_000_000, 1_100_000):
        clock.now += 10
        progress.update(step, report(step, scale))
    console.file.seek(0)
    console.file.truncate()
    console.print(progress)
    return console.file.getvalue()


def test_a_wide_terminal_shows_everything(clock: Clock) -> None:
    line = drawn(150, clock)
    for text in (
        "Pong-v5 soft_q  ━━━",
        "  1.1M/10M  10,000 steps/s  0:14:50 left  return 2.00 ± 1.00  ",
        "entropy 1.00  KL 0.012  V error 0.500",
    ):
        assert text in line


def test_less_important_figures_go_first(clock: Clock) -> None:
    words = ["V error", "KL", "entropy", "/s", "left", "return", "1.1M/10M", "Pong"]
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
    assert metrics.cell_len(line) <= width


def test_plain_lines_now_and_then(clock: Clock) -> None:
    console = Console(file=io.StringIO(), force_terminal=False, width=40)
    with Progress("Pong", 1000, console=console) as progress:
        progress.message("a [b]long[/b] message " + "x" * 60)
        for step in range(10, 1010, 10):
            clock.now += 0.5
            progress.update(step, report(step))
    lines = console.file.getvalue().splitlines()
    assert "\x1b" not in console.file.getvalue()
    assert lines[0] == "a [b]long[/b] message " + "x" * 60
    done = [int(re.match(r"Pong  ([\d,]+)/1,000", line)[1].replace(",", "")) for line in lines[1:]]
    assert done == [10, 210, 410, 610, 810, 1000]
    assert lines[-1] == (
        "Pong  1,000/1,000  20 steps/s  took 0:00:50  return 2.00 ± 1.00  entropy 1.00  KL 0.012  "
        "V error 0.500"
    )


def test_the_last_report_is_printed_once(clock: Clock) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with Progress("Pong", 10, console=console) as progress:
        clock.now += 1
        progress.update(10, report(10))
    assert console.file.getvalue().count("\n") == 1


def test_returns_are_the_last_known_and_losses_the_last(clock: Clock) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with Progress("Pong", 100, console=console, every=0) as progress:
        progress.update(1, [row(1, 0, episode_return=4.0), row(1, 1, kl=NAN)])
        progress.update(2, [row(2, 0), row(2, 1, episode_return=6.0, kl=0.5)])
        progress.update(3, [row(3, 0), row(3, 1, kl=NAN)])
    lines = console.file.getvalue().splitlines()
    assert lines[0].endswith("return 4.00  KL –")
    assert lines[1].endswith("return 5.00 ± 1.41  KL 0.500")
    assert lines[2].endswith("return 5.00 ± 1.41  KL –")


def test_compilation_does_not_count_as_speed(clock: Clock) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with Progress("Pong", 10_000, start=1000, console=console, every=0) as progress:
        for step, seconds in ((2000, 100), (3000, 10), (4000, 10)):
            clock.now += seconds
            progress.update(step, [])
    lines = console.file.getvalue().splitlines()
    speeds = [re.search(r"(\d+) steps/s  (\S+) left", line).groups() for line in lines]
    assert speeds == [("10", "0:13:20"), ("100", "0:01:10"), ("100", "0:01:00")]


def test_on_a_real_terminal() -> None:
    width = 80
    code = (
        "import time; from jaxsoft.metrics import Progress\n"
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
        "from jaxsoft.metrics import Progress\n"
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
    assert metrics._number(x) == text


def test_infinite_figures_do_not_stop_a_run(clock: Clock) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with Progress("Pong", 10, console=console) as progress:
        progress.update(1, [row(1, kl=math.inf, episode_return=-math.inf)])
    assert console.file.getvalue().rstrip().endswith("KL –")
