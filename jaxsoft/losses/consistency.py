"""The squared error of path consistency, whose target is differentiated."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _checks, returns
from jaxsoft._typing import Float, Integer, Scalar, Shaped
from jaxsoft.losses import _common

__all__ = ["path_consistency_loss"]


def path_consistency_loss(
    v_tm1: Float[ArrayLike, "T *#B"],
    log_pi_tm1: Float[ArrayLike, "T *#B A"],
    a_tm1: Integer[ArrayLike, "T *#B"],
    *,
    r_t: Float[ArrayLike, "T *#B"],
    discount_t: Float[ArrayLike, "T *#B"] | Scalar,
    v_t: Float[ArrayLike, "T *#B"],
    tau: Float[ArrayLike, "T *#B"] | Scalar,
    n: int,
    log_prior: Float[ArrayLike, "..."] | None = None,
    cut_t: Shaped[ArrayLike, "T *#B"] | None = None,
) -> Float[Array, "T *B"]:
    """Path consistency learning: the squared n-step consistency error, differentiated in full.

        L_t = ½ (Σ_{d<n} γ^d (r − τ log(π/π̄)(a|s))_{t+d} + γ^n V(s_{t+n}) − V(s_t))²         (90)

    The gradient goes into every V and log π on the path (Bellman residual minimisation): pass
    `v_t` of the same network. Any actions will do, including another policy's. Paths end
    at cuts and at the end of the rollout, where they are shorter.

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
    log_pi_a = _common.take(name, "log_pi_tm1", log_pi_tm1, a_tm1)
    log_ratio = _common.log_ratio(name, log_pi_a, log_pi_tm1, a_tm1, log_prior)
    _checks.arguments(
        name,
        v_tm1=v_tm1,
        a_tm1=a_tm1,
        r_t=r_t,
        discount_t=discount_t,
        v_t=v_t,
        tau=tau,
        n=n,
        cut_t=cut_t,
    )
    errors = returns.td_errors(v_tm1, r_t, discount_t, v_t=v_t, kl_tm1=log_ratio, tau=tau)
    return 0.5 * jnp.square(returns.n_step_advantages(errors, discount_t, n=n, cut_t=cut_t))
