"""`docs/fidelity.md` has a row for every known difference and reading, and every test that it names exists."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "fidelity.md").read_text(encoding="utf-8")
ROWS = {match[1]: match[0] for match in re.finditer(r"^\| ([DR]?\d+) \|.*\|$", PAGE, flags=re.MULTILINE)}
NAME = re.compile(r"`([\w/]+\.py)::(\w+)(?:\[([\w-]+)\])?`")


@cache
def functions(file: str) -> set[str]:
    """Names of the tests in a file."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_difference_has_a_row():
    assert list(ROWS) == [f"{kind}{i}" for kind, count in (("D", 18), ("", 23), ("R", 17)) for i in range(1, count + 1)]
    for number, row in ROWS.items():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == (4 if number[0] in "DR" else 5), row
        assert all(cells), row
        assert NAME.sub("", cells[-1]).strip() == "", f"{number} is not proven by tests alone: {cells[-1]}"


@pytest.mark.parametrize("name", sorted({match[0] for match in NAME.finditer(PAGE)}))
def test_every_named_test_exists(name):
    file, function, case = NAME.fullmatch(name).groups()
    assert function in functions(file)
    if case is not None:
        assert f'id="{case}"' in (TESTS / file).read_text(encoding="utf-8")
