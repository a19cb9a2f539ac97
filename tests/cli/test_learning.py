"""Every algorithm learns: small games, five seeds, within the steps stated."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
BAR = {"Catch-v0": 0.95, "CartPole-v1": 450.0}

# Steps of every seed. CartPole's values reach 100: where τ multiplies the policy's gradient, or is
# set against noise in action values of that size, it has to be larger than the default.
CASES = [
    ("Catch-v0", "a2c", 300_000, ""),
    ("Catch-v0", "a2c_naive", 300_000, ""),
    ("Catch-v0", "soft_q", 300_000, ""),
    ("Catch-v0", "pgq", 300_000, ""),
    ("Catch-v0", "pcl", 300_000, ""),
    ("Catch-v0", "nstep_soft_q", 300_000, ""),
    ("Catch-v0", "natural_pg", 150_000, ""),
    ("Catch-v0", "damped_q", 300_000, "--learning-rate 0.3"),
    ("Catch-v0", "dqn", 100_000, ""),
    ("Catch-v0", "soft_dqn_kl", 100_000, ""),
    ("Catch-v0", "soft_dqn_entropy", 100_000, ""),
    ("CartPole-v1", "a2c", 500_000, ""),
    ("CartPole-v1", "a2c_naive", 500_000, ""),
    ("CartPole-v1", "soft_q", 500_000, ""),
    ("CartPole-v1", "pgq", 500_000, ""),
    ("CartPole-v1", "pcl", 1_000_000, "--tau 0.2 --learning-rate 0.005 --max-gradient-norm 5"),
    ("CartPole-v1", "nstep_soft_q", 700_000, "--tau 1 --learning-rate 0.01 --max-gradient-norm 10"),
    ("CartPole-v1", "natural_pg", 150_000, ""),
    ("CartPole-v1", "damped_q", 200_000, ""),
    ("CartPole-v1", "dqn", 250_000, ""),
    ("CartPole-v1", "soft_dqn_kl", 250_000, ""),
    ("CartPole-v1", "soft_dqn_entropy", 250_000, ""),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("game", "algorithm", "steps", "flags"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES]
)
def test_learns(game: str, algorithm: str, steps: int, flags: str, tmp_path: Path) -> None:
    def run(module: str, *words: str) -> None:
        command = [sys.executable, "-m", f"experiments.{module}", *words]
        subprocess.run(command, cwd=ROOT, check=True)

    out, played = tmp_path / "run", tmp_path / "played.json"
    what = ["--game", game, "--algorithm", algorithm, "--steps", str(steps), *flags.split()]
    run("train", *what, "--seeds", "0", "1", "2", "3", "4", "--out", str(out))
    run("evaluate", str(out), "--games", "100", "--json", str(played))
    returns = np.array(json.loads(played.read_text())["returns"])
    assert returns.shape == (5, 100)
    assert returns.mean() >= BAR[game], returns.mean(axis=1)
