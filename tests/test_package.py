"""What the package promises of itself: its names, its import arrows."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxsoft

PACKAGE = Path(jaxsoft.__file__).parent
# Nothing of these may depend on the training side, and each only on those before it.
CORE = [
    "_checks",
    "_convolution",
    "_gram",
    "_jax",
    "_trees",
    "boltzmann",
    "returns",
    "losses",
    "natural",
    "algorithms",
    "equivalence",
]
ARROWS = {
    "_checks": set(),
    "_convolution": {"_jax"},
    "_gram": {"_convolution", "_jax"},
    "_jax": set(),
    "_trees": set(),
    "boltzmann": {"_checks"},
    "returns": {"_checks", "boltzmann"},
    "losses": {"_checks", "boltzmann", "returns"},
    "natural": {"_checks", "_gram", "_trees"},
    "algorithms": {"_checks", "boltzmann", "returns", "losses", "natural"},
    "equivalence": {"_checks", "_trees", "boltzmann", "returns", "losses"},
}
TRAINING = {
    "_reuse",
    "checkpoint",
    "environments",
    "launch",
    "learner",
    "loop",
    "metrics",
    "networks",
    "off_policy",
    "on_policy",
    "record",
    "replay",
    "rollout",
}
FOREIGN = {"jax", "numpy"}
# Annotations and one function that says so when it is missing.
OPTIONAL = {"natural": {"optax"}}


def imports(module: str) -> set[str]:
    """Dotted names of all that a module imports, wherever in its text."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "jaxsoft":
            found |= {f"jaxsoft.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("module", CORE)
def test_import_arrows(module: str) -> None:
    names = imports(module)
    own = {name.split(".")[1] for name in names if name.startswith("jaxsoft.")}
    assert own <= ARROWS[module]
    foreign = {name.split(".")[0] for name in names} - {"jaxsoft"} - set(sys.stdlib_module_names)
    assert foreign <= FOREIGN | OPTIONAL.get(module, set())


def test_the_package_imports_the_core_alone() -> None:
    code = (
        "import sys, jax; before = set(sys.modules); import jaxsoft; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    added = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(added) - set(sys.stdlib_module_names) <= {"jaxsoft", "jax", "jaxlib", "scipy"}


def test_public_names() -> None:
    exported = set[str]()
    for module in CORE:
        if not module.startswith("_"):
            names = importlib.import_module(f"jaxsoft.{module}").__all__
            assert sorted(names) == list(names)
            assert not exported & set(names)
            exported |= set(names)
    assert exported == set(jaxsoft.__all__)
    assert sorted(jaxsoft.__all__) == list(jaxsoft.__all__)
    for name in jaxsoft.__all__:
        assert getattr(jaxsoft, name).__doc__, name
    assert (PACKAGE / "py.typed").exists()


def test_every_other_module_belongs_to_training() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert modules == set(CORE) | TRAINING


@pytest.mark.parametrize("module", sorted(TRAINING))
def test_exports_of_training(module: str) -> None:
    imported = importlib.import_module(f"jaxsoft.{module}")
    assert len(set(imported.__all__)) == len(imported.__all__)
    assert all(hasattr(imported, name) for name in imported.__all__)


def test_experiments_and_benchmarks_are_strangers() -> None:
    for folder, other in (("experiments", "benchmarks"), ("benchmarks", "experiments")):
        for path in (PACKAGE.parent / folder).glob("*.py"):
            assert not re.search(rf"^\s*(from|import) {other}\b", path.read_text(), re.MULTILINE)


def test_the_performance_page_shows_the_committed_results() -> None:
    subprocess.run(
        [sys.executable, "-m", "benchmarks.tables", "--check"], cwd=PACKAGE.parent, check=True
    )
