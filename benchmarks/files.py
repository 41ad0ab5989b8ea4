"""What a message costs in a folder, against kombu's folder transport.

One process, on the file system of the temporary folder. A backlog stays as it is: what a slice
takes out is put back before the next. kombu removes a file when it hands the message out, so it
has nothing to do for an acknowledgement; it waits for no disk.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _harness import Table, peer, run

from postbus.messages import new_id
from postbus.transports import CommonSettings, WireMessage
from postbus_files import FILES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from postbus.transports import Delivery
    from postbus_files import FilesConsumer, FilesProducer

BODY = b'{"text":"' + b"x" * 180 + b'"}'
BACKLOGS = (100, 4_000, 100_000)
KOMBU = "kombu, folder"
PREFETCH = 64
SLICE = 0.3


def folder(table: Table) -> Path:
    return Path(table.resources.enter_context(tempfile.TemporaryDirectory())) / "queue"


def message(body: bytes = BODY) -> WireMessage:
    return WireMessage(body, {}, new_id(), "bench.text")


def producer(path: Path, *, sync: bool) -> FilesProducer:
    settings = FILES.producer_settings(path=str(path), sync=sync)
    return FILES.make_producer(settings, CommonSettings(name="bench"))


def consumer(table: Table, path: Path) -> FilesConsumer:
    made = FILES.make_consumer(
        FILES.consumer_settings(path=str(path), sync=False), CommonSettings(name="bench")
    )
    table.resources.callback(lambda: table.runner.run(made.aclose()))
    return made


def in_parts(measure: Callable[[int], float], most: int) -> Callable[[int], float]:
    """Measure at most *most* at a time, so that a backlog hardly shrinks meanwhile."""

    def measure_parts(n: int) -> float:
        whole, rest = divmod(n, most)
        return sum(measure(part) for part in [most] * whole + [rest] * (rest > 0))

    return measure_parts


def sending(table: Table, *, sync: bool, many: int) -> Callable[[int], float]:
    path = folder(table)
    sender = producer(path, sync=sync)

    def measure(n: int) -> float:
        groups = [[message() for _ in range(many)] for _ in range(-(-n // many))]
        start = time.perf_counter()
        for group in groups:
            sender.send_many(group)
        seconds = time.perf_counter() - start
        for name in os.listdir(path / "ready"):  # noqa: PTH208  names are all it takes
            (path / "ready" / name).unlink()
        return seconds * n / (len(groups) * many)

    return measure


def receiving(table: Table, backlog: int) -> Callable[[int], float]:
    runner, path = table.runner, folder(table)
    sender, receiver = producer(path, sync=False), consumer(table, path)
    sender.send_many([message() for _ in range(backlog)])

    async def take(n: int) -> float:
        taken: list[Delivery] = []
        start = time.perf_counter()
        while len(taken) < n:
            deliveries = await receiver.receive(min(n - len(taken), PREFETCH))
            for delivery in deliveries:
                delivery.ack()
            taken += deliveries
        await taken[-1].settled()
        return time.perf_counter() - start

    def measure(n: int) -> float:
        seconds: float = runner.run(take(n))
        sender.send_many([message() for _ in range(n)])
        return seconds

    return in_parts(measure, backlog // 2)


def kombu_folder(table: Table, backlog: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return what puts a message and what takes one, in a folder with *backlog* messages."""
    kombu, path = peer("kombu"), folder(table)
    path.mkdir()
    options = {
        "data_folder_in": str(path),
        "data_folder_out": str(path),
        "control_folder": str(path.parent / "control"),
    }
    connection = kombu.Connection("filesystem://", transport_options=options)
    table.resources.callback(connection.release)
    channel = connection.channel()
    exchange = kombu.Exchange("bench")
    queue = kombu.Queue("bench", exchange, routing_key="bench")(channel)
    queue.declare()
    sender = connection.Producer(channel, exchange=exchange, routing_key="bench")

    def put() -> None:
        sender.publish({"text": "x" * 180})

    for _ in range(backlog):
        put()
    return put, queue.get


def kombu_sending(table: Table) -> Callable[[int], float]:
    put, take = kombu_folder(table, 0)

    def measure(n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            put()
        seconds = time.perf_counter() - start
        while take() is not None:
            pass
        return seconds

    return measure


def kombu_receiving(table: Table, backlog: int) -> Callable[[int], float]:
    put, take = kombu_folder(table, backlog)

    def measure(n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            take().ack()
        seconds = time.perf_counter() - start
        for _ in range(n):
            put()
        return seconds

    return in_parts(measure, backlog // 2)


def sent() -> Table:
    table = Table("sending, 200 B", rates=True, slice_seconds=SLICE)
    table.limit(KOMBU, lambda: kombu_sending(table))
    quick, durable = "send, sync = false", "send, sync = true"
    table.row(quick, lambda: sending(table, sync=False, many=1), against=KOMBU)
    table.row(durable, lambda: sending(table, sync=True, many=1), against=KOMBU)
    table.row(
        "send_many of 100, sync = true",
        lambda: sending(table, sync=True, many=100),
        against=durable,
    )
    return table


def received(backlog: int) -> Table:
    table = Table(f"receive and acknowledge, {backlog:,} waiting", rates=True, slice_seconds=SLICE)
    row = "consumer.receive, ack"
    table.limit(KOMBU, lambda: kombu_receiving(table, backlog))
    table.row(
        row,
        lambda: receiving(table, backlog),
        against=KOMBU,
        at_least=10 if backlog >= 4_000 else None,
    )
    return table


def tables() -> Iterator[Table]:
    yield sent()
    for backlog in BACKLOGS:
        yield received(backlog)


if __name__ == "__main__":
    run(__doc__, tables, rounds=3)
