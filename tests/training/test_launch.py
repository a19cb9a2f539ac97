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
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What compilers were told, by calls that only note it."""
    found: list[Any] = []

    def jit(f: Any, compiler_options: Any = None, **_: Any) -> Any:
        return lambda *args: found.append(compiler_options)

    assert launch.compiler_options()
    monkeypatch.setattr(jax, "jit", jit)
    return found


def test_only_the_cpus_compiler_is_told(told: list[Any]) -> None:
    options = launch.compiler_options()
    for platform in ("cpu", "gpu", "tpu"):
        device: Any = SimpleNamespace(platform=platform)
        assert launch.compiler_options(device) == (options if platform == "cpu" else {})
        f = launch.jit(lambda *_: None)
        f(on(platform))
        f(np.zeros(3), 1, on("tpu", committed=False), {"x": [on(platform)]})
        assert told[-2:] == [launch.compiler_options(device)] * 2


def test_what_is_nowhere_in_particular_goes_to_the_default_device(
    told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    f = launch.jit(lambda *_: None)
    tpu = SimpleNamespace(platform="tpu")
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: [tpu])
    f(np.zeros(3), on("cpu", committed=False))
    f(np.zeros(3), on("cpu"))
    with jax.default_device(jax.devices("cpu")[0]):
        f(np.zeros(3))
    options = launch.compiler_options(on("cpu").sharding.device_set[0])
    assert told == [{}, options, options]


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
    texts = []
    for f in (jnp.sin, launch.jit(jnp.sin)):
        whole = export.export(jax.jit(lambda x, f=f: f(x)), platforms=[platform])(shape)
        assert whole.platforms == (platform,)
        texts.append(whole.mlir_module())
    assert "xla_cpu" not in texts[1]
