"""The rows of the ZeroMQ benchmark about queries: so many under way at once, 1 kB each way.

The limit is a bare DEALER with a poller against a bare ROUTER that echoes, no asyncio on either
side, with the three frames that a REP peer needs to answer. Two frames, without the empty one
between correlation and body, are a row of their own: what the protocol costs.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq
import zmq.asyncio
from _harness import Receiver, Table
from _zeromq_receivers import PATIENCE, Ask

from postbus import MessageProducerPlugin, QueryBus
from postbus.messages import new_id
from postbus.promises import Promise
from postbus.transports import CommonSettings, Reply, WireMessage
from postbus_zeromq import ZeroMQDealerProducer
from postbus_zeromq.transport import ZEROMQ

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

__all__ = ["query_tables"]

RECEIVERS = Path(__file__).with_name("_zeromq_receivers.py")
BARE = "bare DEALER, poller"
TWO_FRAMES = "bare DEALER, two frames"
ASYNCIO = "zmq.asyncio DEALER"
BODY = b'{"text":"' + b"x" * 989 + b'"}'
SLICE = 0.3


def dsn_of(table: Table, role: str) -> str:
    other = table.resources.enter_context(Receiver(RECEIVERS, role))
    return f"tcp://127.0.0.1:{other.ports[0]}"


def bare(
    table: Table, in_flight: int, role: str = "echo", *, between: tuple[bytes, ...] = (b"",)
) -> Callable[[int], float]:
    """Ask with as little as pyzmq allows."""
    socket = zmq.Context.instance().socket(zmq.DEALER)
    table.resources.callback(socket.close, linger=0)
    socket.setsockopt(zmq.RCVTIMEO, PATIENCE * 1000)
    socket.connect(dsn_of(table, role))
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    rest = [*between, BODY]

    def measure(n: int) -> float:
        send, recv, pending = socket.send_multipart, socket.recv_multipart, set[bytes]()
        sent = got = 0
        start = time.perf_counter()
        while got < n:
            while sent < n and sent - got < in_flight:
                correlation = sent.to_bytes(8, "little")
                pending.add(correlation)
                send([correlation, *rest])
                sent += 1
            poller.poll(PATIENCE * 1000)
            try:
                while True:
                    pending.remove(recv(zmq.NOBLOCK)[0])
                    got += 1
            except zmq.Again:
                pass
        return time.perf_counter() - start

    return measure


def concurrently(
    table: Table, in_flight: int, ask: Callable[[], Coroutine[Any, Any, object]]
) -> Callable[[int], float]:
    """Ask from so many tasks of one loop."""

    async def loop(n: int) -> None:
        numbers = iter(range(n))

        async def client() -> None:
            for _ in numbers:
                await ask()

        await asyncio.gather(*[client() for _ in range(in_flight)])

    return table.aclocked(loop)


def zmq_asyncio(table: Table, in_flight: int) -> Callable[[int], float]:
    runner = table.runner
    context = zmq.asyncio.Context.shadow(zmq.Context.instance())
    socket = context.socket(zmq.DEALER)
    table.resources.callback(socket.close, linger=0)
    socket.connect(dsn_of(table, "echo"))
    pending: dict[bytes, asyncio.Future[bytes]] = {}
    numbers = iter(range(1 << 62))

    async def read() -> None:
        while True:
            correlation, _, body = await socket.recv_multipart()
            pending.pop(correlation).set_result(body)

    async def start() -> asyncio.Task[None]:
        return asyncio.create_task(read())

    reading = runner.run(start())
    table.resources.callback(reading.cancel)

    async def ask() -> object:
        correlation = next(numbers).to_bytes(8, "little")
        answer = pending[correlation] = asyncio.get_running_loop().create_future()
        await socket.send_multipart([correlation, b"", BODY])
        return await answer

    return concurrently(table, in_flight, ask)


def producer(table: Table, role: str) -> ZeroMQDealerProducer:
    settings = ZEROMQ.producer_settings(dsn=dsn_of(table, role), rpc=True)
    made = ZEROMQ.make_producer(settings, CommonSettings(name="bench"))
    table.resources.callback(made.close)
    assert isinstance(made, ZeroMQDealerProducer)
    return made


def arequested(table: Table, in_flight: int) -> Callable[[int], float]:
    # The loop must outlive the socket: what is made first is closed last.
    assert table.runner
    made, message = producer(table, "echo"), WireMessage(BODY, {}, new_id(), "bench.ask")
    return concurrently(table, in_flight, lambda: made.arequest(message))


def promised(in_flight: int, ask: Callable[[], Promise[Any]]) -> Callable[[int], float]:
    """Ask from one thread, so many at a time, and wait for the oldest."""

    def measure(n: int) -> float:
        asked = deque[Promise[Any]]()
        start = time.perf_counter()
        for _ in range(n):
            if len(asked) == in_flight:
                asked.popleft().result(PATIENCE)
            asked.append(ask())
        for promise in asked:
            promise.result(PATIENCE)
        return time.perf_counter() - start

    return measure


def requested(table: Table, in_flight: int) -> Callable[[int], float]:
    made, message = producer(table, "echo"), WireMessage(BODY, {}, new_id(), "bench.ask")

    def ask() -> Promise[Reply]:
        promise = Promise[Reply]()
        made.request(message, promise)
        return promise

    return promised(in_flight, ask)


def asking_bus(table: Table) -> QueryBus:
    bus = QueryBus()
    bus.utilize(MessageProducerPlugin(producer(table, "answers")))
    return bus


def adispatched(table: Table, in_flight: int) -> Callable[[int], float]:
    assert table.runner  # as above
    bus, query = asking_bus(table), Ask("x" * 1000)
    return concurrently(table, in_flight, lambda: bus.adispatch(query))


def dispatched(table: Table, in_flight: int) -> Callable[[int], float]:
    bus, query = asking_bus(table), Ask("x" * 1000)
    return promised(in_flight, lambda: bus.dispatch(query))


def queries(in_flight: int) -> Table:
    table = Table(f"queries of 1,000 B, {in_flight} in flight", rates=True, slice_seconds=SLICE)
    is_busy = in_flight == 128
    table.limit(BARE, lambda: bare(table, in_flight))
    table.limit(TWO_FRAMES, lambda: bare(table, in_flight, between=()))
    table.limit(ASYNCIO, lambda: zmq_asyncio(table, in_flight))
    row = "producer.arequest to bare ROUTER"
    table.row(
        row,
        lambda: arequested(table, in_flight),
        against=BARE,
        at_least=0.8 if is_busy else None,
    )
    table.compare(row, row, against=TWO_FRAMES)
    table.compare(row, row, against=ASYNCIO, at_least=1.8 if is_busy else None)
    table.row("producer.request to bare ROUTER", lambda: requested(table, in_flight), against=BARE)
    table.row(
        "bare DEALER to consumer.receive, reply",
        lambda: bare(table, in_flight, "replies"),
        against=BARE,
    )
    for name, make in (("adispatch", adispatched), ("dispatch", dispatched)):
        table.row(f"bus.{name} to worker", lambda make=make: make(table, in_flight), against=BARE)
        table.compare(f"bus.{name} to worker", f"bus.{name} to worker", against=ASYNCIO)
    return table


def query_tables() -> Iterator[Table]:
    for in_flight in (1, 16, 128):
        yield queries(in_flight)
