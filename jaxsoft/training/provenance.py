"""Where results come from: the command, the commit, the machine, the time it took."""

from __future__ import annotations

import json
import math
import platform
import shlex
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

import jaxsoft
from jaxsoft.training._json import sealed, unsealed
from jaxsoft.training.logs import writing

__all__ = [
    "Sessions",
    "commit",
    "machine",
    "processor",
    "read_sessions",
    "write_json",
]


def write_json(path: Path, values: Any) -> None:
    """Replaces the file as a whole, so that it is never half written."""
    whole = path.with_suffix(".tmp")
    with writing(path):
        whole.write_text(json.dumps(values, indent=1) + "\n")
        whole.replace(path)


def read_sessions(path: Path) -> list[dict[str, Any]]:
    """The sessions of a run.json, the first one first; a `ValueError` where it is damaged."""
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict) or not {"sessions"} <= {*values} <= {
            "sessions",
            "checksum",
        }:
            raise ValueError("it holds no sessions")
        sessions: list[dict[str, Any]] = values["sessions"]
        if "checksum" in values:
            unsealed(values)
        before = 0
        for session in sessions:
            begin, end, seconds = (session[name] for name in ("from_step", "to_step", "seconds"))
            texts = [session[name] for name in ("device", "processor", "jax", "began")]
            if not (
                type(begin) is type(end) is int
                and before <= begin <= end
                and type(seconds) in (int, float)
                and 0 <= seconds < math.inf
                and all(isinstance(text, str) for text in texts)
                and isinstance(session["commit"], str | None)
            ):
                raise ValueError(f"a session is {session}")
            before = end
        if not before:
            raise ValueError("it holds no steps")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} is damaged: {textwrap.shorten(why, 200)}. Restore the file from a copy, or "
            "delete it: the run then forgets when and where its earlier steps were made."
        ) from error
    return sessions


def machine() -> dict[str, Any]:
    """The device, the processor, and the versions of what ran on them."""
    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "processor": processor(),
        "jaxsoft": jaxsoft.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "commit": commit(),
    }


def commit() -> str | None:
    """The commit of the source, with a + where files differ; `None` where it is not in Git."""
    root = Path(__file__).parents[2]

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, check=False
            )
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A package that is installed can lie in the folder of some other project.
    if git("ls-files", "--error-unmatch", __file__) is None:
        return None
    results = [f":!{folder}/results" for folder in ("benchmarks", "experiments")]
    changed = git("status", "--porcelain", "--", ".", ":!docs", *results)
    name = git("rev-parse", "--short", "HEAD")
    return name and name + ("+" if changed else "")


def processor() -> str:
    """The cores that there are, and their name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else platform.processor()


class Sessions:
    """DIR/run.json: what each session of a run, begun or resumed, has added to it.

    Args:
      path: of the file; the entries of a run that begins again go.
      step: at which this session begins.
    """

    def __init__(self, path: Path, step: int) -> None:
        """Writes nothing yet."""
        self._path = path
        self._before: list[dict[str, Any]] = []
        if step and path.exists():
            # Of a session that was killed, the last steps may not have come into a checkpoint.
            self._before = [
                session | {"to_step": min(session["to_step"], step)}
                for session in read_sessions(path)
                if session["from_step"] < step
            ]
        self._this: dict[str, Any] = {
            "command": shlex.join(["python", *sys.orig_argv[1:]]),
            **machine(),
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "from_step": step,
        }
        self._start = time.monotonic()

    def update(self, step: int) -> None:
        """Notes how far this session has come."""
        if step > self._this["from_step"] or (step and not self._path.exists()):
            seconds = round(time.monotonic() - self._start, 1)
            this = self._this | {"to_step": step, "seconds": seconds}
            write_json(self._path, sealed({"sessions": [*self._before, this]}))
