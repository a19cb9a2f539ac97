"""The command line under random words: a run begins, or is refused in a sentence. Slow.

What is refused leaves nothing behind. What begins is cut off where the games would be made, but
for a few that train for real in processes of their own, which must end in time.
"""

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from jaxsoft.agents.registry import ALGORITHMS
from jaxsoft.cli import assembly, main, options

pytestmark = pytest.mark.slow

EXAMPLES, REAL = 1_500, 25
GAMES = [
    *["Catch-v0", "CartPole-v1", "Pong-v5", "UTurn-v0", "Pendulum-v1", "Catch", "catch-v0", "-"],
    "",
]
VALUES = [
    "0",
    "-1",
    "1",
    "2",
    "3",
    "5",
    "16",
    "64",
    "100",
    "1e3",
    "1_000",
    "5_000",
    "1e5",
    "1e9",
    "1e18",
    "1e400",
    "nan",
    "inf",
    "-inf",
    "0.5",
    "0.99",
    "1.5",
    "1e-3",
    "-0.0",
    "abc",
    "²",
    "0x10",
    "٣",
    "1e",
    "None",
    "true",
    "2147483647",
    "2147483648",
    "../x",
    "é",
]
VALUES += ["", " 5", "9" * 30]


class BeganError(Exception):
    pass


def flags() -> list[argparse.Action]:
    known = options.parser()._actions
    return [x for x in known if x.dest not in ("help", "out", "game", "algorithm", "steps")]


def command(rng: np.random.Generator, out: Path) -> list[str]:
    """Words of a run that would be right but for up to four of them."""

    def one(x: list[str]) -> str:
        return x[rng.integers(len(x))]

    words = ["train", "--game", one(GAMES[: 2 if rng.random() < 0.7 else None])]
    words += ["--algorithm", one([*ALGORITHMS] if rng.random() < 0.95 else ["dqnn", ""])]
    words += ["--steps", one(["5_000"] if rng.random() < 0.7 else VALUES), "--out", str(out)]
    for _ in range(rng.integers(5)):
        if rng.random() < 0.05:
            words.append(one(["--lr", "--", "-x", "--steps", "extra", "--seed=1", "--tau="]))
            continue
        action = flags()[rng.integers(len(flags()))]
        words.append(one(list(action.option_strings)))
        if action.nargs != 0:
            right = list(action.choices or [])
            count = 1 + rng.integers(3) * (action.nargs == "+")
            words += [one(right or VALUES if rng.random() < 0.9 else VALUES) for _ in range(count)]
    if rng.random() < 0.05:
        del words[rng.integers(1, len(words))]
    return words


def outcome(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    try:
        status = main.main(words)
    except BeganError:
        return "began"
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    except BaseException as error:
        return f"unclear: {error!r}"
    said = capsys.readouterr()
    if status == 0:
        return "right"
    lines = said.err.strip().splitlines()
    at = [i for i, line in enumerate(lines) if "error: " in line]
    if status != 2 or len(at) != 1 or "Traceback" in said.err:
        return f"unclear: {status}, {said.err}"
    return "clear"


def test_every_command_line_begins_or_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def begun(*_: object, **__: object) -> None:
        raise BeganError

    monkeypatch.setattr(assembly, "loop", begun)
    rng = np.random.default_rng(0)
    counts: Counter[str] = Counter()
    wrong = []
    for index in range(EXAMPLES):
        out = tmp_path / str(index)
        words = command(rng, out)
        result = outcome(words, capsys)
        counts[result.split(":")[0]] += 1
        if result not in ("clear", "began", "right"):
            wrong.append(f"{words[1:]}: {result}")
        if out.exists():
            wrong.append(f"{words[1:]}: left {[x.name for x in out.rglob('*')]}")
    with capsys.disabled():
        print(dict(counts))
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.parametrize("seed", range(REAL))
def test_what_begins_also_ends(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng([1, seed])
    words = command(rng, tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-m", "jaxsoft.cli", *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Traceback" not in done.stderr, (words, done.stderr)
    assert done.returncode in (0, 2, 3), (words, done)
    if done.returncode == 2:
        assert "error: " in done.stderr
        assert not (tmp_path / "out").exists()


def test_the_other_commands_refuse_what_they_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(2)
    there = [str(tmp_path), str(tmp_path / "nowhere"), "", "-", "--", "/dev/null", "é"]
    wrong = []
    for _ in range(EXAMPLES // 3):
        name = ["evaluate", "plot", "compare", "nonsense", ""][rng.integers(5)]
        pool = [*there, *VALUES, "--games", "--step", "--seed", "--json", "--out", "--greedy"]
        pool += ["--game", "Catch-v0", "--steps", "--algorithms", "a2c", "--seeds", "--video"]
        words = [name, *(pool[rng.integers(len(pool))] for _ in range(rng.integers(6)))]
        result = outcome(words, capsys)
        if result not in ("clear", "right") and "usage: jaxsoft COMMAND" not in result:
            wrong.append(f"{words}: {result}")
    assert not wrong, "\n".join(wrong[:20])
