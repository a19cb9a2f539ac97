"""What the paper says of its experiments, and what ours say of it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.analysis import statistics
from experiments.report.tables import Data, interval, load, markdown, nearness, number, varied

__all__ = ["CLAIMS", "Claim", "table"]


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


def table(results: Path) -> str:
    """Every claim on every game that was run."""
    head = ["the paper", "game", "seeds", "here", "in agreement?"]
    names = dict.fromkeys(claim.study for claim in CLAIMS)
    data = {
        name: [load(name, file.parent)[1] for file in sorted(results.glob(f"{name}/*/curves.csv"))]
        for name in names
    }
    body = []
    for claim in CLAIMS:
        for own in data[claim.study]:
            body += _rows(claim, own)
    return markdown(head, body, left=2)


def _rows(claim: Claim, data: Data) -> list[list[str]]:
    rows = []
    for game in dict.fromkeys(game for game, _ in varied(data, claim.measure)):
        x, y = (data.get((game, name)) for name in (claim.first, claim.second))
        if x is None or y is None:
            continue
        seeds = " / ".join(dict.fromkeys(str(len(c.seeds)) for c in (x, y)))
        if claim.expected == "alike":
            found = nearness(x, y, claim.measure)
            here = f"distance {number(found.distance)}"
            if np.isfinite(found.ratio.value):
                here += f", {interval(found.ratio)} of that between seeds"
            few = np.isnan(found.ratio.high)
            verdict = "too few seeds" if few else "yes" if found.shown else "undecided"
        else:
            difference = statistics.compare(x.final[claim.measure], y.final[claim.measure])[0]
            here = (
                f"{interval(difference)} against {number(statistics.iqm(y.final[claim.measure]))}"
            )
            verdict = _verdict(claim.expected, difference)
        rows.append([claim.text, game, seeds, here, verdict])
    return rows


def _verdict(expected: str, difference: statistics.Estimate) -> str:
    """By where 0 is to the interval."""
    if np.isnan(difference.low):
        return "too few seeds"
    more, less = difference.low > 0, difference.high < 0
    agrees = {"more": more, "less": less, "not less": not less}[expected]
    against = {"more": less, "less": more, "not less": less}[expected]
    return "yes" if agrees else "no" if against else "undecided"
