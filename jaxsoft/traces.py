"""Eligibility traces: what `trace_targets` does, for a stream of single transitions.

    e = zeros like the parameters; at each step
    e = jaxsoft.traces.update(e, gradient, discount, coefficient)
    parameters += α δ e,   δ = r + γV(s') − Q(s,a)

With Q held over an episode, the steps add up to Σ α (y_t − Q(s_t,a_t)) ∇Q(s_t,a_t), y of
`trace_targets`; with Q changing on the way they differ by O(α²).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoft import _checks
from jaxsoft._typing import Scalar

__all__ = ["update"]


def update(trace: Any, gradient: Any, discount: Scalar, coefficient: Scalar) -> Any:
    """The trace of one more transition.

        e_t = γ_{t−1→t} c_t e_{t−1} + ∇Q(s_t,a_t)

    Both factors are easily one off: the discount is that of the transition *into* s_t, and the
    coefficient that of the action taken *at* s_t. Where an episode was cut before s_t, by an end of
    any kind, pass discount 0: a trace goes no further than sums do.

    Args:
      trace: e_{t−1}, a tree of arrays; zeros before the first step.
      gradient: ∇Q(s_t,a_t), or of V or log π, a tree of the same shapes.
      discount: γ of the transition from s_{t−1} to s_t; 0 after a termination or a cut.
      coefficient: c_t of the action taken at s_t, of `tree_backup_coefficients`, say.

    Returns:
      e_t, a tree of the same. For several streams use `vmap`.
    """
    name = "traces.update"
    decay = _checks.scalar(name, "discount", discount) * _checks.scalar(
        name, "coefficient", coefficient
    )
    given = [jax.tree.map(jnp.shape, x) for x in (trace, gradient)]
    if given[0] != given[1]:
        raise _checks.fail(
            name,
            f"{given[0]} and {given[1]}",
            "trace and gradient to be trees of the same shapes",
            "Begin with zeros: jax.tree.map(jnp.zeros_like, params).",
        )

    def one(e: Array, g: Array) -> Array:
        return (jnp.asarray(decay, jnp.result_type(e)) * e + g).astype(jnp.result_type(e))

    return jax.tree.map(one, trace, gradient)
