"""What makes a program fast on a CPU, and is none of its business: allocator and compiler."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import jax

__all__ = ["compiler_options", "keep_pages"]

_SETTINGS = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**26),
    "MALLOC_ARENA_MAX": "1",
}


def keep_pages() -> None:
    """Re-executes this command with an allocator that keeps freed memory, where that helps.

    On a CPU, XLA allocates its large temporaries at every call, and glibc hands them back to the
    system each time: fresh pages cost more than the work on them. glibc reads its settings once,
    at the start, hence the second one. Nothing is done where an accelerator is there, where it is
    not glibc, or where any of the settings has been made already.
    """
    accelerators = [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("accel*")]
    glibc = sys.platform == "linux" and "CS_GNU_LIBC_VERSION" in os.confstr_names
    if glibc and not accelerators and not _SETTINGS.keys() & os.environ.keys():
        os.execve(sys.executable, sys.orig_argv, os.environ | _SETTINGS)


@functools.cache
def compiler_options() -> dict[str, str]:
    """What to hand to `jax.jit` as `compiler_options`, for programs that train or run networks.

    On a CPU, XLA's younger library of kernels (YNNPACK) takes longer for convolutions than
    its older one (Eigen), on which this falls back. Empty elsewhere, and where this version of
    XLA has no such choice.
    """
    if jax.default_backend() != "cpu":
        return {}
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options
