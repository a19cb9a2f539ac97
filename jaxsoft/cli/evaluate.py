"""Plays games with the newest checkpoint of a run: `python -m experiments.evaluate --help`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
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
from jaxsoft.cli import assembly
from jaxsoft.cli.config import Config, ConfigError, from_json, to_json
from jaxsoft.cli.options import stop_with
from jaxsoft.training.checkpoints import Checkpoints
from jaxsoft.training.logs import writing
from jaxsoft.training.loop import TrainState, initial, over_seeds

_APART = 10_000
"""Added to the seeds: the games played are none of those trained on."""

_DRAWN: dict[str, Any] = {"render_mode": "rgb_array"}


class Trained(NamedTuple):
    """A run as its newest checkpoint has it."""

    config: Config
    about: environments.About
    learner: Any
    state: TrainState
    step: int


def load(out: Path, step: int | None = None) -> Trained:
    """Reads a run's folder, its newest checkpoint or that of a step."""
    try:
        values = json.loads((out / "config.json").read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"{out} holds no run: there is no config.json. Name the --out of a training run."
        ) from None
    version = values.pop("version", None)
    config = from_json(values)
    about = environments.about(config.game)
    learner = assembly.learner(config, about)
    like = jax.eval_shape(lambda: initial(learner, config.seeds))
    with Checkpoints(
        out / "checkpoints", config=to_json(config), version=version, write=False
    ) as checkpoints:
        if checkpoints.latest() is None:
            raise ConfigError(f"{out} has no checkpoint yet. Wait for its first, then try again.")
        step, state = restore(checkpoints, like, step)
    return Trained(config, about, learner, without_replay(state), step)


def restore(
    checkpoints: Checkpoints, like: TrainState, step: int | None = None
) -> tuple[int, TrainState]:
    """A checkpoint, the newest unless told otherwise, with the replay only where it has that."""
    try:
        return checkpoints.restore(without_replay(like), step)
    except ValueError as error:
        try:
            return checkpoints.restore(like, step)
        except ValueError:
            raise error from None


def without_replay(state: TrainState) -> TrainState:
    """A state as checkpoints hold it unless told otherwise."""
    if hasattr(state.learner, "replay"):
        return state._replace(learner=state.learner._replace(replay=None))
    return state


def play(
    trained: Trained,
    games: int,
    *,
    greedy: bool = False,
    seed: int = _APART,
    watch: Callable[[Any], None] | None = None,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns and lengths [S, games] of whole games, raw rewards, one game an environment.

    Each environment's first game alone counts, so that short games are not preferred.
    """
    config, about = trained.config, trained.about
    pool = environments.HostEnvPool(
        config.game,
        num_envs=games,
        seeds=[seed + s for s in config.seeds],
        **(assembly.options(config, about, playing=True) | options),
    )
    policy = jax.jit(over_seeds(_policy(trained, greedy), len(config.seeds), [0, 0, 0]))
    understand = jax.jit(environments.interpret)
    keys = jnp.stack([jax.random.key(seed + s) for s in config.seeds])
    memory, step = pool.reset()
    score = np.zeros(pool.batch_shape)
    length = np.zeros(pool.batch_shape, np.int64)
    playing = np.ones(pool.batch_shape, np.bool_)
    for t in range(10**9):
        if watch is not None:
            watch(pool.pool)
        here = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
        pool.send(np.asarray(policy(trained.state.learner, step.observation, here)))
        memory, step = understand(memory, pool.recv())
        score += playing * np.asarray(step.score)
        length += playing
        playing &= ~np.asarray(step.terminated | step.truncated)
        if not playing.any():
            break
    return score, length


def _policy(trained: Trained, greedy: bool) -> Callable[..., Any]:
    def one(state: Any, observation: Any, key: Any) -> Any:
        if not greedy:
            return trained.learner.act(state, observation, jax.random.split(key, len(observation)))
        net = assembly.network(trained.config, trained.about)
        params = getattr(state, "trained", state).params
        out = net.apply(params, observation)
        return jnp.argmax(out[1] if isinstance(out, tuple) else out, axis=-1).astype(jnp.int32)

    return one


def check_video(config: Config, about: environments.About, video: Path) -> None:
    """Refuses what `record` could not do, before anything is trained or played for it."""
    if video.suffix.lower() != ".gif":
        raise ConfigError(f"--video {video} is no .gif. Name a file that ends in .gif.")
    drawn = assembly.options(config, about, playing=True) | _DRAWN
    pool = environments.HostEnvPool(config.game, num_envs=1, **drawn)
    pool.reset()
    try:
        pool.pool.render()
    except RuntimeError as error:
        raise ConfigError(
            f"--video: EnvPool cannot draw {config.game} ({error}). Leave it out."
        ) from None


def record(out: Path, video: Path) -> None:
    """Records a game of the first seed to a GIF."""
    whole = load(out)
    alone = dataclasses.replace(whole.config, seeds=whole.config.seeds[:1])
    state = whole.state._replace(
        learner=jax.tree.map(lambda x: x[:1], whole.state.learner), key=whole.state.key[:1]
    )
    trained = whole._replace(config=alone, state=state)
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
    parser = argparse.ArgumentParser(
        prog="python -m experiments.evaluate",
        description="Plays whole games with the newest checkpoint of a run, on raw rewards and "
        "environment seeds that training did not use.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="DIR", help="the --out of a training run")
    parser.add_argument("--games", type=int, default=30, help="games of every seed (default 30)")
    parser.add_argument(
        "--greedy",
        action="store_true",
        help="take the likeliest action; by default actions are drawn as in training",
    )
    parser.add_argument("--seed", type=int, default=_APART, help=f"of the games (default {_APART})")
    parser.add_argument("--video", type=Path, help="also record one game to this .gif")
    parser.add_argument("--json", type=Path, help="also write every game's return to this file")
    given = parser.parse_args(words)
    if given.games < 1:
        parser.error(f"--games {given.games}: play at least one")
    try:
        trained = load(given.run)
        if given.video is not None:
            check_video(trained.config, trained.about, given.video)
        score, length = play(trained, given.games, greedy=given.greedy, seed=given.seed)
        if given.video is not None:
            record(given.run, given.video)
        if given.json is not None:
            played = {"step": trained.step, "returns": score.tolist(), "lengths": length.tolist()}
            with writing(given.json):
                given.json.write_text(json.dumps(played) + "\n")
    except (ConfigError, OSError, ValueError) as error:
        return stop_with(error)
    config = trained.config
    table = Table(title=f"{config.game} {config.algorithm}, step {trained.step:,}")
    for column in ("seed", "games", "mean", "± std", "median", "min", "max", "mean length"):
        table.add_column(column, justify="right")

    def add(name: str, returns: np.ndarray, lengths: np.ndarray) -> None:
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
        add(str(seed), score[i], length[i])
    if len(config.seeds) > 1:
        table.add_section()
        add("all", score, length)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
