"""Figures that are drawn, to be looked into."""

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is drawn, to be looked into."""
    made = []

    def keep(*args: object, **options: object) -> Figure:
        made.append(Figure(*args, **options))
        return made[-1]

    for module in ("jaxsoft.cli.plot", "experiments.report.panels"):
        monkeypatch.setattr(f"{module}.Figure", keep)
    return made
