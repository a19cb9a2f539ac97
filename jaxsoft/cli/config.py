"""The configuration of a run: what it computes, and how it is carried out."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxsoft import environments
from jaxsoft.agents import networks
from jaxsoft.agents.registry import ALGORITHMS, Algorithm, settings_of
from jaxsoft.agents.settings import Settings, SettingsError, check_range, count, option, said
from jaxsoft.training._json import read_json

__all__ = [
    "Config",
    "ConfigError",
    "Runtime",
    "complete",
    "fields_of",
    "from_json",
    "look_up",
    "read",
    "to_json",
]

ConfigError = SettingsError

# A fifth of a second for a game of Atari, and a study asks for each many times.
look_up = functools.cache(environments.about)


@dataclass(frozen=True)
class Config:
    """All that decides what a run computes.

    `settings` are those of its algorithm; `centred` is `None` where there are no images, and so are
    the switches of Atari elsewhere.
    """

    game: str = option("any EnvPool id with one player", ..., group="run")
    algorithm: str = option("one of those above", ..., group="run", choices=tuple(ALGORITHMS))
    steps: int = option(
        "agent steps of every seed, all its environments counted; on Atari a step is 4 frames",
        ...,
        group="run",
        least=1,
        most=2**31 - 1,
        type=count,
    )
    seeds: tuple[int, ...] = option(
        "of independent agents, trained side by side in one program",
        (0,),
        group="run",
        least=0,
        most=2**16 - 1,
        type=count,
        nargs="+",
    )
    episodic_life: bool | None = option(
        "Atari: a lost life is a terminal for learning",
        True,
        vectors=None,
        group="game",
        source="A2C",
        action=argparse.BooleanOptionalAction,
    )
    reward_clip: bool | None = option(
        "Atari: learn from the sign of the reward; scores stay raw",
        True,
        vectors=None,
        group="game",
        source="A2C",
        action=argparse.BooleanOptionalAction,
    )
    max_episode_steps: int | None = option(
        "time limit of a game; by default EnvPool's", group="game", least=1, type=count
    )
    hidden: tuple[int, ...] = option(
        "layers for vector observations; images get the Nature CNN",
        (64, 64),
        group="network",
        least=1,
        type=count,
        nargs="+",
    )
    activation: str | None = option(
        "of these layers; by default tanh, or what is listed below",
        group="network",
        choices=tuple(networks.ACTIVATIONS),
    )
    layer_norm: bool | None = option(
        "normalise each layer before it is activated; soft_pqn does",
        group="network",
        action=argparse.BooleanOptionalAction,
    )
    centred: bool | None = option(
        "images: subtract each image's mean",
        False,
        vectors=None,
        group="network",
        action=argparse.BooleanOptionalAction,
    )
    dtype: str = option(
        "what the network computes in",
        "float32",
        group="network",
        choices=("float32", "bfloat16"),
    )
    settings: Settings = dataclasses.field(default_factory=Settings)

    @property
    def entry(self) -> Algorithm:
        """The registry's entry of the algorithm."""
        return ALGORITHMS[self.algorithm]

    @property
    def updates(self) -> int:
        """Rollouts of the whole run."""
        return self.settings.updates(self.steps)


@dataclass(frozen=True)
class Runtime:
    """How a run is carried out, which does not change what it computes."""

    out: Path = option("folder of the run", ..., group="run", type=Path)  # noqa: RUF009 (a field)
    resume: bool = option(
        "continue from the newest checkpoint of --out, or begin if there is none",
        False,
        group="interruptions",
        action="store_true",
    )
    until: int | None = option(
        "stop after so many of --steps, which still set the schedules; --resume continues",
        group="interruptions",
        least=1,
        type=count,
    )
    checkpoint_seconds: float = option(
        "between checkpoints", 300.0, group="interruptions", least=0, most=math.inf, type=float
    )
    checkpoint_steps: int | None = option(
        "also a checkpoint before the first step and at every multiple of so many",
        group="interruptions",
        least=1,
        type=count,
    )
    keep: int = option(
        "checkpoints kept, the newest", 3, group="interruptions", least=1, type=count
    )
    save_replay: bool = option(
        "put the replay into the checkpoints; otherwise --resume fills it again",
        False,
        group="interruptions",
        action=argparse.BooleanOptionalAction,
    )
    on_nan: str = option(
        "a gradient that is not finite is never applied: stop then, or skip it and continue",
        "stop",
        group="interruptions",
        choices=("stop", "skip"),
    )
    driver: str = option(
        "step the emulators inside the compiled program (graph) or from the host",
        "auto",
        group="execution and output",
        choices=("auto", "graph", "host"),
    )
    env_threads: int = option(
        "emulator threads; 0 is one per core",
        0,
        group="execution and output",
        least=0,
        limit=16 * (os.cpu_count() or 1),  # EnvPool makes them all, and aborts where it cannot
        type=count,
    )
    report_every: int | None = option(
        "steps between rows of metrics.csv; by default a hundredth of the run",
        group="execution and output",
        least=1,
        type=count,
    )
    video: Path | None = option(  # noqa: RUF009 (a field)
        "also record a game of the trained agent to this .gif",
        group="execution and output",
        type=Path,
    )


def fields_of(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """Name -> field of all that has a flag."""
    return {spec.name: spec for spec in dataclasses.fields(cls) if spec.metadata}


def complete(given: Mapping[str, Any]) -> Config:
    """A configuration from what was given of it; refuses what does not fit together.

    Args:
      given: flat, name -> value of any settings, at least game, algorithm and steps.
    """
    try:
        about = look_up(given["game"])
    except ValueError as error:
        raise ConfigError(f"--game {given['game']} cannot be trained on: {error}") from error
    name = given["algorithm"]
    entry = ALGORITHMS[name]
    _check_actions(about, name)
    images = len(about.observation.shape) == 3
    there = {"centred": images, "episodic_life": about.is_atari, "reward_clip": about.is_atari}
    there["activation"] = not images
    run: dict[str, Any] = {}
    for key, spec in fields_of(Config).items():
        if key in there and not there[key] and given.get(key) is not None:
            kinds = {"centred": "a game of images", "activation": "a game without images"}
            kind = kinds.get(key, "Atari")
            raise ConfigError(
                f"{said(key, given[key])} does not go with --game {about.game}: only {kind} has "
                "it. Leave it out."
            )
        default = spec.metadata["images" if there.get(key, images) else "vectors"]
        if key == "layer_norm" or not images:
            default = entry.architecture.get(key, default)
        run[key] = default if given.get(key) is None else given[key]
    if images and given.get("hidden") not in (None, fields_of(Config)["hidden"].default):
        raise ConfigError(
            f"{said('hidden', given['hidden'])} does not go with --game {about.game}, whose images "
            "get the Nature CNN. Leave it out."
        )
    known = fields_of(entry.settings)
    own = {key: x for key, x in given.items() if key not in run and x is not None}
    if entry.tuned and not own.keys() & {"tau", "final_tau", "target_kl", "target_entropy"}:
        own["target_entropy"] = -float(math.prod(about.action.shape))
    for key in (key for key in own if key not in known):
        having = [other for other, x in ALGORITHMS.items() if key in fields_of(x.settings)]
        owners = f"it belongs to {', '.join(having)}" if having else "there is no such setting"
        raise ConfigError(
            f"{said(key, own[key])} does not go with --algorithm {name}: {owners}. Leave it out."
        )
    config = Config(**run, settings=settings_of(name, own, images=images))
    check_range(config)
    if len(set(config.seeds)) < len(config.seeds):
        raise ConfigError(f"{said('seeds', config.seeds)} names a seed twice. Give each once.")
    entry.check(name, config.settings, config.steps)
    num_envs = config.settings.num_envs
    if environments.last_seed(config.seeds, num_envs) > environments.MOST_SEED:
        raise ConfigError(
            f"--seeds {max(config.seeds)} with --num-envs {num_envs:_} numbers its environments "
            f"beyond {environments.MOST_SEED:_}. Give smaller seeds, or fewer environments."
        )
    return config


def _check_actions(about: environments.About, name: str) -> None:
    """Refuses an algorithm that cannot choose among a game's actions, and says which can."""
    kind, wanted = about.action, ALGORITHMS[name].actions
    having = "categories" if kind.categories else "numbers"
    if wanted != having:
        can = [other for other, x in ALGORITHMS.items() if x.actions == having]
        what = {
            "categories": f"{kind.categories} actions to choose among",
            "numbers": f"actions {list(kind.shape)} of real numbers",
        }
        chooses = {"categories": "chooses among finitely many", "numbers": "acts by real numbers"}
        raise ConfigError(
            f"--game {about.game} has {what[having]}, and --algorithm {name} {chooses[wanted]}. "
            f"Name another game, or one of the algorithms {', '.join(can)}."
        )
    if having == "numbers" and not (
        np.issubdtype(kind.dtype, np.floating)
        and np.isfinite(kind.low).all()
        and np.isfinite(kind.high).all()
    ):
        raise ConfigError(
            f"--game {about.game} has actions {kind.dtype}{list(kind.shape)} without bounds, and "
            f"--algorithm {name} acts within bounds. Name another game."
        )


def to_json(config: Config) -> dict[str, Any]:
    """The settings as plain values, flat, without those that do not apply."""
    values = {name: getattr(config, name) for name in fields_of(Config)}
    own = {name: getattr(config.settings, name) for name in fields_of(config.entry.settings)}
    common = fields_of(Settings)
    first = {name: values.pop(name) for name in ("game", "algorithm", "steps", "seeds")}
    net = {name: values.pop(name) for name in ("hidden", "centred", "dtype")}
    shared = {name: own.pop(name) for name in common}
    # In this order: committed results name their settings in it, and are compared as text.
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in (first | shared | net | own | values).items()
        if value is not None
    }


def from_json(values: Any, file: str | Path = "config.json") -> Config:
    """The settings of a `config.json`, which is refused unless `to_json` can have made it.

    Args:
      values: what it holds.
      file: what to call it.
    """
    restore = "Restore the file from a copy, or begin again in another folder."
    if not isinstance(values, dict):
        raise ConfigError(f"{file} is damaged: it holds no settings by name. {restore}")
    name = values.get("algorithm")
    entry = ALGORITHMS.get(name) if isinstance(name, str) else None
    specs = fields_of(Config) | (fields_of(entry.settings) if entry else {})
    unknown = sorted(set(values) - set(specs) - {"version"})
    if entry is None or unknown:
        what = f"settings {', '.join(unknown)}" if entry else f"algorithm {name}"
        raise ConfigError(
            f"{file} has the unknown {what}: it is damaged, or of another version. {restore}"
        )
    given: dict[str, Any] = {
        key: tuple(x) if isinstance(x, list) else x for key, x in values.items() if key != "version"
    }
    hints = typing.get_type_hints(Config) | typing.get_type_hints(entry.settings)
    for key, value in given.items():
        choices = specs[key].metadata["parser"].get("choices")
        if not _is_a(value, hints[key]) or (choices and value not in choices):
            raise ConfigError(f"{file} is damaged: it has {key} = {values[key]!r}. {restore}")
    lacking = [key for key in ("game", "steps") if key not in given]
    if not lacking:
        try:
            config = complete(given)
        except ConfigError as error:
            raise ConfigError(f"{file} is damaged, or of another version: {error}") from error
        lacking = sorted(set(to_json(config)) - set(given))
    if lacking:
        raise ConfigError(f"{file} is damaged: it has no {', '.join(lacking)}. {restore}")
    return config


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value of JSON is of a field's type."""
    if typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        return isinstance(value, tuple) and value != () and all(_is_a(x, kind) for x in value)
    if kinds := typing.get_args(hint):
        return any(_is_a(value, kind) for kind in kinds)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def read(out: Path) -> tuple[Config, int]:
    """The settings of the run in a folder, and the version of its checkpoints."""
    file = out / "config.json"
    values = read_json(file)
    config = from_json(values, file)
    version = values.get("version")
    if not _is_a(version, int):
        raise ConfigError(
            f"{file} is damaged: it has version = {version!r}. Restore the file from a copy, or "
            "begin again in another folder."
        )
    return config, version
