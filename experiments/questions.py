"""Studies behind docs/questions.md: `python -m experiments.questions weighting --preset quick`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments import command
from experiments.studies import STUDIES
from jaxsoft.training.launch import keep_pages

NAMES = tuple(name for name in STUDIES if not name.startswith("figure"))


def main(words: Sequence[str] | None = None) -> int:
    """The command: the name of a study, then its settings."""
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] not in NAMES:
        asked = bool(words) and words[0] in ("-h", "--help")
        listing = "\n".join(f"  {name:<14}{STUDIES[name].title}" for name in NAMES)
        text = (
            f"usage: python -m experiments.questions STUDY --preset NAME …\n\nstudies:\n{listing}"
        )
        print(text, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    return command.main(words[0], words[1:], prog=f"python -m experiments.questions {words[0]}")


if __name__ == "__main__":
    keep_pages()
    sys.exit(main())
