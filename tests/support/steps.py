"""Time steps as tests read them, and tuples of arrays as tests write them."""

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def of_numpy(kind: Callable[..., T], *fields: Any, **named: Any) -> T:
    """A tuple of NumPy arrays where the annotations say JAX's."""
    return kind(*fields, **named)


def ends(steps):
    """(game over, life lost, truncated): the ends that there are, told apart."""
    no_value = steps.discount == 0
    return steps.over & no_value, ~steps.over & no_value, steps.over & ~no_value
