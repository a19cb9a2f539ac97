"""Figures that are drawn, to be looked into."""

import pytest
from matplotlib.figure import Figure

from jaxsoft.cli import plot


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is drawn, to be looked into."""
    made = []

    def keep(*args: object, **options: object) -> Figure:
        made.append(Figure(*args, **options))
        return made[-1]

    monkeypatch.setattr(plot, "Figure", keep)
    return made
