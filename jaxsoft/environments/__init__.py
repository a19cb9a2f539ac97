"""Environments: what a loop asks of one, and EnvPool as one."""

from jaxsoft.environments.base import Environment, Space
from jaxsoft.environments.envpool import (
    MOST_SEED,
    About,
    EnvPool,
    HostEnvPool,
    about,
    last_seed,
    runs_in_graph,
)

__all__ = [
    "MOST_SEED",
    "About",
    "EnvPool",
    "Environment",
    "HostEnvPool",
    "Space",
    "about",
    "last_seed",
    "runs_in_graph",
]
