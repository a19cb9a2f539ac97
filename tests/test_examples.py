"""The examples run as they stand, the README's among them, and do what they say."""

import re
import runpy
from pathlib import Path

import jax
import pytest

import jaxsoft
from jaxsoft.agents.registry import ALGORITHMS
from jaxsoft.cli import train

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def test_the_readme_shows_the_example_as_it_stands() -> None:
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block == (EXAMPLES / "catch.py").read_text()


@pytest.mark.parametrize("loss", [jaxsoft.tied_soft_q_loss, jaxsoft.a2c_loss])
def test_the_training_loop_learns_the_game(loss: object, capsys: pytest.CaptureFixture) -> None:
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        catch = runpy.run_path(str(EXAMPLES / "catch.py"))
        _, mean_return = catch["train"](loss)
    assert mean_return > 0.8
    assert len(capsys.readouterr().out.splitlines()) == catch["UPDATES"] // 100


def test_the_guide_runs(capsys: pytest.CaptureFixture) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "guide.md").read_text(), re.DOTALL)
    with jax.enable_x64(False):
        exec("\n".join(blocks), {})
    assert "All preconditions hold" in capsys.readouterr().out


def test_the_training_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    page = (ROOT / "docs" / "training.md").read_text()
    [command] = re.findall(r"^    jaxsoft train (.* --out runs/catch)$", page, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    shared: dict = {}
    figures = {}
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        assert train.main(command.split()) == 0
        for section in page.split("\n## ")[1:]:
            for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
                capsys.readouterr()
                exec(block, shared)
                title = section.splitlines()[0]
                said = capsys.readouterr().out.rpartition("[")[2]
                figures[title] = [float(x) for x in re.findall(r"-?\d+\.?\d*", said)]
    assert sum(figures["Use the policy in your own program"]) > 4  # of eight games
    assert len(figures["Your own loss"]) == 2
    assert shared["entry"].defaults(images=False)["tau"] == 0.1
    assert min(figures["Your own agent"]) > 0
    assert max(figures["Your own environment"]) < 10  # steps; at random they are about twenty


def test_the_training_page_names_every_algorithm() -> None:
    page = (ROOT / "docs" / "training.md").read_text()
    [table] = re.findall(r"^## Algorithms\n\n((?:\|.*\n)+)", page, re.MULTILINE)
    first = "".join(row.split("|")[1] for row in table.splitlines())
    assert sorted(re.findall(r"`(\w+)`", first)) == sorted(ALGORITHMS)


def test_the_equivalence_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    with jax.numpy_rank_promotion("allow"):
        runpy.run_path(str(EXAMPLES / "equivalence.py"), run_name="__main__")
    out = capsys.readouterr().out
    # Figures differ in their last digits from one version of JAX to the next; words do not.
    shown = re.findall(r"```\n(cosine.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    digits = r"[-+.\de]*\d"
    assert (
        re.sub(digits, "#", shown[0]).split()
        == re.sub(digits, "#", out).split()[-len(shown[0].split()) :]
    )
    rows = re.findall(r"^(.{38})\s+(\S+e[+-]\d+)\s+(\S+e[+-]\d+)\s+(\S+)$", out, re.MULTILINE)
    assert len(rows) == 7
    for name, expected, reweighted, noticed in rows:
        fulfilled = name.startswith("none")
        assert (float(expected) < 1e-12) == fulfilled
        assert (float(reweighted) < 1e-12) == (fulfilled or noticed == "acting")
        assert (noticed == "–") == fulfilled
