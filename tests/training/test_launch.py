"""Programs are compiled as the device that they run on wants it, wherever the process is."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxsoft.training import launch


def on(platform: str, *, committed: bool = True) -> Any:
    """As much of an array as says where it is."""
    sharding = SimpleNamespace(device_set=[SimpleNamespace(platform=platform)])
    return SimpleNamespace(committed=committed, sharding=sharding)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The platforms of whose options compilers were told, by calls that only note it."""
    found: list[str] = []

    def jit(f: Any, compiler_options: Any = None, **_: Any) -> Any:
        return lambda *args, **kwargs: found.append(compiler_options["of"])

    monkeypatch.setattr(launch, "_options", lambda platform: {"of": platform})
    monkeypatch.setattr(jax, "jit", jit)
    return found


def test_only_the_cpus_compiler_is_told() -> None:
    devices: list[Any] = [SimpleNamespace(platform=platform) for platform in ("gpu", "tpu")]
    assert [launch.compiler_options(device) for device in devices] == [{}, {}]
    [cpu, *_] = jax.devices("cpu")
    assert launch.compiler_options(cpu) == launch.compiler_options()


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_programs_are_compiled_for_where_their_arguments_are(
    platform: str, told: list[str]
) -> None:
    f = launch.jit(lambda *_: None)
    f(on(platform))
    f(np.zeros(3), 1, on("tpu", committed=False), {"x": [on(platform)]})
    f(None, x=jax.ShapeDtypeStruct((), np.float32), y=on(platform))
    assert told == [platform] * 3


def test_what_is_nowhere_in_particular_goes_to_the_default_device(
    told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    f = launch.jit(lambda *_: None)
    [cpu, *_] = jax.devices("cpu")
    monkeypatch.setattr(
        jax, "local_devices", lambda backend=None: [SimpleNamespace(platform="tpu")]
    )
    f(np.zeros(3), on("cpu", committed=False))
    f(np.zeros(3), on("cpu"))
    with jax.default_device(cpu):
        f(np.zeros(3))
    assert told == ["tpu", "cpu", "cpu"]


def test_it_is_jit() -> None:
    f = launch.jit(lambda x, n: (x**n, x), static_argnames="n", donate_argnums=0)
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    assert f.eval_shape(shape, n=2) == (shape, shape)
    assert jax.eval_shape(lambda x: f(x, n=2), shape) == (shape, shape)
    assert f.lower(shape, n=2).compile().memory_analysis().alias_size_in_bytes == 12
    np.testing.assert_array_equal(f(jnp.full(3, 2.0), n=3)[0], 8)
    np.testing.assert_array_equal(jax.vmap(lambda x: f(x, n=3)[0])(jnp.full(3, 2.0)), 8)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_a_program_for_another_platform_has_none_of_the_options(platform: str) -> None:
    """They are of the compiler and not of the program, and the outermost program has them."""
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    program = jax.jit(launch.jit(jnp.sin))
    whole = export.export(program, platforms=[platform])(shape)
    assert whole.platforms == (platform,)
    assert "xla_cpu" not in whole.mlir_module()
