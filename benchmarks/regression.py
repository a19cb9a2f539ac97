"""Compares fresh results with the committed ones: ratios between sides, never seconds.

    python -m benchmarks.regression FOLDER [--factor 1.25]

Every ratio in FOLDER is set beside the committed one of the same row. Single rows are noisy:
what fails is a group, a part of a benchmark and the side it is about, whose geometric mean is worse
by more than the factor.
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
# Where a ratio stands in a row, and whether more of it is better.
RATIOS = (
    (("to_jaxsoft",), True),
    (("times_as_fast", "median"), True),
    (("share_of_allowed", "median"), True),
    (("plain_gradients_median",), False),
    (("ratio",), False),
)
# What names a row, and of that what names its group.
NAMES = (
    *("part", "loss", "what", "game", "algorithm", "environments", "rollout_length", "seeds"),
    *("network", "parameters", "batch", "T", "B", "A", "dtype", "side"),
)
GROUP = ("part", "loss", "side")
# What others are relative to; and the machine's bandwidth, which is no side that took turns.
NO_RATIO = ("jaxsoft", "plain gradient", "memory")


def ratios(path: Path) -> Iterator[tuple[tuple[Any, ...], str, float]]:
    """(name of the row, name of its group, how good it is) for all ratios in a file."""
    for row in json.loads(path.read_text())["rows"]:
        if row.get("side") in NO_RATIO:
            continue
        for keys, more_is_better in RATIOS:
            value: Any = row
            for key in keys:
                value = value.get(key) if isinstance(value, Mapping) else None
            if value:
                name = (*(row.get(key) for key in NAMES), keys[0])
                group = ", ".join([path.stem, *(str(row[key]) for key in GROUP if key in row)])
                yield name, group, value if more_is_better else 1 / value


def compare(fresh: Path, committed: Path = RESULTS) -> dict[str, list[float]]:
    """Fresh over committed for every row that both have; above one is better."""
    groups: dict[str, list[float]] = defaultdict(list)
    # What is compiled and not measured has a check of its own (`benchmarks.accelerators --check`).
    measured = (x for x in fresh.glob("*.json") if not x.stem.startswith("accelerators_"))
    for path in sorted(measured):
        if (committed / path.name).exists():
            before = {name: value for name, _, value in ratios(committed / path.name)}
            for name, group, value in ratios(path):
                if name in before:
                    groups[group].append(value / before[name])
    return groups


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compares the ratios in fresh results with the committed ones.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="where the fresh results are")
    parser.add_argument("--factor", type=float, default=1.25, help="worse by more than this fails")
    given = parser.parse_args()
    groups = compare(given.folder, RESULTS)
    if not groups:
        raise SystemExit(
            f"{given.folder} has no results that {RESULTS} has, too; make some with "
            "`python -m benchmarks.NAME --json FOLDER/NAME.json`, named as the committed ones"
        )
    worse = []
    for group, values in sorted(groups.items()):
        mean = statistics.geometric_mean(values)
        mark = "worse" if mean < 1 / given.factor else ""
        worse += [group] if mark else []
        print(
            f"{group:<64}{mean:6.2f} x as good  ({min(values):.2f} - {max(values):.2f}, "
            f"{len(values)} rows)  {mark}".rstrip()
        )
    if worse:
        raise SystemExit(f"worse than the committed results by more than {given.factor}: {worse}")


if __name__ == "__main__":
    main()
