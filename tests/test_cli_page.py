"""The page about the command line says what the commands say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from postbus.cli._program import program
from postbus.runtime import RULES

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "cli.md"


def test_it_is_current() -> None:
    """After a change of a command or a rule the page is written anew."""
    path = ROOT / "tools" / "cli_page.py"
    spec = importlib.util.spec_from_file_location("cli_page", path)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    written = PAGE.read_text(encoding="utf-8")
    assert tool.page(written) == written, "python tools/cli_page.py --update"


def test_nothing_is_left_out() -> None:
    """Every command and every rule has a heading."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert {f"### postbus {name}" for name in program.commands} <= set(lines)
    assert {f"### {rule}" for rule in RULES} <= set(lines)
