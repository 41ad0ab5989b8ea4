"""A producer that asks queries, against bare pyzmq peers."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

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
from postbus.promises import Promise
from postbus.transports import AsyncQueryClient, Capabilities, Reply, WireMessage
from postbus_zeromq import ZeroMQDealerProducer, ZeroMQProducerSettings
from postbus_zeromq._dealing import DealerSocket

Peer = Callable[..., "zmq.Socket[bytes]"]
Answering = Callable[..., "zmq.Socket[bytes]"]
Make = Callable[..., WireMessage]
T = TypeVar("T")
WAIT = 20.0

MADE: list[ZeroMQDealerProducer] = []


@pytest.fixture(autouse=True)
def closed_at_the_end() -> Iterator[None]:
    """Close what a test that failed has left open, so that no other test fails with it."""
    yield
    while MADE:
        MADE.pop().close()


def producer_for(dsn: str, rpc: Any = True, **keys: Any) -> ZeroMQDealerProducer:
    keys.setdefault("send_timeout", 10.0)
    MADE.append(ZeroMQDealerProducer(ZeroMQProducerSettings(dsn=dsn, rpc=rpc, **keys)))
    return MADE[-1]


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run *main* on a loop of its own, not for ever."""
    return asyncio.run(asyncio.wait_for(main, 60.0))


def asked(producer: ZeroMQDealerProducer, message: WireMessage) -> Promise[Reply]:
    """Ask as plain code does."""
    reply = Promise[Reply]()
    producer.request(message, reply)
    return reply


def open_descriptors() -> int:
    """Count the open descriptors of this process, where the system says so."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def echo(frames: list[bytes]) -> list[list[bytes]]:
    """Answer with what was asked."""
    return [frames]


def taken(router: zmq.Socket[bytes]) -> list[bytes]:
    """Receive one query and check its frames."""
    frames = router.recv_multipart()
    identity, correlation, empty, _ = frames
    assert (bool(identity), len(correlation), empty) == (True, 16, b"")
    return frames


class TestAsk:
    def test_a_plain_rep_peer_answers(self, answering: Answering, dsn: str, message: Make) -> None:
        """Body in, body out: what a REP socket in any language does (Z01, Z03)."""
        answering(zmq.REP, lambda frames: [[b"answer to " + frames[0]]], bind=dsn)
        producer = producer_for(dsn)
        assert asked(producer, message(b"1")).result(WAIT) == Reply(b"answer to 1")
        assert run(producer.arequest(message(b"2"))) == Reply(b"answer to 2")

    def test_is_three_frames_and_the_answer_too(self, peer: Peer, dsn: str, message: Make) -> None:
        """`[correlation, "", body]` both ways: what a peer in C has to know."""
        router = peer(zmq.ROUTER, bind=dsn)
        reply = asked(producer_for(dsn), message(b'{"q":1}'))
        identity, correlation, empty, body = taken(router)
        assert body == b'{"q":1}'
        router.send_multipart([identity, correlation, empty, b"42"])
        assert reply.result(WAIT) == Reply(b"42", is_error=False)

    def test_a_frame_behind_the_body_marks_a_failure(
        self, answering: Answering, dsn: str, message: Make
    ) -> None:
        """Never guessed from the body (T10)."""
        answering(zmq.ROUTER, lambda frames: [[*frames, b"problem"]], bind=dsn)
        producer = producer_for(dsn)
        assert asked(producer, message(b"{}")).result(WAIT) == Reply(b"{}", is_error=True)
        assert run(producer.arequest(message(b"{}"))) == Reply(b"{}", is_error=True)

    def test_answers_in_any_order_find_their_queries(
        self, answering: Answering, dsn: str, message: Make
    ) -> None:
        """Fifty are under way at once and are answered backwards."""
        waiting: list[list[bytes]] = []

        def backwards(frames: list[bytes]) -> list[list[bytes]]:
            waiting.append(frames)
            return [waiting.pop() for _ in range(50)] if len(waiting) == 50 else []

        answering(zmq.ROUTER, backwards, bind=dsn)
        producer = producer_for(dsn)
        replies = [asked(producer, message(b"%d" % number)) for number in range(50)]
        assert [int(reply.result(WAIT).body) for reply in replies] == list(range(50))

    @pytest.mark.parametrize("count", [200, 3000])
    def test_hundreds_at_once_from_one_loop(
        self, answering: Answering, dsn: str, message: Make, count: int
    ) -> None:
        """More than a peer has room for wait their turn."""
        answering(zmq.ROUTER, echo, bind=dsn)
        producer = producer_for(dsn)

        async def main() -> list[int]:
            replies = await asyncio.gather(
                *[producer.arequest(message(b"%d" % number)) for number in range(count)]
            )
            return [int(reply.body) for reply in replies]

        assert run(main()) == list(range(count))

    def test_from_eight_threads_and_two_loops_at_once(
        self, answering: Answering, dsn: str, message: Make
    ) -> None:
        """One socket for all of them: nobody gets another's answer, and nobody waits for ever."""
        answering(zmq.ROUTER, echo, bind=dsn)
        producer = producer_for(dsn, rpc="both", persistent_id="shared")

        def in_thread(number: int) -> list[bytes]:
            replies = [asked(producer, message(b"%d %d" % (number, n))) for n in range(100)]
            return [reply.result(WAIT).body for reply in replies]

        def on_loop(number: int) -> list[bytes]:
            async def main() -> list[bytes]:
                bodies: list[bytes] = []
                for n in range(0, 100, 10):
                    got = await asyncio.gather(
                        *[
                            producer.arequest(message(b"%d %d" % (number, n + i)))
                            for i in range(10)
                        ]
                    )
                    bodies += [reply.body for reply in got]
                return bodies

            return run(main())

        with ThreadPoolExecutor(10) as pool:
            asking = [pool.submit(in_thread, number) for number in range(8)]
            asking += [pool.submit(on_loop, number) for number in (8, 9)]
            for number, each in enumerate(asking):
                assert each.result(60) == [b"%d %d" % (number, n) for n in range(100)]

    def test_a_promise_made_on_a_loop_may_be_awaited(
        self, answering: Answering, dsn: str, message: Make
    ) -> None:
        """`request` in asyncio code never blocks the loop."""
        answering(zmq.ROUTER, echo, bind=dsn)
        producer = producer_for(dsn)

        async def main() -> list[Reply]:
            await producer.arequest(message(b"0"))
            return [await asked(producer, message(b"%d" % n)) for n in range(3)]

        assert [reply.body for reply in run(main())] == [b"0", b"1", b"2"]

    def test_a_peer_may_connect_to_a_producer_that_binds(
        self, answering: Answering, dsn: str, message: Make
    ) -> None:
        """`bind = true` turns the direction of the connection round, not that of the queries."""
        producer = producer_for(dsn, bind=True)
        answering(zmq.REP, echo, connect=dsn)
        assert asked(producer, message(b"1")).result(WAIT) == Reply(b"1")

    def test_says_when_the_address_is_taken(self, peer: Peer, dsn: str, message: Make) -> None:
        """Both ways of asking, each time anew."""
        peer(zmq.ROUTER, bind=dsn)
        producer = producer_for(dsn, bind=True)
        for _ in range(2):
            with pytest.raises(ConnectionFailedError, match=f"cannot bind {dsn}"):
                asked(producer, message()).result(WAIT)
            with pytest.raises(ConnectionFailedError, match=f"cannot bind {dsn}"):
                run(producer.arequest(message()))

    def test_several_loops_one_after_the_other(
        self, answering: Answering, dsn: str, message: Make
    ) -> None:
        """A loop that is gone leaves no descriptor behind, and the next one is served."""
        answering(zmq.ROUTER, echo, bind=dsn)
        producer = producer_for(dsn)
        run(producer.arequest(message(b"0")))
        before = open_descriptors()
        for number in range(20):
            assert run(producer.arequest(message(b"%d" % number))) == Reply(b"%d" % number)
        gc.collect()
        assert open_descriptors() < before + 10

    def test_a_loop_that_watches_no_descriptors_is_served_by_a_thread(
        self,
        answering: Answering,
        dsn: str,
        message: Make,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The proactor loop of Windows."""

        def refuse(*_: object) -> None:
            raise NotImplementedError

        answering(zmq.ROUTER, echo, bind=dsn)
        producer = producer_for(dsn)

        async def main() -> list[Reply]:
            monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", refuse)
            return [await producer.arequest(message(b"%d" % n)) for n in range(3)]

        assert [reply.body for reply in run(main())] == [b"0", b"1", b"2"]

    def test_is_what_core_calls_a_query_client(self, dsn: str) -> None:
        """It promises answers, and with `rpc = true` nothing else (Z02, T11)."""
        producer = producer_for(dsn)
        assert isinstance(producer, AsyncQueryClient)
        limit = 1024 * 1024
        assert producer.capabilities == Capabilities(
            queries=True, queries_only=True, max_size_bytes=limit
        )
        assert producer_for(dsn, rpc="both").capabilities == Capabilities(
            queries=True, ordering=True, max_size_bytes=limit
        )


class TestRefusals:
    def test_what_zeromq_cannot_do_rejects_and_raises(self, dsn: str, message: Make) -> None:
        """Size, delay and priority, as over PUSH."""
        producer = producer_for(dsn, max_message_bytes=10)
        for wrong, error, text in (
            (message(b"x" * 11), RejectedError, "11 bytes"),
            (message(b"x", delay=1.0), UnsupportedError, "no delay"),
            (message(b"x", priority=3), UnsupportedError, "no priority"),
        ):
            with pytest.raises(error, match=text):
                asked(producer, wrong).result(WAIT)
            with pytest.raises(error, match=text):
                run(producer.arequest(wrong))

    def test_a_command_is_refused_over_a_socket_for_queries(self, dsn: str, message: Make) -> None:
        """Z02: an rpc producer takes nothing to push and forget."""
        producer = producer_for(dsn)
        with pytest.raises(UnsupportedError, match=r'only asks queries, .* write rpc = "both"'):
            producer.send(message())
        with pytest.raises(UnsupportedError):
            run(producer.asend(message()))
        with pytest.raises(PartiallySentError) as caught:
            producer.send_many([message(), message()])
        assert {type(error) for error in caught.value.failed.values()} == {UnsupportedError}
        producer.close()
        with pytest.raises(ClosedError):
            producer.send(message())

    def test_an_answer_that_is_none_rejects_its_query(
        self, peer: Peer, dsn: str, message: Make
    ) -> None:
        """At once: its asker need not wait for the deadline. The next answer is read as usual."""
        router = peer(zmq.ROUTER, bind=dsn)
        producer = producer_for(dsn, max_message_bytes=10)
        for made in (
            [],
            [b""],
            [b"x", b"1"],
            [b"", b"1", b"trouble"],
            [b"", b"1", b"problem", b"more"],
            [b"", b"x" * 11],
        ):
            wrong, right = asked(producer, message(b"1")), asked(producer, message(b"2"))
            # The first query of all waits for the connection: a second one may overtake it.
            (identity, correlation, *_), (_, second, *_) = sorted(
                (taken(router), taken(router)), key=lambda frames: frames[-1]
            )
            router.send_multipart([identity, correlation, *made])
            router.send_multipart([identity, second, b"", b"2"])
            with pytest.raises(RejectedError, match=r"is no reply|11 bytes, more than max_"):
                wrong.result(WAIT)
            assert right.result(WAIT) == Reply(b"2")

    def test_a_late_and_an_unknown_answer_are_dropped(
        self, peer: Peer, dsn: str, message: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whoever gave up gets nothing, and nobody else gets it either (T05)."""
        caplog.set_level(logging.DEBUG, "postbus.zeromq")
        router = peer(zmq.ROUTER, bind=dsn)
        producer = producer_for(dsn)
        promise = asked(producer, message(b"1"))
        late = taken(router)
        promise.reject(TimedOutError("too late"))

        async def give_up() -> list[bytes]:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await producer.arequest(message(b"2"))
            return await asyncio.to_thread(taken, router)

        too_late = run(give_up())
        assert (producer._socket._futures, producer._socket._promises) == ({}, {})
        router.send_multipart(late)
        router.send_multipart(too_late)
        router.send_multipart([late[0], b"unknown", b"", b"1"])
        answered = asked(producer, message(b"3"))
        router.send_multipart(taken(router))
        assert answered.result(WAIT) == Reply(b"3")
        dropped = [r for r in caplog.records if r.message == "late or unknown reply dropped"]
        assert len(dropped) == 3
        with pytest.raises(TimedOutError):
            promise.result()


class TestPeerAway:
    def test_nobody_there_rejects_in_time(self, dsn: str, message: Make) -> None:
        """After `send_timeout`, with what to do; nothing is left behind (Z04)."""
        producer = producer_for(dsn, send_timeout=0.1)
        started = time.monotonic()
        reply = asked(producer, message())
        assert time.monotonic() - started < 5
        with pytest.raises(ConnectionFailedError, match="start a consumer with rpc = true there"):
            reply.result(WAIT)
        with pytest.raises(ConnectionFailedError):
            run(producer.arequest(message()))
        assert time.monotonic() - started >= 0.2
        assert (producer._socket._futures, producer._socket._promises) == ({}, {})
        both = producer_for(dsn, send_timeout=0.0, rpc="both")
        with pytest.raises(ConnectionFailedError, match='with rpc = "both" there'):
            asked(both, message()).result(WAIT)

    def test_a_query_waits_for_a_peer_that_comes(
        self, answering: Answering, dsn: str, message: Make
    ) -> None:
        """Not longer than `send_timeout`, in order; who gave up is passed over."""
        producer = producer_for(dsn, send_timeout=WAIT)
        seen: list[bytes] = []

        def note(frames: list[bytes]) -> list[list[bytes]]:
            seen.append(frames[-1])
            return [frames]

        async def main() -> list[Reply]:
            plain = [asked(producer, message(b"%d" % n)) for n in range(3)]
            natively = [asyncio.create_task(producer.arequest(message(b"%d" % n))) for n in (3, 4)]
            await asyncio.sleep(0)
            plain[1].reject(TimedOutError("its deadline"))
            natively[0].cancel()
            answering(zmq.ROUTER, note, bind=dsn)
            return [await plain[0], await plain[2], await natively[1]]

        assert [reply.body for reply in run(main())] == [b"0", b"2", b"4"]
        assert seen == [b"0", b"2", b"4"]

    def test_a_peer_that_went_and_came_back_answers_again(
        self, peer: Peer, dsn: str, message: Make
    ) -> None:
        """What was on its way is lost, later queries are not, and none gets an old answer."""
        producer = producer_for(dsn, send_timeout=0.2)
        router = peer(zmq.ROUTER, bind=dsn)
        lost = asked(producer, message(b"lost"))
        old = taken(router)
        router.close()
        error: Exception | None = None
        while not isinstance(error, TimedOutError):
            reply = asked(producer, message(b"nobody"))
            with pytest.raises(TimeoutError) as caught:
                reply.result(1.0)  # one that left before libzmq saw it waits for its deadline
            error = caught.value
        assert "those who answer are gone" in str(error)
        router = peer(zmq.ROUTER, bind=dsn)
        again = producer_for(dsn)
        reply = asked(again, message(b"again"))
        identity, *rest = taken(router)
        router.send_multipart([identity, *old[1:]])
        router.send_multipart([identity, *rest])
        assert reply.result(WAIT) == Reply(b"again")
        assert not lost.done()
        lost.reject(TimedOutError("its deadline"))

    def test_a_peer_that_reads_nothing_rejects_what_it_has_no_room_for(
        self, peer: Peer, dsn: str, message: Make
    ) -> None:
        """Queries do not pile up: `send_timeout` bounds how long one waits for room."""
        router = peer(zmq.ROUTER, bind=dsn, high_water_mark=1)
        shared: dict[str, Any] = {"persistent_id": "shared", "high_water_mark": 1}
        patient = producer_for(dsn, send_timeout=WAIT, **shared)
        connected = asked(patient, message())
        taken(router)
        producer = producer_for(dsn, send_timeout=0.3, **shared)
        body = message(b"x" * 500_000)
        replies = [asked(producer, body) for _ in range(60)]
        with pytest.raises(TimedOutError, match="or 1 messages behind"):
            replies[-1].result(WAIT)
        # Those that left wait for their answers.
        assert not all(reply.done() for reply in replies)
        producer.close()
        patient.close()
        for reply in (connected, *replies):
            assert reply.exception() is not None

    def test_the_peer_may_vanish_between_the_frames(self, dsn: str, message: Make) -> None:
        """The query is lost with it; the frames of the next one stay together."""
        producer = producer_for(dsn)
        sent: list[bytes] = []

        def send(frame: bytes, flags: int) -> None:
            sent.append(frame)
            if frame in {b"", b"body"}:
                raise zmq.Again

        socket = producer._socket
        socket._send = send
        assert socket.ask(b"correlation", b"body")
        assert sent == [b"correlation", b"", b"body"]

    def test_what_the_socket_raises_is_turned_into_its_own_error(
        self, dsn: str, message: Make
    ) -> None:
        """Nothing of pyzmq leaves it, also where somebody else sends the query."""
        producer = producer_for(dsn)

        def fail(frame: bytes, flags: int) -> None:
            raise zmq.ZMQError(zmq.ENOTSUP)

        producer._socket._send = fail
        with pytest.raises(UnsupportedError, match="cannot send to"):
            asked(producer, message()).result(WAIT)

        def refuse_then_fail(frame: bytes, flags: int) -> None:
            producer._socket._send = fail
            raise zmq.Again

        producer._socket._send = refuse_then_fail
        with pytest.raises(UnsupportedError, match="cannot send to"):
            asked(producer, message()).result(WAIT)


class TestClose:
    def test_tells_everybody_who_waits(self, peer: Peer, dsn: str, message: Make) -> None:
        """Whether the query has left or not, on a loop or not; at once, and again for nothing."""
        peer(zmq.ROUTER, bind=dsn)
        producer = producer_for(dsn)

        async def main() -> None:
            replies = [asked(producer, message()) for _ in range(3)]
            waiting = asyncio.create_task(producer.arequest(message()))
            await asyncio.sleep(0)
            await producer.aclose()
            for reply in replies:
                with pytest.raises(ClosedError):
                    await reply
            with pytest.raises(ClosedError):
                await waiting
            await producer.aclose()
            with pytest.raises(ClosedError):
                await producer.arequest(message())

        run(main())
        producer.close()
        with pytest.raises(ClosedError):
            asked(producer, message()).result(WAIT)

    def test_leaves_nothing_to_watch(self, dsn: str) -> None:
        """A query that comes at the same moment is told so by its send."""
        producer = producer_for(dsn)
        producer.close()

        async def main() -> None:
            producer._socket.watch_on(asyncio.get_running_loop())

        run(main())
        assert len(producer._socket._loops) == 0

    def test_each_error_is_its_own(self, dsn: str, message: Make) -> None:
        """Core notes the envelope on the error, so no two queries may share one."""
        producer = producer_for(dsn)
        replies = [asked(producer, message()) for _ in range(2)]
        producer.close()
        first, second = (reply.exception() for reply in replies)
        assert isinstance(first, ClosedError)
        assert first is not second

    def test_ends_a_wait_in_another_thread(self, dsn: str, message: Make) -> None:
        """Also where no peer was ever there."""
        producer = producer_for(dsn, send_timeout=60.0)
        reply = asked(producer, message())
        closing = threading.Timer(0.05, producer.close)
        closing.start()
        with pytest.raises(ClosedError):
            reply.result(WAIT)
        closing.join()

    def test_leaves_the_queries_of_those_who_share_the_socket(
        self, peer: Peer, dsn: str, message: Make
    ) -> None:
        """One `persistent_id`, two producers: each gives up its own."""
        router = peer(zmq.ROUTER, bind=dsn)
        first = producer_for(dsn, persistent_id="shared")
        second = producer_for(dsn, persistent_id="shared")
        assert first._socket is second._socket
        mine, others = asked(first, message(b"1")), asked(second, message(b"2"))
        answers = [taken(router), taken(router)]
        first.close()
        with pytest.raises(ClosedError):
            mine.result(WAIT)
        for each in answers:
            router.send_multipart(each)
        assert others.result(WAIT) == Reply(b"2")

    def test_a_pushing_socket_is_never_shared_with_an_asking_one(self, dsn: str) -> None:
        """One id and one address, two kinds."""
        asking = producer_for(dsn, persistent_id="shared", linger=0.0)
        from postbus_zeromq import ZeroMQProducer

        pushing = ZeroMQProducer(
            ZeroMQProducerSettings(dsn=dsn, persistent_id="shared", linger=0.0)
        )
        assert isinstance(asking._socket, DealerSocket)
        assert not isinstance(pushing._socket, DealerSocket)
        pushing.close()

    def test_takes_the_socket_off_the_loop(
        self, answering: Answering, dsn: str, message: Make
    ) -> None:
        """In the loop's own thread at once, from another one with its next turn."""
        answering(zmq.ROUTER, echo, bind=dsn)

        async def main() -> None:
            loop = asyncio.get_running_loop()
            for close_elsewhere in (False, True):
                producer = producer_for(dsn)
                await producer.arequest(message())
                (watch,) = producer._socket._loops.values()
                descriptor = watch._descriptor
                if close_elsewhere:
                    await producer.aclose()
                    await asyncio.sleep(0)
                else:
                    producer.close()
                assert not loop.remove_reader(descriptor)
                with pytest.raises(OSError, match="Bad file descriptor"):
                    os.fstat(descriptor)
                producer._socket.read()

        run(main())

    def test_does_not_mind_a_loop_that_is_closed(
        self, answering: Answering, dsn: str, message: Make
    ) -> None:
        """Whether anybody still holds it or not."""
        answering(zmq.ROUTER, echo, bind=dsn)
        producer = producer_for(dsn)
        loop = asyncio.new_event_loop()
        loop.run_until_complete(producer.arequest(message()))
        (watch,) = producer._socket._loops.values()
        loop.close()
        producer.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(watch._descriptor)
        del loop
        watch.stop()

    def test_an_answer_for_a_loop_that_is_closed_is_dropped(
        self, peer: Peer, dsn: str, message: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Its waiter can never be told."""
        caplog.set_level(logging.DEBUG, "postbus.zeromq")
        router = peer(zmq.ROUTER, bind=dsn)
        producer = producer_for(dsn)
        loop = asyncio.new_event_loop()
        task = loop.create_task(producer.arequest(message(b"1")))
        loop.run_until_complete(asyncio.sleep(0))
        frames = taken(router)
        loop.close()
        router.send_multipart(frames)
        reply = asked(producer, message(b"2"))
        router.send_multipart(taken(router))
        assert reply.result(WAIT) == Reply(b"2")
        assert "an answer came after its waiter's loop was closed" in caplog.messages
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # the test left it behind


FORK = """
    import os, sys, warnings
    from postbus.promises import Promise
    from postbus.transports import WireMessage
    from postbus_zeromq import ZeroMQDealerProducer, ZeroMQProducerSettings

    # Newer Pythons warn of forks beside threads; that is what is tried here.
    warnings.simplefilter("ignore", DeprecationWarning)

    def ask(who, number):
        body = f"{who} {number}".encode()
        reply = Promise()
        producer.request(WireMessage(body, {}, "an-id", "shop.ask"), reply)
        assert reply.result(20).body == body, reply

    producer = ZeroMQDealerProducer(
        ZeroMQProducerSettings(dsn=sys.argv[1], rpc=True, persistent_id="shared")
    )
    ask("parent", 0)
    with producer._socket._lock:
        pid = os.fork()
    who = "child" if pid == 0 else "parent"
    for number in range(100):
        ask(who, number)
    producer.close()
    if pid == 0:
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    print("both were answered")
"""


class TestFork:
    def test_leaves_both_processes_with_a_socket(self, answering: Answering, dsn: str) -> None:
        """The child asks over a socket and a thread of its own, made at the worst time."""
        answering(zmq.ROUTER, echo, bind=dsn)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(FORK), dsn],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            env=dict(os.environ),
        )
        assert (done.returncode, done.stderr, done.stdout) == (0, "", "both were answered\n")


class TestBoth:
    def test_what_wants_no_answer_is_one_frame(self, peer: Peer, dsn: str, message: Make) -> None:
        """As over PUSH; queries go over the same socket."""
        router = peer(zmq.ROUTER, bind=dsn)
        producer = producer_for(dsn, rpc="both")
        producer.send(message(b"1"))
        producer.send_many([message(b"2")])
        run(producer.asend(message(b"3")))
        reply = asked(producer, message(b"4"))
        assert [router.recv_multipart()[1:] for _ in range(3)] == [[b"1"], [b"2"], [b"3"]]
        router.send_multipart(taken(router))
        assert reply.result(WAIT) == Reply(b"4")

    def test_a_close_flushes_what_was_sent(self, peer: Peer, dsn: str, message: Make) -> None:
        """Commands leave within `linger`, as over PUSH."""
        router = peer(zmq.ROUTER, bind=dsn)
        producer = producer_for(dsn, rpc="both")
        for number in range(500):
            producer.send(message(b"%d" % number))
        producer.close()
        assert [int(router.recv_multipart()[1]) for _ in range(500)] == list(range(500))

    @pytest.mark.parametrize("here", [True, False], ids=["here", "elsewhere"])
    @pytest.mark.parametrize("way", ["send", "request", "has_room"])
    def test_a_used_up_signal_is_made_good(
        self, peer: Peer, dsn: str, message: Make, way: str, *, here: bool
    ) -> None:
        """Who takes the only signal of an answer, while its loop is busy, sees to the answer."""
        router = peer(zmq.ROUTER, bind=dsn)
        producer = producer_for(dsn, rpc="both")
        use_up: Callable[[], object] = {
            "send": lambda: producer.send(message(b"x")),
            "request": lambda: asked(producer, message(b"x")),
            "has_room": producer._socket.has_room,
        }[way]

        async def main() -> list[Reply]:
            tasks = [asyncio.create_task(producer.arequest(message(b"1"))) for _ in range(2)]
            first, second = await asyncio.to_thread(lambda: [taken(router), taken(router)])
            router.send_multipart(first)
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            # The loop stands still from here on, so that it sees no signal.
            router.send_multipart(second)
            assert zmq.zmq_poll([(producer._socket._fd, zmq.POLLIN)], 10_000)
            if here:
                use_up()
            else:
                thread = threading.Thread(target=use_up)
                thread.start()
                thread.join()
            return await asyncio.gather(*tasks)

        assert run(main()) == [Reply(b"1")] * 2

    def test_sending_uses_up_no_signal_of_an_answer(
        self, answering: Answering, dsn: str, message: Make
    ) -> None:
        """A send may take the only signal of another's answer, who gets it all the same."""
        answering(
            zmq.ROUTER,
            lambda frames: [frames] if len(frames) == 4 else [],
            bind=dsn,
            high_water_mark=10,
        )
        producer = producer_for(dsn, rpc="both", high_water_mark=10)
        ended = threading.Event()

        def send() -> None:
            while not ended.is_set():
                producer.send(message(b"x"))

        async def main() -> None:
            for number in range(100):
                assert (await producer.arequest(message(b"%d" % number))).body == b"%d" % number
            for number in range(100):
                assert (await asked(producer, message(b"%d" % number))).body == b"%d" % number

        senders = [threading.Thread(target=send) for _ in range(2)]
        for thread in senders:
            thread.start()
        try:
            run(main())
        finally:
            ended.set()
            for thread in senders:
                thread.join(20)

    def test_a_flood_of_answers_leaves_others_a_turn(
        self, peer: Peer, dsn: str, message: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever reads stops after a burst; the thread goes on with the rest."""
        monkeypatch.setattr("postbus_zeromq._dealing._BURST", 2)
        router = peer(zmq.ROUTER, bind=dsn)
        producer = producer_for(dsn)

        async def main() -> list[Reply]:
            asking = [asyncio.create_task(producer.arequest(message(b"%d" % n))) for n in range(9)]
            frames = await asyncio.to_thread(lambda: [taken(router) for _ in range(9)])
            for each in frames:
                router.send_multipart(each)
            return await asyncio.gather(*asking)

        assert [int(reply.body) for reply in run(main())] == list(range(9))
