"""What is stored beside a checkpoint's arrays: DIR/STEP/about/metadata, in JSON."""

from __future__ import annotations

import errno
import json
import os
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxsoft.training import _checksums

__all__ = [
    "About",
    "differences",
    "flat",
    "read",
    "saved_steps",
    "unreadable",
]

_SHOWN_DIFFERENCES = 12
_SHOWN_LETTERS = 300


class About(NamedTuple):
    """What is stored beside the arrays."""

    version: int
    config: dict[str, Any]
    leaves: dict[str, str]  # dtypes and shapes
    keys: dict[str, str]  # implementations of the typed keys among them


def saved_steps(directory: str | os.PathLike[str]) -> list[int]:
    """The steps of a directory's checkpoints, ascending."""
    directory = Path(directory)
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]*", name))


def read(directory: Path, step: int, *, write: bool) -> About:
    """What is stored with the checkpoint of a step."""
    try:
        return About(**json.loads(_checksums.read(directory / str(step), "about/metadata")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise unreadable(directory, step, error, write=write) from error


def unreadable(directory: Path, step: int, error: Exception, *, write: bool) -> OSError:
    """The error of a checkpoint that is damaged, which offers the one before it."""
    earlier = max((x for x in saved_steps(directory) if x < step), default=None)
    if not (directory / str(step)).exists():
        fix = "The run has deleted it meanwhile: try again, with a later one."
    elif earlier is None:
        fix = "Delete it and begin again: there is none before it."
    elif write:
        fix = f"Delete it and run again, which continues from step {earlier}, the one before it."
    else:
        fix = f"Use the one before it, by --step {earlier} or step={earlier}, or delete this one."
    why = " ".join(str(error).split()) or type(error).__name__
    return OSError(
        getattr(error, "errno", None) or errno.EIO,
        f"jaxsoft.Checkpoints: given {directory / str(step)}, which cannot be read "
        f"({textwrap.shorten(why, _SHOWN_LETTERS)}); expected a checkpoint as it was saved. {fix}",
    )


def flat(tree: Any, name: str = "") -> dict[str, str]:
    """Nested mappings as one, from dotted names to JSON."""
    if not isinstance(tree, dict) or not tree:
        return {name: json.dumps(tree)}
    found: dict[str, str] = {}
    for key, value in tree.items():
        found |= flat(value, f"{name}.{key}" if name else key)
    return found


def differences(given: Mapping[str, str], stored: Mapping[str, str]) -> str:
    """What is not the same, a line each."""
    names = [x for x in sorted({**given, **stored}) if given.get(x) != stored.get(x)]
    lines = [
        f"{name}: given {given.get(name, 'nothing')}, "
        f"the checkpoint's is {stored.get(name, 'nothing')}"
        for name in names[:_SHOWN_DIFFERENCES]
    ]
    if len(names) > len(lines):
        lines.append(f"and {len(names) - len(lines)} more")
    return "\n  ".join(["", *lines])
