"""The contracts find what is wrong with a transport, and say what they have shown."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import sys
import textwrap
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import attrs
import pytest

from postbus.errors import ConnectionFailedError
from postbus.memory import (
    MEMORY,
    MemoryConsumer,
    MemoryProducer,
    MemoryTransport,
)
from postbus.messages import new_id
from postbus.promises import Promise
from postbus.testing import (
    ConsumerContract,
    ProducerContract,
    QueryContract,
    TransportUnderTest,
    declaring,
    reset_memory,
)
from postbus.testing._contracts import _peer as peer
from postbus.testing._contracts._claims import CONSUMER_CLAIMS, PRODUCER_CLAIMS
from postbus.testing._contracts._link import Link
from postbus.transports import Capabilities, CommonSettings, Reply, WireMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from postbus.transports import Delivery, WaitingMessage

# Held until a test is over; what hangs in it is let go then.
released = threading.Event()


class Wrong(MemoryTransport):
    """The memory transport with another producer or consumer."""

    def __init__(
        self,
        producer: type[MemoryProducer] = MemoryProducer,
        consumer: type[MemoryConsumer] = MemoryConsumer,
    ) -> None:
        self._producer, self._consumer = producer, consumer

    def make_producer(self, settings: Any, common: CommonSettings) -> MemoryProducer:
        return self._producer(address=settings.address, max_size_bytes=common.max_size_bytes)

    def make_consumer(self, settings: Any, common: CommonSettings) -> MemoryConsumer:
        return self._consumer(address=settings.address, max_size_bytes=common.max_size_bytes)


class Changing(MemoryProducer):
    """Sends something else than it was given."""

    def send(self, message: WireMessage) -> None:
        for each in self.changed([message]):
            super().send(each)

    def send_many(self, messages: Sequence[WireMessage]) -> None:
        super().send_many(self.changed(list(messages)))

    def changed(self, messages: list[WireMessage]) -> list[WireMessage]:
        raise NotImplementedError


class Drops(Changing):
    """Loses a message of each larger batch, in silence."""

    def changed(self, messages: list[WireMessage]) -> list[WireMessage]:
        return messages[:-1] if len(messages) > 10 else messages


class Doubles(Changing):
    """Sends the first message of each larger batch twice, in silence."""

    def changed(self, messages: list[WireMessage]) -> list[WireMessage]:
        return [messages[0], *messages] if len(messages) > 10 else messages


class Disorders(Changing):
    """Sends a batch from its end."""

    def changed(self, messages: list[WireMessage]) -> list[WireMessage]:
        return messages[::-1]


class Cuts(Changing):
    """Takes bodies of any size that it declares, and carries a part of them."""

    def changed(self, messages: list[WireMessage]) -> list[WireMessage]:
        for message in messages:
            message.body = message.body[: 512 * 1024]
        return messages


class AcksEarly(MemoryConsumer):
    """Acknowledges what it receives before anybody has handled it."""

    async def receive(self, max_messages: int) -> Sequence[Delivery]:
        deliveries = await super().receive(max_messages)
        for delivery in deliveries:
            delivery.ack()
        return deliveries


class Strips(Changing):
    """Takes a body for text, and cleans it."""

    def changed(self, messages: list[WireMessage]) -> list[WireMessage]:
        for message in messages:
            message.body = message.body.rstrip(b"\r\n\0")
        return messages


class Talks(Changing):
    """Logs what it sends."""

    def changed(self, messages: list[WireMessage]) -> list[WireMessage]:
        logging.getLogger("postbus.wrong").debug("sending", extra={"sent": messages})
        return messages


class NeverCloses(MemoryProducer):
    """Goes on after it was closed."""

    def close(self) -> None: ...


class SwapsAnswers(MemoryProducer):
    """Gives each answer to whoever asked last."""

    last: ClassVar[Promise[Reply] | None] = None

    def request(self, message: WireMessage, reply: Promise[Reply]) -> None:
        inner: Promise[Reply] = Promise()
        SwapsAnswers.last = reply
        inner.add_done_callback(
            lambda each: SwapsAnswers.last and SwapsAnswers.last.resolve(each.result(0))
        )
        super().request(message, inner)


class TakesAhead(MemoryConsumer):
    """Takes all there is, and keeps what nobody has asked for yet to itself."""

    async def receive(self, max_messages: int) -> Sequence[Delivery]:
        return (await super().receive(1000))[:max_messages]


class TakesTooSoon(MemoryConsumer):
    """Takes a message, and then stops to think."""

    async def receive(self, max_messages: int) -> Sequence[Delivery]:
        deliveries = await super().receive(max_messages)
        await asyncio.sleep(0)
        return deliveries


class TakesToLook(MemoryConsumer):
    """Looks at messages by taking them."""

    def peek(self, queue: str, *, offset: int = 0, limit: int = 20) -> Sequence[WaitingMessage]:
        seen = super().peek(queue, offset=offset, limit=limit)
        super().purge(queue)
        return seen


class LooksFromTheBeginning(MemoryConsumer):
    """Knows no offset."""

    def peek(self, queue: str, *, offset: int = 0, limit: int = 20) -> Sequence[WaitingMessage]:
        return super().peek(queue, limit=offset + limit)


class CountsWhatIsHeld(MemoryConsumer):
    """Counts deliveries as waiting messages."""

    def count(self) -> Mapping[str, int]:
        return {name: count + len(self._unsettled) for name, count in super().count().items()}


class LeavesTheLast(MemoryConsumer):
    """Removes all but one of what waits, and says that it was all."""

    def purge(self, queue: str) -> int:
        waiting = self.peek(queue)
        count = super().purge(queue)
        for last in waiting[-1:]:
            self._queue.add(WireMessage(last.body, {}, new_id(), "left"), 10)
        return count


class DeletesItsQueue(MemoryConsumer):
    """Takes the queue along when it closes."""

    async def aclose(self) -> None:
        await super().aclose()
        self._queue.purge()


class Waits(MemoryConsumer):
    """Does not notice that it was closed."""

    async def aclose(self) -> None:
        self._closed = True


class HangsOnClose(MemoryProducer):
    """Waits for something that never comes."""

    def close(self) -> None:
        released.wait()


class Sender:
    """What looks like another process that sends, and is none."""

    def __init__(self, link: Link, role: str, body: bytes) -> None:
        assert role == "send"
        link.send(body)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def expect(self, line: str) -> None:
        assert line == "sent"

    def kill(self) -> None: ...


class Broker:
    """Something behind a queue that can be ended and started, and keeps what it has."""

    def __init__(self) -> None:
        self.is_up = True
        self.starts = 0

    def start(self) -> None:
        self.is_up = True
        self.starts += 1

    def kill(self) -> None:
        self.is_up = False

    def refuse(self) -> None:
        if not self.is_up:
            raise ConnectionFailedError("nobody there")


class Brokered(MemoryTransport):
    """The memory transport with a broker that may be down."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker

    def make_producer(self, settings: Any, common: CommonSettings) -> MemoryProducer:
        broker = self.broker

        class Producer(MemoryProducer):
            def send(self, message: WireMessage) -> None:
                broker.refuse()
                super().send(message)

            def send_many(self, messages: Sequence[WireMessage]) -> None:
                broker.refuse()
                super().send_many(messages)

        return Producer(address=settings.address, max_size_bytes=common.max_size_bytes)


@pytest.fixture
def under_test() -> Iterator[TransportUnderTest]:
    """A queue of this process that no other test has."""
    section = {"address": new_id()}
    released.clear()
    yield TransportUnderTest(
        transport=Wrong(), producer=section, consumer=section, is_in_process=True, patience=30.0
    )
    released.set()
    reset_memory(section["address"])


def judged_by(test: Callable[..., None], under_test: TransportUnderTest, *arguments: Any) -> None:
    """Run one test of a contract."""
    with Link(under_test) as link:
        test(link, *arguments)


@pytest.mark.parametrize(
    ("transport", "test", "arguments"),
    [
        (Wrong(producer=Drops), ProducerContract().test_every_message_arrives_once, ()),
        (Wrong(consumer=AcksEarly), ConsumerContract().test_what_nobody_settled_comes_back, ()),
        (Wrong(producer=Doubles), ProducerContract().test_every_message_arrives_once, ()),
        (
            Wrong(producer=Disorders),
            ProducerContract().test_a_producer_does_what_it_declares_and_refuses_the_rest,
            ("ordering",),
        ),
        (
            Wrong(producer=Cuts),
            ProducerContract().test_a_producer_does_what_it_declares_and_refuses_the_rest,
            ("max_size_bytes",),
        ),
        (
            Wrong(producer=HangsOnClose),
            ProducerContract().test_closing_does_not_wait_for_senders,
            (),
        ),
        (
            Wrong(producer=Strips),
            ProducerContract().test_any_bytes_arrive_as_they_were_sent,
            (b"\0",),
        ),
        (
            Wrong(producer=NeverCloses),
            partial(ProducerContract().test_a_closed_producer_refuses, is_used=True),
            (),
        ),
        (
            Wrong(producer=SwapsAnswers),
            QueryContract().test_a_hundred_in_flight_get_their_own_answers,
            (),
        ),
        (
            Wrong(consumer=TakesAhead),
            ConsumerContract().test_a_consumer_takes_no_more_than_it_was_asked_for,
            (),
        ),
        (
            Wrong(consumer=TakesTooSoon),
            ConsumerContract().test_a_cancelled_receive_loses_nothing,
            (),
        ),
        (Wrong(consumer=Waits), ConsumerContract().test_closing_ends_a_receive_that_waits, ()),
        (Wrong(consumer=TakesToLook), CONSUMER_CLAIMS["inspect"].holds, ()),
        (Wrong(consumer=LooksFromTheBeginning), CONSUMER_CLAIMS["inspect"].holds, ()),
        (Wrong(consumer=CountsWhatIsHeld), CONSUMER_CLAIMS["count"].holds, ()),
        (Wrong(consumer=LeavesTheLast), CONSUMER_CLAIMS["purge"].holds, ()),
        (
            Wrong(consumer=DeletesItsQueue),
            partial(ConsumerContract().test_closing_deletes_no_queue, is_used=False),
            (),
        ),
    ],
    ids=[
        "drops",
        "acks early",
        "duplicates",
        "disorders",
        "lies about size",
        "hangs on close",
        "strips bytes",
        "never closes",
        "swaps answers",
        "takes ahead",
        "takes too soon",
        "waits when closed",
        "takes to look",
        "looks from the beginning",
        "counts what is held",
        "leaves the last",
        "deletes its queue",
    ],
)
def test_a_wrong_transport_fails_the_test_of_what_is_wrong(
    under_test: TransportUnderTest,
    transport: Wrong,
    test: Callable[..., None],
    arguments: tuple[str, ...],
) -> None:
    """Each fault is found by the test that is there for it; the sound transport passes it."""
    judged_by(test, under_test, *arguments)
    section = {"address": new_id()}
    wrong = attrs.evolve(
        under_test, transport=transport, producer=section, consumer=section, patience=2.0
    )
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        judged_by(test, wrong, *arguments)
    reset_memory(section["address"])


@pytest.mark.parametrize(
    "test",
    [
        ProducerContract().test_sent_to_nobody_it_arrives_later_or_is_an_error,
        ProducerContract().test_it_goes_on_after_its_receiver_or_system_was_replaced,
    ],
)
def test_a_system_is_ended_and_started_where_there_is_one(
    under_test: TransportUnderTest, test: Callable[[Link], None]
) -> None:
    """What the transport does without its system is a part of the contract."""
    broker = Broker()
    judged_by(test, attrs.evolve(under_test, transport=Brokered(broker), system=broker))
    assert (broker.is_up, broker.starts) == (True, 1)


def test_a_system_is_ended_before_durable_messages_are_looked_for(
    under_test: TransportUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Durable is what survives the system, and not only the process that sent it."""
    broker = Broker()
    with Link(attrs.evolve(under_test, system=broker)) as link:
        monkeypatch.setattr(link, "peer", partial(Sender, link))
        PRODUCER_CLAIMS["durable"].holds(link)
    assert (broker.is_up, broker.starts) == (True, 1)


def test_another_process_says_what_it_does_and_ends(
    under_test: TransportUnderTest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What it sends and receives is what the test said; it ends with its input."""
    said = {
        "transport": "memory",
        "reference": "postbus.memory:MEMORY",
        "producer": dict(under_test.producer),
        "consumer": dict(under_test.consumer),
        "bodies": ["1", "2"],
    }
    for role in ("send", "hold"):
        monkeypatch.setattr("sys.stdin", io.StringIO())
        peer.main(json.dumps({**said, "role": role}))
    assert capsys.readouterr().out.split() == ["ready", "sent", "ready", "held"]


def test_a_transport_that_logs_bodies_fails_the_test_of_secrets(
    under_test: TransportUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    """What a message says stands in no log; the sound transport passes."""
    test = ProducerContract().test_nothing_shows_a_secret
    judged_by(test, under_test, caplog)
    section = {"address": new_id()}
    wrong = attrs.evolve(
        under_test, transport=Wrong(producer=Talks), producer=section, consumer=section
    )
    with pytest.raises(AssertionError):
        judged_by(test, wrong, caplog)
    reset_memory(section["address"])


def test_every_capability_has_a_claim() -> None:
    """A capability that is added is shown or refused from then on."""
    assert {*PRODUCER_CLAIMS, *CONSUMER_CLAIMS} == {*attrs.fields_dict(Capabilities)}


def test_a_transport_can_be_made_to_declare_something_else(
    under_test: TransportUnderTest,
) -> None:
    """Record, producers and consumers say it, and do what they did."""
    transport = declaring(MEMORY, durable=True, queries=False)
    with Link(attrs.evolve(under_test, transport=transport)) as link:
        for side in (link.producer, link.consumer):
            assert (side.capabilities.durable, side.capabilities.queries) == (True, False)
        link.make_producer(requires=["durable"])
        assert [b"1"] == [each.body for each in link.exchange(b"1")]
        link.ask("?")


def run(folder: Path, body: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run tests of a package that has nothing but this file."""
    head = """
        import pytest
        from postbus.memory import MEMORY
        from postbus.testing import ConsumerContract, ProducerContract, TransportUnderTest
        from postbus.testing import declaring

        class OfMemory(ProducerContract, ConsumerContract):
            transport = MEMORY

            @pytest.fixture
            def under_test(self, tmp_path):
                section = {"address": str(tmp_path)}
                return TransportUnderTest(
                    transport=self.transport,
                    producer=section,
                    consumer=section,
                    is_in_process=True,
                )
        """
    text = textwrap.dedent(head) + textwrap.dedent(body)
    (folder / "test_it.py").write_text(text, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *options]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_run_counts_what_it_has_shown(tmp_path: Path) -> None:
    """Each class has a line at the end: what was shown, what was refused, what did not run."""
    done = run(
        tmp_path,
        """
        class TestHonest(OfMemory):
            pass

        class TestSkipping(OfMemory):
            @pytest.mark.skip
            def test_any_thread_may_settle(self): ...
        """,
        *("-k", "any_thread_may_settle or lease or (declares and expiry)"),
    )
    assert done.returncode == 0, done.stdout
    assert "TestHonest: asserted / refused / skipped = 3 / 1 / 0" in done.stdout
    assert "TestSkipping: asserted / refused / skipped = 2 / 1 / 1" in done.stdout


def test_a_run_of_a_transport_that_is_not_as_it_declares_is_red(tmp_path: Path) -> None:
    """Of a capability more and one less, each is a failure of the test named after it."""
    done = run(
        tmp_path,
        """
        class TestLying(OfMemory):
            transport = declaring(MEMORY, expiry=False, queries_only=True)
        """,
        *("-k", "declares"),
    )
    assert done.returncode == 1, done.stdout
    failed = [line.rpartition("::")[2] for line in done.stdout.splitlines() if "FAILED" in line]
    assert {each.partition("[")[2].partition("]")[0] for each in failed} == {
        "expiry",
        "queries_only",
    }


def test_a_contract_says_what_it_needs(tmp_path: Path) -> None:
    """A class without the fixture is told its name."""
    done = run(tmp_path, "class TestNothing(ProducerContract): ...", "-k", "empty_batch")
    assert done.returncode == 1, done.stdout
    assert "TestNothing needs a fixture `under_test`" in done.stdout
