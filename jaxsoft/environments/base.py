"""What a training loop asks of an environment."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from jax import Array

from jaxsoft.agents.base import TimeStep

__all__ = ["Environment", "Space"]


class Space(NamedTuple):
    """What one observation or one action is.

    Attributes:
      shape: of one.
      dtype: of it.
      categories: K, where it is a whole number from 0 to K − 1; else 0.
      low: least values, broadcasting against `shape`.
      high: greatest values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    categories: int = 0
    low: np.ndarray | float = -np.inf
    high: np.ndarray | float = np.inf

    @classmethod
    def discrete(cls, categories: int) -> Space:
        """One of so many, as int32."""
        return cls((), np.dtype(np.int32), categories, 0, categories - 1)


class Environment(Protocol):
    """S·N games that are stepped together, inside the compiled program.

    Arrays are [S, N, ...]: S independent agents (seeds), N environments each.
    """

    batch_shape: tuple[int, int]
    """(S, N)."""
    observation: Space
    action: Space

    def reset(self) -> tuple[Any, TimeStep]:
        """A state and the first step, outside `jit`."""
        ...

    def step(self, state: Any, action: Array) -> tuple[Any, TimeStep]:
        """The next state and step for actions [S, N, *A], under `jit`."""
        ...
