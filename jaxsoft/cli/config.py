"""The configuration of a run: typed, with defaults and their sources."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxsoft.cli.defaults import NATURAL, ON_POLICY, REPLAY, defaults

_A2C, _DQN = "A2C", "DQN"  # explained in the epilogue of the help


def _option(
    text: str,
    *,
    default: Any = None,
    source: str = "",
    group: str = "general",
    only: tuple[str, ...] = (),
    **parser: Any,
) -> Any:
    metadata = {"text": text, "source": source, "group": group, "only": only, "parser": parser}
    return field(default=default, metadata=metadata)


_replay = functools.partial(_option, source=_DQN, group="replay", only=REPLAY)


def count(text: str) -> int:
    """An integer, also as 10_000_000 or 1e7."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = int(float(text))
        if value == float(text):
            return value
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")


@dataclass(frozen=True)
class Config:
    """All that decides what a run computes. `None` is filled in by `complete`."""

    game: str = _option("any EnvPool id with discrete actions")
    algorithm: str = _option("what to train by, see below", choices=ON_POLICY + REPLAY)
    steps: int = _option(
        "agent steps of every seed, all its environments counted; on Atari a step is 4 frames",
        type=count,
    )
    seeds: tuple[int, ...] = _option(
        "of independent learners, trained side by side in one program",
        default=(0,),
        type=count,
        nargs="+",
    )
    num_envs: int = _option("environments of every seed", source=_A2C, type=count)
    rollout_length: int = _option(
        "steps of each environment between updates", source="§6.3: every 5 steps", type=count
    )
    n: int = _option("steps to the bootstrap", source="§6.1-6.3", type=count)
    discount: float = _option("γ", default=0.99, source=_A2C, type=float)
    tau: float = _option("temperature τ", source="§6.1: 0.01; §6.2: 0.1", type=float)
    prior: str = _option(
        "π̄: uniform (KL penalty) or counting (entropy bonus)",
        source="§6.1: uniform",
        choices=("uniform", "counting"),
    )
    optimiser: str = _option("method of descent", source=_A2C, choices=("rmsprop", "adam", "sgd"))
    learning_rate: float = _option("step size", source=_A2C, type=float)
    schedule: str = _option(
        "of the learning rate: constant, or linear to 0",
        source=_A2C,
        choices=("linear", "constant"),
    )
    max_gradient_norm: float = _option("clips the gradient; inf does not", source=_A2C, type=float)
    hidden: tuple[int, ...] = _option(
        "tanh layers for vector observations; images get the Nature CNN",
        default=(64, 64),
        type=count,
        nargs="+",
    )
    centred: bool = _option(
        "subtract its mean from each image (images)", action=argparse.BooleanOptionalAction
    )
    dtype: str = _option(
        "the network computes in", default="float32", choices=("float32", "bfloat16")
    )

    value_coef: float = _option(
        "c, the weight of the value loss",
        source="§6.3: 0.5",
        group="on-policy",
        only=("a2c", "a2c_naive", "soft_q", "pgq", "natural_pg"),
        type=float,
    )
    damping: float = _option(
        "λ of the natural gradient", group="on-policy", only=NATURAL, type=float
    )
    solver: str = _option(
        "of the natural gradient", group="on-policy", only=NATURAL, choices=("gram", "cg")
    )

    capacity: int = _replay(
        "transitions in the replay; a million of Atari are 7.1 GB on the device", type=count
    )
    batch_size: int = _replay("of a gradient step", type=count)
    steps_per_gradient: int = _replay("environment steps for each gradient step", type=count)
    learning_starts: int = _replay("environment steps before the first gradient step", type=count)
    target_period: int = _replay(
        "environment steps between copies to the target network", type=count
    )
    epsilon: float = _replay("the last ε of the exploration", type=float)
    epsilon_share: float = _replay("share of the steps over which ε falls from 1", type=float)

    episodic_life: bool = _option(
        "a lost life is a terminal for learning (Atari)",
        source=_A2C,
        group="environment",
        action=argparse.BooleanOptionalAction,
    )
    reward_clip: bool = _option(
        "learn from the sign of the reward; scores stay raw (Atari)",
        source=_A2C,
        group="environment",
        action=argparse.BooleanOptionalAction,
    )
    max_episode_steps: int = _option(
        "time limit of a game; by default EnvPool's", group="environment", type=count
    )


@dataclass(frozen=True)
class Runtime:
    """How a run is carried out, which does not change what it computes."""

    out: Path = _option("folder of the run", type=Path)  # noqa: RUF009 (a field)
    until: int = _option(
        "leave after so many of --steps, which still set the schedules; --resume goes on",
        type=count,
    )
    resume: bool = _option(
        "go on from the newest checkpoint of --out, or begin if there is none",
        default=False,
        action="store_true",
    )
    driver: str = _option(
        "step the emulators inside the compiled program, or from the host",
        default="auto",
        choices=("auto", "graph", "host"),
    )
    env_threads: int = _option("emulator threads; 0 is one a core", default=0, type=count)
    report_every: int = _option(
        "steps between rows of metrics.csv; by default a hundredth of the run", type=count
    )
    checkpoint_seconds: float = _option("between checkpoints", default=300.0, type=float)
    checkpoint_steps: int = _option(
        "a checkpoint before the first step, too, and at every multiple of so many", type=count
    )
    keep: int = _option("checkpoints kept, the latest", default=3, type=count)
    save_replay: bool = _option(
        "put the replay into the checkpoints; otherwise it is refilled after --resume",
        default=False,
        action=argparse.BooleanOptionalAction,
    )
    on_nan: str = _option(
        "at a gradient that is not finite, which is never applied: stop, or skip it and go on",
        default="stop",
        choices=("stop", "skip"),
    )
    video: Path = _option(  # noqa: RUF009 (a field)
        "also record a game of the trained agent to this .gif", type=Path
    )


def complete(config: Config, images: bool, atari: bool) -> Config:
    """Fills in what was left open, and refuses what does not fit together."""
    table = defaults(config.algorithm, images)
    values = dataclasses.asdict(config)
    has = {"episodic_life": (atari, "Atari"), "reward_clip": (atari, "Atari")}
    has["centred"] = (images, "a game of images")
    for name, (there, kind) in has.items():
        if not there:
            table.pop(name, None)
            if values[name] is not None:
                raise ConfigError(
                    f"{flag(name)} does not go with --game {config.game}: only {kind} has it. "
                    "Leave it out."
                )
    if images and config.hidden != (64, 64):
        raise ConfigError(
            f"--hidden {word(config.hidden)} does not go with --game {config.game}, whose images "
            "get the Nature CNN. Leave it out."
        )
    for spec in dataclasses.fields(Config):
        only, given = spec.metadata["only"], values[spec.name]
        if only and config.algorithm not in only:
            if given is not None:
                raise ConfigError(
                    f"{flag(spec.name)} {given} does not go with --algorithm {config.algorithm}; "
                    f"it belongs to {', '.join(only)}. Leave it out."
                )
        elif given is None:
            values[spec.name] = table.get(spec.name)
    if values["n"] is None:
        values["n"] = values["rollout_length"]
    complete = Config(**values)
    _validate(complete)
    return complete


class ConfigError(ValueError):
    """Settings that cannot be run, with what to do about it."""


def _validate(c: Config) -> None:
    def demand(holds: bool, problem: str, mend: str) -> None:
        if not holds:
            raise ConfigError(f"{problem} {mend}")

    counts: tuple[str, ...] = ("steps", "num_envs", "rollout_length", "n", "max_episode_steps")
    counts += ("capacity", "batch_size", "steps_per_gradient", "learning_starts", "target_period")
    for name in counts:
        value = getattr(c, name)
        demand(
            value is None or value >= 1,
            f"{flag(name)} {value} is less than 1.",
            "Give a count of at least 1.",
        )
    demand(
        all(size >= 1 for size in c.hidden),
        f"--hidden {word(c.hidden)} has a layer of less than 1.",
        "Give sizes of at least 1.",
    )
    demand(
        c.steps < 2**31,
        f"--steps {c.steps:_} is more than the {2**31 - 1:_} that can be counted.",
        "Give fewer.",
    )
    inf = float("inf")
    for name, high in (
        ("discount", 1.0),
        ("tau", inf),
        ("learning_rate", inf),
        ("max_gradient_norm", inf),
        ("damping", inf),
        ("value_coef", inf),
        ("epsilon", 1.0),
        ("epsilon_share", 1.0),
    ):
        value = getattr(c, name)
        closed = high < inf or name == "max_gradient_norm"
        demand(
            value is None or 0 <= value < high or (closed and value == high),
            f"{flag(name)} {value} is outside [0, {high:g}{']' if closed else ')'}.",
            "Give a number inside.",
        )
    demand(
        len(set(c.seeds)) == len(c.seeds),
        f"--seeds {' '.join(map(str, c.seeds))} names a seed twice.",
        "Give each once.",
    )
    demand(
        all(0 <= seed < 2**16 for seed in c.seeds),
        f"--seeds {' '.join(map(str, c.seeds))} leaves the range 0 … 65535.",
        "Give others.",
    )
    per_update = c.num_envs * c.rollout_length
    demand(
        c.steps >= per_update,
        f"--steps {c.steps:_} is less than one update, {c.num_envs} environments x "
        f"{c.rollout_length} steps.",
        f"Give at least {per_update}.",
    )
    if c.algorithm in ("nstep_soft_q", "damped_q", "natural_pg", "soft_dqn_kl", "soft_dqn_entropy"):
        demand(
            c.tau > 0,
            f"--tau {c.tau:g} with --algorithm {c.algorithm}: at 0 there is no soft policy.",
            "Give a positive τ" + (", or --algorithm dqn." if "dqn" in c.algorithm else "."),
        )
    if c.algorithm == "dqn":
        demand(
            c.tau == 0,
            f"--tau {c.tau:g} with --algorithm dqn, whose maximum is hard.",
            "Use --algorithm soft_dqn_kl or soft_dqn_entropy.",
        )
    for name in REPLAY:
        demand(
            c.algorithm != name or (c.prior == "counting") == (name == "soft_dqn_entropy"),
            f"--prior {c.prior} with --algorithm {name}.",
            "uniform is soft_dqn_kl, counting is soft_dqn_entropy: leave --prior out.",
        )
    if c.algorithm in REPLAY:
        demand(
            per_update % c.steps_per_gradient == 0,
            f"--steps-per-gradient {c.steps_per_gradient} does not divide the {per_update} steps "
            f"of an update ({c.num_envs} environments x {c.rollout_length}).",
            "Change one of the three.",
        )
        demand(
            c.capacity >= c.learning_starts,
            f"--capacity {c.capacity:_} is less than --learning-starts {c.learning_starts:_}.",
            "Learning would start with a replay that has already lost data: raise the capacity.",
        )
        demand(
            c.steps >= c.learning_starts,
            f"--steps {c.steps:_} is less than --learning-starts {c.learning_starts:_}.",
            "Nothing would be learned: change one of the two.",
        )
    elif c.n > c.rollout_length:
        raise ConfigError(
            f"--n {c.n} is longer than --rollout-length {c.rollout_length}. "
            "An n-step return ends with its rollout: lengthen that, or give a smaller n."
        )


def flag(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def to_json(config: Config) -> dict[str, Any]:
    """The settings as plain values, without those that do not apply."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(config).items()
        if value is not None
    }


def from_json(values: Mapping[str, Any]) -> Config:
    """The settings of a `config.json`."""
    known = {spec.name for spec in dataclasses.fields(Config)}
    unknown = sorted(set(values) - known - {"version"})
    if unknown:
        raise ConfigError(
            f"config.json has the unknown settings {', '.join(unknown)}: it is of another version. "
            "Begin anew in another folder."
        )
    given: dict[str, Any] = {
        name: tuple(x) if isinstance(x, list) else x for name, x in values.items() if name in known
    }
    for spec in dataclasses.fields(Config):
        given.setdefault(spec.name)
    return Config(**given)


def word(value: Any) -> str:
    """A value as it is given on the command line."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:_}"
    return f"{value:g}" if isinstance(value, float) else str(value)
