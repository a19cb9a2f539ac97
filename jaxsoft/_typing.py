"""Shapes in annotations: the names of jaxtyping, or stand-ins where it is not installed.

`T` is the transitions of a rollout, `S` its T + 1 states, `*B` any batch axes (`*#B`: each equal
or 1) and `A` the actions. Nothing checks them unless asked to: tests/core/test_shapes.py does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jax.typing import ArrayLike

if TYPE_CHECKING:
    from jaxtyping import Float, Integer, Key, Shaped
else:
    try:
        from jaxtyping import Float, Integer, Key, Shaped
    except ImportError:

        class _Unchecked:
            def __class_getitem__(cls, array_and_shape: tuple[Any, str]) -> Any:
                return array_and_shape[0]

        Float = Integer = Key = Shaped = _Unchecked

__all__ = ["Float", "Integer", "Key", "Scalar", "Shaped"]

Scalar = Float[ArrayLike, ""]
