"""A consumer around a blocking client: one thread calls it, and nothing is lost between."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import pytest

from postbus.errors import ClosedError, ConnectionFailedError, TransportError, UnsupportedError
from postbus.threaded import Action, BlockingClient, Received, Settlement, ThreadedConsumer
from postbus.transports import Capabilities, Delivery, Reply, WaitingMessage, WireMessage

T = TypeVar("T")
PATIENCE = 30
RETRIED = WireMessage(b"again", {}, "an-id", "shop.echo")
ALL = Capabilities(acknowledge=True, retry=True, lease=30.0)


class ScriptedClient(BlockingClient[str]):
    """A system in memory that blocks, fails and remembers as a test says."""

    def __init__(self, *bodies: bytes, capabilities: Capabilities = ALL) -> None:
        self.source = "scripted"
        self.capabilities = capabilities
        self.waiting = [Received(body=b, receipt=b.decode(), can_reply=True) for b in bodies]
        self.changed = threading.Condition()
        self.calls: list[str] = []
        self.threads: set[int] = set()
        self.settled: list[Settlement[str]] = []
        self.polls: list[tuple[int, float]] = []
        self.fail_open: list[Exception] = []
        self.fail_poll: list[Exception] = []
        self.fail_settle: list[Exception] = []
        self.refused: dict[str, TransportError] = {}
        self.fail_close: Exception | None = None
        self.settling = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.finish_poll = threading.Event()
        self.finish_poll.set()
        self.tended = 0
        self.tend_interval: float | None = None

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.threads.add(threading.get_ident())

    def open(self) -> None:
        self._note("open")
        if self.fail_open:
            raise self.fail_open.pop(0)

    def poll(self, max_messages: int, seconds: float) -> Sequence[Received[str]]:
        self._note("poll")
        self.polls.append((max_messages, seconds))
        if self.fail_poll:
            raise self.fail_poll.pop(0)
        assert self.finish_poll.wait(PATIENCE)
        with self.changed:
            if not self.waiting:
                self.changed.wait(min(seconds, 0.01))
            taken, self.waiting = self.waiting[:max_messages], self.waiting[max_messages:]
        return taken

    def put(self, body: bytes) -> None:
        with self.changed:
            self.waiting.append(Received(body=body, receipt=body.decode()))
            self.changed.notify_all()

    def settle(self, settlements: Sequence[Settlement[str]]) -> Mapping[int, TransportError]:
        self._note("settle")
        self.settling.set()
        assert self.go_on.wait(PATIENCE)
        if self.fail_settle:
            raise self.fail_settle.pop(0)
        self.settled.extend(settlements)
        return {
            index: self.refused[each.receipt]
            for index, each in enumerate(settlements)
            if each.receipt in self.refused
        }

    def close(self) -> None:
        self._note("close")
        if self.fail_close is not None:
            raise self.fail_close

    def tend(self) -> float | None:
        self._note("tend")
        self.tended += 1
        return super().tend() if self.tend_interval is None else self.tend_interval

    def count(self) -> Mapping[str, int]:
        self._note("count")
        return dict.fromkeys(self.queues, len(self.waiting))

    def peek(self, queue: str, offset: int, limit: int) -> Sequence[WaitingMessage]:
        self._note(f"peek {queue} {offset} {limit}")
        return [WaitingMessage(each.body) for each in self.waiting]

    def purge(self, queue: str) -> int:
        self._note(f"purge {queue}")
        return 3

    @property
    def asked(self) -> list[tuple[Action, str]]:
        return [(each.action, each.receipt) for each in self.settled]


def run(test: Callable[[], Awaitable[T]]) -> T:
    async def limited() -> T:
        async with asyncio.timeout(PATIENCE):
            return await test()

    return asyncio.run(limited())


async def until(claim: Callable[[], Any]) -> None:
    while not claim():  # noqa: ASYNC110  another thread makes it true
        await asyncio.sleep(0.001)


class TestReceive:
    def test_all_calls_come_from_one_thread_that_is_not_the_loops(self) -> None:
        """A client's connection belongs to one thread, and the loop is never blocked."""
        client = ScriptedClient(b"a", b"b")

        async def scenario() -> None:
            consumer = ThreadedConsumer(client)
            for delivery in await consumer.receive(5):
                delivery.ack()
                await delivery.settled()
            await consumer.aclose()

        run(scenario)

        assert len(client.threads) == 1
        assert threading.get_ident() not in client.threads
        assert client.calls[0] == "open"
        assert client.calls[-1] == "close"

    def test_nothing_is_fetched_before_somebody_asks(self) -> None:
        """A consumer that was only built, or whose worker is busy, holds nothing."""
        client = ScriptedClient(b"a", b"b")

        async def scenario() -> None:
            consumer = ThreadedConsumer(client)
            assert client.calls == []
            await consumer.receive(1)
            delivery = (await consumer.receive(1))[0]
            delivery.ack()
            await delivery.settled()
            await consumer.aclose()

        run(scenario)

        assert {wanted for wanted, _ in client.polls} == {1}

    def test_a_delivery_has_what_the_client_received(self) -> None:
        """Body, headers, source and whether it came before."""
        client = ScriptedClient()
        client.waiting = [
            Received(body=b"a", receipt="a", headers={"name": "shop.echo"}, redelivered=True)
        ]

        async def scenario() -> Delivery:
            consumer = ThreadedConsumer(client)
            (delivery,) = await consumer.receive(5)
            await consumer.aclose()
            return delivery

        delivery = run(scenario)

        assert (delivery.body, delivery.headers) == (b"a", {"name": "shop.echo"})
        assert (delivery.source, delivery.redelivered, delivery.can_reply) == (
            "scripted",
            True,
            False,
        )

    def test_a_cancelled_call_loses_nothing(self) -> None:
        """What came after the cancellation is the next call's."""
        client = ScriptedClient()

        async def scenario() -> list[bytes]:
            consumer = ThreadedConsumer(client)
            client.finish_poll.clear()
            waiting = asyncio.create_task(_receive(consumer))
            await until(lambda: client.polls)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            client.put(b"a")
            client.finish_poll.set()
            await until(lambda: consumer._fetched)
            found = [d.body for d in await consumer.receive(5)]
            await consumer.aclose()
            return found

        assert run(scenario) == [b"a"]

    def test_what_was_fetched_for_a_cancelled_call_comes_first(self) -> None:
        """Fetched is fetched: it is handed out before anything else, as many as asked for."""
        client = ScriptedClient(b"a", b"b", b"c")

        async def scenario() -> list[list[bytes]]:
            consumer = ThreadedConsumer(client)
            waiting = asyncio.create_task(_receive(consumer, 3))
            await asyncio.sleep(0)
            while len(consumer._fetched) < 3:
                pass  # the loop must not run: its wake-up waits there
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            found = [[d.body for d in await consumer.receive(2)] for _ in range(2)]
            await consumer.aclose()
            return found

        assert run(scenario) == [[b"a", b"b"], [b"c"]]

    def test_a_second_caller_is_refused(self) -> None:
        """One caller at a time."""
        client = ScriptedClient()

        async def scenario() -> None:
            consumer = ThreadedConsumer(client)
            waiting = asyncio.create_task(_receive(consumer))
            await until(lambda: client.polls)
            with pytest.raises(RuntimeError, match="one caller"):
                await consumer.receive(1)
            await consumer.aclose()
            with pytest.raises(ClosedError):
                await waiting

        run(scenario)

    def test_it_serves_one_loop_after_another(self) -> None:
        """A call that its loop was closed over does not stand in the way of the next."""
        client = ScriptedClient()
        consumer = ThreadedConsumer(client)
        abandoned = consumer.receive(1)

        async def begin() -> None:
            abandoned.send(None)

        run(begin)

        async def scenario() -> list[bytes]:
            with pytest.raises(RuntimeError, match="one caller"):
                await consumer.receive(1)
            client.put(b"a")
            await until(lambda: consumer._fetched)
            abandoned.close()
            found = [d.body for d in await consumer.receive(1)]
            await consumer.aclose()
            return found

        assert run(scenario) == [b"a"]

    def test_polls_are_short_only_while_something_is_held(self) -> None:
        """A settlement must not wait behind a long poll; an idle client need not hurry."""
        client = ScriptedClient(b"a")

        async def scenario() -> None:
            consumer = ThreadedConsumer(client)
            (delivery,) = await consumer.receive(1)
            waiting = asyncio.create_task(_receive(consumer))
            await until(lambda: len(client.polls) > 1)
            delivery.ack()
            await delivery.settled()
            before = len(client.polls)
            await until(lambda: len(client.polls) > before + 1)
            await consumer.aclose()
            with pytest.raises(ClosedError):
                await waiting

        run(scenario)

        seconds = [seconds for _, seconds in client.polls]
        assert seconds[0] > 10 * seconds[1]
        assert seconds[-1] == seconds[0]

    def test_it_tends_to_the_client_while_nobody_receives(self) -> None:
        """Heartbeats go on during long handlers."""
        client = ScriptedClient(b"a")
        client.tend_interval = 0.001

        async def scenario() -> None:
            consumer = ThreadedConsumer(client)
            await consumer.receive(1)
            polls = len(client.polls)
            await until(lambda: client.tended > 5)
            assert len(client.polls) == polls
            waiting = asyncio.create_task(_receive(consumer))
            await until(lambda: len(client.polls) > polls)
            await consumer.aclose()
            with pytest.raises(ClosedError):
                await waiting

        run(scenario)

        assert client.polls[-1][1] <= client.tend_interval


async def _receive(consumer: ThreadedConsumer[str], max_messages: int = 1) -> Sequence[Delivery]:
    return await consumer.receive(max_messages)


class TestSettling:
    def test_what_is_asked_is_carried_out_in_order(self) -> None:
        """Extend, reply, then the end of it; with what was given."""
        client = ScriptedClient(b"a")

        async def scenario() -> None:
            consumer = ThreadedConsumer(client)
            (delivery,) = await consumer.receive(1)
            delivery.extend(5.0)
            delivery.reply(Reply(b"1"))
            delivery.retry(RETRIED)
            await delivery.settled()
            assert delivery.can_reply
            assert not delivery.lost
            await consumer.aclose()

        run(scenario)

        assert [(s.action, s.argument) for s in client.settled] == [
            (Action.EXTEND, 5.0),
            (Action.REPLY, Reply(b"1")),
            (Action.RETRY, RETRIED),
        ]

    @pytest.mark.parametrize("first", [Action.ACK, Action.NACK, Action.RETRY])
    def test_the_first_of_ack_nack_and_retry_wins(self, first: Action) -> None:
        """Whatever is asked after it is not carried out."""
        client = ScriptedClient(b"a")

        async def scenario() -> None:
            consumer = ThreadedConsumer(client)
            (delivery,) = await consumer.receive(1)
            calls: dict[Action, Callable[[], None]] = {
                Action.ACK: delivery.ack,
                Action.NACK: delivery.nack,
                Action.RETRY: lambda: delivery.retry(RETRIED),
            }
            calls[first]()
            for call in calls.values():
                call()
            await delivery.settled()
            await consumer.aclose()

        run(scenario)

        assert client.asked == [(first, "a")]

    def test_threads_may_settle(self) -> None:
        """From any thread; each is carried out once."""
        bodies = [str(number).encode() for number in range(200)]
        client = ScriptedClient(*bodies)

        async def scenario() -> None:
            consumer = ThreadedConsumer(client)
            deliveries = await consumer.receive(200)
            threads = [
                threading.Thread(target=lambda: [d.ack() for d in deliveries]) for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for delivery in deliveries:
                await delivery.settled()
            await consumer.aclose()

        run(scenario)

        assert sorted(receipt for _, receipt in client.asked) == sorted(b.decode() for b in bodies)

    def test_settled_is_pending_until_the_system_has_it(self) -> None:
        """The promise is made when asked for, once, and resolves with the settlement."""
        client = ScriptedClient(b"a")

        async def scenario() -> None:
            consumer = ThreadedConsumer(client)
            (delivery,) = await consumer.receive(1)
            client.go_on.clear()
            delivery.ack()
            promise = delivery.settled()
            assert delivery.settled() is promise
            assert not promise.done()
            client.go_on.set()
            await promise
            assert delivery.settled().done()
            await consumer.aclose()

        run(scenario)

    def test_one_that_failed_is_lost_and_the_others_are_not(self) -> None:
        """A lease that is gone concerns one message."""
        client = ScriptedClient(b"a", b"b")
        client.refused["a"] = TransportError("its lease is gone")

        async def scenario() -> None:
            consumer = ThreadedConsumer(client)
            gone, kept = await consumer.receive(2)
            gone.ack()
            kept.ack()
            with pytest.raises(TransportError, match="lease"):
                await gone.settled()
            await kept.settled()
            assert (gone.lost, kept.lost) == (True, False)
            gone.extend(1.0)
            await consumer.aclose()

        run(scenario)

        assert client.asked == [(Action.ACK, "a"), (Action.ACK, "b")]

    def test_what_the_capabilities_deny_is_refused(self) -> None:
        """Acknowledging does nothing there; the rest says that it cannot be."""
        client = ScriptedClient(capabilities=Capabilities())
        client.waiting = [Received(body=b"a", receipt="a")]

        async def scenario() -> None:
            consumer = ThreadedConsumer(client)
            (delivery,) = await consumer.receive(1)
            delivery.ack()
            for refused in (
                delivery.nack,
                lambda: delivery.retry(RETRIED),
                lambda: delivery.reply(Reply(b"1")),
                lambda: delivery.extend(1.0),
            ):
                with pytest.raises(UnsupportedError, match="scripted"):
                    refused()
            await consumer.aclose()

        run(scenario)

        assert client.settled == []


class TestBrokenConnection:
    def test_a_failed_open_is_told_and_tried_again(self) -> None:
        """The worker backs off, not the consumer."""
        client = ScriptedClient(b"a")
        client.fail_open = [ConnectionFailedError("nobody there")]

        async def scenario() -> list[bytes]:
            consumer = ThreadedConsumer(client)
            with pytest.raises(ConnectionFailedError, match="nobody there"):
                await consumer.receive(1)
            found = [d.body for d in await consumer.receive(1)]
            await consumer.aclose()
            return found

        assert run(scenario) == [b"a"]
        assert client.calls.count("open") == 2

    def test_what_is_held_is_lost_and_never_settled_on_the_next_connection(self) -> None:
        """The system gives it to somebody else: settling it there would settle theirs."""
        client = ScriptedClient(b"a")

        async def scenario() -> None:
            consumer = ThreadedConsumer(client)
            (delivery,) = await consumer.receive(1)
            client.fail_poll = [ConnectionFailedError("gone")]
            with pytest.raises(ConnectionFailedError):
                await consumer.receive(1)
            assert delivery.lost
            delivery.ack()
            with pytest.raises(ConnectionFailedError, match="gone"):
                await delivery.settled()
            client.put(b"b")
            (again,) = await consumer.receive(1)
            again.ack()
            await again.settled()
            await consumer.aclose()

        run(scenario)

        assert client.asked == [(Action.ACK, "b")]

    def test_settlements_under_way_fail_with_it(self) -> None:
        """Those that were being carried out, and those that were asked meanwhile."""
        client = ScriptedClient(b"a", b"b")
        client.fail_settle = [ConnectionFailedError("gone")]

        async def scenario() -> None:
            consumer = ThreadedConsumer(client)
            first, second = await consumer.receive(2)
            client.go_on.clear()
            first.ack()
            client.settling.wait(PATIENCE)
            second.ack()
            promises = first.settled(), second.settled()
            client.go_on.set()
            for promise in promises:
                with pytest.raises(ConnectionFailedError):
                    await promise
            assert first.lost
            assert second.lost
            await consumer.aclose()

        run(scenario)

        assert client.settled == []

    def test_a_fault_of_the_client_is_one_too_and_is_logged(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A consumer does not end because a library raised what nobody expected."""
        client = ScriptedClient(b"a")
        client.fail_poll = [ZeroDivisionError()]
        client.fail_close = OSError("not even that")

        async def scenario() -> None:
            consumer = ThreadedConsumer(client)
            with pytest.raises(TransportError, match="ZeroDivisionError"):
                await consumer.receive(1)
            client.fail_close = None
            assert [d.body for d in await consumer.receive(1)] == [b"a"]
            await consumer.aclose()

        run(scenario)

        assert [r.levelno for r in caplog.records] == [logging.ERROR, logging.ERROR]


class TestClose:
    def test_it_carries_out_what_was_asked_and_gives_back_the_rest(self) -> None:
        """In this order: what was asked first comes first."""
        client = ScriptedClient(b"a", b"b", b"c")

        async def scenario() -> None:
            consumer = ThreadedConsumer(client)
            done, left, _ = await consumer.receive(3)
            client.go_on.clear()
            done.ack()
            closing = asyncio.create_task(consumer.aclose())
            await asyncio.sleep(0)
            client.go_on.set()
            await closing
            assert left.lost
            assert not done.lost
            left.ack()
            with pytest.raises(ClosedError):
                await left.settled()

        run(scenario)

        assert client.asked[0] == (Action.ACK, "a")
        assert sorted(client.asked[1:], key=str) == [(Action.NACK, "b"), (Action.NACK, "c")]

    def test_it_is_idempotent_and_receive_raises_after_it(self) -> None:
        """Closed is closed, also for one that was never opened."""
        client = ScriptedClient()

        async def scenario() -> None:
            consumer = ThreadedConsumer(client)
            await consumer.aclose()
            await consumer.aclose()
            with pytest.raises(ClosedError):
                await consumer.receive(1)

        run(scenario)

        assert client.calls == []

    def test_a_waiting_receive_ends(self) -> None:
        """With ClosedError, and at once."""
        client = ScriptedClient()

        async def scenario() -> None:
            consumer = ThreadedConsumer(client)
            waiting = asyncio.create_task(_receive(consumer))
            await until(lambda: client.polls)
            await consumer.aclose()
            with pytest.raises(ClosedError):
                await waiting
            await consumer.aclose()

        run(scenario)

    def test_a_client_that_hangs_is_left_behind(self, caplog: pytest.LogCaptureFixture) -> None:
        """The close takes `close_timeout`, and the log says so."""
        client = ScriptedClient(b"a")

        async def scenario() -> None:
            consumer = ThreadedConsumer(client, close_timeout=0.01)
            (delivery,) = await consumer.receive(1)
            client.go_on.clear()
            delivery.ack()
            await consumer.aclose()
            assert [r.message for r in caplog.records] == ["consumer did not close in time"]
            client.go_on.set()
            await consumer._ended
            delivery.reply(Reply(b"1"))

        run(scenario)

    def test_what_cannot_be_given_back_is_lost_all_the_same(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A broken client does not keep the consumer from closing."""
        client = ScriptedClient(b"a")
        client.fail_settle = [OSError("no")]

        async def scenario() -> None:
            consumer = ThreadedConsumer(client)
            (delivery,) = await consumer.receive(1)
            await consumer.aclose()
            assert delivery.lost
            with pytest.raises(ClosedError):
                await delivery.settled()

        run(scenario)

        assert len(caplog.records) == 1

    def test_asking_after_it_is_answered_with_closed(self) -> None:
        """Nobody is there to carry it out; an at-most-once delivery is told as well."""
        client = ScriptedClient(b"a", capabilities=Capabilities())

        async def scenario() -> None:
            consumer = ThreadedConsumer(client)
            (delivery,) = await consumer.receive(1)
            await consumer.aclose()
            delivery.reply(Reply(b"1"))
            with pytest.raises(ClosedError):
                await delivery.settled()

        run(scenario)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_starts_a_thread_of_its_own() -> None:
    """The parent's thread is not there, and its lock may be held for ever."""
    client = ScriptedClient(b"a", b"b")
    consumer = ThreadedConsumer(client)

    async def take() -> bytes:
        async with asyncio.timeout(PATIENCE):
            return (await consumer.receive(1))[0].body

    assert asyncio.run(take()) == b"a"
    child = os.fork()
    if child == 0:  # the exit code is the answer
        os._exit(0 if asyncio.run(take()) == b"b" else 1)

    assert os.waitpid(child, 0)[1] == 0
    asyncio.run(consumer.aclose())


class TestRetry:
    def test_what_the_capabilities_exclude_is_given_back(self) -> None:
        """The client is never asked to send what it could not; the first settlement wins."""
        client = ScriptedClient(b"a", b"b")
        wrong = WireMessage(b"again", {}, "an-id", "shop.echo", priority=3)

        async def scenario() -> None:
            consumer = ThreadedConsumer(client)
            first, second = await consumer.receive(2)
            first.retry(wrong)
            first.retry(RETRIED)
            second.ack()
            second.retry(wrong)
            assert first.lost
            with pytest.raises(UnsupportedError, match="scripted has no priorities"):
                await first.settled()
            await second.settled()
            assert not second.lost
            await until(lambda: len(client.asked) == 2)
            await consumer.aclose()

        run(scenario)

        assert client.asked == [(Action.NACK, "a"), (Action.ACK, "b")]


class TestLooking:
    """`count`, `peek` and `purge`, which need nothing of the owner thread."""

    LOOKING = Capabilities(count=True, inspect=True, purge=True)

    def test_the_client_is_asked_on_the_callers_thread(self) -> None:
        """Whether or not anything was received; a poll that waits is not disturbed."""
        client = ScriptedClient(b"a", capabilities=self.LOOKING)
        client.queues = ("mail", "news")
        consumer = ThreadedConsumer(client)

        assert consumer.count() == {"mail": 1, "news": 1}
        assert consumer.peek("mail") == [WaitingMessage(b"a")]
        assert consumer.peek("news", offset=5, limit=1) == [WaitingMessage(b"a")]
        assert consumer.purge("mail") == 3

        assert client.calls == ["count", "peek mail 0 20", "peek news 5 1", "purge mail"]
        assert client.threads == {threading.get_ident()}

    def test_what_the_capabilities_deny_is_never_asked(self) -> None:
        """The client may be one for several systems."""
        client = ScriptedClient(capabilities=Capabilities())
        client.queues = ("mail",)
        consumer = ThreadedConsumer(client)

        for call in (
            consumer.count,
            lambda: consumer.peek("mail"),
            lambda: consumer.purge("mail"),
        ):
            with pytest.raises(UnsupportedError):
                call()
        assert client.calls == []

    def test_an_unknown_queue_is_refused_with_those_that_there_are(self) -> None:
        """Before anything is asked (K16)."""
        client = ScriptedClient(capabilities=self.LOOKING)
        client.queues = ("mail", "news")
        consumer = ThreadedConsumer(client)

        for call in (consumer.peek, consumer.purge):
            with pytest.raises(
                UnsupportedError, match="no queue 'post', only from 'mail', 'news'"
            ):
                call("post")
        assert client.calls == []

    def test_closed_it_refuses(self) -> None:
        """As it refuses to receive (K14)."""
        consumer = ThreadedConsumer(ScriptedClient(capabilities=self.LOOKING))
        run(consumer.aclose)

        for call in (
            consumer.count,
            lambda: consumer.peek("mail"),
            lambda: consumer.purge("mail"),
        ):
            with pytest.raises(ClosedError):
                call()

    def test_a_client_that_declares_more_than_it_has_is_found_out(self) -> None:
        """That is a mistake of whoever wrote it, and no refusal."""
        client = ScriptedClient(capabilities=self.LOOKING)

        for call in (
            lambda: BlockingClient.count(client),
            lambda: BlockingClient.peek(client, "mail", 0, 1),
            lambda: BlockingClient.purge(client, "mail"),
        ):
            with pytest.raises(NotImplementedError):
                call()
