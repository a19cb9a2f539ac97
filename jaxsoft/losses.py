"""Per-step losses, unreduced: what a training loop averages and differentiates.

Conventions are those of `jaxsoft.returns`: axis 0 is time, the last axis of `q` and `log_pi` is
actions, `_tm1` belongs to the state in which the action was taken. Every loss returns one value
per step, [T, ...]; weigh out the steps that are no transitions (an environment's auto-reset
step) and take the mean.

Targets, advantages, importance weights and old values are held fixed inside the losses, by
`_fixed` and nowhere else. The prior, τ and the coefficients are ordinary differentiable inputs.
The one loss that differentiates its target is `path_consistency_loss`, whose point that is.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _checks, boltzmann, returns

__all__ = [
    "a2c_loss",
    "damped_soft_q_loss",
    "natural_regression_loss",
    "path_consistency_loss",
    "pgq_loss",
    "policy_gradient_loss",
    "soft_q_loss",
    "take_action",
    "tied_soft_q_loss",
    "value_loss",
]


def soft_q_loss(q_tm1: ArrayLike, a_tm1: ArrayLike, target_t: ArrayLike) -> Array:
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
    q = _take(name, "q_tm1", q_tm1, a_tm1)
    return _half_square(name, q=q, target_t=_fixed(name, "target_t", target_t))


def policy_gradient_loss(
    log_pi_tm1: ArrayLike,
    a_tm1: ArrayLike,
    advantage_t: ArrayLike,
    *,
    tau: ArrayLike,
    log_prior: ArrayLike | None = None,
) -> Array:
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
    _checks.at_least(name, "tau", tau, 0.0)
    log_pi_a = _take(name, "log_pi_tm1", log_pi_tm1, a_tm1)
    kl = boltzmann.kl_to_prior(log_pi_tm1, log_prior)
    args = _checks.sequences(
        name,
        log_pi_a=log_pi_a,
        advantage_t=_fixed(name, "advantage_t", advantage_t),
        tau=tau,
        kl=kl,
    )
    log_pi_a, advantage, temperature, kl = args.arrays
    return (temperature * kl - log_pi_a * advantage).astype(args.dtype)


def value_loss(v_tm1: ArrayLike, target_t: ArrayLike) -> Array:
    """Squared error of the state value.

        L_t = ½ (V(s_t) − V̂_t)²                                                      (53), (85)

    Args:
      v_tm1: state values [T, ...].
      target_t: V̂ = V + Δ, held fixed, [T, ...].

    Returns:
      [T, ...].
    """
    name = "value_loss"
    return _half_square(name, v_tm1=v_tm1, target_t=_fixed(name, "target_t", target_t))


def a2c_loss(
    v_tm1: ArrayLike,
    log_pi_tm1: ArrayLike,
    a_tm1: ArrayLike,
    *,
    target_t: ArrayLike,
    tau: ArrayLike,
    value_coef: ArrayLike = 0.5,
    log_prior: ArrayLike | None = None,
) -> Array:
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
    kl = boltzmann.kl_to_prior(log_pi_tm1, log_prior)
    return actor_critic_loss(
        "a2c_loss",
        v_tm1,
        log_pi_tm1,
        a_tm1,
        target_t=target_t,
        target_kl_tm1=kl,
        kl_tm1=kl,
        tau=tau,
        value_coef=value_coef,
    )


def actor_critic_loss(
    function: str,
    v_tm1: ArrayLike,
    log_pi_tm1: ArrayLike,
    a_tm1: ArrayLike,
    *,
    target_t: ArrayLike,
    target_kl_tm1: ArrayLike,
    kl_tm1: ArrayLike,
    tau: ArrayLike,
    value_coef: ArrayLike,
) -> Array:
    """`a2c_loss` of KLs that are known: of the policy, and of the first state in the target."""
    _checks.at_least(function, "tau", tau, 0.0)
    args = _checks.sequences(
        function,
        v_tm1=v_tm1,
        log_pi_a=_take(function, "log_pi_tm1", log_pi_tm1, a_tm1),
        target_t=_fixed(function, "target_t", target_t),
        target_kl=_fixed(function, "target_kl", target_kl_tm1),
        kl=kl_tm1,
        tau=tau,
        value_coef=value_coef,
    )
    v, log_pi_a, target, target_kl, kl, temperature, c = args.arrays
    value_target = jax.lax.stop_gradient(target - temperature * target_kl)
    policy = temperature * kl - log_pi_a * jax.lax.stop_gradient(value_target - v)
    return (policy + c * (0.5 * jnp.square(v - value_target))).astype(args.dtype)


def tied_soft_q_loss(
    v_tm1: ArrayLike,
    log_pi_tm1: ArrayLike,
    a_tm1: ArrayLike,
    *,
    target_t: ArrayLike,
    tau: ArrayLike,
    value_coef: ArrayLike = 0.5,
    log_prior: ArrayLike | None = None,
) -> Array:
    """Soft Q loss of Q = V + τ log(π/π̄), with the gradient of each stream scaled.

        L_t = ½ (Q(s_t,a_t) − y_t)²,   ∇L_t := (Q − y_t) (∇log π(a_t|s_t) + c ∇V(s_t))     (§6.3)

    That is: 1/τ into the advantage stream τ log π, and c into the value stream. In expectation
    over a_t ∼ π it is the gradient of `a2c_loss`, shared trunk included; c = 1/τ is the plain
    soft Q gradient divided by τ.

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
    log_pi_a, log_ratio = _log_ratio(name, log_pi_tm1, a_tm1, log_prior)
    return _tied_half_square(name, v_tm1, log_pi_a, log_ratio, target_t, tau, value_coef)


def damped_soft_q_loss(
    q_tm1: ArrayLike,
    a_tm1: ArrayLike,
    target_t: ArrayLike,
    *,
    q_old_tm1: ArrayLike,
    epsilon: ArrayLike,
) -> Array:
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
    _checks.at_least(name, "epsilon", epsilon, 0.0)
    q = _take(name, "q_tm1", q_tm1, a_tm1)
    old = _take(name, "q_old_tm1", _fixed(name, "q_old_tm1", q_old_tm1), a_tm1)
    args = _checks.sequences(
        name,
        q_tm1=q,
        q_old=old,
        target_t=_fixed(name, "target_t", target_t),
        epsilon=epsilon,
    )
    q, old, target, share = args.arrays
    return _half_square(name, q=q, target=(1 - share) * old + share * target).astype(args.dtype)


def natural_regression_loss(
    log_pi_tm1: ArrayLike,
    a_tm1: ArrayLike,
    advantage_t: ArrayLike,
    *,
    log_pi_old_tm1: ArrayLike,
    tau: ArrayLike,
    step_size: ArrayLike,
    log_prior: ArrayLike | None = None,
) -> Array:
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
    _checks.at_least(name, "tau", tau, 0.0)
    log_pi_a = _take(name, "log_pi_tm1", log_pi_tm1, a_tm1)
    fixed_old = _fixed(name, "log_pi_old_tm1", log_pi_old_tm1)
    old_a, old_ratio = _log_ratio(name, fixed_old, a_tm1, log_prior, "log_pi_old_tm1")
    args = _checks.sequences(
        name,
        log_pi_old=old_a,
        log_ratio=old_ratio,
        kl=boltzmann.kl_to_prior(fixed_old, log_prior),
        advantage_t=_fixed(name, "advantage_t", advantage_t),
        log_pi=log_pi_a,
        tau=tau,
        step_size=step_size,
    )
    old_a, old_ratio, kl, advantage, log_pi_a, temperature, step = args.arrays
    target = old_a + step * (advantage - temperature * (old_ratio - kl))
    return _half_square(name, log_pi=log_pi_a, target=target).astype(args.dtype)


def path_consistency_loss(
    v_tm1: ArrayLike,
    log_pi_tm1: ArrayLike,
    a_tm1: ArrayLike,
    *,
    r_t: ArrayLike,
    discount_t: ArrayLike,
    v_t: ArrayLike,
    tau: ArrayLike,
    n: int,
    log_prior: ArrayLike | None = None,
    cut_t: ArrayLike | None = None,
) -> Array:
    """Path consistency learning: the squared n-step consistency error, differentiated in full.

        L_t = ½ (Σ_{d<n} γ^d (r − τ log(π/π̄)(a|s))_{t+d} + γ^n V(s_{t+n}) − V(s_t))²         (90)

    The gradient goes into every V and log π on the path (Bellman residual minimisation): give
    `v_t` of the same network. Any actions serve, also another policy's. Paths end at cuts and at
    the end of the rollout, where they are shorter.

    Args:
      v_tm1: values of the transitions' starts [T, ...].
      log_pi_tm1: log-probabilities [T, ..., A].
      a_tm1: actions [T, ...].
      r_t: rewards [T, ...].
      discount_t: γ, or 0 at a termination, [T, ...] or a scalar.
      v_t: values of the transitions' ends [T, ...].
      tau: temperature τ ≥ 0, a scalar or [T, ...].
      n: static path length ≥ 1; any n ≥ T is the whole rollout.
      log_prior: log π̄, broadcasting against `log_pi_tm1`; `None` is uniform, `0.0` counting.
      cut_t: 1 or True where paths stop after that transition, [T, ...].

    Returns:
      [T, ...].

    Reference: Nachum et al. (2017), *Bridging the Gap Between Value and Policy Based RL*.
    Correction: (88)-(90) hold path by path only with deterministic dynamics, otherwise in
    expectation, which a squared error then estimates with a bias; (89), (90) need π = π*.
    """
    name = "path_consistency_loss"
    _checks.at_least(name, "tau", tau, 0.0)
    _, log_ratio = _log_ratio(name, log_pi_tm1, a_tm1, log_prior)
    errors = returns.td_errors(v_tm1, r_t, discount_t, v_t=v_t, kl_tm1=log_ratio, tau=tau)
    return 0.5 * jnp.square(returns.n_step_advantages(errors, discount_t, n=n, cut_t=cut_t))


def pgq_loss(
    v_tm1: ArrayLike,
    log_pi_tm1: ArrayLike,
    a_tm1: ArrayLike,
    *,
    return_t: ArrayLike,
    backup_t: ArrayLike,
    tau: ArrayLike,
    mixing: ArrayLike = 0.5,
    value_coef: ArrayLike = 0.5,
    log_prior: ArrayLike | None = None,
) -> Array:
    """PGQ: a mixture of policy gradient and Q-learning on one dueling Q.

        Q̃ = V + τ (log(π/π̄) − KL),   L_t = (1−η) ½ (Q̃ − R_t)² + η ½ (Q̃ − B_t)²             (87)

    with the gradient of `tied_soft_q_loss`, (Q̃ − target)(∇log π + c∇V). The first part is the
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
    log_pi_a, log_ratio = _log_ratio(name, log_pi_tm1, a_tm1, log_prior)
    centred = log_ratio - _fixed(name, "kl", boltzmann.kl_to_prior(log_pi_tm1, log_prior))

    actor = _tied_half_square(name, v_tm1, log_pi_a, centred, return_t, tau, value_coef)
    learner = _tied_half_square(name, v_tm1, log_pi_a, centred, backup_t, tau, value_coef)
    args = _checks.sequences(name, actor=actor, learner=learner, mixing=mixing)
    actor, learner, share = args.arrays
    return ((1 - share) * actor + share * learner).astype(args.dtype)


def take_action(values: ArrayLike, a: ArrayLike) -> Array:
    """The entry of each step's action, values[..., a].

    A masked sum instead of a gather, whose gradient would be a scatter; an index outside the
    actions gives NaN rather than a neighbour's value.

    Args:
      values: [T, ..., A].
      a: action indices [T, ...].

    Returns:
      [T, ...].
    """
    return _take("take_action", "values", values, a, "a")


def _take(
    function: str, name: str, values: ArrayLike, a: ArrayLike, a_name: str = "a_tm1"
) -> Array:
    values = _checks.floating(function, name, values)
    _checks.action_values(function, name, values)
    a = _checks.actions(function, a_name, a, name, values)
    index = jax.lax.broadcasted_iota(a.dtype, values.shape, values.ndim - 1)
    chosen = index == a[..., None]
    taken = jnp.sum(jnp.where(chosen, values, 0), axis=-1)
    return jnp.where((a >= 0) & (a < values.shape[-1]), taken, jnp.nan)


def _fixed(function: str, name: str, x: ArrayLike) -> Array:
    """The one place where a loss holds something fixed."""
    return jax.lax.stop_gradient(_checks.floating(function, name, x))


def _half_square(function: str, **pair: ArrayLike) -> Array:
    args = _checks.sequences(function, **pair)
    prediction, target = args.arrays
    return (0.5 * jnp.square(prediction - target)).astype(args.dtype)


def _log_ratio(
    function: str,
    log_pi: ArrayLike,
    a: ArrayLike,
    log_prior: ArrayLike | None,
    name: str = "log_pi_tm1",
) -> tuple[Array, Array]:
    """Log π(a) and log π(a) − log π̄(a)."""
    log_pi_a = _take(function, name, log_pi, a)
    ratio = boltzmann.q_from_policy(jnp.zeros_like(log_pi_a), log_pi, 1.0, log_prior)
    return log_pi_a, _take(function, name, ratio, a)


def _tied_half_square(
    function: str,
    v_tm1: ArrayLike,
    log_pi_a: Array,
    log_ratio: Array,
    target_t: ArrayLike,
    tau: ArrayLike,
    value_coef: ArrayLike,
) -> Array:
    """½ (Q − y)² of Q = V + τ·log_ratio, whose gradient counts log π once and V c times."""
    _checks.at_least(function, "tau", tau, 0.0)
    args = _checks.sequences(
        function,
        v_tm1=v_tm1,
        log_pi=log_pi_a,
        log_ratio=_fixed(function, "log_ratio", log_ratio),
        target_t=_fixed(function, "target_t", target_t),
        tau=tau,
        value_coef=value_coef,
    )
    v, log_pi_a, log_ratio, target, temperature, c = args.arrays
    q = jax.lax.stop_gradient(v + temperature * log_ratio)
    # Each stream enters as a difference that is zero in value: the sum stays exact at any
    # coefficient, where (1/τ)x − (1/τ − 1)x would lose digits as τ → 0.
    streams = _own_gradient(log_pi_a) + c * _own_gradient(v)
    return (0.5 * jnp.square(q + streams - target)).astype(args.dtype)


def _own_gradient(x: Array) -> Array:
    """Zero, with the gradient of x."""
    return x - jax.lax.stop_gradient(x)
