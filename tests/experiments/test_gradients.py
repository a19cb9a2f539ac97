"""What is said of two gradients is what loops say; broken conditions part them, weights mend it."""

import csv
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.engine import gradients
from experiments.report import gradients as gradient_report
from experiments.report import tables as report
from experiments.studies import GRADIENTS
from jaxsoft.cli import train

Rows = list[dict[str, str]]


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


def rows(path: Path) -> Rows:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


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
    assert gradients.main(words) == 0
    return out


def test_checkpoints_come_before_the_first_step_and_at_multiples(run: Path) -> None:
    assert sorted(int(x.name) for x in (run / "checkpoints").iterdir()) == [0, 512, 1024]


def test_every_checkpoint_seed_and_batch_has_a_row(results: Path) -> None:
    table = rows(results / "gradients.csv")
    assert {(int(r["step"]), int(r["seed"])) for r in table} == {
        (step, seed) for step in (0, 512, 1024) for seed in (0, 1)
    }
    assert {int(r["batch"]) for r in table} == {4, 8, 16}
    for row in table:
        assert -1 <= float(row["cosine"]) <= 1 + 1e-6
        assert float(row["trace_soft_q"]) >= 0
    theory = [r for r in table if r["weighting"] == "theory"]
    assert {r["value_coef"] for r in theory} == {"3.33333"}


def test_expectations_are_apart_only_where_the_theorem_says(results: Path) -> None:
    for row in rows(results / "conditions.csv"):
        acted, weighted = float(row["as_acted"]), float(row["reweighted"])
        assert weighted < 1e-5  # rewards and networks are of float32
        if row["condition"] in ("none", "target age"):
            assert acted < 1e-5
        elif float(row["variation"]) > 1e-2:
            assert acted > 1e-4


def test_differences_grow_with_epsilon(results: Path) -> None:
    table = [r for r in rows(results / "conditions.csv") if r["condition"] == "epsilon"]
    for step in ("512", "1024"):
        here = [float(r["as_acted"]) for r in table if r["step"] == step and r["seed"] == "0"]
        assert len(here) == len(gradients.EPSILONS)
        assert here == sorted(here)


def test_the_report_is_of_the_rows(results: Path) -> None:
    assert (results / "table.md").read_text() == report.page(
        gradient_report.parts("gradients", results.name, results)
    )
    for name in gradient_report.FIGURES:
        with Image.open(results / name) as image:
            assert image.info["Source"] == report.digest(results, GRADIENTS)


def test_what_was_measured_is_not_measured_again(
    run: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(gradients, "measure")
    words = ["--runs", str(run), "--results", str(tmp_path), "--units", "16"]
    assert gradients.main(words) == 0
    assert (tmp_path / "gradients.csv").read_text() == (results / "gradients.csv").read_text()


def test_gradients_of_units_add_up_to_the_batchs(run: Path) -> None:
    trained = gradients.evaluate.load(run)
    probe = gradients._Probe(trained, gradients.Size(units=8, warm_up=1))
    own = jax.tree.map(lambda x: x[0], trained.state.learner)
    rollout = probe.play(own, jax.random.key(0))
    for value_coef in (0.5, 3.0):
        units = probe.unit_gradients(own.params, rollout, jnp.asarray(value_coef))
        objective = probe.objective._replace(value_coef=value_coef)
        for found, loss in zip(
            units, (gradients.on_policy.soft_q, gradients.on_policy.a2c), strict=True
        ):
            whole, _ = gradients.on_policy.gradient_of(loss)(
                probe.network, own.params, rollout, objective
            )
            share = float(rollout.weight.mean())
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
                np.testing.assert_allclose(a.mean(axis=0), share * b, atol=1e-6)


@pytest.mark.parametrize("units", ["2", "6"])
def test_units_that_cannot_be_halved_are_refused(
    units: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        gradients.main(["--runs", str(run), "--units", units])
    assert "a power of two" in capsys.readouterr().err


def test_runs_of_another_kind_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gradients.main(["--runs", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    out = tmp_path / "pcl"
    words = ["--game", "Catch-v0", "--algorithm", "pcl", "--steps", "128", "--hidden", "4"]
    assert train.main([*words, "--out", str(out)]) == 0
    assert gradients.main(["--runs", str(out)]) == 2
    assert "run of pcl" in capsys.readouterr().err
