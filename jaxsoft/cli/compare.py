"""Trains several algorithms on one game and compares them: `jaxsoft compare --help`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxsoft
from jaxsoft.agents.registry import ALGORITHMS
from jaxsoft.agents.settings import count
from jaxsoft.cli import assembly, evaluate, plot, train
from jaxsoft.cli.config import Config, ConfigError, Runtime, look_up
from jaxsoft.cli.options import Parser, called, parse, stop_with
from jaxsoft.training.logs import read_csv

__all__ = ["equivalence", "main", "summarise"]

GAMES = 100
"""Played by each trained agent."""


def summarise(runs: dict[str, Path]) -> Table:
    """What each algorithm reached, in training and in play."""
    table = Table(title="Mean ± standard deviation over seeds")
    table.add_column("algorithm")
    for column in ("return, last tenth of training", f"return, {GAMES} new games", "steps/s"):
        table.add_column(column, justify="right")
    for name, out in runs.items():
        rows = read_csv(
            out / "metrics.csv", ("step", "seed", "episodes", "episode_return", "steps_per_second")
        )
        trained = evaluate.load(out)
        found = sorted(map(int, np.unique(rows["seed"]))), int(rows["step"].max())
        expected = sorted(trained.config.seeds), trained.step
        if found != expected:
            raise ValueError(
                f"{out / 'metrics.csv'}: given rows of the seeds {found[0]} up to step {found[1]}; "
                f"expected those of {expected[0]} up to {expected[1]}. Restore it from a copy."
            )
        late = rows["step"] > 0.9 * trained.step
        score, _ = evaluate.play(trained, GAMES)
        reached = [
            np.average(rows["episode_return"][chosen], weights=rows["episodes"][chosen])
            for seed in trained.config.seeds
            if (chosen := late & (rows["seed"] == seed) & (rows["episodes"] > 0)).any()
        ]
        rate = len(trained.config.seeds) * np.median(rows["steps_per_second"])
        table.add_row(name, _spread(reached), _spread(score.mean(axis=1)), f"{rate:,.0f}")
    return table


def equivalence(out: Path) -> jaxsoft.Equivalence:
    """Soft Q-learning's and policy gradient's gradients at a run's parameters, on a new rollout."""
    trained = evaluate.load(out)
    config = trained.config
    loop = assembly.loop(config)
    _, rollout = loop.collect(trained.state, loop.start())
    first: Any = jax.tree.map(lambda x: x[:, 0], rollout._replace(extras=None))
    objective = config.settings.objective()
    return jaxsoft.check_equivalence(
        assembly.network(config).apply,
        jax.tree.map(lambda x: x[0], trained.state.agent.params),
        first.observation,
        first.action,
        r_t=first.reward,
        weight=first.weight,
        **objective.on(first),
    )


def _spread(values: Sequence[float] | np.ndarray) -> str:
    if not len(values):
        return "no game finished"
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    parser = Parser(
        prog="jaxsoft compare",
        usage="jaxsoft compare --game GAME --steps N --out PATH [options]",
        description="Trains algorithms on one game, one after the other, prints what they reached, "
        "and draws their\nlearning curves. For the first that has values and a policy, also prints "
        "how far the gradients of\nsoft Q-learning and policy gradient are apart at what it has "
        "learned. Can be interrupted at any\ntime; the same command resumes.",
    )

    def add(name: str, text: str, **how: Any) -> None:
        parser.add_argument(name, help=text, **how)

    add("--game", "any EnvPool id with discrete actions", metavar="GAME", required=True)
    add("--steps", "agent steps of every seed of each", type=count, metavar="N", required=True)
    add("--out", "folder; the runs are folders in it", type=Path, metavar="PATH", required=True)
    add(
        "--algorithms",
        "of jaxsoft train (default soft_q a2c)",
        nargs="+",
        default=["soft_q", "a2c"],
        choices=tuple(ALGORITHMS),
        metavar="NAME",
    )
    add(
        "--seeds",
        "of independent agents (default 0 1 2)",
        type=count,
        nargs="+",
        default=[0, 1, 2],
        metavar="N",
    )
    given = parser.parse_args(words)
    shared = ["--game", given.game, "--steps", str(given.steps), "--resume"]
    shared += ["--seeds", *map(str, given.seeds)]
    try:
        todo = [
            parse([*shared, "--algorithm", name, "--out", str(given.out / name)])
            for name in given.algorithms
        ]
        with train.Folder(given.out) as folder:
            try:
                return _compare(given.out, todo)
            finally:
                folder.begun = any(runtime.out.exists() for _, runtime in todo)
    except (ConfigError, train.RunError, ImportError, OSError, ValueError) as error:
        return stop_with(error)


def _compare(whole: Path, todo: Sequence[tuple[Config, Runtime]]) -> int:
    """The comparison, once the folder is its own."""
    runs = {config.algorithm: runtime.out for config, runtime in todo}
    started = time.monotonic()
    for config, runtime in todo:
        status = train.train(config, runtime)
        if status:
            print("The same jaxsoft compare continues with all of them.")
            return status
    console = Console()
    console.print()
    console.print(summarise(runs))
    tied = next((x for x in runs if ALGORITHMS[x].head == "actor_critic"), None)
    if tied:
        print(f"\nThe gradients of soft Q-learning and policy gradient at what {tied} has")
        print("learned, on one rollout of its own:\n")
        print(equivalence(runs[tied]))
    curve = whole / "curve.png"
    plot.learning_curve(
        {name: out / "metrics.csv" for name, out in runs.items()},
        curve,
        title=todo[0][0].game,
        frames_per_step=4 if look_up(todo[0][0].game).is_atari else 1,
    )
    print(f"\nLearning curves: {curve}")
    for out in runs.values():
        print(f"Checkpoints:     {out / 'checkpoints'}")
    print(f"\nAll of it took {time.monotonic() - started:.0f} s. Play with what was learned:")
    print(f"  {called()} evaluate {next(iter(runs.values()))}")
    return 0
