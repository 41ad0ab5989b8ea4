"""Queries from bus to bus over ZeroMQ: configuration, errors, deadlines, peers that die."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import attrs
import pytest
import zmq

from postbus import (
    Command,
    CommandBus,
    Event,
    MessageCatalog,
    MessageProducerPlugin,
    Query,
    QueryBus,
    build,
)
from postbus.errors import (
    ConfigurationError,
    ConnectionFailedError,
    DecodeError,
    HandlerFailedError,
    NoHandlerError,
    RejectedError,
    TimedOutError,
    UnsupportedError,
)
from postbus.runtime import Postbus
from postbus_zeromq import (
    ZeroMQContainer,
    ZeroMQDealerProducer,
    ZeroMQProducer,
    ZeroMQProducerSettings,
)

Peer = Callable[..., "zmq.Socket[bytes]"]
Answering = Callable[..., "zmq.Socket[bytes]"]
WAIT = 20.0


@attrs.frozen
class Sum(Query[int], name="calc.sum"):
    """A query."""

    numbers: tuple[int, ...]


@attrs.frozen
class Nothing(Query[int], name="calc.nothing"):
    """A query that the other side does not know."""


@attrs.frozen
class Reset(Command, name="calc.reset"):
    """A command."""


@attrs.frozen
class WasReset(Event, name="calc.was-reset"):
    """An event."""


class TooLargeError(Exception):
    """A failure that the application has given a code."""

    code = "too-large"


def add(query: Sum) -> int:
    """Find the sum."""
    if not query.numbers:
        raise TooLargeError
    return sum(query.numbers)


def catalog() -> MessageCatalog:
    known = MessageCatalog()
    for each in (Sum, Nothing, Reset, WasReset):
        known.add(each)
    return known


def section(dsn: str, rpc: Any = True, **producer: Any) -> dict[str, Any]:
    """Both sides in one dict."""
    return {
        "producers": {"calc": {"transport": "zeromq", "dsn": dsn, "rpc": rpc, **producer}},
        "consumers": {"calc": {"transport": "zeromq", "dsn": dsn, "rpc": rpc, "concurrency": 8}},
        "query_bus": {
            "router": {
                "routes": {"calc.sum": "add"},
                "send": {"calc.*": "producers.calc"},
            }
        },
    }


@pytest.fixture
def calc(dsn: str) -> Generator[Postbus]:
    """An application that asks itself, over a socket."""
    with build(section(dsn), {"add": add}, catalog()) as postbus, postbus.worker().running():
        yield postbus


def assert_nothing_waits(zeromq: ZeroMQContainer) -> None:
    """Check that the producer remembers no query."""
    producer = zeromq.producer()
    assert isinstance(producer, ZeroMQDealerProducer)
    assert (producer._socket._futures, producer._socket._promises) == ({}, {})


class TestFromBusToBus:
    def test_the_answer_comes_back(self, calc: Postbus) -> None:
        """As a promise in plain code, as itself in asyncio code; the finder runs in the worker."""
        assert calc.query_bus.dispatch(Sum((1, 2, 3))).result(WAIT) == 6

        async def main() -> list[int]:
            first = calc.query_bus.dispatch(Sum((4,)))
            return [await first, await calc.query_bus.adispatch(Sum((5, 6)))]

        assert asyncio.run(main()) == [4, 11]

    def test_hundreds_at_once_from_one_loop_and_from_threads(self, calc: Postbus) -> None:
        """Everybody gets the answer to the question asked."""

        async def main() -> list[int]:
            asking = [calc.query_bus.adispatch(Sum((n, 1))) for n in range(200)]
            return await asyncio.gather(*asking)

        def in_thread(number: int) -> list[int]:
            promises = [calc.query_bus.dispatch(Sum((number, n))) for n in range(50)]
            return [promise.result(WAIT) for promise in promises]

        with ThreadPoolExecutor(9) as pool:
            on_loop = pool.submit(asyncio.run, main())
            in_threads = [pool.submit(in_thread, number * 1000) for number in range(8)]
            assert on_loop.result(60) == [n + 1 for n in range(200)]
            for number, each in enumerate(in_threads):
                assert each.result(60) == [number * 1000 + n for n in range(50)]

    def test_what_the_finder_raised_comes_back_as_its_code(self, calc: Postbus) -> None:
        """Typed the same way as here, with the envelope that was asked (T10, B34)."""
        with pytest.raises(HandlerFailedError) as caught:
            calc.query_bus.dispatch(Sum(())).result(WAIT)
        assert (caught.value.code, caught.value.__cause__) == ("too-large", None)
        assert caught.value.envelope is not None
        assert caught.value.envelope.message == Sum(())
        with pytest.raises(HandlerFailedError, match="too-large"):
            asyncio.run(calc.query_bus.adispatch(Sum(())))

    def test_a_name_that_nobody_answers_is_refused_by_the_other_side(self, calc: Postbus) -> None:
        """A query never falls through (T11)."""
        with pytest.raises(NoHandlerError):
            calc.query_bus.dispatch(Nothing()).result(WAIT)

    def test_a_name_that_is_not_known_there_is_refused(self, calc: Postbus, dsn: str) -> None:
        """The worker's catalogue is closed: what it does not know it does not read."""

        @attrs.frozen
        class Strange(Query[int], name="calc.strange"):
            """A query of another application."""

        with ZeroMQContainer(config={"dsn": dsn, "rpc": True}) as zeromq:
            promise = zeromq.query_bus().dispatch(Strange())
            with pytest.raises(RejectedError, match="unknown"):
                promise.result(WAIT)

    def test_queries_commands_and_events_share_one_producer(self, dsn: str) -> None:
        """`rpc = "both"`: one section, one socket, three buses (Z01, Z02)."""
        heard: list[Any] = []
        config = section(dsn, rpc="both")
        for bus, name in (("command_bus", "calc.reset"), ("event_bus", "calc.was-reset")):
            config[bus] = {"router": {"routes": {name: "note"}, "send": {name: "producers.calc"}}}
        services = {"add": add, "note": heard.append}
        with build(config, services, catalog()) as calc, calc.worker().running():
            calc.command_bus.dispatch(Reset())
            calc.event_bus.dispatch(WasReset())
            assert calc.query_bus.dispatch(Sum((1, 2))).result(WAIT) == 3
            while len(heard) < 2:
                calc.query_bus.dispatch(Sum((1,))).result(WAIT)
        assert heard == [Reset(), WasReset()]


class TestRefusals:
    def test_a_route_over_the_wrong_socket_is_refused_at_build(self, dsn: str) -> None:
        """A query over PUSH, a command and an event over a DEALER for queries (Z02, T11)."""
        one_way = section(dsn, rpc=False)
        with pytest.raises(ConfigurationError) as caught:
            build(one_way, {"add": add}, catalog())
        (problem,) = caught.value.problems
        assert problem.path == 'query_bus.router.send."calc.*"'
        assert problem.suggestion.startswith("set rpc")
        for bus, name in (("command_bus", "calc.reset"), ("event_bus", "calc.was-reset")):
            config = section(dsn) | {bus: {"router": {"send": {name: "producers.calc"}}}}
            with pytest.raises(ConfigurationError) as caught:
                build(config, {"add": add}, catalog())
            (problem,) = caught.value.problems
            assert problem.path == f'{bus}.router.send."{name}"'
            assert problem.suggestion.startswith('leave rpc out, or write rpc = "both"')

    def test_a_message_over_the_wrong_socket_is_refused_where_no_section_says_so(
        self, dsn: str
    ) -> None:
        """Buses put together in code: by the dispatch, before anything is opened (Z02)."""
        with ZeroMQContainer(config={"dsn": dsn, "rpc": True}) as zeromq:
            bus = CommandBus()
            bus.utilize(MessageProducerPlugin(zeromq.producer()))
            with pytest.raises(UnsupportedError, match=r"calc\.reset: .* only asks queries"):
                bus.dispatch(Reset())
        with ZeroMQContainer(config={"dsn": dsn}) as zeromq:
            queries = QueryBus()
            queries.utilize(MessageProducerPlugin(zeromq.producer()))
            with pytest.raises(UnsupportedError, match=r"calc\.sum: .* only sends"):
                queries.dispatch(Sum(())).result()

    def test_what_requires_answers_is_told_of_a_producer_that_brings_none(self, dsn: str) -> None:
        """`requires` holds with `rpc`, and is refused without."""
        build(section(dsn, requires=["queries"]), {"add": add}, catalog()).close()
        config = {"producers": {"calc": {"transport": "zeromq", "requires": ["queries"]}}}
        with pytest.raises(ConfigurationError, match="queries"):
            build(config)

    def test_a_query_over_push_never_meets_a_consumer_that_answers(
        self, peer: Peer, dsn: str
    ) -> None:
        """Libzmq connects no PUSH to a ROUTER: the send says that nobody is there."""
        peer(zmq.ROUTER, bind=dsn)
        producer = ZeroMQProducer(ZeroMQProducerSettings(dsn=dsn, send_timeout=0.2))
        bus = CommandBus()
        bus.utilize(MessageProducerPlugin(producer))
        with pytest.raises(ConnectionFailedError):
            bus.dispatch(Reset())
        producer.close()


class TestPlainPeer:
    def test_a_rep_socket_answers_with_json(self, answering: Answering, dsn: str) -> None:
        """Thirty lines of C will do: a frame of JSON in, a frame of JSON out (Z01)."""

        def answer(frames: list[bytes]) -> list[list[bytes]]:
            (body,) = frames
            return [[str(sum(json.loads(body)["payload"]["numbers"])).encode()]]

        answering(zmq.REP, answer, bind=dsn)
        with ZeroMQContainer(config={"dsn": dsn, "rpc": True}) as zeromq:
            bus = zeromq.query_bus()
            assert bus.dispatch(Sum((1, 2))).result(WAIT) == 3
            assert asyncio.run(bus.adispatch(Sum((3, 4)))) == 7

    def test_an_answer_of_the_wrong_type_is_refused(self, answering: Answering, dsn: str) -> None:
        """Decoded the same way whatever the transport (T10)."""
        answering(zmq.REP, lambda _: [[b'"three"']], bind=dsn)
        with ZeroMQContainer(config={"dsn": dsn, "rpc": True}) as zeromq:
            promise = zeromq.query_bus().dispatch(Sum((1, 2)))
            with pytest.raises(DecodeError):
                promise.result(WAIT)


class TestDeadline:
    def test_rejects_what_nobody_answered_and_drops_the_late_answer(
        self, peer: Peer, dsn: str
    ) -> None:
        """Each query has its own; nothing of one that is over is kept (T05)."""
        router = peer(zmq.ROUTER, bind=dsn)
        with ZeroMQContainer(config={"dsn": dsn, "rpc": True}) as zeromq:
            bus = zeromq.query_bus()
            patient = bus.dispatch(Sum((1,)), timeout=WAIT)
            started = time.monotonic()
            hasty = bus.dispatch(Sum((2,)), timeout=0.3)
            with pytest.raises(TimedOutError):
                hasty.result()
            with pytest.raises(TimedOutError):
                asyncio.run(bus.adispatch(Sum((3,)), timeout=0.1))
            assert 0.3 < time.monotonic() - started < 15
            asked = {}
            for _ in range(3):
                *route, body = router.recv_multipart()
                asked[json.loads(body)["payload"]["numbers"][0]] = route
            for number, route in asked.items():
                router.send_multipart([*route, b"%d" % number])
            assert patient.result(WAIT) == 1
            assert_nothing_waits(zeromq)

    def test_travels_with_the_query(self, peer: Peer, dsn: str) -> None:
        """The other side need not work for nobody."""
        router = peer(zmq.ROUTER, bind=dsn)
        with ZeroMQContainer(config={"dsn": dsn, "rpc": True}) as zeromq:
            promise = zeromq.query_bus().dispatch(Sum((1,)), timeout=60.0)
            headers = json.loads(router.recv_multipart()[-1])["headers"]
            assert "deadline" in headers
        assert promise.exception() is not None


PEER = """
    import sys, zmq

    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(sys.argv[1])
        print("ready", flush=True)
        waiting = []
        while True:
            waiting.append(router.recv_multipart())
            # Out of order: those that are here are answered backwards.
            while not router.poll(0) and waiting:
                *route, body = waiting.pop()
                number = body.split(b'"numbers":[')[1].split(b"]")[0]
                router.send_multipart([*route, number])
"""


@contextmanager
def peer_process(dsn: str) -> Generator[subprocess.Popen[str]]:
    """Run a peer that answers with the number asked, and kill it at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PEER), dsn], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()


class TestPeerThatDies:
    def test_rejects_in_time_and_answers_again_when_it_is_back(self, dsn: str) -> None:
        """SIGKILL in the middle of a query; no step of the asker's is needed afterwards (T13)."""
        with ZeroMQContainer(config={"dsn": dsn, "rpc": True, "send_timeout": 20.0}) as zeromq:
            bus = zeromq.query_bus()
            with peer_process(dsn):
                assert bus.dispatch(Sum((7,))).result(WAIT) == 7
            started = time.monotonic()
            with pytest.raises(TimedOutError):
                bus.dispatch(Sum((8,)), timeout=0.5).result()
            assert time.monotonic() - started < 10
            with peer_process(dsn):
                assert bus.dispatch(Sum((9,))).result(WAIT) == 9
                assert asyncio.run(bus.adispatch(Sum((10,)))) == 10

    def test_no_query_outlives_its_deadline_and_none_gets_anothers_answer(self, dsn: str) -> None:
        """Four kills among a stream of queries: a small version of the chaos run."""
        deadline, wrong, late, answered = 0.5, [], [], 0

        async def ask(bus: QueryBus, number: int) -> None:
            nonlocal answered
            started = time.monotonic()
            try:
                if await bus.adispatch(Sum((number,)), timeout=deadline) != number:
                    wrong.append(number)
                answered += 1
            except (TimedOutError, ConnectionFailedError):
                pass
            if time.monotonic() - started > deadline + 5:
                late.append(number)

        async def main(bus: QueryBus) -> None:
            number = 0
            for _ in range(4):
                tasks: list[asyncio.Task[None]] = []
                with peer_process(dsn):
                    before = answered
                    while answered < before + 100:
                        number += 10
                        batch = [asyncio.create_task(ask(bus, number + i)) for i in range(10)]
                        tasks += batch
                        await asyncio.wait(batch, return_when=asyncio.FIRST_COMPLETED)
                    tasks += [asyncio.create_task(ask(bus, n)) for n in range(-10, 0)]
                await asyncio.gather(*tasks)

        with ZeroMQContainer(config={"dsn": dsn, "rpc": True}) as zeromq:
            asyncio.run(asyncio.wait_for(main(zeromq.query_bus()), 100))
            assert_nothing_waits(zeromq)
        assert (wrong, late) == ([], [])
