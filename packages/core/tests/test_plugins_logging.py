"""The log of dispatches: what happened, never what was in it."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from postbus.buses import CommandBus, EventBus, QueryBus
from postbus.errors import HandlerFailedError, ListenersFailedError, UnauthorizedError
from postbus.messages import Command, Envelope, Event, Query
from postbus.plugins import (
    CorrelationPlugin,
    FinalizeGuard,
    LoggingPlugin,
    RouteGuard,
)
from postbus.promises import Promise
from postbus.routers import CommandRouter, EventRouter, QueryRouter
from postbus.testing import RecordingProducer

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = "4111-1111"  # noqa: S105  what must not be found in a log


@attrs.frozen
class Pay(Command, name="shop.pay"):
    card: str = SECRET


@attrs.frozen
class Paid(Event, name="shop.paid"):
    card: str = SECRET


@attrs.frozen
class Count(Query[int], name="shop.count"):
    pass


class DeclinedError(Exception):
    code = "card-declined"


class Log(logging.Handler):
    """A logger of one test's own, and its records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []
        self.logger = logging.Logger("test", logging.DEBUG)  # noqa: LOG001  nobody else may find it
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def facts(self, *names: str) -> list[tuple[Any, ...]]:
        return [tuple(getattr(each, name, None) for name in names) for each in self.records]


@pytest.fixture
def log() -> Log:
    return Log()


def commands(log: Log, handler: Any, **options: Any) -> CommandBus:
    bus = CommandBus()
    bus.utilize(CommandRouter({Pay: handler}))
    bus.utilize(LoggingPlugin(log.logger, **options))
    return bus


def ways(bus: Any) -> list[Callable[..., Any]]:
    """Return dispatch in both colours."""
    return [bus.dispatch, lambda message: asyncio.run(bus.adispatch(message))]


def fail(message: object) -> None:
    raise DeclinedError(f"the card {SECRET} was declined")


class Denies:
    def is_granted(self, name: str, context: Any = None) -> bool:
        return False


class TestRecords:
    def test_each_dispatch_is_an_event_with_its_facts(self, log: Log) -> None:
        """One record, in both colours, with identity and kind beside the words."""
        bus = commands(log, lambda m: None)
        envelope = Envelope(Pay(), headers={"correlation_id": "request-7"})
        for run in ways(bus):
            run(envelope)
        facts = ("message_name", "message_id", "kind", "correlation_id", "causation_id", "source")
        expected = ("shop.pay", envelope.id, "command", "request-7", None, None)
        assert [expected] * 2 == log.facts(*facts)
        assert [("message dispatched", logging.INFO)] * 2 == log.facts("msg", "levelno")

    def test_a_failure_says_what_kind_it_was(self, log: Log) -> None:
        """The class of the exception and its code; the error still reaches the caller."""
        bus = commands(log, fail)
        for run in ways(bus):
            with pytest.raises(HandlerFailedError):
                run(Pay())
        expected = ("message dispatch failed", logging.WARNING, "DeclinedError", "card-declined")
        assert [expected] * 2 == log.facts("msg", "levelno", "error", "code")
        assert [(None, None)] * 2 == log.facts("exc_info", "exc_text")

    def test_a_code_that_is_no_text_is_left_out(self, log: Log) -> None:
        """Exceptions of others have codes of all sorts."""
        bus = commands(log, sys.exit)
        with pytest.raises(SystemExit):
            bus.dispatch(Pay())
        assert [("SystemExit", None)] == log.facts("error", "code")

    def test_no_payload_is_in_any_record(self, log: Log) -> None:
        """Nor what an exception says, which may quote one."""
        bus = commands(log, fail)
        events = EventBus()
        events.utilize(EventRouter({Paid: [fail, lambda e: None]}))
        events.utilize(LoggingPlugin(log.logger))
        with pytest.raises(HandlerFailedError):
            bus.dispatch(Pay(), metadata={"card": SECRET})
        with pytest.raises(ListenersFailedError):
            events.dispatch(Paid())
        assert ["DeclinedError", "ListenersFailedError"] == [
            error for (error,) in log.facts("error")
        ]
        assert not any(SECRET in str(vars(record)) for record in log.records)

    def test_the_duration_is_in_seconds(self, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
        """From INVOKE to the end; nothing where INVOKE was not reached."""
        clock = iter([10.0, 12.5])
        monkeypatch.setattr("postbus.plugins._logging.perf_counter", lambda: next(clock))
        bus = commands(log, lambda m: None)
        bus.dispatch(Pay())
        bus.utilize(RouteGuard(Denies()))
        with pytest.raises(UnauthorizedError):
            bus.dispatch(Pay())
        assert [(2.5, None), (0.0, "UnauthorizedError")] == log.facts("duration", "error")

    def test_levels_can_be_chosen(self, log: Log) -> None:
        """Of what went well and of what failed; what is not enabled is not written."""
        log.logger.setLevel(logging.INFO)
        bus = commands(log, lambda m: None, level=logging.DEBUG, failure_level=logging.CRITICAL)
        bus.dispatch(Pay())
        assert [] == log.records
        bus.utilize(RouteGuard(Denies()))
        with pytest.raises(UnauthorizedError):
            bus.dispatch(Pay())
        assert [(logging.CRITICAL,)] == log.facts("levelno")

    def test_the_logger_has_a_name_of_its_own(self, caplog: pytest.LogCaptureFixture) -> None:
        """Unless another is given."""
        caplog.set_level(logging.INFO, "postbus.dispatch")
        bus = CommandBus()
        bus.utilize(CommandRouter({Pay: lambda m: None}))
        bus.utilize(LoggingPlugin())
        bus.dispatch(Pay())
        assert [("postbus.dispatch", logging.INFO, "message dispatched")] == caplog.record_tuples


class TestIdentity:
    def test_what_is_sent_is_what_is_logged(self, log: Log) -> None:
        """One id, and no unit of work where there is nothing to commit."""
        producer = RecordingProducer()
        bus = CommandBus()
        bus.utilize(CommandRouter({}, {Pay: producer}))
        bus.utilize(LoggingPlugin(log.logger))
        bus.unit_of_work(lambda: pytest.fail("nothing to commit"))
        bus.dispatch(Pay())
        assert [(producer.messages[0].id,)] == log.facts("message_id")

    def test_a_received_message_says_from_where(self, log: Log) -> None:
        """And which message caused it."""
        bus = commands(log, lambda m: None)
        bus.utilize(CorrelationPlugin())
        envelope = Envelope(Pay(), headers={"causation_id": "a", "correlation_id": "b"})
        bus.receive(envelope, "mail")
        facts = ("source", "message_id", "causation_id", "correlation_id")
        assert [("mail", envelope.id, "a", "b")] == log.facts(*facts)


class TestQueries:
    def queries(self, log: Log, finder: Any) -> QueryBus:
        bus = QueryBus()
        bus.utilize(QueryRouter({Count: finder}))
        bus.utilize(LoggingPlugin(log.logger))
        return bus

    def test_an_answer_on_its_way_is_logged_when_it_comes(self, log: Log) -> None:
        """Or when it fails to."""
        answers: list[Promise[int]] = [Promise(), Promise()]
        waiting = iter(answers)
        bus = self.queries(log, lambda q: next(waiting))
        for _ in answers:
            bus.dispatch(Count())
        assert [] == log.records
        answers[0].resolve(5)
        answers[1].reject(DeclinedError("no"))
        assert [(None, None), ("DeclinedError", "card-declined")] == log.facts("error", "code")

    def test_a_withheld_answer_is_a_failure(self, log: Log) -> None:
        """The record comes after the guard's last word, in whatever order they were attached."""
        bus = self.queries(log, lambda q: 5)
        bus.utilize(FinalizeGuard(Denies()))
        with pytest.raises(UnauthorizedError):
            bus.dispatch(Count()).result()
        assert [("UnauthorizedError",)] == log.facts("error")
