"""Stein variational steps: particles that move to a Boltzmann policy of continuous actions."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _checks
from jaxsoft._typing import Float, Scalar

__all__ = ["stein_direction"]


def stein_direction(
    at: Float[ArrayLike, "*#B M D"],
    particles: Float[ArrayLike, "*#B N D"],
    score: Float[ArrayLike, "*#B N D"],
    *,
    bandwidth: Scalar | None = None,
) -> Float[Array, "*B M D"]:
    """The direction in which moving points lowers their divergence from a density fastest.

        φ(x) = E_i[k(u_i, x) s_i + ∇_{u_i} k(u_i, x)],   k(u, x) = exp(−‖u − x‖²/(2h²))

    With s = ∇ log of the target, d KL/dε = −‖φ‖² in the kernel's space of functions for u + εφ(u),
    and φ = 0 where the particles are the target's. A sampler u = f(state, noise) learns by the loss
    −⟨φ(u), u⟩ with φ held fixed; one particle ascends the target's density.

    Points of a box are actions before the squash, and the score has the log-determinant in it, so
    that the fixed point is e^{Q/τ} relative to the uniform distribution on the box:

        def log_target(u):
            return q_fn(jnp.tanh(u)) / tau + jnp.sum(2 * (jnp.log(2) - jnp.logaddexp(u, -u)))

    Args:
      at: points to move [..., M, D].
      particles: of the distribution that moves [..., N, D]. Draw them apart from `at`: a point's
        own kernel would bias the mean.
      score: ∇(Q/τ + log π̄) at the particles, of the shape of `particles`.
      bandwidth: h > 0, in the unit of the points. `None` is 2h² = m/log(N + 1), m the median
        squared distance of `at` from `particles` in each batch entry, with which a particle's
        own kernel about balances the others.

    Returns:
      φ [..., M, D], in the dtype of its arguments. Nothing is held fixed.

    Reference: Liu and Wang (2016), *Stein Variational Gradient Descent*, (8); Haarnoja et al.
    (2017), *Reinforcement Learning with Deep Energy-Based Policies*, (9). Correction: published
    code adds the log-determinant of u and moves in a = tanh u; its fixed point is e^{Q/τ}(1 − a²).
    """
    name = "stein_direction"
    args = _checks.vectors(name, per_set=True, at=at, particles=particles, score=score)
    at, particles, score = args.arrays
    _checks.same_shape(name, "score", score, "particles", particles.shape)
    if not particles.shape[-2]:
        raise _checks.fail(
            name, str(list(particles.shape)), "particles to be at least one", "Draw some."
        )
    difference = at[..., :, None, :] - particles[..., None, :, :]
    if bandwidth is None:
        h = _median_rule(difference)
    else:
        positive = "Pass a length such as 0.5, or None for one from the median distance."
        h = _checks.scalar(name, "bandwidth", bandwidth, positive=positive).astype(at.dtype)
        # What underflows is still a length.
        h = jnp.maximum(h, jnp.finfo(h.dtype).tiny)
    scaled = difference / h
    kernel = jnp.exp(-0.5 * jnp.sum(jnp.square(scaled), axis=-1, keepdims=True))
    slope = jnp.where(kernel > 0, scaled / h, 0)
    terms = kernel * (score[..., None, :, :] + slope)
    return jnp.mean(terms, axis=-2).astype(args.dtype)


def _median_rule(difference: Array) -> Array:
    """Bandwidths [..., 1, 1, 1] of points' differences [..., M, N, D] from N particles."""
    if not difference.size:
        return jnp.ones((1,) * difference.ndim, difference.dtype)
    square = jnp.sum(jnp.square(difference), axis=-1, keepdims=True)
    middle = jnp.median(square, axis=(-3, -2), keepdims=True)
    # Where all distances are 0, the kernel is 1 whatever its bandwidth.
    return jnp.sqrt(jnp.where(middle > 0, middle, 1) / (2 * math.log(difference.shape[-2] + 1)))
