"""`jaxsoft train | evaluate | compare | plot`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "train": "train one algorithm on one game, for any number of seeds",
    "evaluate": "play games with what was trained",
    "compare": "train several algorithms on one game and set them side by side",
    "plot": "draw the learning curves of runs",
}


def main(words: Sequence[str] | None = None) -> int:
    """The command: its name, then what belongs to it."""
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] not in COMMANDS:
        listing = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
        usage = f"usage: jaxsoft COMMAND [options]\n       jaxsoft COMMAND --help\n\n{listing}"
        if words and words[0] in ("-h", "--help"):
            print(usage)
            return 0
        unknown = f"error: {words[0]!r} is not a command.\n\n" if words else ""
        print(unknown + usage, file=sys.stderr)
        return 2
    if words[0] in ("train", "compare"):
        from jaxsoft.training.launch import keep_pages  # noqa: PLC0415 (before anything is loaded)

        keep_pages()
    try:
        # One command's imports are not the others' business: `plot` needs no EnvPool.
        command = importlib.import_module(f"jaxsoft.cli.{words[0]}")
    except ModuleNotFoundError as error:
        print(
            f"error: jaxsoft {words[0]} needs {error.name}, which is not installed. "
            "Install it all with pip install 'jaxsoft[train]'.",
            file=sys.stderr,
        )
        return 2
    status: int = command.main(words[1:])
    return status
