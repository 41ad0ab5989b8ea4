"""A producer against bare pyzmq peers."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import zmq

from postbus.errors import (
    ClosedError,
    ConnectionFailedError,
    PartiallySentError,
    RejectedError,
    TimedOutError,
    UnsupportedError,
)
from postbus.transports import WireMessage
from postbus_zeromq import ZeroMQProducer, ZeroMQProducerSettings

Peer = Callable[..., "zmq.Socket[bytes]"]
Make = Callable[..., WireMessage]


MADE: list[ZeroMQProducer] = []


@pytest.fixture(autouse=True)
def closed_at_the_end() -> Iterator[None]:
    """Close what a test that failed has left open, so that no other test fails with it."""
    yield
    while MADE:
        MADE.pop().close()


def producer_for(dsn: str, **keys: Any) -> ZeroMQProducer:
    keys.setdefault("send_timeout", 10.0)
    MADE.append(ZeroMQProducer(ZeroMQProducerSettings(dsn=dsn, **keys)))
    return MADE[-1]


def run_script(script: str, *arguments: str) -> str:
    """Run Python in a process of its own, every warning an error, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=dict(os.environ),
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


class TestSend:
    def test_is_one_frame_with_the_body_as_it_is(
        self, peer: Peer, dsn: str, message: Make
    ) -> None:
        """Any PULL socket in any language reads it (Z01, Z04)."""
        pull = peer(zmq.PULL, bind=dsn)
        producer = producer_for(dsn)
        producer.send(message(b'{"text":"\xc3\xa9"}'))
        assert pull.recv_multipart() == [b'{"text":"\xc3\xa9"}']
        producer.close()

    def test_keeps_the_order(self, peer: Peer, dsn: str, message: Make) -> None:
        """What one producer sends to one peer arrives in the order sent."""
        pull = peer(zmq.PULL, bind=dsn)
        producer = producer_for(dsn)
        for number in range(500):
            producer.send(message(b"%d" % number))
        assert [int(pull.recv()) for _ in range(500)] == list(range(500))
        producer.close()

    def test_connects_on_first_use(self, dsn: str) -> None:
        """Building a producer opens nothing, so a container may build it before a fork (Z04)."""
        producer = producer_for(dsn)
        assert producer._socket._open is None
        producer.close()

    def test_may_bind_for_consumers_that_connect(
        self, peer: Peer, dsn: str, message: Make
    ) -> None:
        """`bind = true` turns the direction of the connection round, not that of the messages."""
        producer = producer_for(dsn, bind=True)
        pull = peer(zmq.PULL, connect=dsn)
        producer.send(message(b"hello"))
        assert pull.recv() == b"hello"
        producer.close()

    def test_goes_through_a_socket_in_the_file_system(
        self, peer: Peer, message: Make, tmp_path: Any
    ) -> None:
        """An ipc address is one like tcp."""
        dsn = f"ipc://{tmp_path}/mail.sock"
        pull = peer(zmq.PULL, bind=dsn)
        producer = producer_for(dsn)
        producer.send(message(b"hello"))
        assert pull.recv() == b"hello"
        producer.close()

    def test_says_when_the_address_is_taken(self, peer: Peer, dsn: str, message: Make) -> None:
        """Two that bind one address: the second learns it at once, with the address."""
        peer(zmq.PULL, bind=dsn)
        producer = producer_for(dsn, bind=True)
        with pytest.raises(ConnectionFailedError, match=f"cannot bind {dsn}: Address already"):
            producer.send(message())
        producer.close()

    def test_turns_what_the_socket_raises_into_its_own_error(
        self, dsn: str, message: Make
    ) -> None:
        """Nothing of pyzmq leaves a producer, whatever the socket says."""
        producer = producer_for(dsn)

        def fail(body: bytes, flags: int) -> None:
            raise zmq.ZMQError(errno.EHOSTUNREACH)

        producer._socket._send = fail
        with pytest.raises(ConnectionFailedError, match=f"cannot send to {dsn}") as caught:
            producer.send(message())
        assert isinstance(caught.value.__cause__, zmq.ZMQError)
        producer.close()


class TestAbsentPeer:
    def test_is_an_error_after_the_time_out(self, dsn: str, message: Make) -> None:
        """A send waits for a peer at most `send_timeout`, then raises."""
        producer = producer_for(dsn, send_timeout=0.2)
        start = time.monotonic()
        with pytest.raises(ConnectionFailedError, match=f"nobody was at {dsn} within 0.2 s"):
            producer.send(message())
        assert 0.2 <= time.monotonic() - start < 2.0
        producer.close()

    def test_gets_nothing_of_it_when_it_comes(self, peer: Peer, dsn: str, message: Make) -> None:
        """A message that was refused is not queued behind the caller's back."""
        hasty = producer_for(dsn, send_timeout=0.05, persistent_id="one socket")
        patient = producer_for(dsn, persistent_id="one socket")
        with pytest.raises(ConnectionFailedError):
            hasty.send(message(b"refused"))
        pull = peer(zmq.PULL, bind=dsn)
        patient.send(message(b"accepted"))
        assert pull.recv() == b"accepted"
        assert pull.poll(100) == 0
        hasty.close()
        patient.close()

    def test_that_comes_in_time_gets_it(self, peer: Peer, dsn: str, message: Make) -> None:
        """A consumer that starts after its producers costs them a wait, not a message."""
        producer = producer_for(dsn)
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(producer.send, message(b"early"))
            assert not sending.done()
            pull = peer(zmq.PULL, bind=dsn)
            assert pull.recv() == b"early"
            sending.result(10)
        producer.close()

    def test_is_tried_once_without_a_time_out(self, peer: Peer, dsn: str, message: Make) -> None:
        """`send_timeout = 0` never waits; the connection is made beside it."""
        producer = producer_for(dsn, send_timeout=0.0)
        pull = peer(zmq.PULL, bind=dsn)
        tries = 0
        while True:
            try:
                producer.send(message(b"hello"))
            except ConnectionFailedError:
                tries += 1
                assert tries < 10_000
                pull.poll(5)
            else:
                break
        assert pull.recv() == b"hello"
        producer.close()

    def test_that_left_takes_with_it_what_waited_for_it(
        self, peer: Peer, dsn: str, message: Make
    ) -> None:
        """A peer's queue ends with its connection: the next peer gets what is sent to it."""
        first = peer(zmq.PULL, bind=dsn, high_water_mark=1)
        producer = producer_for(dsn, high_water_mark=10)
        for _ in range(5):
            producer.send(message(bytes(100_000)))
        first.recv()
        # Gone at once, and seen to be gone: no peer has room any more.
        first.close(linger=0)
        while producer._socket.has_room():
            producer._socket.wait(0.01)
        second = peer(zmq.PULL, bind=dsn)
        producer.send(message(b"new"))
        assert second.recv() == b"new"
        assert second.poll(100) == 0

    def test_is_told_from_one_that_is_too_slow(self, peer: Peer, dsn: str, message: Make) -> None:
        """Once something was sent, a full way is a time-out and no missing peer."""
        pull = peer(zmq.PULL, bind=dsn, high_water_mark=1)
        keys = {"high_water_mark": 1, "linger": 0.0, "persistent_id": "one socket"}
        patient = producer_for(dsn, **keys)
        patient.send(message(bytes(100_000)))
        hasty = producer_for(dsn, send_timeout=0.1, **keys)
        with pytest.raises(TimedOutError, match="or 1 messages behind"):
            for _ in range(10_000):
                hasty.send(message(bytes(100_000)))
        assert len(pull.recv()) == 100_000
        hasty.close()
        patient.close()


class TestRefusals:
    def test_a_body_over_the_limit_never_leaves(self, peer: Peer, dsn: str, message: Make) -> None:
        """The sender learns it; at the other end only the connection would break (A1)."""
        pull = peer(zmq.PULL, bind=dsn)
        producer = producer_for(dsn, max_message_bytes=10)
        with pytest.raises(
            RejectedError, match=r"shop\.echo-text has 11 bytes, more than max_mess"
        ):
            producer.send(message(bytes(11)))
        producer.send(message(bytes(10)))
        assert pull.recv() == bytes(10)
        producer.close()

    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"delay": 1.0}, "delay"),
            ({"priority": 0}, "priority"),
            ({"expires_at": datetime.now(UTC)}, "expiry"),
            ({"delay": 0.0, "priority": 9}, "delay and priority"),
        ],
    )
    def test_what_the_capabilities_deny_is_refused(
        self, dsn: str, message: Make, fields: dict[str, Any], named: str
    ) -> None:
        """Delay, priority and expiry are no hints that are dropped on the way."""
        producer = producer_for(dsn)
        with pytest.raises(UnsupportedError, match=f"ZeroMQ has no {named} for shop.echo-text"):
            producer.send(message(**fields))
        producer.close()


class TestSendMany:
    def test_sends_all_in_order(self, peer: Peer, dsn: str, message: Make) -> None:
        """A batch is its messages one by one."""
        pull = peer(zmq.PULL, bind=dsn)
        producer = producer_for(dsn)
        producer.send_many([message(b"%d" % number) for number in range(100)])
        assert [int(pull.recv()) for _ in range(100)] == list(range(100))
        producer.send_many([])
        producer.close()

    def test_names_those_that_were_refused_and_sends_the_rest(
        self, peer: Peer, dsn: str, message: Make
    ) -> None:
        """One message that cannot be sent holds back no other."""
        pull = peer(zmq.PULL, bind=dsn)
        producer = producer_for(dsn, max_message_bytes=10)
        batch = [message(b"a"), message(bytes(11)), message(b"b"), message(b"c", delay=1.0)]
        with pytest.raises(PartiallySentError, match="2 of 4 messages were not sent") as caught:
            producer.send_many(batch)
        assert {each: type(error) for each, error in caught.value.failed.items()} == {
            1: RejectedError,
            3: UnsupportedError,
        }
        assert [pull.recv(), pull.recv()] == [b"a", b"b"]
        producer.close()

    def test_waits_once_for_an_absent_peer(self, dsn: str, message: Make) -> None:
        """When one message has waited in vain the others fail with it, at once."""
        producer = producer_for(dsn, send_timeout=0.2)
        start = time.monotonic()
        with pytest.raises(PartiallySentError) as caught:
            producer.send_many([message()] * 50)
        assert time.monotonic() - start < 2.0
        assert list(caught.value.failed) == list(range(50))
        assert isinstance(caught.value.failed[49], ConnectionFailedError)
        producer.close()


class TestClose:
    def test_flushes_what_was_sent(self, peer: Peer, dsn: str, message: Make) -> None:
        """What `send` has accepted leaves before `close` returns, to a peer that reads."""
        pull = peer(zmq.PULL, bind=dsn, high_water_mark=10)
        producer = producer_for(dsn)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(lambda: [int(pull.recv()[:6]) for _ in range(2000)])
            for number in range(2000):
                producer.send(message(b"%06d" % number + bytes(2000)))
            producer.close()
            assert reading.result(30) == list(range(2000))

    def test_waits_no_longer_than_linger(
        self, peer: Peer, dsn: str, message: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A peer that takes nothing cannot hold a process; what it cost is logged."""
        peer(zmq.PULL, bind=dsn, high_water_mark=1)
        keys = {"linger": 0.2, "persistent_id": "one socket"}
        producer_for(dsn, **keys).send(message(bytes(100_000)))
        producer = producer_for(dsn, send_timeout=0.1, **keys)
        with pytest.raises(TimedOutError):
            while True:
                producer.send(message(bytes(100_000)))
        MADE[0].close()
        start = time.monotonic()
        producer.close()
        assert 0.19 <= time.monotonic() - start < 2.0
        assert [each.message for each in caplog.records] == ["messages discarded at close"]

    def test_is_idempotent(self, dsn: str) -> None:
        """Closing twice is closing once, and one that was never used closes too."""
        producer = producer_for(dsn)
        producer.close()
        producer.close()

    def test_ends_its_use(self, dsn: str, message: Make) -> None:
        """A closed producer says so, whatever it is asked."""
        producer = producer_for(dsn)
        producer.close()
        with pytest.raises(ClosedError, match=f"the producer for {dsn} is closed"):
            producer.send(message())
        with pytest.raises(ClosedError):
            producer.send_many([])
        with pytest.raises(ClosedError):
            asyncio.run(producer.asend(message()))
        with pytest.raises(ClosedError):
            asyncio.run(producer.asend_many([]))

    def test_ends_a_send_that_waits(self, dsn: str, message: Make) -> None:
        """It works while another thread is blocked, and that thread learns why it stopped."""
        producer = producer_for(dsn, send_timeout=60.0)
        with ThreadPoolExecutor(2) as pool:
            sending = pool.submit(producer.send, message())
            batch = pool.submit(producer.send_many, [message()] * 3)
            while producer._socket._open is None:
                time.sleep(0.001)
            start = time.monotonic()
            producer.close()
            with pytest.raises(ClosedError):
                sending.result(10)
            with pytest.raises((ClosedError, PartiallySentError)):
                batch.result(10)
        assert time.monotonic() - start < 5.0

    def test_cannot_be_undone_by_a_send_that_was_on_its_way(self, dsn: str, message: Make) -> None:
        """A thread between its check and the socket finds a closed socket, not a new one."""
        producer = producer_for(dsn)
        producer.close()
        producer._is_closed = False
        with pytest.raises(ClosedError):
            producer.send(message())
        with pytest.raises(ClosedError):
            producer._wait_and_offer(b"")

    def test_happens_at_exit_where_nobody_did(self, peer: Peer, dsn: str) -> None:
        """A script that sends and ends loses nothing of what it sent, and warns of nothing."""
        pull = peer(zmq.PULL, bind=dsn)
        script = """
            import sys
            from postbus.transports import WireMessage
            from postbus_zeromq import ZeroMQProducer, ZeroMQProducerSettings
            producer = ZeroMQProducer(ZeroMQProducerSettings(dsn=sys.argv[1]))
            for number in range(500):
                producer.send(WireMessage(b"%d" % number, {}, "id", "name"))
            """
        run_script(script, dsn)
        assert [int(pull.recv()) for _ in range(500)] == list(range(500))


class TestPersistentId:
    def test_shares_one_connection(self, peer: Peer, dsn: str, message: Make) -> None:
        """However many producers a process builds with one id, the peer sees one (Z01)."""
        pull = peer(zmq.PULL, bind=dsn)
        monitor = pull.get_monitor_socket(zmq.EVENT_ACCEPTED)
        producers = [producer_for(dsn, persistent_id="mail") for _ in range(5)]
        for producer in producers:
            producer.send(message())
        assert [pull.recv() for _ in producers] == [message().body] * 5
        assert monitor.poll(1000) != 0
        monitor.recv_multipart()
        assert monitor.poll(100) == 0
        for producer in producers:
            producer.close()
        pull.disable_monitor()
        monitor.close()

    def test_lasts_until_the_last_close(self, peer: Peer, dsn: str, message: Make) -> None:
        """One that closes takes nothing from the others; the last one flushes."""
        pull = peer(zmq.PULL, bind=dsn)
        first = producer_for(dsn, persistent_id="mail")
        second = producer_for(dsn, persistent_id="mail")
        first.send(message(b"1"))
        first.close()
        first.close()
        with pytest.raises(ClosedError):
            first.send(message())
        second.send(message(b"2"))
        second.close()
        assert [pull.recv(), pull.recv()] == [b"1", b"2"]

    def test_ends_a_send_that_waits_when_its_own_producer_closes(
        self, dsn: str, message: Make
    ) -> None:
        """The socket stays open for the others; the closed producer's send does not stay in it."""
        closing = producer_for(dsn, persistent_id="mail", send_timeout=60.0)
        other = producer_for(dsn, persistent_id="mail")

        async def send() -> None:
            waiting = asyncio.create_task(closing.asend(message()))
            await asyncio.sleep(0.02)
            await closing.aclose()
            with pytest.raises(ClosedError):
                await waiting

        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(closing.send, message())
            while closing._socket._open is None:
                time.sleep(0.001)
            asyncio.run(send())
            with pytest.raises(ClosedError):
                sending.result(10)
        other.close()

    def test_begins_anew_after_the_last_close(self, peer: Peer, dsn: str, message: Make) -> None:
        """A process may close all of them and build others."""
        pull = peer(zmq.PULL, bind=dsn)
        for _ in range(3):
            producer = producer_for(dsn, persistent_id="mail")
            producer.send(message())
            producer.close()
            assert pull.recv() == message().body

    def test_never_leads_to_another_address(self, free_dsn: Callable[[], str]) -> None:
        """The id alone is not the socket: other settings are another socket."""
        one = producer_for(free_dsn(), persistent_id="mail")
        other = producer_for(free_dsn(), persistent_id="mail")
        assert one._socket is not other._socket
        one.close()
        other.close()

    def test_is_not_shared_without_one(self, dsn: str) -> None:
        """Without an id every producer has its own socket."""
        one, other = producer_for(dsn), producer_for(dsn)
        assert one._socket is not other._socket
        one.close()
        other.close()


class TestThreads:
    def test_share_a_producer(
        self, peer: Peer, dsn: str, message: Make, request: pytest.FixtureRequest
    ) -> None:
        """Eight threads on one producer: nothing lost, nothing torn, each thread's order kept."""
        pull = peer(zmq.PULL, bind=dsn)
        producer = producer_for(dsn)
        start = threading.Barrier(8)
        # Threads take turns in the middle of a send, not every few thousand sends.
        request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
        sys.setswitchinterval(1e-6)

        def send(thread: int) -> None:
            start.wait(10)
            for number in range(1000):
                producer.send(message(b"%d:%d:" % (thread, number) + b"x" * (number % 300)))

        with ThreadPoolExecutor(8) as pool:
            running = [pool.submit(send, thread) for thread in range(8)]
            bodies = [pull.recv() for _ in range(8000)]
            for each in running:
                each.result(30)
        producer.close()
        parts = [body.split(b":") for body in bodies]
        assert all(len(rest) == int(number) % 300 for _, number, rest in parts)
        for thread in range(8):
            own = [int(number) for which, number, _ in parts if int(which) == thread]
            assert own == list(range(1000))


FORK = """
    import os, sys, threading
    from postbus.transports import WireMessage
    from postbus_zeromq import ZeroMQProducer, ZeroMQProducerSettings

    def make(text):
        return WireMessage(text.encode(), {}, "id", "name")

    keys = {"persistent_id": "mail"} if sys.argv[2] == "shared" else {}
    producer = ZeroMQProducer(ZeroMQProducerSettings(dsn=sys.argv[1], **keys))
    if sys.argv[3] == "used":
        producer.send(make("parent"))
    # A child is made at the worst time: another thread holds the locks.
    with producer._socket._lock:
        pid = os.fork()
    if pid == 0:
        for _ in range(100):
            producer.send(make("child"))
        producer.close()
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    for _ in range(100):
        producer.send(make("parent"))
    producer.close()
    """


class TestFork:
    @pytest.mark.parametrize("shared", ["shared", "alone"])
    @pytest.mark.parametrize("used", ["used", "unused"])
    def test_leaves_both_processes_with_a_producer(
        self, peer: Peer, dsn: str, shared: str, used: str
    ) -> None:
        """A child opens a socket of its own and takes nothing from its parent's."""
        pull = peer(zmq.PULL, bind=dsn)
        run_script(FORK, dsn, shared, used)
        parents = 101 if used == "used" else 100
        bodies = Counter(pull.recv() for _ in range(parents + 100))
        assert bodies == {b"parent": parents, b"child": 100}


class TestAsyncio:
    def test_sends_in_order(self, peer: Peer, dsn: str, message: Make) -> None:
        """`asend` and `asend_many` do what their plain namesakes do."""
        pull = peer(zmq.PULL, bind=dsn)

        async def send() -> None:
            producer = producer_for(dsn)
            await producer.asend(message(b"0"))
            await producer.asend_many([message(b"1"), message(b"2")])
            await producer.asend_many([])
            await producer.aclose()
            await producer.aclose()

        asyncio.run(send())
        assert [pull.recv() for _ in range(3)] == [b"0", b"1", b"2"]

    def test_waits_without_blocking_the_loop(self, peer: Peer, dsn: str, message: Make) -> None:
        """While a send waits for its peer, other tasks run."""
        bodies: list[bytes] = []

        async def send() -> None:
            producer = producer_for(dsn)
            sending = asyncio.create_task(producer.asend(message(b"early")))
            await asyncio.sleep(0.05)
            assert not sending.done()
            pull = peer(zmq.PULL, bind=dsn)
            await sending
            await producer.aclose()
            bodies.append(pull.recv())

        asyncio.run(send())
        assert bodies == [b"early"]

    def test_raises_after_the_time_out(self, dsn: str, message: Make) -> None:
        """An absent peer is an error in time on a loop as well, once for a whole batch."""

        async def send() -> None:
            producer = producer_for(dsn, send_timeout=0.1)
            with pytest.raises(ConnectionFailedError):
                await producer.asend(message())
            start = time.monotonic()
            with pytest.raises(PartiallySentError) as caught:
                await producer.asend_many([message(delay=1.0), *[message()] * 20])
            assert time.monotonic() - start < 2.0
            assert isinstance(caught.value.failed[0], UnsupportedError)
            assert isinstance(caught.value.failed[20], ConnectionFailedError)
            await producer.aclose()

        asyncio.run(send())

    def test_has_room_again_when_a_slow_peer_reads(
        self, peer: Peer, dsn: str, message: Make
    ) -> None:
        """Backpressure is a wait, and everything arrives."""
        pull = peer(zmq.PULL, bind=dsn, high_water_mark=10)

        async def send() -> None:
            producer = producer_for(dsn, high_water_mark=10)
            await producer.asend_many([message(bytes(10_000))] * 2000)
            await producer.aclose()

        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(lambda: sum(len(pull.recv()) for _ in range(2000)))
            asyncio.run(send())
            assert reading.result(30) == 20_000_000

    def test_tells_a_slow_peer_from_an_absent_one(
        self, peer: Peer, dsn: str, message: Make
    ) -> None:
        """Once something was sent, a full way is a time-out on a loop as well."""
        peer(zmq.PULL, bind=dsn, high_water_mark=1)
        keys = {"high_water_mark": 1, "linger": 0.0, "persistent_id": "one socket"}

        async def send() -> None:
            await producer_for(dsn, **keys).asend(message(bytes(100_000)))
            hasty = producer_for(dsn, send_timeout=0.1, **keys)
            with pytest.raises(TimedOutError):
                while True:
                    await hasty.asend(message(bytes(100_000)))

        asyncio.run(send())

    def test_is_ended_by_close(self, dsn: str, message: Make) -> None:
        """A task that waits learns that its producer was closed."""

        async def send() -> None:
            producer = producer_for(dsn, send_timeout=60.0)
            sending = asyncio.create_task(producer.asend(message()))
            await asyncio.sleep(0.02)
            await producer.aclose()
            with pytest.raises(ClosedError, match=re.escape(dsn)):
                await sending

        asyncio.run(send())
