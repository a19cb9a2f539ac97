"""Every table and figure anew from the committed CSVs: `make results`.

In each folder of experiments/results it writes table.md and the figures. It copies the figures into
the documentation, and fills what stands there between `<!-- results: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from experiments.analysis.curves import read_rows
from experiments.engine import study
from experiments.report import claims
from experiments.report import gradients as gradient_report
from experiments.report import tables as report
from experiments.report.tables import RESULTS
from experiments.studies import GRADIENTS, STUDIES

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs" / "figures"
PAGES = (
    ROOT / "docs" / "results.md",
    ROOT / "docs" / "questions.md",
)

Folder = tuple[str, str, Path]
ALL = {**STUDIES, "gradients": GRADIENTS}


def folders(results: Path = RESULTS) -> list[Folder]:
    """(study, preset, folder) of all results."""
    return [
        (file.parent.parent.name, file.parent.name, file.parent)
        for file in sorted(results.glob("*/*/runs.csv"))
    ]


def parts(results: Path, pieces: Sequence[tuple[Folder, Mapping[str, str]]]) -> dict[str, str]:
    """All that pages may ask for: "figure3/quick pairs" and the like."""
    found = {"claims": claims.table(results), "not run": not_run(results)}
    for (name, preset, _), own in pieces:
        found |= {f"{name}/{preset} {part}": text for part, text in own.items()}
    return found


def _reporter(name: str) -> Any:
    """Who makes the tables and figures of a study."""
    return gradient_report if name == "gradients" else report


def not_run(results: Path) -> str:
    """What the presets have that there are no results of, and what it would take."""
    known = report.measured(results)
    body = []
    for name, whole in STUDIES.items():
        for key, preset in whole.presets.items():
            todo = study.cells(whole, preset, Path("nowhere"))
            left = _left(todo, results / name / key / "runs.csv")
            if not left:
                continue
            steps = sum(cell.steps * len(cell.seeds) for cell in left)
            costs = [study.cost(cell, known, "cpu") for cell in left]
            hours, disk = sum(x.hours for x in costs), sum(x.disk for x in costs)
            body.append(
                [
                    f"`{report.command(name, key)}`",
                    f"{len(preset.steps)} × {len(whole.variants)} × {preset.seeds}",
                    f"{len(left)} of {len(todo)}",
                    f"{steps / 1e6:,.0f}",
                    "not measured" if math.isnan(hours) else f"{hours / 24:,.1f}",
                    "not measured" if math.isnan(disk) else f"{disk / 1e3:,.1f}",
                ]
            )
    head = [
        "", "games × variants × seeds", "runs left", "million steps",
        "days of one process on a CPU", "GB",
    ]  # fmt: skip
    return report.markdown(head, body)


def _left(todo: Sequence[study.Cell], runs: Path) -> list[study.Cell]:
    """The runs that runs.csv has not, or not whole: what is missing of them, from a percent on."""
    done = {
        (row["game"], row["variant"], int(seed)): int(row["steps"])
        for row in (read_rows(runs) if runs.exists() else [])
        for seed in row["seeds"].split()
    }
    left = []
    for cell in todo:
        had = min(done.get((cell.game, cell.variant, seed), 0) for seed in cell.seeds)
        if had < 0.99 * cell.steps:
            left.append(dataclasses.replace(cell, steps=cell.steps - had))
    return left


def filled(page: str, found: Mapping[str, str]) -> str:
    """A page with what stands between its marks made anew."""

    def section(match: re.Match[str]) -> str:
        name = match[1]
        if name not in found:
            raise SystemExit(f"a page asks for the results of {name}; there are {sorted(found)}")
        return f"<!-- results: {name} -->\n\n{found[name]}\n\n<!-- end -->"

    return re.sub(r"<!-- results: (.*?) -->.*?<!-- end -->", section, page, flags=re.DOTALL)


def stale(results: Path = RESULTS) -> list[Path]:
    """What is not what the CSVs make of it."""
    found: list[Path] = []
    pieces = [(whole, _reporter(whole[0]).parts(*whole)) for whole in folders(results)]
    for (name, preset, folder), own in pieces:
        if (folder / "table.md").read_text() != report.page(own):
            found.append(folder / "table.md")
        source = report.digest(folder, ALL[name])
        for figure in _reporter(name).FIGURES:
            files = (folder / figure, FIGURES / _name(name, preset, figure))
            found += [file for file in files if _source(file) != source]
    asked = parts(results, pieces)
    return found + [page for page in PAGES if filled(page.read_text(), asked) != page.read_text()]


def _source(figure: Path) -> str | None:
    if not figure.exists():
        return None
    with Image.open(figure) as image:
        return image.info.get("Source")


def _name(study: str, preset: str, figure: str) -> str:
    return f"{study}-{preset}-{figure}".replace("-figure.", ".")


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.publish",
        description="Makes every table and figure anew from the CSVs in experiments/results, and "
        "puts them into the pages of the documentation.",
        allow_abbrev=False,
    )
    parser.add_argument("--check", action="store_true", help="change nothing; fail if out of date")
    given = parser.parse_args(words)
    if given.check:
        found = stale()
        for file in found:
            print(f"{file.relative_to(ROOT)} is not of the CSVs. Run make results.")
        return bool(found)
    FIGURES.mkdir(exist_ok=True)
    pieces = []
    for name, preset, folder in folders():
        pieces.append(((name, preset, folder), _reporter(name).build(name, preset, folder)))
        for figure in _reporter(name).FIGURES:
            shutil.copyfile(folder / figure, FIGURES / _name(name, preset, figure))
        print(folder.relative_to(ROOT))
    asked = parts(RESULTS, pieces)
    for page in PAGES:
        page.write_text(filled(page.read_text(), asked))
    return 0


if __name__ == "__main__":
    sys.exit(main())
