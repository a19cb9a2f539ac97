"""Policy gradients and the value's regression, alone and together."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _checks, boltzmann
from jaxsoft._typing import Float, Integer, Scalar
from jaxsoft.losses import _common

__all__ = ["a2c_loss", "natural_regression_loss", "policy_gradient_loss", "value_loss"]


def policy_gradient_loss(
    log_pi_tm1: Float[ArrayLike, "T *#B A"],
    a_tm1: Integer[ArrayLike, "T *#B"],
    advantage_t: Float[ArrayLike, "T *#B"],
    *,
    tau: Float[ArrayLike, "T *#B"] | Scalar,
    log_prior: Float[ArrayLike, "..."] | None = None,
) -> Float[Array, "T *B"]:
    """Entropy-regularised policy gradient as a loss.

        L_t = −log π(a_t|s_t) Δ_t + τ KL[π‖π̄](s_t)                       (84), (52), (50), (69)

    Proper or naive is a matter of the advantage: with τKL inside δ it is (80), without it (79).
    With Δ = r it is the bandit's (7).

    Args:
      log_pi_tm1: log-probabilities [T, ..., A].
      a_tm1: actions [T, ...].
      advantage_t: Δ, held fixed, [T, ...].
      tau: temperature τ ≥ 0, a scalar or [T, ...].
      log_prior: log π̄, broadcasting against `log_pi_tm1`; `None` is uniform, `0.0` counting.

    Returns:
      [T, ...].

    Correction: (52) lacks −τ∇KL(s_t); in (49) that term stands outside ∇log π(…).
    """
    name = "policy_gradient_loss"
    log_pi_a = _common.take(name, "log_pi_tm1", log_pi_tm1, a_tm1)
    kl = boltzmann.kl(name, "log_pi_tm1", log_pi_tm1, log_prior)
    args = _checks.sequences(
        name,
        log_pi_tm1=log_pi_a,
        advantage_t=_common.fixed(name, "advantage_t", advantage_t),
        tau=tau,
        kl=kl,
    )
    log_pi_a, advantage, temperature, kl = args.arrays
    return (temperature * kl - log_pi_a * advantage).astype(args.dtype)


def value_loss(
    v_tm1: Float[ArrayLike, "T *#B"], target_t: Float[ArrayLike, "T *#B"]
) -> Float[Array, "T *B"]:
    """Squared error of the state value.

        L_t = ½ (V(s_t) − V̂_t)²                                                      (53), (85)

    Args:
      v_tm1: state values [T, ...].
      target_t: V̂ = V + Δ, held fixed, [T, ...].

    Returns:
      [T, ...].
    """
    name = "value_loss"
    return _common.half_square(
        name, v_tm1=v_tm1, target_t=_common.fixed(name, "target_t", target_t)
    )


def a2c_loss(
    v_tm1: Float[ArrayLike, "T *#B"],
    log_pi_tm1: Float[ArrayLike, "T *#B A"],
    a_tm1: Integer[ArrayLike, "T *#B"],
    *,
    target_t: Float[ArrayLike, "T *#B"],
    tau: Float[ArrayLike, "T *#B"] | Scalar,
    value_coef: Scalar = 0.5,
    log_prior: Float[ArrayLike, "..."] | None = None,
) -> Float[Array, "T *B"]:
    """Policy gradient and value loss of one soft Q target: advantage actor-critic.

        L_t = −log π(a_t|s_t) Δ_t + τKL(s_t) + c ½ (V(s_t) − V̂_t)²                     (84)-(86)
        Δ_t = y_t − V(s_t) − τKL(s_t),   V̂_t = y_t − τKL(s_t),   both held fixed

    The arguments are those of `tied_soft_q_loss`, whose expected gradient over a_t ∼ π it equals
    for any target: the paper's theorem, (58)-(65). With c = 1/τ, τ times this loss has the
    expected gradient of the plain soft Q loss.

    Args:
      v_tm1: state values [T, ...].
      log_pi_tm1: log-probabilities [T, ..., A].
      a_tm1: actions [T, ...].
      target_t: soft Q target y, held fixed, [T, ...] (`soft_q_targets` of any advantage).
      tau: temperature τ ≥ 0, a scalar or [T, ...].
      value_coef: c.
      log_prior: log π̄, broadcasting against `log_pi_tm1`; `None` is uniform, `0.0` counting.

    Returns:
      [T, ...].
    """
    name = "a2c_loss"
    log_pi_a = _common.take(name, "log_pi_tm1", log_pi_tm1, a_tm1)
    kl = boltzmann.kl(name, "log_pi_tm1", log_pi_tm1, log_prior)
    return actor_critic_loss(
        name,
        v_tm1,
        log_pi_a,
        target_t=target_t,
        target_kl_tm1=kl,
        kl_tm1=kl,
        tau=tau,
        value_coef=value_coef,
    )


def actor_critic_loss(
    function: str,
    v_tm1: ArrayLike,
    log_pi_a_tm1: ArrayLike,
    *,
    target_t: ArrayLike,
    target_kl_tm1: ArrayLike,
    kl_tm1: ArrayLike,
    tau: ArrayLike,
    value_coef: ArrayLike,
) -> Array:
    """`a2c_loss` of known KLs: that of the policy, and the one that the target includes."""
    args = _checks.sequences(
        function,
        v_tm1=v_tm1,
        log_pi_tm1=log_pi_a_tm1,
        target_t=_common.fixed(function, "target_t", target_t),
        target_kl_tm1=_common.fixed(function, "target_kl_tm1", target_kl_tm1),
        kl=kl_tm1,
        tau=tau,
        value_coef=value_coef,
    )
    v, log_pi_a, target, target_kl, kl, temperature, c = args.arrays
    value_target = jax.lax.stop_gradient(target - temperature * target_kl)
    policy = temperature * kl - log_pi_a * jax.lax.stop_gradient(value_target - v)
    return (policy + c * (0.5 * jnp.square(v - value_target))).astype(args.dtype)


def natural_regression_loss(
    log_pi_tm1: Float[ArrayLike, "T *#B A"],
    a_tm1: Integer[ArrayLike, "T *#B"],
    advantage_t: Float[ArrayLike, "T *#B"],
    *,
    log_pi_old_tm1: Float[ArrayLike, "T *#B A"],
    tau: Float[ArrayLike, "T *#B"] | Scalar,
    step_size: Scalar,
    log_prior: Float[ArrayLike, "..."] | None = None,
) -> Float[Array, "T *B"]:
    """The regression whose least-squares solution is the natural policy gradient step.

        L_t = ½ (log π(a_t|s_t) − log π_old(a_t|s_t)
                 − α (Δ_t − τ [log(π_old/π̄)(a_t|s_t) − KL[π_old‖π̄](s_t)]))²          (71), (68)

    It equals `damped_soft_q_loss` divided by τ² when V is frozen and α = ε/τ, (78). τ = 0 is the
    unregularised (68).

    Args:
      log_pi_tm1: log-probabilities [T, ..., A].
      a_tm1: actions [T, ...].
      advantage_t: Δ, held fixed, [T, ...].
      log_pi_old_tm1: log-probabilities before the update, held fixed, [T, ..., A].
      tau: temperature τ ≥ 0, a scalar or [T, ...].
      step_size: α, the length of the natural gradient step.
      log_prior: log π̄, broadcasting against `log_pi_tm1`; `None` is uniform, `0.0` counting.

    Returns:
      [T, ...].

    Correction: (71) prints π_θ for π_θold inside the bracket, which shrinks the step by
    1/(1 + ατ); (77)-(78) lack τ and the factor 1/τ of ε. (67) counts the step size twice.
    """
    name = "natural_regression_loss"
    log_pi_a = _common.take(name, "log_pi_tm1", log_pi_tm1, a_tm1)
    fixed_old = _common.fixed(name, "log_pi_old_tm1", log_pi_old_tm1)
    old_a = _common.take(name, "log_pi_old_tm1", fixed_old, a_tm1)
    old_ratio = _common.log_ratio(name, old_a, fixed_old, a_tm1, log_prior, "log_pi_old_tm1")
    args = _checks.sequences(
        name,
        log_pi_old=old_a,
        log_ratio=old_ratio,
        kl=boltzmann.kl(name, "log_pi_old_tm1", fixed_old, log_prior),
        advantage_t=_common.fixed(name, "advantage_t", advantage_t),
        log_pi=log_pi_a,
        tau=tau,
        step_size=step_size,
    )
    old_a, old_ratio, kl, advantage, log_pi_a, temperature, step = args.arrays
    target = old_a + step * (advantage - temperature * (old_ratio - kl))
    return _common.half_square(name, log_pi=log_pi_a, target=target).astype(args.dtype)
