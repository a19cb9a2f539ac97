"""Programs for devices that are not there: lowered for them, and what they are made of."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
from jax import export

ELSEWHERE = ("cuda", "tpu")
# What a library call of each platform is called.
CALLED = {
    "cpu": ("lapack_",),
    "cuda": ("cusolver_", "cublas", "cudnn", "cu_"),
    "tpu": ("Eigh", "Qr", "ProductOfElementaryHouseholderReflectors"),
}


def lowered(f: Callable[..., Any], *args: Any, platforms: tuple[str, ...]) -> dict[str, str]:
    """Platform -> the program for it, of which nothing is executed; it is traced once."""
    program = jax.jit(f)
    return {x: export.export(program, platforms=[x])(*args).mlir_module() for x in platforms}


def calls(text: str) -> set[str]:
    """Of libraries and handlers."""
    return set(re.findall(r"custom_call @(\w+)", text))


def operations(text: str) -> Counter[str]:
    """How many there are of each."""
    return Counter(re.findall(r"stablehlo\.(\w+)", text))


def convolutions(text: str) -> list[str]:
    """The layout, the strides and the shapes of each, in any order."""
    return sorted(re.findall(r"stablehlo\.convolution\([^)]*\) (.*) loc", text))


def assert_for(platform: str, text: str) -> None:
    """Nothing in it is another platform's, or chosen when it runs."""
    assert all(name.startswith(CALLED[platform]) for name in calls(text)), calls(text)
    assert "_platform_index" not in text
