"""JSON that a run wrote, read with suspicion."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["read_json", "read_texts", "sealed", "unsealed"]

_KEY = "checksum"


def read_json(path: Path) -> Any:
    """What a file of JSON holds; a `ValueError` that names it where it is damaged."""
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged: it is no JSON ({error}). Restore the file from a copy, or begin "
            "again in another folder."
        ) from error


def read_texts(path: Path, *names: str) -> dict[str, str]:
    """What a file of JSON says of these, where it says anything."""
    values = read_json(path)
    if not isinstance(values, dict) or not all(isinstance(values.get(x, ""), str) for x in names):
        raise ValueError(
            f"{path} is damaged: {' or '.join(names)} is no text. Restore the file from a copy, "
            "or leave it out of a copy of the folder."
        )
    return {name: values[name] for name in names if name in values}


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values with a checksum of themselves."""
    return {**values, _KEY: _checksum(values)}


def unsealed(values: Any) -> dict[str, Any]:
    """The values that were sealed; a `ValueError` if they have been changed since."""
    if not isinstance(values, dict) or _KEY not in values:
        raise ValueError("it has no checksum")
    rest = {name: x for name, x in values.items() if name != _KEY}
    if values[_KEY] != _checksum(rest):
        raise ValueError("its content and its checksum disagree")
    return rest


def _checksum(values: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())
