"""What makes a program fast on a CPU, and is none of its business: allocator and compiler."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxsoft import _jax

__all__ = ["compiler_options", "jit", "keep_pages"]

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


def compiler_options(device: jax.Device | None = None) -> dict[str, str]:
    """What to hand to `jax.jit` as `compiler_options`, for programs that train or run networks.

    On a CPU, XLA's younger library of kernels (YNNPACK) takes longer for convolutions than
    its older one (Eigen), on which this falls back. Empty elsewhere, and where this version of
    XLA has no such choice.

    Args:
      device: that the program will run on; `None` is the default one.
    """
    return dict(_options(_jax.platform(device)))


class jit:
    """`jax.jit` with the `compiler_options` of the device that the arguments are on.

    Nothing else knows what a program will be compiled for. Inside another program it is `jax.jit`
    alone, and the outermost one has the options.
    """

    def __init__(self, f: Callable[..., Any], **settings: Any) -> None:
        def on(platform: str) -> Any:
            return jax.jit(f, compiler_options=_options(platform), **settings)

        self._inside, self._on = jax.jit(f, **settings), functools.cache(on)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs it."""
        return self._for((args, kwargs))(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """As that of `jax.jit`."""
        return self._for((args, kwargs)).lower(*args, **kwargs)

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """As that of `jax.jit`."""
        return self._inside.eval_shape(*args, **kwargs)

    def _for(self, given: Any) -> Any:
        leaves = jax.tree.leaves(given)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return self._inside
        # What is not committed follows what is, or else goes to the default device.
        committed = (leaf for leaf in leaves if getattr(leaf, "committed", True))
        shardings = (getattr(leaf, "sharding", None) for leaf in committed)
        device = next((next(iter(x.device_set)) for x in shardings if x is not None), None)
        return self._on(_jax.platform(device))


@functools.cache
def _options(platform: str) -> dict[str, str]:
    if platform != "cpu":
        return {}
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options
