"""What is published is what the committed CSVs say, and nothing that is typed by hand."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import studies
from experiments.analysis import statistics
from experiments.analysis.statistics import Estimate
from experiments.engine import collected, study
from experiments.report import claims, publish
from experiments.report import tables as report
from experiments.studies import GRADIENTS, STUDIES


def test_tables_figures_and_pages_are_of_the_csvs() -> None:
    assert publish.stale() == []


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Figure 1's results alone, with nothing that asks for others."""
    shutil.copytree(publish.RESULTS / "figure1", tmp_path / "figure1")
    monkeypatch.setattr(publish, "PAGES", ())
    assert publish.stale(tmp_path) == []
    return tmp_path


def test_a_changed_number_is_noticed(copy: Path) -> None:
    curves = copy / "figure1" / "quick" / "curves.csv"
    lines = curves.read_text().splitlines()
    cells = lines[-1].split(",")
    cells[4] = str(float(cells[4]) + 0.5)
    curves.write_text("\n".join([*lines[:-1], ",".join(cells)]) + "\n")
    folder = copy / "figure1" / "quick"
    assert {folder / "table.md", folder / "figure.png"} <= set(publish.stale(copy))


def test_an_edited_table_is_noticed(copy: Path) -> None:
    table = copy / "figure1" / "quick" / "table.md"
    table.write_text(table.read_text().replace("0.", "0.9", 1))
    assert publish.stale(copy) == [table]


def test_an_edited_page_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr(publish, "PAGES", (page,))
    found = {"claims": "| a |"}
    monkeypatch.setattr(publish, "parts", lambda *_: found)
    page.write_text("x\n<!-- results: claims -->\n<!-- end -->\ny\n")
    page.write_text(publish.filled(page.read_text(), found))
    assert page.read_text() == "x\n<!-- results: claims -->\n\n| a |\n\n<!-- end -->\ny\n"
    assert page not in publish.stale(tmp_path)
    page.write_text(page.read_text().replace("| a |", "| b |"))
    assert page in publish.stale(tmp_path)
    page.write_text("<!-- results: nonsense -->\n<!-- end -->")
    with pytest.raises(SystemExit, match="nonsense"):
        publish.stale(tmp_path)


def test_every_figure_of_the_pages_is_there_and_asked_for() -> None:
    shown = set()
    for page in publish.PAGES:
        shown |= set(re.findall(r"\(figures/(.*?)\)", page.read_text()))
    there = {file.name for file in publish.FIGURES.iterdir()}
    assert shown <= there
    assert {name for name in there if name not in shown} == set()


def test_results_say_where_they_come_from() -> None:
    for _, _, folder in publish.folders():
        for row in report.read_rows(folder / "runs.csv"):
            assert row["device"]
            assert row["processor"]
            assert re.fullmatch(r"[0-9a-f]{7,}( [0-9a-f]{7,})*", row["commit"]), folder
            assert float(row["seconds"]) > 0
            assert "--algorithm" in row["settings"]


def test_small_games_have_thirty_seeds() -> None:
    for name in ("figure1", "figure2", "figure3"):
        _, data, _ = report.load(name, publish.RESULTS / name / "quick")
        assert {variant for _, variant in data} == set(STUDIES[name].variants)
        assert min(len(curve.seeds) for curve in data.values()) >= 30
        for curve in data.values():
            assert len(curve.steps) == 40


@pytest.mark.parametrize(
    ("expected", "verdicts"),
    [
        ("more", ["yes", "no", "undecided"]),
        ("less", ["no", "yes", "undecided"]),
        ("not less", ["yes", "no", "yes"]),
    ],
)
def test_verdicts_go_by_the_interval(expected: str, verdicts: list[str]) -> None:
    ends = [(0.5, 2.0), (-2.0, -0.5), (-1.0, 1.0)]
    found = [claims._verdict(expected, Estimate(sum(x) / 2, *x)) for x in ends]
    assert found == verdicts
    nan = float("nan")
    assert claims._verdict(expected, Estimate(1.0, nan, nan)) == "too few seeds"


def test_claims_are_about_variants_that_exist() -> None:
    for claim in claims.CLAIMS:
        assert {claim.first, claim.second} <= set(STUDIES[claim.study].variants)
        assert claim.measure in STUDIES[claim.study].measures


def test_what_is_not_run_is_said() -> None:
    text = publish.not_run(publish.RESULTS)
    for name, whole in STUDIES.items():
        for key, preset in whole.presets.items():
            runs = publish.RESULTS / name / key / "runs.csv"
            there = report.read_rows(runs) if runs.exists() else []
            seeds = sum(len(row["seeds"].split()) for row in there)
            wanted = len(preset.steps) * len(whole.variants) * preset.seeds
            assert (f"{name} --preset {key}`" in text) == (seeds < wanted)


def test_of_a_run_that_was_broken_off_the_rest_is_left(tmp_path: Path) -> None:
    figure3 = STUDIES["figure3"]
    todo = study.cells(figure3, figure3.presets["cpu"], tmp_path, games=["Pong-v5"], seeds=[0])
    runs = tmp_path / "runs.csv"
    assert publish._left(todo, runs) == todo
    cell = {"game": "Pong-v5", "seeds": "0"}
    rows = [cell | {"variant": "soft_q", "steps": "1399999"}]
    rows += [cell | {"variant": "policy_gradient", "steps": "1000000"}]
    collected.write_csv(runs, rows)
    left = {cell.variant: cell.steps for cell in publish._left(todo, runs)}
    assert left == {
        "policy_gradient": 400_000,
        "policy_gradient_unscaled": 1_400_000,
        "soft_q_unscaled": 1_400_000,
    }


def test_games_of_one_length_are_not_told_by_length() -> None:
    _, data, _ = report.load("figure2", publish.RESULTS / "figure2" / "quick")
    told = {game for game, _ in report.varied(data, "episode_length")}
    assert told == {"CartPole-v1", "FrozenLake-v1"}
    assert report.varied(data, "episode_return") == data


def test_numbers_are_short() -> None:
    shown = [report.number(x) for x in (1234.5, 123.4, 12.34, 1.234, 0.1234, -0.5)]
    assert shown == ["1,234", "123", "12.3", "1.23", "0.123", "−0.500"]
    assert report.number(float("inf")) == "∞"
    assert report.number(float("nan")) == "–"


def test_study_and_gradients_do_not_share_a_name() -> None:
    assert "gradients" not in STUDIES
    assert set(GRADIENTS.presets) == {"quick"}


def test_optimisers_are_compared_at_the_best_of_the_steps_that_were_tried() -> None:
    _, data, _ = report.load("steps", publish.RESULTS / "steps" / "quick")
    tried = STUDIES["steps"].variants
    for name, (label, _, _) in studies.OPTIMISERS.items():
        names = [key for key, variant in tried.items() if variant.line == label]
        for game, best in studies.BEST[name].items():
            areas = [float(statistics.iqm(data[game, key].area())) for key in names]
            at = int(np.argmax(areas))
            assert tried[names[at]].x == best, (name, game)
            assert 0 < at < len(names) - 1, (name, game)  # else a further step might be better
