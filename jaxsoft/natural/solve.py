"""Two solvers of (F + λI) w = g, and the natural gradient that they give."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsoft import _checks, _trees
from jaxsoft._typing import Float, Scalar
from jaxsoft.natural._operator import (
    LogProbFn,
    Params,
    Samples,
    features,
    like,
    linearise,
    product,
)

__all__ = ["SolveInfo", "SolveStatus", "natural_gradient"]


class SolveStatus(enum.IntEnum):
    """How a solve ended."""

    CONVERGED = 0
    NOT_CONVERGED = 1
    NON_FINITE = 2


class SolveInfo(NamedTuple):
    """The report on a solve; arrays, so that it crosses `jit` and `vmap`.

    Attributes:
      residual: ‖(F + λI)w − g‖ / ‖g‖ of the direction returned, with the true F.
      iterations: conjugate-gradient iterations; 0 where the Gram solution was used.
      status: a `SolveStatus`. `NOT_CONVERGED`: the residual is above the tolerance; raise
        `damping` or `max_iterations`. `NON_FINITE`: an input, a log-probability or its gradient
        was NaN or infinite, and so may be the direction.
    """

    residual: Array
    iterations: Array
    status: Array


def natural_gradient(
    log_prob_fn: LogProbFn,
    params: Params,
    advantage: Float[ArrayLike, "*N"],
    *,
    damping: Scalar = 1e-3,
    solver: str = "cg",
    weight: Float[ArrayLike, "*N"] | None = None,
    nuisance: Float[ArrayLike, "*N K"] | None = None,
    tolerance: float | None = None,
    max_iterations: int = 100,
) -> tuple[Params, SolveInfo]:
    """Damped natural policy gradient, an ascent direction.

        w = (F + λI)⁻¹ g,   F = ΨᵀΨ/N,   g = ΨᵀΔ/N                                 (66), (69)-(71)

    w minimises ½‖Ψw − Δ‖²/N + ½λ‖w‖². For the entropy-regularised g of (69) give
    Δ_t − τ(log(π/π̄)(a_t|s_t) − KL(s_t)) as `advantage`, (70).

    With nuisance features Φ it is the policy's part of the joint regression of Δ on [Ψ, Φ],

        (ΨᵀMΨ/N + λI) w = ΨᵀMΔ/N,   M = I − Φ(ΦᵀΦ)⁻¹Φᵀ

    where features of the state stand for its value: then any Δ with the mean Q^π − τℓ will do. A
    column of ones beside Σ_t log π of each episode, with returns as `advantage`, is the episodic
    natural actor-critic, w = (ΣF_t)⁻¹∇J, where the sum is not discounted.

    Args:
      log_prob_fn: parameters -> log π(a_t|s_t) of the batch's actions, [N] (any shape).
      params: a tree of floating arrays.
      advantage: Δ, of the shape of `log_prob_fn(params)`.
      damping: λ ≥ 0. With λ = 0 the Gram solution is the least-squares one of least norm.
      solver: `"cg"`, or `"gram"` for batches smaller than the parameters.
      weight: non-negative weights of the samples, 0 for those that do not count; N becomes their
        sum.
      nuisance: Φ, features of each sample that are projected out of Ψ and of Δ, [N, K]; they may
        depend on each other, and are weighted as the samples are.
      tolerance: on the residual; `None` is 7e-5 in float32 and 4e-10 in float64.
      max_iterations: of conjugate gradients.

    Returns:
      (w, info): w like `params`, and a `SolveInfo`.

    Reference: Peters and Schaal (2008), *Natural Actor-Critic*, for `nuisance`. ✎ With features
    Σγᵗ∇log π it would solve (Σγ²ᵗF_t)w = Σγ²ᵗg_t, which is not the discounted natural gradient.

    Correction: (67) multiplies w by ε once more, though (66) has put ε into w already; (71) needs
    log π_θold in its bracket.
    """
    name = "natural_gradient"
    check(name, damping, solver, tolerance, max_iterations)
    advantage = _checks.real(name, "advantage", advantage)
    samples = linearise(name, log_prob_fn, params, weight, advantage)
    errors = jnp.ravel(advantage).astype(samples.scale.dtype)
    errors = jnp.where(samples.scale == 0, 0, samples.scale * errors)
    if nuisance is not None:
        known = features(name, nuisance, samples, advantage.shape)
        samples, project = samples.without(known)
        errors = project(errors)
    solve = Solve(samples, damping, tolerance, max_iterations)
    if solver == "cg":
        w, info = solve.by_conjugate_gradients(samples.pull(errors))
    else:
        k, alpha = solve.sample_space(errors)
        w = samples.pull(alpha)
        rows = samples.push(w)
        # g − Fw = Ψᵀ(Δ − Ψw)/N: one transposition for both, and none for ‖g‖.
        residual = _trees.add(samples.pull(errors - rows), -solve.damping, w)
        square = jnp.sum(errors * product(k, errors))
        # Where K lacks what samples do to each other, it may lack all of it, and w be 0.
        rounding = len(k) * solve.epsilon * jnp.trace(k) * jnp.sum(jnp.square(errors))
        left = _trees.dot(residual, residual)
        small = left <= solve.tolerance**2 * square + rounding
        trusted = solve.agrees(rows, product(k, alpha)) & small
        w, info = solve.unless(trusted, w, residual, square, lambda: samples.pull(errors))
    return like(w, params), info


def check(
    function: str,
    damping: ArrayLike,
    solver: object,
    tolerance: float | None = None,
    max_iterations: int = 1,
) -> None:
    """Of a solve, what it is asked for."""
    if not isinstance(solver, str) or solver not in ("cg", "gram"):
        raise _checks.fail(
            function,
            _checks.said(solver),
            "solver to be 'cg' or 'gram'",
            "'gram' is exact and suits batches smaller than the parameters.",
        )
    _checks.scalar(function, "damping", damping)
    _checks.count(function, "max_iterations", max_iterations)
    if tolerance is not None:
        _checks.scalar(function, "tolerance", tolerance)


class _Best(NamedTuple):
    w: Params
    square: Array  # ‖r‖²


class _Iterate(NamedTuple):
    w: Params
    r: Params
    p: Params
    square: Array
    k: Array
    best: _Best


class Solve:
    """(F + λI) w = g for one linearised batch."""

    def __init__(
        self,
        samples: Samples,
        damping: ArrayLike,
        tolerance: float | None,
        max_iterations: int,
    ) -> None:
        dtype = samples.scale.dtype
        self.samples = samples
        self.damping = jnp.asarray(damping).astype(dtype)
        self.epsilon = float(jnp.finfo(dtype).eps)
        self.tolerance = self.epsilon**0.6 if tolerance is None else tolerance
        self.max_iterations = max_iterations

    def by_conjugate_gradients(
        self, g: Params, needed: ArrayLike = True
    ) -> tuple[Params, SolveInfo]:
        square = _trees.dot(g, g)
        w, iterations = self._iterate(g, square, jnp.asarray(needed))
        # The recurrence's own residual drifts from the true one: report the true one.
        return w, self._report(square, self.residual(g, w, self.samples.push(w)), iterations)

    def sample_space(self, errors: Array) -> tuple[Array, Array]:
        """K, and α of (K + λI)α = errors: of least norm, as far as K determines it."""
        k = self.samples.gram()
        overdetermined = k.shape[0] > self.samples.parameters
        return k, _solve_gram(k, errors, self.damping, overdetermined)

    def agrees(self, rows: Array, k_alpha: Array) -> Array:
        """Whether the true Ψ, in Ψ(Ψᵀα)/N, confirms Kα.

        K is read off the structure of the program, which supposes that samples do not mix; batch
        normalisation, say, does mix them.
        """
        return _trees.norm(rows - k_alpha) <= math.sqrt(self.epsilon) * _trees.norm(rows)

    def unless(
        self,
        trusted: Array,
        w: Params,
        residual: Params,
        square: Array,
        g: Callable[[], Params],
    ) -> tuple[Params, SolveInfo]:
        """The Gram solution `w` where its K is trusted, conjugate gradients otherwise."""
        direct = w, self._report(square, residual, jnp.zeros((), jnp.int32))
        solution: tuple[Params, SolveInfo] = jax.lax.cond(
            trusted, lambda: direct, lambda: self.by_conjugate_gradients(g(), ~trusted)
        )
        return solution

    def residual(self, g: Params, w: Params, rows: Array) -> Params:
        """What is left of g: g − (F + λI)w, `rows` being Ψw/√N."""
        f_w = self.samples.pull(rows)
        return jax.tree.map(lambda b, f, x: b - f - self.damping * x, g, f_w, w)

    def _iterate(self, g: Params, square: Array, needed: Array) -> tuple[Params, Array]:
        goal = self.tolerance**2 * square

        def unfinished(state: _Iterate) -> Array:
            finite = jnp.isfinite(state.square)
            return needed & finite & (state.square > goal) & (state.k < self.max_iterations)

        def step(state: _Iterate) -> _Iterate:
            p = state.p
            a_p = _trees.add(self.samples.pull(self.samples.push(p)), self.damping, p)
            length = state.square / _trees.dot(p, a_p)
            w, r = _trees.add(state.w, length, p), _trees.add(state.r, -length, a_p)
            square = _trees.dot(r, r)
            # Rounding can make the iterates run away: the best one is what is returned.
            better = square < state.best.square
            best = jax.tree.map(partial(jnp.where, better), _Best(w, square), state.best)
            p = _trees.add(r, square / state.square, p)
            return _Iterate(w, r, p, square, state.k + 1, best)

        best = _Best(_zeros(g), square)
        start = _Iterate(best.w, g, g, square, jnp.zeros((), jnp.int32), best)
        end = jax.lax.while_loop(unfinished, step, start)
        return end.best.w, end.k

    def _report(self, g_square: Array, residual: Params, iterations: Array) -> SolveInfo:
        size = jnp.sqrt(jnp.maximum(g_square, 0))
        relative = jnp.sqrt(_trees.dot(residual, residual)) / jnp.where(size > 0, size, 1)
        finite = self.samples.finite & jnp.isfinite(size) & jnp.isfinite(relative)
        status = jnp.where(
            finite,
            jnp.where(relative <= self.tolerance, SolveStatus.CONVERGED, SolveStatus.NOT_CONVERGED),
            SolveStatus.NON_FINITE,
        )
        return SolveInfo(relative, iterations, status.astype(jnp.int32))


def _solve_gram(k: Array, errors: Array, damping: Array, overdetermined: bool) -> Array:
    """α of (K + λI)α = errors: of least norm, as far as K determines it."""
    size, epsilon = k.shape[0], float(jnp.finfo(k.dtype).eps)

    def by_eigenvalues(k: Array, errors: Array, damping: Array) -> Array:
        values, vectors = jnp.linalg.eigh(k)
        # Beyond the rank of Ψ there is only rounding, and nothing that Ψᵀα would see.
        kept = values > size * epsilon * values[-1]
        along = product(vectors.T, errors) / jnp.where(kept, values + damping, 1)
        return product(vectors, jnp.where(kept, along, 0))

    def solve(k: Array, errors: Array, damping: Array) -> Array:
        # More samples than parameters, or equal samples, leave errors outside the range of K,
        # which a small λ alone would blow up until rounding swamps the rest.
        if overdetermined:
            return by_eigenvalues(k, errors, damping)
        well_damped = _well_damped(k, damping)
        alpha: Array = jax.lax.cond(well_damped, _by_cholesky, by_eigenvalues, k, errors, damping)
        return alpha

    # LAPACK's calls for a batch of matrices wait for threads of the pool that they run on: two at
    # once on two cores deadlock (jaxlib 0.10.2). One after the other, each also takes only one of
    # the two branches.
    sequentially: Any = jax.custom_batching.sequential_vmap
    alpha: Array = jax.lax.platform_dependent(
        k,
        errors,
        damping,
        tpu=partial(_without_eigenvalues, overdetermined),
        default=sequentially(solve),
    )
    return alpha


def _without_eigenvalues(overdetermined: bool, k: Array, errors: Array, damping: Array) -> Array:
    """NaN where they would be wanted, which leaves the solve to conjugate gradients.

    Of thousands of samples they take a TPU's compiler many times as long as all else does.
    """
    if overdetermined:
        return jnp.full_like(errors, jnp.nan)
    return jnp.where(_well_damped(k, damping), _by_cholesky(k, errors, damping), jnp.nan)


def _well_damped(k: Array, damping: Array) -> Array:
    return jnp.greater(damping, float(jnp.finfo(k.dtype).eps) ** 0.6 * jnp.trace(k))


def _by_cholesky(k: Array, errors: Array, damping: Array) -> Array:
    factor = jax.scipy.linalg.cho_factor(k + damping * jnp.eye(len(k), dtype=k.dtype))
    alpha = jax.scipy.linalg.cho_solve(factor, errors)
    left = errors - product(k, alpha) - damping * alpha
    return jnp.add(alpha, jax.scipy.linalg.cho_solve(factor, left))


def _zeros(tree: Params) -> Params:
    return jax.tree.map(jnp.zeros_like, tree)
