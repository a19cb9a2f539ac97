"""The configuration of a run: what it computes, and how it is carried out."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxsoft import environments
from jaxsoft.agents.registry import ALGORITHMS, Algorithm, settings_of
from jaxsoft.agents.settings import Settings, SettingsError, count, flag, option

__all__ = [
    "Config",
    "ConfigError",
    "Runtime",
    "complete",
    "fields_of",
    "from_json",
    "look_up",
    "to_json",
    "word",
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

    game: str = option("any EnvPool id with discrete actions", ...)
    algorithm: str = option("what to train by, see below", ..., choices=tuple(ALGORITHMS))
    steps: int = option(
        "agent steps of every seed, all its environments counted; on Atari a step is 4 frames",
        ...,
        least=1,
        most=2**31 - 1,
        type=count,
    )
    seeds: tuple[int, ...] = option(
        "of independent agents, trained side by side in one program",
        (0,),
        type=count,
        nargs="+",
    )
    hidden: tuple[int, ...] = option(
        "tanh layers for vector observations; images get the Nature CNN",
        (64, 64),
        type=count,
        nargs="+",
    )
    centred: bool | None = option(
        "subtract its mean from each image (images)",
        False,
        vectors=None,
        action=argparse.BooleanOptionalAction,
    )
    dtype: str = option("the network computes in", "float32", choices=("float32", "bfloat16"))
    episodic_life: bool | None = option(
        "a lost life is a terminal for learning (Atari)",
        True,
        vectors=None,
        source="A2C",
        action=argparse.BooleanOptionalAction,
    )
    reward_clip: bool | None = option(
        "learn from the sign of the reward; scores stay raw (Atari)",
        True,
        vectors=None,
        source="A2C",
        action=argparse.BooleanOptionalAction,
    )
    max_episode_steps: int | None = option(
        "time limit of a game; by default EnvPool's", least=1, type=count
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

    out: Path = option("folder of the run", ..., type=Path)  # noqa: RUF009 (a field)
    until: int | None = option(
        "leave after so many of --steps, which still set the schedules; --resume continues",
        least=1,
        type=count,
    )
    resume: bool = option(
        "continue from the newest checkpoint of --out, or begin if there is none",
        False,
        action="store_true",
    )
    driver: str = option(
        "step the emulators inside the compiled program, or from the host",
        "auto",
        choices=("auto", "graph", "host"),
    )
    env_threads: int = option("emulator threads; 0 is one per core", 0, least=0, type=count)
    report_every: int | None = option(
        "steps between rows of metrics.csv; by default a hundredth of the run",
        least=1,
        type=count,
    )
    checkpoint_seconds: float = option("between checkpoints", 300.0, least=0, type=float)
    checkpoint_steps: int | None = option(
        "a checkpoint before the first step as well, and at every multiple of so many",
        least=1,
        type=count,
    )
    keep: int = option("checkpoints kept, the latest", 3, least=1, type=count)
    save_replay: bool = option(
        "put the replay into the checkpoints; otherwise it is refilled after --resume",
        False,
        action=argparse.BooleanOptionalAction,
    )
    on_nan: str = option(
        "at a gradient that is not finite, which is never applied: stop, or skip it and continue",
        "stop",
        choices=("stop", "skip"),
    )
    video: Path | None = option(  # noqa: RUF009 (a field)
        "also record a game of the trained agent to this .gif", type=Path
    )


def fields_of(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """Name -> field of all that has a flag."""
    return {spec.name: spec for spec in dataclasses.fields(cls) if spec.metadata}


def complete(given: Mapping[str, Any]) -> Config:
    """A configuration from what was given of it; refuses what does not fit together.

    Args:
      given: flat, name -> value of any settings, at least game, algorithm and steps.
    """
    about = look_up(given["game"])
    name = given["algorithm"]
    entry = ALGORITHMS[name]
    if not about.action.categories:
        raise ConfigError(
            f"--game {about.game} has actions {list(about.action.shape)} of real numbers, and "
            f"--algorithm {name} chooses among finitely many. Name a game with discrete actions."
        )
    images = len(about.observation.shape) == 3
    there = {"centred": images, "episodic_life": about.is_atari, "reward_clip": about.is_atari}
    run: dict[str, Any] = {}
    for key, spec in fields_of(Config).items():
        if key in there and not there[key] and given.get(key) is not None:
            kind = "a game of images" if key == "centred" else "Atari"
            raise ConfigError(
                f"{flag(key)} does not go with --game {about.game}: only {kind} has it. "
                "Leave it out."
            )
        default = spec.metadata["images" if there.get(key, images) else "vectors"]
        run[key] = default if given.get(key) is None else given[key]
    if images and run["hidden"] != (64, 64):
        raise ConfigError(
            f"--hidden {word(run['hidden'])} does not go with --game {about.game}, whose images "
            "get the Nature CNN. Leave it out."
        )
    known = fields_of(entry.settings)
    own = {key: x for key, x in given.items() if key not in run and x is not None}
    for key in own.keys() - known.keys():
        having = [other for other, x in ALGORITHMS.items() if key in fields_of(x.settings)]
        raise ConfigError(
            f"{flag(key)} {word(own[key])} does not go with --algorithm {name}; it belongs to "
            f"{', '.join(having)}. Leave it out."
        )
    config = Config(**run, settings=settings_of(name, own, images=images))
    _validate(config)
    return config


def _validate(c: Config) -> None:
    check_range(c)
    if any(size < 1 for size in c.hidden):
        raise ConfigError(
            f"--hidden {word(c.hidden)} has a layer of less than 1. Give sizes of at least 1."
        )
    if len(set(c.seeds)) < len(c.seeds):
        raise ConfigError(f"--seeds {word(c.seeds)} names a seed twice. Give each once.")
    if not all(0 <= seed < 2**16 for seed in c.seeds):
        raise ConfigError(f"--seeds {word(c.seeds)} leaves the range 0 … 65535. Give others.")
    c.entry.check(c.algorithm, c.settings, c.steps)


def check_range(values: Any) -> None:
    """Refuses numbers of a dataclass of options that are outside their limits."""
    for name, spec in fields_of(type(values)).items():
        least, most, value = spec.metadata["least"], spec.metadata["most"], getattr(values, name)
        if least is not None and value is not None and not least <= value <= most:
            what = f"at least {least}" if value < least or value != value else f"at most {most:_}"
            raise ConfigError(
                f"{flag(name)} must be {what}, got {word(value)}. Give such a number."
            )


def to_json(config: Config) -> dict[str, Any]:
    """The settings as plain values, flat, without those that do not apply."""
    values = {name: getattr(config, name) for name in fields_of(Config)}
    own = {name: getattr(config.settings, name) for name in fields_of(config.entry.settings)}
    common = fields_of(Settings)
    first = {name: values.pop(name) for name in ("game", "algorithm", "steps", "seeds")}
    net = {name: values.pop(name) for name in ("hidden", "centred", "dtype")}
    shared = {name: own.pop(name) for name in common}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in (first | shared | net | own | values).items()
        if value is not None
    }


def from_json(values: Mapping[str, Any]) -> Config:
    """The settings of a `config.json`."""
    entry = ALGORITHMS.get(values.get("algorithm", ""))
    known = fields_of(Config) | (fields_of(entry.settings) if entry else {})
    unknown = sorted(set(values) - set(known) - {"version"})
    if unknown or entry is None:
        what = ", ".join(unknown) or f"algorithm {values.get('algorithm')!r}"
        raise ConfigError(
            f"config.json has the unknown settings {what}: it is of another version. Begin again "
            "in another folder."
        )
    given: dict[str, Any] = {
        name: tuple(x) if isinstance(x, list) else x for name, x in values.items()
    }
    run: dict[str, Any] = {name: given.get(name) for name in fields_of(Config)}
    own = {name: given[name] for name in fields_of(entry.settings) if name in given}
    return Config(**run, settings=entry.settings(**own))


def word(value: Any) -> str:
    """A value as it is given on the command line."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:_}"
    return f"{value:g}" if isinstance(value, float) else str(value)
