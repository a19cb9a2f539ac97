"""A study runs what it says, once, whoever starts it; what it leaves is what its runs wrote."""

import dataclasses
import fcntl
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from experiments import command, questions
from experiments.analysis import curves
from experiments.engine import collected, plan, runs
from experiments.engine.collected import Collected
from experiments.studies import GRADIENTS, STUDIES
from jaxsoft.cli import train
from jaxsoft.cli.config import ConfigError, to_json
from jaxsoft.training.logs import read_csv

WHOLE = {**STUDIES, "gradients": GRADIENTS}
ALL = [(name, preset) for name, x in WHOLE.items() for preset in x.presets]
FEW = ["--preset", "quick", "--games", "Catch-v0", "--seeds", "0", "1", "--steps", "2_000"]
TINY = [*FEW, "--variants", "policy_gradient", "soft_q"]


def rows(frame: pd.DataFrame) -> list[Any]:
    """Rows with columns as attributes, of whatever type."""
    return list(frame.itertuples())


@pytest.mark.parametrize(("name", "preset"), ALL)
def test_every_run_of_every_preset_has_settings_that_can_be_run(name: str, preset: str) -> None:
    whole = WHOLE[name]
    todo = runs.cells(whole, whole.presets[preset], Path("runs"))
    assert len({cell.out for cell in todo}) == len(todo)
    about = whole.presets[preset]
    seeds = sum(len(cell.seeds) for cell in todo)
    assert seeds == len(about.steps) * len(whole.variants) * about.seeds
    for cell in todo:
        assert cell.steps == about.length(cell.game) <= about.steps[cell.game]
        assert cell.config.steps == about.steps[cell.game]
        assert cell.config.seeds == cell.seeds
    for first, second in whole.pairs:
        assert {first, second} <= set(whole.variants)
    assert whole.against in (*whole.variants, "")


def test_the_papers_presets_are_its_protocol() -> None:
    for name, seeds in (("figure1", 3), ("figure2", 2), ("figure3", 3)):
        preset = STUDIES[name].presets["paper"]
        todo = runs.cells(STUDIES[name], preset, Path("runs"))
        assert len(preset.steps) == 7
        assert preset.seeds == seeds
        if name == "figure2":
            assert {cell.config.settings.tau for cell in todo} == {0.0, 0.1}
            assert {cell.config.settings.n for cell in todo} == {1, 5}
            continue
        for c in (cell.config for cell in todo):
            x = c.settings
            assert (x.num_envs, x.rollout_length, x.n, c.steps) == (16, 5, 5, 80_000_000)
            assert (x.optimiser, x.learning_rate, x.schedule) == ("rmsprop", 7e-4, "linear")
            assert (x.tau, x.discount, x.max_gradient_norm) == (0.01, 0.99, 0.5)
            assert not c.centred
    weights = {
        cell.variant: to_json(cell.config)["value_coef"]
        for cell in runs.cells(
            STUDIES["figure3"], STUDIES["figure3"].presets["paper"], Path("runs")
        )
    }
    assert weights["soft_q"] == weights["policy_gradient"] == 0.5
    assert weights["soft_q_unscaled"] == weights["policy_gradient_unscaled"] == 100


def test_runs_of_their_own_come_seed_by_seed() -> None:
    preset = STUDIES["figure3"].presets["cpu"]
    todo = runs.cells(STUDIES["figure3"], preset, Path("runs"))
    order = [cell.seeds[0] for cell in todo]
    assert order == sorted(order)
    assert todo[0].out == Path("runs/Pong-v5/policy_gradient/0")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("figure3")
    assert command.main("figure3", [*TINY, "--out", str(out)]) == 0
    return out


def test_a_study_leaves_its_curves_runs_table_and_figure(done: Path) -> None:
    found = collected.read(done)
    assert len(found.runs) == 2
    for run in rows(found.runs):
        data = read_csv(done / run.game / run.variant / "metrics.csv")
        mine = found.curves[found.curves["variant"] == run.variant]
        for name in ("seed", "step", "episodes"):
            np.testing.assert_array_equal(mine[name], data[name])
        for name in ("episode_return", "episode_length"):
            np.testing.assert_allclose(mine[name], data[name], rtol=1e-5)
        assert run.steps == 1920
        assert run.seconds > 0
        assert "--algorithm" in run.settings
    page = (done / "table.md").read_text()
    for word in ("policy gradient, c = 0.5", "soft Q-learning, c = 0.5", "Runs:", "2 + 2"):
        assert word in page
    with Image.open(done / "figure.png") as image:
        colours = image.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert len(colours) > 20


def test_the_same_command_again_trains_nothing(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> int:
        raise AssertionError("trained again")

    before = (done / "table.md").read_text()
    monkeypatch.setattr(train, "train", never)
    assert command.main("figure3", [*TINY, "--out", str(done)]) == 0
    assert (done / "table.md").read_text() == before


def test_what_there_is_can_be_collected_elsewhere(done: Path, tmp_path: Path) -> None:
    words = [*TINY, "--out", str(done), "--results", str(tmp_path / "new"), "--collect"]
    assert command.main("figure3", words) == 0
    for name in ("curves.csv", "table.md", "figure.png"):
        assert (tmp_path / "new" / name).read_bytes() == (done / name).read_bytes()


def test_an_interrupted_study_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: Path
) -> None:
    whole, count = train.train, 0

    def broken(*arguments: object) -> int:
        nonlocal count
        count += 1
        return 130 if count == 2 else whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(train, "train", broken)
    assert command.main("figure3", [*TINY, "--out", str(tmp_path)]) == 130
    assert len(collected.read_runs(tmp_path)) == 1
    monkeypatch.setattr(train, "train", whole)
    assert command.main("figure3", [*TINY, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "curves.csv").read_text() == (done / "curves.csv").read_text()


def test_runs_of_other_settings_are_not_taken_for_these(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, "--out", str(done)]
    words[words.index("2_000")] = "4_000"
    assert command.main("figure3", words) == 2
    said = capsys.readouterr().err
    assert "--steps 4_000: the run there has --steps 2_000" in said


def test_a_run_that_another_process_holds_is_left_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "Catch-v0" / "soft_q"
    folder.mkdir(parents=True)
    words = [*FEW, "--variants", "soft_q", "--out", str(tmp_path)]
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert command.main("figure3", words) == 2
        assert "another process is running it" in capsys.readouterr().out
        assert not (folder / "metrics.csv").exists()


def test_a_plan_runs_nothing_and_says_how_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--preset", "paper", "--plan", "--out", str(tmp_path / "none")]
    assert command.main("figure3", words) == 0
    said = capsys.readouterr().out
    assert not (tmp_path / "none").exists()
    for word in ("80,000,000", "SpaceInvaders-v5", "6,720,000,000", "hours", "disk"):
        assert word in said


def test_a_plan_uses_the_rates_of_this_kind_of_device(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = pd.DataFrame(
        {
            "game": "CartPole-v1",
            "algorithm": "dqn",
            "seeds": "0 1",
            "disk_bytes": 4_000_000,
            "steps_per_second": [2, 9999],
            "device": ["cpu", "another"],
            "settings": "--tau 1",
        }
    )
    monkeypatch.setattr(collected, "measured", lambda: known)
    [cell] = runs.cells(
        STUDIES["figure3"],
        STUDIES["figure3"].presets["quick"],
        Path("none"),
        variants=["soft_q"],
        games=["Catch-v0"],
        seeds=[0, 1, 2],
        steps=2_400,
    )
    command.main("figure3", [*TINY, "--plan"])
    said = capsys.readouterr().out
    assert said.count("not measured") == 2
    assert "0.00 + ?" in said
    known["algorithm"] = "a2c"
    command.main("figure3", [*TINY, "--plan"])
    said = capsys.readouterr().out
    assert "not measured" not in said
    # 2 seeds x 2,000 steps at 2 a second, twice.
    assert said.count("0.56") == 2
    assert "1.11" in said
    [cost] = plan.costs([cell], known, "cpu").itertuples(index=False)
    assert cost == (2.0, 1.0, 6.0)


def test_the_nearest_runs_are_of_the_game_then_the_algorithm_and_never_of_other_emulators() -> None:
    known = pd.DataFrame(
        [
            ("Pong-v5", "a2c", 1, "--no-episodic-life"),
            ("Pong-v5", "soft_q", 2, "--episodic-life"),
            ("Breakout-v5", "soft_q", 4, "--episodic-life"),
            ("Catch-v0", "soft_q", 8, ""),
            ("Pong-v5", "soft_dqn_kl", 16, "--episodic-life"),
        ],
        columns=["game", "algorithm", "steps_per_second", "settings"],
    ).assign(device="cpu", seeds="0", disk_bytes=1)

    def rate(game: str, algorithm: str) -> float:
        words = ("--game", game, "--algorithm", algorithm, "--steps", "20_000")
        cell = runs.Cell(game, "v", (0,), 20_000, words, Path("none"))
        return plan.costs([cell], known, "cpu")["rate"].item()

    assert rate("Breakout-v5", "soft_q") == 4
    assert rate("Qbert-v5", "soft_q") == 3
    assert rate("Pong-v5", "a2c_naive") == 1.5
    assert rate("CartPole-v1", "a2c") == 8
    assert rate("Seaquest-v5", "dqn") == 16
    assert np.isnan(rate("Catch-v0", "dqn"))


def test_errors_say_what_to_do(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command.main("figure3", ["--preset", "quick", "--games", "Pong-v5"]) == 2
    assert "--steps as well" in capsys.readouterr().err
    words = [*TINY, "--collect", "--out", str(tmp_path)]
    assert command.main("figure3", words) == 2
    assert "no run that has begun" in capsys.readouterr().err
    assert questions.main(["nonsense"]) == 2
    assert "weighting" in capsys.readouterr().err
    assert questions.main(["--help"]) == 0


@pytest.mark.parametrize("module", ["figure2", "questions natural"])
def test_help(module: str) -> None:
    command = [sys.executable, "-W", "error", "-m", *f"experiments.{module} --help".split()]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for word in ("--preset", "quick", "variants:", "--plan", "taskset"):
        assert word in said
    assert max(map(len, said.splitlines())) <= 110


def test_runs_may_be_the_beginning_of_longer_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = STUDIES["figure3"]
    short = dataclasses.replace(whole.presets["quick"], until={"Catch-v0": 1_000}, seeds=1)
    monkeypatch.setitem(STUDIES, "figure3", dataclasses.replace(whole, presets={"quick": short}))
    words = ["--preset", "quick", "--games", "Catch-v0", "--variants", "soft_q"]
    assert command.main("figure3", [*words, "--out", str(tmp_path)]) == 0
    [run] = rows(collected.read_runs(tmp_path))
    assert (run.steps, run.of_steps) == (896, 1000)  # updates of 128
    assert "--steps 50000" in run.settings
    [cell] = runs.cells(whole, short, tmp_path, games=["Catch-v0"], variants=["soft_q"])
    assert cell.finished
    found = curves.load(whole, tmp_path)
    assert found.curves["Catch-v0", "soft_q"].steps[-1] == 896


def made(*seeds: str, steps: int = 10, words: str = "--x 1") -> Collected:
    """Of "0 1", a run of two seeds."""
    cell = {"game": "G", "variant": "v"}
    curves = [
        cell | {"seed": int(seed), "step": i}
        for together in seeds
        for seed in together.split()
        for i in range(1, steps + 1)
    ]
    runs = [cell | {"seeds": s, "steps": steps, "settings": words} for s in seeds]
    return Collected(pd.DataFrame(curves), pd.DataFrame(runs))


def assert_same(found: Collected, expected: Collected) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        pd.testing.assert_frame_equal(ours, theirs)


def test_machines_add_to_results_one_after_another() -> None:
    found = collected.together(made("2", "1"), made("0"))
    assert_same(found, made("0", "1", "2"))
    assert_same(collected.together(found, made("0", "1", "2")), found)
    assert_same(collected.together(made("10"), made("2")), made("2", "10"))


def test_games_and_variants_stay_in_their_order() -> None:
    old, new = made("0"), made("1")
    of = {"game": "A", "variant": "a"}
    both = Collected(*(pd.concat([x, x.assign(**of)]) for x in old))
    found = collected.together(new, both)
    assert found.runs["game"].tolist() == ["G", "G", "A"]
    assert found.curves["game"].unique().tolist() == ["G", "A"]


@pytest.mark.parametrize("new", [4, 20])
def test_of_a_seed_that_was_run_twice_the_longer_is_kept(new: int) -> None:
    found = collected.together(made("1", steps=new), made("0", "1"))
    expected = zip(made("0"), made("1", steps=max(new, 10)), strict=True)
    assert_same(found, Collected(*(pd.concat(x, ignore_index=True) for x in expected)))


def test_seeds_that_were_run_together_are_kept_apart_where_one_was_run_longer() -> None:
    found = collected.together(made("1", steps=20), made("0 1 2"))
    assert found.runs["seeds"].tolist() == ["0 2", "1"]
    lengths = found.curves.groupby("seed")["step"].agg(["max", "count"])
    assert lengths.to_numpy().tolist() == [[10, 10], [20, 20], [10, 10]]


def test_runs_of_other_settings_are_not_put_together() -> None:
    with pytest.raises(ConfigError, match=r"--x 1[\s\S]*--x 2[\s\S]*--results"):
        collected.together(made("1", words="--x 2"), made("0"))


def test_texts_that_look_like_numbers_stay_texts(tmp_path: Path) -> None:
    curves, runs = made("0")
    runs = runs.assign(commit="1e10", jax="0.10", device="cpu", variant="007")
    collected.write(tmp_path, Collected(curves, runs))
    pd.testing.assert_frame_equal(collected.read_runs(tmp_path), runs)


def test_results_keep_the_runs_of_others(done: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    one = [*FEW, "--variants", "soft_q", "--out", str(done), "--collect"]
    assert command.main("figure3", [*one, "--results", str(results)]) == 0
    before = collected.read(results).curves
    mine = ["--preset", "quick", "--games", "Catch-v0", "--steps", "2_000", "--seeds", "2", "3"]
    mine += ["--variants", "soft_q", "--out", str(tmp_path / "mine"), "--results", str(results)]
    assert command.main("figure3", mine) == 0
    after = collected.read(results).curves
    assert set(after["seed"]) == {0, 1, 2, 3}
    by_seed = before.sort_values(["seed", "step"], ignore_index=True)
    kept = after[after["seed"] < 2].sort_values(["seed", "step"], ignore_index=True)
    pd.testing.assert_frame_equal(kept, by_seed)
    found = curves.load(STUDIES["figure3"], results)
    assert len(found.curves["Catch-v0", "soft_q"].seeds) == 4


def test_a_finished_run_is_known_from_its_files(done: Path) -> None:
    quick = STUDIES["figure3"].presets["quick"]
    which: dict[str, Any] = {"games": ["Catch-v0"], "seeds": [0, 1], "variants": ["soft_q"]}
    [cell] = runs.cells(STUDIES["figure3"], quick, done, **which, steps=2_000)
    about = json.loads((cell.out / "run.json").read_text())
    assert cell.done == about["sessions"][-1]["to_step"]
    assert cell.finished
    assert not dataclasses.replace(cell, out=done / "nowhere").finished
