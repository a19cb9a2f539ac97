"""Strict numerics for every test: float64, no silent rank promotion.

A test of another precision passes arrays of it: the library computes in its inputs' dtype.
"""

import gc
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest

from tests.support import memory

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Thousands of small programs run once each: compiling them well would cost more than it saves.
jax.config.update("jax_disable_most_optimizations", True)

hypothesis.settings.register_profile("dev", deadline=None, max_examples=25)
hypothesis.settings.register_profile(
    "ci", deadline=None, max_examples=25, derandomize=True, print_blob=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")

# Tracing leaves many young objects and few cycles, which are looked for too often by default.
gc.set_threshold(100_000, 50, 100)
watch = memory.Watch(room=2**30)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "equation(*numbers): proves these equations of the paper; docs/equations.md"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    yield
    watch.check()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB; only root can make one."""
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(tmp_path)]
    try:
        mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("cannot mount a file system")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)
