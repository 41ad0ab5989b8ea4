"""docs/transports/kombu.md: each row of the table of old drivers names a test that there is."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "transports" / "kombu.md"
HEADER = "| there | here | shown by |\n"


def test_each_row_is_shown_by_a_test() -> None:
    """What the last column names is a test, or a class of tests, of some package."""
    _, _, table = PAGE.read_text(encoding="utf-8").partition(HEADER)
    rows = [line.split(" | ") for line in table.splitlines()[1:] if line.startswith("| ")]
    tests = "".join(
        path.read_text(encoding="utf-8") for path in ROOT.glob("packages/*/tests/test_*.py")
    )
    there = set(re.findall(r"^ *(?:def|class) (\w+)", tests, re.MULTILINE))
    shown = [set(re.findall(r"`(\w+)`", row[-1])) for row in rows]
    assert len(rows) > 10
    assert all(shown), "a row without a test"
    assert set().union(*shown) <= there
