"""Compiled programs, which JAX keeps for as long as a process lives, given back when they pile up.

A test process of the whole suite would otherwise grow by gigabytes.
"""

import ctypes
import gc
import os
from pathlib import Path
from typing import Any

import jax

STATM = Path("/proc/self/statm")


def resident() -> int:
    """Bytes of memory that this process occupies; 0 where the system does not say."""
    if not STATM.exists():
        return 0
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def temporaries(compiled: Any) -> int:
    """Bytes that a compiled program holds besides its arguments and results."""
    return int(compiled.memory_analysis().temp_size_in_bytes)


def release() -> None:
    """Drop all compiled programs, and return what they took to the system."""
    jax.clear_caches()
    gc.collect()
    # Freed memory stays with glibc's arenas unless it is told.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Watch:
    """Releases memory whenever the process has grown by `room` bytes since the last time."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.floor: int | None = None

    def check(self) -> None:
        if self.floor is None:
            self.floor = resident()
        elif resident() > self.floor + self.room:
            release()
            self.floor = resident()
