"""What the contracts share: the queue of a test, and the count at the end of a run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from postbus.testing._contracts._link import Link

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from postbus.testing._contracts._under_test import TransportUnderTest

__all__ = ["Contract"]

_REFUSED = ("postbus contract", "refused")
_PLUGIN = "postbus-contracts"


class Contract:
    """What a contract needs: the fixture *under_test*, which a package gives."""

    @pytest.fixture
    def under_test(self) -> TransportUnderTest:
        """The transport, with a queue that no other test has."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture `under_test`")

    @pytest.fixture
    def link(
        self, under_test: TransportUnderTest, record_property: Callable[[str, object], None]
    ) -> Iterator[Link]:
        """The queue in use; everything is closed after the test."""
        with Link(under_test, lambda: record_property(*_REFUSED)) as link:
            yield link

    @pytest.fixture(autouse=True)
    def _counted(self, request: pytest.FixtureRequest) -> None:
        """Have the end of the run say what was shown."""
        plugins = request.config.pluginmanager
        if not plugins.has_plugin(_PLUGIN):
            plugins.register(_Summary(request.session), _PLUGIN)


class _Summary:
    """Says at the end how many tests showed what a transport can, and how many a refusal."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print a line per class of tests."""
        classes: dict[str, str] = {}
        for item in self._session.items:
            cls = item.cls if isinstance(item, pytest.Function) else None
            if cls is not None and issubclass(cls, Contract):
                classes[item.nodeid] = cls.__name__
        counts = {name: Counter[str]() for name in classes.values()}
        for outcome in ("passed", "skipped"):
            for report in terminalreporter.stats.get(outcome, ()):
                name = classes.get(report.nodeid)
                if name is not None:
                    is_refusal = outcome == "passed" and _REFUSED in report.user_properties
                    counts[name]["refused" if is_refusal else outcome] += 1
        terminalreporter.section("contracts")
        for name, count in sorted(counts.items()):
            shown = f"{count['passed']} / {count['refused']} / {count['skipped']}"
            terminalreporter.write_line(f"{name}: asserted / refused / skipped = {shown}")
