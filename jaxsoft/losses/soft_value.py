"""Losses whose minimum is a soft value, and the temperature of a given divergence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _checks
from jaxsoft._typing import Float, Scalar
from jaxsoft.losses import _common

__all__ = ["soft_value_loss", "temperature_loss"]


def soft_value_loss(
    v_tm1: Float[ArrayLike, "T *#B"],
    q_a_tm1: Float[ArrayLike, "T *#B"],
    *,
    tau: Float[ArrayLike, "T *#B"] | Scalar,
    log_weight: Float[ArrayLike, "T *#B"] | Scalar = 0.0,
    max_exponent: Scalar = 10.0,
) -> Float[Array, "T *B"]:
    """Soft state values from single actions, without a logarithm of a mean.

        L_t = τ² (ρ e^z − z − 1),   z = (Q(s_t,a_t) − V(s_t))/τ,   a_t ∼ μ,   ρ = π̄/μ

    Its gradient by V is τ(1 − ρe^z), unbiased, and 0 in expectation at `soft_value` alone. At ρ = 1
    it is ½(Q − V)² as τ → ∞. With actions of a data set π̄ is the policy that collected them, and
    nothing else need be known of it.

    Where log ρ + z exceeds c = `max_exponent`, ρe^z goes on linearly, and the gradient no further:
    at τ = 0.1 a residual of 6 would weigh e⁶⁰. That biases V down, but for actions alone that μ
    takes less often than e^−c: at the soft value no other has ρe^z > e^c.

    Args:
      v_tm1: state values [T, ...].
      q_a_tm1: values of the actions, held fixed, [T, ...].
      tau: temperature τ > 0, a scalar or [T, ...].
      log_weight: log ρ, held fixed, [T, ...] or a scalar; `0.0` for actions drawn from the prior.
      max_exponent: c ≥ 0, held fixed; infinity for an unbiased gradient of unbounded variance.

    Returns:
      [T, ...]. Where log ρ is not 0 it may be negative.

    Reference: Garg et al. (2023), *Extreme Q-Learning*, for μ = π̄.
    """
    name = "soft_value_loss"
    _checks.arguments(name, v_tm1=v_tm1, q_a_tm1=q_a_tm1, tau=tau, log_weight=log_weight)
    # Smaller ones are 0 to a processor that flushes them.
    if _checks.concrete(tau) and np.any(np.asarray(tau) < np.finfo(np.float32).tiny):
        raise _checks.fail(
            name,
            f"{np.min(np.asarray(tau))}",
            "tau > 0, and no less than a normal float32",
            "At 0 it is no loss: take the maximum itself, soft_value(q, 0.0).",
        )
    most = _checks.scalar(name, "max_exponent", max_exponent)
    args = _checks.sequences(
        name,
        v_tm1=v_tm1,
        q_a_tm1=_common.fixed(name, "q_a_tm1", q_a_tm1),
        tau=tau,
        log_weight=_common.fixed(name, "log_weight", log_weight),
    )
    v, q, temperature, log_weight = args.arrays
    z = (q - v) / temperature
    # In e^w − 1 − w, w = z + log ρ, nothing is lost near 0; it lacks log ρ.
    is_none = log_weight == -jnp.inf
    w = jnp.where(is_none, 0, z + log_weight)
    excess = _beyond_linear(w, jax.lax.stop_gradient(most.astype(w.dtype))) + log_weight
    # Not τ² first, which may be 0 where z is large.
    loss = temperature * (temperature * jnp.where(is_none, -1 - z, excess))
    return loss.astype(args.dtype)


@jax.custom_jvp
def _beyond_linear(w: Array, most: Array) -> Array:
    """e^w − 1 − w, in which e^w goes on linearly from `most`."""
    x = jnp.minimum(w, most)
    series = jnp.ones_like(x)
    for k in range(16, 2, -1):
        series = 1 + x / k * series
    value = jnp.where(jnp.abs(x) < 0.5, 0.5 * x * x * series, jnp.expm1(x) - x)
    return value + jnp.where(w > most, jnp.expm1(most) * (w - most), 0)


@_beyond_linear.defjvp
def _beyond_linear_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    w, most = primals
    return _beyond_linear(w, most), jnp.expm1(jnp.minimum(w, most)) * tangents[0]


def temperature_loss(
    tau: Float[ArrayLike, "*#B"], kl: Float[ArrayLike, "*#B"], target_kl: Float[ArrayLike, "*#B"]
) -> Float[Array, "*B"]:
    """The dual of a target divergence: τ rises while KL exceeds it, and falls below.

        L(τ) = τ (κ − KL[π‖π̄])

    For the Boltzmann policy of a Q held fixed it has the gradient of V_Q + τκ, which is convex in
    τ; the minimum is the solution of max_π E_π Q subject to KL ≤ κ. With a normalised prior a τ > 0
    is that only for 0 < κ < −log π̄(best actions): with masks, in each state. A target entropy H̄ is
    `log_prior=0.0` in the KL and κ = −H̄. With τ = exp(x) a step in x is one in τ, scaled by τ.

    Args:
      tau: temperature τ ≥ 0, what is learned: a scalar or [...].
      kl: KL[π‖π̄], or log-ratios of sampled actions, held fixed, [...] or a scalar.
      target_kl: κ, held fixed, a scalar or [...].

    Returns:
      [...].

    Reference: Haarnoja et al. (2018), *Soft Actor-Critic Algorithms and Applications*, in terms of
    the entropy.
    """
    name = "temperature_loss"
    args = _checks.elementwise(
        name,
        tau=tau,
        kl=_common.fixed(name, "kl", kl),
        target_kl=_common.fixed(name, "target_kl", target_kl),
    )
    temperature, kl, target = args.arrays
    return (temperature * (target - kl)).astype(args.dtype)
