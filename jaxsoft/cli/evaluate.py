"""Plays games with a checkpoint of a run: `jaxsoft evaluate --help`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from jaxsoft import environments
from jaxsoft.agents.base import Agent
from jaxsoft.agents.settings import MOST, count
from jaxsoft.cli import assembly, memory
from jaxsoft.cli.config import Config, ConfigError, read, to_json
from jaxsoft.cli.options import Parser, stop_with
from jaxsoft.environments.autoreset import interpret
from jaxsoft.training import loop
from jaxsoft.training.checkpoints import Checkpoints
from jaxsoft.training.logs import writing
from jaxsoft.training.loop import TrainState, initial

__all__ = ["Trained", "check_video", "load", "main", "play", "record", "restore"]

Policy = Callable[..., tuple[Any, Any, Any]]
"""As an agent's `act`."""

_APART = 10_000
"""Added to the seeds: the games played are none of those trained on."""

_DRAWN: dict[str, Any] = {"render_mode": "rgb_array"}


class Trained(NamedTuple):
    """A run as one of its checkpoints has it."""

    config: Config
    agent: Agent
    state: TrainState
    step: int


def load(out: Path, step: int | None = None) -> Trained:
    """Reads a run's folder, its newest checkpoint or that of a step."""
    try:
        config, version = read(out)
    except FileNotFoundError:
        raise ConfigError(
            f"{out} holds no run: there is no config.json. Name the --out of a training run."
        ) from None
    agent = assembly.agent(config)
    like = jax.eval_shape(lambda: initial(agent, config.seeds))
    with Checkpoints(
        out / "checkpoints", config=to_json(config), version=version, write=False
    ) as checkpoints:
        if checkpoints.latest() is None:
            raise ConfigError(f"{out} has no checkpoint yet. Wait for its first, then try again.")
        step, state = restore(checkpoints, agent, like, step)
    return Trained(config, agent, forgotten(agent, state), step)


def restore(
    checkpoints: Checkpoints, agent: Agent, like: TrainState, step: int | None = None
) -> tuple[int, TrainState]:
    """A checkpoint, the newest unless told otherwise, with a replay only where it has that."""
    try:
        return checkpoints.restore(forgotten(agent, like), step)
    except ValueError as error:
        try:
            return checkpoints.restore(like, step)
        except ValueError:
            raise error from None


def forgotten(agent: Agent, state: TrainState) -> TrainState:
    """A state without what can be gathered again, as checkpoints hold it unless told otherwise."""
    return state._replace(agent=agent.forget(state.agent))


def play(
    trained: Trained,
    games: int,
    *,
    policy: Policy | None = None,
    seed: int = _APART,
    watch: Callable[[Any], None] | None = None,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns and lengths [S, games] of whole games, raw rewards, one game an environment.

    Each environment's first game alone counts, so that short games are not preferred.

    Args:
      trained: whose agent plays.
      games: of every seed.
      policy: how; by default as the agent acts when it is trained.
      seed: added to those of the run.
      watch: called with EnvPool's pool before each step.
      **options: of EnvPool.
    """
    config, agent = trained.config, trained.agent
    if policy is not None:
        agent = agent._replace(act=policy)
    pool = environments.HostEnvPool(
        config.game,
        num_envs=games,
        seeds=[seed + s for s in config.seeds],
        **(assembly.options(config, playing=True) | options),
    )
    act = jax.jit(
        lambda state, carry, step, key: loop.act(agent, pool.batch_shape, state, carry, step, key)
    )
    understand = jax.jit(interpret)
    keys = jnp.stack([jax.random.key(seed + s) for s in config.seeds])
    memory, step = pool.reset()
    carry = loop.initial_carry(agent, pool.batch_shape)
    score = np.zeros(pool.batch_shape)
    length = np.zeros(pool.batch_shape, np.int64)
    playing = np.ones(pool.batch_shape, np.bool_)
    for t in range(10**9):
        if watch is not None:
            watch(pool.pool)
        here = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
        action, carry, _ = act(trained.state, carry, step, here)
        pool.send(np.asarray(action))
        memory, step = understand(memory, pool.recv())
        score += playing * np.asarray(step.score)
        length += playing
        playing &= ~np.asarray(step.over)
        if not playing.any():
            break
    return score, length


def check_video(config: Config, video: Path) -> None:
    """Refuses what `record` could not do, before anything is trained or played for it."""
    if video.suffix.lower() != ".gif":
        raise ConfigError(f"--video {video} is no .gif. Name a file that ends in .gif.")
    drawn = assembly.options(config, playing=True) | _DRAWN
    pool = environments.HostEnvPool(config.game, num_envs=1, **drawn)
    pool.reset()
    try:
        pool.pool.render()
    except RuntimeError as error:
        raise ConfigError(
            f"--video: EnvPool cannot draw {config.game} ({error}). Leave it out."
        ) from None


def record(trained: Trained, video: Path) -> None:
    """Records a game of the first seed to a GIF."""
    alone = dataclasses.replace(trained.config, seeds=trained.config.seeds[:1])
    state = trained.state._replace(
        agent=jax.tree.map(lambda x: x[:1], trained.state.agent), key=trained.state.key[:1]
    )
    trained = trained._replace(config=alone, state=state)
    frames: list[Image.Image] = []

    def watch(pool: Any) -> None:
        image = Image.fromarray(np.asarray(pool.render())[0])
        frames.append(image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST))

    score, length = play(trained, 1, watch=watch, **_DRAWN)
    video.parent.mkdir(parents=True, exist_ok=True)
    # 15 agent steps of 4 frames are a second of an Atari game.
    frames[0].save(video, save_all=True, append_images=frames[1:], duration=66, loop=0)
    print(f"{video}: a game of {length.item()} steps, return {score.item():g}")


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    parser = Parser(
        prog="jaxsoft evaluate",
        usage="jaxsoft evaluate DIR [options]",
        description="Plays whole games with a checkpoint of a run, on raw rewards and environment "
        "seeds that\ntraining did not use.",
    )
    parser.add_argument("run", type=Path, metavar="DIR", help="the --out of a training run")

    def add(name: str, text: str, **how: Any) -> None:
        parser.add_argument(name, help=text, **how)

    add("--games", "games of every seed (default 30)", type=count, default=30, metavar="N")
    add("--greedy", "take the best action; by default it acts as in training", action="store_true")
    add("--step", "of the checkpoint; by default the newest", type=count, metavar="N")
    add("--seed", f"of the games (default {_APART})", type=count, default=_APART, metavar="N")
    add("--video", "also record one game to this .gif", type=Path, metavar="PATH")
    add("--json", "also write every game's return to this file", type=Path, metavar="PATH")
    given = parser.parse_args(words)
    if not 1 <= given.games <= MOST:
        parser.error(f"--games {given.games:_} is out of range. Give a number from 1 to {MOST:_}.")
    if not 0 <= given.seed <= MOST:
        parser.error(f"--seed {given.seed:_} is out of range. Give a number from 0 to {MOST:_}.")
    try:
        trained = load(given.run, given.step)
        if given.video is not None:
            check_video(trained.config, given.video)
        policy = trained.agent.greedy if given.greedy else None
        memory.check_play(trained.config, given.games)
        with memory.explained(trained.config, given.games):
            score, length = play(trained, given.games, policy=policy, seed=given.seed)
        if given.video is not None:
            record(trained, given.video)
        if given.json is not None:
            played = {"step": trained.step, "returns": score.tolist(), "lengths": length.tolist()}
            with writing(given.json):
                given.json.write_text(json.dumps(played) + "\n")
    except (ConfigError, ImportError, OSError, ValueError) as error:
        return stop_with(error)
    config = trained.config
    table = Table(title=f"{config.game} {config.algorithm}, step {trained.step:,}")
    for column in ("seed", "games", "mean", "± std", "median", "min", "max", "mean length"):
        table.add_column(column, justify="right")

    def row(name: str, returns: np.ndarray, lengths: np.ndarray) -> None:
        figures = (
            returns.mean(),
            returns.std(ddof=1) if returns.size > 1 else 0.0,
            np.median(returns),
            returns.min(),
            returns.max(),
            lengths.mean(),
        )
        table.add_row(name, str(returns.size), *(f"{x:,.2f}".removesuffix(".00") for x in figures))

    for i, seed in enumerate(config.seeds):
        row(str(seed), score[i], length[i])
    if len(config.seeds) > 1:
        table.add_section()
        row("all", score, length)
    Console().print(table)
    return 0
