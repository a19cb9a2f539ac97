"""The examples run as they stand, the README's among them, and do what they say."""

import contextlib
import math
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoft
from jaxsoft.agents.registry import ALGORITHMS
from jaxsoft.cli import train
from tests.support import oracles

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


# ---- Worked examples -----------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "worked.md").read_text()
NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]\d+)?")


def numbers(text: str) -> list[float]:
    return [float(x.replace(",", "")) for x in NUMBER.findall(text)]


@contextlib.contextmanager
def as_a_user() -> Iterator[None]:
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        yield


def printed(name: str, capsys: pytest.CaptureFixture) -> list[list[float]]:
    """The figures in each line that an example prints, which are those of the page."""
    with as_a_user():
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    out = capsys.readouterr().out
    [section] = [x for x in PAGE.split("\n## ") if f"`examples/{name}.py`" in x]
    [shown] = re.findall(r"```text\n(.*?)```", section, re.DOTALL)
    assert NUMBER.sub("#", shown).split() == NUMBER.sub("#", out).split()
    for here, there in zip(numbers(shown), numbers(out), strict=True):
        # Samples may differ from one version of JAX to the next, and what rounding leaves.
        assert math.isclose(here, there, rel_tol=0.1, abs_tol=0.01)
        assert (abs(here) < 1e-9) == (abs(there) < 1e-9)
    return [numbers(line) for line in out.splitlines()]


@pytest.mark.parametrize("name", ["composition", "planning", "tokens"])
def test_the_page_quotes_the_example(name: str) -> None:
    source = (EXAMPLES / f"{name}.py").read_text()
    [section] = [x for x in PAGE.split("\n## ") if f"`examples/{name}.py`" in x]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert blocks
    assert all(block in source for block in blocks)


def test_composition(capsys: pytest.CaptureFixture) -> None:
    _, _, *rows, _, _, other_sum, right_sum = printed("composition", capsys)
    assert len(rows) == 4
    for first, second, error, corrected, lowest, highest, *bound, loss, corrected_loss in rows:
        assert error > 0.5
        assert corrected < 1e-9
        assert error == max(-lowest, highest)
        assert corrected_loss < loss / 2
        is_mean = first + second == 1
        assert len(bound) == is_mean
        if is_mean:
            assert bound[0] < lowest < highest < 0
    assert other_sum[-1] > 0.1
    assert right_sum[-1] < 1e-9


def test_skills_are_the_optima_of_the_walk() -> None:
    """And acting by the optimum of the world loses nothing in it."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        example = runpy.run_path(str(EXAMPLES / "composition.py"))
        s, a, end = data = example["walk"](jax.random.key(3))
        visits = np.zeros([25, 4, 25])
        np.add.at(visits, (s, a, end), 1)
        walked = visits / visits.sum(-1, keepdims=True)
        reward, tau, prior = np.arange(25.0), 0.7, np.full([25, 4], 0.25)
        learned = example["learn"](data, reward, tau, np.log(prior))
        q = {}
        for name, p, temperature in (("walk", walked, tau), ("world", example["world"](), 0.3)):
            q[name] = np.zeros([25, 4])
            for _ in range(300):
                v = oracles.soft_value(q[name], temperature, prior)
                q[name] = np.asarray(p) @ (reward + 0.9 * v)
        np.testing.assert_allclose(learned, q["walk"], rtol=1e-10)
        np.testing.assert_allclose(example["lost"](q["world"], reward), 0, atol=1e-9)
        assert example["lost"](0 * q["world"], reward) > 1


def test_planning(capsys: pytest.CaptureFixture) -> None:
    out = printed("planning", capsys)
    estimates, moves = out[1:4], out[6:]
    assert [row[0] for row in estimates] == [0.5, 0.3, 0.2]
    for epsilon, calls, rms, largest in estimates:
        assert largest < epsilon
        assert rms < epsilon / 3
        assert calls < 1e5
    (by_prior, _), *by_plans = (row[-2:] for row in moves)
    losses = [loss for loss, _ in by_plans]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < by_prior / 100
    assert all(loss < bound for loss, bound in by_plans)


def test_planning_in_a_small_game() -> None:
    """The truth is true, a loss is within its bound, and cells cost no calls."""
    with as_a_user():
        example = runpy.run_path(str(EXAMPLES / "planning.py"))
        pays = np.random.default_rng(0).random(7)
        q = np.zeros([2, 7, 3])
        prior = np.exp(example["LOG_PRIOR"])
        for _ in range(40):
            v = [oracles.soft_value(q[0], 0.3, prior), -oracles.soft_value(-q[1], 0.3, prior)]
            for turn, cell, move in np.ndindex(q.shape):
                ends = (cell + move - 1) % 7, (cell + move) % 7
                q[turn, cell, move] = sum(
                    share * (pays[end] + 0.4 * v[1 - turn][end])
                    for share, end in zip((0.8, 0.2), ends, strict=True)
                )
        np.testing.assert_allclose(example["solve"](jnp.asarray(pays, float)), q, atol=1e-5)
        step, starts, sign, q = example["game"](1000)
        error, calls = example["errors"](step, starts, sign, q, 0.3)
        assert np.max(np.abs(error)) < 0.3
        assert calls == 2124
        planned = q + 0.3 * jax.random.normal(jax.random.key(0), q.shape)
        loss, bound = example["losses"](sign, q, planned)
        assert np.all((loss > -1e-6) & (loss <= bound + 1e-6))
        assert np.max(loss / bound) > 0.3


def test_tokens(capsys: pytest.CaptureFixture) -> None:
    _, _, *rows, (preferred,) = printed("tokens", capsys)
    (_, _, _, exact, drawn), *others = (row[-5:] for row in rows)
    assert max(exact, preferred) < 1e-3
    assert drawn < 0.02
    assert len(others) == 3
    for *off, exact, drawn in others:
        assert min(off) > 5
        assert exact > 0.05
        assert abs(drawn - exact) < 0.03


def fixed_points(example: dict, form: str) -> np.ndarray:
    """Probabilities [prefixes, A] where training ends, from the last token back to the first."""
    tau, prefixes, answers = example["TAU"], example["PREFIXES"], example["ANSWERS"].T.tolist()
    probs, back = np.exp(example["REFERENCE"]), {}
    for prefix, reward in zip(answers, example["REWARD"], strict=True):
        back[tuple(prefix)] = reward
    for i, prefix in reversed(list(enumerate(prefixes))):
        q = np.array([back[(*prefix, a)] for a in range(probs.shape[1])])
        reference = probs[i].copy()
        if form == "in the loss alone, as k3":
            low, high = q.max(), q.max() + 2 * tau  # of λ in π = τ π_ref / (λ − Q)
            for _ in range(100):
                middle = (low + high) / 2
                too_low = np.sum(tau * reference / (middle - q)) > 1
                low, high = (middle, high) if too_low else (low, middle)
            probs[i] = tau * reference / (high - q)
        else:
            share = 0.75 if form == "in the return, own baseline" else 1.0
            probs[i] = oracles.boltzmann(share * q, tau, reference)
        divergence = probs[i] @ np.log(probs[i] / reference)
        back[prefix] = probs[i] @ q - tau * divergence * form.startswith("in the return")
    return probs


def test_where_training_on_tokens_ends() -> None:
    """At known fixed points, of which π_ref exp(R/τ)/Z is one; and what the gradients are of."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        example = runpy.run_path(str(EXAMPLES / "tokens.py"))
        log_probs = example["log_probs"]
        for name, form in example["FORMS"].items():
            end = np.log(fixed_points(example, name))
            trained = log_probs(example["train_in_expectation"](form))
            assert np.sum(np.exp(trained) * (trained - log_probs(end))) < 1e-3
            gradient = jax.grad(example["expected"])(end, example["TAU"], *form)
            np.testing.assert_allclose(gradient, 0, atol=1e-12)
        best = np.log(fixed_points(example, "in the return"))
        np.testing.assert_allclose(example["distance"](best), 0, atol=1e-12)
        of_preferences = jax.grad(example["preferences"])(best, example["TAU"])
        np.testing.assert_allclose(of_preferences, 0, atol=1e-12)

        def objective(logits: jax.Array) -> jax.Array:
            log_p = log_probs(logits)
            divergence = log_p - log_probs(example["REFERENCE"])
            return jnp.sum(jnp.exp(log_p) * (example["REWARD"] - 1.7 * divergence))

        at = example["ELSEWHERE"]
        right = jax.grad(example["expected"])(at, 1.7, *example["FORMS"]["in the return"])
        np.testing.assert_allclose(right, -jax.grad(objective)(at), atol=1e-12)
