"""Settings of algorithms: typed, with what the command line says about them, and their limits."""

from __future__ import annotations

import argparse
import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, cast

from jaxsoft.agents.on_policy import Objective

__all__ = [
    "MOST",
    "OnPolicy",
    "Settings",
    "SettingsError",
    "check_range",
    "count",
    "flag",
    "option",
    "said",
    "word",
]


MOST = 2**31 - 1
"""The greatest count: steps, rows and seeds are int32 in JAX as in EnvPool."""


class SettingsError(ValueError):
    """Settings that cannot be run, with what to do about it."""


def flag(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


def word(value: Any) -> str:
    """A value as it is given on the command line."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:_}"
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def said(name: str, value: Any) -> str:
    """A setting as it is given on the command line."""
    if isinstance(value, bool):
        return flag(name if value else f"no_{name}")
    return f"{flag(name)} {word(value)}"


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


def option(
    text: str,
    images: Any = None,
    *,
    vectors: Any = ...,
    group: str = "",
    source: str = "",
    least: float | None = None,
    most: float | None = None,
    limit: int = MOST,
    **parser: Any,
) -> Any:
    """A setting.

    Args:
      text: of the help.
      images: its default on images; `...` where it must be given.
      vectors: its default on other observations, by default the same.
      group: title of the help under which it stands; by default the algorithms that have it.
      source: where the default comes from.
      least: of numbers, the least that is allowed.
      most: the greatest; by default any that is finite, and of counts up to `limit`.
      limit: of what can be carried out at all.
      **parser: what `argparse` needs to read it.
    """
    metadata = {
        "text": text,
        "images": images,
        "vectors": images if vectors is ... else vectors,
        "group": group,
        "source": source,
        "least": least,
        "most": most,
        "limit": limit,
        "parser": parser,
    }
    return field(metadata=metadata) if images is ... else field(default=images, metadata=metadata)


def check_range(values: Any) -> None:
    """Refuses numbers of a dataclass of options that are out of their range."""
    for spec in dataclasses.fields(values):
        least, most = spec.metadata.get("least"), spec.metadata.get("most")
        value = getattr(values, spec.name)
        if least is None or value is None:
            continue
        several = isinstance(value, tuple)
        each = value if several else (value,)
        bound = most
        if most is None and spec.metadata["parser"].get("type") is count:
            bound = spec.metadata["limit"]
        if all(least <= x < math.inf if bound is None else least <= x <= bound for x in each):
            continue
        what = f"of at least {word(least)}"
        if bound is not None and (most is not None or max(each) > bound):
            what = f"from {word(least)} to {word(bound)}"
        numbers = "numbers" if several else "a finite number" if value == math.inf else "a number"
        raise SettingsError(f"{said(spec.name, value)} is out of range. Give {numbers} {what}.")


@dataclass(frozen=True)
class Settings:
    """What every algorithm has: the settings of the rollouts, the objective and the descent."""

    num_envs: int = option(
        "environments of every seed", 16, group="rollouts", source="A2C", least=1, type=count
    )
    rollout_length: int = option(
        "steps of each environment between updates",
        5,
        group="rollouts",
        vectors=8,
        source="§6.3: every 5 steps",
        least=1,
        type=count,
    )
    n: int = option(
        "steps to the bootstrap", group="objective", source="§6.1-6.3", least=1, type=count
    )
    discount: float = option(
        "discount factor γ", 0.99, group="objective", source="A2C", least=0, most=1, type=float
    )
    tau: float = option(
        "temperature τ",
        0.01,
        group="objective",
        source="§6.1: 0.01; §6.2: 0.1",
        least=0,
        type=float,
    )
    final_tau: float | None = option(
        "τ at the end, to which it changes linearly", group="objective", least=0, type=float
    )
    target_kl: float | None = option(
        "tunes τ, from --tau on, so that the policy's KL to the uniform one becomes this",
        group="objective",
        least=0,
        type=float,
    )
    target_entropy: float | None = option(
        "the same by the policy's entropy; of real numbers, in units of half their range",
        group="objective",
        least=-MOST,
        type=float,
    )
    tau_rate: float | None = option(
        "step size of Adam on log τ where that is tuned; by default 0.01, SAC's 3e-4",
        group="objective",
        least=0,
        type=float,
    )
    prior: str = option(
        "π̄: uniform (KL penalty) or counting (entropy bonus)",
        "uniform",
        group="objective",
        source="§6.1: uniform",
        choices=("uniform", "counting"),
    )
    optimiser: str = option(
        "method of descent",
        "rmsprop",
        group="descent",
        vectors="adam",
        source="A2C",
        choices=("rmsprop", "adam", "sgd"),
    )
    learning_rate: float = option(
        "step size of the descent",
        7e-4,
        group="descent",
        vectors=3e-3,
        source="A2C",
        least=0,
        type=float,
    )
    schedule: str = option(
        "of the learning rate: constant, or falling linearly to 0",
        "linear",
        group="descent",
        source="A2C",
        choices=("linear", "constant"),
    )
    max_gradient_norm: float = option(
        "clips the gradient; inf does not",
        0.5,
        group="descent",
        source="A2C",
        least=0,
        most=math.inf,
        type=float,
    )

    def __post_init__(self) -> None:
        """An n that is left open, `None`, is the rollout's length."""
        if cast("int | None", self.n) is None:
            object.__setattr__(self, "n", self.rollout_length)

    def objective(self) -> Objective:
        """What is maximised."""
        log_prior = None if self.prior == "uniform" else 0.0
        return Objective(tau=self.tau, discount=self.discount, n=self.n, log_prior=log_prior)

    def updates(self, steps: int) -> int:
        """Rollouts of a run of so many environment steps."""
        return steps // (self.num_envs * self.rollout_length)

    def gradient_steps(self, steps: int) -> int:
        """Gradient steps of a run of so many environment steps."""
        return self.updates(steps)

    def check(self, steps: int) -> None:
        """Refuses what cannot be run, with what to do about it."""
        check_range(self)
        self._check_tau()
        per_update = self.num_envs * self.rollout_length
        if steps < per_update:
            raise SettingsError(
                f"--steps {steps:_} is less than one update, --num-envs {self.num_envs} x "
                f"--rollout-length {self.rollout_length}. Give at least {per_update}."
            )

    def _check_tau(self) -> None:
        ways = ("final_tau", "target_kl", "target_entropy")
        given = [name for name in ways if getattr(self, name) is not None]
        if len(given) > 1:
            raise SettingsError(
                f"{said(given[0], getattr(self, given[0]))} does not go with {flag(given[1])}: τ "
                "changes in one way. Give one of them."
            )
        if given and given != ["final_tau"] and not self.tau > 0:
            raise SettingsError(
                f"--tau 0 does not go with {flag(given[0])}: τ is tuned by factors. Start from a "
                "positive one."
            )


@dataclass(frozen=True)
class OnPolicy(Settings):
    """An agent that learns from its own rollouts, each once."""

    def check(self, steps: int) -> None:
        """As for all, and n within the rollout."""
        super().check(steps)
        if self.n > self.rollout_length:
            raise SettingsError(
                f"--n {self.n} is longer than --rollout-length {self.rollout_length}. An n-step "
                "return ends with its rollout. Lengthen that, or give a smaller n."
            )
