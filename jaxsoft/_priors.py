"""Mixtures of prior measures, each weighted by its temperature."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoft import _checks

__all__ = ["mixed"]


def mixed(function: str, pairs: tuple[Any, ...]) -> tuple[Array, Array | None]:
    """(Σ τ_i, Σ τ_i log π̄_i / Σ τ_i), of pairs (τ_i, log π̄_i)."""
    taus, priors = _entered(function, pairs)
    if all(prior is None for prior in priors):
        return functools.reduce(jnp.add, taus), None
    known = [_uniform_of(function, priors) if prior is None else prior for prior in priors]
    dtype = _checks.result_dtype(*known)
    taus, known = _aligned(function, taus, known)
    tau = functools.reduce(jnp.add, taus)
    columns = [x[..., None] if x.ndim else x for x in (tau, *taus)]
    total, *weights = (x.astype(_checks.computing_dtype(dtype)) for x in columns)
    log_prior, masked = jnp.zeros_like(total), jnp.zeros_like(total, bool)
    for weight, prior in zip(weights, known, strict=True):
        share = jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), 1 / len(pairs))
        # Neither 0 · ∞, nor a derivative by τ_i of −∞ where a policy is 0.
        excluded = prior == -jnp.inf
        log_prior += share * jnp.where(excluded, 0, prior.astype(total.dtype))
        masked |= excluded & (share > 0)
    return tau, jnp.where(masked, -jnp.inf, log_prior).astype(dtype)


def _entered(function: str, pairs: tuple[Any, ...]) -> tuple[list[Array], list[Array | None]]:
    """The temperatures and the priors of `mix_priors`."""
    wrong = [x for x in pairs if not isinstance(x, (tuple, list)) or len(x) != 2]
    if wrong or not pairs:
        raise TypeError(
            _checks.sentence(
                function,
                _checks.said(wrong[0]) if wrong else "none",
                "pairs (tau, log_prior)",
                "Pass one for each divergence: mix_priors((tau, log_prior), (trust, log_pi_old)).",
            )
        )
    taus = [_checks.floating(function, "tau", tau) for tau, _ in pairs]
    priors = [
        None if prior is None else _checks.floating(function, "log_prior", prior)
        for _, prior in pairs
    ]
    return taus, priors


def _uniform_of(function: str, priors: list[Array | None]) -> Array:
    """What `None` stands for beside other priors, which tell the number of actions."""
    actions = max((x.shape[-1] for x in priors if x is not None and x.ndim), default=1)
    if actions == 1:
        raise _checks.fail(
            function,
            "None beside scalars",
            "a log_prior [..., A] that tells of how many actions None is the uniform one",
            "Pass -math.log(A) for uniform.",
        )
    return jnp.asarray(-math.log(actions))


def _aligned(
    function: str, taus: list[Array], priors: list[Array]
) -> tuple[list[Array], list[Array]]:
    """Of one rank, the temperatures without the axis of actions; scalars stay scalars."""
    states = {x.ndim for x in taus if x.ndim}
    rank = max([n + 1 for n in states] + [x.ndim for x in priors])
    shapes = [(*x.shape, 1) for x in taus if x.ndim] + [x.shape for x in priors]
    try:
        np.broadcast_shapes(*shapes)
        fits = len(states) <= 1 and (not states or states == {rank - 1})
    except ValueError:
        fits = False
    if not fits:
        raise _checks.fail(
            function,
            f"{[list(x.shape) for x in taus]} and {[list(x.shape) for x in priors]}",
            "tau [...] and log_prior [..., A] of all pairs to broadcast, each tau a scalar or with "
            "one axis per axis of the states",
            "Add batch axes in front of a log_prior, or vmap over tau.",
        )
    return taus, [x.reshape((1,) * (rank - x.ndim) + x.shape) if x.ndim else x for x in priors]
