"""The tables of a study, made from its curves.csv and runs.csv and nothing else."""

from __future__ import annotations

import numpy as np
import pandas as pd

from experiments.analysis import statistics
from experiments.analysis.curves import Results, nearness
from experiments.report.markdown import interval, number, table

__all__ = ["NAMES", "command", "goals", "made", "pairs", "parts", "reached", "runs"]

NAMES = {"episode_return": "return", "episode_length": "length of a game"}


def command(name: str, preset: str) -> str:
    """What makes the results of a preset."""
    module = name if name.startswith("figure") else f"questions {name}"
    return f"python -m experiments.{module} --preset {preset}"


def parts(name: str, preset: str, results: Results) -> dict[str, str]:
    """The pieces of table.md by name."""
    study = results.study
    found = {"title": f"# {study.title}", "made": made(command(name, preset), results.runs)}
    found |= {NAMES[measure]: reached(results, measure) for measure in study.measures}
    if study.pairs and (text := pairs(results)):
        found["pairs"] = text
    if study.goals:
        found["goals"] = goals(results)
    return found | {"runs": "Runs:\n\n" + runs(results.runs)}


def made(by: str, rows: pd.DataFrame) -> str:
    """Where results come from."""
    seconds = rows["seconds"].sum()
    steps = (rows["steps"] * (rows["seeds"].str.count(" ") + 1)).sum()
    took = f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min"
    device, processor, jax = (
        ", ".join(rows[name].unique()) for name in ("device", "processor", "jax")
    )
    commit = ", ".join(rows["commit"].str.split().explode().unique())
    count = f"{len(rows)} run" + ("s" if len(rows) > 1 else "")
    return (
        f"`{by}`: {count}, {steps / 1e6:,.1f} million steps, {took} of runs; "
        f"device {device} ({processor}), JAX {jax}, commit {commit}."
    )


def reached(results: Results, measure: str) -> str:
    """What each variant reached, and against the one that the others are compared with."""
    what, variants, against = NAMES[measure], results.study.variants, results.study.against
    rows = []
    for (game, variant), curve in results.varied(measure).items():
        final = curve.final[measure]
        mean, deviation = statistics.mean_and_deviation(final)
        spread = "" if np.isnan(deviation) else f" ± {number(deviation)}"
        row = {
            "game": game,
            "": variants[variant].label,
            "seeds": len(final),
            "steps": f"{curve.steps[-1]:,.0f}",
            f"{what}, last tenth: mean ± std": number(mean) + spread,
            "IQM [95 %]": interval(statistics.iqm_estimate(final)),
            "mean of the run: IQM [95 %]": interval(statistics.iqm_estimate(curve.area(measure))),
        }
        if against:
            difference = improvement = ""
            if variant != against and (game, against) in results.curves:
                other = results.curves[game, against].final[measure]
                found = statistics.compare(final, other)
                difference = interval(found.difference)
                few = np.isnan(found.difference.low)
                improvement = "–" if few else f"{found.improvement:.2f}"
            row[f"IQM − IQM of {variants[against].label}"] = difference
            row["P(greater)"] = improvement
        rows.append(row)
    return table(pd.DataFrame(rows), left=2)


def pairs(results: Results) -> str:
    """The tests of equivalence."""
    rows = []
    for game in results.games:
        for pair in results.study.pairs:
            if any((game, name) not in results.curves for name in pair):
                continue
            found = nearness(*(results.curves[game, name] for name in pair))
            enough = np.isfinite(found.ratio.high)
            shown = "yes" if found.shown else "not shown"
            rows.append(
                {
                    "game": game,
                    "pair": " – ".join(results.study.variants[name].label for name in pair),
                    "seeds": f"{found.counts[0]} + {found.counts[1]}",
                    "distance of the mean curves": number(found.distance),
                    "distance of two seeds of one method": number(found.within),
                    "ratio [90 %]": interval(found.ratio),
                    "nearer than seeds?": shown if enough else "too few seeds",
                    "p, no difference": "–" if np.isnan(found.p) else f"{found.p:.3f}",
                    "ratio of the pair on one seed": number(found.paired),
                }
            )
    return table(pd.DataFrame(rows), left=2) if rows else ""


def goals(results: Results) -> str:
    """Steps, and machine seconds, after which half of the seeds had reached a return."""
    seconds, rows = results.seconds_per_step(), []
    for (game, variant), curve in results.curves.items():
        if game not in results.study.goals:
            continue
        goal = results.study.goals[game]
        steps = curve.reached(goal)
        median = float(np.quantile(steps, 0.5, method="higher"))
        rows.append(
            {
                "game": game,
                "": results.study.variants[variant].label,
                "return": number(goal),
                "seeds that reached it": f"{np.isfinite(steps).sum()} of {len(steps)}",
                "median steps": number(median),
                "machine seconds per seed": number(median * seconds[game, variant]),
            }
        )
    return table(pd.DataFrame(rows), left=2)


def runs(rows: pd.DataFrame) -> str:
    """What was run."""
    seeds = rows["seeds"].str.split()
    shown = pd.DataFrame(
        {
            "game": rows["game"],
            "variant": rows["variant"],
            "seeds": [f"{x[0]}–{x[-1]}" if len(x) > 2 else ", ".join(x) for x in seeds],
            "steps": rows["steps"].map("{:,}".format),
            "of": rows["of_steps"].map("{:,}".format),
            "minutes": (rows["seconds"] / 60).map("{:.1f}".format),
            "steps/s": rows["steps_per_second"].map("{:,}".format),
            "commit": rows["commit"],
        }
    )
    return table(shown, left=2)
