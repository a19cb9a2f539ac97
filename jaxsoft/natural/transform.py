"""Natural gradients as an Optax transformation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsoft import _checks, _trees
from jaxsoft._typing import Scalar
from jaxsoft.natural._operator import LogProbFn, Params, computing_dtype, like, linearise, product
from jaxsoft.natural.solve import Solve, SolveInfo, SolveStatus, check

if TYPE_CHECKING:
    import optax

__all__ = ["FisherState", "scale_by_fisher"]


class FisherState(NamedTuple):
    """State of `scale_by_fisher`: the report on its last solve."""

    info: SolveInfo


def scale_by_fisher(
    *,
    damping: Scalar = 1e-3,
    solver: str = "cg",
    tolerance: float | None = None,
    max_iterations: int = 100,
) -> optax.GradientTransformationExtraArgs:
    """An Optax transformation that multiplies any gradient by (F + λI)⁻¹.

    Chain it before a step size and hand the batch's log-probabilities to each update::

        optimiser = optax.chain(jaxsoft.scale_by_fisher(damping=1e-3), optax.sgd(0.1))
        updates, state = optimiser.update(grads, state, params, log_prob_fn=log_prob_fn)

    The state's `info` is the last solve's `SolveInfo`. `"gram"` needs λ > 0 here, since a gradient
    of any loss need not lie in the span of the samples: it uses
    w = (g − Ψᵀ(K + λI)⁻¹Ψg/N)/λ.

    Args:
      damping: λ; as for `natural_gradient`, like the others.
      solver: `"cg"` or `"gram"`.
      tolerance: on the residual.
      max_iterations: of conjugate gradients.

    Returns:
      A `GradientTransformationExtraArgs`, whose update takes `log_prob_fn` and, if wanted,
      `weight`.
    """
    try:
        import optax  # noqa: PLC0415 (JAX alone must do for everything else)
    except ImportError as error:
        raise ImportError(
            "scale_by_fisher: expected Optax, whose transformation it returns, to be installed. "
            "Install it: pip install optax. Or use natural_gradient, which needs JAX alone."
        ) from error
    name = "scale_by_fisher"
    check(name, damping, solver, tolerance, max_iterations)
    if solver == "gram":
        fix = "With solver='gram' use `natural_gradient`, or here solver='cg', for a damping of 0."
        _checks.scalar(name, "damping", damping, positive=fix)

    def init(params: Params) -> FisherState:
        dtype = computing_dtype(name, params)
        return FisherState(
            SolveInfo(
                residual=jnp.zeros((), dtype),
                iterations=jnp.zeros((), jnp.int32),
                status=jnp.full((), SolveStatus.CONVERGED, jnp.int32),
            )
        )

    def update(
        updates: Params,
        state: FisherState,
        params: Params | None = None,
        *,
        log_prob_fn: LogProbFn | None = None,
        weight: ArrayLike | None = None,
        **extra_args: Any,
    ) -> tuple[Params, FisherState]:
        del state, extra_args
        if params is None or log_prob_fn is None:
            missing = "params" if params is None else "log_prob_fn"
            raise _checks.fail(
                name,
                f"an update without {missing}",
                "params and log_prob_fn",
                "Call optimiser.update(grads, state, params, log_prob_fn=log_prob_fn), where "
                "log_prob_fn(params) gives log π(a_t|s_t) of the batch, [N].",
            )
        samples = linearise(name, log_prob_fn, params, weight)
        solve = Solve(samples, damping, tolerance, max_iterations)
        g = jax.tree.map(lambda x: x.astype(samples.scale.dtype), updates)
        if solver == "cg":
            w, info = solve.by_conjugate_gradients(g)
        else:
            errors = samples.push(g)
            k, beta = solve.sample_space(errors)
            spanned = samples.pull(beta)
            rows = samples.push(spanned)
            trusted = solve.agrees(rows, product(k, beta))
            w = jax.tree.map(lambda a, b: (a - b) / solve.damping, g, spanned)
            residual = solve.residual(g, w, (errors - rows) / solve.damping)
            w, info = solve.unless(trusted, w, residual, _trees.dot(g, g), lambda: g)
        return like(w, updates), FisherState(info)

    # Optax's protocol does not name the extra arguments of an update.
    update_fn: Any = update
    return optax.GradientTransformationExtraArgs(init, update_fn)
