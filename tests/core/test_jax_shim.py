"""What is read of JAX's programs, and that one module does it; `make test-newest` runs this."""

import ast
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import JaxprEqn
from jax.test_util import check_grads

import jaxsoft
from jaxsoft import _jax
from tests.support.platforms import lowered

PACKAGE = Path(jaxsoft.__file__).parent
INSIDE = ("jax._src", "jax.core", "jax.extend", "jax.interpreters")


def names_of(path: Path) -> set[str]:
    """Dotted names that begin with `jax.`, imported or spelled out."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
    return {name for name in found if name.startswith("jax.")}


def inside(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith(INSIDE)}


def test_no_other_module_reads_the_inside_of_jax() -> None:
    modules = set(PACKAGE.rglob("*.py"))
    assert modules >= {PACKAGE / "_jax.py", PACKAGE / "natural" / "_gram.py"}
    assert inside(names_of(PACKAGE / "_jax.py"))
    found = {path: inside(names_of(path)) for path in modules - {PACKAGE / "_jax.py"}}
    # What users may tell a traced array by.
    public = {"jax.core", "jax.core.Tracer"}
    assert {path: names - public for path, names in found.items() if names - public} == {}


@pytest.mark.parametrize(
    "line",
    [
        "from jax.extend.core import Var",
        "from jax.interpreters import ad",
        "import jax._src.core",
        "from jax import extend",
        "x = jax.core.Primitive",
        "x = jax.interpreters.mlir.register_lowering",
    ],
)
def test_every_way_to_name_it_is_found(tmp_path: Path, line: str) -> None:
    (tmp_path / "module.py").write_text(line)
    assert inside(names_of(tmp_path / "module.py"))


# ---- Programs ------------------------------------------------------------------------------------


@jax.custom_jvp
def by_jvp(x: jax.Array) -> jax.Array:
    return jnp.sin(x)


by_jvp.defjvp(lambda primals, tangents: (by_jvp(*primals), 3 * tangents[0]))


@jax.custom_vjp
def by_vjp(x: jax.Array) -> jax.Array:
    return jnp.sin(x)


by_vjp.defvjp(lambda x: (jnp.sin(x), None), lambda _, g: (5 * g,))

CALLS = {"jit": jax.jit(jnp.sin), "checkpoint": jax.checkpoint(jnp.sin)}
CALLS["nested"] = jax.jit(jax.checkpoint(jax.jit(jnp.sin)))
CUSTOM = {"custom_jvp": by_jvp, "custom_vjp": by_vjp}
CONSTANT = np.arange(3.0)


def interpreted(function, x, enter=_jax.CALLS):
    """The output, and the names of the equations that were evaluated."""
    names = []

    def rule(eqn: JaxprEqn, operands: list) -> list:
        names.append(eqn.primitive.name)
        return _jax.evaluate(eqn, operands)

    program = jax.make_jaxpr(function)(x)
    return _jax.interpret(program, [x], rule, lift=lambda c: c, enter=enter)[0], names


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_entered(name: str) -> None:
    out, names = interpreted(CALLS[name], 0.5)
    assert names == ["sin"]
    np.testing.assert_allclose(out, np.sin(0.5))


@pytest.mark.parametrize("name", CUSTOM)
def test_custom_calls_are_entered_when_asked(name: str) -> None:
    _, names = interpreted(CUSTOM[name], 0.5)
    assert names == [f"{name}_call"]
    out, names = interpreted(CUSTOM[name], 0.5, _jax.CALLS | _jax.CUSTOM_CALLS)
    assert names == ["sin"]
    np.testing.assert_allclose(out, np.sin(0.5))


@pytest.mark.parametrize(("name", "slope"), [("custom_jvp", 3), ("custom_vjp", 5)])
def test_an_equation_keeps_its_own_derivative(name: str, slope: float) -> None:
    gradient = jax.grad(lambda x: interpreted(CUSTOM[name], x)[0])
    np.testing.assert_allclose(gradient(0.5), slope)
    np.testing.assert_allclose(jax.jit(gradient)(0.5), slope)


def test_constants_are_lifted() -> None:
    """Those of the program, of its calls, and literals."""

    def function(x: jax.Array) -> jax.Array:
        return jax.jit(lambda x: x + CONSTANT)(x * CONSTANT) + 2.0

    def rule(eqn: JaxprEqn, operands: list) -> list:
        flags = [flag for _, flag in operands]
        return [(x, any(flags)) for x in _jax.evaluate(eqn, [value for value, _ in operands])]

    program = jax.make_jaxpr(function)(CONSTANT)
    [(out, flag)] = _jax.interpret(program, [(CONSTANT, False)], rule, lift=lambda c: (c, False))
    assert not flag
    np.testing.assert_allclose(out, CONSTANT**2 + CONSTANT + 2)
    [(_, flag)] = _jax.interpret(program, [(CONSTANT, True)], rule, lift=lambda c: (c, False))
    assert flag


def test_an_equation_is_evaluated_at_any_operands() -> None:
    """At other values of its literals, at a variable given twice, with other parameters."""
    [eqn] = jax.make_jaxpr(lambda x: x * 2.0)(1.0).eqns
    np.testing.assert_allclose(_jax.evaluate(eqn, [3.0, 5.0]), [15.0])
    [eqn] = jax.make_jaxpr(lambda x: x * x)(1.0).eqns
    np.testing.assert_allclose(_jax.evaluate(eqn, [3.0, 5.0]), [15.0])
    [eqn] = jax.make_jaxpr(lambda x: jnp.sum(x, axis=0))(jnp.zeros((2, 3))).eqns
    other = eqn.replace(params=eqn.params | {"axes": (1,)})
    np.testing.assert_allclose(_jax.evaluate(other, [jnp.ones((2, 3))]), [[3.0, 3.0]])


def test_several_results() -> None:
    def halves(x: jax.Array) -> jax.Array:
        a, b = jnp.split(x, 2)
        return a - b

    out, _ = interpreted(halves, jnp.asarray([1.0, 5.0]))
    np.testing.assert_allclose(out, [-4.0])


def test_equations_run_from_an_environment() -> None:
    program = jax.make_jaxpr(lambda x: jnp.cos(jnp.sin(x)) * 2.0)(1.0).jaxpr
    env = {program.invars[0]: jnp.asarray(0.5)}
    ran = _jax.run(program.eqns, env)
    assert len(env) == 1
    np.testing.assert_allclose(_jax.read(ran, program.outvars[0]), 2 * np.cos(np.sin(0.5)))
    assert _jax.read(ran, program.eqns[-1].invars[1]) == 2.0


def test_shapes() -> None:
    [var] = jax.make_jaxpr(jnp.sin)(jnp.zeros((2, 3), jnp.float32)).jaxpr.invars
    assert _jax.struct(var) == jax.ShapeDtypeStruct((2, 3), jnp.float32)
    assert _jax.struct(var, jnp.float64) == jax.ShapeDtypeStruct((2, 3), jnp.float64)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (jnp.sin, False),
        (CALLS["jit"], True),
        (CALLS["checkpoint"], True),
        (by_jvp, True),
        (by_vjp, True),
        (lambda x: jax.lax.scan(lambda c, _: (c + 1, None), x, None, length=3)[0], True),
        (lambda x: jax.lax.while_loop(lambda c: c < 3, lambda c: c + 1, x), True),
        (lambda x: jax.lax.cond(True, jnp.sin, jnp.cos, x), True),
    ],
)
def test_equations_with_programs_inside(function, expected: bool) -> None:
    assert _jax.has_programs(jax.make_jaxpr(function)(1.0).eqns[-1]) == expected


# ---- Primitives ----------------------------------------------------------------------------------


def scaled(x: jax.Array, y: jax.Array, *, scale: float) -> jax.Array:
    return scale * jnp.dot(x, y)


def batched(operands: tuple, axes: tuple, **options: float) -> tuple[jax.Array, int]:
    return jax.vmap(lambda x, y: scaled(x, y, **options), axes)(*operands), 0


bind: Callable[..., jax.Array] = _jax.bilinear(
    "scaled_product",
    scaled,
    on_cpu=lambda x, y, *, scale: scale * jnp.einsum("ij,kj->ik", x, y.T),
    shape=lambda x, y, **_: (x[0], y[1]),
    transposes=(
        lambda z, x, y, **options: bind(z, y.T, **options),
        lambda z, x, y, **options: bind(x.T, z, **options),
    ),
    batch=batched,
    options=["scale"],
)


def test_a_primitive() -> None:
    x, y = (jnp.asarray(np.random.default_rng(0).normal(size=n)) for n in [(2, 3), (3, 4)])

    def f(x: jax.Array, y: jax.Array) -> jax.Array:
        return bind(x, y, scale=2.0)

    [eqn] = jax.make_jaxpr(f)(x, y).eqns
    assert eqn.primitive.name == "scaled_product"
    assert eqn.params == {"scale": 2.0}
    for g in (f, jax.jit(f)):
        np.testing.assert_allclose(g(x, y), 2 * x @ y)
        check_grads(g, (x, y), order=2)
    assert f(x.astype(jnp.float32), y.astype(jnp.float32)).dtype == jnp.float32
    batches = jax.vmap(f, (0, None))(jnp.stack([x, -x]), y)
    np.testing.assert_allclose(batches, 2 * np.stack([x @ y, -x @ y]))


def test_a_primitive_has_a_form_for_the_cpu() -> None:
    def products(*given: str) -> list[str]:
        x = jnp.ones((2, 3)), jnp.ones((3, 4))
        texts = lowered(lambda x, y: bind(x, y, scale=2.0), *x, platforms=given)
        return ["transpose" if "stablehlo.transpose" in x else "plain" for x in texts.values()]

    assert products("cpu", "cuda", "rocm", "tpu") == ["transpose", "plain", "plain", "plain"]


# ---- Devices -------------------------------------------------------------------------------------


def test_the_platform_is_that_of_the_device_that_jax_computes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device: Any = SimpleNamespace(platform="tpu")
    assert _jax.platform(device) == "tpu"
    assert _jax.platform() == _jax.platform(jax.devices()[0]) == "cpu"
    for way in (jax.devices("cpu")[0], "cpu"):
        with jax.default_device(way), monkeypatch.context() as patch:
            # Of the process; what is told comes first.
            patch.setattr(
                jax,
                "local_devices",
                lambda backend=None: [SimpleNamespace(platform=backend or "tpu")],
            )
            assert _jax.platform() == "cpu"
