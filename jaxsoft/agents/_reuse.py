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
    leads, values = _leads(network, params, data), iter(products)

    def recall(product: Array) -> Array:
        return _valued(product, next(values)) if leads(product) else product

    return _evaluate(network, params, data, recall)


def pullback(
    network: Callable[..., Any],
    params: Any,
    data: Any,
    products: Sequence[Array],
) -> tuple[Any, Callable[[Any], tuple[Any]]]:
    """As `jax.vjp`, of the parameters: outputs [T, ...], and cotangents of them -> (of `params`,).

    The cotangents are pulled back in blocks, so that what lies between the layers fits a cache.

    Args:
      network: (params, data) -> outputs.
      params: any tree.
      data: [T, ...].
      products: as `kept` gave them at each of T times, stacked.
    """
    length = jax.tree.leaves(data)[0].shape[0]
    room = length * _BLOCK // max(sum(x.nbytes for x in products), 1)
    size = max((n for n in range(1, length + 1) if length % n == 0 and n <= room), default=1)

    def blocks(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), tree)

    def outputs(params: Any, data: Any, products: Sequence[Array]) -> Any:
        def one(data: Any, products: Sequence[Array]) -> Any:
            return recalled(network, params, data, products)

        return jax.vmap(one)(data, products)

    def pull(cotangents: Any) -> tuple[Any]:
        def add(total: Any, block: Any) -> tuple[Any, None]:
            data, products, cotangents = block
            _, transposed = jax.vjp(lambda p: outputs(p, data, products), params)
            return jax.tree.map(jnp.add, total, transposed(cotangents)[0]), None

        zeros = jax.tree.map(jnp.zeros_like, params)
        return (jax.lax.scan(add, zeros, blocks((data, products, cotangents)))[0],)

    return outputs(params, data, products), pull


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
        case "conv_general_dilated" | _convolution.NAME:
            features = eqn.params["dimension_numbers"].rhs_spec[0]
            return math.prod([int(n) for n in shapes[1]]) // int(shapes[1][features])
    return 0
