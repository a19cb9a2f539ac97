"""The headline algorithms, one call each on a whole rollout.

A rollout of T transitions visits T + 1 states, and the networks' outputs are given at all of
them, in order: `q`, `log_pi` [T+1, ..., A] and `v` [T+1, ...]; actions, rewards, discounts and
cuts belong to the transitions, [T, ...]. A `log_prior` per state has T + 1 entries. Where the
environment's next state is not the next entry (an auto-reset that overwrites the last
observation), compose the blocks of `returns` and `losses` instead: they take both ends.

Each of these is a dozen lines over those blocks, and meant to be read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _actions, _checks, boltzmann, losses, natural, returns
from jaxsoft._typing import Float, Integer, Scalar, Shaped
from jaxsoft.losses import _common
from jaxsoft.losses.policy_gradient import actor_critic_loss
from jaxsoft.losses.soft_q import held_log_ratio, tied_half_square
from jaxsoft.natural import solve

__all__ = [
    "actor_critic",
    "damped_natural_q",
    "n_step_soft_q",
    "naive_actor_critic",
    "tied_soft_q",
]

Params = Any


def n_step_soft_q(
    q: Float[ArrayLike, "S *#B A"],
    a_tm1: Integer[ArrayLike, "T *#B"],
    r_t: Float[ArrayLike, "T *#B"],
    *,
    discount_t: Float[ArrayLike, "T *#B"] | Scalar,
    tau: Scalar,
    n: int = 5,
    target_q: Float[ArrayLike, "S *#B A"] | None = None,
    log_prior: Float[ArrayLike, "..."] | None = None,
    cut_t: Shaped[ArrayLike, "T *#B"] | None = None,
) -> Float[Array, "T *B"]:
    """n-step soft Q-learning.

        L_t = ½ (Q(s_t,a_t) − y_t)²,   y_t = V(s_t) + τKL_t + Σ_{d<n} γ^d δ_{t+d}          (44)-(47)

    Act by `log_policy(q, tau, log_prior)`; n = 1 is (45) and needs no particular behaviour.

    Args:
      q: action values at the T + 1 states [T+1, ..., A].
      a_tm1: actions [T, ...].
      r_t: rewards [T, ...].
      discount_t: γ, or 0 at a termination, [T, ...] or a scalar.
      tau: temperature τ ≥ 0, a scalar.
      n: steps to the bootstrap; any n ≥ T is the whole rollout.
      target_q: action values of a target network, of the shape of `q`; `None` is `q` itself,
        held fixed.
      log_prior: log π̄, broadcasting against `q`; `None` is uniform, `0.0` counting.
      cut_t: 1 or True where sums stop after that transition, [T, ...].

    Returns:
      Losses [T, ...].
    """
    name = "n_step_soft_q"
    q = _checks.states(name, "q", q, a_tm1=a_tm1, r_t=r_t)
    a_tm1 = _checks.actions(name, "a_tm1", a_tm1, "q[:-1]", q[:-1])
    _checks.scalar(name, "tau", tau)
    _checks.arguments(
        name, log_prior=log_prior, a_tm1=a_tm1, r_t=r_t, discount_t=discount_t, n=n, cut_t=cut_t
    )
    held, what = (q, "q") if target_q is None else (target_q, "target_q")
    held = jax.lax.stop_gradient(_checks.floating(name, what, held))
    _checks.same_shape(name, what, held, "q", q.shape)
    v, kl = boltzmann.value_and_kl(name, what, held, tau, log_prior)
    _adds_no_axis(name, what, held, v)
    v, kl, q_a = _actions.kept(v, kl, _common.taken_of_states(q, a_tm1))
    target_t = returns.n_step_soft_q_targets(
        v, _starts(kl), r_t, discount_t=discount_t, tau=tau, n=n, cut_t=cut_t
    )
    return losses.value_loss(q_a[:-1], target_t)


def actor_critic(
    v: Float[ArrayLike, "S *#B"],
    log_pi: Float[ArrayLike, "S *#B A"],
    a_tm1: Integer[ArrayLike, "T *#B"],
    *,
    r_t: Float[ArrayLike, "T *#B"],
    discount_t: Float[ArrayLike, "T *#B"] | Scalar,
    tau: Scalar,
    n: int = 5,
    value_coef: Scalar = 0.5,
    log_prior: Float[ArrayLike, "..."] | None = None,
    cut_t: Shaped[ArrayLike, "T *#B"] | None = None,
) -> Float[Array, "T *B"]:
    """Entropy-regularised advantage actor-critic, proper: the KL is part of the return.

        L_t = −log π(a_t|s_t) Δ_t + τKL_t + c ½(V(s_t) − V̂_t)²                     (80), (84)-(86)
        Δ_t = Σ_{d<n} γ^d δ_{t+d},  δ = r − τKL + γV' − V,  V̂ = V + Δ

    Args:
      v: state values at the T + 1 states [T+1, ...].
      log_pi: log-probabilities at the T + 1 states [T+1, ..., A].
      a_tm1: actions [T, ...].
      r_t: rewards [T, ...].
      discount_t: γ, or 0 at a termination, [T, ...] or a scalar.
      tau: temperature τ ≥ 0, a scalar.
      n: steps to the bootstrap; any n ≥ T is the whole rollout.
      value_coef: c.
      log_prior: log π̄, broadcasting against `log_pi`; `None` is uniform, `0.0` counting.
      cut_t: 1 or True where sums stop after that transition, [T, ...].

    Returns:
      Losses [T, ...].

    Correction: (79), (80) lack the bootstrap γⁿV(s_{t+n}).
    """
    at = _states(
        "actor_critic",
        v,
        log_pi,
        a_tm1,
        log_prior,
        r_t=r_t,
        discount_t=discount_t,
        tau=tau,
        n=n,
        value_coef=value_coef,
        cut_t=cut_t,
    )
    return at.actor_critic(at.kl_tm1)


def naive_actor_critic(
    v: Float[ArrayLike, "S *#B"],
    log_pi: Float[ArrayLike, "S *#B A"],
    a_tm1: Integer[ArrayLike, "T *#B"],
    *,
    r_t: Float[ArrayLike, "T *#B"],
    discount_t: Float[ArrayLike, "T *#B"] | Scalar,
    tau: Scalar,
    n: int = 5,
    value_coef: Scalar = 0.5,
    log_prior: Float[ArrayLike, "..."] | None = None,
    cut_t: Shaped[ArrayLike, "T *#B"] | None = None,
) -> Float[Array, "T *B"]:
    """Advantage actor-critic as usually implemented: the KL of this step only, none in the return.

        as `actor_critic`, with δ = r + γV' − V                                                (79)

    Its gradient differs from the proper one by τE[∇log π Σ_{0<d<n} γ^d KL_{t+d}]; at n = 1 not at
    all. Arguments and result are those of `actor_critic`.
    """
    at = _states(
        "naive_actor_critic",
        v,
        log_pi,
        a_tm1,
        log_prior,
        r_t=r_t,
        discount_t=discount_t,
        tau=tau,
        n=n,
        value_coef=value_coef,
        cut_t=cut_t,
    )
    return at.actor_critic(0.0)


def tied_soft_q(
    v: Float[ArrayLike, "S *#B"],
    log_pi: Float[ArrayLike, "S *#B A"],
    a_tm1: Integer[ArrayLike, "T *#B"],
    *,
    r_t: Float[ArrayLike, "T *#B"],
    discount_t: Float[ArrayLike, "T *#B"] | Scalar,
    tau: Scalar,
    n: int = 5,
    value_coef: Scalar = 0.5,
    log_prior: Float[ArrayLike, "..."] | None = None,
    cut_t: Shaped[ArrayLike, "T *#B"] | None = None,
) -> Float[Array, "T *B"]:
    """n-step soft Q-learning on Q = V + τ log(π/π̄), each stream's gradient scaled.

        L_t = ½ (Q(s_t,a_t) − y_t)²,   ∇L_t := (Q − y_t) (∇log π(a_t|s_t) + c ∇V(s_t))     (§6.3)

    Its expected gradient over a_t ∼ π is that of `actor_critic`: one line of the two differs, the
    loss. Arguments and result are those of `actor_critic`.
    """
    at = _states(
        "tied_soft_q",
        v,
        log_pi,
        a_tm1,
        log_prior,
        r_t=r_t,
        discount_t=discount_t,
        tau=tau,
        n=n,
        value_coef=value_coef,
        cut_t=cut_t,
    )
    log_ratio = held_log_ratio(at.function, at.log_pi_a_tm1, at.log_pi[:-1], a_tm1, at.log_prior)
    return tied_half_square(
        at.function,
        at.v[:-1],
        at.log_pi_a_tm1,
        log_ratio,
        at.target(at.kl_tm1),
        tau,
        value_coef,
    )


def damped_natural_q(
    q_fn: Callable[[Params], Array],
    params: Params,
    a_tm1: Integer[ArrayLike, "T *#B"],
    *,
    r_t: Float[ArrayLike, "T *#B"],
    discount_t: Float[ArrayLike, "T *#B"] | Scalar,
    tau: Scalar,
    n: int = 5,
    epsilon: Scalar,
    damping: Scalar = 1e-3,
    solver: str = "cg",
    log_prior: Float[ArrayLike, "..."] | None = None,
    cut_t: Shaped[ArrayLike, "T *#B"] | None = None,
    weight: Float[ArrayLike, "T *#B"] | None = None,
) -> tuple[Params, natural.SolveInfo]:
    """Damped soft Q-learning, solved: a natural policy gradient step.

        step = (ε/τ) (F + λI)⁻¹ g,   g = E[∇log π (Δ − τ(log(π/π̄) − KL))]     (69)-(71), (74)-(78)

    It is one Gauss-Newton step, with V frozen, on ½(Q_θ − [(1−ε)Q_old + εy])², ridge τ²λ. For a
    step of length α take ε = ατ; ε = 1 is undamped Q-learning, a step of length 1/τ. Needs τ > 0.

    Args:
      q_fn: parameters -> action values at the T + 1 states [T+1, ..., A].
      params: a tree of floating arrays.
      a_tm1: actions [T, ...], drawn from the Boltzmann policy of `q_fn(params)`.
      r_t: rewards [T, ...].
      discount_t: γ, or 0 at a termination, [T, ...] or a scalar.
      tau: temperature τ > 0, a scalar.
      n: steps to the bootstrap; any n ≥ T is the whole rollout.
      epsilon: ε in (0, 1], the share of the new target.
      damping: λ, as for `natural_gradient`, like `solver`.
      solver: `"cg"`, or `"gram"` for batches smaller than the parameters.
      log_prior: log π̄, broadcasting against `q`; `None` is uniform, `0.0` counting.
      cut_t: 1 or True where sums stop after that transition, [T, ...].
      weight: weights of the steps, 0 for those that do not count, [T, ...].

    Returns:
      (step, info): the step to *add* to `params`, and a `SolveInfo`.

    Correction: (78) needs ε/τ for ε, (71) π_θold in its bracket.
    """
    name = "damped_natural_q"
    _checks.callable_(name, "q_fn", q_fn, "params -> q [T+1, ..., A]")
    solve.check(name, damping, solver)
    tau = _checks.scalar(name, "tau", tau, positive="At tau = 0 no policy gradient exists.")
    epsilon = _checks.scalar(name, "epsilon", epsilon)
    q = _checks.states(name, "q_fn(params)", q_fn(params), a_tm1=a_tm1, r_t=r_t)
    q_a = _common.take(name, "q_fn(params)[:-1]", q[:-1], a_tm1)
    _checks.arguments(
        name,
        log_prior=log_prior,
        a_tm1=a_tm1,
        r_t=r_t,
        discount_t=discount_t,
        n=n,
        cut_t=cut_t,
        weight=weight,
    )
    if weight is not None:
        _checks.same_shape(name, "weight", weight, "a_tm1", q_a.shape)
    v, kl = boltzmann.value_and_kl(name, "q_fn(params)", q, tau, log_prior)
    _adds_no_axis(name, "q_fn(params)", q, v)
    target_t = returns.n_step_soft_q_targets(
        v, _starts(kl), r_t, discount_t=discount_t, tau=tau, n=n, cut_t=cut_t
    )
    # (76): y − Q_old is Δ − τ(log(π/π̄) − KL), the bracket of (70).
    improvement = target_t - q_a

    def log_prob_fn(p: Params) -> Array:
        log_pi = boltzmann.log_policy(q_fn(p), tau, log_prior)
        return losses.take_action(log_pi[:-1], a_tm1)

    direction, info = natural.natural_gradient(
        log_prob_fn, params, improvement, damping=damping, solver=solver, weight=weight
    )
    length = epsilon / tau
    return jax.tree.map(lambda x: (length * x).astype(x.dtype), direction), info


def _starts(kl: ArrayLike) -> ArrayLike:
    """Without the last state; a scalar stands for all."""
    return kl[:-1] if isinstance(kl, Array) and kl.ndim else kl


def _adds_no_axis(function: str, name: str, x: Array, per_state: Array) -> None:
    """A rollout has the axes of its states: no prior raises what is made of them."""
    if per_state.ndim != x.ndim - 1:
        raise _checks.fail(
            function,
            f"one of {per_state.ndim + 1} axes and {list(x.shape)}",
            f"log_prior to have no more axes than {name}",
            "Use vmap for several priors.",
        )


class _States(NamedTuple):
    """What an actor-critic says at the T + 1 states, and the transitions between them."""

    function: str
    v: Array
    log_pi: Array
    log_pi_a_tm1: Array
    kl_tm1: Array
    log_prior: ArrayLike | None
    transitions: dict[str, Any]
    value_coef: ArrayLike

    def target(self, kl_tm1: ArrayLike) -> Array:
        """n-step soft Q targets, with this KL in the return."""
        return returns.n_step_soft_q_targets(self.v, kl_tm1, **self.transitions)

    def actor_critic(self, kl_tm1: ArrayLike) -> Array:
        """Policy gradient and value loss, with this KL in the return."""
        return actor_critic_loss(
            self.function,
            self.v[:-1],
            self.log_pi_a_tm1,
            target_t=self.target(kl_tm1),
            target_kl_tm1=kl_tm1,
            kl_tm1=self.kl_tm1,
            tau=self.transitions["tau"],
            value_coef=self.value_coef,
        )


def _states(
    function: str,
    v: ArrayLike,
    log_pi: ArrayLike,
    a_tm1: ArrayLike,
    log_prior: ArrayLike | None,
    *,
    value_coef: ArrayLike,
    **transitions: Any,
) -> _States:
    v = _checks.states(function, "v", v, a_tm1=a_tm1, r_t=transitions["r_t"])
    log_pi = _checks.states(function, "log_pi", log_pi, a_tm1=a_tm1)
    a_tm1 = _checks.actions(function, "a_tm1", a_tm1, "log_pi[:-1]", log_pi[:-1])
    _checks.scalar(function, "tau", transitions["tau"])
    others = {"v[:-1]": v[:-1], "value_coef": value_coef}
    _checks.arguments(function, log_prior=log_prior, a_tm1=a_tm1, **others, **transitions)
    # Else what a softmax is made of would be computed anew for every action of what follows.
    (log_pi,) = _actions.kept(log_pi)
    kl = boltzmann.kl(function, "log_pi", log_pi, log_prior)
    _adds_no_axis(function, "log_pi", log_pi, kl)
    kl, log_pi_a = _actions.kept(kl, _common.taken_of_states(log_pi, a_tm1))
    if log_prior is not None and jnp.ndim(log_prior) == log_pi.ndim:
        prior = jnp.asarray(log_prior)
        log_prior = prior if prior.shape[0] == 1 else prior[:-1]
    return _States(function, v, log_pi, log_pi_a[:-1], kl[:-1], log_prior, transitions, value_coef)
