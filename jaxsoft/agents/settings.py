"""Settings of algorithms: typed, with what the command line says about them, and their limits."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self

from jaxsoft.agents.on_policy import Objective

__all__ = ["OnPolicy", "Settings", "SettingsError", "count", "flag", "option"]


class SettingsError(ValueError):
    """Settings that cannot be run, with what to do about it."""


def flag(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


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
    source: str = "",
    least: float | None = None,
    most: float = float("inf"),
    **parser: Any,
) -> Any:
    """A setting.

    Args:
      text: of the help.
      images: its default on images; `...` where it must be given.
      vectors: its default on other observations, by default the same.
      source: where the default comes from.
      least: of a number, the least that is allowed.
      most: the greatest.
      **parser: what `argparse` needs to read it.
    """
    metadata = {
        "text": text,
        "images": images,
        "vectors": images if vectors is ... else vectors,
        "source": source,
        "least": least,
        "most": most,
        "parser": parser,
    }
    return field(metadata=metadata) if images is ... else field(default=images, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """What every algorithm has: the settings of the rollouts, the objective and the descent."""

    num_envs: int = option("environments of every seed", 16, source="A2C", least=1, type=count)
    rollout_length: int = option(
        "steps of each environment between updates",
        5,
        vectors=8,
        source="§6.3: every 5 steps",
        least=1,
        type=count,
    )
    n: int = option("steps to the bootstrap", source="§6.1-6.3", least=1, type=count)
    discount: float = option("γ", 0.99, source="A2C", least=0, most=1, type=float)
    tau: float = option("temperature τ", 0.01, source="§6.1: 0.01; §6.2: 0.1", least=0, type=float)
    prior: str = option(
        "π̄: uniform (KL penalty) or counting (entropy bonus)",
        "uniform",
        source="§6.1: uniform",
        choices=("uniform", "counting"),
    )
    optimiser: str = option(
        "method of descent",
        "rmsprop",
        vectors="adam",
        source="A2C",
        choices=("rmsprop", "adam", "sgd"),
    )
    learning_rate: float = option(
        "step size", 7e-4, vectors=3e-3, source="A2C", least=0, type=float
    )
    schedule: str = option(
        "of the learning rate: constant, or linear to 0",
        "linear",
        source="A2C",
        choices=("linear", "constant"),
    )
    max_gradient_norm: float = option(
        "clips the gradient; inf does not", 0.5, source="A2C", least=0, type=float
    )

    def objective(self) -> Objective:
        """What is maximised."""
        log_prior = None if self.prior == "uniform" else 0.0
        return Objective(self.tau, self.discount, self.n, 0.5, log_prior)

    def completed(self) -> Self:
        """With n as long as the rollout, where it was left open."""
        return self if self.n else dataclasses.replace(self, n=self.rollout_length)

    def updates(self, steps: int) -> int:
        """Rollouts of a run of so many environment steps."""
        return steps // (self.num_envs * self.rollout_length)

    def gradient_steps(self, steps: int) -> int:
        """Gradient steps of a run of so many environment steps."""
        return self.updates(steps)

    def check(self, steps: int) -> None:
        """Refuses what cannot be run, with what to do about it."""
        for spec in dataclasses.fields(self):
            least, most, value = (
                spec.metadata["least"],
                spec.metadata["most"],
                getattr(self, spec.name),
            )
            if least is not None and not (least <= value <= most):
                what = (
                    f"at least {least:g}" if most == float("inf") else f"in [{least:g}, {most:g}]"
                )
                raise SettingsError(
                    f"{flag(spec.name)} must be {what}, got {value}. Give such a number."
                )
            if spec.name != "max_gradient_norm" and value == float("inf"):
                raise SettingsError(
                    f"{flag(spec.name)} must be finite, got {value}. Give a number."
                )
        per_update = self.num_envs * self.rollout_length
        if steps < per_update:
            raise SettingsError(
                f"--steps {steps:_} is less than one update, {self.num_envs} environments x "
                f"{self.rollout_length} steps. Give at least {per_update}."
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
                "return ends with its rollout: lengthen that, or give a smaller n."
            )
