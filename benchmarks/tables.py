"""Rewrites the tables of the documentation from the committed results.

python -m benchmarks.tables [--check]
"""

import argparse
import itertools
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "docs" / f"{name}.md" for name in ("performance", "accelerators")]
Row = dict[str, Any]
Table = tuple[str, Callable[[list[Row]], str]]


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


def spread(row: Row, name: str, digits: int) -> str:
    median, low, high = (row[f"{name}_{key}"] for key in ("median", "low", "high"))
    return f"{median:,.{digits}f} ({low:,.{digits}f} – {high:,.{digits}f})"


def natural_cost(rows: list[Row]) -> str:
    head = ["network, parameters, batch", "", "ms", "plain gradients", "residual"]
    return markdown(head, [natural_row(row) for row in rows if row["part"] == "cost"])


def natural_damping(rows: list[Row]) -> str:
    head = ["network, parameters, batch", "", "ms", "plain gradients", "residual", "iterations"]
    body = [
        [*natural_row(row), str(row["iterations"]) if row["side"].startswith("cg") else ""]
        for row in rows
        if row["part"] == "damping"
    ]
    return markdown(head, body)


def natural_row(row: Row) -> list[str]:
    return [
        f"{row['network']}, {row['parameters']:,}, {row['batch']}",
        row["side"],
        f"{row['median_us'] / 1e3:,.1f}",
        spread(row, "plain_gradients", 1),
        f"{row['residual']:.0e}" if "residual" in row else "",
    ]


def natural_descent(rows: list[Row]) -> str:
    body = [
        [
            f"{row['network']}, {row['parameters']:,}, {row['batch']}",
            row["side"],
            f"{row['median_us'] / 1e3:,.1f}",
            str(row["steps"]),
            f"{row['loss_left']:.1e}",
        ]
        for row in rows
        if row["part"] == "descent"
    ]
    return markdown(
        ["network, parameters, batch", "", "ms a step", "steps", "of the loss is left"], body
    )


def losses(rows: list[Row]) -> str:
    """How many times as long the other sides take: geometric means and extremes over the sizes."""
    names = [name for name in dict.fromkeys(row["loss"] for row in rows) if "CNN" not in name]
    names.remove("returns")
    others = ["jax by hand", "rlax", "torch", "torch.compile"]
    body = []
    for name, dtype in itertools.product(names, ("float32", "bfloat16")):
        here = [row for row in rows if row["loss"] == name and row["dtype"] == dtype]
        cells = []
        for side in others:
            ratios = [row["to_jaxsoft"] for row in here if row["side"] == side]
            mean = statistics.geometric_mean(ratios) if ratios else None
            cells.append(f"{mean:.2f} ({min(ratios):.2f} – {max(ratios):.2f})" if mean else "–")
        memory = [
            1 / row["to_jaxsoft"]
            for row in here
            if row["side"] == "memory" and row["T"] * row["B"] >= 1 << 22
        ]
        over = f"{min(memory):.1f} – {max(memory):.1f}" if memory else "–"
        body.append([f"{name}, {dtype}", *cells, over])
    return markdown(["", *others, "over memory"], body)


def returns(rows: list[Row]) -> str:
    here = [row for row in rows if row["loss"] == "returns"]
    body = []
    for ours, theirs in zip(here[::2], here[1::2], strict=True):
        cells = [f"{x['median_us']:,.0f}" for x in (ours, theirs)]
        body.append([f"{ours['T']} × {ours['B']}", *cells, f"{theirs['to_jaxsoft']:.1f}"])
    return markdown(["T × B", "jaxsoft, µs", "rlax, µs", "times as long"], body)


def network(rows: list[Row]) -> str:
    body = [
        [
            f"{row['B']:,}",
            row["side"],
            f"{row['frames_per_second']:,.0f}",
            f"{row['share_of_peak']:.0%}",
            f"{row['to_jaxsoft']:.2f}",
        ]
        for row in rows
        if "CNN" in row["loss"]
    ]
    head = ["batch", "", "frames/s", "share of peak", "times as long"]
    return markdown(head, body)


def memory(rows: list[Row]) -> str:
    body = [
        [
            row["what"],
            f"{row['must_bytes'] / 1e6:,.1f}" if "must_bytes" in row else "",
            f"{row['peak_bytes'] / 1e6:,.1f}",
            f"{row['ratio']:.2f}" if "ratio" in row else "",
        ]
        for row in rows
    ]
    return markdown(["MB", "must", "peak", "ratio"], body)


def budget(rows: list[Row]) -> str:
    """Steps a second of the program and of its parts alone."""
    names = ["whole", "environment", "acting", "learning", "allowed"]
    body = []
    for row in rows:
        if row["part"] == "budget":
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


def peers(rows: list[Row]) -> str:
    body = []
    for row in rows:
        if row["part"] == "peers":
            faster = row["times_as_fast"]
            body.append(
                [
                    f"{row['game']}, {row['environments']} × {row['rollout_length']}",
                    *(
                        f"{x['median']:,.0f} ({x['low']:,.0f} – {x['high']:,.0f})"
                        for x in row["steps_per_second"].values()
                    ),
                    f"{faster['median']:.2f} ({faster['low']:.2f} – {faster['high']:.2f})",
                ]
            )
    return markdown(["A2C", "jaxsoft", "stable-baselines3", "times as fast"], body)


def scaling(rows: list[Row]) -> str:
    body = []
    for row in rows:
        if row["part"].startswith("scaling"):
            rate = row["steps_per_second"]
            size = f"{row['seeds']} × {row['environments']} × {row['rollout_length']}"
            body.append(
                [
                    f"{row['game']}, {row['part'].removeprefix('scaling: ')}",
                    size,
                    f"{rate['median']:,.0f} ({rate['low']:,.0f} – {rate['high']:,.0f})",
                ]
            )
    return markdown(["A2C", "seeds × environments × steps", "steps/s"], body)


def compiled_losses(rows: list[Row]) -> str:
    """Each side's kernels and launches, bytes over those that must move, seconds to compile."""
    sides = ("jaxsoft", "jax by hand", "rlax")
    here = [row for row in rows if row["part"] == "losses"]
    body = []
    for name in dict.fromkeys((row["loss"], row["T"], row["B"], row["A"]) for row in here):
        loss, *size = name
        cells = [f"{loss}, {' × '.join(map(str, size))}"]
        for side in sides:
            found = [
                row
                for row in here
                if (row["loss"], row["T"], row["B"], row["A"], row["side"]) == (*name, side)
            ]
            cells.append(compiled_cell(found[0]) if found else "–")
        body.append(cells)
    return markdown(["T × B × A", *sides], body)


def compiled_cell(row: Row) -> str:
    launches = "" if row["launches"] == row["kernels"] else f" ({row['launches']:,})"
    ratio = f"{row['ratio']:.1f}" if "ratio" in row else f"{row['moved_bytes'] / 1e6:,.0f} MB"
    return f"{row['kernels']}{launches}; {ratio}; {row['compile_seconds']:.1f} s"


def compiled_recurrence(rows: list[Row]) -> str:
    here = [row for row in rows if row["part"] == "recurrence"]
    sides = list(dict.fromkeys(row["side"] for row in here if row["side"] != "library"))
    body = []
    for size in dict.fromkeys((row["T"], row["B"], row["n"]) for row in here):
        found = {r["side"]: r for r in here if (r["T"], r["B"], r["n"]) == size}
        cells = [compiled_cell(found[side]) if side in found else "–" for side in sides]
        body.append([f"{size[0]} × {size[1]}, {size[2]}", *cells])
    return markdown(["T × B, n", *sides], body)


def compiled_agents(rows: list[Row]) -> str:
    here = [row for row in rows if row["part"] == "agents"]
    keys = ("algorithm", "environments", "rollout_length", "dtype")
    body = []
    for name in dict.fromkeys(tuple(row[key] for key in keys) for row in here):
        found = {r["what"]: r for r in here if tuple(r[key] for key in keys) == name}
        act, update = found["act"], found["update"]
        body.append(
            [
                f"{name[0]}, {name[1]} × {name[2]}, {name[3]}",
                f"{act['launches']:,}",
                f"{update['launches']:,}",
                f"{update['moved_bytes'] / 1e6:,.0f}",
                f"{update['temporary_bytes'] / 1e6:,.0f}",
                f"{update['compile_seconds']:.1f}",
                f"{update['to_network']:.1f}",
            ]
        )
    head = ["", "launches, act", "update", "MB moved", "MB held", "s to compile", "× its network"]
    return markdown(head, body)


def compiled_others(rows: list[Row]) -> str:
    body = [
        [
            ", ".join(str(r[k]) for k in ("network", "game", "algorithm", "side") if k in r),
            f"{r['kernels']:,}",
            f"{r['launches']:,}",
            f"{r['moved_bytes'] / 1e6:,.0f}",
            f"{r['temporary_bytes'] / 1e6:,.0f}",
            f"{r['compile_seconds']:.1f}",
        ]
        for r in rows
        if r["part"] in ("natural", "training")
    ]
    return markdown(["", "kernels", "launches", "MB moved", "MB held", "s to compile"], body)


# The name of a section -> the file of results, and what makes a table of it.
TABLES: dict[str, Table] = {
    "losses": ("losses_cpu", losses),
    "memory": ("memory_cpu", memory),
    "natural_cost": ("natural_cpu", natural_cost),
    "natural_damping": ("natural_cpu", natural_damping),
    "natural_descent": ("natural_cpu", natural_descent),
    "network": ("losses_cpu", network),
    "recurrence": ("recurrence_cpu", recurrence),
    "returns": ("losses_cpu", returns),
    "training_budget": ("training_cpu", budget),
    "training_peers": ("training_cpu", peers),
    "training_scaling": ("training_cpu", scaling),
}
for name, table in {
    "losses": compiled_losses,
    "recurrence": compiled_recurrence,
    "agents": compiled_agents,
    "others": compiled_others,
}.items():
    TABLES |= {f"{name}_{on}": (f"accelerators_{on}", table) for on in ("gpu", "tpu")}


def filled(text: str) -> str:
    """A page with every `<!-- table: NAME -->` section made again."""
    for name in re.findall(r"<!-- table: (\w+) -->", text):
        if name not in TABLES:
            raise SystemExit(f"there is no table {name}; there are {', '.join(TABLES)}")
        file, table = TABLES[name]
        result = json.loads((RESULTS / f"{file}.json").read_text())
        machine = result["machine"]
        where = machine["device"] if file.startswith("accelerators") else machine["processor"]
        source = (
            f"`{result['command']}`, {where}, JAX {machine['jax']}, commit {machine['commit']}."
        )
        section = f"<!-- table: {name} -->\n{source}\n\n{table(result['rows'])}\n<!-- end -->"
        pattern = rf"<!-- table: {name} -->.*?<!-- end -->"
        text, found = re.subn(pattern, lambda _: section, text, flags=re.DOTALL)  # noqa: B023
        if found != 1:
            raise SystemExit(f"{found} sections for {name}; expected one, and its end")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if out of date")
    args = parser.parse_args()
    for page in PAGES:
        before = page.read_text()
        after = filled(before)
        if args.check and before != after:
            raise SystemExit(f"{page} does not match the results; run python -m benchmarks.tables")
        page.write_text(after)


if __name__ == "__main__":
    main()
