"""Checksums of a checkpoint's files, so that a changed byte is noticed before it is read.

DIR/STEP/about/checksums has those of all files in the folders of DIR/STEP. They are of the files,
not of the arrays: what is not as it was written never comes to a decoder, and nothing is hashed
before `save` returns.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp  # type: ignore[import-untyped]

from jaxsoft.training._json import sealed, unsealed

__all__ = ["Handler", "Items", "check", "read"]

_FILE = Path("about", "checksums")
# Bytes read as one.
_BLOCK = 1 << 22


class Handler(ocp.CompositeCheckpointHandler):  # type: ignore[misc]
    """Adds the checksums when everything is written, before the rename that makes a checkpoint."""

    def finalize(self, directory: Any) -> None:
        """Called in the background."""
        super().finalize(directory)
        whole = Path(directory)
        # Those beside the folders are Orbax's notes, which it still changes.
        files = sorted(path for path in whole.glob("*/**/*") if path.is_file())
        found = {path.relative_to(whole).as_posix(): _of_file(path) for path in files}
        (whole / _FILE).write_text(json.dumps(sealed(found)))


@ocp.args.register_with_handler(Handler, for_save=True, for_restore=True)
class Items(ocp.args.Composite):  # type: ignore[misc]
    """What the handler saves and restores, by name."""


def read(checkpoint: Path, file: str) -> bytes:
    """The content of one of its files, as it was written if there are checksums."""
    content = (checkpoint / file).read_bytes()
    if (checkpoint / _FILE).exists() and _stored(checkpoint).get(file) != zlib.crc32(content):
        raise ValueError(f"{file} is not as it was written")
    return content


def check(checkpoint: Path) -> None:
    """Raises a `ValueError` that names what is not as it was written."""
    if not (checkpoint / _FILE).exists():
        raise ValueError(f"{_FILE} is missing, or it is of an earlier version of jaxsoft")
    for file, checksum in _stored(checkpoint).items():
        if not (checkpoint / file).is_file():
            raise ValueError(f"{file} is missing")
        if _of_file(checkpoint / file) != checksum:
            raise ValueError(f"{file} is not as it was written")


def _stored(checkpoint: Path) -> dict[str, int]:
    try:
        return unsealed(json.loads((checkpoint / _FILE).read_text()))
    except ValueError as error:
        raise ValueError(f"{_FILE} is not as it was written") from error


def _of_file(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum
