"""What every producer does, as tests that a package inherits."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from decimal import Decimal
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Literal
from uuid import UUID

import attrs
import pytest

from postbus.catalog import MessageCatalog
from postbus.errors import (
    ClosedError,
    PartiallySentError,
    RejectedError,
    TransportError,
    UnsupportedError,
)
from postbus.messages import Command, Envelope
from postbus.testing._applications import open_files
from postbus.testing._contracts._claims import PRODUCER_CLAIMS, contradict, judge
from postbus.testing._contracts._contract import Contract
from postbus.testing._contracts._sides import message
from postbus.transports import AsyncMessageProducer, QueryClient
from postbus.wire import decode, encode

if TYPE_CHECKING:
    from postbus.testing._contracts._link import Link
    from postbus.testing._contracts._under_test import TransportUnderTest

__all__ = ["BODIES", "ProducerContract"]

_SECRET = "hunter2-in-a-body"  # noqa: S105  what must not be seen
# How long a test waits before it sends once more to whoever may be there by now.
_TURN = 0.05

#: Bodies that something on the way might take for something else.
BODIES: dict[str, bytes] = {
    "empty": b"",
    "nul": b"\x00",
    "every byte": bytes(range(256)),
    "no utf-8": b"\xff\xfe\xed\xa0\x80",
    "lines": b"END\r\n.\r\n\r\n--\nQUIT\r\n",
    "quotes": b"'\"`\\$(){}%s%00{0}",
    "beyond the first plane": '{"text":"\U0001f4ee\u202e\u0000\ufeff"}'.encode(),
    "no json": b"{",
    "deep": b"[" * 1000 + b"]" * 1000,
    "large": bytes(range(256)) * 128,
}


class _Colour(Enum):
    RED = "red"


@attrs.frozen
class _Door:
    number: int


@attrs.frozen
class _EveryField(Command, name="postbus.testing.every-field"):
    nothing: None
    truth: bool
    whole: int
    real: float
    text: str
    raw: bytes
    exact: Decimal
    unique: UUID
    moment: dt.datetime
    day: dt.date
    clock: dt.time
    span: dt.timedelta
    colour: _Colour
    choice: Literal["left", "right"]
    pair: tuple[int, str]
    names: list[str]
    counts: dict[str, int]
    numbers: set[int]
    maybe: str | None
    either: int | str
    door: _Door


_EVERY_FIELD = _EveryField(
    nothing=None,
    truth=True,
    whole=2**53 + 1,
    real=0.1,
    text='"\\\n\u2028\u0000\U0001f4ee',
    raw=bytes(range(256)),
    exact=Decimal("0.10"),
    unique=UUID(int=1),
    moment=dt.datetime(2026, 1, 2, 3, 4, 5, 6, dt.UTC),
    day=dt.date(2026, 1, 2),
    clock=dt.time(3, 4, 5, 6),
    span=dt.timedelta(days=1, microseconds=1),
    colour=_Colour.RED,
    choice="left",
    pair=(1, "one"),
    names=["one", ""],
    counts={"a key": 1},
    numbers={1, 2},
    maybe=None,
    either="either",
    door=_Door(7),
)


class ProducerContract(Contract):
    """How a producer behaves, whatever the transport. Needs `postbus[testing]`.

    A package derives a test class from it and gives one fixture, *under_test*.
    """

    @pytest.mark.parametrize("name", PRODUCER_CLAIMS)
    def test_a_producer_does_what_it_declares_and_refuses_the_rest(
        self, link: Link, name: str
    ) -> None:
        """Each capability is shown by what happens, or by a refusal (T11, T13)."""
        judge(link, "producer", name, PRODUCER_CLAIMS)

    @pytest.mark.parametrize("name", PRODUCER_CLAIMS)
    def test_a_producer_that_declared_the_opposite_is_found_out(
        self, under_test: TransportUnderTest, name: str
    ) -> None:
        """The test of each capability fails for a transport that is not as it declares."""
        contradict(under_test, "producer", name, PRODUCER_CLAIMS)

    @pytest.mark.parametrize("body", BODIES.values(), ids=list(BODIES))
    def test_any_bytes_arrive_as_they_were_sent(self, link: Link, body: bytes) -> None:
        """Nothing on the way reads, repairs or cuts a body."""
        assert [each.body for each in link.exchange(body)] == [body]

    def test_every_type_of_field_arrives(self, link: Link) -> None:
        """A message of every type that the wire format knows is the same on the other side."""
        catalog = MessageCatalog()
        catalog.add(_EveryField)
        (delivery,) = link.exchange(encode(Envelope(_EVERY_FIELD)))
        assert decode(delivery.body, catalog).message == _EVERY_FIELD

    def test_every_message_arrives_once(self, link: Link) -> None:
        """Eight threads send at once, one by one and in batches; nothing is lost or doubled."""
        threads, count = 8, 24
        collecting = link.collecting(threads * count, max_messages=10)

        def work(thread: int) -> None:
            batch = [message(b"%d %d" % (thread, number)) for number in range(count)]
            for each in batch[: count // 2]:
                link.producer.send(each)
            link.producer.send_many(batch[count // 2 :])

        assert link.producer is not None
        with ThreadPoolExecutor(threads) as pool:
            for each in [pool.submit(work, thread) for thread in range(threads)]:
                link.result(each, "sends to return")
        received = [each.body for each in link.result(collecting, "what eight threads sent")]
        for thread in range(threads):
            own = [body for body in received if body.startswith(b"%d " % thread)]
            assert len(own) == count
            expected = [b"%d %d" % (thread, number) for number in range(count)]
            assert expected == (
                own
                if link.producer.capabilities.ordering
                else sorted(own, key=lambda body: int(body.split()[1]))
            )
        assert link.rest() == []

    def test_asyncio_code_may_send(self, link: Link) -> None:
        """Twenty tasks send at once; a producer without asyncio calls is used from threads."""
        producer = link.producer

        async def send(number: int) -> None:
            each = message(b"%d" % number)
            if isinstance(producer, AsyncMessageProducer):
                await producer.asend(each)
            else:
                await asyncio.to_thread(producer.send, each)

        async def send_all() -> None:
            await asyncio.gather(*(send(number) for number in range(20)))
            if isinstance(producer, AsyncMessageProducer):
                await producer.asend_many([message(b"20"), message(b"21")])
            else:
                await asyncio.to_thread(producer.send_many, [message(b"20"), message(b"21")])

        collecting = link.collecting(22)
        link.run(send_all(), "sends of asyncio tasks")
        received = [int(each.body) for each in link.result(collecting, "22 messages")]
        assert sorted(received) == list(range(22))

    def test_a_producer_may_be_used_after_a_fork(self, link: Link) -> None:
        """Parent and child go on with the producer that was in use when they parted."""
        bodies = [b"before", b"child", b"parent"]
        if link.under_test.is_in_process:
            # The child has a queue of its own; that it can send is all there is to see.
            with link.peer("fork", *bodies) as process:
                process.expect("sent")
            return
        collecting = link.collecting(3)
        with link.peer("fork", *bodies) as process:
            process.expect("sent")
            received = [each.body for each in link.result(collecting, "3 messages")]
        assert sorted(received) == bodies
        assert link.rest() == []

    def test_an_empty_batch_is_nothing(self, link: Link) -> None:
        """Sending no messages is no error, and sends none."""
        collecting = link.collecting(1)
        link.send()
        link.send(b"1")
        assert [each.body for each in link.result(collecting)] == [b"1"]

    def test_a_batch_says_which_messages_were_refused(self, link: Link) -> None:
        """The error stands under the index of its message; the others arrive."""
        producer = link.make_producer(max_size_bytes=1024)
        limit = producer.capabilities.max_size_bytes
        assert limit is not None
        batch = [message(b"1"), message(b"x" * (limit + 1)), message(b"2")]
        collecting = link.collecting(2)
        with pytest.raises(PartiallySentError) as caught:
            link.finish(lambda: producer.send_many(batch))
        assert list(caught.value.failed) == [1]
        assert isinstance(caught.value.failed[1], RejectedError)
        received = [each.body for each in link.result(collecting, "2 messages")]
        assert sorted(received) == [b"1", b"2"]

    def test_building_a_producer_connects_nothing(self, link: Link) -> None:
        """No socket, no file, no thread before the first message."""
        link.make_producer()
        link.make_consumer()
        files, threads = open_files(), threading.active_count()
        link.make_producer()
        link.make_consumer()
        assert open_files() <= files
        assert threading.active_count() <= threads

    @pytest.mark.parametrize("is_used", [True, False])
    def test_a_closed_producer_refuses(self, link: Link, *, is_used: bool) -> None:
        """After `close`, which may come twice and before any use, nothing is taken."""
        if is_used:
            link.exchange(b"1")
        producer = link.producer
        link.finish(producer.close)
        link.finish(producer.close)
        with pytest.raises(ClosedError):
            link.finish(lambda: producer.send(message(b"2")))
        with pytest.raises(ClosedError):
            link.finish(lambda: producer.send_many([message(b"2")]))
        if isinstance(producer, QueryClient):
            with pytest.raises((ClosedError, UnsupportedError)):
                link.answer_of(link.ask())

    def test_closing_flushes(self, link: Link) -> None:
        """What was sent before `close` arrives, although nobody has taken it yet."""
        collecting = link.collecting(50, max_messages=1)
        link.send(*(b"%d" % number for number in range(50)))
        link.finish(link.producer.close)
        received = [int(each.body) for each in link.result(collecting, "50 messages")]
        assert sorted(received) == list(range(50))

    def test_closing_does_not_wait_for_senders(self, link: Link) -> None:
        """`close` returns while another thread sends to nobody, and ends what that one does."""
        producer, begun = link.producer, threading.Event()

        def send_until_refused() -> None:
            while True:
                begun.set()
                producer.send(message(b"{}"))

        sending = link.start(send_until_refused)
        assert begun.wait(link.patience)
        link.finish(producer.close, "close() to return")
        with pytest.raises(TransportError):
            link.result(sending, "a send to end after the close")

    def test_sent_to_nobody_it_arrives_later_or_is_an_error(self, link: Link) -> None:
        """A send without a receiver, or without its system, never loses in silence."""
        system = link.under_test.system
        if system is not None:
            system.kill()
        try:
            link.finish(lambda: link.producer.send(message(b"1")), "a send without a receiver")
        except TransportError:
            expected: list[bytes] = []
        else:
            expected = [b"1"]
        if system is not None:
            system.start()
        collecting = link.collecting(len(expected) + 1)
        link.send(b"2")
        received = [each.body for each in link.result(collecting, "what was sent")]
        assert sorted(received) == [*expected, b"2"]

    def test_it_goes_on_after_its_receiver_or_system_was_replaced(self, link: Link) -> None:
        """The same producer reaches a consumer that comes where another was before."""
        link.exchange(b"1")[0].ack()
        link.run(link.consumer.aclose())
        system = link.under_test.system
        if system is not None:
            system.kill()
            system.start()
        consumer = link.make_consumer()
        collecting = link.collecting(1, consumer)
        deadline = time.monotonic() + link.patience
        while not (collecting.done() and collecting.exception() is None):
            assert time.monotonic() < deadline, "nothing comes after the change"
            if collecting.done():
                collecting = link.collecting(1, consumer)
            # What is on its way to the one that went may be lost, or be an error.
            with suppress(TransportError):
                link.send(b"2")
            wait([collecting], _TURN)
        assert [each.body for each in collecting.result()] == [b"2"]

    def test_a_killed_sender_disturbs_nobody(self, link: Link) -> None:
        """What one process sent before it was killed, and what others send, arrives."""
        if link.under_test.is_in_process:
            link.make_producer().close()
            assert [each.body for each in link.exchange(b"others")] == [b"others"]
            return
        collecting = link.collecting(2)
        with link.peer("send", b"killed") as sender:
            sender.expect("sent")
            link.send(b"others")
            received = [each.body for each in link.result(collecting, "2 messages")]
            sender.kill()
        assert sorted(received) == [b"killed", b"others"]
        assert [each.body for each in link.exchange(b"later")] == [b"later"]

    def test_nothing_shows_a_secret(self, link: Link, caplog: pytest.LogCaptureFixture) -> None:
        """No log record, no error and no repr has a body in it, or a password of the section."""
        caplog.set_level(logging.DEBUG, "postbus")
        shown: list[str] = []
        body = _SECRET.encode()
        (delivery,) = link.exchange(body)
        shown += [repr(delivery), delivery.source]
        delivery.ack()
        small = link.make_producer(max_size_bytes=1024)
        limit = small.capabilities.max_size_bytes or 1024
        with pytest.raises(RejectedError) as too_large:
            link.finish(partial(small.send, message(body * limit)))
        link.finish(link.producer.close)
        with pytest.raises(ClosedError) as closed:
            link.finish(partial(link.producer.send, message(body)))
        shown += [f"{error.value} {error.value!r}" for error in (too_large, closed)]
        shown += [repr(link.producer), repr(link.consumer)]
        shown += [str(vars(record)) for record in caplog.records]
        for secret in (_SECRET, *link.under_test.secrets):
            assert [text for text in shown if secret in text] == []
