"""The worker as a process: limits, pausing, leases, health, failpoints, supervision."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from postbus import Command, Envelope, MessageCatalog, Query, build
from postbus.errors import ClosedError, ConfigurationError, ConnectionFailedError, UnsupportedError
from postbus.memory import MemoryConsumer, MemoryProducer, reset
from postbus.messages import MessageKind, new_id
from postbus.stores import MemoryStore
from postbus.testing import FAILPOINTS, FakeConsumer, FakeDelivery, failpoint
from postbus.transports import MessageConsumer, WireMessage
from postbus.wire import encode
from postbus.worker import ConsumerRun, Limits, RetryPolicy, Worker
from postbus.worker._limits import resident_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


@attrs.frozen
class PlaceOrder(Command, name="shop.place-order"):
    number: int


@attrs.frozen
class CountOrders(Query[int], name="shop.count-orders"):
    pass


CATALOG = MessageCatalog()
CATALOG.add(PlaceOrder)


class TinyBus:
    """Hands what it receives to one function, plain or asyncio."""

    def __init__(self, handler: Callable[[Any], Any]) -> None:
        self.handler = handler

    async def areceive(self, envelope: Envelope, source: str, *, threads: bool = False) -> Any:
        result = self.handler(envelope.message)
        return await result if asyncio.iscoroutine(result) else result


def make_worker(
    consumer: MessageConsumer | Sequence[MessageConsumer],
    handler: Callable[[Any], Any] = lambda _: None,
    *,
    run: dict[str, Any] | None = None,
    **options: Any,
) -> Worker:
    consumers = [consumer] if isinstance(consumer, MessageConsumer) else consumer
    runs = [
        ConsumerRun(name=f"c{number}", consumer=each, **(run or {}))
        for number, each in enumerate(consumers)
    ]
    return Worker(dict.fromkeys(MessageKind, TinyBus(handler)), runs, CATALOG, **options)


def body(number: int = 0) -> bytes:
    return encode(Envelope(PlaceOrder(number)))


def send(address: str, count: int) -> None:
    producer = MemoryProducer(address=address)
    for number in range(count):
        producer.send(WireMessage(body(number), {}, new_id(), "shop.place-order"))


async def left_at(address: str) -> int:
    """Return how many messages wait at *address*."""
    send(address, 1)
    consumer = MemoryConsumer(address=address)
    found = await consumer.receive(1000)
    await consumer.aclose()
    return len(found) - 1


def until(condition: Callable[[], Any]) -> None:
    """Wait for *condition*, at most twenty seconds."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def address() -> Iterator[str]:
    """An address that no other test uses."""
    name = new_id()
    yield name
    reset(name)


class TestLimits:
    @pytest.mark.parametrize("count", [0, 1, 7])
    def test_it_ends_after_so_many_messages(self, address: str, count: int) -> None:
        """Exactly as many are handled, 0 included; the others wait where they were (K08, T12)."""
        send(address, 10)
        handled: list[Any] = []
        worker = make_worker(
            MemoryConsumer(address=address), handled.append, limits=Limits(max_messages=count)
        )
        worker.run()
        assert count == len(handled)
        assert 10 - count == asyncio.run(left_at(address))

    def test_all_consumers_share_the_number(self, address: str) -> None:
        """Two that are faster than the other: together as many as allowed (K11)."""
        send(address, 20)
        handled: list[Any] = []
        consumers = [MemoryConsumer(address=address) for _ in range(3)]
        make_worker(consumers, handled.append, limits=Limits(max_messages=5)).run()
        assert (5, 15) == (len(handled), asyncio.run(left_at(address)))

    def test_what_cannot_be_given_back_is_handled_although_it_is_too_much(self) -> None:
        """Two at-most-once consumers that receive at one moment lose nothing."""
        both = asyncio.Barrier(2)

        class Slow(FakeConsumer):
            async def receive(self, max_messages: int) -> Sequence[FakeDelivery]:
                await both.wait()
                return await super().receive(max_messages)

        handled: list[Any] = []
        consumers = [Slow([body(n)], acknowledge=False) for n in range(2)]
        make_worker(consumers, handled.append, limits=Limits(max_messages=1)).run()
        assert 2 == len(handled)

    def test_what_can_be_given_back_is(self) -> None:
        """The same with consumers that take messages back: one is handled, one goes back."""
        both = asyncio.Barrier(2)

        class Slow(FakeConsumer):
            async def receive(self, max_messages: int) -> Sequence[FakeDelivery]:
                await both.wait()
                return await super().receive(max_messages)

        consumers = [Slow([body(n)]) for n in range(2)]
        make_worker(consumers, limits=Limits(max_messages=1)).run()
        outcomes = [each.deliveries[0].outcome for each in consumers]
        assert ["ack", "nack"] == sorted(str(each) for each in outcomes)

    def test_running_handlers_finish_first(self, address: str) -> None:
        """The last messages are handled whole, although nothing more is received."""
        send(address, 3)
        handled: list[Any] = []

        async def handler(message: Any) -> None:
            await asyncio.sleep(0.05)
            handled.append(message)

        limits = Limits(max_messages=3)
        worker = make_worker(MemoryConsumer(address=address), handler, limits=limits)
        worker.run()
        assert 3 == len(handled)

    def test_stopped_while_it_finishes_it_stops(self, address: str) -> None:
        """A stop does not wait for handlers longer than the grace."""
        send(address, 1)
        started = threading.Event()

        async def handler(_: Any) -> None:
            started.set()
            await asyncio.Event().wait()

        limits = Limits(max_messages=1)
        consumer = MemoryConsumer(address=address)
        with make_worker(consumer, handler, limits=limits, shutdown_grace=0.0).running():
            assert started.wait(20)
        assert 1 == asyncio.run(left_at(address))

    @pytest.mark.parametrize("limits", [Limits(max_runtime=0.0), Limits(max_memory_bytes=0)])
    def test_it_ends_after_a_time_or_with_too_much_memory(
        self, address: str, limits: Limits
    ) -> None:
        """0 is a value: it ends at once, and gives back what it has not begun (T12)."""
        make_worker(MemoryConsumer(address=address), limits=limits).run()

    def test_it_ends_after_its_time_and_not_before(self, address: str) -> None:
        """Seconds since it was started."""
        begun = time.monotonic()
        limits = Limits(max_runtime=0.3, max_memory_bytes=1 << 50)
        make_worker(MemoryConsumer(address=address), limits=limits).run()
        assert time.monotonic() - begun >= 0.3

    def test_it_ends_when_nothing_waits_any_more(self, address: str) -> None:
        """Everything is handled first, by whichever consumer has the most of it."""
        send(address, 50)
        handled: list[Any] = []
        consumers = [MemoryConsumer(address=address), MemoryConsumer(address=f"{address}-none")]
        make_worker(consumers, handled.append, limits=Limits(stop_when_empty=True)).run()
        assert 50 == len(handled)

    def test_it_is_not_empty_while_something_is_handled(self, address: str) -> None:
        """A handler that takes longer than the look for more may cause more."""
        send(address, 1)
        handled: list[Any] = []

        async def handler(message: Any) -> None:
            await asyncio.sleep(0.8)
            if not handled:
                send(address, 1)
            handled.append(message)

        consumer = MemoryConsumer(address=address)
        make_worker(consumer, handler, limits=Limits(stop_when_empty=True)).run()
        assert 2 == len(handled)

    @pytest.mark.parametrize("run", [{}, {"time_limit": 9.0}])
    def test_it_ends_with_the_error_of_a_message(self, address: str, run: dict[str, Any]) -> None:
        """`stop_on_error` raises what failed, and the message is not lost (K10)."""
        send(address, 1)
        worker = make_worker(
            MemoryConsumer(address=address),
            _fail,
            run=run,
            limits=Limits(stop_on_error=True),
        )
        with pytest.raises(ZeroDivisionError):
            worker.run()
        assert 1 == asyncio.run(left_at(address))

    @pytest.mark.parametrize(
        "wrong", [{"max_messages": -1}, {"max_runtime": -0.1}, {"max_memory_bytes": -1}]
    )
    def test_negative_limits_are_refused(self, wrong: dict[str, Any]) -> None:
        """They mean nothing."""
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Limits(**wrong)

    def test_memory_is_that_of_this_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Some megabytes; where the system has no /proc the most it ever held."""
        held = resident_bytes()
        assert 1 << 20 < held < 1 << 40
        from postbus.worker import _limits

        monkeypatch.setattr(_limits, "_STATM", Path("/nonexistent/statm"))
        assert 1 << 20 < resident_bytes() < 1 << 40
        monkeypatch.setattr(sys, "platform", "darwin")
        assert resident_bytes() < held


def _fail(_: Any) -> None:
    raise ZeroDivisionError


class TestPausing:
    def test_paused_it_receives_nothing_and_then_goes_on(self, address: str) -> None:
        """`pause` holds everything back and `resume` goes on (K09)."""
        handled: list[Any] = []
        worker = make_worker(MemoryConsumer(address=address), handled.append)
        with worker.running():
            until(lambda: worker.states == {"c0": "receiving"})
            worker.pause()
            until(lambda: worker.states == {"c0": "paused"})
            # What its open call to the transport still brings goes back, for other workers.
            send(address, 5)
            other = asyncio.run(MemoryConsumer(address=address).receive(1))
            assert ([], 1) == (handled, len(other))
            worker.resume()
            until(lambda: len(handled) == 4)

    def test_what_was_received_goes_back(self, address: str) -> None:
        """Paused with messages at hand: another worker gets them, none is begun."""
        send(address, 5)
        first, go = threading.Event(), threading.Event()
        handled: list[Any] = []

        async def handler(message: Any) -> None:
            handled.append(message)
            first.set()
            await asyncio.to_thread(go.wait, 20)

        run = {"concurrency": 1, "prefetch": 5}
        worker = make_worker(MemoryConsumer(address=address), handler, run=run)
        with worker.running():
            assert first.wait(20)
            worker.pause()
            until(lambda: worker.states == {"c0": "paused"})
            go.set()
            other = MemoryConsumer(address=address)
            assert 4 == len(asyncio.run(other.receive(10)))
            assert 1 == len(handled)

    def test_what_cannot_go_back_is_kept(self) -> None:
        """At most once: it waits in the worker."""
        handled: list[Any] = []
        first, go = threading.Event(), threading.Event()

        async def handler(message: Any) -> None:
            handled.append(message)
            first.set()
            await asyncio.to_thread(go.wait, 20)

        consumer = _Endless([body(n) for n in range(3)], acknowledge=False)
        worker = make_worker(consumer, handler, run={"concurrency": 1, "prefetch": 3})
        with worker.running():
            assert first.wait(20)
            worker.pause()
            until(lambda: worker.states == {"c0": "paused"})
            go.set()
            until(lambda: worker._running[0]._handlers == 0)
            assert 1 == len(handled)
            worker.resume()
            until(lambda: len(handled) == 3)

    def test_before_and_after_its_time_it_does_nothing(self, address: str) -> None:
        """Nobody runs: there is nothing to hold back."""
        worker = make_worker(MemoryConsumer(address=address), limits=Limits(max_messages=0))
        worker.pause()
        worker.run()
        worker.resume()
        assert {"c0": "ended"} == worker.states

    def test_signals_pause_and_resume(self, address: str) -> None:
        """SIGUSR2 and SIGCONT, in the main thread (K09)."""
        handled: list[Any] = []
        worker = make_worker(MemoryConsumer(address=address), handled.append)
        before = signal.getsignal(signal.SIGUSR2), signal.getsignal(signal.SIGCONT)

        def kill() -> None:
            until(lambda: worker.states == {"c0": "receiving"})
            os.kill(os.getpid(), signal.SIGUSR2)
            until(lambda: worker.states == {"c0": "paused"})
            os.kill(os.getpid(), signal.SIGCONT)
            until(lambda: worker.states == {"c0": "receiving"})
            send(address, 1)
            until(lambda: handled)
            worker.stop()

        killing = threading.Thread(target=kill)
        killing.start()
        worker.run()
        killing.join()
        assert before == (signal.getsignal(signal.SIGUSR2), signal.getsignal(signal.SIGCONT))


class _Endless(FakeConsumer):
    """Brings what it has and then waits for ever."""

    async def receive(self, max_messages: int) -> Sequence[FakeDelivery]:
        try:
            return await super().receive(max_messages)
        except ClosedError:
            if self.is_closed:
                raise
            await asyncio.Event().wait()
            raise


class TestTimeLimits:
    def test_an_asyncio_handler_is_cancelled_and_has_failed(self, address: str) -> None:
        """After `time_limit` seconds; the message is tried again as after any failure."""
        send(address, 1)
        cancelled: list[int] = []

        async def handler(_: Any) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(1)
                raise

        store = MemoryStore()
        policy = RetryPolicy(max_attempts=2, initial_delay=0.0)
        run = {"time_limit": 0.05, "retry": policy, "failure_store": store.failures}
        limits = Limits(stop_when_empty=True)
        make_worker(MemoryConsumer(address=address), handler, run=run, limits=limits).run()
        [failed] = store.failures.list()
        assert ([1, 1], "TimedOutError", 2) == (
            cancelled,
            failed.history[0].error,
            failed.attempts,
        )

    def test_a_handler_in_a_thread_is_given_back(self, address: str) -> None:
        """It goes on, and its message is somebody else's by then."""
        section = {
            "consumers": {"mail": {"transport": "memory", "address": address, "time_limit": 0.05}},
            "command_bus": {"router": {"routes": {"shop.place-order": "handler"}}},
        }
        go, calls = threading.Event(), list[int]()

        def handler(_: Any) -> None:
            calls.append(1)
            if len(calls) == 1:
                go.wait(20)

        send(address, 1)
        with build(section, {"handler": handler}, CATALOG) as postbus:
            with postbus.worker().running():
                until(lambda: len(calls) == 2)
            go.set()

    def test_a_handlers_own_time_out_is_its_own(self, address: str) -> None:
        """What it raises itself is no limit of ours."""
        send(address, 1)

        async def handler(_: Any) -> None:
            raise TimeoutError

        store = MemoryStore()
        run = {"time_limit": 9.0, "failure_store": store.failures}
        limits = Limits(stop_when_empty=True)
        make_worker(MemoryConsumer(address=address), handler, run=run, limits=limits).run()
        [failed] = store.failures.list()
        assert "TimeoutError" == failed.history[0].error


class _Leased(_Endless):
    """A consumer whose deliveries have a lease, and count how often it is extended."""

    def __init__(self, bodies: Sequence[bytes], lease: float, *, breaks: bool = False) -> None:
        super().__init__(bodies)
        self.capabilities = attrs.evolve(self.capabilities, lease=lease)
        self.deliveries = [_LeasedDelivery(each.body, breaks) for each in self.deliveries]
        self._waiting.clear()
        self._waiting.extend(self.deliveries)


class _LeasedDelivery(FakeDelivery):
    __slots__ = ("breaks", "extended")

    def __init__(self, body: bytes, breaks: bool) -> None:
        super().__init__(body)
        self.extended: list[float] = []
        self.breaks = breaks

    def extend(self, seconds: float) -> None:
        self.extended.append(seconds)
        if self.breaks:
            raise ConnectionFailedError("down")


class TestLeases:
    def test_the_lease_of_what_takes_long_is_renewed(self) -> None:
        """At a third of it, for what is handled and for what waits its turn; then no more."""
        consumer = _Leased([body(1), body(2)], 0.15)
        go = threading.Event()

        async def handler(_: Any) -> None:
            await asyncio.to_thread(go.wait, 20)

        worker = make_worker(consumer, handler, run={"concurrency": 1, "prefetch": 2})
        with worker.running():
            deliveries: list[Any] = list(consumer.deliveries)
            until(lambda: all(len(each.extended) > 2 for each in deliveries))
            go.set()
            until(lambda: all(each.outcome == "ack" for each in deliveries))
            assert {0.15} == {seconds for each in deliveries for seconds in each.extended}

    def test_a_lease_that_cannot_be_renewed_ends_nothing(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A line in the log; the handler goes on, and the inbox answers if it comes again."""
        consumer = _Leased([body(1)], 0.06, breaks=True)
        go = threading.Event()

        async def handler(_: Any) -> None:
            await asyncio.to_thread(go.wait, 20)

        with make_worker(consumer, handler).running():
            until(lambda: "a lease could not be renewed" in caplog.text)
            go.set()
            until(lambda: consumer.deliveries[0].outcome == "ack")

    def test_the_row_of_an_inbox_is_kept_as_well(
        self, address: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A handler that takes longer than the lease: nobody else begins it."""
        from postbus.worker import _kept

        monkeypatch.setattr(_kept, "INBOX_LEASE", 0.15)
        section = {
            "consumers": {"mail": {"transport": "memory", "address": address, "inbox": "main"}},
            "command_bus": {"router": {"routes": {"shop.place-order": "handler"}}},
            "stores": {"main": {"store": "memory"}},
        }
        go = threading.Event()
        extended: list[bool] = []
        with build(section, {"handler": lambda _: go.wait(20)}, CATALOG) as postbus:
            inbox = postbus.stores["main"].inbox
            extend = inbox.extend

            def note(*arguments: Any) -> bool:
                extended.append(extend(*arguments))
                return extended[-1]

            monkeypatch.setattr(inbox, "extend", note)
            send(address, 1)
            with postbus.worker().running():
                until(lambda: len(extended) > 2)
                go.set()
        assert all(extended)

    def test_the_claim_of_a_due_message_is_kept_as_well(
        self, address: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What comes from a schedule is held by its lease there."""
        from datetime import UTC, datetime

        from postbus.stores import ScheduledMessage
        from postbus.worker import _kept

        monkeypatch.setattr(_kept, "SCHEDULE_LEASE", 0.15)
        store, go, extended = MemoryStore(), threading.Event(), list[bool]()
        extend = store.schedule.extend

        def note(*arguments: Any) -> bool:
            extended.append(extend(*arguments))
            return extended[-1]

        monkeypatch.setattr(store.schedule, "extend", note)
        message = WireMessage(body(), {}, new_id(), "shop.place-order")
        store.schedule.put(
            ScheduledMessage(target="consumers.c0", due=datetime.now(UTC), message=message)
        )

        async def handler(_: Any) -> None:
            await asyncio.to_thread(go.wait, 20)

        run = {"schedule": store.schedule}
        with make_worker(_Endless([]), handler, run=run).running():
            until(lambda: len(extended) > 2)
            go.set()
            until(lambda: not store.schedule.list())
        assert all(extended)


class TestSupervision:
    def test_what_can_never_work_ends_the_worker_with_its_error(self, address: str) -> None:
        """A consumer that is refused for ever is no reason to stay up: the exit code says so."""

        class Refusing(FakeConsumer):
            async def receive(self, max_messages: int) -> Sequence[FakeDelivery]:
                raise UnsupportedError("never")

        with pytest.raises(UnsupportedError):
            make_worker(Refusing([])).run()
        # Another consumer goes on, and the error is raised in the end.
        handled = threading.Event()
        worker = make_worker(
            [Refusing([]), MemoryConsumer(address=address)], lambda _: handled.set()
        )
        send(address, 1)
        with pytest.raises(UnsupportedError), worker.running():
            assert handled.wait(20)
            assert {"c0": "ended", "c1": "receiving"} == worker.states

    def test_trouble_is_told_once_and_its_end_too(self, caplog: pytest.LogCaptureFixture) -> None:
        """One line for each change of state, however long it lasts."""
        caplog.set_level("INFO", "postbus.worker")

        class Broken(FakeConsumer):
            def __init__(self) -> None:
                super().__init__([body(1)])
                self.failures = 5

            async def receive(self, max_messages: int) -> Sequence[FakeDelivery]:
                self.failures -= 1
                if self.failures >= 0:
                    raise ConnectionFailedError("down")
                return await super().receive(max_messages)

        make_worker(Broken(), pause=lambda _: 0.0).run()
        said = [each.message for each in caplog.records]
        assert 1 == said.count("receive failed")
        assert 1 == said.count("receiving again")

    def test_while_it_cannot_receive_it_says_so(self) -> None:
        """Its state is broken."""

        class Broken(FakeConsumer):
            async def receive(self, max_messages: int) -> Sequence[FakeDelivery]:
                raise ConnectionFailedError("down")

        worker = make_worker(Broken([]), pause=lambda _: 30.0)
        with worker.running():
            until(lambda: worker.states == {"c0": "broken"})

    def test_retries_without_a_place_to_wait_are_refused(self) -> None:
        """In code as by configuration."""
        consumer = FakeConsumer([], acknowledge=False)
        with pytest.raises(ConfigurationError, match="cannot retry"):
            make_worker(consumer, run={"retry": RetryPolicy()})

    def test_where_the_transport_cannot_delay_a_retry_waits_in_the_worker(self) -> None:
        """It can replace a message but not delay it: after its delay it is replaced."""
        consumer = _Endless([body(1)])
        run = {"retry": RetryPolicy(initial_delay=0.05)}
        with make_worker(consumer, _fail, run=run).running():
            until(lambda: consumer.deliveries[0].outcome)
        [delivery] = consumer.deliveries
        assert "retry" == delivery.outcome
        assert delivery.replacement is not None
        assert delivery.replacement.delay is None
        assert b'"attempt":1' in delivery.replacement.body


def ask(address: str, path: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=20)
    connection.request(method, path)
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


class TestHealth:
    def test_it_says_whether_it_is_alive_and_ready(self, address: str) -> None:
        """Ready means that every consumer receives; alive that one has not ended."""
        worker = make_worker(MemoryConsumer(address=address), health="127.0.0.1:0")
        with worker.running():
            until(lambda: worker.states == {"c0": "receiving"})
            where = worker.health_address
            assert where is not None
            assert (200, b'{"consumers":{"c0":"receiving"}}') == ask(where, "/live")
            assert 200 == ask(where, "/ready")[0]
            worker.pause()
            until(lambda: worker.states == {"c0": "paused"})
            assert [200, 503] == [ask(where, path)[0] for path in ("/live", "/ready")]
            assert (404, b"{}") == ask(where, "/")
            assert (405, b"{}") == ask(where, "/live", "POST")
            assert (200, b"") == ask(where, "/live", "HEAD")
        with pytest.raises(OSError, match=r"."):
            ask(where, "/live")

    def test_one_that_has_ended_is_not_alive(self, address: str) -> None:
        """All consumers have ended, and the last handlers run still."""
        go = threading.Event()
        started = threading.Event()

        async def handler(_: Any) -> None:
            started.set()
            await asyncio.to_thread(go.wait, 20)

        send(address, 1)
        worker = make_worker(
            MemoryConsumer(address=address),
            handler,
            health="127.0.0.1:0",
            limits=Limits(max_messages=1),
        )
        with worker.running():
            assert started.wait(20)
            until(lambda: worker.states == {"c0": "ended"})
            assert worker.health_address is not None
            assert 503 == ask(worker.health_address, "/live")[0]
            go.set()

    def test_nonsense_ends_the_connection(self, address: str) -> None:
        """What is no request is not answered, and what is too long is not kept."""
        import socket

        worker = make_worker(MemoryConsumer(address=address), health="127.0.0.1:0")
        with worker.running():
            until(lambda: worker.health_address is not None)
            assert worker.health_address is not None
            host, port = worker.health_address.split(":")
            for sent in (b"x" * 100_000, b"\r\n\r\n", b""):
                with socket.create_connection((host, int(port)), 20) as client:
                    try:
                        client.sendall(sent)
                        client.shutdown(socket.SHUT_WR)
                        answer = client.recv(100)
                    except OSError:
                        answer = b""
                    assert b"200" not in answer
            assert 200 == ask(worker.health_address, "/live")[0]

    @pytest.mark.parametrize("where", ["127.0.0.1:99999", "192.0.2.1:80"])
    def test_an_address_that_cannot_be_had_ends_it(self, address: str, where: str) -> None:
        """A worker that nobody can watch does not start."""
        with pytest.raises(ConnectionFailedError, match="health: cannot listen"):
            make_worker(MemoryConsumer(address=address), health=where).run()


class TestFailpoints:
    def test_each_is_reached_in_order(self, address: str, tmp_path: Path) -> None:
        """Every point, by a message that fails once and is then handled."""
        section = {
            "consumers": {
                "mail": {
                    "transport": "memory",
                    "address": address,
                    "failure_store": "main",
                    "inbox": "main",
                }
            },
            "command_bus": {
                "unit_of_work": "unit",
                "router": {"routes": {"shop.place-order": "handler"}},
            },
            "stores": {"main": {"store": "sqlite", "path": str(tmp_path / "stores.db")}},
            "worker": {"stop_when_empty": True},
        }
        reached: list[str] = []
        from contextlib import ExitStack, nullcontext

        failures: list[Exception] = [ValueError()]

        def handler(_: Any) -> None:
            if failures:
                raise failures.pop()

        services = {"handler": handler, "unit": nullcontext}
        send(address, 1)
        with build(section, services, CATALOG) as postbus, ExitStack() as stack:
            for name in FAILPOINTS:
                stack.enter_context(failpoint(name, partial(reached.append, name)))
            postbus.worker().run()
            failed = [
                "received",
                "decoded",
                "before handler",
                "stored",
                "before ack",
                "after ack",
            ]
            assert failed == reached
            reached.clear()
            send(address, 1)
            postbus.worker().run()
        assert [name for name in FAILPOINTS if name != "stored"] == reached

    def test_everything_a_delivery_can_do_goes_through(self, address: str) -> None:
        """What stands around a delivery hands all calls on."""
        send(address, 1)
        handled = Limits(max_messages=1)
        store = MemoryStore()
        run = {"retry": RetryPolicy(initial_delay=0.0), "failure_store": store.failures}
        with failpoint("received", lambda: None):
            make_worker(MemoryConsumer(address=address), _fail, run=run, limits=handled).run()
        assert 1 == asyncio.run(left_at(address))

    def test_it_can_be_passed_some_times(self) -> None:
        """`after` says how often nothing happens before."""
        reached: list[int] = []
        with failpoint("decoded", lambda: reached.append(1), after=2):
            make_worker(FakeConsumer([body(n) for n in range(4)])).run()
        assert [1, 1] == reached
        make_worker(FakeConsumer([body()])).run()
        assert [1, 1] == reached

    def test_an_unknown_one_is_refused(self) -> None:
        """With the names there are."""
        point = failpoint("recieved", lambda: None)
        with pytest.raises(ValueError, match="there are received, decoded"), point:
            pass


CRASHING = """
    import os, sqlite3, sys
    from contextlib import contextmanager
    sys.path.insert(0, {tests!r})
    from test_worker_running import CATALOG
    from postbus import build
    from postbus.testing import failpoint

    @contextmanager
    def unit():
        global connection
        connection = sqlite3.connect({database!r}, check_same_thread=False)
        with connection:
            yield connection
        connection.close()

    def handler(message):
        connection.execute("INSERT INTO effects VALUES (?)", (message.number,))

    section = {section!r}
    point = {point!r}
    with build(section, {{"handler": handler, "unit": unit}}, CATALOG) as postbus:
        if point:
            with failpoint(point, lambda: os.kill(os.getpid(), 9), after=2):
                postbus.worker().run()
        else:
            postbus.worker().run()
"""


class TestCrashes:
    @pytest.mark.parametrize(
        "point",
        ["decoded", "before handler", "before commit", "after commit", "before ack", "after ack"],
    )
    def test_killed_anywhere_effects_happen_once(self, tmp_path: Path, point: str) -> None:
        """SIGKILL at a failpoint, a new worker, a joined inbox: nothing lost, nothing twice."""
        pytest.importorskip("postbus_files")
        import sqlite3

        database = str(tmp_path / "shop.db")
        with sqlite3.connect(database) as connection:
            connection.execute("CREATE TABLE effects (number)")
        connection.close()
        section = {
            "producers": {"p": {"transport": "files", "path": str(tmp_path / "queue")}},
            "consumers": {
                "mail": {
                    "transport": "files",
                    "path": str(tmp_path / "queue"),
                    "lease": 1.0,
                    "concurrency": 1,
                    "inbox": "main",
                }
            },
            "command_bus": {
                "unit_of_work": "unit",
                "router": {"routes": {"shop.place-order": "handler"}},
            },
            "stores": {"main": {"store": "sqlite", "path": database}},
            "worker": {"stop_when_empty": True},
        }
        with build(section, {"handler": _fail, "unit": _fail}, CATALOG) as postbus:
            postbus.producers["p"].send_many(
                [
                    WireMessage(encode(each), {}, each.id, each.name)
                    for each in (Envelope(PlaceOrder(number)) for number in range(6))
                ]
            )
        codes = [self.run(section, database, point), self.run(section, database, "")]
        # The lease of what the first one held has to end before anybody else has it.
        until(
            lambda: self.run(section, database, "") == 0 and self.effects(database) == [*range(6)]
        )
        assert [-signal.SIGKILL, 0] == codes

    @staticmethod
    def run(section: dict[str, Any], database: str, point: str) -> int:
        tests = str(Path(__file__).parent)
        code = textwrap.dedent(CRASHING).format(
            tests=tests, database=database, section=section, point=point
        )
        return subprocess.run([sys.executable, "-c", code], timeout=100, check=False).returncode

    @staticmethod
    def effects(database: str) -> list[int]:
        import sqlite3

        with sqlite3.connect(database) as connection:
            rows = connection.execute("SELECT number FROM effects").fetchall()
        connection.close()
        return sorted(number for (number,) in rows)


class TestArmed:
    """Deliveries behind failpoints do everything that others do."""

    def test_a_query_is_answered(self) -> None:
        """The reply channel is the delivery's own."""
        catalog = MessageCatalog()
        catalog.add(CountOrders)
        consumer = FakeConsumer([encode(Envelope(CountOrders()))], can_reply=True)
        buses = dict.fromkeys(MessageKind, TinyBus(lambda _: 7))
        with failpoint("received", lambda: None):
            Worker(buses, [ConsumerRun(name="c0", consumer=consumer)], catalog).run()
        [delivery] = consumer.deliveries
        assert ([b"7"], "ack") == ([each.body for each in delivery.replies], delivery.outcome)

    def test_leases_are_extended(self) -> None:
        """Of what is handled, until it is lost."""
        consumer = _Leased([body(1)], 0.06)
        go = threading.Event()

        async def handler(_: Any) -> None:
            await asyncio.to_thread(go.wait, 20)

        with failpoint("received", lambda: None), make_worker(consumer, handler).running():
            until(lambda: any(each.extended for each in consumer.deliveries))  # type: ignore[attr-defined]  # leased ones
            go.set()
            until(lambda: consumer.deliveries[0].outcome == "ack")

    def test_what_is_cut_off_is_given_back(self) -> None:
        """As without them."""
        consumer = _Endless([body(1)])
        started = threading.Event()

        async def handler(_: Any) -> None:
            started.set()
            await asyncio.Event().wait()

        worker = make_worker(consumer, handler, shutdown_grace=0.0)
        with failpoint("received", lambda: None), worker.running():
            assert started.wait(20)
        assert "nack" == consumer.deliveries[0].outcome
