"""Messages that are sent without an envelope: nobody can tell, but for the time it takes."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from postbus.buses import CommandBus, EventBus
from postbus.catalog import MessageCatalog
from postbus.errors import EncodeError, PartiallySentError, TransportError
from postbus.messages import AsyncMessage, Command, Envelope, Event
from postbus.routers import AsyncSwitchMessageRouter, CommandRouter, EventRouter
from postbus.testing import RecordingProducer
from postbus.transports import AsyncMessageProducer, Capabilities
from postbus.wire import decode

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from postbus.transports import MessageProducer, WireMessage


@attrs.frozen
class Mail(Command, name="shop.mail"):
    text: str = ""


@attrs.frozen
class LoudMail(Mail, name="shop.loud-mail"):
    pass


@attrs.frozen
class Keyed(Command, name="shop.keyed", key="number"):
    number: int


@attrs.frozen
class Mailed(Event, name="shop.mailed"):
    pass


@attrs.frozen
class Lost(Event, name="shop.lost"):
    pass


@attrs.frozen
class Later(AsyncMessage, Command, name="shop.later"):
    text: str


class Named:
    """Each instance has a name of its own."""

    def __init__(self, name: str) -> None:
        self.message_name = name


class Loop(AsyncMessageProducer):
    """An asyncio producer that keeps what it gets, or fails with *error*."""

    def __init__(self, error: Exception | None = None) -> None:
        self.capabilities = Capabilities()
        self.messages: list[WireMessage] = []
        self._error = error

    def send_many(self, messages: Sequence[WireMessage]) -> None:
        if self._error is not None:
            raise self._error
        self.messages += messages

    send = AsyncMessageProducer.send

    async def asend_many(self, messages: Sequence[WireMessage]) -> None:
        self.send_many(messages)

    async def asend(self, message: WireMessage) -> None:
        self.send_many((message,))

    def close(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


CATALOG = MessageCatalog()
for _cls in (Mail, LoudMail, Keyed, Later):
    CATALOG.add(_cls)


def make(producer: MessageProducer, message: Any = Mail) -> CommandBus:
    bus = CommandBus()
    bus.utilize(CommandRouter(send={message: producer}))
    return bus


def dispatch(bus: CommandBus | EventBus, message: Any, *, is_async: bool, **options: Any) -> None:
    if is_async:
        asyncio.run(bus.adispatch(message, **options))
    else:
        bus.dispatch(message, **options)


both = pytest.mark.parametrize("is_async", [False, True], ids=["dispatch", "adispatch"])


@both
def test_each_message_has_an_identity_of_its_own(is_async: bool) -> None:
    """A new id and the time now, the same in the body and beside it."""
    producer = Loop()
    bus, before = make(producer), datetime.now(UTC)
    for text in ("a", "b"):
        dispatch(bus, Mail(text), is_async=is_async)

    first, second = (decode(message.body, CATALOG) for message in producer.messages)
    assert [first.message, second.message] == [Mail("a"), Mail("b")]
    assert [first.id, second.id] == [message.id for message in producer.messages]
    assert first.id != second.id
    assert before - timedelta(microseconds=1) <= first.created_at <= second.created_at
    assert {message.name for message in producer.messages} == {"shop.mail"}
    assert (first.metadata, first.headers) == ({}, {})


@both
def test_an_error_carries_the_identity_that_was_sent(is_async: bool) -> None:
    """Who catches it can dispatch the same message again."""
    sent: list[WireMessage] = []

    class Failing(Loop):
        def send_many(self, messages: Sequence[WireMessage]) -> None:
            sent.extend(messages)
            raise TransportError("no room")

    with pytest.raises(TransportError, match="no room") as caught:
        dispatch(make(Failing()), Mail("a"), is_async=is_async)

    assert caught.value.envelope == decode(sent[0].body, CATALOG)


@both
def test_an_exception_of_a_producer_does_not_get_out(is_async: bool) -> None:
    """It becomes a TransportError that it is the cause of."""
    with pytest.raises(TransportError, match=r"shop\.mail could not be sent: OSError") as caught:
        dispatch(make(Loop(OSError("gone"))), Mail(), is_async=is_async)

    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.envelope is not None
    assert caught.value.envelope.message == Mail()


@both
def test_what_cannot_be_written_is_refused(is_async: bool) -> None:
    """As for every message that is sent."""
    producer = Loop()
    bus = make(producer)

    with pytest.raises(EncodeError, match=r"shop\.mail"):
        dispatch(bus, Mail(1), is_async=is_async)  # type: ignore[arg-type]  # wrong on purpose
    assert producer.messages == []


@both
def test_options_and_identities_that_are_given_are_kept(is_async: bool) -> None:
    """Those need an envelope."""
    producer = Loop()
    bus = make(producer)
    envelope = Envelope(Mail("a"), metadata={"b": 1})
    dispatch(bus, Mail("plain"), is_async=is_async)
    dispatch(bus, envelope, is_async=is_async)
    dispatch(bus, Mail("b"), is_async=is_async, metadata={"c": True})
    dispatch(bus, Mail("c"), is_async=is_async, key="k")

    _, first, second, third = producer.messages
    assert decode(first.body, CATALOG) == envelope
    assert decode(second.body, CATALOG).metadata == {"c": True}
    assert third.key == "k"


@both
def test_it_waits_for_the_commit(is_async: bool) -> None:
    """Inside a transaction nothing is sent at once, and nothing after a rollback."""
    producer = Loop()
    seen: list[int] = []

    def handle(message: Keyed) -> None:
        mails.dispatch(Mail("a"))
        seen.append(len(producer.messages))
        if message.number < 0:
            raise ValueError

    async def ahandle(message: Keyed) -> None:
        await mails.adispatch(Mail("a"))
        seen.append(len(producer.messages))
        if message.number < 0:
            raise ValueError

    @contextmanager
    def transaction() -> Generator[None]:
        yield

    mails, bus = make(producer), CommandBus()
    bus.utilize(CommandRouter({Keyed: ahandle if is_async else handle}))
    bus.unit_of_work(transaction)
    dispatch(bus, Keyed(1), is_async=is_async)
    assert (seen, len(producer.messages)) == ([0], 1)
    with pytest.raises(Exception, match="ValueError"):
        dispatch(bus, Keyed(-1), is_async=is_async)
    assert len(producer.messages) == 1


@both
def test_several_producers_all_get_it(is_async: bool) -> None:
    """The same message, and an error of one does not keep it from the others."""
    first, second = RecordingProducer(), RecordingProducer()
    bus = EventBus()
    bus.utilize(EventRouter(send={Mailed: [first, second], Lost: [Loop(OSError()), second]}))
    dispatch(bus, Mailed(), is_async=is_async)
    assert first.bodies == second.bodies

    with pytest.raises(PartiallySentError):
        dispatch(bus, Lost(), is_async=is_async)
    assert len(second.bodies) == 2


def test_a_producer_without_asyncio_sends_in_a_thread() -> None:
    """The loop must not wait for it."""
    producer = RecordingProducer()
    dispatch(make(producer), Mail("a"), is_async=True)

    assert [envelope.message for envelope in producer.decoded(CATALOG)] == [Mail("a")]


@both
def test_the_key_that_a_class_declares_orders_its_messages(is_async: bool) -> None:
    """It is read off each message."""
    producer = Loop()
    dispatch(make(producer, message=Keyed), Keyed(7), is_async=is_async)

    assert producer.messages[0].key == "7"


@both
def test_a_name_of_its_own_stays_one(is_async: bool) -> None:
    """B04: an object's own name comes before its class."""
    bus = make(Loop(), message="shop.named")

    with pytest.raises(EncodeError, match="Named cannot be sent"):
        dispatch(bus, Named("shop.named"), is_async=is_async)


@both
def test_a_subclass_is_sent_as_what_it_is(is_async: bool) -> None:
    """A plan is made for one class exactly."""
    producer = Loop()
    bus = CommandBus()
    bus.utilize(CommandRouter(send={Mail: producer, LoudMail: producer}))
    for message in (Mail("a"), LoudMail("b")):
        dispatch(bus, message, is_async=is_async)

    assert [decode(m.body, CATALOG).message for m in producer.messages] == [
        Mail("a"),
        LoudMail("b"),
    ]


@both
def test_the_mark_of_the_async_switch_is_written(is_async: bool) -> None:
    """T06: PHP receivers look for it, so an envelope is made to hold it."""
    producer = Loop()
    bus = CommandBus()
    bus.utilize(AsyncSwitchMessageRouter(CommandRouter(), producer))
    dispatch(bus, Later("a"), is_async=is_async)

    envelope = decode(producer.messages[0].body, CATALOG)
    assert (envelope.message, envelope.metadata) == (Later("a"), {"handled-async": True})
