"""docs/equations.md is complete and true: equation -> public function -> test."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

import jaxsoft
from tests.support import calls, oracles

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "equations.md"
EQUATIONS = range(1, 91)
PAPER, FAMILY = PAGE.read_text(encoding="utf-8").split("\n## The family\n")


def rows():
    """(numbers, meaning, functions, tests) of every row of the page's tables."""
    for line in PAPER.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ("):
            assert len(cells) == 4, line
            first, *last = (int(x) for x in re.findall(r"\((\d+)\)", cells[0]))
            functions, tests = (set(re.findall(r"`(\w+)`", cell)) for cell in cells[2:])
            yield range(first, (last[0] if last else first) + 1), cells[1], functions, tests


def marked_tests():
    """Equation -> names of the tests that are marked with it, from the sources."""
    marked = defaultdict(set)
    for path in TESTS.glob("**/test_*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for node in (x for x in nodes if isinstance(x, ast.FunctionDef)):
            for decorator in node.decorator_list:
                match = re.fullmatch(r"(?:pytest\.mark\.)?equation\((.*)\)", ast.unparse(decorator))
                for number in ast.literal_eval(f"({match[1]},)") if match else ():
                    marked[number].add(node.name)
    return marked


ROWS = list(rows())
MARKED = marked_tests()


def test_every_equation_stands_once():
    assert [number for numbers, *_ in ROWS for number in numbers] == list(EQUATIONS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0][0]}-{row[0][-1]}")
def test_row_is_true(row):
    numbers, meaning, functions, tests = row
    assert meaning
    assert functions, "no function"
    assert functions <= set(jaxsoft.__all__)
    assert tests, "no test"
    for number in numbers:
        assert tests <= MARKED[number], number


def test_every_marked_test_is_on_the_page():
    assert set(MARKED) == set(EQUATIONS)
    names = set().union(*MARKED.values())
    assert set(re.findall(r"`(test_\w+)`", PAPER)) == names


def test_the_family_is_on_the_page():
    """Functions of themes with their laws, and tests that exist."""
    files = TESTS.glob("**/test_*.py")
    existing = set().union(*(re.findall(r"def (test_\w+)", x.read_text()) for x in files))
    assert set(re.findall(r"`(test_\w+)`", FAMILY)) <= existing
    named = set(re.findall(r"`([\w.]+)`", FAMILY))
    assert named >= {name for name in calls.FUNCTIONS if "." in name}


def test_misprints_are_told():
    told = {number for numbers, meaning, *_ in ROWS if "✗" in meaning for number in numbers}
    assert told >= {int(number) for number in oracles.PRINTED}
