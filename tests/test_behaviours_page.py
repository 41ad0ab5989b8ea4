"""docs/behaviours.md: every statement has its row, and every row that claims something a test."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "behaviours.md"
HERE = "tests/test_behaviours_page.py::TestBehavioursPage::test_it_cannot_rot"


def numbered(prefix: str, first: int, last: int) -> list[str]:
    return [f"{prefix}{number:02}" for number in range(first, last + 1)]


# Every statement there is. A new one is added here and to the page.
IDS = [
    *numbered("C", 13, 22),
    *numbered("B", 1, 12),
    *numbered("B", 20, 38),
    *numbered("P", 1, 20),
    *numbered("F", 1, 7),
    *numbered("W", 1, 2),
    *numbered("Z", 1, 4),
    *numbered("H", 1, 5),
    *numbered("R", 1, 4),
    *numbered("K", 14, 17),
]
# What became of a statement, and whether a test must show it.
OUTCOMES = {"kept": True, "changed": True, "not applicable": False, "with its transport": False}


@attrs.frozen
class Row:
    """One statement: what became of it, why, and the tests that cover it."""

    id: str
    outcome: str
    reason: str
    tests: tuple[str, ...]


def rows_of(page: str) -> list[Row]:
    rows: list[Row] = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or not re.fullmatch(r"[A-Z]\d\d", cells[0]):
            continue
        id_, _, here, tests = cells
        outcome, _, reason = here.partition(":")
        rows.append(Row(id_, outcome, reason.strip(), tuple(re.findall(r"`([^`]+)`", tests))))
    return rows


@cache
def docstrings(path: str) -> dict[str, str]:
    """Return the docstring of each test in the file at *path*, by `Class::test` or `test`."""
    file = ROOT / path
    if not file.is_file():
        return {}
    return dict(found(ast.parse(file.read_text(encoding="utf-8")).body, ""))


def found(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, str]]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from found(node.body, f"{prefix}{node.name}::")
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield prefix + node.name, ast.get_docstring(node) or ""


def problems(page: str) -> list[str]:
    """Return what is wrong with *page*, a line each."""
    rows = rows_of(page)
    listed = [row.id for row in rows]
    wrong = [f"{id_}: no row" for id_ in IDS if id_ not in listed]
    wrong += [f"{id_}: two rows" for id_ in sorted(set(listed)) if listed.count(id_) > 1]
    wrong += [f"{id_}: no statement has this id" for id_ in listed if id_ not in IDS]
    for row in rows:
        wrong += [f"{row.id}: {problem}" for problem in problems_of(row)]
    return wrong


def problems_of(row: Row) -> Iterator[str]:
    if row.outcome not in OUTCOMES:
        yield f"{row.outcome!r} is none of {', '.join(OUTCOMES)}"
        return
    if row.outcome in {"changed", "not applicable"} and not row.reason:
        yield f"{row.outcome}, and no reason"
    naming = 0
    for test in row.tests:
        path, _, name = test.partition("::")
        docstring = docstrings(path).get(name)
        if docstring is None:
            yield f"there is no test {test}"
        elif re.search(rf"\b{row.id}\b", docstring):
            naming += 1
    if OUTCOMES[row.outcome] and not naming:
        yield "no test of it names it in its docstring"


class TestBehavioursPage:
    """docs/behaviours.md."""

    def test_it_cannot_rot(self) -> None:
        """Each statement stands there once, with tests that exist and name it."""
        assert [] == problems(PAGE.read_text(encoding="utf-8"))

    @pytest.mark.parametrize(
        ("row", "problem"),
        [
            ("| B01 | x | kept | |", "B01: no test of it names it in its docstring"),
            ("| B01 | x | kept | `tests/no.py::test_x` |", "B01: there is no test tests/no.py"),
            ("| B01 | x | changed | |", "B01: changed, and no reason"),
            ("| B01 | x | mended | |", "B01: 'mended' is none of kept"),
            ("| B99 | x | not applicable: y | |", "B99: no statement has this id"),
            ("| B02 | x | with its transport | |\n" * 2, "B02: two rows"),
            ("", "C13: no row"),
            (f"| B02 | x | kept | `{HERE}` |", "B02: no test of it names it in its docstring"),
        ],
    )
    def test_each_fault_is_found(self, row: str, problem: str) -> None:
        """A page with one more fault has one more problem."""
        assert any(each.startswith(problem) for each in problems(row))
