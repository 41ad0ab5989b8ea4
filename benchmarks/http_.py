"""What a message costs over HTTP, against a bare httpx client that posts the same bytes.

One connection or many on the loopback, 1 kB a message, to an application under uvicorn that
reads and answers 204. "By hand" is what the producer does without a producer: the same
connections, ready headers, no message. The last table is the receiving side: the endpoint, which
reads, checks, remembers and dispatches a message, against the application that does nothing.

The name is not `http`, which the standard library has, and scripts beside this one import.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from _harness import Receiver, Table, run, timed
from _http_receivers import Text

from postbus import Envelope
from postbus.messages import new_id
from postbus.transports import CommonSettings, WireMessage
from postbus.wire import encode
from postbus_http.transport import HTTP

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

RECEIVERS = Path(__file__).with_name("_http_receivers.py")
BODY = encode(Envelope(Text("x" * 850)))
MESSAGE = WireMessage(BODY, {}, new_id(), "bench.text")
SLICE = 0.3
BATCH = 50


def url_of(table: Table, role: str = "bare") -> str:
    receiver = table.resources.enter_context(Receiver(RECEIVERS, role))
    return f"http://127.0.0.1:{receiver.ports[0]}/"


def producer(table: Table, url: str, **settings: Any) -> Any:
    made = HTTP.make_producer(
        HTTP.producer_settings(url=url, **settings), CommonSettings(name="bench")
    )
    table.resources.callback(made.close)
    return made


def side_by_side(
    table: Table, call: Callable[[], Awaitable[object]], tasks: int
) -> Callable[[int], float]:
    """Measure *n* calls by so many tasks."""

    async def loop(n: int) -> None:
        left = iter(range(max(n, tasks)))

        async def work() -> None:
            for _ in left:
                await call()

        await asyncio.gather(*(work() for _ in range(tasks)))

    def measure(n: int) -> float:
        seconds = clocked(n)
        # At least one call for each task.
        return seconds * n / max(n, tasks)

    clocked = table.aclocked(loop)
    return measure


def posting(table: Table, url: str, tasks: int) -> Callable[[int], float]:
    made = producer(table, url)
    return side_by_side(table, lambda: made.asend(MESSAGE), tasks)


def by_hand(table: Table, url: str, tasks: int) -> Callable[[int], float]:
    made = producer(table, url)
    headers = list(made._requests.of(MESSAGE).headers)

    async def post() -> None:
        # Looked up as a caller would who has one for each loop.
        await made._connections_here().post(headers, BODY, time.monotonic() + 30)

    return side_by_side(table, post, tasks)


def shared_httpx(table: Table, url: str, tasks: int) -> Callable[[int], float]:
    limits = httpx.Limits(max_connections=1000, max_keepalive_connections=1000)
    client = httpx.AsyncClient(trust_env=False, limits=limits, timeout=60)
    runner = table.runner
    table.resources.callback(lambda: runner.run(client.aclose()))
    headers = {"content-type": "application/json"}
    return side_by_side(table, lambda: client.post(url, content=BODY, headers=headers), tasks)


def on_asyncio() -> Iterator[Table]:
    targets = {1: 1.3, 16: None, 64: 8.0, 600: None}
    for tasks, target in targets.items():
        table = Table(f"asyncio, {tasks} in flight", rates=True, slice_seconds=SLICE)
        url = url_of(table)
        table.limit("shared httpx.AsyncClient", partial(shared_httpx, table, url, tasks))
        table.limit("by hand", partial(by_hand, table, url, tasks))
        table.row(
            "producer",
            partial(posting, table, url, tasks),
            against="shared httpx.AsyncClient",
            at_least=target,
        )
        table.compare("producer, by hand", "producer", against="by hand", at_least=0.95)
        yield table


def flat() -> Table:
    # Long enough that to start 600 tasks does not show.
    table = Table("asyncio, many waiting", rates=True, slice_seconds=4 * SLICE)
    url = url_of(table)
    table.limit("16 tasks", partial(posting, table, url, 16))
    table.row("600 tasks", partial(posting, table, url, 600), against="16 tasks", at_least=0.9)
    return table


def blocking() -> Table:
    table = Table("blocking, one thread", rates=True, slice_seconds=SLICE)
    url = url_of(table)

    def sync_httpx() -> Any:
        client = table.resources.enter_context(httpx.Client(trust_env=False))
        headers = {"content-type": "application/json"}
        return timed(lambda _: client.post(url, content=BODY, headers=headers), None)

    table.limit("httpx.Client", sync_httpx)
    table.row(
        "producer",
        lambda: timed(producer(table, url).send, MESSAGE),
        against="httpx.Client",
        at_least=1.0,
    )
    return table


def batches() -> Table:
    table = Table("1,000 messages to send_many", rates=True, slice_seconds=SLICE)
    url = url_of(table)
    messages = [MESSAGE] * 1000

    def many(**settings: Any) -> Any:
        made = producer(table, url, **settings)

        async def loop(n: int) -> None:
            for start in range(0, n, 1000):
                await made.asend_many(messages[: min(1000, n - start)])

        return table.aclocked(loop)

    table.limit("one by one", lambda: side_by_side(table, partial(_send, table, url), 1))
    table.row("send_many", many, against="one by one")
    table.row(f"batch = {BATCH}", partial(many, batch=BATCH), against="one by one", at_least=15)
    return table


_senders: dict[str, Any] = {}


async def _send(table: Table, url: str) -> None:
    made = _senders.get(url)
    if made is None:
        made = _senders[url] = producer(table, url)
    await made.asend(MESSAGE)


def receiving() -> Table:
    table = Table("receiving, 16 connections", rates=True, slice_seconds=SLICE)
    before, _, after = BODY.partition(MESSAGE_ID)

    def load(role: str) -> Callable[[int], float]:
        port = int(url_of(table, role).split(":")[2].strip("/"))
        connections: list[Any] = []
        numbers = itertools.count()
        head = (
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(BODY)
        )

        async def loop(n: int) -> None:
            while len(connections) < 16:
                connections.append(await asyncio.open_connection("127.0.0.1", port))
            left = iter(range(n))

            async def work(reader: Any, writer: Any) -> None:
                for _ in left:
                    id_ = b"%08x-0000-4000-8000-000000000000" % next(numbers)
                    writer.write(b"".join((head, before, id_, after)))
                    answer = await reader.readuntil(b"\r\n\r\n")
                    assert b" 204 " in answer

            await asyncio.gather(*(work(*each) for each in connections))

        async def close() -> None:
            for _, writer in connections:
                writer.close()
                await writer.wait_closed()

        runner = table.runner
        table.resources.callback(lambda: runner.run(close()))
        return table.aclocked(loop)

    table.limit("bare ASGI application", partial(load, "bare"))
    table.row("endpoint", partial(load, "endpoint"), against="bare ASGI application")
    return table


MESSAGE_ID = BODY.partition(b'"uuid":"')[2][:36]


def tables() -> Iterator[Table]:
    yield from on_asyncio()
    yield flat()
    yield blocking()
    yield batches()
    yield receiving()


if __name__ == "__main__":
    run(__doc__, tables, rounds=5)
