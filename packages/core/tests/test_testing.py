"""The fakes keep the promises of what they stand for."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from postbus import testing
from postbus.catalog import MessageCatalog
from postbus.errors import (
    ClosedError,
    ConnectionFailedError,
    DecodeError,
    HandlerFailedError,
    PartiallySentError,
    RejectedError,
    UnsupportedError,
)
from postbus.memory import MemoryConsumer, MemoryProducer
from postbus.messages import Command, Envelope, new_id
from postbus.promises import Promise
from postbus.testing import FakeConsumer, FakeDelivery, RecordingProducer, reset_memory
from postbus.transports import Capabilities, QueryClient, Reply, WireMessage
from postbus.wire import decode_problem, encode

if TYPE_CHECKING:
    from postbus.errors import TransportError


@attrs.frozen
class PlaceOrder(Command, name="shop.place-order"):
    number: int


def make_message(body: bytes = b"{}", **options: Any) -> WireMessage:
    return WireMessage(body, {}, new_id(), "shop.place-order", **options)


def ask(producer: RecordingProducer, message: WireMessage | None = None) -> Promise[Reply]:
    reply: Promise[Reply] = Promise()
    producer.request(message or make_message(), reply)
    return reply


class TestRecordingProducer:
    def test_it_records_in_order(self) -> None:
        """What was sent can be read: messages, bodies, and as a receiver decodes them."""
        producer, catalog = RecordingProducer(), MessageCatalog()
        catalog.add(PlaceOrder)
        messages = [make_message(encode(Envelope(PlaceOrder(n)))) for n in range(3)]
        producer.send(messages[0])
        producer.send_many(messages[1:])
        assert messages == producer.messages
        assert [message.body for message in messages] == producer.bodies
        assert [PlaceOrder(0), PlaceOrder(1), PlaceOrder(2)] == [
            envelope.message for envelope in producer.decoded(catalog)
        ]

    def test_decoding_is_as_strict_as_a_receiver(self) -> None:
        """A name that the catalogue lacks is refused in the test already."""
        producer = RecordingProducer()
        producer.send(make_message(encode(Envelope(PlaceOrder(1)))))
        with pytest.raises(DecodeError):
            producer.decoded(MessageCatalog())

    def test_what_it_returns_is_a_copy(self) -> None:
        """A test that changes the list changes nothing."""
        producer = RecordingProducer()
        producer.send(make_message())
        producer.messages.clear()
        assert 1 == len(producer.messages)

    def test_any_thread_may_send(self) -> None:
        """Nothing is lost between threads."""
        producer = RecordingProducer()
        batch = [make_message() for _ in range(100)]
        threads = [threading.Thread(target=producer.send_many, args=[batch]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 800 == len(producer.messages)

    def test_closed_it_refuses(self) -> None:
        """After `close`, which may come twice; what was recorded stays."""
        producer = RecordingProducer()
        producer.send(make_message())
        producer.close()
        producer.close()
        with pytest.raises(ClosedError):
            producer.send(make_message())
        assert isinstance(ask(producer).exception(), ClosedError)
        assert (True, 1) == (producer.is_closed, len(producer.messages))

    @pytest.mark.parametrize(
        "options", [{"delay": 1.0}, {"priority": 3}, {"expires_at": datetime.now(UTC)}]
    )
    def test_it_refuses_what_its_capabilities_deny(self, options: dict[str, Any]) -> None:
        """By default it can do everything; told that it cannot, it behaves so."""
        RecordingProducer().send(make_message(**options))
        producer = RecordingProducer(capabilities=Capabilities())
        with pytest.raises(UnsupportedError, match=r"place-order .*: this producer has no"):
            producer.send(make_message(**options))
        assert [] == producer.messages

    def test_it_refuses_a_priority_that_there_is_not(self) -> None:
        """0 to 9, as every transport that has priorities."""
        with pytest.raises(RejectedError, match="priority must be 0 to 9, got 10"):
            RecordingProducer().send(make_message(priority=10))

    def test_for_queries_only_it_refuses_the_rest(self) -> None:
        """Z02: a message that wants no answer is not recorded."""
        producer = RecordingProducer(capabilities=Capabilities(queries=True, queries_only=True))
        with pytest.raises(UnsupportedError, match="this producer has no way without an answer"):
            producer.send(make_message())
        assert [] == producer.messages

    def test_a_message_of_a_batch_is_refused_alone(self) -> None:
        """The others are taken."""
        producer = RecordingProducer(capabilities=Capabilities(max_size_bytes=3))
        with pytest.raises(PartiallySentError) as caught:
            producer.send_many([make_message(b"1"), make_message(b"four"), make_message(b"2")])
        assert [1] == list(caught.value.failed)
        assert [b"1", b"2"] == producer.bodies
        with pytest.raises(RejectedError, match="4 bytes, at most 3"):
            producer.send(make_message(b"four"))

    def test_it_fails_as_told(self) -> None:
        """An application's handling of a broken transport can be tested."""
        error: TransportError = ConnectionFailedError("down")
        producer = RecordingProducer(error=error)
        with pytest.raises(ConnectionFailedError):
            producer.send(make_message())
        assert error is ask(producer).exception()
        assert [] == producer.messages

    def test_it_answers_queries_as_told(self) -> None:
        """A given result, or a given failure, comes back as the other side would send it."""
        producer = RecordingProducer(answers={"shop.place-order": 3})
        assert isinstance(producer, QueryClient)
        assert Reply(b"3") == ask(producer).result(0)
        assert 1 == len(producer.messages)
        failed = HandlerFailedError("out-of-stock", "")
        reply = ask(RecordingProducer(answers={"shop.place-order": failed})).result(0)
        problem = decode_problem(reply.body, None)
        assert isinstance(problem, HandlerFailedError)
        assert (True, "out-of-stock") == (reply.is_error, problem.code)

    def test_a_query_without_an_answer_is_rejected_at_once(self) -> None:
        """A test that forgot the answer does not wait for a deadline."""
        producer = RecordingProducer()
        assert "answers=" in str(ask(producer).exception())
        assert 1 == len(producer.messages)

    def test_a_one_way_producer_rejects_queries(self) -> None:
        """`queries` is a capability like the others (T11)."""
        producer = RecordingProducer(capabilities=Capabilities(), answers={"shop.place-order": 1})
        assert isinstance(ask(producer).exception(), UnsupportedError)


class TestFakeConsumer:
    def test_it_brings_everything_once(self) -> None:
        """At most what it is asked for, in order; then it is closed."""

        async def main() -> list[bytes]:
            consumer = FakeConsumer([b"1", b"2", b"3"])
            found = [*await consumer.receive(2), *await consumer.receive(2)]
            with pytest.raises(ClosedError):
                await consumer.receive(1)
            return [delivery.body for delivery in found]

        assert [b"1", b"2", b"3"] == asyncio.run(main())

    def test_closed_it_brings_nothing(self) -> None:
        """After `aclose`, which may come twice."""

        async def main() -> None:
            consumer = FakeConsumer([b"1"])
            await consumer.aclose()
            await consumer.aclose()
            with pytest.raises(ClosedError):
                await consumer.receive(1)

        asyncio.run(main())

    @pytest.mark.parametrize("first", ["ack", "nack", "retry"])
    @pytest.mark.parametrize("then", ["ack", "nack", "retry"])
    def test_the_first_settlement_counts(self, first: str, then: str) -> None:
        """As on every transport."""
        delivery, replacement = FakeDelivery(b"1"), make_message()
        for call in (first, then):
            getattr(delivery, call)(*([replacement] if call == "retry" else []))
        assert first == delivery.outcome
        assert (replacement if first == "retry" else None) is delivery.replacement
        assert delivery.settled().done()

    def test_answers_need_a_reply_channel(self) -> None:
        """Without one they are refused, with one they can be read."""
        with pytest.raises(UnsupportedError):
            FakeDelivery(b"1").reply(Reply(b"1"))
        delivery = FakeDelivery(b"1", can_reply=True)
        delivery.reply(Reply(b"1"))
        assert [Reply(b"1")] == delivery.replies


def test_memory_can_be_emptied_between_tests() -> None:
    """What one test left at an address is not seen by the next."""
    address = new_id()
    MemoryProducer(address=address).send(make_message(b"1"))
    reset_memory(address)
    MemoryProducer(address=address).send(make_message(b"2"))
    (delivery,) = asyncio.run(MemoryConsumer(address=address).receive(10))
    assert b"2" == delivery.body
    reset_memory(address)


def test_the_fakes_need_no_extra() -> None:
    """Importing them loads neither pytest nor hypothesis."""
    script = (
        "import sys, postbus.testing; sys.exit(bool({'pytest', 'hypothesis'} & {*sys.modules}))"
    )
    assert 0 == subprocess.run([sys.executable, "-c", script], check=False).returncode


def test_a_contract_is_imported_when_it_is_asked_for() -> None:
    """Whoever names one has pytest, and a wrong name is missing as usual."""
    assert isinstance(testing.ContainerContract, type)
    with pytest.raises(AttributeError, match="ContainrContract"):
        getattr(testing, "ContainrContract")  # noqa: B009  a name that is not there
