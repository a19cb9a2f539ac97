"""Rewrites the tables of docs/performance.md from the committed results.

python -m benchmarks.tables [--check]
"""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
Row = dict[str, Any]


def markdown(head: list[str], body: list[list[str]]) -> str:
    rule = ["---"] + ["--:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *body])


def recurrence(rows: list[Row]) -> str:
    """Microseconds, the library's own choice in bold."""
    order = ["scan", "associative", "doubling"]
    names = order + sorted({row["evaluation"] for row in rows} - {*order, "library"})
    sizes = dict.fromkeys((row["T"], row["B"], row["n"]) for row in rows)
    body = []
    for size in sizes:
        here = {r["evaluation"]: r for r in rows if (r["T"], r["B"], r["n"]) == size}
        choice = "scan" if size[2] == "all" else "doubling"
        cells = ["–" if name not in here else f"{here[name]['median_us']:,.0f}" for name in names]
        cells = [
            f"**{cell}**" if name == choice else cell
            for name, cell in zip(names, cells, strict=True)
        ]
        body.append([f"{size[0]} × {size[1]}, {size[2]}", *cells])
    return markdown(["T × B, n", *names], body)


def natural_gradient(rows: list[Row]) -> str:
    body = []
    for row in rows:
        spread = f"{row['plain_gradients_low']:.1f} – {row['plain_gradients_high']:.1f}"
        body.append(
            [
                f"{row['network']}, {row['batch']}",
                row["side"],
                f"{row['median_us'] / 1e3:,.1f}",
                f"{row['plain_gradients_median']:.1f} ({spread})",
                f"{row['residual']:.0e}" if "residual" in row else "",
            ]
        )
    return markdown(["network, batch", "", "ms", "plain gradients", "residual"], body)


def budget(rows: list[Row]) -> str:
    """Steps a second of the program and of its parts alone."""
    names = ["whole", "environment", "acting", "learning", "allowed"]
    body = []
    for row in rows:
        if row.get("part", "budget") == "budget":
            rates, share = row["steps_per_second"], row["share_of_allowed"]
            size = f"{row['environments']} × {row['rollout_length']}"
            body.append(
                [
                    f"{row['game']}, {row['algorithm']}, {size}",
                    *(f"{rates[name]:,.0f}" for name in names),
                    f"{share['median']:.2f} ({share['low']:.2f} – {share['high']:.2f})",
                ]
            )
    return markdown(["", *names, "share of allowed"], body)


# The name of a section of the page -> the file of results, and what makes a table of it.
TABLES: dict[str, tuple[str, Callable[[list[Row]], str]]] = {
    "natural_gradient": ("natural_gradient", natural_gradient),
    "recurrence": ("recurrence", recurrence),
    "training_budget": ("training_throughput_cpu", budget),
}


def filled(text: str) -> str:
    """The page with every `<!-- table: NAME -->` section made anew."""
    for name, (file, table) in TABLES.items():
        result = json.loads((RESULTS / f"{file}.json").read_text())
        machine = result["machine"]
        source = (
            f"`{result['command']}`, {machine['processor']}, JAX {machine['jax']}, "
            f"commit {machine['commit']}."
        )
        section = f"<!-- table: {name} -->\n{source}\n\n{table(result['rows'])}\n<!-- end -->"
        pattern = rf"<!-- table: {name} -->.*?<!-- end -->"
        text, found = re.subn(pattern, lambda _: section, text, flags=re.DOTALL)  # noqa: B023
        if found != 1:
            raise SystemExit(f"{PAGE} has {found} sections for {name}; expected one")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if out of date")
    args = parser.parse_args()
    before = PAGE.read_text()
    after = filled(before)
    if args.check and before != after:
        raise SystemExit(f"{PAGE} does not match the results; run python -m benchmarks.tables")
    PAGE.write_text(after)


if __name__ == "__main__":
    main()
