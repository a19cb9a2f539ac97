"""What is published is what the committed CSVs say, and nothing that is typed by hand."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from experiments import studies
from experiments.analysis import curves, statistics
from experiments.analysis.curves import Results
from experiments.analysis.statistics import Estimate
from experiments.engine import collected, runs
from experiments.engine.collected import RESULTS
from experiments.report import claims, markdown, publish, remaining
from experiments.studies import GRADIENTS, STUDIES
from jaxsoft.cli import assembly
from jaxsoft.cli.plot import draw
from tests.support.figures import filled


def load(name: str, preset: str = "quick") -> Results:
    return curves.load(STUDIES[name], RESULTS / name / preset)


def test_tables_and_pages_are_of_the_csvs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(assembly, "look_up")  # no emulator is asked
    found = publish.texts()
    assert set(publish.PAGES) < set(found)
    assert {path.name for path in set(found) - set(publish.PAGES)} == {"table.md"}
    for path, text in found.items():
        assert path.read_text() == text, f"{path} is not of the CSVs: run make results"


def test_a_changed_number_changes_the_table_and_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "limits" / "quick"
    shutil.copytree(RESULTS / "limits" / "quick", folder)
    page = tmp_path / "page.md"
    page.write_text("x\n<!-- results: limits/quick return -->\n<!-- end -->\ny\n")
    before = publish.texts(tmp_path, [page])
    assert before[folder / "table.md"] == (folder / "table.md").read_text()
    found = collected.read(folder)
    found.curves.loc[found.curves.index[-1], "episode_return"] += 0.5
    collected.write(folder, found)
    after = publish.texts(tmp_path, [page])
    assert all(after[path] != before[path] for path in (folder / "table.md", page))


def test_pages_are_filled_between_marks() -> None:
    page = "x\n<!-- results: a b -->\nold\n<!-- end -->\ny\n"
    filled = markdown.filled(page, {"a b": "| a |"})
    assert filled == "x\n<!-- results: a b -->\n\n| a |\n\n<!-- end -->\ny\n"
    assert markdown.filled(filled, {"a b": "| a |"}) == filled
    with pytest.raises(SystemExit, match=r"results of a b; there are \['c'\]"):
        markdown.filled(page, {"c": ""})


def test_a_table_has_words_on_the_left_and_numbers_on_the_right() -> None:
    frame = pd.DataFrame([["a", 1, "2"]], columns=["x", "", ""])
    assert markdown.table(frame) == "| x |  |  |\n| --- | --: | --: |\n| a | 1 | 2 |"
    assert markdown.table(frame, left=2).splitlines()[1] == "| --- | --- | --: |"


def test_every_figure_is_there_and_shown() -> None:
    shown = set()
    for page in publish.PAGES:
        shown |= set(re.findall(r"\(figures/(.*?)\)", page.read_text()))
    assert shown == {file.name for file in publish.FIGURES.iterdir()}
    for name, preset, _ in publish.folders():
        assert f"{name}-{preset}.png" in shown


def test_figures_can_be_drawn_and_show_the_curves(tmp_path: Path, figure: list[Figure]) -> None:
    name, preset = "figure3", "cpu"
    [(_, _, rows)] = publish.drawn(name, RESULTS / name / preset)
    draw(rows, tmp_path / "figure.png")
    found = load(name, preset)
    [pong, breakout] = figure[0].axes
    assert (pong.get_title("left"), breakout.get_title("left")) == ("Pong-v5", "Breakout-v5")
    assert pong.get_xlabel() == "million steps (4 frames each)"
    thick = [line for line in pong.lines if line.get_linewidth() == 2]
    assert len(thick) == len(found.study.variants)
    curve = found.curves["Pong-v5", "policy_gradient"]
    x, y = np.asarray(thick[0].get_xydata()).T
    np.testing.assert_allclose(y, curve.measures["episode_return"].mean(axis=0))
    np.testing.assert_allclose(x, curve.steps / 1e6)


def test_figures_of_many_seeds_have_intervals() -> None:
    [(_, _, rows)] = publish.drawn("natural", RESULTS / "natural" / "quick")
    mean, middle, timed = (row[0] for row in filled(rows))
    found = load("natural")
    y = found.curves["Catch-v0", "q_rmsprop"].measures["episode_return"]
    assert mean.lines[0].high is not None
    np.testing.assert_allclose(mean.lines[0].high, y.mean(0) + y.std(0, ddof=1))
    estimate = statistics.iqm_estimate(y)
    for line in (middle.lines[0], timed.lines[0]):
        np.testing.assert_array_equal((line.y, line.low, line.high), estimate)
    rate = found.runs.query("game == 'Catch-v0' and variant == 'q_rmsprop'")["steps_per_second"]
    np.testing.assert_allclose(timed.lines[0].x, middle.lines[0].x / rate.item())
    assert (middle.x_label, timed.x_scale) == ("steps", "log")


def test_sweeps_have_a_line_for_each_method() -> None:
    [(_, _, rows)] = publish.drawn("weighting", RESULTS / "weighting" / "quick")
    found = load("weighting")
    for (panel, *_), value in zip(filled(rows), ("final", "area"), strict=True):
        assert [line.label for line in panel.lines] == ["soft Q-learning", "policy gradient"]
        np.testing.assert_array_equal(panel.lines[0].x, [0.05, 0.5, 1, 10, 100])
        curve = found.curves["Catch-v0", "soft_q_10"]
        seeds = curve.area() if value == "area" else curve.final["episode_return"]
        assert panel.lines[0].y[3] == statistics.iqm(seeds)


def test_results_say_where_they_come_from() -> None:
    rows = collected.measured()
    assert rows["commit"].str.fullmatch(r"[0-9a-f]{7,}( [0-9a-f]{7,})*").all()
    assert rows[["device", "processor"]].notna().all(axis=None)
    assert (rows["seconds"] > 0).all()
    assert rows["settings"].str.contains("--algorithm").all()


def test_small_games_have_thirty_seeds() -> None:
    for name in ("figure1", "figure2", "figure3"):
        found = load(name)
        assert {variant for _, variant in found.curves} == set(STUDIES[name].variants)
        assert min(len(curve.seeds) for curve in found.curves.values()) >= 30
        assert {len(curve.steps) for curve in found.curves.values()} == {40}


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
    text = remaining.table()
    for name, whole in STUDIES.items():
        for key, preset in whole.presets.items():
            folder = RESULTS / name / key
            seeds = 0
            if folder.exists():
                seeds = sum(map(len, collected.read_runs(folder)["seeds"].str.split()))
            wanted = len(preset.steps) * len(whole.variants) * preset.seeds
            assert (f"{name} --preset {key}`" in text) == (seeds < wanted)


def test_of_an_interrupted_run_the_rest_is_left(tmp_path: Path) -> None:
    figure3 = STUDIES["figure3"]
    todo = runs.cells(figure3, figure3.presets["cpu"], tmp_path, games=["Pong-v5"], seeds=[0])
    assert remaining.left(todo, tmp_path) == todo
    cell = {"game": "Pong-v5", "seeds": "0"}
    rows = [cell | {"variant": "soft_q", "steps": 1_399_999}]
    rows += [cell | {"variant": "policy_gradient", "steps": 1_000_000}]
    collected.write_csv(tmp_path / "runs.csv", pd.DataFrame(rows))
    left = {cell.variant: cell.steps for cell in remaining.left(todo, tmp_path)}
    assert left == {
        "policy_gradient": 400_000,
        "policy_gradient_unscaled": 1_400_000,
        "soft_q_unscaled": 1_400_000,
    }


def test_games_of_one_length_are_not_told_by_length() -> None:
    found = load("figure2")
    told = {game for game, _ in found.varied("episode_length")}
    assert told == {"CartPole-v1", "FrozenLake-v1"}
    assert found.varied("episode_return") == found.curves


def test_numbers_are_short() -> None:
    shown = [markdown.number(x) for x in (1234.5, 123.4, 12.34, 1.234, 0.1234, -0.5)]
    assert shown == ["1,234", "123", "12.3", "1.23", "0.123", "−0.500"]
    assert markdown.number(float("inf")) == "∞"
    assert markdown.number(float("nan")) == "–"


def test_study_and_gradients_do_not_share_a_name() -> None:
    assert "gradients" not in STUDIES
    assert set(GRADIENTS.presets) == {"quick"}


def test_optimisers_are_compared_at_the_best_of_the_steps_that_were_tried() -> None:
    data, tried = load("steps").curves, STUDIES["steps"].variants
    for name, (label, _, _) in studies.OPTIMISERS.items():
        names = [key for key, variant in tried.items() if variant.line == label]
        for game, best in studies.BEST[name].items():
            areas = [float(statistics.iqm(data[game, key].area())) for key in names]
            at = int(np.argmax(areas))
            assert tried[names[at]].x == best, (name, game)
            assert 0 < at < len(names) - 1, (name, game)  # else a further step might be better
