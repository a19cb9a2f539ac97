"""What agents are made for in tests."""

import numpy as np

from jaxsoft.agents.registry import Algorithm
from jaxsoft.environments import Space


def space_for(entry: Algorithm, categories: int) -> Space:
    """Actions that an algorithm can choose among: so many, or some real numbers."""
    if entry.actions == "numbers":
        return Space((2,), np.dtype(np.float32), low=np.array([-1.0, 0.0]), high=2.0)
    return Space.discrete(categories)
