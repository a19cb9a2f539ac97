"""One process has a directory at a time, and none for longer than it lives."""

import errno
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from jaxsoft.training import lock
from jaxsoft.training.lock import InUseError, Lock

HERE = f"process {os.getpid()} on {platform.node()}"

# Without JAX, whose import takes a second of each process.
LOAD = f"""
import importlib.util, os, pathlib, signal, sys, time
spec = importlib.util.spec_from_file_location("lock", {lock.__file__!r})
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)
place = pathlib.Path(sys.argv[1])
"""


def start(code, place):
    command = [sys.executable, "-W", "error", "-c", LOAD + code, str(place)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_the_second_is_refused_and_told_by_whom(tmp_path):
    with Lock(tmp_path):
        for _ in range(2):
            with pytest.raises(InUseError, match=f"{tmp_path}, to which {HERE} is writing.*--out"):
                Lock(tmp_path)
        with Lock(tmp_path.parent):
            pass
    assert list(tmp_path.iterdir()) == []
    held = Lock(tmp_path)
    held.release()
    held.release()
    with Lock(tmp_path):
        held.release()
        with pytest.raises(InUseError):
            Lock(tmp_path)


def test_what_is_no_longer_used_is_free(tmp_path):
    held = Lock(tmp_path)
    del held
    with Lock(tmp_path):
        pass


def test_a_file_that_was_left_or_copied_holds_no_one_up(tmp_path):
    (tmp_path / "lock").write_text(f"process {2**22 + 1} on elsewhere, {'long ago ' * 99}")
    with Lock(tmp_path):
        assert (tmp_path / "lock").read_text() == HERE + "\n"
        shutil.copytree(tmp_path, tmp_path / "copy")
        with Lock(tmp_path / "copy"):
            pass


def test_a_kill_frees_it_at_once(tmp_path):
    for _ in range(3):
        process = start("held = lock.Lock(place); print(1, flush=True); time.sleep(99)", tmp_path)
        with process:
            process.stdout.readline()
            with pytest.raises(InUseError, match=f"process {process.pid} on"):
                Lock(tmp_path)
            process.kill()
        assert (tmp_path / "lock").exists()
    with Lock(tmp_path):
        pass


def test_a_child_that_outlives_it_does_not_hold_it(tmp_path):
    code = """
held = lock.Lock(place)
child = os.fork()
if child == 0:
    print(os.getpid(), flush=True)
    time.sleep(99)
input()
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = start(code, tmp_path)
    with process:
        child = int(process.stdout.readline())
        try:
            with pytest.raises(InUseError, match=f"process {process.pid} on"):
                Lock(tmp_path)
            process.stdin.write("\n")
            process.stdin.flush()
            process.wait()
            os.kill(child, 0)
            with Lock(tmp_path):
                pass
        finally:
            os.kill(child, 9)


def test_of_twenty_at_once_one_has_it(tmp_path):
    code = """
print("ready", flush=True)
input()
try:
    held = lock.Lock(place)
except lock.InUseError as error:
    print(error, flush=True)
else:
    print("mine", flush=True)
input()
"""
    # What a kill left must not be taken for the holder's.
    (tmp_path / "lock").write_text("process 1 on elsewhere\n")
    racing = [start(code, tmp_path) for _ in range(20)]
    try:
        for process in racing:
            process.stdout.readline()
        for process in racing:
            process.stdin.write("\n")
            process.stdin.flush()
        said = [process.stdout.readline() for process in racing]
        [one] = (process for process, text in zip(racing, said, strict=True) if text == "mine\n")
        others = [text for text in said if text != "mine\n"]
        assert len(others) == 19
        assert all(f"process {one.pid} on" in text for text in others), others
    finally:
        for process in racing:
            process.kill()
            process.communicate()


def test_never_two_at_a_time(tmp_path):
    """However it goes from hand to hand: each that leaves removes the file."""
    inside, most, turns = 0, 0, 0

    def again_and_again():
        nonlocal inside, most, turns
        for _ in range(300):
            try:
                with Lock(tmp_path):
                    inside += 1
                    most = max(most, inside)
                    turns += 1
                    inside -= 1
            except InUseError:
                pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "_holder", lambda path: "another")
        threads = [threading.Thread(target=again_and_again) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == 1
    assert turns > 8


def test_a_directory_that_cannot_be_written_to(tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(OSError, match=r"Is a directory\); expected a directory to write to.*--out"):
        Lock(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected a directory to write to.*--out"):
        Lock(tmp_path / "absent")


def test_a_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            Lock(tmp_path)
    with Lock(tmp_path):
        pass


@pytest.mark.parametrize(
    ("number", "allowed"), [(errno.ENOLCK, True), (errno.ENOSYS, True), (errno.EIO, False)]
)
def test_file_systems_without_locks(number, allowed, tmp_path, monkeypatch):
    import fcntl  # noqa: PLC0415 (not on Windows)

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    if allowed:
        with Lock(tmp_path):
            pass
    else:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            Lock(tmp_path)


def test_on_windows(tmp_path, monkeypatch):
    """By its own locks, which are of bytes and keep others from reading them."""
    held: dict[int, int] = {}

    def locking(file, mode, size):
        assert (mode, size) == (2, 1)
        assert os.lseek(file, 0, os.SEEK_CUR) > 10_000
        if held.setdefault(os.fstat(file).st_ino, file) != file:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(LK_NBLCK=2, locking=locking))
    spec = importlib.util.spec_from_file_location("windows_lock", Path(lock.__file__))
    assert spec is not None
    assert spec.loader is not None
    windows = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(windows)
    monkeypatch.undo()
    with windows.Lock(tmp_path), pytest.raises(windows.InUseError, match=HERE):
        windows.Lock(tmp_path)
