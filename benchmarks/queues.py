"""What a message costs through beanstalkd and gearman, against their clients used by hand.

The servers are started on free ports and keep jobs in memory. One process sends and takes; the
workers that answer gearman's foreground jobs are processes of their own. All of them share the
machine's cores.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _harness import Receiver, Table, peer, run

from postbus.messages import new_id
from postbus.promises import Promise
from postbus.transports import CommonSettings, Reply, WireMessage
from postbus_beanstalkd import BEANSTALKD
from postbus_gearman import GEARMAN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from postbus.transports import MessageConsumer, MessageProducer, Transport

    Measure = Callable[[int], float]

WORKERS = Path(__file__).with_name("_queue_workers.py")
BODY = b'{"text":"' + b"x" * 189 + b'"}'
MANY = 100
PREFETCH = 64
SLICE = 0.3
PATIENCE = 30.0
COMMON = CommonSettings(name="bench", max_size_bytes=65_535)
GREENSTALK, PYGEARMAN = "greenstalk by hand", "pygearman by hand"
_names = count()


def message() -> WireMessage:
    return WireMessage(BODY, {}, new_id(), "bench.text")


def start(table: Table, *command: str) -> str:
    """Start a server that listens where `{port}` stands in *command*; return its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    filled = [each.format(port=port) for each in command]
    process = subprocess.Popen(filled, stderr=subprocess.DEVNULL)
    table.resources.callback(process.wait)
    table.resources.callback(process.kill)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return f"127.0.0.1:{port}"
        time.sleep(0.01)
    msg = f"{command[0]} did not start"
    raise ConnectionError(msg)


class Queue:
    """A queue of one of the two systems, and both our sides of it."""

    def __init__(self, table: Table, transport: Transport, address: str) -> None:
        self.address = address
        self.name = f"bench-{next(_names)}"
        if transport is BEANSTALKD:
            sending: dict[str, Any] = {"address": address, "tube": self.name}
            taking: dict[str, Any] = {"address": address, "tubes": (self.name,)}
        else:
            sending = {"servers": (address,), "function": self.name}
            taking = {"servers": (address,), "functions": (self.name,)}
        self._runner = table.runner
        self.producer: MessageProducer = transport.make_producer(
            transport.producer_settings(**sending), COMMON
        )
        self.consumer: MessageConsumer = transport.make_consumer(
            transport.consumer_settings(**taking), COMMON
        )
        table.resources.callback(self.producer.close)
        table.resources.callback(lambda: self._runner.run(self.consumer.aclose()))

    def fill(self, n: int, many: int = MANY) -> float:
        """Send *n* messages, *many* at a time, and return the seconds it took."""
        groups = [[message() for _ in range(min(many, n - begun))] for begun in range(0, n, many)]
        begin = time.perf_counter()
        for group in groups:
            self.producer.send_many(group)
        return time.perf_counter() - begin

    def take(self, n: int, prefetch: int = PREFETCH) -> float:
        """Take and acknowledge *n* messages, and return the seconds it took."""
        seconds: float = self._runner.run(self._take(n, prefetch))
        return seconds

    async def _take(self, n: int, prefetch: int) -> float:
        taken, deliveries = 0, ()
        begin = time.perf_counter()
        while taken < n:
            deliveries = await self.consumer.receive(min(prefetch, n - taken))
            for delivery in deliveries:
                delivery.ack()
            taken += len(deliveries)
        await deliveries[-1].settled()
        return time.perf_counter() - begin

    def sending(self, send: Callable[[], object], n: int, many: int = 1) -> float:
        """Return the seconds that calls take which send *n* messages, *many* each.

        What they sent is taken out again.
        """
        calls = -(-n // many)
        begin = time.perf_counter()
        for _ in range(calls):
            send()
        seconds = time.perf_counter() - begin
        self.take(calls * many)
        return seconds * n / (calls * many)


def sends(queue: Queue, many: int) -> Measure:
    def measure(n: int) -> float:
        seconds = queue.fill(n, many)
        queue.take(n)
        return seconds

    return measure


def takes(queue: Queue, prefetch: int) -> Measure:
    def measure(n: int) -> float:
        queue.fill(n)
        return queue.take(n, prefetch)

    return measure


# beanstalkd


def greenstalk(table: Table, queue: Queue) -> Any:
    host, _, port = queue.address.rpartition(":")
    client = peer("greenstalk").Client(
        (host, int(port)), encoding=None, use=queue.name, watch=queue.name
    )
    table.resources.callback(client.close)
    return client


def greenstalk_puts(table: Table, queue: Queue) -> Measure:
    client = greenstalk(table, queue)
    return lambda n: queue.sending(lambda: client.put(BODY), n)


def greenstalk_takes(table: Table, queue: Queue) -> Measure:
    client = greenstalk(table, queue)

    def measure(n: int) -> float:
        queue.fill(n)
        begin = time.perf_counter()
        for _ in range(n):
            client.delete(client.reserve(timeout=1))
        return time.perf_counter() - begin

    return measure


def raw_puts(table: Table, queue: Queue) -> Measure:
    """Put as fast as the server answers: no client at all, 100 commands at a time."""
    host, _, port = queue.address.rpartition(":")
    raw = table.resources.enter_context(socket.create_connection((host, int(port))))
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    answers = table.resources.enter_context(raw.makefile("rb"))
    raw.sendall(b"use %b\r\n" % queue.name.encode())
    answers.readline()
    commands = b"put 65536 0 60 %d\r\n%b\r\n" % (len(BODY), BODY) * MANY

    def put() -> None:
        raw.sendall(commands)
        for _ in range(MANY):
            answers.readline()

    return lambda n: queue.sending(put, n, MANY)


def beanstalkd_table(title: str) -> tuple[Table, Callable[[], Queue]]:
    table = Table(f"beanstalkd, {title}, 200 B", rates=True, slice_seconds=SLICE)
    address: list[str] = []

    def queue() -> Queue:
        if not address:
            address.append(start(table, "beanstalkd", "-l", "127.0.0.1", "-p", "{port}"))
        return Queue(table, BEANSTALKD, address[0])

    return table, queue


def beanstalkd_sending() -> Table:
    table, queue = beanstalkd_table("put")
    table.limit(GREENSTALK, lambda: greenstalk_puts(table, queue()))
    table.row("producer.send", lambda: sends(queue(), 1), against=GREENSTALK, at_least=0.9)
    table.row("send_many of 100", lambda: sends(queue(), MANY), against=GREENSTALK, at_least=3.5)
    table.row("a bare socket, 100 at a time", lambda: raw_puts(table, queue()), against=GREENSTALK)
    return table


def beanstalkd_taking() -> Table:
    table, queue = beanstalkd_table("reserve, delete")
    table.limit(GREENSTALK, lambda: greenstalk_takes(table, queue()))
    table.row("receive(1), ack", lambda: takes(queue(), 1), against=GREENSTALK, at_least=0.9)
    table.row(
        "receive(64), ack", lambda: takes(queue(), PREFETCH), against=GREENSTALK, at_least=1.5
    )
    return table


# gearman


def pygearman(table: Table, address: str) -> Any:
    client = peer("gearman").GearmanClient([address])
    table.resources.callback(client.shutdown)
    return client


def pygearman_submits(table: Table, queue: Queue, many: int) -> Measure:
    client = pygearman(table, queue.address)
    jobs = [{"task": queue.name.encode(), "data": BODY} for _ in range(many)]

    def submit() -> None:
        client.submit_multiple_jobs(jobs, background=True, wait_until_complete=False)

    return lambda n: queue.sending(submit, n, many)


def pygearman_asks(table: Table, address: str, function: str) -> Measure:
    client = pygearman(table, address)

    def measure(n: int) -> float:
        begin = time.perf_counter()
        for _ in range(n):
            job = client.submit_job(function.encode(), BODY, poll_timeout=PATIENCE)
            assert job.result == b"42"
        return time.perf_counter() - begin

    return measure


def asks(table: Table, address: str, function: str, at_once: int) -> Measure:
    """Ask as a query bus does, *at_once* at a time."""
    settings = GEARMAN.producer_settings(servers=(address,), function=function)
    producer = GEARMAN.make_producer(settings, COMMON)
    table.resources.callback(producer.close)

    def ask() -> Promise[Reply]:
        promise = Promise[Reply]()
        producer.request(message(), promise)
        return promise

    def measure(n: int) -> float:
        begin = time.perf_counter()
        for begun in range(0, n, at_once):
            for promise in [ask() for _ in range(min(at_once, n - begun))]:
                assert promise.result(PATIENCE) == Reply(b"42")
        return time.perf_counter() - begin

    return measure


class Gearman:
    """A gearmand of one table, which starts when the first row needs it, and its workers."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._workers: dict[str, str] = {}

    @cached_property
    def address(self) -> str:
        folder = self._table.resources.enter_context(tempfile.TemporaryDirectory())
        own = ("-l", "none", "-P", f"{folder}/pid")
        return start(self._table, "gearmand", "-L", "127.0.0.1", "-p", "{port}", *own)

    def queue(self) -> Queue:
        return Queue(self._table, GEARMAN, self.address)

    def worker(self, kind: str) -> str:
        """Return the function that a worker of *kind* answers."""
        if kind not in self._workers:
            self._workers[kind] = f"bench-{kind}"
            port = self.address.rpartition(":")[2]
            worker = Receiver(WORKERS, kind, port, self._workers[kind])
            self._table.resources.enter_context(worker)
        return self._workers[kind]


def gearman_sending() -> Table:
    table = Table("gearman, background jobs, 200 B", rates=True, slice_seconds=SLICE)
    server = Gearman(table)
    table.limit(PYGEARMAN, lambda: pygearman_submits(table, server.queue(), 1))
    table.row("producer.send", lambda: sends(server.queue(), 1), against=PYGEARMAN, at_least=0.9)
    table.row(
        "send_many of 100", lambda: sends(server.queue(), MANY), against=PYGEARMAN, at_least=7
    )
    table.row(
        "pygearman, 100 at a time",
        lambda: pygearman_submits(table, server.queue(), MANY),
        against=PYGEARMAN,
    )
    return table


def gearman_taking() -> Table:
    table = Table("gearman, take and end jobs, 200 B", rates=True, slice_seconds=SLICE)
    server = Gearman(table)
    one = "receive(1), ack"
    table.limit(one, lambda: takes(server.queue(), 1))
    table.row("receive(64), ack", lambda: takes(server.queue(), PREFETCH), against=one)
    return table


def gearman_asking() -> Table:
    table = Table("gearman, foreground jobs, 200 B", rates=True, slice_seconds=SLICE)
    server = Gearman(table)
    both = "pygearman asks and answers"
    table.limit(both, lambda: pygearman_asks(table, server.address, server.worker("pygearman")))
    table.limit(
        "pygearman asks, postbus answers",
        lambda: pygearman_asks(table, server.address, server.worker("postbus")),
    )
    table.row(
        "request, pygearman answers",
        lambda: asks(table, server.address, server.worker("pygearman"), 1),
        against=both,
        at_least=0.9,
    )
    table.compare(
        "the same client, our consumer answers",
        "pygearman asks, postbus answers",
        against=both,
        at_least=0.9,
    )
    table.row(
        "request, our consumer answers",
        lambda: asks(table, server.address, server.worker("postbus"), 1),
        against=both,
        at_least=0.9,
    )
    table.row(
        "32 requests at once, our consumer answers",
        lambda: asks(table, server.address, server.worker("postbus"), 32),
        against=both,
    )
    return table


def tables() -> Iterator[Table]:
    yield beanstalkd_sending()
    yield beanstalkd_taking()
    yield gearman_sending()
    yield gearman_taking()
    yield gearman_asking()


if __name__ == "__main__":
    run(__doc__, tables, rounds=5)
