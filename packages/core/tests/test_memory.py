"""The memory transport keeps every promise of the interface."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import warnings
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from postbus.errors import (
    ClosedError,
    PartiallySentError,
    RejectedError,
    TimedOutError,
    UnsupportedError,
)
from postbus.memory import (
    MEMORY,
    MemoryConsumer,
    MemoryConsumerSettings,
    MemoryProducer,
    MemoryProducerSettings,
    reset,
)
from postbus.messages import new_id
from postbus.promises import Promise
from postbus.transports import CommonSettings, QueryClient, Reply, WireMessage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from postbus.transports import Delivery


@pytest.fixture
def address() -> Iterator[str]:
    """An address that no other test uses."""
    name = new_id()
    yield name
    reset(name)


def make_message(body: bytes = b"{}", **options: Any) -> WireMessage:
    return WireMessage(body, {"name": "shop.place-order"}, new_id(), "shop.place-order", **options)


def send(address: str, *bodies: bytes, **options: Any) -> None:
    MemoryProducer(address=address).send_many([make_message(body, **options) for body in bodies])


async def receive(consumer: MemoryConsumer, max_messages: int = 100) -> list[Delivery]:
    async with asyncio.timeout(10):
        return list(await consumer.receive(max_messages))


def take(address: str, max_messages: int = 100) -> list[Delivery]:
    """Receive what waits with a consumer that stays open."""
    return asyncio.run(receive(MemoryConsumer(address=address), max_messages))


def bodies(deliveries: list[Delivery]) -> list[bytes]:
    return [delivery.body for delivery in deliveries]


def test_a_consumer_may_attach_before_or_after(address: str) -> None:
    """Producers and consumers of one address share its queue, whoever came first."""
    before = MemoryConsumer(address=address)
    send(address, b"1", b"2")
    assert bodies(asyncio.run(receive(before, 1))) == [b"1"]
    assert bodies(take(address)) == [b"2"]


def test_addresses_are_apart(address: str) -> None:
    """A message goes to its address only."""
    send(address + "x", b"1")
    send(address, b"2")
    assert bodies(take(address)) == [b"2"]
    reset(address + "x")


def test_a_delivery_is_a_copy_of_what_was_sent(address: str) -> None:
    """Headers changed after sending are not seen by the receiver."""
    message = make_message(b"1")
    headers = message.headers = {"a": "b"}
    MemoryProducer(address=address).send(message)
    headers["a"] = "c"
    (delivery,) = take(address)
    assert (b"1", {"a": "b"}, f"memory:{address}", False) == (
        delivery.body,
        delivery.headers,
        delivery.source,
        delivery.redelivered,
    )


class TestOrder:
    def test_first_in_first_out(self, address: str) -> None:
        """Ordering is a declared, tested capability (T13)."""
        send(address, *(str(n).encode() for n in range(20)))
        assert [str(n).encode() for n in range(20)] == bodies(take(address))

    def test_more_urgent_messages_come_first(self, address: str) -> None:
        """A larger priority is more urgent; equal ones stay in order; none counts as 0."""
        send(address, b"none-1", b"none-2")
        send(address, b"3-1", b"3-2", priority=3)
        send(address, b"9", priority=9)
        send(address, b"0", priority=0)
        assert bodies(take(address)) == [b"9", b"3-1", b"3-2", b"none-1", b"none-2", b"0"]

    @pytest.mark.parametrize("priority", [-1, 10])
    def test_a_priority_out_of_range_is_refused(self, address: str, priority: int) -> None:
        """Priorities are 0 to 9 on every transport."""
        with pytest.raises(RejectedError, match="0 to 9"):
            MemoryProducer(address=address).send(make_message(priority=priority))


class TestDelay:
    def test_a_delayed_message_comes_when_it_is_due(self, address: str) -> None:
        """Not before, and without any other message to wake the consumer."""
        start = time.monotonic()
        send(address, b"2", delay=0.03)
        send(address, b"3", delay=0.05)
        send(address, b"1")

        async def main() -> list[bytes]:
            consumer = MemoryConsumer(address=address)
            return [bodies(await receive(consumer))[0] for _ in range(3)]

        assert asyncio.run(main()) == [b"1", b"2", b"3"]
        assert time.monotonic() - start >= 0.05

    def test_a_message_delayed_while_waiting_sets_the_clock(self, address: str) -> None:
        """A consumer that already waits learns when the delayed message is due."""

        async def main() -> list[bytes]:
            waiting = asyncio.create_task(receive(MemoryConsumer(address=address)))
            await asyncio.sleep(0)
            send(address, b"1", delay=0.02)
            return bodies(await waiting)

        assert asyncio.run(main()) == [b"1"]


class TestExpiry:
    def test_an_expired_message_is_dropped_with_a_log_record(
        self, address: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Nobody handles what has expired, and it does not vanish in silence."""
        send(address, b"1", expires_at=datetime.now(UTC) - timedelta(seconds=1))
        send(address, b"2", expires_at=datetime.now(UTC) + timedelta(hours=1))
        with caplog.at_level("INFO", "postbus.memory"):
            assert bodies(take(address)) == [b"2"]
        assert [record.message for record in caplog.records] == ["message expired"]

    def test_an_expired_query_is_rejected(self, address: str) -> None:
        """Whoever asks learns at once that nobody will answer."""
        reply: Promise[Reply] = Promise()
        expired = make_message(b"1", expires_at=datetime.now(UTC) - timedelta(seconds=1))
        MemoryProducer(address=address).request(expired, reply)
        send(address, b"2")
        assert bodies(take(address)) == [b"2"]
        assert isinstance(reply.exception(), TimedOutError)


class TestBounds:
    def test_a_full_queue_refuses_and_says_what_to_do(self, address: str) -> None:
        """Memory is bounded: more than `capacity` waiting messages are refused, never dropped."""
        producer = MemoryProducer(address=address, capacity=2)
        producer.send_many([make_message(b"1"), make_message(b"2")])
        with pytest.raises(RejectedError, match=rf"{address} is full: 2 .*capacity"):
            producer.send(make_message(b"3"))
        assert bodies(take(address)) == [b"1", b"2"]

    def test_delayed_messages_count(self, address: str) -> None:
        """A pile of delayed messages is bounded too."""
        producer = MemoryProducer(address=address, capacity=1)
        producer.send(make_message(delay=60))
        with pytest.raises(RejectedError, match="full"):
            producer.send(make_message())

    def test_a_batch_says_which_were_refused(self, address: str) -> None:
        """The error of every refused message stands under its index."""
        producer = MemoryProducer(address=address, capacity=2, max_size_bytes=3)
        with pytest.raises(PartiallySentError, match="2 of 4") as caught:
            producer.send_many(
                [make_message(b"1"), make_message(b"four"), *map(make_message, [b"2", b"3"])]
            )
        assert list(caught.value.failed) == [1, 3]
        assert "4 bytes, at most 3" in str(caught.value.failed[1])
        assert bodies(take(address)) == [b"1", b"2"]


class TestProducer:
    def test_closed_it_refuses(self, address: str) -> None:
        """After `close`, which may come twice, nothing is taken; what was sent stays."""
        producer = MemoryProducer(address=address)
        producer.send(make_message(b"1"))
        producer.close()
        producer.close()
        with pytest.raises(ClosedError):
            producer.send(make_message())
        with pytest.raises(ClosedError):
            producer.send_many([make_message()])
        assert bodies(take(address)) == [b"1"]

    def test_a_forked_child_starts_empty(self, address: str) -> None:
        """A child sends and receives for itself, even if the lock was held at the fork."""
        producer = MemoryProducer(address=address)
        producer.send(make_message(b"parent"))
        producer._queue._lock.acquire()
        with warnings.catch_warnings():
            # Newer Pythons warn of a fork beside other threads, which other tests may have left.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            signal.alarm(10)
            try:
                producer.send(make_message(b"child"))
                os._exit(0 if bodies(take(address)) == [b"child"] else 1)
            finally:
                os._exit(2)
        producer._queue._lock.release()
        assert os.waitpid(child, 0)[1] == 0
        assert bodies(take(address)) == [b"parent"]


class TestQueries:
    def test_an_answer_comes_back(self, address: str) -> None:
        """The reply channel belongs to the delivery; the first answer counts."""
        producer, reply = MemoryProducer(address=address), Promise[Reply]()
        assert isinstance(producer, QueryClient)
        producer.request(make_message(b"?"), reply)
        (delivery,) = take(address)
        assert delivery.can_reply
        delivery.reply(Reply(b"1"))
        delivery.reply(Reply(b"2"))
        assert Reply(b"1") == reply.result(0)


class TestSettling:
    def test_given_back_it_returns_to_its_place(self, address: str) -> None:
        """`nack` puts a delivery before all that came after it, marked as redelivered."""
        send(address, b"1", b"2", b"3")
        first, second = take(address, 2)
        second.nack()
        first.nack()
        again = take(address)
        assert bodies(again) == [b"1", b"2", b"3"]
        assert [delivery.redelivered for delivery in again] == [True, True, False]

    def test_a_retry_takes_the_place_with_a_new_body(self, address: str) -> None:
        """The new message stands where the old one stood, with its reply channel."""
        reply: Promise[Reply] = Promise()
        MemoryProducer(address=address).request(make_message(b"1"), reply)
        send(address, b"2")
        (first,) = take(address, 1)
        first.retry(make_message(b"again"))
        again, second = take(address)
        assert (again.body, again.redelivered, second.body) == (b"again", False, b"2")
        again.reply(Reply(b"answer"))
        assert Reply(b"answer") == reply.result(0)

    def test_a_retry_may_be_delayed(self, address: str) -> None:
        """The delay of the new message holds; others go first meanwhile."""
        send(address, b"1", b"2")
        (first,) = take(address, 1)
        first.retry(make_message(b"again", delay=0.02))
        assert bodies(take(address)) == [b"2"]
        assert bodies(take(address)) == [b"again"]

    def test_a_refused_retry_leaves_the_message_untouched(self, address: str) -> None:
        """The settlement rejects, the delivery is lost to its holder, the message comes back."""
        send(address, b"1")
        consumer = MemoryConsumer(address=address, max_size_bytes=3)
        (delivery,) = asyncio.run(receive(consumer))
        delivery.retry(make_message(b"too large"))
        assert delivery.lost
        assert isinstance(delivery.settled().exception(), RejectedError)
        (again,) = take(address)
        assert (again.body, again.redelivered) == (b"1", True)

    def test_settled_says_how_it_went(self, address: str) -> None:
        """Resolved when the queue has taken the settlement; rejected when the delivery is lost."""

        async def main() -> None:
            consumer = MemoryConsumer(address=address)
            send(address, b"1", b"2")
            first, second = await receive(consumer)
            first.ack()
            await first.settled()
            assert not first.lost
            await consumer.aclose()
            second.ack()
            assert second.lost
            with pytest.raises(ClosedError, match="before this delivery was settled"):
                await second.settled()

        asyncio.run(main())

    def test_at_most_once_makes_a_delivery_final(self, address: str) -> None:
        """With that guarantee nothing comes back, and asking for it is refused."""

        async def main() -> None:
            consumer = MemoryConsumer(address=address, guarantee="at-most-once")
            send(address, b"1")
            (delivery,) = await receive(consumer)
            delivery.ack()
            with pytest.raises(UnsupportedError):
                delivery.nack()
            with pytest.raises(UnsupportedError):
                delivery.retry(make_message())
            await consumer.aclose()

        asyncio.run(main())
        send(address, b"2")
        assert bodies(take(address)) == [b"2"]


class TestReceive:
    def test_it_waits_for_a_message_of_another_thread(self, address: str) -> None:
        """A waiting consumer is woken by a send in any thread."""

        async def main() -> list[bytes]:
            waiting = asyncio.create_task(receive(MemoryConsumer(address=address)))
            await asyncio.sleep(0)
            await asyncio.to_thread(send, address, b"1")
            return bodies(await waiting)

        assert asyncio.run(main()) == [b"1"]

    def test_it_is_woken_by_what_another_gives_back(self, address: str) -> None:
        """A delivery given back is taken by whoever waits."""

        async def main() -> list[bytes]:
            send(address, b"1")
            (delivery,) = await receive(MemoryConsumer(address=address))
            waiting = asyncio.create_task(receive(MemoryConsumer(address=address)))
            await asyncio.sleep(0)
            delivery.nack()
            return bodies(await waiting)

        assert asyncio.run(main()) == [b"1"]

    def test_consumers_compete(self, address: str) -> None:
        """Each message goes to one of several waiting consumers; the others go on waiting."""

        async def main() -> list[bytes]:
            consumers = [MemoryConsumer(address=address) for _ in range(3)]
            waiting = [asyncio.create_task(receive(each)) for each in consumers]
            await asyncio.sleep(0)
            send(address, b"1")
            done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            assert (len(done), len(pending)) == (1, 2)
            send(address, b"2", b"3")
            await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for each in consumers:
                await each.aclose()
            received = await asyncio.gather(*waiting, return_exceptions=True)
            return [b for each in received if isinstance(each, list) for b in bodies(each)]

        assert sorted(asyncio.run(main())) == [b"1", b"2", b"3"]

    @pytest.mark.parametrize("sends", ["before the cancellation", "after it"])
    def test_cancelled_it_loses_nothing(self, address: str, sends: str) -> None:
        """A message that comes just when the call is cancelled comes in the next call."""

        async def main() -> list[bytes]:
            consumer = MemoryConsumer(address=address)
            waiting = asyncio.create_task(receive(consumer))
            await asyncio.sleep(0)
            if sends == "before the cancellation":
                send(address, b"1")
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert not consumer._queue._wakes
            if sends == "after it":
                send(address, b"1")
            return bodies(await receive(consumer))

        assert asyncio.run(main()) == [b"1"]

    def test_a_consumer_whose_loop_ended_disturbs_nobody(self, address: str) -> None:
        """A send that finds the waiting consumer's loop closed keeps the message."""
        consumer, loop = MemoryConsumer(address=address), asyncio.new_event_loop()
        waiting = loop.create_task(receive(consumer))
        loop.run_until_complete(asyncio.sleep(0))
        wakes = set(consumer._queue._wakes)
        waiting.cancel()
        loop.run_until_complete(asyncio.wait({waiting}))
        loop.close()
        consumer._queue._wakes |= wakes
        send(address, b"1")
        assert bodies(take(address)) == [b"1"]

    def test_one_caller_at_a_time(self, address: str) -> None:
        """A second caller is told of its mistake; the first goes on."""

        async def main() -> list[bytes]:
            consumer = MemoryConsumer(address=address)
            waiting = asyncio.create_task(receive(consumer))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="one caller"):
                await consumer.receive(1)
            send(address, b"1")
            return bodies(await waiting)

        assert asyncio.run(main()) == [b"1"]

    def test_closing_ends_a_waiting_call(self, address: str) -> None:
        """`aclose`, which may come twice, works while `receive` waits."""

        async def main() -> None:
            consumer = MemoryConsumer(address=address)
            waiting = asyncio.create_task(receive(consumer))
            await asyncio.sleep(0)
            await consumer.aclose()
            await consumer.aclose()
            with pytest.raises(ClosedError):
                await waiting
            with pytest.raises(ClosedError):
                await consumer.receive(1)

        asyncio.run(main())


class TestLooking:
    """What waits can be counted, looked at and removed."""

    def test_what_expired_or_is_not_due_does_not_wait(self, address: str) -> None:
        """Nobody could receive it now."""
        consumer = MemoryConsumer(address=address)
        now = datetime.now(UTC)
        send(address, b"over", expires_at=now - timedelta(seconds=1))
        send(address, b"not yet over", expires_at=now + timedelta(hours=1))
        send(address, b"late", delay=600.0)
        send(address, b"soon", delay=0.001)
        while consumer.count() == {address: 1}:
            os.sched_yield()

        assert [b"not yet over", b"soon"] == [each.body for each in consumer.peek(address)]
        assert consumer.purge(address) == 2
        assert consumer.count() == {address: 0}

    def test_a_look_shows_headers_too(self, address: str) -> None:
        """Those that the system itself keeps."""
        send(address, b"1")
        (seen,) = MemoryConsumer(address=address).peek(address)
        assert {"name": "shop.place-order"} == seen.headers

    def test_what_is_more_urgent_is_seen_first(self, address: str) -> None:
        """In the order in which it would be received, a part at a time (K15)."""
        send(address, b"1", b"2")
        send(address, b"9", priority=9)
        consumer = MemoryConsumer(address=address)
        assert [b"9", b"1", b"2"] == [each.body for each in consumer.peek(address)]
        assert [b"1"] == [each.body for each in consumer.peek(address, offset=1, limit=1)]

    def test_a_query_that_is_removed_fails(self, address: str) -> None:
        """Whoever asked need not wait for the deadline."""
        reply: Promise[Reply] = Promise()
        MemoryProducer(address=address).request(make_message(), reply)
        assert MemoryConsumer(address=address).purge(address) == 1
        assert isinstance(reply.exception(), RejectedError)


class TestTransport:
    def test_the_record_makes_both_roles(self, address: str) -> None:
        """The entry point's record builds from settings, and says what the instances can do."""
        common = CommonSettings(name="mail", guarantee="at-most-once", max_size_bytes=3)
        producing = MemoryProducerSettings(address=address, capacity=1)
        consuming = MemoryConsumerSettings(address=address)
        producer = MEMORY.make_producer(producing, common)
        consumer = MEMORY.make_consumer(consuming, common)
        producer.send(make_message(b"1"))
        with pytest.raises(RejectedError, match="full"):
            producer.send(make_message(b"2"))
        assert bodies(asyncio.run(receive(consumer))) == [b"1"]
        assert producer.capabilities == MEMORY.capabilities(producing, common)
        assert consumer.capabilities == MEMORY.capabilities(consuming, common)

    def test_it_claims_what_the_tests_here_prove(self) -> None:
        """All that a queue in one process can be; never durable."""
        can = MEMORY.capabilities(MemoryConsumerSettings(), CommonSettings(name="x"))
        assert (
            can.acknowledge,
            can.queries,
            can.retry,
            can.priority,
            can.expiry,
            can.ordering,
            can.delay,
            can.max_size_bytes,
        ) == (True, True, True, True, True, True, 0.001, 1024 * 1024)
        assert all([can.count, can.inspect, can.purge])
        assert not any([can.durable, can.redeliver_on_crash])

    def test_the_settings_name_their_defaults(self) -> None:
        """A section without keys uses one shared address."""
        assert (
            MemoryProducerSettings().address,
            MemoryProducerSettings().capacity,
        ) == ("default", 10_000)
        assert MemoryConsumerSettings().address == "default"

    def test_reset_forgets_every_address(self, address: str) -> None:
        """Without an address everything that waits anywhere is gone."""
        send(address, b"1")
        reset()
        send(address, b"2")
        assert bodies(take(address)) == [b"2"]
