"""What the paper says of its experiments, and what ours say of it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.analysis import statistics
from experiments.analysis.curves import Results, load, nearness
from experiments.report.markdown import interval, number, table
from experiments.studies import STUDIES

__all__ = ["CLAIMS", "Claim", "agreement"]


class Claim(NamedTuple):
    """Of two variants of a study.

    Attributes:
      text: the paper's words, shortened.
      study: where it is tried.
      first: a variant.
      second: another.
      expected: of the first against the second: "more", "less", "not less", or "alike".
      measure: in what.
    """

    text: str
    study: str
    first: str
    second: str
    expected: str
    measure: str = "episode_return"


CLAIMS = (
    Claim("§6.1: proper is the same as naive or better", "figure1", "proper", "naive", "not less"),
    Claim(
        "§6.2: the entropy bonus is a bit better than standard DQN",
        "figure2", "entropy_1", "hard_1", "more",
    ),
    Claim("§6.2: the KL penalty is worse than the bonus", "figure2", "kl_1", "entropy_1", "less"),
    Claim(
        "§6.2: the bonus makes games longer", "figure2", "entropy_1", "kl_1", "more",
        "episode_length",
    ),
    Claim(
        "§6.3: policy gradient and Q-learning have almost identical curves",
        "figure3", "policy_gradient", "soft_q", "alike",
    ),
    Claim(
        "§6.3: c = 100 does not work (\"unstable\") for policy gradient",
        "figure3", "policy_gradient_unscaled", "policy_gradient", "less",
    ),
    Claim(
        "§6.3: c = 100 does not work (\"unstable\") for Q-learning",
        "figure3", "soft_q_unscaled", "soft_q", "less",
    ),
)  # fmt: skip


def agreement(results: Path) -> str:
    """Every claim on every game that was run."""
    names = dict.fromkeys(claim.study for claim in CLAIMS)
    found = {
        name: [load(STUDIES[name], x.parent) for x in sorted(results.glob(f"{name}/*/curves.csv"))]
        for name in names
    }
    rows = [row for claim in CLAIMS for own in found[claim.study] for row in _rows(claim, own)]
    return table(pd.DataFrame(rows), left=2)


def _rows(claim: Claim, results: Results) -> list[dict[str, str]]:
    rows = []
    data = results.varied(claim.measure)
    for game in results.games:
        x, y = (data.get((game, name)) for name in (claim.first, claim.second))
        if x is None or y is None:
            continue
        if claim.expected == "alike":
            near = nearness(x, y, measure=claim.measure)
            here = f"distance {number(near.distance)}"
            if np.isfinite(near.ratio.value):
                here += f", {interval(near.ratio)} of that between seeds"
            few = np.isnan(near.ratio.high)
            verdict = "too few seeds" if few else "yes" if near.shown else "undecided"
        else:
            finals = x.final[claim.measure], y.final[claim.measure]
            difference = statistics.compare(*finals).difference
            here = f"{interval(difference)} against {number(statistics.iqm(finals[1]))}"
            verdict = _verdict(claim.expected, difference)
        rows.append(
            {
                "the paper": claim.text,
                "game": game,
                "seeds": " / ".join(dict.fromkeys(str(len(c.seeds)) for c in (x, y))),
                "here": here,
                "in agreement?": verdict,
            }
        )
    return rows


def _verdict(expected: str, difference: statistics.Estimate) -> str:
    """By where 0 is to the interval."""
    if np.isnan(difference.low):
        return "too few seeds"
    more, less = difference.low > 0, difference.high < 0
    agrees = {"more": more, "less": less, "not less": not less}[expected]
    against = {"more": less, "less": more, "not less": less}[expected]
    return "yes" if agrees else "no" if against else "undecided"
