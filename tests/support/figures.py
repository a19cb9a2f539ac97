"""Figures that are drawn, to be looked into."""

from typing import Any

import pytest
from matplotlib.figure import Figure

from jaxsoft.cli import plot


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is drawn, to be looked into."""
    made: list[Figure] = []

    def keep(*args: Any, **options: Any) -> Figure:
        made.append(Figure(*args, **options))
        return made[-1]

    monkeypatch.setattr(plot, "Figure", keep)
    return made
