"""What the package promises of itself: its names, its import arrows, what its import brings."""

import ast
import importlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import jaxsoft

PACKAGE = Path(jaxsoft.__file__).parent
ROOT = PACKAGE.parent

# The core: the files beside __init__.py and these folders. Files with an underscore are "helpers".
CORE_FOLDERS = {"losses", "natural"}
# What each part of the core may import of the package. A part that is not listed may import the
# whole core.
CORE_ARROWS = {
    "helpers": {"helpers"},
    "boltzmann": {"helpers"},
    "returns": {"helpers", "boltzmann"},
    "traces": {"helpers"},
    "losses": {"helpers", "boltzmann", "returns", "losses"},
    "natural": {"helpers", "natural"},
    "planning": {"helpers", "boltzmann"},
    "squashed": {"helpers"},
    "stein": {"helpers"},
    "value_gradients": {"helpers"},
}
# The same for the folders around the core. What an agent, an environment and a training loop
# exchange is in agents/base.py: of agents, those two know these types alone.
ARROWS = {
    "agents": {"core", "agents"},
    "environments": {"core", "agents.base", "environments"},
    "training": {"core", "agents.base", "environments", "training"},
    "cli": {"core", "agents", "environments", "training", "cli"},
}
# Parts whose names are read with their own: `jaxsoft.traces.update`.
NAMESPACES = {"traces"}
FOREIGN = {"jax", "numpy"}
# Optional: a function that says so when it is missing, and annotations that do without.
OPTIONAL = {"natural/transform.py": {"optax"}, "_typing.py": {"jaxtyping"}}


def in_core(path: Path) -> bool:
    return path.parent == PACKAGE or path.relative_to(PACKAGE).parts[0] in CORE_FOLDERS


FILES = sorted(PACKAGE.rglob("*.py"))
CORE = [path for path in FILES if in_core(path) and path != PACKAGE / "__init__.py"]
AROUND = [path for path in FILES if not in_core(path)]


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def imports(path: Path) -> set[str]:
    """Dotted names of all that a file imports, wherever in its text."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(path: Path) -> list[list[str]]:
    """What a file imports of the package, ["agents", "base", "Agent"] for example."""
    split = [name.split(".") for name in imports(path)]
    return [names[1:] for names in split if names[0] == "jaxsoft"]


def part_of_core(name: str) -> str:
    return "helpers" if name.startswith("_") else name.removesuffix(".py")


def part_around_core(names: list[str]) -> str:
    return names[0] if names and names[0] in ARROWS else "core"


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_imports_the_core_alone(path: Path) -> None:
    part = part_of_core(path.relative_to(PACKAGE).parts[0])
    core = {part_of_core(file.relative_to(PACKAGE).parts[0]) for file in CORE}
    assert {part_of_core(names[0]) for names in own(path)} <= CORE_ARROWS.get(part, core)
    foreign = {name.split(".")[0] for name in imports(path)} - {"jaxsoft"}
    foreign -= set(sys.stdlib_module_names)
    assert foreign <= FOREIGN | OPTIONAL.get(name_of(path), set())


@pytest.mark.parametrize("path", AROUND, ids=name_of)
def test_arrows_around_the_core(path: Path) -> None:
    allowed = ARROWS[path.relative_to(PACKAGE).parts[0]]
    for names in own(path):
        assert {part_around_core(names), ".".join(names[:2])} & allowed, names


def test_every_folder_has_its_arrows() -> None:
    folders = {path.relative_to(PACKAGE).parts[0] for path in FILES if path.parent != PACKAGE}
    assert folders == CORE_FOLDERS | set(ARROWS)


@pytest.mark.parametrize(
    ("folder", "strangers"),
    [
        ("jaxsoft", {"experiments", "benchmarks", "tests", "examples"}),
        ("experiments", {"benchmarks", "tests", "examples"}),
        ("benchmarks", {"experiments", "tests", "examples"}),
        ("examples", {"experiments", "benchmarks", "tests"}),
    ],
)
def test_strangers(folder: str, strangers: set[str]) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        assert not strangers & {name.split(".")[0] for name in imports(path)}, path


def test_the_import_brings_the_core_alone() -> None:
    # jaxtyping is imported where it is installed, and not needed where it is not.
    code = (
        "import sys, jax; sys.modules['jaxtyping'] = None; before = set(sys.modules); "
        "import jaxsoft; "
        "print(*(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    brought = [name.split(".") for name in done.stdout.split()]
    foreign = {names[0] for names in brought} - set(sys.stdlib_module_names)
    assert foreign <= {"jaxsoft", "jax", "jaxlib", "scipy"}
    ours = {names[1] for names in brought if names[0] == "jaxsoft" and names[1:]}
    assert ours == {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in CORE}


def test_public_names() -> None:
    exported, themed = set[str](), set[str]()
    modules = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in CORE}
    for module in sorted(modules):
        if not module.startswith("_"):
            names = importlib.import_module(f"jaxsoft.{module}").__all__
            assert sorted(names) == list(names)
            names = [module] if module in NAMESPACES else names
            if module in jaxsoft.__all__:  # of a theme, and used with its name
                names = [name for name in names if name in jaxsoft.__all__]
                themed.add(module)
            assert not exported & set(names)
            exported |= set(names)
    assert exported | themed | {"load_policy"} == set(jaxsoft.__all__)
    assert sorted(jaxsoft.__all__) == list(jaxsoft.__all__)
    for name in jaxsoft.__all__:
        assert getattr(jaxsoft, name).__doc__, name
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_exports(path: Path) -> None:
    dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(dotted)
    names = getattr(module, "__all__", [])
    assert len(set(names)) == len(names)
    assert all(hasattr(module, name) for name in names)


def test_the_performance_page_shows_the_committed_results() -> None:
    subprocess.run([sys.executable, "-m", "benchmarks.tables", "--check"], cwd=ROOT, check=True)


@pytest.mark.slow
def test_the_sdist_has_all_that_its_tests_need(tmp_path: Path) -> None:
    """Unpacked somewhere else, they are all collected, and those run that read other files."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    [unpacked] = (path for path in tmp_path.iterdir() if path.is_dir())
    # Without what an editable install adds: this checkout would answer for what is missing.
    code = f"import sys; sys.path[:] = [x for x in sys.path if x not in ({str(ROOT)!r}, '')]\n"
    code += "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    environment = {name: x for name, x in os.environ.items() if name != "PYTHONPATH"}
    reading = ["benchmarks", "core/test_rlax_page.py", "equations/test_equations_map.py"]
    reading += ["experiments/test_publish.py", "cli/test_panels.py", "test_package.py"]
    for words in (["--collect-only", "-q"], [f"tests/{name}" for name in reading]):
        subprocess.run(
            [sys.executable, "-c", code, *words], cwd=unpacked, env=environment, check=True
        )
