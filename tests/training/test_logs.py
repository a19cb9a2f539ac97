"""The logs keep what they were given, whatever happens to the process."""

import errno
import itertools
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import SessionLog

from jaxsoft.training.logs import CsvLog, TensorBoardLog, read_csv
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
        first: dict[str, Any] = {"loss": 0.5, "seed": 1, "step": 8, "kl": np.float32(0.1)}
        log.write(first)
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
        "import itertools, pathlib; from jaxsoft.training.logs import CsvLog\n"
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
