"""Squashed Gaussians: policies of continuous actions in a box, and their log-ratio to the prior.

A policy draws u ∼ N(mean, exp(log_std)²) and acts by a = loc + scale · tanh u. Everything is said
of u. Densities depend on the unit of the action, and their ratio to a base density does not: π̄ is
the uniform distribution on the box, of which the density in u is Π (1 − tanh²u)/2. So ℓ = log π/π̄
is the same for every box, and takes the place that log π has elsewhere: the entropy H̄ of a box
(−1, 1)^d is the divergence d log 2 − H̄, and the usual target H̄ = −d is `target_kl` = d(1 + log 2).

Keep u beside a transition, not a, where ℓ will be asked for again: in float32 atanh(tanh u) has
lost three digits at u = 6, and is infinite at 10.

Reference: Haarnoja et al. (2018), *Soft Actor-Critic*, appendix C. ✎ There the penalty is the
entropy of densities on (−1, 1)^d; the prior here is its base measure made a distribution.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _checks
from jaxsoft._typing import Float, Key

__all__ = ["action", "log_ratio", "sample"]


def log_ratio(
    u: Float[ArrayLike, "*#B D"],
    mean: Float[ArrayLike, "*#B D"],
    log_std: Float[ArrayLike, "*#B D"],
) -> Float[Array, "*B"]:
    """Log-ratio of a squashed Gaussian to the uniform distribution on its box.

        ℓ(u) = Σ_d log N(u_d; mean_d, exp(log_std_d)²) − log(1 − tanh²u_d) + log 2

    Exact in single precision at any u, since it is not computed by way of tanh. Its mean under the
    policy is KL[π‖π̄]; `Q − τℓ` is one draw of the policy's soft value, and all of them are V_Q
    where π is the Boltzmann policy. All three arguments are differentiated: holding `mean` and
    `log_std` fixed, and not `u`, leaves the path alone.

        log_ratio = squashed.log_ratio(u, mean, log_std)
        actor_loss = tau * log_ratio - q_fn(squashed.action(u, low, high))

    Args:
      u: the action before the squash [..., D].
      mean: of the Gaussian [..., D].
      log_std: logarithm of its standard deviation [..., D].

    Returns:
      [...], in the dtype of its arguments.
    """
    args = _checks.vectors("squashed.log_ratio", u=u, mean=mean, log_std=log_std)
    u, mean, log_std = args.arrays
    log_normal = -0.5 * jnp.square((u - mean) * jnp.exp(-log_std)) - log_std
    # log(1 − tanh²u) is 2 log 2 − 2 log(eᵘ + e⁻ᵘ).
    log_slope = -2 * jnp.logaddexp(u, -u)
    constant = 0.5 * math.log(2 * math.pi) + math.log(2)
    return jnp.sum(log_normal - log_slope - constant, axis=-1).astype(args.dtype)


def sample(
    key: Key[Array, "*#B"],
    mean: Float[ArrayLike, "*#B D"],
    log_std: Float[ArrayLike, "*#B D"],
) -> Float[Array, "*B D"]:
    """Draws of a Gaussian, one per state: actions before the squash.

        u = mean + exp(log_std) ε,   ε ∼ N(0, 1)

    Differentiable in `mean` and `log_std`, for the reparametrised gradient.

    Args:
      key: a JAX random key, used once; or one per state, [...].
      mean: of the Gaussian [..., D].
      log_std: logarithm of its standard deviation [..., D].

    Returns:
      u [..., D], in the dtype of its arguments.
    """
    name = "squashed.sample"
    args = _checks.vectors(name, mean=mean, log_std=log_std)
    mean, log_std = args.arrays
    key = _checks.keys(name, "key", key)
    if key.shape not in ((), args.shape[:-1]):
        raise _checks.fail(
            name,
            f"{list(key.shape)} and {list(args.shape)}",
            "key to be one key, or one per state of mean, without its last axis",
            "Split it: jax.random.split(key, mean.shape[:-1]).",
        )
    shape = args.shape[key.ndim :]

    def draw(key: Array) -> Array:
        return jax.random.normal(key, shape, mean.dtype)

    for _ in key.shape:
        draw = jax.vmap(draw)
    return (mean + jnp.exp(log_std) * draw(key)).astype(args.dtype)


def action(
    u: Float[ArrayLike, "*B D"], low: Float[ArrayLike, "..."], high: Float[ArrayLike, "..."]
) -> Float[Array, "*B D"]:
    """The action in the box that is meant by u; of the policy's mean, the one to act greedily by.

        a = (low + high)/2 + (high − low)/2 · tanh u

    Args:
      u: [..., D].
      low: the least action, a scalar or [D].
      high: the greatest action, a scalar or [D].

    Returns:
      [..., D], in the dtype of `u`, and never outside the box.
    """
    name = "squashed.action"
    u = _checks.floating(name, "u", u)
    args = _checks.vectors(name, u=u)
    (inner,) = args.arrays
    least, most = (_bound(name, key, x, inner) for key, x in (("low", low), ("high", high)))
    if _checks.concrete(low) and _checks.concrete(high) and not np.all(np.less(low, high)):
        raise _checks.fail(
            name, f"{low} and {high}", "low and high with low < high", "Exchange them."
        )
    middle, scale = 0.5 * (least + most), 0.5 * (most - least)
    # Rounding may pass an end of the box.
    return jnp.clip(middle + scale * jnp.tanh(inner), least, most).astype(args.dtype)


def _bound(function: str, name: str, x: ArrayLike, u: Array) -> Array:
    bound = _checks.floating(function, name, x)
    if bound.shape not in ((), u.shape[-1:]):
        raise _checks.fail(
            function,
            f"{list(bound.shape)} and {list(u.shape)}",
            f"{name} to be a scalar, or to hold one number per dimension of u [..., D]",
            "Use vmap for several boxes.",
        )
    return jnp.broadcast_to(bound.astype(u.dtype), (1,) * (u.ndim - 1) + u.shape[-1:])
