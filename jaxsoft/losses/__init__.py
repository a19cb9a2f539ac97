"""Per-step losses, unreduced: what a training loop averages and differentiates.

Conventions are those of `jaxsoft.returns`: axis 0 is time, the last axis of `q` and `log_pi` is
actions, `_tm1` belongs to the state in which the action was taken. Every loss returns one value
per step, [T, ...]; give steps that are not transitions (an environment's auto-reset step) weight
0 and take the mean.

Targets, advantages, importance weights and old values are held fixed inside the losses. The prior,
τ and the coefficients are ordinary differentiable inputs, outside of what is held fixed. The one
loss that differentiates its target is `path_consistency_loss`: that is its point.
"""

from jaxsoft.losses._common import take_action
from jaxsoft.losses.consistency import path_consistency_loss
from jaxsoft.losses.policy_gradient import (
    a2c_loss,
    natural_regression_loss,
    policy_gradient_loss,
    value_loss,
)
from jaxsoft.losses.preference import preference_loss
from jaxsoft.losses.soft_q import (
    damped_soft_q_loss,
    pgq_loss,
    soft_q_loss,
    tied_loss,
    tied_soft_q_loss,
)
from jaxsoft.losses.soft_value import soft_value_loss, temperature_loss

__all__ = [
    "a2c_loss",
    "damped_soft_q_loss",
    "natural_regression_loss",
    "path_consistency_loss",
    "pgq_loss",
    "policy_gradient_loss",
    "preference_loss",
    "soft_q_loss",
    "soft_value_loss",
    "take_action",
    "temperature_loss",
    "tied_loss",
    "tied_soft_q_loss",
    "value_loss",
]
