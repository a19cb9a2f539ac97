"""Squared errors of action values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _checks, boltzmann
from jaxsoft._typing import Float, Integer, Scalar
from jaxsoft.losses import _common

__all__ = ["damped_soft_q_loss", "pgq_loss", "soft_q_loss", "tied_loss", "tied_soft_q_loss"]


def soft_q_loss(
    q_tm1: Float[ArrayLike, "T *#B A"],
    a_tm1: Integer[ArrayLike, "T *#B"],
    target_t: Float[ArrayLike, "T *#B"],
) -> Float[Array, "T *B"]:
    """Squared error of the action values taken.

        L_t = ½ (Q(s_t,a_t) − y_t)²                                               (44), (8), (58)

    With y = r it is the bandit's (8).

    Args:
      q_tm1: action values [T, ..., A].
      a_tm1: actions [T, ...].
      target_t: y, held fixed, [T, ...] (of `soft_q_targets`, `one_step_targets`, …).

    Returns:
      [T, ...]; its gradient is (Q − y)∇Q, (9), (59).
    """
    name = "soft_q_loss"
    q = _common.take(name, "q_tm1", q_tm1, a_tm1)
    return _common.half_square(name, q=q, target_t=_common.fixed(name, "target_t", target_t))


def damped_soft_q_loss(
    q_tm1: Float[ArrayLike, "T *#B A"],
    a_tm1: Integer[ArrayLike, "T *#B"],
    target_t: Float[ArrayLike, "T *#B"],
    *,
    q_old_tm1: Float[ArrayLike, "T *#B A"],
    epsilon: Scalar,
) -> Float[Array, "T *B"]:
    """Squared error to a target between the old value and the backed-up one.

        L_t = ½ (Q(s_t,a_t) − [(1−ε) Q_old(s_t,a_t) + ε y_t])²                         (74)-(77)

    A Gauss-Newton step on it with V frozen is a natural policy gradient step of size ε/τ. One
    plain gradient step at θ_old is merely ε times the undamped one: ε matters to a solve.

    Args:
      q_tm1: action values [T, ..., A].
      a_tm1: actions [T, ...].
      target_t: y, held fixed, [T, ...].
      q_old_tm1: action values before the update, held fixed, [T, ..., A].
      epsilon: ε in [0, 1], the share of the new target; 1 is `soft_q_loss`.

    Returns:
      [T, ...].
    """
    name = "damped_soft_q_loss"
    q = _common.take(name, "q_tm1", q_tm1, a_tm1)
    old = _common.take(name, "q_old_tm1", _common.fixed(name, "q_old_tm1", q_old_tm1), a_tm1)
    args = _checks.sequences(
        name,
        q_tm1=q,
        q_old=old,
        target_t=_common.fixed(name, "target_t", target_t),
        epsilon=epsilon,
    )
    q, old, target, share = args.arrays
    return _common.half_square(name, q=q, target=(1 - share) * old + share * target).astype(
        args.dtype
    )


def tied_soft_q_loss(
    v_tm1: Float[ArrayLike, "T *#B"],
    log_pi_tm1: Float[ArrayLike, "T *#B A"],
    a_tm1: Integer[ArrayLike, "T *#B"],
    *,
    target_t: Float[ArrayLike, "T *#B"],
    tau: Float[ArrayLike, "T *#B"] | Scalar,
    value_coef: Scalar = 0.5,
    log_prior: Float[ArrayLike, "..."] | None = None,
) -> Float[Array, "T *B"]:
    """Soft Q loss of Q = V + τ log(π/π̄), with the gradient of each stream scaled.

        L_t = ½ (Q(s_t,a_t) − y_t)²,   ∇L_t := (Q − y_t) (∇log π(a_t|s_t) + c ∇V(s_t))     (§6.3)

    That is: 1/τ into the advantage stream τ log π, and c into the value stream. In expectation
    over a_t ∼ π it is the gradient of `a2c_loss`, shared trunk included; c = 1/τ is the plain
    soft Q gradient divided by τ. The derivatives by τ and log π̄ are those of L.

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

    Correction: §6.3 prints 1/ε for the 1/τ of the advantage stream.
    """
    name = "tied_soft_q_loss"
    log_pi_a = _common.take(name, "log_pi_tm1", log_pi_tm1, a_tm1)
    log_ratio = held_log_ratio(name, log_pi_a, log_pi_tm1, a_tm1, log_prior)
    return tied_half_square(name, v_tm1, log_pi_a, log_ratio, target_t, tau, value_coef)


def tied_loss(
    v_tm1: Float[ArrayLike, "T *#B"],
    log_pi_a_tm1: Float[ArrayLike, "T *#B"],
    log_ratio_tm1: Float[ArrayLike, "T *#B"],
    *,
    target_t: Float[ArrayLike, "T *#B"],
    tau: Float[ArrayLike, "T *#B"] | Scalar,
    value_coef: Scalar = 0.5,
) -> Float[Array, "T *B"]:
    """`tied_soft_q_loss` of actions of any kind, by what the policy says of those taken.

        L_t = ½ (V(s_t) + τℓ_t − y_t)²,   ∇L_t := (V + τℓ_t − y_t) (∇log π(a_t|s_t) + c ∇V(s_t))

    Path by path that is ∇{−log π (y − V − τℓ) + (c/2) (V − (y − τℓ))²} with all brackets fixed:
    actor-critic with the sampled log-ratio instead of each KL. Of the expectations over a_t ∼ π
    the theorem (58)-(65) holds for densities as for probabilities.

    Args:
      v_tm1: state values [T, ...].
      log_pi_a_tm1: log π of the actions taken, a density's if they are continuous, [T, ...].
      log_ratio_tm1: ℓ = log π − log π̄ of the same, held fixed, [T, ...].
      target_t: soft Q target y, held fixed, [T, ...].
      tau: temperature τ ≥ 0, a scalar or [T, ...].
      value_coef: c.

    Returns:
      [T, ...].
    """
    name = "tied_loss"
    _checks.arguments(
        name, v_tm1=v_tm1, log_pi_a_tm1=log_pi_a_tm1, log_ratio_tm1=log_ratio_tm1, tau=tau
    )
    log_pi_a = _checks.floating(name, "log_pi_a_tm1", log_pi_a_tm1)
    log_ratio = _common.fixed(name, "log_ratio_tm1", log_ratio_tm1)
    return tied_half_square(name, v_tm1, log_pi_a, log_ratio, target_t, tau, value_coef)


def pgq_loss(
    v_tm1: Float[ArrayLike, "T *#B"],
    log_pi_tm1: Float[ArrayLike, "T *#B A"],
    a_tm1: Integer[ArrayLike, "T *#B"],
    *,
    return_t: Float[ArrayLike, "T *#B"],
    backup_t: Float[ArrayLike, "T *#B"],
    tau: Float[ArrayLike, "T *#B"] | Scalar,
    mixing: Scalar = 0.5,
    value_coef: Scalar = 0.5,
    log_prior: Float[ArrayLike, "..."] | None = None,
) -> Float[Array, "T *B"]:
    """PGQ: a mixture of policy gradient and Q-learning on one dueling Q.

        Q̃ = V + τ (log(π/π̄) − KL),   L_t = (1−η) ½ (Q̃ − R_t)² + η ½ (Q̃ − B_t)²             (87)

    with the derivatives of `tied_soft_q_loss`, (Q̃ − target)(∇log π + c∇V). The first part is the
    entropy-regularised actor-critic on returns R, the second Q-learning on backups B. Q̃ has the
    mean V under π, so R and B estimate a Q of that mean; soft Q targets y, which include no first
    KL, go in as y − τKL, and then R = B = y − τKL is exactly `tied_soft_q_loss`.

    Args:
      v_tm1: state values [T, ...].
      log_pi_tm1: log-probabilities [T, ..., A].
      a_tm1: actions [T, ...].
      return_t: R, held fixed, [T, ...]: V + Δ of any advantage.
      backup_t: B, held fixed, [T, ...]: r + γ max Q̃ or a soft backup.
      tau: temperature τ ≥ 0, a scalar or [T, ...].
      mixing: η in [0, 1], the share of Q-learning.
      value_coef: c.
      log_prior: log π̄, broadcasting against `log_pi_tm1`; `None` is uniform, `0.0` counting.

    Returns:
      [T, ...].

    Reference: O'Donoghue et al. (2016), *PGQ*. Correction: (87) prints τ(log π + τS): the inner τ
    goes.
    """
    name = "pgq_loss"
    _checks.arguments(name, return_t=return_t, backup_t=backup_t)
    log_pi_a = _common.take(name, "log_pi_tm1", log_pi_tm1, a_tm1)
    held = _common.fixed(name, "log_pi_tm1", log_pi_tm1)
    log_ratio = held_log_ratio(name, log_pi_a, held, a_tm1, log_prior)
    centred = log_ratio - boltzmann.kl(name, "log_pi_tm1", held, log_prior)

    actor = tied_half_square(name, v_tm1, log_pi_a, centred, return_t, tau, value_coef)
    learner = tied_half_square(name, v_tm1, log_pi_a, centred, backup_t, tau, value_coef)
    args = _checks.sequences(name, actor=actor, learner=learner, mixing=mixing)
    actor, learner, share = args.arrays
    return ((1 - share) * actor + share * learner).astype(args.dtype)


def held_log_ratio(
    function: str, log_pi_a: Array, log_pi: ArrayLike, a: ArrayLike, log_prior: ArrayLike | None
) -> Array:
    """Log π(a) − log π̄(a), with π fixed."""
    held = _common.fixed(function, "log_pi_tm1", log_pi)
    return _common.log_ratio(function, jax.lax.stop_gradient(log_pi_a), held, a, log_prior)


def tied_half_square(
    function: str,
    v_tm1: ArrayLike,
    log_pi_a: Array,
    log_ratio: Array,
    target_t: ArrayLike,
    tau: ArrayLike,
    value_coef: ArrayLike,
) -> Array:
    """½ (Q − y)² of Q = V + τ·log_ratio, whose gradient counts log π once and V c times.

    `log_ratio` holds π fixed.
    """
    args = _checks.sequences(
        function,
        v_tm1=v_tm1,
        log_pi=log_pi_a,
        log_ratio=log_ratio,
        target_t=_common.fixed(function, "target_t", target_t),
        tau=tau,
        value_coef=value_coef,
    )
    v, log_pi_a, log_ratio, target, temperature, c = args.arrays
    q = jax.lax.stop_gradient(v) + temperature * log_ratio
    # Each stream enters as a difference that is zero in value: the sum stays exact at any
    # coefficient, where (1/τ)x − (1/τ − 1)x would lose digits as τ → 0.
    streams = _own_gradient(log_pi_a) + c * _own_gradient(v)
    return (0.5 * jnp.square(q + streams - target)).astype(args.dtype)


def _own_gradient(x: Array) -> Array:
    """Zero, with the gradient of x."""
    return x - jax.lax.stop_gradient(x)
