"""Reading programs and defining primitives: all that the package takes from JAX's inside.

`jax.extend` and `jax.interpreters` change from release to release. What changes there is answered
here; `make test-newest` tells.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive, Var, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jax.typing import DTypeLike

__all__ = [
    "CALLS",
    "CUSTOM_CALLS",
    "Jaxpr",
    "JaxprEqn",
    "Literal",
    "Var",
    "bilinear",
    "evaluate",
    "has_programs",
    "interpret",
    "platform",
    "read",
    "run",
    "struct",
]

CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint"})
# To enter these is to forget the derivatives that they have of their own.
CUSTOM_CALLS = frozenset({"custom_jvp_call", "custom_vjp_call"})

_Value = TypeVar("_Value")


def interpret(
    program: ClosedJaxpr,
    arguments: Iterable[_Value],
    rule: Callable[[JaxprEqn, list[_Value]], Iterable[_Value]],
    *,
    lift: Callable[[Any], _Value],
    enter: Set[str] = CALLS,
) -> list[_Value]:
    """The outputs of a program whose calls are entered and whose equations mean what `rule` says.

    Args:
      program: as `jax.make_jaxpr` returns it.
      arguments: a value for each of its inputs; values may be of any type.
      rule: (equation, its operands) -> its results.
      lift: constant -> value.
      enter: names of the primitives that are calls.
    """
    jaxpr = program.jaxpr
    inputs = [*map(lift, program.consts), *arguments]
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], inputs, strict=True))

    def value(atom: Var | Literal) -> _Value:
        return lift(atom.val) if isinstance(atom, Literal) else env[atom]

    for eqn in jaxpr.eqns:
        operands = [value(atom) for atom in eqn.invars]
        if eqn.primitive.name in enter:
            results: Iterable[_Value] = interpret(
                _callee(eqn), operands, rule, lift=lift, enter=enter
            )
        else:
            results = rule(eqn, operands)
        env.update(zip(eqn.outvars, results, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def evaluate(eqn: JaxprEqn, operands: Sequence[Any]) -> list[Array]:
    """The results of one equation at any operands, with the derivatives that it has of its own."""
    # By way of a program: custom derivatives are not among the parameters of `bind`.
    variables: list[Any] = [Var(atom.aval) for atom in eqn.invars]
    alone = _empty().replace(
        invars=variables, outvars=eqn.outvars, eqns=[eqn.replace(invars=variables)]
    )
    return list(jaxpr_as_fun(ClosedJaxpr(alone, []))(*operands))


def run(eqns: Iterable[JaxprEqn], env: Mapping[Var, Array]) -> dict[Var, Array]:
    """`env` and the results of the equations, evaluated one after the other."""
    env = dict(env)
    for eqn in eqns:
        results = evaluate(eqn, [read(env, atom) for atom in eqn.invars])
        env.update(zip(eqn.outvars, results, strict=True))
    return env


def read(env: Mapping[Var, Array], atom: Var | Literal) -> Array:
    """The value of a variable or of a literal."""
    # Constants are of a type of their own in some versions, which has no methods.
    return jnp.asarray(atom.val if isinstance(atom, Literal) else env[atom])


def struct(atom: Var | Literal, dtype: DTypeLike | None = None) -> jax.ShapeDtypeStruct:
    """Shape and dtype, or shape and another dtype."""
    aval: Any = atom.aval
    return jax.ShapeDtypeStruct(aval.shape, dtype or aval.dtype)


def has_programs(eqn: JaxprEqn) -> bool:
    """Whether an equation has got others inside, as loops, branches and calls have."""
    return any(hasattr(leaf, "eqns") for leaf in jax.tree.leaves(eqn.params))


def platform(device: jax.Device | None = None) -> str:
    """Of a device: "cpu", "gpu" or "tpu". By default the one that JAX computes on unless told."""
    config: Any = jax.config
    chosen: Any = config.jax_default_device if device is None else device
    if chosen is None or isinstance(chosen, str):
        chosen = jax.local_devices(backend=chosen)[0]
    return str(chosen.platform)


def bilinear(
    name: str,
    function: Callable[..., Array],
    *,
    on_cpu: Callable[..., Array],
    shape: Callable[..., tuple[int, ...]],
    transposes: tuple[Callable[..., Array], Callable[..., Array]],
    batch: Callable[..., tuple[Array, int]],
    options: Sequence[str],
) -> Callable[..., Array]:
    """A primitive of two arrays that computes as `function` and has its own derivatives.

    Args:
      name: of the primitive.
      function: (x, y, **options) -> z, bilinear, of the dtype of x.
      on_cpu: the same, for programs that are compiled for a CPU.
      shape: (shape of x, shape of y, **options) -> shape of z.
      transposes: (cotangent of z, x, y, **options) -> cotangent of x, and of y; the argument whose
        cotangent it is has an `aval`, and no value.
      batch: ((x, y), (axis of x or None, axis of y or None), **options) -> (z, its axis).
      options: names of the keyword arguments; all are demanded.
    """
    primitive = Primitive(name)
    bind: Callable[..., Array] = primitive.bind
    # Compiled, so that outside of programs, too, the arguments' device decides.
    primitive.def_impl(jax.jit(bind, static_argnames=tuple(options)))
    primitive.def_abstract_eval(
        lambda x, y, **options: x.update(shape=shape(x.shape, y.shape, **options))
    )
    for way, platform in ((function, None), (on_cpu, "cpu")):
        lowering = mlir.lower_fun(way, multiple_results=False)
        mlir.register_lowering(primitive, lowering, platform=platform)
    ad.defbilinear(primitive, *transposes)
    batching.primitive_batchers[primitive] = batch
    return bind


def _callee(eqn: JaxprEqn) -> ClosedJaxpr:
    callee = eqn.params["jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"]
    return callee if hasattr(callee, "consts") else ClosedJaxpr(callee, [])


@functools.cache
def _empty() -> Jaxpr:
    empty: Any = jax.make_jaxpr(lambda: ())().jaxpr
    nameless: Jaxpr = empty.replace(
        debug_info=empty.debug_info._replace(arg_names=None, result_paths=None)
    )
    return nameless
