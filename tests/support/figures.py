"""Figures that are drawn, to be looked into."""

from collections.abc import Sequence
from typing import Any

import pytest
from matplotlib.figure import Figure

from jaxsoft.cli import plot
from jaxsoft.cli.plot import Panel


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is drawn, to be looked into."""
    made: list[Figure] = []

    def keep(*args: Any, **options: Any) -> Figure:
        made.append(Figure(*args, **options))
        return made[-1]

    monkeypatch.setattr(plot, "Figure", keep)
    return made


def filled(rows: Sequence[Sequence[Panel | None]]) -> list[list[Panel]]:
    """Rows of panels that have no empty places."""
    assert all(panel is not None for row in rows for panel in row)
    return [[panel for panel in row if panel is not None] for row in rows]
