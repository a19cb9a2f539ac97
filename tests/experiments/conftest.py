"""A fixture of the support folder, where tests draw."""

from tests.support.figures import figure

__all__ = ["figure"]
