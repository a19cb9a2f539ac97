"""Gram matrices of per-sample gradients, read off the linearised function.

The tangent map dθ -> Ψ dθ [N] is a straight-line linear program, in which every parameter meets
the data in one of a few ways (a product, a convolution, a broadcast, a look-up), here a *use*:

    dθ ── prelude ──> v_u ── use u of the data x_u ──> z_u ── tail ──> Ψ dθ

If sample i depends on row i of each z_u alone, one transposition of the tail at a cotangent of
ones gives δ_u = ∂(Ψ dθ)/∂z_u of all samples together. A weight that is used once then has the
gradients ψ_i = Σ_s x_is ⊗ δ_is, over the places s where sample i uses it, and their products

    K_ij = Σ_s Σ_t (x_is · x_jt) (δ_is · δ_jt)

need none of the gradients (the case of one place: Goodfellow, arXiv:1510.01799).
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxsoft import _convolution
from jaxsoft._jax import (
    CALLS,
    CUSTOM_CALLS,
    Jaxpr,
    JaxprEqn,
    Literal,
    Var,
    evaluate,
    has_programs,
    interpret,
    read,
    run,
    struct,
)

Params = Any

# In TF32, the GPU's default, K would be indefinite by more than any small damping.
_einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)

# Custom calls are of constants: linearize dissolves the others.
_CALLS = CALLS | CUSTOM_CALLS
_LOOPS = {"scan", "while", "cond"}
_ELEMENTWISE = {"add", "sub", "mul", "div"}  # those that broadcast axes of size one
_ISOMETRIES = {"reshape", "transpose", "squeeze", "broadcast_in_dim"}
_ISOMETRIES |= {"convert_element_type", "copy", "neg", "rev"}


class _UnrecognisedError(Exception):
    pass


class _Use(NamedTuple):
    """out = eqn(view, data), and the axes of `out` and of `data` along which the samples lie."""

    eqn: JaxprEqn
    view: Var
    data: Var | Literal | None
    rows: tuple[int, ...]
    data_rows: tuple[int, ...]

    @property
    def out(self) -> Var:
        return self.eqn.outvars[0]


class _Program(NamedTuple):
    """The equations by their place, and what the variables upstream of the uses are made of."""

    constant: list[JaxprEqn]
    prelude: list[JaxprEqn]
    uses: list[_Use]
    tail: list[JaxprEqn]
    leaves: dict[Var, frozenset[int]]
    isometric: set[Var]  # those that are one leaf, but for a shuffle of its entries


def structured_gram(lin: Callable[[Params], Array], params: Params) -> Array | None:
    """K = ΨΨᵀ [N, N] of samples that do not interact, at the cost of about one gradient.

    The independence of the samples is supposed, **not proven**. Batch normalisation, say, makes
    each row of the output depend on all rows of the data, and K is then silently wrong: verify
    what you derive from it with `lin` itself, and fall back on `jacobian_gram`.

    Args:
      lin: Ψ, as `jax.linearize(f, params)` returns it. Its output may have any shape; raveled, it
        is the N samples.
      params: a tree like the tangents.

    Returns:
      K, or `None`, at trace time, where the structure of the program is not recognised: for one,
      where a parameter enters a scan.
    """
    leaves, treedef = jax.tree.flatten(params)

    def flat(*leaves: Array) -> Array:
        return jnp.ravel(lin(jax.tree.unflatten(treedef, leaves)))

    nested = jax.make_jaxpr(flat)(*leaves)

    def inline(*leaves: Array) -> list[Array]:
        return interpret(nested, leaves, _plain, lift=lambda constant: constant, enter=_CALLS)

    try:
        closed = jax.make_jaxpr(inline)(*leaves)
        program = _analyse(closed.jaxpr)
    except _UnrecognisedError:
        return None
    uses, consts = program.uses, zip(closed.jaxpr.constvars, closed.consts, strict=True)
    env = run(program.constant, dict(consts))

    def tail(meetings: list[Array]) -> Array:
        zs = {use.out: z for use, z in zip(uses, meetings, strict=True)}
        return read(run(program.tail, env | zs), closed.jaxpr.outvars[0])

    out = struct(closed.jaxpr.outvars[0])
    transpose = jax.linear_transpose(tail, [struct(use.out) for use in uses])
    [deltas] = transpose(jnp.ones(out.shape, out.dtype))
    dtype = jnp.promote_types(out.dtype, jnp.float32)
    gram = jnp.zeros((out.size, out.size), dtype)
    # Between several uses of a leaf there are cross terms: only their gradients' sum will do.
    count = Counter(leaf for use in uses for leaf in program.leaves[use.view])
    summed: dict[Var, Array] = {}
    for use, delta in zip(uses, deltas, strict=True):
        x = None if use.data is None else read(env, use.data)
        alone = all(count[leaf] == 1 for leaf in program.leaves[use.view])
        if alone and use.view in program.isometric:
            gram += _use_gram(use, x, delta.astype(dtype))
        else:
            gradients = _use_gradients(use, x, delta.astype(dtype))
            summed[use.view] = summed[use.view] + gradients if use.view in summed else gradients
    if not summed:
        return gram

    indices = frozenset[int]().union(*(program.leaves[view] for view in summed))
    variables = [closed.jaxpr.invars[index] for index in sorted(indices)]
    eqns = [eqn for eqn in program.prelude if program.leaves[eqn.outvars[0]] <= indices]

    def prelude(*leaves: Array) -> list[Array]:
        ran = run(eqns, env | dict(zip(variables, leaves, strict=True)))
        return [ran[view] for view in summed]

    pull = jax.linear_transpose(prelude, *map(struct, variables))
    rows = [gradients.astype(struct(view).dtype) for view, gradients in summed.items()]
    return gram + _rows_gram(jax.vmap(pull)(rows), dtype)


def jacobian_gram(lin: Callable[[Params], Array], params: Params) -> Array:
    """K = ΨΨᵀ [N, N] of any linear `lin`, at the cost and of the size of N gradients.

    Args:
      lin: Ψ, as for `structured_gram`.
      params: a tree like the tangents.
    """
    out = jax.eval_shape(lin, params)
    cotangents = jnp.eye(out.size, dtype=out.dtype).reshape(out.size, *out.shape)
    jacobian = lax.map(jax.linear_transpose(lin, params), cotangents, batch_size=8)
    return _rows_gram(jacobian, jnp.promote_types(out.dtype, jnp.float32))


def _analyse(jaxpr: Jaxpr) -> _Program:
    """Sort the equations of a linear program [leaves] -> [N] without calls."""
    [out] = jaxpr.outvars
    leaves = {var: frozenset({index}) for index, var in enumerate(jaxpr.invars)}
    program = _Program([], [], [], [], leaves, set(jaxpr.invars))
    downstream = set[Any]()
    for eqn in jaxpr.eqns:
        variables = [atom for atom in eqn.invars if isinstance(atom, Var)]
        views = [var for var in variables if var in leaves]
        if not downstream.isdisjoint(variables):
            if views:
                raise _UnrecognisedError
            program.tail.append(eqn)
            downstream.update(eqn.outvars)
        elif not views:
            program.constant.append(eqn)
        elif len(views) == 1 and (use := _match(eqn, views[0], struct(out).size)):
            program.uses.append(use)
            downstream.add(use.out)
        elif eqn.primitive.name in _LOOPS:
            raise _UnrecognisedError
        else:
            program.prelude.append(eqn)
            made_of = frozenset[int]().union(*(leaves[view] for view in views))
            leaves.update(dict.fromkeys(eqn.outvars, made_of))
            same_size = struct(eqn.outvars[0]).size == struct(views[0]).size
            if eqn.primitive.name in _ISOMETRIES and same_size and views[0] in program.isometric:
                program.isometric.update(eqn.outvars)
    if out not in downstream:
        raise _UnrecognisedError
    return program


def _match(eqn: JaxprEqn, view: Var, size: int) -> _Use | None:
    """The use of `view` that `eqn` is, if its output has got `size` samples from the data."""
    params, shape, side = eqn.params, struct(eqn.outvars[0]).shape, eqn.invars.index(view)
    match eqn.primitive.name:  # pairs: axes of the output, and the axes of the data they stem from
        case "dot_general":
            free, start = _dot_axes(eqn)
            pairs = [(start[1 - side] + i, axis) for i, axis in enumerate(free[1 - side])]
        case "conv_general_dilated" | _convolution.NAME if (
            side == 1 and params["batch_group_count"] == 1
        ):
            numbers = params["dimension_numbers"]
            if len(shape) > len(numbers.out_spec):  # a loop over batches of both
                raise _UnrecognisedError
            pairs = [(numbers.out_spec[0], numbers.lhs_spec[0])]
        case "broadcast_in_dim":
            old = dict(zip(params["broadcast_dimensions"], struct(view).shape, strict=True))
            pairs = [(axis, axis) for axis, n in enumerate(shape) if old.get(axis) != n]
        case "gather" if side == 0:
            numbers = params["dimension_numbers"]
            axes = enumerate(_rest(len(shape), numbers.offset_dims))
            pairs = [(a, i) for i, a in axes if i not in numbers.start_indices_batching_dims]
        case _:
            return None
    # [T, B, ...] and [N, ...]; failing these, wherever `vmap` has put them.
    candidates = [pairs[:n] for n in range(len(pairs) + 1)]
    single = [[pair] for pair in pairs if shape[pair[0]] == size]
    for chosen in candidates + (single if len(single) == 1 else []):
        if math.prod(shape[axis] for axis, _ in chosen) == size:
            data = eqn.invars[1 - side] if len(eqn.invars) == 2 else None
            return _Use(eqn, view, data, tuple(a for a, _ in chosen), tuple(b for _, b in chosen))
    return None


def _use_gram(use: _Use, x: Array | None, delta: Array) -> Array:
    """Products [N, N] of the gradients for `use.view`, in whichever layout."""
    params = use.eqn.params
    match use.eqn.primitive.name:
        case "dot_general" if x is not None:
            (free, start), side = _dot_axes(use.eqn), use.eqn.invars.index(use.view)
            contract, batch = (axes[1 - side] for axes in params["dimension_numbers"])
            blocks, own = range(len(batch)), range(start[side], start[side] + len(free[side]))
            places = _rest(x.ndim, batch, use.data_rows, contract)
            x = _merge(x, batch, use.data_rows, places, contract)
            places = _rest(delta.ndim, blocks, use.rows, own)
            delta = _merge(delta, blocks, use.rows, places, own)
            return _outer_gram(x.astype(delta.dtype), delta)
        case "conv_general_dilated" | _convolution.NAME if (
            x is not None and params["feature_group_count"] == 1
        ):
            out = params["dimension_numbers"].out_spec
            window = [struct(use.view).shape[i] for i in params["dimension_numbers"].rhs_spec[2:]]
            x = _patches(x.astype(delta.dtype), params, [delta.shape[i] for i in out[2:]], window)
            return _outer_gram(x, _merge(delta, (), out[:1], out[2:], out[1:2]))
    return _rows_gram(_use_gradients(use, x, delta), delta.dtype)


def _use_gradients(use: _Use, x: Array | None, delta: Array) -> Array:
    """Gradients [N, *view.shape], by transposing the use of each sample on its own."""
    params, deltas = dict(use.eqn.params), _isolate(delta, use.rows)
    rows = None if x is None else _isolate(x, use.data_rows)
    if rows is not None and "precision" in params:
        rows = rows.astype(delta.dtype)
        precision = (lax.Precision.HIGHEST, lax.Precision.HIGHEST)
        params |= {"precision": precision, "preferred_element_type": delta.dtype}
    if use.eqn.primitive.name == "broadcast_in_dim":
        params["shape"] = deltas.shape[1:]

    def transpose(row: Array | None, delta: Array) -> Array:
        def apply(v: Array) -> Array:
            operands = [v if atom is use.view else jnp.asarray(row) for atom in use.eqn.invars]
            return evaluate(use.eqn.replace(params=params), operands)[0]

        [gradient] = jax.linear_transpose(apply, struct(use.view, delta.dtype))(delta)
        return jnp.asarray(gradient)

    return jax.vmap(transpose)(rows, deltas)


def _outer_gram(x: Array, delta: Array) -> Array:
    """Products [N, N] of Σ_s x_is ⊗ δ_is, in B blocks: x [B, N, S, K], delta [B, N, S, M]."""
    (_, n, s, k), m = x.shape, delta.shape[-1]
    if n * s * s * (k + m) <= (n + s) * k * m:
        xx, dd = (_einsum("bisk,bjtk->bisjt", a, a) for a in (x, delta))
        return jnp.sum(xx * dd, axis=(0, 2, 4))
    return _rows_gram(_einsum("bnsm,bnsk->nbmk", delta, x), delta.dtype)


def _patches(
    x: Array, params: dict[str, Any], places: Sequence[int], window: Sequence[int]
) -> Array:
    """What a convolution reads at each place, [1, N, places, window and channels].

    By indexing one axis after the other: `lax.conv_general_dilated_patches` takes several times
    as long on a CPU.
    """
    batch, channel, *spatial = params["dimension_numbers"].lhs_spec
    edges = [
        (*edge, dilation - 1)
        for edge, dilation in zip(params["padding"], params["lhs_dilation"], strict=True)
    ]
    x = x.transpose(batch, *spatial, channel)
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    for i in reversed(range(len(spatial))):
        first = params["window_strides"][i] * jnp.arange(places[i])
        offset = params["rhs_dilation"][i] * jnp.arange(window[i])
        x = jnp.take(x, first[:, None] + offset[None], axis=1 + i, mode="clip")
    ends = range(2, x.ndim, 2)
    return _merge(x, (), (0,), range(1, x.ndim - 1, 2), (*ends, x.ndim - 1))


def _rows_gram(gradients: Params, dtype: DTypeLike) -> Array:
    """Products [N, N] of the rows of a tree of [N, ...]."""
    rows = [x.reshape(len(x), -1).astype(dtype) for x in jax.tree.leaves(gradients)]
    return functools.reduce(jnp.add, (_einsum("ik,jk->ij", x, x) for x in rows))


def _dot_axes(eqn: JaxprEqn) -> tuple[list[tuple[int, ...]], list[int]]:
    """The free axes of both operands of a dot_general, and where they start in its output."""
    contract, batch = eqn.params["dimension_numbers"]
    dims = zip(eqn.invars, contract, batch, strict=True)
    free = [_rest(struct(atom).ndim, *axes) for atom, *axes in dims]
    return free, [len(batch[0]), len(batch[0]) + len(free[0])]


def _rest(ndim: int, *used: Sequence[int]) -> tuple[int, ...]:
    return tuple(axis for axis in range(ndim) if not any(axis in axes for axes in used))


def _merge(x: Array, *groups: Sequence[int]) -> Array:
    """Transpose and reshape so that each group of axes becomes one."""
    shape = [math.prod(x.shape[axis] for axis in axes) for axes in groups]
    return x.transpose([axis for axes in groups for axis in axes]).reshape(shape)


def _isolate(x: Array, rows: Sequence[int]) -> Array:
    """Move the samples to a new first axis, leaving axes of size one behind."""
    behind = [1 if axis in rows else n for axis, n in enumerate(x.shape)]
    return _merge(x, rows, _rest(x.ndim, rows)).reshape(-1, *behind)


def _plain(eqn: JaxprEqn, operands: list[Array]) -> list[Array]:
    """Evaluate an equation that is not a call, spelling out its implicit broadcasts."""
    if eqn.primitive.name not in _LOOPS and has_programs(eqn):
        raise _UnrecognisedError
    if eqn.primitive.name in _ELEMENTWISE:
        shape = struct(eqn.outvars[0]).shape
        for i, atom in enumerate(eqn.invars):
            if isinstance(atom, Var) and struct(atom).shape != shape:
                axes = range(len(shape) - struct(atom).ndim, len(shape))
                operands[i] = lax.broadcast_in_dim(operands[i], shape, axes)
    return evaluate(eqn, operands)
