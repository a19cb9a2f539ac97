"""Entropy-regularised reinforcement learning as pure functions of arrays.

After Schulman, Chen and Abbeel (2017), *Equivalence Between Policy Gradients and Soft Q-Learning*.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from jaxsoft import planning, squashed, traces, value_gradients
from jaxsoft.algorithms import (
    actor_critic,
    damped_natural_q,
    n_step_soft_q,
    naive_actor_critic,
    tied_soft_q,
)
from jaxsoft.boltzmann import (
    kl_to_prior,
    log_policy,
    mix_priors,
    policy_value,
    q_from_policy,
    sample_actions,
    sampled_value,
    soft_value,
)
from jaxsoft.equivalence import Equivalence, Preconditions, check_equivalence
from jaxsoft.losses import (
    a2c_loss,
    damped_soft_q_loss,
    natural_regression_loss,
    path_consistency_loss,
    pgq_loss,
    policy_gradient_loss,
    preference_loss,
    soft_q_loss,
    soft_value_loss,
    take_action,
    temperature_loss,
    tied_loss,
    tied_soft_q_loss,
    value_loss,
)
from jaxsoft.natural import (
    FisherState,
    SolveInfo,
    SolveStatus,
    natural_gradient,
    scale_by_fisher,
)
from jaxsoft.returns import (
    VTrace,
    group_advantages,
    lambda_advantages,
    n_step_advantages,
    n_step_soft_q_targets,
    one_step_targets,
    retrace_coefficients,
    soft_q_targets,
    td_errors,
    trace_targets,
    tree_backup_coefficients,
    v_trace,
)
from jaxsoft.stein import stein_direction
from jaxsoft.value_gradients import value_gradient_loss

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jaxsoft.cli.policy import Policy

__all__ = [
    "Equivalence",
    "FisherState",
    "Preconditions",
    "SolveInfo",
    "SolveStatus",
    "VTrace",
    "a2c_loss",
    "actor_critic",
    "check_equivalence",
    "damped_natural_q",
    "damped_soft_q_loss",
    "group_advantages",
    "kl_to_prior",
    "lambda_advantages",
    "load_policy",
    "log_policy",
    "mix_priors",
    "n_step_advantages",
    "n_step_soft_q",
    "n_step_soft_q_targets",
    "naive_actor_critic",
    "natural_gradient",
    "natural_regression_loss",
    "one_step_targets",
    "path_consistency_loss",
    "pgq_loss",
    "planning",
    "policy_gradient_loss",
    "policy_value",
    "preference_loss",
    "q_from_policy",
    "retrace_coefficients",
    "sample_actions",
    "sampled_value",
    "scale_by_fisher",
    "soft_q_loss",
    "soft_q_targets",
    "soft_value",
    "soft_value_loss",
    "squashed",
    "stein_direction",
    "take_action",
    "td_errors",
    "temperature_loss",
    "tied_loss",
    "tied_soft_q",
    "tied_soft_q_loss",
    "trace_targets",
    "traces",
    "tree_backup_coefficients",
    "v_trace",
    "value_gradient_loss",
    "value_gradients",
    "value_loss",
]


def load_policy(
    directory: str | os.PathLike[str],
    *,
    step: int | None = None,
    seed: int | None = None,
    how: str = "sampled",
) -> Policy:
    """What `jaxsoft train` has learned, as `policy(observation, key) -> action`; see `Policy`.

    Args:
      directory: the `--out` of the run.
      step: of the checkpoint; by default the newest.
      seed: one of the run's; by default the first.
      how: `"sampled"`, as the agent acted in training, or `"greedy"`, by its best action.
    """
    try:
        from jaxsoft.cli import evaluate, policy  # noqa: PLC0415 (the losses need neither)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"jaxsoft.load_policy needs {error.name}, which is not installed. Install all that "
            "training needs with pip install 'jaxsoft[train]'."
        ) from error
    return policy.Policy(evaluate.load(Path(directory), step), seed=seed, how=how)
