"""`postbus topology`: what producers and consumers need at their systems."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from postbus import Postbus, build
from postbus.cli._program import program
from postbus.errors import ConnectionFailedError
from postbus.memory import MEMORY, MemoryConsumer, MemoryProducer, reset
from postbus.messages import new_id
from postbus.transports import CommonSettings, TopologyPart

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from click.testing import Result

HERE = __name__
current: dict[str, Any] = {}


def application() -> Postbus:
    return build(current["config"])


def run(*arguments: str) -> Result:
    command = ["--app", f"{HERE}:application", "topology", *arguments]
    return CliRunner().invoke(program, command, catch_exceptions=False)


@pytest.fixture(autouse=True)
def address() -> Iterator[str]:
    """An application with a producer and a consumer."""
    address = new_id()
    section = {"mail": {"transport": "memory", "address": address}}
    current["config"] = {"producers": section, "consumers": section}
    yield address
    reset(address)


class Sender(MemoryProducer):
    """Needs a queue, which is there when it was made."""

    made: bool = False
    difference: str = ""

    def show_topology(self) -> Sequence[TopologyPart]:
        if self.difference:
            return [TopologyPart("queue", "mail", "differs", self.difference)]
        return [TopologyPart("queue", "mail", "there" if self.made else "missing")]

    def apply_topology(self) -> Sequence[TopologyPart]:
        if self.made or self.difference:
            return self.show_topology()
        type(self).made = True
        return [TopologyPart("queue", "mail", "made")]


class Unreachable(MemoryConsumer):
    """Has a system that is not there."""

    def show_topology(self) -> Sequence[TopologyPart]:
        raise ConnectionFailedError("nobody there, password=hunter2")

    apply_topology = show_topology


@pytest.fixture
def sender(monkeypatch: pytest.MonkeyPatch) -> type[Sender]:
    """Have the application's producer be one of a fresh class."""
    fresh = type("Fresh", (Sender,), {})

    def make(settings: Any, common: CommonSettings) -> MemoryProducer:
        made: MemoryProducer = fresh(address=settings.address)
        return made

    monkeypatch.setattr(MEMORY, "make_producer", make)
    return fresh


def words(result: Result) -> list[list[str]]:
    return [line.split() for line in result.stdout.splitlines()]


def test_show_makes_nothing_and_apply_what_is_missing(sender: type[Sender]) -> None:
    """Applied twice, it makes nothing the second time."""
    header = ["section", "kind", "name", "state", "difference"]
    row = ["producers.mail", "queue", "mail"]
    for call, state in (
        ("show", "missing"),
        ("apply", "made"),
        ("apply", "there"),
        ("show", "there"),
    ):
        result = run(call)
        assert [header, [*row, state, "-"]] == words(result)
        assert 0 == result.exit_code


def test_what_differs_is_a_failure_with_the_difference(sender: type[Sender]) -> None:
    """For people and for programs; nothing is made of it."""
    sender.difference = "it holds 5, wanted are 7"
    for call in ("show", "apply"):
        result = run(call, "--json")
        assert 1 == result.exit_code
        assert [
            {
                "section": "producers.mail",
                "kind": "queue",
                "name": "mail",
                "state": "differs",
                "difference": "it holds 5, wanted are 7",
            }
        ] == json.loads(result.stdout)
    assert "it holds 5, wanted are 7" in run("show").stdout
    assert not sender.made


def test_a_system_that_is_not_there_hides_no_other(
    sender: type[Sender], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are shown, without a secret, and the exit code says it."""

    def make(settings: Any, common: CommonSettings) -> MemoryConsumer:
        return Unreachable(address=settings.address)

    monkeypatch.setattr(MEMORY, "make_consumer", make)
    result = run("apply")
    assert 4 == result.exit_code
    assert ["producers.mail", "queue", "mail", "made", "-"] in words(result)
    assert "consumers.mail: nobody there" in result.stderr
    assert "hunter2" not in result.stderr


def test_without_anything_to_declare_there_is_none() -> None:
    """Most transports have no topology."""
    result = run("show")
    assert (0, "none\n") == (result.exit_code, result.stdout)
