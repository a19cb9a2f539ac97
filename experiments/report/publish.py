"""Makes every table, page and figure from the committed CSVs: `make results`.

Writes table.md into each folder of experiments/results and the figures into docs/figures, and fills
what the pages of the documentation have between `<!-- results: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.analysis.curves import load
from experiments.engine.collected import RESULTS
from experiments.report import claims, figures, gradients, markdown, remaining, tables
from experiments.studies import STUDIES
from jaxsoft.cli.plot import Panel, draw
from jaxsoft.training.logs import writing

__all__ = ["drawn", "folders", "main", "texts", "write"]

DOCS = Path(__file__).parents[2] / "docs"
FIGURES = DOCS / "figures"
PAGES = (DOCS / "results.md", DOCS / "questions.md")


def folders(results: Path = RESULTS) -> list[tuple[str, str, Path]]:
    """(study, preset, folder) of all results."""
    return [
        (file.parent.parent.name, file.parent.name, file.parent)
        for file in sorted(results.glob("*/*/runs.csv"))
    ]


def parts(name: str, preset: str, folder: Path) -> dict[str, str]:
    """The pieces of a folder's table.md by name."""
    if name == "gradients":
        return gradients.parts(preset, folder)
    return tables.parts(name, preset, load(STUDIES[name], folder))


def drawn(name: str, folder: Path) -> Sequence[tuple[str, str, Sequence[Sequence[Panel | None]]]]:
    """File, title and rows of panels of each figure of a folder."""
    if name == "gradients":
        return gradients.figures(folder)
    study = STUDIES[name]
    return [("figure.png", study.title, figures.panels(load(study, folder)))]


def write(name: str, preset: str, folder: Path) -> None:
    """Writes table.md and the figures of a folder into it."""
    with writing(folder / "table.md"):
        (folder / "table.md").write_text(_page(parts(name, preset, folder)))
    for file, title, rows in drawn(name, folder):
        draw(rows, folder / file, title=title)


def _page(pieces: Mapping[str, str]) -> str:
    return "\n\n".join(pieces.values()) + "\n"


def texts(results: Path = RESULTS, pages: Sequence[Path] = PAGES) -> dict[Path, str]:
    """Every table.md and page: file -> what it has to be by the CSVs."""
    found = {}
    asked = {"claims": claims.agreement(results), "not run": remaining.table(results)}
    for name, preset, folder in folders(results):
        own = parts(name, preset, folder)
        found[folder / "table.md"] = _page(own)
        asked |= {f"{name}/{preset} {part}": text for part, text in own.items()}
    return found | {page: markdown.filled(page.read_text(), asked) for page in pages}


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    argparse.ArgumentParser(
        prog="python -m experiments.report.publish",
        description="Makes every table and figure from the CSVs in experiments/results, and puts "
        "them into the pages of the documentation.",
    ).parse_args(words)
    for path, text in texts().items():
        path.write_text(text)
    for name, preset, folder in folders():
        for file, title, rows in drawn(name, folder):
            draw(rows, FIGURES / f"{name}-{preset}-{file}".replace("-figure.", "."), title=title)
    return 0


if __name__ == "__main__":
    sys.exit(main())
