"""The leaves of a state as NumPy arrays for Orbax, and back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["as_leaf", "describe", "flatten", "is_key", "owned_copy"]


def flatten(tree: Any) -> tuple[dict[str, Any], jax.tree_util.PyTreeDef]:
    """Leaves by their names, and the structure that they are of."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    return {f"state{jax.tree_util.keystr(path)}": leaf for path, leaf in leaves}, structure


def is_key(leaf: Any) -> bool:
    """Whether a leaf is typed random keys."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def describe(name: str, leaf: Any) -> str:
    """Dtype and shape; a leaf of a kind that cannot be stored is refused."""
    if hasattr(leaf, "dtype"):
        return f"{leaf.dtype}{list(leaf.shape)}"
    if isinstance(leaf, (int, float, complex)):
        return f"Python {type(leaf).__name__}"
    raise TypeError(
        f"jaxsoft.Checkpoints: given {name} of type {type(leaf).__name__}; expected arrays, typed "
        "keys and Python numbers only. Keep it out of the state."
    )


class _Owned(np.ndarray):
    """Orbax copies the NumPy arrays it is given: gigabytes of a replay, copied a second time."""

    def __deepcopy__(self, memo: object) -> _Owned:
        return self


def owned_copy(leaf: Any) -> np.ndarray:
    """The leaf in memory that no one else writes to."""
    array = jax.random.key_data(leaf) if is_key(leaf) else leaf
    if isinstance(array, jax.Array) and all(device.platform != "cpu" for device in array.devices()):
        return np.asarray(array).view(_Owned)
    # On the CPU `np.asarray` would be a view of the very buffer that is donated next.
    return np.array(array).view(_Owned)


def as_leaf(like: Any, array: np.ndarray | None, implementation: str | None) -> Any:
    """A leaf of the kind of `like`, from what was stored: `None` of an array of no elements."""
    if array is None:
        data = jax.eval_shape(jax.random.key_data, like) if implementation else like
        array = np.zeros(data.shape, data.dtype)
    if isinstance(like, (int, float, complex, np.generic)):
        return type(like)(array.item())
    if isinstance(like, np.ndarray):
        return array
    restored = jnp.asarray(array)
    if implementation:
        restored = jax.random.wrap_key_data(restored, impl=implementation)
    elif like.weak_type and not like.shape:
        # It must keep adapting to the dtypes it meets.
        weak = jnp.asarray(array.item())
        restored = weak if weak.dtype == restored.dtype else restored
    sharding = like.sharding if getattr(like, "committed", True) else None
    return restored if sharding is None else jax.device_put(restored, sharding)
