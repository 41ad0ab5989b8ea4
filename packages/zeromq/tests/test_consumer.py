"""A consumer against bare pyzmq peers."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast

import pytest
import zmq

from postbus.errors import ClosedError, ConnectionFailedError, TransportError, UnsupportedError
from postbus.transports import Reply, WireMessage
from postbus_zeromq import (
    ZeroMQConsumer,
    ZeroMQConsumerSettings,
    ZeroMQProducer,
    ZeroMQProducerSettings,
)
from postbus_zeromq._sockets import OpenSocket

Peer = Callable[..., "zmq.Socket[bytes]"]
Make = Callable[..., WireMessage]
WAIT = 10.0


def with_consumer(
    dsn: str, test: Callable[[ZeroMQConsumer], Awaitable[None]], **keys: Any
) -> None:
    """Run *test* with a consumer that is closed afterwards."""

    async def main() -> None:
        consumer = ZeroMQConsumer(ZeroMQConsumerSettings(dsn=dsn, **keys))
        try:
            await asyncio.wait_for(test(consumer), 30.0)
        finally:
            await consumer.aclose()

    asyncio.run(main())


async def waiting(consumer: ZeroMQConsumer, max_messages: int = 10) -> asyncio.Task[Any]:
    """Start a receive, and return when it waits with its socket open."""
    task = asyncio.create_task(cast("Coroutine[Any, Any, Any]", consumer.receive(max_messages)))
    while consumer._stop_waiting is None:
        await asyncio.sleep(0)
        assert not task.done()
    return task


async def arrival(consumer: ZeroMQConsumer) -> None:
    """Return when there is something to receive."""
    assert consumer._open is not None
    while not consumer._open.is_ready(zmq.POLLIN):  # noqa: ASYNC110  libzmq sets no event of asyncio
        await asyncio.sleep(0.001)


async def bodies_of(consumer: ZeroMQConsumer, count: int, max_messages: int = 10) -> list[bytes]:
    """Receive until there are *count* bodies."""
    bodies: list[bytes] = []
    while len(bodies) < count:
        got = await asyncio.wait_for(consumer.receive(max_messages), WAIT)
        assert 0 < len(got) <= max_messages
        bodies += [each.body for each in got]
    return bodies


class TestReceive:
    def test_takes_frames_from_any_push_socket_in_order(self, peer: Peer, dsn: str) -> None:
        """A bare PUSH peer in any language feeds it (Z01, Z04)."""

        async def test(consumer: ZeroMQConsumer) -> None:
            push = peer(zmq.PUSH, connect=dsn)
            for number in range(500):
                push.send(b"%d" % number)
            assert [int(each) for each in await bodies_of(consumer, 500)] == list(range(500))

        with_consumer(dsn, test)

    def test_returns_no_more_than_asked_for(self, peer: Peer, dsn: str) -> None:
        """What it does not return stays in the socket, for the next call."""

        async def test(consumer: ZeroMQConsumer) -> None:
            push = peer(zmq.PUSH, connect=dsn)
            task = await waiting(consumer, 1)
            for number in range(7):
                push.send(b"%d" % number)
            assert [each.body for each in await task] == [b"0"]
            assert await bodies_of(consumer, 6, max_messages=2) == [
                b"%d" % number for number in range(1, 7)
            ]

        with_consumer(dsn, test)

    def test_waits_until_something_comes(self, peer: Peer, dsn: str) -> None:
        """It never returns empty-handed, and other tasks run while it waits."""

        async def test(consumer: ZeroMQConsumer) -> None:
            for number in range(3):
                task = await waiting(consumer)
                await asyncio.sleep(0.01)
                assert not task.done()
                push = peer(zmq.PUSH, connect=dsn)
                push.send(b"%d" % number)
                assert [each.body for each in await asyncio.wait_for(task, WAIT)] == [
                    b"%d" % number
                ]

        with_consumer(dsn, test)

    def test_may_connect_to_a_producer_that_binds(self, peer: Peer, dsn: str) -> None:
        """`bind = false` turns the direction of the connection round."""

        async def test(consumer: ZeroMQConsumer) -> None:
            push = peer(zmq.PUSH, bind=dsn)
            task = await waiting(consumer)
            push.send(b"hello")
            assert [each.body for each in await task] == [b"hello"]

        with_consumer(dsn, test, bind=False)

    def test_leaves_other_tasks_a_turn_while_messages_pour_in(self, peer: Peer, dsn: str) -> None:
        """A consumer that always finds something still yields to the loop, every few hundred."""

        async def test(consumer: ZeroMQConsumer) -> None:
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    await asyncio.sleep(0)
                    turns += 1

            task = await waiting(consumer, 1)
            push = peer(zmq.PUSH, connect=dsn)
            counting = asyncio.create_task(count())
            push.send(b"first")
            await task
            for _ in range(900):
                push.send(b"x")
            # So that no receive has to wait, which would be a turn as well.
            await asyncio.sleep(0.3)
            before, received = turns, 0
            while received < 900:
                received += len(await consumer.receive(64))
            assert turns - before >= 3
            counting.cancel()

        with_consumer(dsn, test)

    def test_cancelled_loses_nothing(self, peer: Peer, dsn: str) -> None:
        """Whenever a waiting receive is cancelled, what arrives goes to the next one."""

        async def test(consumer: ZeroMQConsumer) -> None:
            push = peer(zmq.PUSH, connect=dsn)
            task = await waiting(consumer)
            received: list[bytes] = []
            for number in range(200):
                push.send(b"%d" % number)
                if number % 2:
                    await asyncio.sleep(0)
                task.cancel()
                done = await asyncio.gather(task, return_exceptions=True)
                if isinstance(done[0], BaseException):
                    assert isinstance(done[0], asyncio.CancelledError)
                else:
                    received += [each.body for each in done[0]]
                task = asyncio.create_task(cast("Coroutine[Any, Any, Any]", consumer.receive(10)))
                await asyncio.sleep(0)
            task.cancel()
            done = await asyncio.gather(task, return_exceptions=True)
            if not isinstance(done[0], BaseException):
                received += [each.body for each in done[0]]
            received += await bodies_of(consumer, 200 - len(received))
            assert received == [b"%d" % number for number in range(200)]

        with_consumer(dsn, test)

    def test_cancelled_leaves_nothing_on_the_loop(self, dsn: str) -> None:
        """The loop does not go on watching a descriptor that may soon be somebody else's."""

        async def test(consumer: ZeroMQConsumer) -> None:
            task = await waiting(consumer)
            assert consumer._open is not None
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert not asyncio.get_running_loop().remove_reader(consumer._open.socket.FD)

        with_consumer(dsn, test)

    def test_is_for_one_task_at_a_time(self, dsn: str) -> None:
        """A second waiter is a mistake that shows, and does not disturb the first."""

        async def test(consumer: ZeroMQConsumer) -> None:
            task = await waiting(consumer)
            with pytest.raises(RuntimeError, match="one at a time"):
                await consumer.receive(1)
            assert not task.done()
            task.cancel()

        with_consumer(dsn, test)

    def test_works_on_one_loop_after_another(self, peer: Peer, dsn: str) -> None:
        """Nothing of a loop is kept between two calls."""
        consumer = ZeroMQConsumer(ZeroMQConsumerSettings(dsn=dsn))
        push = peer(zmq.PUSH, connect=dsn)
        for number in range(3):
            push.send(b"%d" % number)
            assert asyncio.run(bodies_of(consumer, 1)) == [b"%d" % number]
        asyncio.run(consumer.aclose())

    def test_works_on_a_loop_that_cannot_watch_descriptors(self, peer: Peer, dsn: str) -> None:
        """Such a loop (the proactor of Windows) leaves the watching to a thread."""

        class Loop(asyncio.SelectorEventLoop):
            def add_reader(self, *args: Any) -> None:  # type: ignore[override]  # it only refuses
                raise NotImplementedError

        async def main() -> None:
            consumer = ZeroMQConsumer(ZeroMQConsumerSettings(dsn=dsn))
            task = asyncio.create_task(bodies_of(consumer, 1))
            await asyncio.sleep(0.12)
            push = peer(zmq.PUSH, connect=dsn)
            push.send(b"hello")
            assert await task == [b"hello"]
            task = asyncio.create_task(bodies_of(consumer, 1))
            await asyncio.sleep(0.02)
            await consumer.aclose()
            with pytest.raises(ClosedError):
                await task

        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(main())

    def test_opens_on_first_use(self, dsn: str) -> None:
        """Building a consumer binds nothing."""

        async def test(consumer: ZeroMQConsumer) -> None:
            assert consumer._open is None

        with_consumer(dsn, test)

    def test_says_when_the_address_is_taken_and_tries_again(self, peer: Peer, dsn: str) -> None:
        """An address in use is an error of that call; the next one may have more luck."""

        async def test(consumer: ZeroMQConsumer) -> None:
            other = peer(zmq.PULL, bind=dsn)
            for _ in range(2):
                with pytest.raises(ConnectionFailedError, match=f"cannot bind {dsn}: Address al"):
                    await consumer.receive(1)
            other.unbind(dsn)
            push = peer(zmq.PUSH, connect=dsn)
            push.send(b"hello")
            deadline = time.monotonic() + WAIT
            while time.monotonic() < deadline:
                try:
                    assert await bodies_of(consumer, 1) == [b"hello"]
                except ConnectionFailedError:  # unbinding takes a moment
                    await asyncio.sleep(0.01)
                else:
                    break

        with_consumer(dsn, test)

    def test_gives_what_it_has_before_it_fails(self, dsn: str) -> None:
        """An error of the socket between two frames loses neither, and has postbus's type."""

        class Broken:
            def __init__(self) -> None:
                self.frames = [b"1", b"2"]

            def recv(self, flags: int) -> bytes:
                if not self.frames:
                    raise zmq.ZMQError(errno.EHOSTUNREACH)
                return self.frames.pop(0)

            def get(self, option: int) -> int:
                return 0

            def close(self, linger: int) -> None: ...

        async def test(consumer: ZeroMQConsumer) -> None:
            with zmq.Context() as context:
                consumer._open = OpenSocket(context, cast("Any", Broken()), 0.0)
                assert [each.body for each in await consumer.receive(10)] == [b"1", b"2"]
                with pytest.raises(TransportError, match=f"cannot receive from {dsn}") as caught:
                    await consumer.receive(10)
                assert isinstance(caught.value.__cause__, zmq.ZMQError)

        with_consumer(dsn, test)


class TestDelivery:
    def test_carries_the_frame_and_where_it_came_from(self, peer: Peer, dsn: str) -> None:
        """There is nothing beside the body; what is beside it would not be read back."""

        async def test(consumer: ZeroMQConsumer) -> None:
            peer(zmq.PUSH, connect=dsn).send(b"hello")
            (delivery,) = await consumer.receive(1)
            assert (delivery.body, delivery.headers, delivery.source, delivery.redelivered) == (
                b"hello",
                {},
                dsn,
                False,
            )
            assert not hasattr(delivery, "__dict__")

        with_consumer(dsn, test)

    def test_has_nothing_to_settle(self, peer: Peer, dsn: str, message: Make) -> None:
        """`ack` does nothing, the others are refused: the sender keeps no copy."""

        async def test(consumer: ZeroMQConsumer) -> None:
            peer(zmq.PUSH, connect=dsn).send(b"hello")
            (delivery,) = await consumer.receive(1)
            delivery.ack()
            assert delivery.settled().done()
            assert delivery.settled().exception() is None
            assert (delivery.lost, delivery.can_reply) == (False, False)
            for refused in (
                delivery.nack,
                lambda: delivery.retry(message()),
                lambda: delivery.reply(Reply(b"1")),
                lambda: delivery.extend(1.0),
            ):
                with pytest.raises(UnsupportedError, match=dsn):
                    refused()

        with_consumer(dsn, test)


class TestForeignFrames:
    def test_over_the_limit_are_dropped_and_logged(
        self, peer: Peer, dsn: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A body that is too large costs itself alone, and leaves a trace with its size (A1)."""

        async def test(consumer: ZeroMQConsumer) -> None:
            push = peer(zmq.PUSH, connect=dsn)
            for size in (1000, 1001, 3000, 999):
                push.send(bytes(size))
            assert [len(each) for each in await bodies_of(consumer, 2)] == [1000, 999]

        with_consumer(dsn, test, max_message_bytes=1000)
        dropped = [vars(each) for each in caplog.records if each.message == "messages dropped"]
        assert sum(each["dropped"] for each in dropped) == 2
        assert max(each["size_bytes"] for each in dropped) == 3000
        assert {(each["dsn"], each["reason"]) for each in dropped} == {(dsn, "too-large")}

    def test_over_the_limit_only_do_not_stop_it(self, peer: Peer, dsn: str) -> None:
        """A whole batch of dropped frames is not taken for an empty socket."""

        async def test(consumer: ZeroMQConsumer) -> None:
            push = peer(zmq.PUSH, connect=dsn)
            task = await waiting(consumer, 5)
            for _ in range(100):
                push.send(bytes(2000))
            push.send(b"good")
            assert [each.body for each in await asyncio.wait_for(task, WAIT)] == [b"good"]

        with_consumer(dsn, test, max_message_bytes=1000)

    def test_far_over_the_limit_never_reach_memory(
        self, peer: Peer, dsn: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Such a sender is cut off by libzmq; everybody else is served (A1, A13)."""

        async def test(consumer: ZeroMQConsumer) -> None:
            bad, good = peer(zmq.PUSH, connect=dsn), peer(zmq.PUSH, connect=dsn)
            cut_off = bad.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            task = await waiting(consumer)
            bad.send(bytes(50_000_000))
            assert await asyncio.to_thread(cut_off.poll, 10_000)
            bad.disable_monitor()
            cut_off.close()
            for _ in range(10):
                good.send(b"good")
            first = [each.body for each in await asyncio.wait_for(task, WAIT)]
            assert first + await bodies_of(consumer, 10 - len(first)) == [b"good"] * 10

        with_consumer(dsn, test, max_message_bytes=1000)
        assert "messages dropped" not in caplog.messages

    def test_of_one_message_are_messages_of_their_own(self, peer: Peer, dsn: str) -> None:
        """One frame is one message: a multipart message is as many, and nothing of it is lost."""

        async def test(consumer: ZeroMQConsumer) -> None:
            push = peer(zmq.PUSH, connect=dsn)
            push.send_multipart([b"topic", b"", b"body"])
            assert await bodies_of(consumer, 3) == [b"topic", b"", b"body"]

        with_consumer(dsn, test)

    def test_that_are_no_zeromq_at_all_do_no_harm(self, peer: Peer, dsn: str) -> None:
        """Garbage and half-open connections are libzmq's to end (A13)."""
        host, port = dsn.removeprefix("tcp://").split(":")

        async def test(consumer: ZeroMQConsumer) -> None:
            task = await waiting(consumer)
            strangers = [socket.create_connection((host, int(port))) for _ in range(20)]
            for number, stranger in enumerate(strangers):
                if number % 2:
                    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(200))
            peer(zmq.PUSH, connect=dsn).send(b"good")
            assert [each.body for each in await asyncio.wait_for(task, WAIT)] == [b"good"]
            for stranger in strangers:
                # Reset, or the address would stay busy for a while.
                stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                stranger.close()

        with_consumer(dsn, test)

    def test_of_a_tiny_limit_still_shake_hands(self, peer: Peer, dsn: str) -> None:
        """The limit is one of bodies: it does not keep a peer from connecting."""

        async def test(consumer: ZeroMQConsumer) -> None:
            peer(zmq.PUSH, connect=dsn).send(b"1")
            assert await bodies_of(consumer, 1) == [b"1"]

        with_consumer(dsn, test, max_message_bytes=1)


class TestClose:
    def test_is_idempotent_and_ends_its_use(self, dsn: str) -> None:
        """A closed consumer says so; one that was never opened closes too."""

        async def test(consumer: ZeroMQConsumer) -> None:
            await consumer.aclose()
            await consumer.aclose()
            with pytest.raises(ClosedError, match=f"the consumer for {dsn} is closed"):
                await consumer.receive(1)

        with_consumer(dsn, test)

    def test_ends_a_receive_that_waits(self, dsn: str) -> None:
        """That receive learns why nothing more will come."""

        async def test(consumer: ZeroMQConsumer) -> None:
            task = await waiting(consumer)
            await consumer.aclose()
            with pytest.raises(ClosedError):
                await asyncio.wait_for(task, WAIT)

        with_consumer(dsn, test)

    def test_frees_the_address(self, peer: Peer, dsn: str) -> None:
        """Another may bind it at once."""

        async def test(consumer: ZeroMQConsumer) -> None:
            task = await waiting(consumer)
            await consumer.aclose()
            await asyncio.gather(task, return_exceptions=True)
            peer(zmq.PULL, bind=dsn)

        with_consumer(dsn, test)

    def test_says_what_it_throws_away(
        self, peer: Peer, dsn: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What had arrived and was not received cannot go back: at least that is logged."""

        async def test(consumer: ZeroMQConsumer) -> None:
            push = peer(zmq.PUSH, connect=dsn)
            task = await waiting(consumer, 1)
            push.send(b"1")
            push.send(b"2")
            await task
            await arrival(consumer)

        with_consumer(dsn, test)
        assert [each.message for each in caplog.records] == ["messages discarded at close"]


class TestBothSides:
    def test_meet_with_nothing_but_defaults_in_common(self, dsn: str, message: Make) -> None:
        """A producer and a consumer of one address need no further key."""

        async def test(consumer: ZeroMQConsumer) -> None:
            producer = ZeroMQProducer(ZeroMQProducerSettings(dsn=dsn))
            task = await waiting(consumer)
            await producer.asend(message(b"hello"))
            assert [each.body for each in await task] == [b"hello"]
            await producer.aclose()

        with_consumer(dsn, test)

    def test_meet_over_ipv6(self, message: Make) -> None:
        """An address in brackets is one of IPv6."""
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
            dsn = f"tcp://[::1]:{probe.getsockname()[1]}"
        self.test_meet_with_nothing_but_defaults_in_common(dsn, message)


class TestFork:
    def test_leaves_the_socket_to_the_parent(self, peer: Peer, dsn: str) -> None:
        """A forked child that receives by mistake is told so, and steals nothing."""
        script = """
            import asyncio, os, sys
            from postbus.errors import ConnectionFailedError
            from postbus_zeromq import ZeroMQConsumer, ZeroMQConsumerSettings
            consumer = ZeroMQConsumer(ZeroMQConsumerSettings(dsn=sys.argv[1]))
            first = asyncio.run(consumer.receive(1))
            if (pid := os.fork()) == 0:
                try:
                    asyncio.run(consumer.receive(1))
                except ConnectionFailedError:
                    sys.exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
            print(first[0].body, asyncio.run(consumer.receive(1))[0].body)
            asyncio.run(consumer.aclose())
            """
        push = peer(zmq.PUSH, connect=dsn)
        push.send(b"1")
        push.send(b"2")
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(script), dsn],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            env=dict(os.environ),
        )
        assert (done.stderr, done.stdout) == ("", "b'1' b'2'\n")


class TestLossWindow:
    def test_is_what_the_documentation_says(self, dsn: str, message: Make) -> None:
        """A consumer killed at work loses what was on its way, and `send` says nothing of it."""
        script = """
            import asyncio, sys, time
            from postbus_zeromq import ZeroMQConsumer, ZeroMQConsumerSettings

            async def main():
                consumer = ZeroMQConsumer(ZeroMQConsumerSettings(dsn=sys.argv[1]))
                while True:
                    for delivery in await consumer.receive(10):
                        time.sleep(0.001)
                        print(delivery.body.decode(), flush=True)

            asyncio.run(main())
            """
        consumer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), dsn],
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
        producer = ZeroMQProducer(ZeroMQProducerSettings(dsn=dsn, send_timeout=WAIT, linger=0.0))
        with consumer:
            for number in range(500):
                producer.send(message(b"%d" % number))
            assert consumer.stdout is not None
            handled = [int(consumer.stdout.readline()) for _ in range(5)]
            consumer.send_signal(signal.SIGKILL)
            handled += [int(each) for each in consumer.stdout if each.endswith("\n")]
        producer.close()
        # In order, without a gap, and then nothing: the rest is gone, as the page says.
        assert handled == list(range(len(handled)))
        assert len(handled) < 500
