"""Multi-step soft backups: δ, n-step, TD(λ) and off-policy traces.

One linear recurrence lies under all of them,

    G_t = x_t + c_t G_{t+1},   or its window of n terms   G_t = Σ_{d<n} (Π_{k<d} c_{t+k}) x_{t+d},

where c_t is the discount times a trace coefficient, and 0 where a trajectory ends.

Conventions. Axis 0 is time; arrays are [T, ...] with the same number of axes, whose batch axes
broadcast; scalars fit any of them. `_tm1` belongs to a transition's start s_t and `_t` to its
end s_{t+1}, so of values at T + 1 states v, `v_tm1 = v[:-1]` and `v_t = v[1:]`. `discount_t` is γ,
and 0 at a termination. `cut_t` is 1 (or True) where a trajectory ends after that transition for
any reason, truncation or an environment's auto-reset step: sums stop there, the bootstrap inside
δ does not. The end of the arrays also cuts, so every sum bootstraps from the last value it
reaches.

Nothing here stops a gradient: the losses hold their targets fixed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _checks, _recurrence, boltzmann
from jaxsoft._typing import Float, Scalar, Shaped

__all__ = [
    "VTrace",
    "group_advantages",
    "lambda_advantages",
    "n_step_advantages",
    "n_step_soft_q_targets",
    "one_step_targets",
    "retrace_coefficients",
    "soft_q_targets",
    "td_errors",
    "trace_targets",
    "tree_backup_coefficients",
    "v_trace",
]


def td_errors(
    v_tm1: Float[ArrayLike, "T *#B"],
    r_t: Float[ArrayLike, "T *#B"],
    discount_t: Float[ArrayLike, "T *#B"] | Scalar,
    *,
    v_t: Float[ArrayLike, "T *#B"],
    kl_tm1: Float[ArrayLike, "T *#B"] | Scalar,
    tau: Float[ArrayLike, "T *#B"] | Scalar,
) -> Float[Array, "T *B"]:
    """Soft temporal-difference errors.

        δ_t = r_t − τKL_t + γ V(s_{t+1}) − V(s_t)                                          (36)

    With `kl_tm1 = 0.0` they are the plain errors, on which the naive policy gradient (79) rests;
    with a sampled log-ratio instead, those of path consistency (90).

    Args:
      v_tm1: values of the transitions' starts [T, ...].
      r_t: rewards [T, ...].
      discount_t: γ, or 0 at a termination, [T, ...] or a scalar.
      v_t: values of the transitions' ends [T, ...].
      kl_tm1: KL[π‖π̄] at the starts [T, ...] or a scalar.
      tau: temperature τ ≥ 0, a scalar or [T, ...].

    Returns:
      [T, ...].
    """
    name = "td_errors"
    args = _checks.sequences(
        name, v_tm1=v_tm1, r_t=r_t, discount_t=discount_t, v_t=v_t, kl_tm1=kl_tm1, tau=tau
    )
    v_start, r, discount, v_end, kl, temperature = args.arrays
    return (r - temperature * kl + discount * v_end - v_start).astype(args.dtype)


def n_step_advantages(
    delta_t: Float[ArrayLike, "T *#B"],
    discount_t: Float[ArrayLike, "T *#B"] | Scalar,
    *,
    n: int,
    cut_t: Shaped[ArrayLike, "T *#B"] | None = None,
) -> Float[Array, "T *B"]:
    """n-step advantages: a sliding window over the errors.

        Δ_t = Σ_{d=0}^{n−1} γ^d δ_{t+d}                                              (47), (52)

    γ^d is the product of the discounts on the way. A window that meets a cut or the end of the
    rollout stops there and is shorter than n. V(s_t) + Δ_t is the n-step backup of V, (34), (54).

    Args:
      delta_t: errors δ [T, ...].
      discount_t: γ, or 0 at a termination, [T, ...] or a scalar.
      n: static window ≥ 1; any n ≥ T is the whole rollout.
      cut_t: 1 or True where sums stop after that transition, [T, ...].

    Returns:
      [T, ...].

    Correction: (37) prints γⁿV(s_n) where V(s_0) is meant: V(s_0) + E[Σγᵗδ_t] = [𝒯ⁿV](s_0).
    (54) lacks the KL terms that δ has, and prints γ^d V(s_{t+d}) for γ^n V(s_{t+n}).
    """
    name = "n_step_advantages"
    window = _checks.count(name, "n", n)
    args = _checks.sequences(name, delta_t=delta_t, discount_t=discount_t)
    return _recurrence.weighted_sums(name, args, cut_t, window).astype(args.dtype)


def lambda_advantages(
    delta_t: Float[ArrayLike, "T *#B"],
    discount_t: Float[ArrayLike, "T *#B"] | Scalar,
    *,
    lambda_: Float[ArrayLike, "T *#B"] | Scalar,
    cut_t: Shaped[ArrayLike, "T *#B"] | None = None,
) -> Float[Array, "T *B"]:
    """TD(λ) advantages (generalised advantage estimation with KL terms inside δ).

        Δ_t = Σ_{d≥0} (γλ)^d δ_{t+d}                                                 (42), (43)

    λ = 0 is n = 1 and λ = 1 the whole rollout. A λ per step scales what follows its transition.

    Args:
      delta_t: errors δ [T, ...].
      discount_t: γ, or 0 at a termination, [T, ...] or a scalar.
      lambda_: λ, a scalar or [T, ...].
      cut_t: 1 or True where sums stop after that transition, [T, ...].

    Returns:
      [T, ...].

    Correction: (43) is V_Q(s) + τKL(s) + E[Σ(γλ)^t δ_t], not Q(s,a) + …: see `soft_q_targets`.
    In (42) read Σ_k λ^k 𝒯^k with 𝒯 applied k times, not (λ𝒯)^k.
    """
    name = "lambda_advantages"
    args = _checks.sequences(name, delta_t=delta_t, discount_t=discount_t, lambda_=lambda_)
    delta, discount, decay = args.arrays
    args = args._replace(arrays=(delta, discount * decay))
    return _recurrence.weighted_sums(name, args, cut_t).astype(args.dtype)


def group_advantages(
    return_: Float[ArrayLike, "*B"], group_axis: int, *, leave_one_out: bool = True
) -> Float[Array, "*B"]:
    """Returns less the mean of others of their group, which started from the same state.

        A_i = R_i − Σ_{j≠i} R_j/(G − 1) = G/(G − 1) (R_i − mean R)

    No value function is needed, and the policy gradient stays unbiased: a baseline must not depend
    on the action that it is subtracted for. A mean of all G, `leave_one_out=False`, scales the
    gradient by (G − 1)/G. Divide by the group's standard deviation σ yourself if you mean the
    objective of temperature τσ: the weight of the KL then varies from group to group.

    Args:
      return_: R, with each τKL or log-ratio inside, [...].
      group_axis: static axis of the members of a group, G ≥ 2 of them.
      leave_one_out: whether a member is left out of its own baseline.

    Returns:
      Of the shape of `return_`.

    References: Kool et al. (2019), *Buy 4 REINFORCE Samples, Get a Baseline for Free!*; Shao et al.
    (2024), *DeepSeekMath*, for the mean of all.
    """
    name = "group_advantages"
    value = _checks.floating(name, "return_", return_)
    axis = _checks.axis(name, "group_axis", group_axis, "return_", value, 2)
    size, dtype = value.shape[axis], value.dtype
    value = value.astype(_checks.computing_dtype(dtype))
    scale = size / (size - 1) if _checks.flag(name, "leave_one_out", leave_one_out) else 1
    return (scale * (value - jnp.mean(value, axis=axis, keepdims=True))).astype(dtype)


def soft_q_targets(
    advantage_t: Float[ArrayLike, "T *#B"],
    v_tm1: Float[ArrayLike, "T *#B"],
    kl_tm1: Float[ArrayLike, "T *#B"] | Scalar,
    *,
    tau: Float[ArrayLike, "T *#B"] | Scalar,
) -> Float[Array, "T *B"]:
    """Soft Q targets of any advantage estimate.

        y_t = V(s_t) + τKL_t + Δ_t                                            (46), (47), (43)

    The KL of the first state comes back since Q, unlike V, does not include it. y_t is unbiased
    when the actions after a_t are the policy's; a_t itself is free.

    Args:
      advantage_t: Δ [T, ...].
      v_tm1: values V(s_t) [T, ...], those used in δ.
      kl_tm1: KL[π‖π̄](s_t) [T, ...] or a scalar.
      tau: temperature τ ≥ 0, a scalar or [T, ...].

    Returns:
      [T, ...].
    """
    name = "soft_q_targets"
    args = _checks.sequences(name, advantage_t=advantage_t, v_tm1=v_tm1, kl_tm1=kl_tm1, tau=tau)
    advantage, value, kl, temperature = args.arrays
    return (value + temperature * kl + advantage).astype(args.dtype)


def n_step_soft_q_targets(
    v: Float[ArrayLike, "S *#B"],
    kl_tm1: Float[ArrayLike, "T *#B"] | Scalar,
    r_t: Float[ArrayLike, "T *#B"],
    *,
    discount_t: Float[ArrayLike, "T *#B"] | Scalar,
    tau: Float[ArrayLike, "T *#B"] | Scalar,
    n: int,
    cut_t: Shaped[ArrayLike, "T *#B"] | None = None,
) -> Float[Array, "T *B"]:
    """n-step soft Q targets of a rollout whose states follow each other.

        y_t = V(s_t) + τKL_t + Σ_{d=0}^{n−1} γ^d δ_{t+d},   δ of (36)                  (46), (47)

    Args:
      v: values at the T + 1 states [T+1, ...].
      kl_tm1: KL[π‖π̄] at the first T states [T, ...], or a scalar.
      r_t: rewards [T, ...].
      discount_t: γ, or 0 at a termination, [T, ...] or a scalar.
      tau: temperature τ ≥ 0, a scalar or [T, ...].
      n: static number of steps to the bootstrap; any n ≥ T is the whole rollout.
      cut_t: 1 or True where sums stop after that transition, [T, ...].

    Returns:
      [T, ...].
    """
    name = "n_step_soft_q_targets"
    v = _checks.states(name, "v", v, r_t=r_t)
    starts = {"v[:-1]": v[:-1]}
    _checks.arguments(
        name, r_t=r_t, kl_tm1=kl_tm1, discount_t=discount_t, tau=tau, n=n, cut_t=cut_t, **starts
    )
    delta_t = td_errors(v[:-1], r_t, discount_t, v_t=v[1:], kl_tm1=kl_tm1, tau=tau)
    advantage_t = n_step_advantages(delta_t, discount_t, n=n, cut_t=cut_t)
    return soft_q_targets(advantage_t, v[:-1], kl_tm1, tau=tau)


def one_step_targets(
    r_t: Float[ArrayLike, "T *#B"],
    discount_t: Float[ArrayLike, "T *#B"] | Scalar,
    q_t: Float[ArrayLike, "T *#B A"],
    *,
    tau: Float[ArrayLike, "T *#B"] | Scalar,
    log_prior: Float[ArrayLike, "..."] | None = None,
) -> Float[Array, "T *B"]:
    """One-step soft Q targets; hard at τ = 0.

        y_t = r_t + γ V_Q(s_{t+1})                                            (39), (45), (81)

    `log_prior=None` is the KL penalty (82) and `0.0` the entropy bonus (83). They are unbiased
    whatever policy acted.

    Args:
      r_t: rewards [T, ...].
      discount_t: γ, or 0 at a termination, [T, ...] or a scalar.
      q_t: action values of the transitions' ends [T, ..., A].
      tau: temperature τ ≥ 0, a scalar or [T, ...].
      log_prior: log π̄ at the transitions' ends, broadcasting against `q_t`.

    Returns:
      [T, ...].

    Correction: (82) prints γ log Σexp(Q/τ) − log|A| and (83) γ log Σexp(Q/τ); both lack the
    factor τ, and (82) the one of γτ before log|A|. (38) lacks a bracket: γ also scales the KL.
    """
    name = "one_step_targets"
    _checks.arguments(name, r_t=r_t, discount_t=discount_t, tau=tau, log_prior=log_prior)
    q_t = _checks.floating(name, "q_t", q_t)
    _checks.action_values(name, "q_t", q_t)
    value = boltzmann.value(name, "q_t", q_t, tau, log_prior)
    args = _checks.sequences(name, r_t=r_t, discount_t=discount_t, **{"q_t[..., 0]": value})
    r, discount, v_end = args.arrays
    return (r + discount * v_end).astype(args.dtype)


def trace_targets(
    q_tm1: Float[ArrayLike, "T *#B"],
    r_t: Float[ArrayLike, "T *#B"],
    discount_t: Float[ArrayLike, "T *#B"] | Scalar,
    *,
    v_t: Float[ArrayLike, "T *#B"],
    trace_tm1: Float[ArrayLike, "T *#B"] | Scalar,
    cut_t: Shaped[ArrayLike, "T *#B"] | None = None,
) -> Float[Array, "T *B"]:
    """Off-policy multi-step Q targets for per-step trace coefficients.

        y_t = Q(s_t,a_t) + Σ_{d≥0} γ^d (Π_{k=1}^d c_{t+k}) (r + γ V(s') − Q(s,a))_{t+d}

    with V the soft state value of the target policy (`soft_value`, or `policy_value`). The
    coefficients choose the method: `retrace_coefficients`, `tree_backup_coefficients`, λ itself
    (soft Q(λ)), λπ/μ (importance sampling), 0 (one step, (45)). On policy with c = 1 the soft
    returns appear with the sampled log-ratio instead of each KL.

    Args:
      q_tm1: values of the actions taken Q(s_t,a_t) [T, ...].
      r_t: rewards [T, ...].
      discount_t: γ, or 0 at a termination, [T, ...] or a scalar.
      v_t: soft state values of the transitions' ends [T, ...].
      trace_tm1: c_t of the action taken at s_t [T, ...] or a scalar; the first one is not used.
      cut_t: 1 or True where sums stop after that transition, [T, ...].

    Returns:
      [T, ...].

    References: Munos et al. (2016), *Safe and Efficient Off-Policy Reinforcement Learning*, (3);
    Precup et al. (2000) for the tree backup.
    """
    name = "trace_targets"
    args = _checks.sequences(
        name, q_tm1=q_tm1, r_t=r_t, discount_t=discount_t, v_t=v_t, trace_tm1=trace_tm1
    )
    q, r, discount, v_end, trace = args.arrays
    delta = r + discount * v_end - q
    # Transition t continues into t + 1 with the coefficient of the action taken there.
    following = _recurrence.shift(jnp.broadcast_to(trace, args.shape), 1)
    errors = _recurrence.weighted_sums(
        name, args._replace(arrays=(delta, discount * following)), cut_t
    )
    return (q + errors).astype(args.dtype)


def retrace_coefficients(
    log_rho_tm1: Float[ArrayLike, "T *#B"], *, lambda_: Float[ArrayLike, "T *#B"] | Scalar = 1.0
) -> Float[Array, "T *B"]:
    """Retrace(λ): c_t = λ min(1, π(a_t|s_t)/μ(a_t|s_t)).

    Args:
      log_rho_tm1: log π(a_t|s_t) − log μ(a_t|s_t), target over behaviour, [T, ...].
      lambda_: λ, a scalar or [T, ...].

    Returns:
      [T, ...], for `trace_targets`.
    """
    args = _checks.sequences("retrace_coefficients", log_rho_tm1=log_rho_tm1, lambda_=lambda_)
    log_rho, decay = args.arrays
    return (decay * jnp.exp(jnp.minimum(log_rho, 0))).astype(args.dtype)


def tree_backup_coefficients(
    log_pi_a_tm1: Float[ArrayLike, "T *#B"], *, lambda_: Float[ArrayLike, "T *#B"] | Scalar = 1.0
) -> Float[Array, "T *B"]:
    """Tree backup(λ): c_t = λ π(a_t|s_t), which needs no behaviour probabilities.

    Args:
      log_pi_a_tm1: log π(a_t|s_t) of the actions taken, under the target policy, [T, ...].
      lambda_: λ, a scalar or [T, ...].

    Returns:
      [T, ...], for `trace_targets`.
    """
    args = _checks.sequences("tree_backup_coefficients", log_pi_a_tm1=log_pi_a_tm1, lambda_=lambda_)
    log_pi_a, decay = args.arrays
    return (decay * jnp.exp(log_pi_a)).astype(args.dtype)


class VTrace(NamedTuple):
    """What soft V-trace gives a value function and a policy.

    Attributes:
      errors: v_t − V(s_t) [T, ...]: the value target is V + errors.
      advantages: ρ_t (r − τKL + γ v_{t+1} − V(s_t)) [T, ...], for the policy gradient.
    """

    errors: Float[Array, "T *B"]
    advantages: Float[Array, "T *B"]


def v_trace(
    delta_t: Float[ArrayLike, "T *#B"],
    discount_t: Float[ArrayLike, "T *#B"] | Scalar,
    log_rho_tm1: Float[ArrayLike, "T *#B"],
    *,
    lambda_: Float[ArrayLike, "T *#B"] | Scalar = 1.0,
    cut_t: Shaped[ArrayLike, "T *#B"] | None = None,
    clip_rho: Scalar = 1.0,
    clip_c: Scalar = 1.0,
) -> VTrace:
    """Soft V-trace: off-policy state values with the KL penalty inside δ.

        v_t = V(s_t) + Σ_{d≥0} γ^d (Π_{k<d} c_{t+k}) ρ_{t+d} δ_{t+d}
        ρ = min(ρ̄, π/μ),  c = λ min(c̄, π/μ),  δ of (36)

    On policy it is TD(λ), (43). Infinite clips make it importance sampling.

    Args:
      delta_t: soft errors δ (`td_errors`, with the KL of the target policy) [T, ...].
      discount_t: γ, or 0 at a termination, [T, ...] or a scalar.
      log_rho_tm1: log π(a_t|s_t) − log μ(a_t|s_t), target over behaviour, [T, ...].
      lambda_: λ, a scalar or [T, ...].
      cut_t: 1 or True where sums stop after that transition, [T, ...].
      clip_rho: ρ̄. A finite one moves the fixed point to the value of a policy between μ and π.
      clip_c: c̄, which trades variance for speed of contraction and moves nothing.

    Returns:
      A `VTrace` of [T, ...] arrays.

    Reference: Espeholt et al. (2018), *IMPALA*, (1); the soft form replaces r by r − τKL.
    """
    name = "v_trace"
    most_rho = _checks.scalar(name, "clip_rho", clip_rho)
    most_c = _checks.scalar(name, "clip_c", clip_c)
    args = _checks.sequences(
        name, delta_t=delta_t, discount_t=discount_t, log_rho_tm1=log_rho_tm1, lambda_=lambda_
    )
    delta, discount, log_rho, decay = args.arrays
    ratio = jnp.exp(log_rho)
    rho = jnp.minimum(ratio, most_rho.astype(ratio.dtype))
    trace = decay * jnp.minimum(ratio, most_c.astype(ratio.dtype))
    errors = _recurrence.weighted_sums(
        name, args._replace(arrays=(rho * delta, discount * trace)), cut_t
    )
    continuing = _recurrence.continuation(name, args, discount, cut_t)
    advantages = rho * (delta + continuing * _recurrence.shift(errors, 1))
    return VTrace(errors.astype(args.dtype), advantages.astype(args.dtype))
