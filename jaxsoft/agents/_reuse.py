"""Forward passes that are made once: kept when a policy acts, put back in when it learns.

What costs in a forward pass are its products of parameters and data. `kept` runs a network and
hands them out as well; `recalled` runs it with the products given, so that only what lies between
them is computed again, and yet its derivatives are those of the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoft import _convolution, _jax

__all__ = ["kept", "pullback", "recalled"]

# Terms of the sums that a product's numbers are: with fewer, to keep them takes longer.
_WORTH_KEEPING = 128
_CONVOLUTIONS = ("conv_general_dilated", _convolution.NAME)
# Bytes of products that are taken back through a network at once: what a core's share of the
# last cache holds. 80 images of Atari are 7 MB.
_BLOCK = 2**23


def kept(network: Callable[..., Any], params: Any, data: Any) -> tuple[Any, list[Array]]:
    """`network(params, data)`, and the products [N, ...] in it that depend on the data [N, ...].

    Products inside loops, conditions and functions with derivatives of their own are not kept, nor
    those whose leading axis is another: whoever joins batches joins their products along it.
    """
    leads, products = _leads(network, params, data), []

    def keep(product: Array) -> Array:
        if leads(product):
            products.append(product)
        return product

    return _evaluate(network, params, data, keep), products


def recalled(network: Callable[..., Any], params: Any, data: Any, products: Sequence[Array]) -> Any:
    """`network(params, data)` from the products that `kept` gave for the same arguments.

    Their values are taken for granted; derivatives go through them as if they had been computed.
    """
    return _recalled(network, params, data, products)[0]


def pullback(
    network: Callable[..., Any],
    params: Any,
    data: Any,
    products: Sequence[Array],
) -> tuple[Any, Callable[[Any], tuple[Any]]]:
    """As `jax.vjp`, of the parameters: outputs [T, ...], and cotangents of them -> (of `params`,).

    On a CPU, what leads to the last convolution is pulled back in blocks of times, so that what
    lies between the layers fits a cache. What follows it is pulled back whole: a dense layer's
    gradient is as large as its data, and each block would read and write the sum of them.

    Args:
      network: (params, data) -> outputs.
      params: any tree.
      data: [T, ...].
      products: as `kept` gave them at each of T times, stacked.
    """
    cut, leading = _waist(network, params, jax.tree.map(lambda x: x[0], data))

    def outputs(params: Any, products: Sequence[Array], cut: int | None = None) -> Any:
        def one(data: Any, products: Sequence[Array]) -> Any:
            return _recalled(network, params, data, products, cut)[0]

        return jax.vmap(one)(data, products)

    def whole(cotangents: Any) -> Any:
        return jax.vjp(lambda p: outputs(p, products), params)[1](cotangents)[0]

    def in_blocks(cotangents: Any) -> Any:
        if cut is None:
            return whole(cotangents)

        def following(params: Any, waist: Array) -> Any:
            return outputs(params, [*products[:cut], waist, *products[cut + 1 :]], cut)

        _, transposed = jax.vjp(following, params, products[cut])
        gradients, at_waist = transposed(cotangents)
        leaves, tree = jax.tree.flatten(params)

        def add(totals: list[Array], block: Any) -> tuple[list[Array], None]:
            data, products, at_waist = block

            def to_waist(some: list[Array]) -> Array:
                every = jax.tree.unflatten(tree, _with(leaves, leading, some))

                def one(data: Any, products: Sequence[Array]) -> Array:
                    return _recalled(network, every, data, products)[1][cut]

                return jax.vmap(one)(data, products)

            _, transposed = jax.vjp(to_waist, [leaves[i] for i in leading])
            return jax.tree.map(jnp.add, totals, transposed(at_waist)[0]), None

        size, every = _block(products[: cut + 1]), jax.tree.leaves(gradients)
        blocks = jax.tree.map(
            lambda x: x.reshape(-1, size, *x.shape[1:]), (data, products, at_waist)
        )
        totals, _ = jax.lax.scan(add, [every[i] for i in leading], blocks)
        return jax.tree.unflatten(tree, _with(every, leading, totals))

    def pull(cotangents: Any) -> tuple[Any]:
        return (jax.lax.platform_dependent(cotangents, cpu=in_blocks, default=whole),)

    return outputs(params, products), pull


def _with(leaves: Sequence[Array], places: Sequence[int], others: Sequence[Array]) -> list[Array]:
    changed = dict(zip(places, others, strict=True))
    return [changed.get(i, leaf) for i, leaf in enumerate(leaves)]


def _block(products: Sequence[Array]) -> int:
    """How many times' products are pulled back at once: a divisor of all."""
    length = products[0].shape[0]
    room = length * _BLOCK // max(sum(x.nbytes for x in products), 1)
    return max((n for n in range(1, length + 1) if length % n == 0 and n <= room), default=1)


def _recalled(
    network: Callable[..., Any],
    params: Any,
    data: Any,
    products: Sequence[Array],
    cut: int | None = None,
) -> tuple[Any, list[Array]]:
    """The outputs, and the products; that at `cut` is a value, and the product of nothing."""
    leads, met = _leads(network, params, data), list[Array]()

    def recall(product: Array) -> Array:
        if not leads(product):
            return product
        value = products[len(met)]
        met.append(value if len(met) == cut else _valued(product, value))
        return met[-1]

    return _evaluate(network, params, data, recall), met


def _waist(network: Callable[..., Any], params: Any, data: Any) -> tuple[int | None, list[int]]:
    """The last convolution among the products, and the leaves of `params` that lead to it.

    None if there is none, or if its result is not all that the outputs know of the data.
    """
    program, number = jax.make_jaxpr(network)(params, data), len(jax.tree.leaves(params))
    # What a value depends on: leaves by their numbers, and the data by the next one.
    inputs = [frozenset({min(i, number)}) for i in range(len(program.in_avals))]

    def through(cut: int | None) -> tuple[list[frozenset[int]], list[tuple[str, frozenset[int]]]]:
        leads, met = _leads(network, params, data), list[tuple[str, frozenset[int]]]()

        def rule(eqn: _jax.JaxprEqn, operands: list[frozenset[int]]) -> list[frozenset[int]]:
            depends: frozenset[int] = frozenset().union(*operands)
            product: Any = eqn.outvars[0].aval
            if number in depends and _terms(eqn) >= _WORTH_KEEPING and leads(product):
                met.append((eqn.primitive.name, depends))
                if len(met) - 1 == cut:
                    depends = frozenset()
            return [depends] * len(eqn.outvars)

        return _jax.interpret(program, inputs, rule, lift=lambda _: frozenset()), met

    _, met = through(None)
    cut = max((i for i, (name, _) in enumerate(met) if name in _CONVOLUTIONS), default=None)
    if cut is None or any(number in output for output in through(cut)[0]):
        return None, []
    return cut, sorted(met[cut][1] - {number})


def _leads(network: Callable[..., Any], params: Any, data: Any) -> Callable[[Array], bool]:
    """Of each product in turn, whether its leading axis is the data's: it grows with the batch."""
    grown: list[tuple[int, ...]] = []

    def note(product: Array) -> Array:
        grown.append(product.shape)
        return product

    more = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0] + 1, *x.shape[1:]), x.dtype), data
    )
    jax.eval_shape(lambda p, x: _evaluate(network, p, x, note), params, more)
    size, shapes = jax.tree.leaves(data)[0].shape[0], iter(grown)

    def leads(product: Array) -> bool:
        there = next(shapes)
        return product.shape[:1] == (size,) and there == (size + 1, *product.shape[1:])

    return leads


@jax.custom_jvp
def _valued(computed: Array, value: Array) -> Array:
    del computed
    return value


@_valued.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return primals[1], tangents[0]


def _evaluate(
    network: Callable[..., Any], params: Any, data: Any, meet: Callable[[Array], Array]
) -> Any:
    """Evaluates, products of what depends on the data being met."""
    program, shapes = jax.make_jaxpr(network, return_shape=True)(params, data)

    # Values are pairs of an array and whether it depends on the data.
    def rule(eqn: _jax.JaxprEqn, pairs: list[tuple[Any, bool]]) -> list[tuple[Any, bool]]:
        depends = any(flag for _, flag in pairs)
        results = _jax.evaluate(eqn, [value for value, _ in pairs])
        if depends and _terms(eqn) >= _WORTH_KEEPING:
            results = [meet(product) for product in results]
        return [(result, depends) for result in results]

    leaves, rest = jax.tree.leaves(params), jax.tree.leaves(data)
    given = [*((leaf, False) for leaf in leaves), *((leaf, True) for leaf in rest)]
    outputs = _jax.interpret(program, given, rule, lift=lambda constant: (constant, False))
    return jax.tree.unflatten(jax.tree.structure(shapes), [value for value, _ in outputs])


def _terms(eqn: _jax.JaxprEqn) -> int:
    """How many products are summed up in each number of the result, if that is what it is."""
    shapes: list[Any] = [getattr(atom.aval, "shape", ()) for atom in eqn.invars]
    match eqn.primitive.name:
        case "dot_general":
            [contracted, _], _ = eqn.params["dimension_numbers"]
            return math.prod([int(shapes[0][axis]) for axis in contracted])
        case name if name in _CONVOLUTIONS:
            features = eqn.params["dimension_numbers"].rhs_spec[0]
            return math.prod([int(n) for n in shapes[1]]) // int(shapes[1][features])
    return 0
