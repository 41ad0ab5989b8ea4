"""What a message costs from one process to another over ZeroMQ, against bare pyzmq.

Two processes on the loopback, PUSH to PULL. The limits: ready bytes through two blocking
sockets; and the least any bus has to do on top of that, an id, a time, a msgpack envelope in one
frame, decoded and handed to a handler out of a dict. A row's rate counts from the first message
sent to the last one handled.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import zmq
import zmq.asyncio
from _harness import Receiver, Table, run
from _zeromq_queries import query_tables
from _zeromq_receivers import RAW_STAMP, WORKER_CONCURRENCY, Packed, Stamp, Text

from postbus import CommandBus, Envelope, MessageProducerPlugin
from postbus.messages import new_id
from postbus.transports import AsyncMessageProducer, CommonSettings, WireMessage
from postbus.wire import encode
from postbus_zeromq.transport import ZEROMQ

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

RECEIVERS = Path(__file__).with_name("_zeromq_receivers.py")
RAW = "bare PUSH, PULL"
PACKED = "bus limit"
ASYNCIO = "zmq.asyncio, both sides"
MESSAGES_A_SECOND = 1000
# Long enough that starting and ending a run of messages does not show.
SLICE = 0.2


def receiver(table: Table, role: str) -> Receiver:
    return table.resources.enter_context(Receiver(RECEIVERS, role))


def push(table: Table, port: int, context: Any = None) -> Any:
    sender = (context or zmq.Context.instance()).socket(zmq.PUSH)
    table.resources.callback(sender.close, linger=0)
    sender.setsockopt(zmq.SNDTIMEO, 30_000)
    sender.connect(f"tcp://127.0.0.1:{port}")
    return sender


def counted(other: Receiver, send_all: Callable[[int], object]) -> Callable[[int], float]:
    """Measure from the first message sent to the last one counted by *other*."""

    def measure(n: int) -> float:
        other.expect(n)
        start = time.perf_counter()
        send_all(n)
        other.wait()
        return time.perf_counter() - start

    return measure


def acounted(
    runner: asyncio.Runner, other: Receiver, send_all: Callable[[int], Coroutine[Any, Any, None]]
) -> Callable[[int], float]:
    return counted(other, lambda n: runner.run(send_all(n)))


def raw(table: Table, size: int, role: str = "raw") -> Callable[[int], float]:
    other, body = receiver(table, role), b"x" * size
    sender = push(table, other.ports[0])

    def send_all(n: int) -> None:
        send = sender.send
        for _ in range(n):
            send(body)

    return counted(other, send_all)


def packed(table: Table, size: int) -> Callable[[int], float]:
    other, body = receiver(table, "packed"), b"x" * size
    sender = push(table, other.ports[0])
    write = msgspec.msgpack.Encoder().encode
    # The cheapest unique id of 32 characters: a random half and a counted half.
    half, numbers = os.urandom(8).hex(), itertools.count()

    def send_all(n: int) -> None:
        send, now = sender.send, time.time
        for _ in range(n):
            send(write(Packed(f"{half}{next(numbers):016x}", "bench.text", now(), body)))

    return counted(other, send_all)


def producer(table: Table, port: int) -> AsyncMessageProducer:
    settings = ZEROMQ.producer_settings(dsn=f"tcp://127.0.0.1:{port}")
    made = ZEROMQ.make_producer(settings, CommonSettings(name="bench"))
    table.resources.callback(made.close)
    assert isinstance(made, AsyncMessageProducer)
    return made


def sending_bus(table: Table, port: int) -> CommandBus:
    bus = CommandBus()
    bus.utilize(MessageProducerPlugin(producer(table, port)))
    return bus


def dispatched(table: Table, size: int) -> Callable[[int], float]:
    other, message = receiver(table, "dispatch"), Text("x" * size)
    bus = sending_bus(table, other.ports[0])

    def send_all(n: int) -> None:
        for _ in range(n):
            bus.dispatch(message)

    return counted(other, send_all)


def adispatched(table: Table, size: int) -> Callable[[int], float]:
    runner = table.runner
    other, message = receiver(table, "dispatch"), Text("x" * size)
    bus = sending_bus(table, other.ports[0])

    async def send_all(n: int) -> None:
        for _ in range(n):
            await bus.adispatch(message)

    return acounted(runner, other, send_all)


def ready(table: Table, role: str, body: bytes) -> Callable[[int], float]:
    """Send bytes made beforehand through our producer."""
    other = receiver(table, role)
    made, message = producer(table, other.ports[0]), WireMessage(body, {}, new_id(), "bench.text")

    def send_all(n: int) -> None:
        send = made.send
        for _ in range(n):
            send(message)

    return counted(other, send_all)


def aready(table: Table, role: str, body: bytes) -> Callable[[int], float]:
    # The loop must outlive the socket: what is made first is closed last.
    runner = table.runner
    other = receiver(table, role)
    made, message = producer(table, other.ports[0]), WireMessage(body, {}, new_id(), "bench.text")

    async def send_all(n: int) -> None:
        for _ in range(n):
            await made.asend(message)

    return acounted(runner, other, send_all)


def zmq_asyncio(table: Table, size: int) -> Callable[[int], float]:
    runner = table.runner
    other, body = receiver(table, "zmq-asyncio"), b"x" * size
    sender = push(table, other.ports[0], zmq.asyncio.Context.shadow(zmq.Context.instance()))

    async def send_all(n: int) -> None:
        for _ in range(n):
            await sender.send(body)

    return acounted(runner, other, send_all)


def one_way(size: int) -> Table:
    table = Table(f"commands of {size:,} B", rates=True, slice_seconds=SLICE)
    table.limit(RAW, lambda: raw(table, size))
    table.row(PACKED, lambda: packed(table, size), against=RAW)
    row = "bus.dispatch to bus.receive"
    if size < 10_000:
        table.row(row, lambda: dispatched(table, size), against=PACKED, at_least=0.85)
        table.compare(row, row, against=RAW)
    else:
        table.row(row, lambda: dispatched(table, size), against=RAW, at_least=0.9)
    return table


def ready_bytes() -> Table:
    table = Table("ready bytes of 1,000 B", rates=True, slice_seconds=SLICE)
    body = b"x" * 1000
    table.limit(RAW, lambda: raw(table, 1000))
    table.row(
        "producer.send to consumer.receive",
        lambda: ready(table, "bodies", body),
        against=RAW,
        at_least=0.9,
    )
    return table


def on_asyncio() -> Table:
    table = Table("asyncio, 1,000 B", rates=True, slice_seconds=SLICE)
    body = b"x" * 1000
    table.limit(ASYNCIO, lambda: zmq_asyncio(table, 1000))
    table.row(
        "producer.asend to consumer.receive",
        lambda: aready(table, "bodies", body),
        against=ASYNCIO,
        at_least=4,
    )
    table.row("bus.adispatch to bus.receive", lambda: adispatched(table, 1000), against=ASYNCIO)
    return table


def in_groups(
    table: Table, start: Callable[[asyncio.AbstractEventLoop], Awaitable[object]]
) -> Callable[[int], float]:
    """Do nothing, as many at a time as the worker handles, for as long as it takes."""

    async def loop(n: int) -> None:
        running = asyncio.get_running_loop()
        for _ in range(n // WORKER_CONCURRENCY):
            await asyncio.gather(*[start(running) for _ in range(WORKER_CONCURRENCY)])

    return table.aclocked(loop)


async def ahandle() -> None:
    pass


def through_worker() -> Table:
    table = Table(
        f"whole worker, {WORKER_CONCURRENCY} at a time, 1,000 B", rates=True, slice_seconds=SLICE
    )
    body = encode(Envelope(Text("x" * 1000)))
    executor, task = "run_in_executor, no transport", "a task for each, no transport"
    pool = ThreadPoolExecutor(WORKER_CONCURRENCY)

    def in_pool() -> Callable[[int], float]:
        table.resources.enter_context(pool)
        return in_groups(table, lambda loop: loop.run_in_executor(pool, int))

    table.limit(executor, in_pool)
    table.row(
        "sync handlers",
        lambda: ready(table, "worker-threads", body),
        against=executor,
        at_least=0.8,
    )
    table.limit(task, lambda: in_groups(table, lambda loop: loop.create_task(ahandle())))
    table.row(
        "asyncio handlers",
        lambda: ready(table, "worker-asyncio", body),
        against=task,
        at_least=0.5,
    )
    return table


class Paced:
    """Sends at a steady rate and hears how long the messages were on their way."""

    def __init__(self, other: Receiver, send: Callable[[], object]) -> None:
        self._other = other
        self._send = send
        self._left: dict[str, float] = {}

    def figure(self, name: str) -> Callable[[int], float]:
        """Measure "p50" or "p99": both rows read from one run where both are asked for."""

        def measure(n: int) -> float:
            if name not in self._left:
                p50, p99 = self._run(n)
                self._left = {"p50": p50, "p99": p99}
            # The harness divides by the number of messages.
            return self._left.pop(name) * n

        return measure

    def _run(self, n: int) -> list[float]:
        self._other.expect(n)
        start = time.perf_counter()
        for number in range(n):
            time.sleep(max(0.0, start + number / MESSAGES_A_SECOND - time.perf_counter()))
            self._send()
        return self._other.wait()


def paced_raw(table: Table) -> Paced:
    other = receiver(table, "raw-latency")
    sender, rest = push(table, other.ports[0]), b"x" * 1000
    return Paced(other, lambda: sender.send(RAW_STAMP.pack(time.monotonic()) + rest))


def paced_bus(table: Table) -> Paced:
    other = receiver(table, "dispatch-latency")
    bus, rest = sending_bus(table, other.ports[0]), "x" * 1000
    return Paced(other, lambda: bus.dispatch(Stamp(time.monotonic(), rest)))


def figure(paced: Callable[[], Paced], name: str) -> Callable[[int], float]:
    return paced().figure(name)


def latency() -> Table:
    table = Table(f"latency at {MESSAGES_A_SECOND:,} commands of 1,000 B a second", times=1000)
    bare, ours = cache(partial(paced_raw, table)), cache(partial(paced_bus, table))
    for name in ("p50", "p99"):
        table.limit(f"bare, {name}", partial(figure, bare, name))
        row = f"bus.dispatch to handler, {name}"
        table.row(row, partial(figure, ours, name), against=f"bare, {name}")
    return table


def tables() -> Iterator[Table]:
    for size in (100, 1000, 10_000):
        yield one_way(size)
    yield ready_bytes()
    yield on_asyncio()
    yield through_worker()
    yield latency()
    yield from query_tables()


if __name__ == "__main__":
    run(__doc__, tables, rounds=5)
