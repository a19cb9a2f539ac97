"""The Fisher matrix as an operator: the Jacobian of a batch, as products with vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _checks
from jaxsoft.natural._gram import jacobian_gram, structured_gram

Params = Any
LogProbFn = Callable[[Params], Array]


class Samples(NamedTuple):
    """The Jacobian Ψ as products, its rows scaled so that F = pull ∘ push."""

    push: Callable[[Params], Array]  # v -> Ψv/√N, [N]
    pull: Callable[[Array], Params]  # u -> Ψᵀu/√N
    gram: Callable[[], Array]  # ΨΨᵀ/N, [N, N]
    scale: Array  # 1/√N, or √(weight/Σweight), [N]
    finite: Array  # whether every log-probability is finite
    parameters: int

    def without(self, features: Array) -> tuple[Samples, Callable[[Array], Array]]:
        """The same with features [N, K] projected out of Ψ's columns, and that projection."""
        columns = _orthonormal(self.scale[:, None] * features)

        def project(u: Array) -> Array:
            # Twice, since once leaves rounding of the size of what it takes away.
            for _ in range(2):
                u = u - product(columns, product(columns.T, u))
            return u

        rest = self._replace(
            push=lambda v: project(self.push(v)),
            pull=lambda u: self.pull(project(u)),
            gram=lambda: project(project(self.gram()).T),
        )
        return rest, project


def linearise(
    function: str,
    log_prob_fn: LogProbFn,
    params: Params,
    weight: ArrayLike | None,
    advantage: ArrayLike | None = None,
) -> Samples:
    _checks.callable_(function, "log_prob_fn", log_prob_fn, "params -> log π(a_t|s_t) [N]")
    compute = computing_dtype(function, params)
    # Vectors live in at least float32, whatever dtype the parameters are kept in: half precision
    # would end any iteration after a few steps.
    wide = jax.tree.map(lambda x: jnp.asarray(x).astype(compute), params)
    log_prob_fn, shape = _in_wide(_checked(function, log_prob_fn), wide, params)
    fix = "log_prob_fn returns log π(a_t|s_t) of the actions taken, unreduced: one per sample."
    for name, x in (("advantage", advantage), ("weight", weight)):
        if x is not None:
            _checks.same_shape(function, name, x, "log_prob_fn(params)", shape, fix)
    size = math.prod(shape)
    if size == 0:
        raise _checks.fail(
            function,
            f"shape {list(shape)}",
            "log_prob_fn(params) of at least one sample",
            "Pass one.",
        )
    if weight is None:
        scale = jnp.full(size, 1 / math.sqrt(size), compute)
    else:
        w = jnp.ravel(jnp.asarray(weight)).astype(compute)
        total = jnp.sum(w)
        scale = jnp.sqrt(w / jnp.where(total == 0, 1, total))

    def rows(p: Params) -> Array:
        log_probs = jnp.ravel(log_prob_fn(p)).astype(compute)
        # What does not count may be anything, −inf too.
        return scale * (log_probs if weight is None else jnp.where(scale == 0, 0, log_probs))

    out, push = jax.linearize(rows, wide)
    transpose = jax.linear_transpose(push, wide)

    def gram() -> Array:
        k = structured_gram(push, wide)
        return jacobian_gram(push, wide) if k is None else k

    finite, parameters = jnp.all(jnp.isfinite(out)), sum(x.size for x in jax.tree.leaves(wide))
    return Samples(push, lambda u: transpose(u)[0], gram, scale, finite, parameters)


def features(function: str, nuisance: ArrayLike, samples: Samples, shape: tuple[int, ...]) -> Array:
    """`nuisance` [*N, K], for `Samples.without`."""
    array = _checks.floating(function, "nuisance", nuisance)
    if array.ndim != len(shape) + 1 or array.shape[:-1] != shape:
        raise _checks.fail(
            function,
            f"{list(array.shape)} and {list(shape)}",
            "nuisance to hold K features of each sample of log_prob_fn(params), [N, K]",
            "A single feature is a column: x[..., None].",
        )
    rows = array.reshape(math.prod(shape), -1).astype(samples.scale.dtype)
    return jnp.where(samples.scale[:, None] == 0, 0, rows)


def _in_wide(
    log_prob_fn: LogProbFn, wide: Params, params: Params
) -> tuple[LogProbFn, tuple[int, ...]]:
    """`log_prob_fn` of parameters in the computing dtype, and its shape.

    Tangents in the dtype that the parameters are kept in would be rounded.
    """

    def narrow(p: Params) -> Array:
        return log_prob_fn(like(p, params))

    try:
        return log_prob_fn, jax.eval_shape(log_prob_fn, wide).shape
    except TypeError:  # A loop, say, whose carry has the dtype that the parameters are kept in.
        return narrow, jax.eval_shape(narrow, wide).shape


def _checked(function: str, log_prob_fn: LogProbFn) -> LogProbFn:
    def checked(p: Params) -> Array:
        out = log_prob_fn(p)
        if not hasattr(out, "dtype") or not jnp.issubdtype(out.dtype, jnp.floating):
            raise TypeError(
                _checks.sentence(
                    function,
                    str(out),
                    "log_prob_fn(params) to be one array of a floating dtype",
                    "It returns log π(a_t|s_t) of the actions taken, unreduced.",
                )
            )
        return out

    return checked


def computing_dtype(function: str, params: Params) -> np.dtype:
    leaves = jax.tree.leaves(params)
    if not leaves:
        raise _checks.fail(
            function, "a tree without arrays", "params to hold arrays", "Pass a tree that does."
        )
    arrays = [_checks.floating(function, "params", x) for x in leaves]
    return _checks.computing_dtype(jnp.result_type(*arrays))


def like(tree: Params, other: Params) -> Params:
    return jax.tree.map(lambda x, y: x.astype(jnp.asarray(y).dtype), tree, other)


def _orthonormal(x: Array) -> Array:
    """A basis of the columns of x [N, K], as columns; 0 beyond their rank."""
    if not x.shape[1]:
        return x
    norms = jnp.sqrt(jnp.sum(jnp.square(x), axis=0, keepdims=True))
    # The unit of a feature does not decide whether it counts.
    x = x / jnp.where(norms > 0, norms, 1)

    def solve(x: Array) -> Array:
        basis, values, _ = jnp.linalg.svd(x, full_matrices=False)
        least = max(x.shape) * float(jnp.finfo(x.dtype).eps) * values[0]
        # NaN is kept, and so reported.
        return jnp.where(values[None] <= least, 0, basis)

    # For the reason given in `solve`: LAPACK's calls of a batch, one after the other.
    sequentially: Any = jax.custom_batching.sequential_vmap
    basis: Array = sequentially(solve)(x)
    return basis


def product(k: Array, x: Array) -> Array:
    return jnp.matmul(k, x, precision=jax.lax.Precision.HIGHEST)
