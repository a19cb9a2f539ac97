"""What the first actions of replay windows are worth: the targets of `off_policy.agent`.

Each is a function of the target network's values at the windows' states and of the windows
themselves, n steps of B (`replay.sample`). To choose another λ is `functools.partial`:

    targets=functools.partial(windows.tree_backup_targets, lambda_=0.9)
"""

from __future__ import annotations

from typing import Protocol

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _checks, boltzmann, losses, returns
from jaxsoft.agents.base import Rollout

__all__ = [
    "Targets",
    "munchausen_targets",
    "n_step_targets",
    "retrace_targets",
    "tree_backup_targets",
]


class Targets(Protocol):
    """Targets for the first actions of windows, [B]."""

    def __call__(
        self,
        q_tm1: Array,
        q_t: Array,
        window: Rollout,
        *,
        discount: ArrayLike,
        tau: ArrayLike,
        log_prior: ArrayLike | None,
    ) -> Array:
        """Values at states 0 … n−1 and 1 … n [n, B, A], and n steps of B windows -> [B]."""


def n_step_targets(
    q_tm1: Array,
    q_t: Array,
    window: Rollout,
    *,
    discount: ArrayLike,
    tau: ArrayLike,
    log_prior: ArrayLike | None = None,
) -> Array:
    """Targets for the first actions of windows.

        y_0 = r_0 + Σ_{0<d<n} γ^d (r_d − τKL_d) + γⁿV(s_n)                     (47), (81)-(83)

    shorter where an episode ends within. n = 1 is `one_step_targets`. Actions after the first are
    not corrected for being off-policy. V(s_0) and KL(s_0) cancel in (47), so `q_tm1` is not used,
    nor computed under `jit`.

    Args:
      q_tm1: action values, of the target network, at states 0 … n−1 [n, B, A].
      q_t: the same at states 1 … n [n, B, A].
      window: n steps of B windows.
      discount: γ.
      tau: temperature τ ≥ 0.
      log_prior: log π̄, broadcasting against `q_t`; `None` is uniform, `0.0` counting.

    Returns:
      [B].
    """
    del q_tm1
    v, kl = boltzmann.value_and_kl("off_policy.agent", "q", q_t, tau, log_prior)

    def after_nothing(x: Array) -> Array:
        """With a state before them, which cancels."""
        return jnp.concatenate([jnp.zeros_like(v[:1]), x])

    return returns.n_step_soft_q_targets(
        after_nothing(v),
        after_nothing(kl[:-1]) if isinstance(kl, Array) else kl,
        window.reward,
        discount_t=discount * window.discount,
        tau=tau,
        n=len(window.reward),
        cut_t=window.cut,
    )[0]


def tree_backup_targets(
    q_tm1: Array,
    q_t: Array,
    window: Rollout,
    *,
    discount: ArrayLike,
    tau: ArrayLike,
    lambda_: ArrayLike = 1.0,
    log_prior: ArrayLike | None = None,
) -> Array:
    """Soft tree backup(λ): later rewards count as far as the soft policy would have followed.

        y_0 = r_0 + γV(s_1) + Σ_{0<d<n} γ^d (Π_{k=1}^d λπ_Q(a_k|s_k)) δ_d
        δ_d = r_d + γV(s_{d+1}) − Q(s_d,a_d)

    shorter where an episode ends within. At λ = 1 it is V(s_1) with the branch that was taken
    replaced by its own return, Σ_a π_Q (Q − τℓ)(a), and so on. The soft optimum is its fixed point
    whatever acted, and no behaviour probabilities are needed. n = 1 or λ = 0 is
    `one_step_targets`; τ = 0 cuts at each action that is not greedy.

    Args:
      q_tm1: action values, of the target network, at states 0 … n−1 [n, B, A]; the first ones
        cancel, and are not computed under `jit`.
      q_t: the same at states 1 … n [n, B, A].
      window: n steps of B windows.
      discount: γ.
      tau: temperature τ ≥ 0.
      lambda_: λ.
      log_prior: log π̄, broadcasting against `q_t`; `None` is uniform, `0.0` counting.

    Returns:
      [B].

    Reference: Precup et al. (2000), *Eligibility Traces for Off-Policy Policy Evaluation*.
    """
    log_pi_a = _log_pi_later(q_t, window, tau, log_prior)
    trace = returns.tree_backup_coefficients(log_pi_a, lambda_=lambda_)
    return _trace_targets(q_tm1, q_t, window, discount, tau, log_prior, trace)


def retrace_targets(
    q_tm1: Array,
    q_t: Array,
    window: Rollout,
    *,
    discount: ArrayLike,
    tau: ArrayLike,
    lambda_: ArrayLike = 1.0,
    log_prior: ArrayLike | None = None,
) -> Array:
    """Soft Retrace(λ): `tree_backup_targets` with longer traces, by what is known of the behaviour.

        c_k = λ min(1, π_Q(a_k|s_k)/μ(a_k|s_k))   instead of   λπ_Q(a_k|s_k)

    Args:
      q_tm1: action values, of the target network, at states 0 … n−1 [n, B, A].
      q_t: the same at states 1 … n [n, B, A].
      window: n steps of B windows, whose extras are log μ of the actions when they were taken
        [n, B]: `off_policy.agent(..., keep=off_policy.log_behaviour)`.
      discount: γ.
      tau: temperature τ ≥ 0.
      lambda_: λ.
      log_prior: log π̄, broadcasting against `q_t`; `None` is uniform, `0.0` counting.

    Returns:
      [B].

    Reference: Munos et al. (2016), *Safe and Efficient Off-Policy Reinforcement Learning*.
    """
    name = "retrace_targets"
    if getattr(window.extras, "shape", None) != window.action.shape:
        raise _checks.fail(
            name,
            _checks.said(window.extras),
            f"extras of the windows that are log μ of their actions, {list(window.action.shape)}",
            "Keep it as the agent acts: off_policy.agent(..., keep=off_policy.log_behaviour).",
        )
    log_pi_a = _log_pi_later(q_t, window, tau, log_prior)
    trace = returns.retrace_coefficients(log_pi_a - window.extras[1:], lambda_=lambda_)
    return _trace_targets(q_tm1, q_t, window, discount, tau, log_prior, trace)


def munchausen_targets(
    q_tm1: Array,
    q_t: Array,
    window: Rollout,
    *,
    discount: ArrayLike,
    tau: ArrayLike,
    alpha: ArrayLike = 0.9,
    least: ArrayLike = -1.0,
    log_prior: ArrayLike | None = None,
) -> Array:
    """`n_step_targets` of rewards to which a share of the policy's own log-ratio is added.

        r + α max(τℓ(a|s), least),   ℓ = log(π_Q/π̄) of the target network

    Without the bound this is value iteration with a penalty λKL to the policy before, where
    α = λ/(τ'+λ), τ = τ'+λ: it ends at the soft optimum of temperature (1 − α)τ, and α damps each
    step as (74)-(78) do. The bound holds off log-ratios of minus infinity; where it binds, all of
    that is broken.

    Args:
      q_tm1: action values, of the target network, at states 0 … n−1 [n, B, A].
      q_t: the same at states 1 … n [n, B, A].
      window: n steps of B windows.
      discount: γ.
      tau: temperature τ > 0.
      alpha: α, from 0 to 1.
      least: bound of τℓ from below; −inf is none.
      log_prior: log π̄, the same in every state; `None` is uniform, `0.0` counting, as in the
        reference.

    Returns:
      [B].

    Reference: Vieillard, Pietquin and Geist (2020), *Munchausen Reinforcement Learning*.
    """
    log_pi = boltzmann.log_policy(q_tm1, tau, log_prior)
    log_pi_a = losses.take_action(log_pi, window.action)
    prior = jnp.asarray(boltzmann.log_prior_of(log_prior, q_tm1.shape[-1]), log_pi.dtype)
    if prior.ndim:
        prior = losses.take_action(jnp.broadcast_to(prior, q_tm1.shape), window.action)
    bonus = alpha * jnp.maximum(tau * boltzmann.log_ratio(log_pi_a, prior), least)
    # What leads away from an end is no step of anybody's.
    reward = window.reward + jnp.where(window.weight > 0, bonus, 0).astype(window.reward.dtype)
    return n_step_targets(
        q_tm1,
        q_t,
        window._replace(reward=reward),
        discount=discount,
        tau=tau,
        log_prior=log_prior,
    )


def _log_pi_later(
    q_t: Array, window: Rollout, tau: ArrayLike, log_prior: ArrayLike | None
) -> Array:
    """Log π_Q of the actions after the first [n−1, B]."""
    # Of all states, so that a prior of each of them goes with it.
    log_pi = boltzmann.log_policy(q_t, tau, log_prior)
    return losses.take_action(log_pi[:-1], window.action[1:])


def _trace_targets(
    q_tm1: Array,
    q_t: Array,
    window: Rollout,
    discount: ArrayLike,
    tau: ArrayLike,
    log_prior: ArrayLike | None,
    trace: Array,
) -> Array:
    """y_0, for the coefficients of the actions after the first [n−1, B]."""
    later = losses.take_action(q_tm1[1:], window.action[1:])
    first = jnp.zeros_like(window.reward[:1])  # Q(s_0,a_0) and c_0, which are in no y_0
    return returns.trace_targets(
        jnp.concatenate([first.astype(later.dtype), later]),
        window.reward,
        discount * window.discount,
        v_t=boltzmann.soft_value(q_t, tau, log_prior),
        trace_tm1=jnp.concatenate([first.astype(trace.dtype), trace]),
        cut_t=window.cut,
    )[0]
