"""The worker: what it does with deliveries, failures, and a request to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from postbus.catalog import MessageCatalog
from postbus.errors import (
    ClosedError,
    ConfigurationError,
    ConnectionFailedError,
    DecodeError,
    HandlerFailedError,
    ListenersFailedError,
    NoHandlerError,
    RejectedError,
    TimedOutError,
    UnauthorizedError,
    ValidationFailedError,
)
from postbus.memory import MemoryConsumer, MemoryProducer, reset
from postbus.messages import Command, Envelope, Event, MessageKind, Query, new_id
from postbus.promises import Promise
from postbus.testing import FakeConsumer, FakeDelivery
from postbus.transports import Capabilities, MessageConsumer, Reply, WireMessage
from postbus.wire import decode_problem, decode_result, encode
from postbus.worker import ConsumerRun, Worker, default_pause
from postbus.worker._failures import Failures

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from postbus.transports import Delivery


@attrs.frozen
class PlaceOrder(Command, name="shop.place-order"):
    number: int


@attrs.frozen
class OrderPlaced(Event, name="shop.order-placed"):
    number: int


@attrs.frozen
class CountOrders(Query[int], name="shop.count-orders"):
    pass


CATALOG = MessageCatalog()
for each in (PlaceOrder, OrderPlaced, CountOrders):
    CATALOG.add(each)


class TinyBus:
    """Hands what it receives to one function, plain or asyncio."""

    def __init__(self, handler: Callable[[Envelope], Any] = lambda _: None) -> None:
        self.handler = handler
        self.received: list[tuple[str, str, bool]] = []

    async def areceive(self, envelope: Envelope, source: str, *, threads: bool = False) -> Any:
        self.received.append((envelope.name, source, threads))
        result = self.handler(envelope)
        return await result if asyncio.iscoroutine(result) else result


def buses_with(handler: Callable[[Envelope], Any]) -> dict[MessageKind, TinyBus]:
    bus = TinyBus(handler)
    return dict.fromkeys(MessageKind, bus)


def body_of(message: Any, **fields: Any) -> bytes:
    return encode(Envelope(message, **fields))


def orders(*numbers: int) -> list[bytes]:
    return [body_of(PlaceOrder(number)) for number in numbers]


def raising(error: BaseException) -> Callable[[Envelope], Any]:
    def handler(_: Envelope) -> None:
        raise error

    return handler


def make_worker(
    consumer: MessageConsumer,
    handler: Callable[[Envelope], Any] = lambda _: None,
    *,
    shutdown_grace: float = 10.0,
    pause: Callable[[int], float] = default_pause,
    **run: Any,
) -> Worker:
    runs = [ConsumerRun(name="mail", consumer=consumer, **run)]
    return Worker(buses_with(handler), runs, CATALOG, shutdown_grace=shutdown_grace, pause=pause)


def work_through(
    bodies: Sequence[bytes],
    handler: Callable[[Envelope], Any] = lambda _: None,
    *,
    can_reply: bool = False,
    acknowledge: bool = True,
) -> list[FakeDelivery]:
    """Run a worker over *bodies* and return what became of each."""
    consumer = FakeConsumer(bodies, can_reply=can_reply, acknowledge=acknowledge)
    make_worker(consumer, handler).run()
    assert consumer.is_closed
    return consumer.deliveries


def outcomes(deliveries: Sequence[FakeDelivery]) -> list[str | None]:
    return [delivery.outcome for delivery in deliveries]


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [vars(record)["reason"] for record in caplog.records if hasattr(record, "reason")]


def finishing(main: Awaitable[Any]) -> Any:
    """Run *main* on a loop, at most ten seconds."""

    async def limited() -> Any:
        async with asyncio.timeout(10):
            return await main

    return asyncio.run(limited())


@pytest.fixture
def address() -> Iterator[str]:
    """An address that no other test uses."""
    name = new_id()
    yield name
    reset(name)


def send(address: str, *bodies: bytes) -> None:
    producer = MemoryProducer(address=address)
    producer.send_many([WireMessage(body, {}, new_id(), "a.name") for body in bodies])


async def waiting_at(address: str) -> list[Delivery]:
    """Return what waits at *address*, in order, without waiting for more."""
    end = new_id().encode()
    send(address, end)
    found = await MemoryConsumer(address=address).receive(1000)
    return [each for each in found if each.body != end]


class TestDispatch:
    def test_each_kind_goes_to_its_bus_as_received(self) -> None:
        """The worker calls `areceive` with the consumer's name and sync handlers in threads."""
        buses = {kind: TinyBus() for kind in MessageKind}
        consumer = FakeConsumer(
            [body_of(PlaceOrder(1)), body_of(OrderPlaced(1)), body_of(CountOrders())],
            can_reply=True,
        )
        Worker(buses, [ConsumerRun(name="mail", consumer=consumer)], CATALOG).run()
        assert {
            MessageKind.COMMAND: [("shop.place-order", "mail", True)],
            MessageKind.EVENT: [("shop.order-placed", "mail", True)],
            MessageKind.QUERY: [("shop.count-orders", "mail", True)],
        } == {kind: bus.received for kind, bus in buses.items()}

    def test_it_acknowledges_after_success_never_before(self) -> None:
        """While the handler runs, the delivery is open (K10)."""
        consumer = FakeConsumer(orders(1))
        seen: list[str | None] = []
        make_worker(consumer, lambda _: seen.append(consumer.deliveries[0].outcome)).run()
        assert [None] == seen
        assert ["ack"] == outcomes(consumer.deliveries)

    def test_several_consumers_run_at_once(self) -> None:
        """One worker serves many consumers: neither waits for the other's handler."""
        both = threading.Barrier(2)
        consumers = [FakeConsumer(orders(1)), FakeConsumer(orders(2))]

        async def handler(_: Envelope) -> None:
            await asyncio.to_thread(both.wait, 10)

        runs = [ConsumerRun(name=f"c{n}", consumer=each) for n, each in enumerate(consumers)]
        Worker(buses_with(handler), runs, CATALOG).run()
        assert [["ack"], ["ack"]] == [outcomes(each.deliveries) for each in consumers]

    def test_one_consumer_closed_leaves_the_others(self, address: str) -> None:
        """A consumer that somebody closed ends alone; the worker goes on with the rest."""
        handled = threading.Event()
        runs = [
            ConsumerRun(name="closed", consumer=FakeConsumer([])),
            ConsumerRun(name="open", consumer=MemoryConsumer(address=address)),
        ]
        with Worker(buses_with(lambda _: handled.set()), runs, CATALOG).running():
            send(address, *orders(1))
            assert handled.wait(10)

    def test_unknown_fields_are_the_consumers_choice(self) -> None:
        """`unknown_fields` and `max_size_bytes` of a consumer reach the decoder."""
        body = encode(Envelope(PlaceOrder(1))).replace(b'"number":1', b'"number":1,"more":2')
        numbers: list[int] = []
        ignoring, small = FakeConsumer([body]), FakeConsumer([body])
        make_worker(
            ignoring, lambda e: numbers.append(e.message.number), unknown_fields="ignore"
        ).run()
        make_worker(small, max_size_bytes=10).run()
        assert ([1], ["ack"], ["nack"]) == (
            numbers,
            outcomes(ignoring.deliveries),
            outcomes(small.deliveries),
        )


class TestQueries:
    def test_the_answer_goes_back_before_the_acknowledgement(self) -> None:
        """A query's result is replied as JSON, then the delivery is acknowledged."""
        (delivery,) = work_through([body_of(CountOrders())], lambda _: 3, can_reply=True)
        (reply,) = delivery.replies
        assert (3, False, "ack") == (
            decode_result(reply.body, int),
            reply.is_error,
            delivery.outcome,
        )

    def test_a_failed_query_is_answered_and_never_retried(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The asker gets code and all; the delivery is acknowledged."""
        failed = raising(HandlerFailedError("out-of-stock", "", None))
        (delivery,) = work_through([body_of(CountOrders())], failed, can_reply=True)
        (reply,) = delivery.replies
        problem = decode_problem(reply.body, None)
        assert (True, "ack") == (reply.is_error, delivery.outcome)
        assert isinstance(problem, HandlerFailedError)
        assert "out-of-stock" == problem.code
        assert ["handler_failed"] == reasons(caplog)

    def test_an_answer_that_cannot_be_written_is_a_failure(self) -> None:
        """A result that JSON cannot carry is answered with a problem, not with silence."""
        (delivery,) = work_through([body_of(CountOrders())], lambda _: object(), can_reply=True)
        assert [True] == [reply.is_error for reply in delivery.replies]

    def test_past_its_deadline_it_is_not_handled(self, caplog: pytest.LogCaptureFixture) -> None:
        """Nobody waits any more: no handler runs, the answer is that time ran out (T10)."""
        late, early = (
            body_of(
                CountOrders(),
                headers={"deadline": (datetime.now(UTC) + timedelta(seconds=s)).isoformat()},
            )
            for s in (-1, 60)
        )
        handled: list[str] = []
        deliveries = work_through([late, early], lambda e: handled.append(e.id), can_reply=True)
        problem = decode_problem(deliveries[0].replies[0].body, None)
        assert isinstance(problem, TimedOutError)
        assert ([True], [False]) == tuple(
            [reply.is_error for reply in delivery.replies] for delivery in deliveries
        )
        assert 1 == len(handled)
        assert ["deadline_passed"] == reasons(caplog)

    def test_without_a_reply_channel_it_is_not_handled(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A query that nobody can answer never falls through to a handler (T11)."""
        handled: list[str] = []
        deliveries = work_through([body_of(CountOrders())], lambda e: handled.append(e.id))
        assert ([], ["nack"]) == (handled, outcomes(deliveries))
        assert ["no_reply_channel"] == reasons(caplog)

    def test_over_memory_a_question_gets_its_answer(self, address: str) -> None:
        """End to end: request, worker, reply."""
        worker = make_worker(MemoryConsumer(address=address), lambda _: 3)
        reply: Promise[Reply] = Promise()
        with worker.running():
            message = WireMessage(body_of(CountOrders()), {}, new_id(), "shop.count-orders")
            MemoryProducer(address=address).request(message, reply)
            assert Reply(b"3") == reply.result(10)


class TestFailures:
    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (HandlerFailedError("x", ""), "handler_failed"),
            (ListenersFailedError("x", [HandlerFailedError("y", "")]), "listeners_failed"),
            (NoHandlerError("x"), "no_handler"),
            (UnauthorizedError("x"), "unauthorized"),
            (ValidationFailedError("x"), "validation_failed"),
            (DecodeError("payload", "x"), "payload"),
            (RejectedError("x"), "send_failed"),
            (asyncio.CancelledError(), "cancelled"),
            (KeyError("x"), "error"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_whatever_is_raised_the_message_is_given_back_and_the_next_handled(
        self, error: BaseException, reason: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """No failure ends the consumer, and each has a stable reason (K10, K12)."""
        todo = [error]

        def handler(_: Envelope) -> None:
            if todo:
                raise todo.pop()

        assert ["nack", "ack"] == outcomes(work_through(orders(1, 2), handler))
        assert [reason] == reasons(caplog)

    @pytest.mark.parametrize(
        "body",
        [b"", b"not json", b"[]", orders(1)[0].replace(b"place", b"other"), b"\xff" * 10],
    )
    def test_what_cannot_be_decoded_is_given_back(
        self, body: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Nothing is dropped: another worker may understand it; no handler sees it."""
        handled: list[str] = []
        deliveries = work_through([body, *orders(1)], lambda e: handled.append(e.id))
        assert (1, ["nack", "ack"]) == (len(handled), outcomes(deliveries))
        (record,) = [vars(record) for record in caplog.records if hasattr(record, "reason")]
        assert (None, len(body)) == (record["message_id"], record["body_bytes"])
        assert record["detail"]

    def test_what_cannot_be_decoded_is_answered_where_somebody_waits(self) -> None:
        """With a reply channel the asker is told instead."""
        (delivery,) = work_through([b"not json"], can_reply=True)
        assert ("ack", [True]) == (delivery.outcome, [each.is_error for each in delivery.replies])

    def test_a_kind_without_a_bus_has_no_handler(self, caplog: pytest.LogCaptureFixture) -> None:
        """A command that comes to a worker with an event bus only is given back."""
        consumer = FakeConsumer(orders(1))
        runs = [ConsumerRun(name="mail", consumer=consumer)]
        Worker({MessageKind.EVENT: TinyBus()}, runs, CATALOG).run()
        assert ["nack"] == outcomes(consumer.deliveries)
        assert ["no_handler"] == reasons(caplog)

    def test_where_nothing_can_be_given_back_the_loss_is_logged_with_the_id(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """At error level, with id, name, consumer and reason: never silent."""
        body = body_of(PlaceOrder(1), id="0f0e0d0c-0000-4000-8000-000000000001")
        error = HandlerFailedError("x", "a secret")
        deliveries = work_through([body, *orders(2)], raising(error), acknowledge=False)
        assert [None, None] == outcomes(deliveries)
        record = vars(caplog.records[0])
        assert logging.ERROR == caplog.records[0].levelno
        assert "message lost: 0f0e0d0c-0000-4000-8000-000000000001" == record["message"]
        assert ("mail", "shop.place-order", "handler_failed", "x") == (
            record["consumer"],
            record["message_name"],
            record["reason"],
            record["code"],
        )
        assert "a secret" not in str([vars(each) for each in caplog.records])

    def test_the_log_says_what_was_raised_and_where(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Class and place of the original error, of a listener's too; never its text."""

        def fail() -> None:
            raise ValueError("a secret")

        def handler(_: Envelope) -> None:
            try:
                fail()
            except ValueError as error:
                failed = HandlerFailedError("x", str(error))
                failed.__cause__ = error
                raise ListenersFailedError("1 failed", [failed]) from None

        work_through(orders(1), handler)
        (record,) = [vars(record) for record in caplog.records if hasattr(record, "reason")]
        assert ("ValueError", "x") == (record["error"], record["code"])
        assert __file__ in record["where"]
        assert record["where"].endswith("fail")
        assert "a secret" not in str(record)

    def test_a_transport_that_fails_to_settle_does_not_end_the_consumer(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A broken delivery is reported, the next one is handled."""

        class Broken(FakeDelivery):
            def ack(self) -> None:
                raise ZeroDivisionError

            def nack(self) -> None:
                raise ZeroDivisionError

            def reply(self, reply: Reply) -> None:
                raise ZeroDivisionError

        consumer = FakeConsumer([*orders(1), body_of(CountOrders()), *orders(2)])
        consumer._waiting[0] = Broken(orders(1)[0])
        consumer._waiting[1] = Broken(body_of(CountOrders()), can_reply=True)
        make_worker(consumer).run()
        assert "ack" == consumer.deliveries[2].outcome
        assert {
            "message failed",
            "a failed delivery could not be given back",
            "a failed delivery could not be settled",
        } <= {record.message for record in caplog.records}


class TestPauses:
    def test_a_failed_message_comes_back_after_a_growing_pause(self, address: str) -> None:
        """Each failure of one message waits longer; success ends the count (K12)."""
        fails, pauses, done = [3, 1], list[int](), threading.Event()
        send(address, *orders(1))
        seen: list[int] = []

        def handler(envelope: Envelope) -> None:
            seen.append(len(seen))
            if fails and fails[0] > 0:
                fails[0] -= 1
                raise HandlerFailedError("x", "")
            if fails:
                fails.pop(0)
                send(address, encode(envelope))
            else:
                done.set()

        def pause(failures: int) -> float:
            pauses.append(failures)
            return 0.0

        with make_worker(MemoryConsumer(address=address), handler, pause=pause).running():
            assert done.wait(10)
        assert ([1, 2, 3, 1], 7) == (pauses, len(seen))

    def test_others_are_handled_meanwhile(self, address: str) -> None:
        """A poisoned message does not hold up what is behind it."""
        done = threading.Event()
        send(address, b"poison", *orders(1))
        consumer = MemoryConsumer(address=address)
        with make_worker(consumer, lambda _: done.set(), pause=lambda _: 3600.0).running():
            assert done.wait(10)
        assert [b"poison"] == [each.body for each in finishing(waiting_at(address))]

    def test_the_number_set_aside_is_bounded(self, address: str) -> None:
        """At 100 the consumer receives no more until fewer are left."""
        send(address, *orders(*range(150)))
        failed: list[int] = []
        pauses: list[float] = []

        async def main() -> None:
            full, more = asyncio.Event(), asyncio.Event()

            def handler(envelope: Envelope) -> None:
                failed.append(envelope.message.number)
                raise HandlerFailedError("x", "")

            def pause(_: int) -> float:
                pauses.append(0.2 if 90 <= len(pauses) < 100 else 3600.0)
                if len(pauses) == 100:
                    full.set()
                if len(pauses) > 107:
                    more.set()
                return pauses[-1]

            consumer = MemoryConsumer(address=address)
            async with make_worker(consumer, handler, pause=pause, prefetch=7):
                await full.wait()
                for _ in range(50):
                    await asyncio.sleep(0)
                assert len(pauses) <= 100 + 7
                await more.wait()

        finishing(main())
        assert 150 == len(finishing(waiting_at(address)))

    def test_the_count_of_failures_is_bounded(self) -> None:
        """Endless distinct poison does not fill the memory: the oldest count is dropped."""

        async def main() -> dict[int, int]:
            failures = Failures(
                "mail", acknowledge=True, pause=lambda _: 3600.0, on_given_back=lambda: None
            )
            for number in range(1005):
                failures.decide(FakeDelivery(b"%d" % number), None, DecodeError("json", ""))
            counts = failures._counts
            failures.stop()
            return counts

        counts = finishing(main())
        assert (1000, False) == (len(counts), hash(b"0") in counts)

    def test_the_default_pause_grows_to_five_seconds(self) -> None:
        """0.1, doubled, at most 5, up to a quarter less by chance."""
        for failures, longest in [(1, 0.1), (2, 0.2), (4, 0.8), (7, 5.0), (10_000, 5.0)]:
            assert longest * 0.75 <= default_pause(failures) <= longest


class ScriptedConsumer(MessageConsumer):
    """Returns or raises what its script says, then waits; *was_asked* says that it began."""

    def __init__(self, *script: Any, acknowledge: bool = True) -> None:
        self.capabilities = Capabilities(acknowledge=acknowledge)
        self.script = list(script)
        self.asked: list[int] = []
        self.was_asked = asyncio.Event()

    async def receive(self, max_messages: int) -> Sequence[Delivery]:
        self.asked.append(max_messages)
        self.was_asked.set()
        if not self.script:
            await asyncio.Event().wait()
        step = self.script.pop(0)
        if isinstance(step, BaseException):
            raise step
        return [FakeDelivery(body) for body in step]

    async def aclose(self) -> None:
        pass


class TestReceiving:
    def test_a_broken_connection_is_tried_again_with_growing_pauses(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A broken backend never looks like an empty queue, and never ends the worker (T13)."""
        done, pauses = threading.Event(), list[int]()
        down = ConnectionFailedError("down")
        consumer = ScriptedConsumer(down, down, ZeroDivisionError(), [], orders(1), down)

        def pause(failures: int) -> float:
            pauses.append(failures)
            if len(pauses) == 4:
                done.set()
            return 0.0

        with make_worker(consumer, pause=pause).running():
            assert done.wait(10)
        assert [1, 2, 3, 1] == pauses
        logged = [vars(each) for each in caplog.records if each.message == "receive failed"]
        assert ["ConnectionFailedError", "ZeroDivisionError", "ConnectionFailedError"] == [
            each["error"] for each in logged
        ]

    def test_at_most_concurrency_handlers_run_at_once(self, address: str) -> None:
        """As many as allowed, never more, and never more received than may be held."""
        send(address, *orders(*range(20)))
        running: set[int] = set()
        most: list[int] = []

        async def main() -> None:
            left = 20
            done = asyncio.Event()

            async def handler(envelope: Envelope) -> None:
                nonlocal left
                running.add(envelope.message.number)
                most.append(len(running))
                await asyncio.sleep(0.001)
                running.discard(envelope.message.number)
                left -= 1
                if not left:
                    done.set()

            consumer = MemoryConsumer(address=address)
            async with make_worker(consumer, handler, concurrency=3):
                await done.wait()

        finishing(main())
        assert 3 == max(most)

    def test_one_batch_is_handled_by_as_many_as_allowed(self) -> None:
        """What came together runs together: nobody waits for a second batch."""
        consumer = FakeConsumer(orders(1, 2, 3))

        async def main() -> None:
            together = asyncio.Event()
            entered: list[Envelope] = []

            async def handler(envelope: Envelope) -> None:
                entered.append(envelope)
                if len(entered) == 3:
                    together.set()
                await together.wait()

            await make_worker(consumer, handler, concurrency=3, shutdown_grace=5.0).arun()

        finishing(main())
        assert ["ack"] * 3 == outcomes(consumer.deliveries)

    def test_prefetch_bounds_what_is_held(self, address: str) -> None:
        """The worker holds at most `prefetch` deliveries, those being handled included."""
        send(address, *orders(*range(20)))
        held: list[int] = []

        async def main() -> None:
            consumer, done = MemoryConsumer(address=address), asyncio.Event()

            async def handler(envelope: Envelope) -> None:
                await asyncio.sleep(0)
                held.append(len(consumer._unsettled))
                if len(held) == 20:
                    done.set()

            async with make_worker(consumer, handler, concurrency=2, prefetch=6):
                await done.wait()

        finishing(main())
        assert 6 == max(held)

    @pytest.mark.parametrize(("prefetch", "first"), [(None, 8), (0, 4), (2, 4), (9, 9)])
    def test_it_asks_for_what_it_may_hold(self, prefetch: int | None, first: int) -> None:
        """Twice the concurrency unless told; less than it makes no sense, and 0 is a value."""
        consumer = ScriptedConsumer()

        async def main() -> None:
            async with make_worker(consumer, concurrency=4, prefetch=prefetch):
                await consumer.was_asked.wait()

        finishing(main())
        assert [first] == consumer.asked

    @pytest.mark.parametrize("options", [{"concurrency": 0}, {"prefetch": -1}])
    def test_nonsense_is_refused(self, options: dict[str, Any]) -> None:
        """A consumer that could never handle anything is refused when it is described."""
        with pytest.raises(ValueError, match="must be >="):
            ConsumerRun(name="mail", consumer=FakeConsumer([]), **options)


class TestStopping:
    def test_running_handlers_finish_within_the_grace(self, address: str) -> None:
        """A handler that needs a moment is waited for; what was not begun goes back at once."""
        first, second = orders(1, 2)
        send(address, first, second)

        async def main() -> tuple[list[bytes], list[Delivery]]:
            entered, release = asyncio.Event(), asyncio.Event()

            async def handler(_: Envelope) -> None:
                entered.set()
                await release.wait()

            worker = make_worker(MemoryConsumer(address=address), handler, prefetch=2)
            task = asyncio.create_task(worker.arun())
            await entered.wait()
            worker.stop()
            worker.stop()
            others = await MemoryConsumer(address=address).receive(2)
            release.set()
            await task
            return [each.body for each in others], await waiting_at(address)

        assert ([second], []) == finishing(main())

    @pytest.mark.parametrize("grace", [0.0, 0.02])
    def test_what_takes_longer_is_cancelled_and_given_back(
        self, address: str, grace: float, caplog: pytest.LogCaptureFixture
    ) -> None:
        """After the grace, and 0 is a value, a handler is cancelled, its message waits (T12)."""
        send(address, *orders(1))
        cancelled: list[bool] = []

        async def main() -> list[Delivery]:
            entered = asyncio.Event()

            async def handler(_: Envelope) -> None:
                entered.set()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancelled.append(True)
                    raise

            consumer = MemoryConsumer(address=address)
            async with make_worker(consumer, handler, shutdown_grace=grace):
                await entered.wait()
            return await waiting_at(address)

        with caplog.at_level("INFO"):
            (delivery,) = finishing(main())
        assert ([True], True) == (cancelled, delivery.redelivered)
        assert ["stopped"] == reasons(caplog)

    def test_where_nothing_can_be_given_back_what_was_received_is_still_handled(self) -> None:
        """Without acknowledgement the grace is for everything that was received."""
        handled: list[int] = []

        async def main() -> None:
            entered, release = asyncio.Event(), asyncio.Event()

            async def handler(envelope: Envelope) -> None:
                entered.set()
                await release.wait()
                handled.append(envelope.message.number)

            consumer = ScriptedConsumer(orders(1, 2, 3), acknowledge=False)
            worker = make_worker(consumer, handler, prefetch=3)
            task = asyncio.create_task(worker.arun())
            await entered.wait()
            worker.stop()
            release.set()
            await task

        finishing(main())
        assert [1, 2, 3] == handled

    def test_what_is_lost_at_the_end_of_the_grace_is_logged_with_its_id(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Also what had been received and not begun; undecodable bytes have no id."""
        ids = [new_id(), new_id()]
        bodies = [*(body_of(PlaceOrder(1), id=each) for each in ids), b"not json"]

        async def main() -> None:
            entered = asyncio.Event()

            async def handler(_: Envelope) -> None:
                entered.set()
                await asyncio.Event().wait()

            consumer = ScriptedConsumer(bodies, acknowledge=False)
            async with make_worker(consumer, handler, prefetch=3, shutdown_grace=0.0):
                await entered.wait()

        finishing(main())
        lost = {record.message for record in caplog.records if record.levelno == logging.ERROR}
        assert {f"message lost: {each}" for each in [*ids, None]} == lost

    @pytest.mark.parametrize("acknowledge", [True, False])
    def test_a_query_cut_off_goes_back_or_is_answered(self, acknowledge: bool) -> None:
        """Another worker may answer it; where none can get it, the asker learns of the stop."""
        consumer = FakeConsumer([body_of(CountOrders())], can_reply=True, acknowledge=acknowledge)

        async def main() -> None:
            entered = asyncio.Event()

            async def handler(_: Envelope) -> None:
                entered.set()
                await asyncio.Event().wait()

            async with make_worker(consumer, handler, shutdown_grace=0.0):
                await entered.wait()

        finishing(main())
        (delivery,) = consumer.deliveries
        problems = [type(decode_problem(reply.body, None)) for reply in delivery.replies]
        expected = ("nack", []) if acknowledge else ("ack", [RejectedError])
        assert expected == (delivery.outcome, problems)

    def test_it_ends_in_time_whatever_handlers_and_consumers_do(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who ignores a cancellation is reported and left behind."""
        monkeypatch.setattr("postbus.worker._consumption._PATIENCE", 0.02)

        async def main() -> None:
            entered, give_in = asyncio.Event(), asyncio.Event()

            async def stubborn(_: Any = None) -> Any:
                entered.set()
                while not give_in.is_set():
                    try:
                        await give_in.wait()
                    except asyncio.CancelledError:
                        continue
                return []

            class Stubborn(ScriptedConsumer):
                async def receive(self, max_messages: int) -> Sequence[Delivery]:
                    return await super().receive(max_messages) if self.script else await stubborn()

                async def aclose(self) -> None:
                    await stubborn()

            consumer = Stubborn(orders(1))
            async with make_worker(consumer, stubborn, concurrency=2, shutdown_grace=0.0):
                await entered.wait()
            give_in.set()
            for _ in range(10):
                await asyncio.sleep(0)

        finishing(main())
        assert {
            f"{who} ignores its cancellation"
            for who in ("the consumer", "a handler", "closing the consumer")
        } == {record.message for record in caplog.records if record.levelno == logging.ERROR}

    def test_a_consumer_that_fails_to_close_does_not_keep_the_others_open(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Closing goes on, and the failure is in the log."""

        class Broken(FakeConsumer):
            async def aclose(self) -> None:
                raise ConnectionFailedError("down")

        good = FakeConsumer([])
        runs = [
            ConsumerRun(name="broken", consumer=Broken([])),
            ConsumerRun(name="good", consumer=good),
        ]
        Worker({}, runs, CATALOG).run()
        assert good.is_closed
        assert ["closing a consumer failed"] == [record.message for record in caplog.records]

    def test_stopped_before_it_starts_it_only_closes(self) -> None:
        """A signal that comes first is not forgotten."""
        consumer = FakeConsumer(orders(1))
        worker = make_worker(consumer)
        worker.stop()
        worker.run()
        assert ([None], True) == (outcomes(consumer.deliveries), consumer.is_closed)

    def test_stop_after_the_end_does_nothing(self) -> None:
        """Idempotent, even when the loop is gone."""
        worker = make_worker(FakeConsumer([]))
        worker.run()
        worker.stop()

    def test_it_runs_once(self) -> None:
        """Its consumers are closed then: another start is refused in every way of running."""
        worker = make_worker(FakeConsumer([]))
        worker.run()
        with pytest.raises(ClosedError, match="runs once"):
            worker.run()
        with pytest.raises(ClosedError, match="runs once"), worker.running():
            pass

        async def embed() -> None:
            async with worker:
                pass

        with pytest.raises(ClosedError, match="runs once"):
            finishing(embed())

    def test_cancelled_it_stops_without_grace(self, address: str) -> None:
        """Who cancels `arun` gets the worker's messages back at once."""
        send(address, *orders(1))

        async def main() -> int:
            entered = asyncio.Event()

            async def handler(_: Envelope) -> None:
                entered.set()
                await asyncio.Event().wait()

            worker = make_worker(MemoryConsumer(address=address), handler, shutdown_grace=3600)
            task = asyncio.create_task(worker.arun())
            await entered.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return len(await waiting_at(address))

        assert 1 == finishing(main())

    @pytest.mark.parametrize("embedded", [True, False])
    def test_a_handler_that_exits_ends_the_worker_and_loses_nothing(
        self, address: str, embedded: bool
    ) -> None:
        """SystemExit passes through `run` and `running`; the message goes back."""
        send(address, *orders(1))
        entered = threading.Event()

        def handler(_: Envelope) -> None:
            entered.set()
            raise SystemExit(3)

        worker = make_worker(MemoryConsumer(address=address), handler)
        with pytest.raises(SystemExit):
            if embedded:
                with worker.running():
                    assert entered.wait(10)
            else:
                worker.run()
        assert 1 == len(finishing(waiting_at(address)))

    def test_tasks_that_handlers_left_behind_are_cancelled(self) -> None:
        """`run` leaves nothing running on the loop it made."""
        left: list[asyncio.Task[None]] = []

        async def forever() -> None:
            await asyncio.Event().wait()

        async def handler(_: Envelope) -> None:
            left.append(asyncio.create_task(forever()))

        make_worker(FakeConsumer(orders(1)), handler).run()
        assert [True] == [task.cancelled() for task in left]

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_stops_it_cleanly(self, address: str, number: signal.Signals) -> None:
        """In the main thread a signal lets the handler finish; the old handlers return."""
        send(address, *orders(1))
        before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
        finished: list[bool] = []

        async def handler(_: Envelope) -> None:
            os.kill(os.getpid(), number)
            await asyncio.sleep(0.01)
            finished.append(True)

        make_worker(MemoryConsumer(address=address), handler).run()
        assert ([True], []) == (finished, finishing(waiting_at(address)))
        assert before == [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]

    def test_other_threads_leave_signals_alone(self) -> None:
        """Only the main thread may set signal handlers, so `run` elsewhere does not try."""
        consumer = FakeConsumer(orders(1))
        thread = threading.Thread(target=make_worker(consumer).run)
        thread.start()
        thread.join(10)
        assert ["ack"] == outcomes(consumer.deliveries)

    def test_a_second_signal_ends_the_process_at_once(self) -> None:
        """However long the grace, and even while a handler blocks the loop."""
        script = """
            import sys, time
            import attrs
            from postbus.catalog import MessageCatalog
            from postbus.messages import Command, Envelope, MessageKind
            from postbus.testing import FakeConsumer
            from postbus.wire import encode
            from postbus.worker import ConsumerRun, Worker

            @attrs.frozen
            class Hang(Command, name="shop.hang"):
                pass

            class Bus:
                async def areceive(self, envelope, source, *, threads=False):
                    print("handling", flush=True)
                    time.sleep(3600)

            catalog = MessageCatalog()
            catalog.add(Hang)
            consumer = FakeConsumer([encode(Envelope(Hang()))])
            runs = [ConsumerRun(name="mail", consumer=consumer)]
            Worker({MessageKind.COMMAND: Bus()}, runs, catalog, shutdown_grace=3600).run()
        """
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                assert "handling\n" == process.stdout.readline()
                process.send_signal(signal.SIGTERM)
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.2)
                process.send_signal(signal.SIGTERM)
                assert -signal.SIGTERM == process.wait(10)
            finally:
                process.kill()


class TestBuilding:
    def test_it_needs_consumers_and_a_grace(self) -> None:
        """Every problem is told at once; 0 is a value for the grace (K11)."""
        with pytest.raises(ConfigurationError) as caught:
            Worker({}, [], CATALOG, shutdown_grace=-1)
        assert ["consumers", "worker.shutdown_grace"] == [
            problem.path for problem in caught.value.problems
        ]
        Worker({}, [ConsumerRun(name="x", consumer=FakeConsumer([]))], CATALOG, shutdown_grace=0)
