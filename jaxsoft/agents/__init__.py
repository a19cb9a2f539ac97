"""Agents: networks, losses and optimisers put together as pure functions that a loop can drive."""
