"""docs/rlax.md is true: it runs, and what its tables name is what its code calls."""

import re
from pathlib import Path

import jax
import pytest

import jaxsoft

rlax = pytest.importorskip("rlax")

PAGE = (Path(__file__).parents[2] / "docs" / "rlax.md").read_text()
CODE = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))


# rlax's distributions announce that distrax will take their place.
@pytest.mark.filterwarnings("ignore:Rlax:PendingDeprecationWarning")
def test_the_page_runs() -> None:
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        exec(CODE, {})


def test_every_row_is_computed() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.splitlines()
        if line.startswith("|")
    ]
    named = [[set(re.findall(r"`(\w+)`", cell)) for cell in row[:2]] for row in rows]
    pairs = [
        ({name for name in theirs if hasattr(rlax, name)}, set(ours) & set(jaxsoft.__all__))
        for theirs, ours in named
    ]
    pairs = [(theirs, ours) for theirs, ours in pairs if theirs]
    assert all(ours for _, ours in pairs)
    assert set.union(*(x for x, _ in pairs)) == set(re.findall(r"rlax\.([a-z]\w*)", CODE))
    assert set.union(*(x for _, x in pairs)) <= set(re.findall(r"jaxsoft\.(\w+)", CODE))
