"""Numbers, tables and pages as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from experiments.analysis.statistics import Estimate

__all__ = ["filled", "interval", "number", "table"]


def number(x: float) -> str:
    """Three digits or so."""
    if not np.isfinite(x):
        return "–" if np.isnan(x) else "∞"
    size = abs(x)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{x:,.{digits}f}".replace("-", "−")


def interval(x: Estimate) -> str:
    """A number with its interval, if there is one."""
    if np.isnan(x.low):
        return number(x.value)
    return f"{number(x.value)} [{number(x.low)}, {number(x.high)}]"


def table(frame: pd.DataFrame, left: int = 1) -> str:
    """A table whose first columns are words and whose others are numbers."""
    rule = ["---"] * left + ["--:"] * (frame.shape[1] - left)
    rows: list[Iterable[object]] = [frame.columns, rule, *frame.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def filled(page: str, found: Mapping[str, str]) -> str:
    """A page with what is between `<!-- results: NAME -->` and `<!-- end -->` replaced."""

    def section(match: re.Match[str]) -> str:
        name = match[1]
        if name not in found:
            raise SystemExit(f"a page asks for the results of {name}; there are {sorted(found)}")
        return f"<!-- results: {name} -->\n\n{found[name]}\n\n<!-- end -->"

    return re.sub(r"<!-- results: (.*?) -->.*?<!-- end -->", section, page, flags=re.DOTALL)
