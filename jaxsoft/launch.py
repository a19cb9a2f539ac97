"""Settings of a process that must be made before it starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["keep_pages"]

_SETTINGS = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**26),
    "MALLOC_ARENA_MAX": "1",
}


def keep_pages() -> None:
    """Starts this command anew with an allocator that keeps freed memory, where that helps.

    On a CPU, XLA allocates its large temporaries at every call, and glibc hands them back to the
    system each time: fresh pages cost more than the work on them. glibc reads its settings once,
    at the start, hence the new start. Nothing is done where an accelerator is there, where it is
    not glibc, or where any of the settings has been made already.
    """
    accelerators = [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("accel*")]
    glibc = sys.platform == "linux" and "CS_GNU_LIBC_VERSION" in os.confstr_names
    if glibc and not accelerators and not _SETTINGS.keys() & os.environ.keys():
        os.execve(sys.executable, sys.orig_argv, os.environ | _SETTINGS)
