"""The receiving sides of the ZeroMQ benchmark: `python benchmarks/_zeromq_receivers.py ROLE`.

Each role binds a free port, prints it, and then serves its parent over stdin and stdout, as
`_harness.Receiver` describes. Each ends when stdin closes, or when an expected message fails to
come within 30 seconds.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import struct
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import msgspec
import zmq
import zmq.asyncio

from postbus import (
    Command,
    CommandBus,
    CommandRouter,
    MessageCatalog,
    MessageKind,
    Query,
    QueryBus,
    QueryRouter,
    Worker,
)
from postbus.transports import CommonSettings, MessageConsumer, Reply
from postbus.wire import decode
from postbus.worker import ConsumerRun
from postbus_zeromq.transport import ZEROMQ

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PREFETCH = 256
# How long a receiver waits for messages that do not come.
PATIENCE = 30
WORKER_CONCURRENCY = 16
RAW_STAMP = struct.Struct("d")


@attrs.frozen
class Text(Command, name="bench.text"):
    text: str


@attrs.frozen
class Stamp(Command, name="bench.stamp"):
    sent: float
    text: str


@attrs.frozen
class Ask(Query[str], name="bench.ask"):
    text: str


class Packed(msgspec.Struct, array_like=True):
    """The least envelope a bus could send: one frame, msgpack, no field names."""

    id: str
    name: str
    created_at: float
    payload: bytes


def percentiles(latencies: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(latencies)
    return ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve(take: Callable[[int], Sequence[float] | None], port: int) -> None:
    print(port, flush=True)
    for line in sys.stdin:
        print("ready", flush=True)
        print("done", *(take(int(line)) or ()), flush=True)


def pull(context: Any) -> tuple[Any, int]:
    receiver = context.socket(zmq.PULL)
    receiver.setsockopt(zmq.RCVTIMEO, PATIENCE * 1000)
    return receiver, receiver.bind_to_random_port("tcp://127.0.0.1")


def raw() -> None:
    receiver, port = pull(zmq.Context())

    def take(n: int) -> None:
        receive = receiver.recv
        for _ in range(n):
            receive()

    serve(take, port)


def packed() -> None:
    """Decode the least envelope and call a handler out of a dict: what any bus has to do."""
    receiver, port = pull(zmq.Context())
    handlers: dict[str, Callable[[Packed], None]] = {"bench.text": lambda _: None}
    read = msgspec.msgpack.Decoder(Packed).decode

    def take(n: int) -> None:
        receive = receiver.recv
        for _ in range(n):
            envelope = read(receive())
            handlers[envelope.name](envelope)

    serve(take, port)


def raw_latency() -> None:
    receiver, port = pull(zmq.Context())

    def on_the_way() -> float:
        message = receiver.recv()
        return float(time.monotonic() - RAW_STAMP.unpack_from(message)[0])

    serve(lambda n: percentiles([on_the_way() for _ in range(n)]), port)


def zmq_asyncio() -> None:
    async def bind() -> tuple[Any, int]:
        return pull(zmq.asyncio.Context())

    async def take(receiver: Any, n: int) -> None:
        for _ in range(n):
            await receiver.recv()

    with asyncio.Runner() as runner:
        receiver, port = runner.run(bind())
        serve(lambda n: runner.run(take(receiver, n)), port)
        receiver.close(linger=0)


def consumer(*, rpc: bool = False) -> tuple[MessageConsumer, int]:
    port = free_port()
    settings = ZEROMQ.consumer_settings(dsn=f"tcp://127.0.0.1:{port}", rpc=rpc)
    common = CommonSettings(name="bench", prefetch=PREFETCH)
    return ZEROMQ.make_consumer(settings, common), port


def with_consumer(
    figures: Callable[[], Sequence[float]] = tuple, each: Callable[[bytes], None] | None = None
) -> None:
    """Count deliveries, or hand every body to *each*, without a worker round the consumer."""
    source, port = consumer()

    async def take(n: int) -> Sequence[float]:
        left = n
        async with asyncio.timeout(PATIENCE):
            while left:
                deliveries = await source.receive(min(left, PREFETCH))
                left -= len(deliveries)
                if each is not None:
                    for delivery in deliveries:
                        each(delivery.body)
                        delivery.ack()
        return figures()

    with asyncio.Runner() as runner:
        serve(lambda n: runner.run(take(n)), port)
        runner.run(source.aclose())


def catalog() -> MessageCatalog:
    known = MessageCatalog()
    known.add(Text)
    known.add(Stamp)
    known.add(Ask)
    return known


def bus_of(handler: Callable[..., Any]) -> CommandBus:
    bus = CommandBus()
    bus.utilize(CommandRouter({Text: handler, Stamp: handler}))
    return bus


def dispatch() -> None:
    bus, known = bus_of(lambda message: None), catalog()
    with_consumer(each=lambda body: bus.receive(decode(body, known), "bench"))


def dispatch_latency() -> None:
    latencies: list[float] = []
    bus = bus_of(lambda message: latencies.append(time.monotonic() - message.sent))
    known = catalog()

    def figures() -> tuple[float, float]:
        found = percentiles(latencies)
        latencies.clear()
        return found

    with_consumer(figures, lambda body: bus.receive(decode(body, known), "bench"))


class Tally:
    """Counts handled messages, from any thread, and wakes the loop at the last one."""

    def __init__(self) -> None:
        self._count = itertools.count(1)
        self._expected = 0

    def expect(self, n: int) -> asyncio.Event:
        self._loop = asyncio.get_running_loop()
        self._count, self._expected, self._reached = itertools.count(1), n, asyncio.Event()
        return self._reached

    def add(self, message: object) -> None:
        if next(self._count) == self._expected:
            self._loop.call_soon_threadsafe(self._reached.set)

    async def aadd(self, message: object) -> None:
        self.add(message)


def worker(*, threads: bool) -> None:
    tally = Tally()
    source, port = consumer()
    bus = bus_of(tally.add if threads else tally.aadd)
    run = ConsumerRun(
        name="bench", consumer=source, concurrency=WORKER_CONCURRENCY, prefetch=PREFETCH
    )
    whole = Worker({MessageKind.COMMAND: bus}, [run], catalog())

    async def take(n: int) -> None:
        await asyncio.wait_for(tally.expect(n).wait(), PATIENCE)

    async def stop() -> None:
        await whole.__aexit__(None, None, None)

    with asyncio.Runner() as runner:
        runner.run(whole.__aenter__())
        serve(lambda n: runner.run(take(n)), port)
        runner.run(stop())


def serve_until_closed(port: int) -> None:
    """Say where, and let the process end with its parent's interest in it."""

    def end() -> None:
        sys.stdin.read()
        os._exit(0)

    print(port, flush=True)
    threading.Thread(target=end, daemon=True).start()


def echo() -> None:
    """Answer with what was asked: bare pyzmq."""
    router = zmq.Context().socket(zmq.ROUTER)
    router.setsockopt(zmq.SNDHWM, 0)
    serve_until_closed(router.bind_to_random_port("tcp://127.0.0.1"))
    while True:
        router.send_multipart(router.recv_multipart())


def replies() -> None:
    """Answer with what was asked, without a worker round the consumer."""
    source, port = consumer(rpc=True)
    serve_until_closed(port)

    async def answer() -> None:
        while True:
            for delivery in await source.receive(PREFETCH):
                delivery.reply(Reply(delivery.body))

    asyncio.run(answer())


def answers() -> None:
    """Answer with the text that was asked, in a worker."""

    async def find(query: Ask) -> str:
        return query.text

    source, port = consumer(rpc=True)
    bus = QueryBus()
    bus.utilize(QueryRouter({Ask: find}))
    run = ConsumerRun(
        name="bench", consumer=source, concurrency=WORKER_CONCURRENCY, prefetch=PREFETCH
    )
    serve_until_closed(port)
    Worker({MessageKind.QUERY: bus}, [run], catalog()).run()


ROLES: dict[str, Callable[[], None]] = {
    "raw": raw,
    "echo": echo,
    "replies": replies,
    "answers": answers,
    "packed": packed,
    "raw-latency": raw_latency,
    "zmq-asyncio": zmq_asyncio,
    "bodies": with_consumer,
    "dispatch": dispatch,
    "dispatch-latency": dispatch_latency,
    "worker-threads": partial(worker, threads=True),
    "worker-asyncio": partial(worker, threads=False),
}

if __name__ == "__main__":
    ROLES[sys.argv[1]]()
