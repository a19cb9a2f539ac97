"""One writer per directory, by a lock that the operating system takes back from a dead process."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import sys
import time
import weakref
from pathlib import Path
from typing import Self

__all__ = ["InUseError", "Lock"]

# File systems that have no locks: there it is for the user to start a run once.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_ATTEMPTS = 100

if sys.platform == "win32":
    import msvcrt

    def _take(file: int) -> bool:
        # Others cannot read the bytes that are locked here: one far behind the content.
        os.lseek(file, 1 << 30, os.SEEK_SET)
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _take(file: int) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        return True


class InUseError(OSError):
    """Another process, or another part of this one, writes to a directory."""


class Lock:
    """Holds a directory until it is released, or its process ends; also a context manager.

    DIR/lock says who that is, and goes with it. What counts is the operating system's lock on that
    file: one that a kill left there, or that was copied, keeps no one out.
    """

    def __init__(self, directory: Path) -> None:
        """Takes it at once or not at all.

        Args:
          directory: that exists.

        Raises:
          InUseError: it is held.
          OSError: it cannot be written to.
        """
        path, process = directory / "lock", os.getpid()
        file = None
        try:
            file = _opened(path)
            if file is not None:
                os.truncate(file, 0)
                os.lseek(file, 0, os.SEEK_SET)
                os.write(file, f"process {process} on {platform.node()}\n".encode())
        except OSError as error:
            if file is not None:
                _leave(path, file, process)
            raise OSError(
                error.errno,
                f"jaxsoft: given {directory} ({error.strerror}); expected a directory to write to. "
                "Choose another --out.",
            ) from error
        if file is None:
            raise InUseError(
                f"jaxsoft: given {directory}, to which {_holder(path)} is writing; expected a "
                "directory of this run alone. Wait for that one to end, or choose another --out."
            )
        self.release = weakref.finalize(self, _leave, path, file, process)
        if hasattr(os, "register_at_fork"):
            # Else a child would hold it for as long as it lives.
            os.register_at_fork(after_in_child=self.release)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _opened(path: Path) -> int | None:
    """The file that is locked now, `None` if another one has it."""
    for _ in range(_ATTEMPTS):
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if not _take(file):
            os.close(file)
            return None
        # Who had it before may have removed it between the two.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        os.close(file)
    return None


def _holder(path: Path) -> str:
    """Who has it, as it says."""
    for _ in range(_ATTEMPTS):
        time.sleep(0.02)  # it may be about to write it
        with contextlib.suppress(OSError):
            if lines := path.read_text(errors="replace").splitlines():
                return lines[0][:200]
    return "another process"


def _leave(path: Path, file: int, process: int) -> None:
    if os.getpid() == process:
        # While it is held, so that it is no one else's. Windows removes no file that is open.
        with contextlib.suppress(OSError):
            path.unlink()
    os.close(file)
