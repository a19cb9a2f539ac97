"""What is trained for each figure and each question: games, variants, presets. Data alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["BEST", "GRADIENTS", "OPTIMISERS", "STUDIES", "Preset", "Study", "Variant"]


@dataclass(frozen=True)
class Variant:
    """One of the methods that are compared.

    Attributes:
      label: in plots and tables.
      words: flags of the training command, the algorithm among them.
      line: of a sweep, the line that it is a point of.
      x: of a sweep, its place on the line.
      by_game: game -> further flags.
    """

    label: str
    words: str
    line: str = ""
    x: float = float("nan")
    by_game: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Preset:
    """How much of a study is run.

    Attributes:
      about: when to choose it.
      steps: game -> agent steps of every seed, which set the schedules.
      seeds: how many.
      together: whether one program trains all seeds of a variant side by side. Otherwise each is
        a run, and the first seed of all variants comes before the second of any.
      words: flags for all variants.
      until: game -> steps to stop at, where those are not all.
    """

    about: str
    steps: Mapping[str, int]
    seeds: int
    together: bool = True
    words: str = ""
    until: Mapping[str, int] = field(default_factory=dict)

    def length(self, game: str) -> int:
        """Steps to be run."""
        return self.until.get(game, self.steps[game])


@dataclass(frozen=True)
class Study:
    """Variants to compare.

    Attributes:
      title: what it is about.
      variants: by name.
      presets: by name.
      pairs: (first, second) variants whose equivalence is tested.
      against: the variant that the others are compared with.
      measures: columns of the curves that are drawn and tabulated.
      x_label: of a sweep.
      x_marks: of a sweep, what some places on its axis stand for.
      goals: game -> a return to count the steps to.
      by_time: whether the curves are also drawn over time.
    """

    title: str
    variants: Mapping[str, Variant]
    presets: Mapping[str, Preset]
    pairs: tuple[tuple[str, str], ...] = ()
    against: str = ""
    measures: tuple[str, ...] = ("episode_return",)
    x_label: str = ""
    x_marks: Mapping[float, str] = field(default_factory=dict)
    goals: Mapping[str, float] = field(default_factory=dict)
    by_time: bool = False


PAPER_GAMES = (
    "BeamRider-v5",
    "Breakout-v5",
    "Enduro-v5",
    "Pong-v5",
    "Qbert-v5",
    "Seaquest-v5",
    "SpaceInvaders-v5",
)
_TWO = ("Pong-v5", "Breakout-v5")
_SMALL = {"Catch-v0": 50_000, "CartPole-v1": 100_000, "FrozenLake-v1": 150_000}
_PAIR = {"Catch-v0": 50_000, "CartPole-v1": 100_000}
# The paper's step size and optimiser learn nothing in a few million steps; these do.
_SHORT = "--num-envs 8 --rollout-length 10 --centred --optimiser adam --learning-rate 5e-4"
_QUICK = "minutes: small games, where thirty seeds train side by side"
_GPU = "what one H200 with 16 cores is expected to do in thirty minutes; not yet run"
_PROTOCOL = "the protocol of §6 in full"
_CPU = "hours on two cores: Atari, shorter and at larger steps than the paper's"
# Of three million steps: about half an hour per run on one core.
_UNTIL = {"Pong-v5": 1_400_000, "Breakout-v5": 1_000_000}


def _each(games: tuple[str, ...], steps: int) -> dict[str, int]:
    return dict.fromkeys(games, steps)


def _on_policy(quick_seeds: int) -> dict[str, Preset]:
    """The presets of figures 1 and 3."""
    return {
        "paper": Preset(_PROTOCOL, _each(PAPER_GAMES, 80_000_000), seeds=3),
        "gpu30": Preset(_GPU, _each(_TWO, 1_500_000), seeds=3, words=_SHORT),
        "cpu": Preset(
            _CPU, _each(_TWO, 3_000_000), seeds=3, together=False, words=_SHORT, until=_UNTIL
        ),
        "quick": Preset(_QUICK, _SMALL, seeds=quick_seeds),
    }


def _quick(steps: Mapping[str, int], seeds: int = 30) -> dict[str, Preset]:
    return {"quick": Preset(_QUICK, steps, seeds)}


def _sweep(
    lines: Mapping[str, tuple[str, str]], flag: str, values: tuple[float, ...]
) -> dict[str, Variant]:
    """Variants `name_value`, of lines name -> (label, words)."""
    return {
        f"{name}_{value:g}": Variant(
            f"{label}, {value:g}", f"{words} {flag} {value:g}", line=label, x=value
        )
        for name, (label, words) in lines.items()
        for value in values
    }


_DQN = {
    "hard": ("hard maximum", "--algorithm dqn"),
    "kl": ("soft, KL penalty", "--algorithm soft_dqn_kl"),
    "entropy": ("soft, entropy bonus", "--algorithm soft_dqn_entropy"),
}
_TIED = {
    "soft_q": ("soft Q-learning", "--algorithm soft_q"),
    "policy_gradient": ("policy gradient", "--algorithm a2c"),
}

_Q, _PI = (
    "--algorithm nstep_soft_q --rollout-length 16 --optimiser",
    "--algorithm a2c --rollout-length 16 --optimiser",
)
# Name -> label, flags, step sizes to try.
OPTIMISERS = {
    "q_rmsprop": ("Q head, RMSProp", f"{_Q} rmsprop", (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)),
    "q_adam": ("Q head, Adam", f"{_Q} adam", (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)),
    "q_damped": ("Q head, damped Q", "--algorithm damped_q", (0.1, 0.25, 0.5, 1.0, 2.0)),
    "pi_rmsprop": ("policy head, RMSProp", f"{_PI} rmsprop", (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)),
    "pi_adam": ("policy head, Adam", f"{_PI} adam", (0.001, 0.003, 0.01, 0.03, 0.1)),
    "pi_natural": (
        "policy head, natural gradient",
        "--algorithm natural_pg",
        (0.25, 0.5, 1.0, 2.0),
    ),
}
# By the study "steps": the step size of the largest mean return over the run.
BEST = {
    "q_rmsprop": {"Catch-v0": 1.0, "CartPole-v1": 3.0},
    "q_adam": {"Catch-v0": 0.01, "CartPole-v1": 0.0003},
    "q_damped": {"Catch-v0": 1.0, "CartPole-v1": 0.5},
    "pi_rmsprop": {"Catch-v0": 1.0, "CartPole-v1": 1.0},
    "pi_adam": {"Catch-v0": 0.03, "CartPole-v1": 0.01},
    "pi_natural": {"Catch-v0": 1.0, "CartPole-v1": 0.5},
}

STUDIES: dict[str, Study] = {
    "figure1": Study(
        "A2C with an entropy bonus (79) and with entropy in the return (80)",
        {
            "naive": Variant("naive (79)", "--algorithm a2c_naive"),
            "proper": Variant("proper (80), KL penalty", "--algorithm a2c"),
            # The caption of the paper's figure says entropy, its text the KL of a uniform prior.
            "proper_entropy": Variant(
                "proper (80), entropy bonus", "--algorithm a2c --prior counting"
            ),
        },
        _on_policy(30),
        pairs=(("naive", "proper"),),
        against="naive",
    ),
    "figure2": Study(
        "Deep Q-learning: hard (81), with KL penalty (82), with entropy bonus (83)",
        {
            f"{name}_{n}": Variant(f"{label}, {n}-step", f"{words} --n {n}")
            for n in (1, 5)
            for name, (label, words) in _DQN.items()
        },
        {
            "paper": Preset(_PROTOCOL, _each(PAPER_GAMES, 10_000_000), seeds=2, together=False),
            "gpu30": Preset(_GPU, _each(("Pong-v5",), 1_000_000), seeds=2),
            "cpu": Preset(
                _CPU,
                _each(("Pong-v5",), 500_000),
                seeds=1,
                together=False,
                words="--capacity 100_000 --centred",
            ),
            "quick": Preset(
                _QUICK, {"Catch-v0": 25_000, "CartPole-v1": 50_000, "FrozenLake-v1": 50_000}, 30
            ),
        },
        against="hard_1",
        measures=("episode_return", "episode_length"),
    ),
    "figure3": Study(
        "Policy gradient against soft Q-learning on the same network, §6.3",
        {
            "policy_gradient": Variant("policy gradient, c = 0.5", "--algorithm a2c"),
            "soft_q": Variant("soft Q-learning, c = 0.5", "--algorithm soft_q"),
            "policy_gradient_unscaled": Variant(
                "policy gradient, c = 100", "--algorithm a2c --value-coef 100"
            ),
            "soft_q_unscaled": Variant(
                "soft Q-learning, c = 1/τ = 100", "--algorithm soft_q --value-coef 100"
            ),
        },
        _on_policy(60),
        pairs=(("policy_gradient", "soft_q"), ("policy_gradient_unscaled", "soft_q_unscaled")),
        against="policy_gradient",
    ),
    "weighting": Study(
        "The weight of the value loss",
        _sweep(_TIED, "--value-coef", (0.05, 0.5, 1, 10, 100)),
        _quick(_PAIR),
        against="soft_q_0.5",
        x_label="weight of the value loss, c",
        x_marks={0.5: "A2C", 1: "equal", 100: "1/τ"},
    ),
    "temperature": Study(
        "The temperature",
        _sweep(
            _TIED | {"q_head": ("soft Q-learning on a Q head", "--algorithm nstep_soft_q")},
            "--tau",
            (0.001, 0.01, 0.1, 0.3, 1),
        ),
        _quick(_PAIR),
        against="soft_q_0.01",
        x_label="temperature τ",
        x_marks={0.01: "the paper"},
    ),
    "replay": Study(
        "Sample efficiency: soft Q-learning from its own rollouts and from a replay",
        {
            "policy_gradient": Variant("policy gradient", "--algorithm a2c"),
            "soft_q": Variant("soft Q-learning, on-policy", "--algorithm soft_q"),
            "soft_dqn": Variant(
                "soft DQN, a step in 4", "--algorithm soft_dqn_kl --tau 0.01 --prior uniform"
            ),
            "soft_dqn_once": Variant(
                "soft DQN, each transition once",
                "--algorithm soft_dqn_kl --tau 0.01 --prior uniform --steps-per-gradient 32",
            ),
        },
        _quick(_each(tuple(_PAIR), 50_000)),
        against="soft_q",
        goals={"Catch-v0": 0.8, "CartPole-v1": 100.0},
    ),
    "penalty": Study(
        "A KL penalty or an entropy bonus: returns and lengths of games",
        _sweep(
            {
                "penalty": ("KL penalty", "--algorithm a2c --prior uniform"),
                "bonus": ("entropy bonus", "--algorithm a2c --prior counting"),
            },
            "--tau",
            (0.001, 0.003, 0.01, 0.03, 0.1),
        ),
        _quick({"FrozenLake-v1": 150_000, "CartPole-v1": 100_000}),
        against="penalty_0.01",
        measures=("episode_return", "episode_length"),
        x_label="temperature τ",
    ),
    "limits": Study(
        "Without regularisation, and without discount",
        {
            "both": Variant("τ = 0.01, γ = 0.99", "--algorithm a2c"),
            "unregularised": Variant("τ = 0, γ = 0.99", "--algorithm a2c --tau 0"),
            "undiscounted": Variant("τ = 0.01, γ = 1", "--algorithm a2c --discount 1"),
            "neither": Variant("τ = 0, γ = 1", "--algorithm a2c --tau 0 --discount 1"),
        },
        _quick(_SMALL),
        against="both",
    ),
    "steps": Study(
        "The step size of RMSProp, Adam, damped Q-learning and natural gradient",
        {
            f"{name}_{step:g}": Variant(
                f"{label}, {step:g}", f"{words} --learning-rate {step:g}", line=label, x=step
            )
            for name, (label, words, steps) in OPTIMISERS.items()
            for step in steps
        },
        _quick(_each(tuple(_PAIR), 100_000), seeds=10),
        x_label="step size",
    ),
    "natural": Study(
        "Damped Q-learning and natural gradient against RMSProp and Adam, each at its best step",
        {
            name: Variant(
                label,
                words,
                by_game={game: f"--learning-rate {x:g}" for game, x in BEST[name].items()},
            )
            for name, (label, words, _) in OPTIMISERS.items()
        },
        _quick(_each(tuple(_PAIR), 100_000)),
        against="q_adam",
        goals={"Catch-v0": 0.8, "CartPole-v1": 100.0},
        by_time=True,
    ),
}

# Measured along its runs by `experiments.gradients`, not by their curves.
GRADIENTS = Study(
    "Soft Q-learning's and policy gradient's gradients along runs",
    {
        f"tau_{tau:g}": Variant(f"τ = {tau:g}", f"--algorithm soft_q --tau {tau:g}", x=tau)
        for tau in (0.001, 0.01, 0.1, 0.3, 1.0)
    },
    {"quick": Preset("minutes: small games, five seeds", _PAIR, seeds=5, words="--keep 1000")},
)
