"""Linear algebra of parameter trees, as single vectors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Tree = Any


def add(x: Tree, factor: Array, y: Tree) -> Tree:
    return jax.tree.map(lambda a, b: a + factor * b, x, y)


def dot(x: Tree, y: Tree) -> Array:
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda a, b: jnp.sum(a * b), x, y))


def norm(x: Tree) -> Array:
    return jnp.sqrt(dot(x, x))
