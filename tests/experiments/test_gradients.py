"""Numbers of two gradients are those of loops; broken conditions part them, weights repair it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from experiments import gradients as command
from experiments.engine import gradients
from experiments.report import publish
from jaxsoft.agents import on_policy
from jaxsoft.cli import evaluate, train
from tests.support.figures import filled


def test_numbers_are_those_of_loops() -> None:
    rng = np.random.default_rng(0)
    trees = [
        {"a": jnp.asarray(rng.normal(size=(8, 3, 2)) + 0.3), "b": jnp.asarray(rng.normal(size=8))}
        for _ in range(2)
    ]
    found = gradients._numbers(*trees)
    x, y = (np.concatenate([t["a"].reshape(8, 6), t["b"][:, None]], axis=1) for t in trees)
    norms = [(np.linalg.norm(a), np.linalg.norm(b)) for a, b in zip(x, y, strict=True)]
    cosines = [a @ b / (m * n) for a, b, (m, n) in zip(x, y, norms, strict=True)]
    np.testing.assert_allclose(found["cosine"], np.mean(cosines))
    np.testing.assert_allclose(found["norm_ratio"], np.mean([m / n for m, n in norms]))
    np.testing.assert_allclose(found["difference"], np.mean(np.sum((x - y) ** 2, axis=1)))
    for name, z in (("soft_q", x), ("policy", y)):
        np.testing.assert_allclose(found[f"trace_{name}"], np.trace(np.cov(z.T)))


def test_the_squared_mean_is_without_bias() -> None:
    rng = np.random.default_rng(1)
    mean = np.array([0.5, 0.0, 0.0])
    signals = []
    for _ in range(400):
        x = {"w": jnp.asarray(mean + rng.normal(size=(8, 3)))}
        signals.append(float(gradients._numbers(x, x)["signal_policy"]))
    assert abs(np.mean(signals) - 0.25) < 4 * np.std(signals) / 20
    # The plug-in estimate would be 3/8 too large, which these draws tell apart.
    assert 4 * np.std(signals) / 20 < 3 / 8


def test_halves_are_means_of_pairs() -> None:
    x = {"w": jnp.arange(12.0).reshape(4, 3)}
    np.testing.assert_allclose(gradients._halved(x)["w"], [[1.5, 2.5, 3.5], [7.5, 8.5, 9.5]])


def test_checkpoints_nearest_to_equal_parts() -> None:
    assert gradients._nearest([0, 10, 19, 30, 41, 80], 4) == [0, 19, 41, 80]
    assert gradients._nearest([7], 4) == [7]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "soft_q"
    words = ["--game", "Catch-v0", "--algorithm", "soft_q", "--tau", "0.3", "--steps", "1_024"]
    words += ["--num-envs", "4", "--rollout-length", "4", "--hidden", "8", "--seeds", "0", "1"]
    words += ["--checkpoint-steps", "512", "--keep", "10", "--out", str(out)]
    assert train.main(words) == 0
    return out


@pytest.fixture(scope="module")
def results(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results") / "tiny"
    words = ["--runs", str(run), "--results", str(out), "--units", "16"]
    assert command.main(words) == 0
    return out


def test_checkpoints_come_before_the_first_step_and_at_multiples(run: Path) -> None:
    assert sorted(int(x.name) for x in (run / "checkpoints").iterdir()) == [0, 512, 1024]


def test_every_checkpoint_seed_and_batch_has_a_row(results: Path) -> None:
    rows = pd.read_csv(results / "gradients.csv")
    places = pd.MultiIndex.from_product([(0, 512, 1024), (0, 1), ("a2c", "theory"), (4, 8, 16)])
    assert set(rows.set_index(["step", "seed", "weighting", "batch"]).index) == set(places)
    assert rows["cosine"].between(-1, 1 + 1e-6).all()
    assert (rows["trace_soft_q"] >= 0).all()
    assert set(rows.loc[rows["weighting"] == "theory", "value_coef"]) == {3.33333}


def test_expectations_are_apart_only_where_the_theorem_says(results: Path) -> None:
    rows = pd.read_csv(results / "conditions.csv")
    assert (rows["reweighted"] < 1e-5).all()  # rewards and networks are of float32
    holds = rows["condition"].isin(["none", "target age"])
    assert (rows.loc[holds, "as_acted"] < 1e-5).all()
    broken = rows[~holds & (rows["variation"] > 1e-2)]
    assert len(broken) > 0
    assert (broken["as_acted"] > 1e-4).all()


def test_differences_grow_with_epsilon(results: Path) -> None:
    rows = pd.read_csv(results / "conditions.csv").query("condition == 'epsilon' and step > 0")
    for _, here in rows.groupby(["step", "seed"])["as_acted"]:
        assert len(here) == len(gradients.EPSILONS)
        assert here.is_monotonic_increasing


def test_the_report_is_of_the_rows(results: Path) -> None:
    page = (results / "table.md").read_text()
    rows = pd.read_csv(results / "gradients.csv").query("batch == 16 and step == 1024")
    for _, here in rows.groupby("weighting"):
        cosine, ratio = here["cosine"], here["trace_soft_q"] / here["trace_policy"]
        assert f"| {cosine.mean():.5f} ± {cosine.std():.5f} |" in page
        assert f"| {ratio.mean():.3f} ± {ratio.std():.3f} |" in page
    rows = pd.read_csv(results / "conditions.csv").query("condition == 'epsilon' and x == 0.1")
    assert f"| {rows['as_acted'].median():.1e} |" in page
    assert {file.name for file in results.glob("*.png")} == {
        "figure.png",
        "sizes.png",
        "conditions.png",
    }


def test_figures_show_what_seeds_have_in_the_middle(results: Path) -> None:
    cosines, sizes, conditions = (filled(rows) for *_, rows in publish.drawn("gradients", results))
    rows = pd.read_csv(results / "gradients.csv").query("step == 1024 and weighting == 'a2c'")
    [line] = cosines[0][0].lines
    np.testing.assert_array_equal(line.x, [4, 8, 16])
    np.testing.assert_allclose(line.y, rows.groupby("batch")["cosine"].mean())  # of two seeds
    rows = pd.read_csv(results / "gradients.csv").query("batch == 16 and weighting == 'a2c'")
    np.testing.assert_allclose(sizes[0][0].lines[0].y, rows.groupby("step")["norm_ratio"].mean())
    rows = pd.read_csv(results / "conditions.csv").query("condition == 'age'")
    age = conditions[0][2].lines[0]
    np.testing.assert_array_equal(age.x, gradients.AGES)
    quartiles = rows.groupby("x")["as_acted"].quantile(np.array([0.5, 0.25, 0.75])).unstack()
    assert age.low is not None
    assert age.high is not None
    np.testing.assert_allclose(np.stack([age.y, age.low, age.high]).T, quartiles)


def test_what_was_measured_is_not_measured_again(
    run: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(gradients, "measure")
    words = ["--runs", str(run), "--results", str(tmp_path), "--units", "16"]
    assert command.main(words) == 0
    assert (tmp_path / "gradients.csv").read_text() == (results / "gradients.csv").read_text()


def test_gradients_of_units_add_up_to_the_batchs(run: Path) -> None:
    trained = evaluate.load(run)
    probe = gradients._Probe(trained, gradients.Size(units=8, warm_up=1))
    own = jax.tree.map(lambda x: x[0], trained.state.agent)
    rollout = probe.play(own, jax.random.key(0))
    for value_coef in (0.5, 3.0):
        units = probe.unit_gradients(own.params, rollout, jnp.asarray(value_coef))
        objective = probe.objective._replace(value_coef=value_coef)
        for found, loss in zip(units, (on_policy.soft_q, on_policy.a2c), strict=True):
            direction = on_policy.direction_of(loss)
            head = on_policy.actor_critic_head
            whole, _, _ = direction.of(probe.network, head, own.params, rollout, objective)
            share = float(rollout.weight.mean())
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
                np.testing.assert_allclose(a.mean(axis=0), share * b, atol=1e-6)


@pytest.mark.parametrize("units", ["2", "6"])
def test_units_that_cannot_be_halved_are_refused(
    units: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(["--runs", str(run), "--units", units])
    assert "a power of two" in capsys.readouterr().err


def test_runs_of_another_kind_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--runs", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    out = tmp_path / "pcl"
    words = ["--game", "Catch-v0", "--algorithm", "pcl", "--steps", "128", "--hidden", "4"]
    assert train.main([*words, "--out", str(out)]) == 0
    assert command.main(["--runs", str(out)]) == 2
    assert "run of pcl" in capsys.readouterr().err
