"""Environments: what a loop asks of one, and EnvPool as one."""

from jaxsoft.environments.base import Environment, Space
from jaxsoft.environments.envpool import About, EnvPool, HostEnvPool, about, runs_in_graph

__all__ = ["About", "EnvPool", "Environment", "HostEnvPool", "Space", "about", "runs_in_graph"]
