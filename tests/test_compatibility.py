"""docs/compatibility.md says of every row which test shows it, and that test exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "compatibility.md"
RESULTS = ("works", "works if", "refused")
LINK = re.compile(r"\[`(?P<name>test_\w+)`\]\(\.\./(?P<path>tests/[\w/]+\.py)\)")


def _rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in rows if row[0] not in ("what", "---")]


def _tests(path: str) -> set[str]:
    nodes = ast.walk(ast.parse((ROOT / path).read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", _rows(), ids=lambda row: row[0])
def test_a_row_names_its_result_and_tests_that_exist(row: list[str]) -> None:
    _, result, reason, tests = row
    links = list(LINK.finditer(tests))

    assert result in RESULTS
    assert bool(reason) or result == "works"
    assert links
    assert LINK.sub("", tests).strip(" ,") == ""
    for link in links:
        assert link["name"] in _tests(link["path"])


def test_no_row_is_there_twice() -> None:
    names = [row[0] for row in _rows()]

    assert len(set(names)) == len(names)
