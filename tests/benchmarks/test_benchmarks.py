"""The regression check: ratios of the same rows, by group."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import regression

ROOT = Path(__file__).parents[2]


def write(folder: Path, name: str, rows: list[dict[str, object]]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"rows": rows}))


def loss(side: str, batch: int, ratio: float) -> dict[str, object]:
    return {"loss": "soft_q", "B": batch, "side": side, "median_us": 1.0, "to_jaxsoft": ratio}


def test_ratios_are_compared_by_row_and_summed_up_by_group(tmp_path: Path) -> None:
    before = [
        loss("rlax", 16, 2.0),
        loss("rlax", 32, 4.0),
        loss("memory", 16, 1.0),
        loss("jaxsoft", 16, 1.0),
    ]
    after = [loss("rlax", 32, 2.0), loss("rlax", 16, 3.0), loss("memory", 16, 9.0)]
    write(tmp_path / "before", "a", before)
    write(tmp_path / "after", "a", [*after, loss("rlax", 64, 5.0)])
    write(tmp_path / "after", "b", before)
    groups = regression.compare(tmp_path / "after", tmp_path / "before")
    assert groups == {"a, soft_q, rlax": [0.5, 1.5]}


def test_every_kind_of_ratio_counts_in_its_direction(tmp_path: Path) -> None:
    def rows(factor: float) -> list[dict[str, object]]:
        return [
            {"part": "peers", "game": "Pong-v5", "times_as_fast": {"median": factor}},
            {"part": "budget", "game": "Pong-v5", "share_of_allowed": {"median": factor}},
            {"part": "cost", "side": "gram", "plain_gradients_median": 1 / factor},
            {"what": "replay", "must_bytes": 1, "ratio": 1 / factor},
            {"what": "host process", "peak_bytes": 1},
        ]

    write(tmp_path / "before", "a", rows(1.0))
    write(tmp_path / "after", "a", rows(0.5))
    groups = regression.compare(tmp_path / "after", tmp_path / "before")
    assert groups == {
        "a, peers": [0.5],
        "a, budget": [0.5],
        "a, cost, gram": [0.5],
        "a": [0.5],
    }


def test_committed_results_are_no_worse_than_themselves() -> None:
    groups = regression.compare(regression.RESULTS)
    assert len(groups) > 15
    assert {value for values in groups.values() for value in values} == {1.0}


@pytest.mark.parametrize(
    ("ratio", "rest", "code"),
    [(2.0, [], 0), (1.7, [], 0), (1.5, [], 1), (1.5, ["--factor", "1.5"], 0), (None, [], 1)],
)
def test_the_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ratio: float | None,
    rest: list[str],
    code: int,
) -> None:
    write(tmp_path / "before", "a", [loss("rlax", 16, 2.0)])
    write(tmp_path / "after", "a", [] if ratio is None else [loss("rlax", 16, ratio)])
    monkeypatch.setattr(regression, "RESULTS", tmp_path / "before")
    monkeypatch.setattr(sys, "argv", ["regression", str(tmp_path / "after"), *rest])
    if code == 0:
        regression.main()
        assert "a, soft_q, rlax" in capsys.readouterr().out
    else:
        with pytest.raises(SystemExit, match="has no results" if ratio is None else "worse"):
            regression.main()


@pytest.mark.parametrize(
    "module",
    ["losses", "natural", "memory", "training", "recurrence"],
)
def test_help(module: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{module}", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--json" in shown
    assert "--quick" in shown
