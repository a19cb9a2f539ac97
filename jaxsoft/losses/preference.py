"""Losses of whole sequences that were compared."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _checks
from jaxsoft._typing import Float

__all__ = ["preference_loss"]


def preference_loss(
    log_ratio_chosen: Float[ArrayLike, "T *#B"],
    log_ratio_rejected: Float[ArrayLike, "S *#B"],
    *,
    tau: Float[ArrayLike, "*#B"],
) -> Float[Array, "*B"]:
    """Direct preference optimisation: the policy's own log-ratios as rewards that explain a choice.

        L = −log σ(τ (Σ_t ℓ_t⁺ − Σ_t ℓ_t⁻)),   ℓ = log(π/π̄) of the tokens

    At the soft optimum of a reward R of whole sequences R = V(prompt) + τ Σ_t ℓ_t, and V cancels:
    where choices follow σ(R⁺ − R⁻) the loss is stationary there.

    Args:
      log_ratio_chosen: ℓ of the tokens of the sequence that was preferred [T, ...]; 0 where it has
        ended, and for tokens that are not the policy's.
      log_ratio_rejected: the same of the other [S, ...], which need not be as long.
      tau: temperature τ ≥ 0, a scalar or [...].

    Returns:
      [...], without the axis of tokens.

    Reference: Rafailov et al. (2023), *Direct Preference Optimization*, whose β is τ.
    """
    name = "preference_loss"
    chosen = _checks.sequences(name, log_ratio_chosen=log_ratio_chosen)
    rejected = _checks.sequences(name, log_ratio_rejected=log_ratio_rejected)
    args = _checks.elementwise(
        name,
        log_ratio_chosen=jnp.sum(chosen.arrays[0], axis=0),
        log_ratio_rejected=jnp.sum(rejected.arrays[0], axis=0),
        tau=tau,
    )
    better, worse, temperature = args.arrays
    dtype = jnp.promote_types(chosen.dtype, rejected.dtype)
    return jax.nn.softplus(temperature * (worse - better)).astype(dtype)
