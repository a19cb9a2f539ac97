"""Every algorithm learns: small games, five seeds, within the steps stated."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxsoft.agents.registry import ALGORITHMS

ROOT = Path(__file__).parents[2]
BAR = {"Catch-v0": 0.95, "CartPole-v1": 450.0, "Pendulum-v1": -200.0}
PAIRS = [
    (game, algorithm)
    for game in BAR
    for algorithm, entry in ALGORITHMS.items()
    if (entry.actions == "numbers") == (game == "Pendulum-v1")
]

# (steps of every seed, flags). CartPole's values reach 100: where τ multiplies the gradient,
# or is set against noise in action values of that size, it has to be larger than by default.
USUAL = {
    "Catch-v0": (300_000, ""),
    "CartPole-v1": (500_000, ""),
    "Pendulum-v1": (50_000, "--learning-starts 1000 --capacity 50000"),
}
OTHERS = {
    ("Catch-v0", "natural_pg"): (150_000, ""),
    ("Catch-v0", "damped_q"): (300_000, "--learning-rate 0.3"),
    ("Catch-v0", "dqn"): (100_000, ""),
    ("Catch-v0", "soft_dqn_kl"): (100_000, ""),
    ("Catch-v0", "soft_dqn_entropy"): (100_000, ""),
    ("CartPole-v1", "pcl"): (
        1_000_000,
        "--tau 0.2 --learning-rate 0.005 --max-gradient-norm 5",
    ),
    ("CartPole-v1", "unified_pcl"): (
        700_000,
        "--tau 1 --learning-rate 0.01 --max-gradient-norm 10",
    ),
    ("CartPole-v1", "nstep_soft_q"): (
        700_000,
        "--tau 1 --learning-rate 0.01 --max-gradient-norm 10",
    ),
    ("CartPole-v1", "natural_pg"): (150_000, ""),
    ("CartPole-v1", "damped_q"): (200_000, ""),
    ("Catch-v0", "discrete_sac"): (60_000, ""),
    ("Catch-v0", "soft_q_lambda"): (100_000, ""),
    ("Catch-v0", "munchausen_dqn"): (100_000, ""),
    ("Catch-v0", "trust_pcl"): (150_000, ""),
    ("CartPole-v1", "discrete_sac"): (100_000, ""),
    ("CartPole-v1", "soft_q_lambda"): (200_000, ""),
    ("CartPole-v1", "munchausen_dqn"): (250_000, ""),
    ("CartPole-v1", "trust_pcl"): (200_000, ""),
    ("CartPole-v1", "dqn"): (250_000, ""),
    ("CartPole-v1", "soft_dqn_kl"): (250_000, ""),
    ("CartPole-v1", "soft_dqn_entropy"): (250_000, ""),
    ("Pendulum-v1", "soft_q_svgd"): (25_000, USUAL["Pendulum-v1"][1]),
}


@pytest.mark.slow
@pytest.mark.parametrize(("game", "algorithm"), PAIRS)
def test_learns(game: str, algorithm: str, tmp_path: Path) -> None:
    steps, flags = OTHERS.get((game, algorithm), USUAL[game])

    def run(*words: str) -> None:
        command = [sys.executable, "-m", "jaxsoft.cli", *words]
        subprocess.run(command, cwd=ROOT, check=True)

    out, played = tmp_path / "run", tmp_path / "played.json"
    what = ["--game", game, "--algorithm", algorithm, "--steps", str(steps), *flags.split()]
    run("train", *what, "--seeds", "0", "1", "2", "3", "4", "--out", str(out))
    run("evaluate", str(out), "--games", "100", "--json", str(played))
    returns = np.array(json.loads(played.read_text())["returns"])
    assert returns.shape == (5, 100)
    assert returns.mean() >= BAR[game], returns.mean(axis=1)
