"""What every test run shares: snippets of docs as tests, readable contract failures, profiles."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest

# Contract suites live in the package: without this their failures are a bare AssertionError.
pytest.register_assert_rewrite("postbus.testing")

# What is not installed leaves tests out; the header of the run says which and why.
missing: list[str] = []

try:
    from hypothesis import settings
except ImportError:
    missing.append("hypothesis is not installed: test files that import it do not run")

    def pytest_ignore_collect(collection_path: Path) -> bool | None:
        """Leave out the files that need hypothesis."""
        if collection_path.suffix != ".py" or not collection_path.is_file():
            return None
        return "\nfrom hypothesis" in collection_path.read_text(encoding="utf-8") or None

else:
    settings.register_profile("dev", max_examples=25, deadline=None)
    settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True)
    settings.register_profile("nightly", max_examples=5_000, deadline=None)
    settings.load_profile(
        os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev")
    )

try:
    from sybil import Sybil
    from sybil.parsers.myst import PythonCodeBlockParser, SkipParser
    from sybil.parsers.rest import DocTestParser
except ImportError:
    missing.append("sybil is not installed: snippets of README.md, docs and docstrings do not run")
else:

    def enter_folder(namespace: dict[str, Any]) -> None:
        """Let the snippets of a page write into a folder of their own."""
        namespace["_folder"] = TemporaryDirectory()
        namespace["_before"] = Path.cwd()
        os.chdir(namespace["_folder"].name)

    def leave_folder(namespace: dict[str, Any]) -> None:
        """Go back and remove the folder."""
        os.chdir(namespace["_before"])
        namespace["_folder"].cleanup()

    pages = Sybil(
        parsers=[PythonCodeBlockParser(), SkipParser()],
        patterns=["*.md"],
        setup=enter_folder,
        teardown=leave_folder,
        name="page",
    )
    docstrings = Sybil(
        parsers=[DocTestParser()],
        patterns=["src/*/*.py", "src/*/*/*.py"],
        setup=enter_folder,
        teardown=leave_folder,
        name="docstring",
    )
    pytest_collect_file = (pages + docstrings).pytest()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
        """Keep the snippets of a page in its order, wherever a random order has put them."""
        places: dict[object, list[int]] = {}
        for index, item in enumerate(items):
            if hasattr(item, "example") and item.parent is not None:
                places.setdefault(item.parent, []).append(index)
        for indexes in places.values():
            snippets = sorted((items[i] for i in indexes), key=lambda item: item.example.start)  # type: ignore[attr-defined]  # Sybil's items have it
            for index, item in zip(indexes, snippets, strict=True):
                items[index] = item


def pytest_report_header() -> list[str]:
    """Say what does not run, and why."""
    return missing


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what this machine lacks: the tests that need it did not run."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.getreports("skipped"):
        said: object = report.longrepr
        if isinstance(said, tuple):
            _, _, reason = cast("tuple[str, int, str]", said)
            reasons[reason.removeprefix("Skipped: ")] += 1
    if reasons:
        terminalreporter.section("not run here")
        for reason, tests in sorted(reasons.items()):
            terminalreporter.write_line(f"{reason} ({tests} tests)")
