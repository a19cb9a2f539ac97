"""The algorithms that can be trained, one entry each.

An entry says which head an algorithm needs, whether it differentiates its target, which settings it
has, what these are by default, and how an agent is made of them. The command line, its help, the
benchmarks and the tests are made from `ALGORITHMS`: to add an algorithm is to write its loss and
its entry.

Defaults come in pairs, for images and for vectors. Those for images are of the code that the
paper's authors ran, openai/baselines' A2C [A2C] and DQN [DQN] of 2017; those for vectors were found
by trial, on small games. Soft actor-critic's are of its paper [SAC].
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from jaxsoft.agents import natural, off_policy, on_policy, windows
from jaxsoft.agents._make import (
    Make,
    Problem,
    actor_and_critic,
    along,
    descending,
    from_replay,
    network_for,
    sampling,
    trusting,
)
from jaxsoft.agents.base import Agent
from jaxsoft.agents.settings import (
    MOST,
    OnPolicy,
    Settings,
    SettingsError,
    count,
    flag,
    option,
    said,
    word,
)

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "Problem",
    "actor_and_critic",
    "along",
    "descending",
    "from_replay",
    "sampling",
    "settings_of",
    "trusting",
]


@dataclass(frozen=True)
class ActorCritic(OnPolicy):
    """With a value loss beside the policy's."""

    value_coef: float = option(
        "c, the weight of the value loss", 0.5, source="§6.3: 0.5", least=0, type=float
    )

    def objective(self) -> on_policy.Objective:
        """What is maximised, and how its value is learned."""
        return super().objective()._replace(value_coef=self.value_coef)


@dataclass(frozen=True)
class Solved(OnPolicy):
    """With a linear solve for each update."""

    damping: float = option("λ of the natural gradient", 1e-2, least=0, type=float)
    solver: str = option("of the natural gradient", "gram", vectors="cg", choices=("gram", "cg"))


@dataclass(frozen=True)
class SolvedActorCritic(Solved, ActorCritic):
    """Both."""


@dataclass(frozen=True)
class Remembering(Settings):
    """An agent that learns from a replay."""

    capacity: int = option(
        "transitions in the replay; a million of Atari are 7.1 GB on the device",
        1_000_000,
        vectors=50_000,
        source="DQN",
        least=1,
        type=count,
    )
    batch_size: int = option("of a gradient step", 32, source="DQN", least=1, type=count)
    steps_per_gradient: int = option(
        "environment steps for each gradient step", 4, source="DQN", least=1, type=count
    )
    learning_starts: int = option(
        "environment steps before the first gradient step",
        10_000,
        vectors=1_000,
        source="DQN",
        least=1,
        type=count,
    )

    def targets(self) -> dict[str, Any]:
        """What an agent has for its targets, if not the usual."""
        return {}

    def gradient_steps(self, steps: int) -> int:
        """Gradient steps of a run of so many environment steps."""
        return max(1, (steps - self.learning_starts) // self.steps_per_gradient)

    def check(self, steps: int) -> None:
        """As for all, and what concerns the replay."""
        super().check(steps)
        per_update = self.num_envs * self.rollout_length
        if per_update % self.steps_per_gradient:
            raise SettingsError(
                f"--steps-per-gradient {self.steps_per_gradient} does not divide the {per_update} "
                f"steps of an update, --num-envs {self.num_envs} x --rollout-length "
                f"{self.rollout_length}. Change one of the three."
            )
        if self.capacity < self.learning_starts:
            raise SettingsError(
                f"--capacity {self.capacity:_} is less than --learning-starts "
                f"{self.learning_starts:_}. Learning would start with a replay that has already "
                "lost data. Raise the capacity, or start earlier."
            )
        self._check_begin(steps)

    def _check_begin(self, steps: int) -> None:
        """Refuses a replay that no rollout fits into, and a run whose learning cannot begin."""
        rows, per_update = self.capacity // self.num_envs, self.num_envs * self.rollout_length
        if rows < self.rollout_length:
            raise SettingsError(
                f"--capacity {self.capacity:_} holds {rows:_} steps of --num-envs {self.num_envs}, "
                f"fewer than --rollout-length {self.rollout_length}. Raise the capacity, far "
                "better to much more."
            )
        starts = min(self.learning_starts, rows * self.num_envs)
        done = self.updates(steps) * per_update
        if done < starts:
            only = f", {self.updates(steps)} whole updates of {per_update},"
            raise SettingsError(
                f"--steps {steps:_}{'' if steps < starts else only} is less than "
                f"--learning-starts {self.learning_starts:_}. Nothing would be learned. Change one "
                "of the two."
            )
        held = min(-(-starts // per_update) * self.rollout_length, rows)
        windows = max(held - self.n, 0) * self.num_envs
        if windows < self.batch_size:
            raise SettingsError(
                f"--batch-size {self.batch_size:_} is more than the {windows:_} windows of --n "
                f"{self.n} steps that the replay holds when learning starts. Give a smaller one of "
                "the two, or raise --learning-starts and with it, if need be, --capacity."
            )


@dataclass(frozen=True)
class Replay(Remembering):
    """With action values that are explored ε-greedily, and a target network that is copied."""

    target_period: int = option(
        "environment steps between copies to the target network",
        10_000,
        vectors=500,
        source="DQN",
        least=1,
        type=count,
    )
    epsilon: float = option(
        "the last ε of the exploration", 0.01, source="DQN", least=0, most=1, type=float
    )
    epsilon_share: float = option(
        "share of the steps over which ε falls from 1",
        0.1,
        source="DQN",
        least=0,
        most=1,
        type=float,
    )


@dataclass(frozen=True)
class Traced(Replay):
    """With n-step targets that are corrected for what acted."""

    traces: str = option(
        "tree: by the soft policy; retrace: by its ratio to what acted",
        "tree",
        choices=("tree", "retrace"),
    )
    trace_decay: float = option("λ of the traces", 0.9, least=0, most=1, type=float)

    def targets(self) -> dict[str, Any]:
        """What `off_policy.agent` makes its targets of."""
        if self.traces == "tree":
            function: Any = windows.tree_backup_targets
            keep = None
        else:
            function, keep = windows.retrace_targets, off_policy.log_behaviour
        return {"targets": functools.partial(function, lambda_=self.trace_decay), "keep": keep}


@dataclass(frozen=True)
class Munchausen(Replay):
    """With a share of the policy's log-ratio in the reward."""

    munchausen: float = option(
        "α, the share of τ log(π/π̄) in the reward", 0.9, source="M-DQN", least=0, most=1, type=float
    )
    munchausen_least: float = option(
        "bound of τ log(π/π̄) from below", -1.0, source="M-DQN", least=-MOST, most=0, type=float
    )

    def targets(self) -> dict[str, Any]:
        """What `off_policy.agent` makes its targets of."""
        targets = functools.partial(
            windows.munchausen_targets, alpha=self.munchausen, least=self.munchausen_least
        )
        return {"targets": targets}


@dataclass(frozen=True)
class ReplayActorCritic(Remembering):
    """With a policy of its own, and a target network that follows slowly."""

    averaging: float = option(
        "share of the parameters that the target network takes over in a gradient step",
        0.005,
        source="SAC",
        least=0,
        most=1,
        type=float,
    )


@dataclass(frozen=True)
class Sampling(ReplayActorCritic):
    """With a sampler of actions that has no density."""

    particles: int = option(
        "actions of the sampler in each of the two sets of a Stein step",
        16,
        least=1,
        type=count,
    )
    proposals: int = option(
        "uniform actions of which a soft value is estimated", 16, least=1, type=count
    )

    def check(self, steps: int) -> None:
        """As for all, and no temperature by a KL that is not known."""
        super().check(steps)
        for name in ("target_kl", "target_entropy"):
            value = getattr(self, name)
            if value is not None:
                raise SettingsError(
                    f"{said(name, value)} does not go with a sampler: its KL and its entropy "
                    "are not known. Give --tau, and --final-tau if it is to change."
                )


@dataclass(frozen=True)
class Trusting(ReplayActorCritic):
    """With a penalty for leaving the policy that the target network has."""

    trust: float = option("λ, the weight of the KL to the lagged policy", 0.1, least=0, type=float)


@dataclass(frozen=True)
class Algorithm:
    """One algorithm.

    Attributes:
      about: in a line of the help.
      head: `"actor_critic"`, (v, log π); `"q"`; `"soft_actor_critic"`, a policy and two Qs; or
        `"sampling_actor_critic"`, a sampler and two Qs.
      settings: the dataclass of its settings.
      make: (head, settings, problem, *, differentiates_target) -> agent.
      differentiates_target: whether its loss has a gradient into what it bootstraps from.
      images: its defaults on images where they are not those of its settings.
      vectors: those on other observations.
      architecture: what its network has otherwise than others'.
      fixed: settings that it cannot have otherwise.
      actions: which it can choose among: `"categories"` or `"numbers"`.
      soft: whether it needs τ > 0.
      tuned: whether τ is tuned to an entropy of −D, if nothing is said of it.
      seeds: how they had better learn: `"in turn"` where the update has conditions in it, of which
        seeds side by side would compute both branches; `"side by side"` where each turn would
        copy a replay in and out; else the device decides.
    """

    about: str
    head: str
    settings: type[Settings]
    make: Make
    differentiates_target: bool = False
    images: Mapping[str, Any] = field(default_factory=dict)
    vectors: Mapping[str, Any] = field(default_factory=dict)
    architecture: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    actions: Literal["categories", "numbers"] = "categories"
    soft: bool = False
    tuned: bool = False
    seeds: Literal["either", "in turn", "side by side"] = "either"

    def defaults(self, *, images: bool) -> dict[str, Any]:
        """Name -> value of every setting, for images or for other observations."""
        kind = "images" if images else "vectors"
        table = {spec.name: spec.metadata[kind] for spec in dataclasses.fields(self.settings)}
        return table | dict(self.images if images else self.vectors) | dict(self.fixed)

    @property
    def replays(self) -> bool:
        """Whether it learns from a replay."""
        return issubclass(self.settings, Remembering)

    def network(self, problem: Problem) -> Any:
        """The Flax network of its head."""
        return network_for(self.head, problem)

    def agent(self, settings: Settings, problem: Problem) -> Agent:
        """The agent of these settings."""
        return self.make(
            self.head, settings, problem, differentiates_target=self.differentiates_target
        )

    def check(self, name: str, settings: Settings, steps: int) -> None:
        """Refuses settings that cannot be run, with what to do about it."""
        settings.check(steps)
        for key, value in self.fixed.items():
            if getattr(settings, key) != value:
                raise SettingsError(
                    f"{said(key, getattr(settings, key))} does not go with --algorithm {name}, for "
                    f"which it is {word(value)}. Leave it out, or choose another algorithm."
                )
        hard = [key for key in ("tau", "final_tau") if getattr(settings, key) == 0]
        if self.soft and hard:
            other = ", or --algorithm dqn." if issubclass(self.settings, Replay) else "."
            raise SettingsError(
                f"{flag(hard[0])} 0 does not go with --algorithm {name}: it needs a soft policy. "
                f"Give a positive τ{other}"
            )


def settings_of(name: str, given: Mapping[str, Any], *, images: bool) -> Settings:
    """The settings of an algorithm: its defaults, and what was given instead."""
    table = ALGORITHMS[name].defaults(images=images)
    return ALGORITHMS[name].settings(**table | dict(given))


_REPLAY = {
    "num_envs": 8,
    "rollout_length": 4,
    "n": 1,
    "tau": 0.1,
    "optimiser": "adam",
    "learning_rate": 1e-4,
    "schedule": "constant",
    "max_gradient_norm": 10.0,
}
_FROM_REPLAY: dict[str, Any] = {
    "head": "q",
    "settings": Replay,
    "make": from_replay,
    "seeds": "side by side",
    "images": _REPLAY,
    "vectors": _REPLAY | {"learning_rate": 1e-3, "schedule": "linear"},
}
_ACTOR_AND_CRITIC: dict[str, Any] = {
    "head": "soft_actor_critic",
    "make": actor_and_critic,
    "settings": ReplayActorCritic,
    "seeds": "side by side",
    "soft": True,
    "fixed": {"n": 1},
    "architecture": {"hidden": (256, 256), "activation": "relu"},
}
_OF_SAC = {
    "num_envs": 1,
    "rollout_length": 1,
    "batch_size": 256,
    "steps_per_gradient": 1,
    "learning_starts": 10_000,
    "capacity": 1_000_000,
    "optimiser": "adam",
    "learning_rate": 3e-4,
    "schedule": "constant",
    "max_gradient_norm": math.inf,
    "tau": 1.0,
    "tau_rate": 3e-4,
}
_SOLVED = {"optimiser": "sgd", "learning_rate": 0.3, "max_gradient_norm": 5.0}

ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(
    {
        "a2c": Algorithm(
            "advantage actor-critic, entropy in the return (80)",
            head="actor_critic",
            settings=ActorCritic,
            make=descending(on_policy.a2c),
        ),
        "a2c_naive": Algorithm(
            "the same with an entropy bonus outside it (79)",
            head="actor_critic",
            settings=ActorCritic,
            make=descending(on_policy.a2c_naive),
        ),
        "soft_q": Algorithm(
            "soft Q-learning on Q = V + τ log(π/π̄), §6.3",
            head="actor_critic",
            settings=ActorCritic,
            make=descending(on_policy.soft_q),
        ),
        "nstep_soft_q": Algorithm(
            "n-step soft Q-learning on a plain Q head, acting by its policy (44)-(47)",
            head="q",
            settings=OnPolicy,
            make=descending(on_policy.nstep_soft_q),
            vectors={"tau": 0.1},
            soft=True,
        ),
        "damped_q": Algorithm(
            "damped soft Q-learning, one Gauss-Newton step per rollout (72)-(78)",
            head="q",
            settings=Solved,
            make=along(natural.damped_q),
            images=_SOLVED,
            vectors=_SOLVED
            | {"tau": 0.1, "learning_rate": 0.5, "damping": 0.1, "rollout_length": 16},
            soft=True,
            seeds="in turn",
        ),
        "natural_pg": Algorithm(
            "natural policy gradient (66)-(71)",
            head="actor_critic",
            settings=SolvedActorCritic,
            make=along(natural.natural_pg),
            images=_SOLVED,
            vectors=_SOLVED | {"learning_rate": 0.5, "damping": 0.03, "rollout_length": 16},
            soft=True,
            seeds="in turn",
        ),
        "pcl": Algorithm(
            "path consistency learning (90)",
            head="actor_critic",
            settings=OnPolicy,
            make=descending(on_policy.pcl),
            differentiates_target=True,
            vectors={"tau": 0.05},
        ),
        "unified_pcl": Algorithm(
            "the same for one Q head, whose value and policy are those of its soft optimum",
            head="q",
            settings=OnPolicy,
            make=descending(on_policy.pcl),
            differentiates_target=True,
            vectors={"tau": 0.05},
            soft=True,
        ),
        "pgq": Algorithm(
            "policy gradient and Q-learning mixed (87)",
            head="actor_critic",
            settings=ActorCritic,
            make=descending(on_policy.pgq),
            vectors={"tau": 0.05},
        ),
        "soft_pqn": Algorithm(
            "n-step soft Q-learning with normalised layers: no replay, no target network",
            head="q",
            settings=OnPolicy,
            make=descending(on_policy.nstep_soft_q),
            images={"optimiser": "adam", "learning_rate": 2.5e-4},
            vectors={
                "num_envs": 8,
                "learning_rate": 1e-3,
                "max_gradient_norm": 10.0,
                "tau": 0.5,
                "final_tau": 0.03,
            },
            architecture={"layer_norm": True, "activation": "relu"},
            soft=True,
        ),
        "sac": Algorithm(
            "soft actor-critic for real numbers, τ tuned to entropy −D",
            **_ACTOR_AND_CRITIC,
            images=_OF_SAC,
            vectors=_OF_SAC,
            actions="numbers",
            tuned=True,
        ),
        "soft_q_svgd": Algorithm(
            "soft Q-learning for real numbers, whose sampler learns by Stein steps",
            **_ACTOR_AND_CRITIC
            | {"head": "sampling_actor_critic", "make": sampling, "settings": Sampling},
            images=_OF_SAC | {"batch_size": 64, "tau": 0.3},
            vectors=_OF_SAC | {"batch_size": 64, "tau": 0.3},
            actions="numbers",
        ),
        "discrete_sac": Algorithm(
            "soft actor-critic for finitely many actions",
            **_ACTOR_AND_CRITIC,
            images=_OF_SAC | {"num_envs": 8, "rollout_length": 4, "steps_per_gradient": 4},
            vectors=_OF_SAC
            | {
                "num_envs": 8,
                "rollout_length": 1,
                "steps_per_gradient": 4,
                "batch_size": 64,
                "learning_starts": 1_000,
                "capacity": 50_000,
                "learning_rate": 1e-3,
                "tau": 0.05,
            },
        ),
        "dqn": Algorithm(
            "replay, target network, hard maximum (81)",
            **_FROM_REPLAY,
            fixed={"tau": 0.0},
        ),
        "soft_dqn_kl": Algorithm(
            "the same with the soft maximum of a KL penalty (82)",
            **_FROM_REPLAY,
            fixed={"prior": "uniform"},
            soft=True,
        ),
        "soft_dqn_entropy": Algorithm(
            "the same with that of an entropy bonus (83)",
            **_FROM_REPLAY,
            fixed={"prior": "counting"},
            soft=True,
        ),
        "soft_q_lambda": Algorithm(
            "the same with a soft tree backup or Retrace over n steps",
            **_FROM_REPLAY
            | {
                "settings": Traced,
                "images": _REPLAY | {"n": 5},
                "vectors": _FROM_REPLAY["vectors"] | {"n": 5},
            },
            soft=True,
        ),
        "trust_pcl": Algorithm(
            "path consistency from a replay, with a KL to the policy of a while ago",
            head="actor_critic",
            settings=Trusting,
            make=trusting,
            seeds="side by side",
            images=_REPLAY | {"n": 5, "tau": 0.01, "learning_rate": 1e-4},
            vectors=_REPLAY
            | {"n": 10, "tau": 0.02, "rollout_length": 8, "learning_rate": 1e-3, "averaging": 0.01},
            soft=True,
        ),
        "munchausen_dqn": Algorithm(
            "the same with a share of the policy's log-ratio in the reward",
            **_FROM_REPLAY
            | {
                "settings": Munchausen,
                "images": _REPLAY | {"tau": 0.03, "prior": "counting"},
                "vectors": _FROM_REPLAY["vectors"] | {"tau": 0.03, "prior": "counting"},
            },
            soft=True,
        ),
    }
)
