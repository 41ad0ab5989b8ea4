"""What a worker adds to handling a message, and what failing messages cost the good ones.

The limits are a call in a pool of threads for each message, and a task for each: what nobody can
do without who handles several at a time. One process; messages wait before the clock runs, which
stops at the last one handled. The rows with stores write to SQLite, which waits for the disk:
their figures are those of the disk under the temporary folder.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import sqlite3
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from _harness import Table, run

from postbus import (
    Command,
    CommandBus,
    CommandRouter,
    Envelope,
    MessageCatalog,
    MessageKind,
    RetryPolicy,
    Worker,
)
from postbus.memory import MemoryConsumer, MemoryProducer
from postbus.messages import new_id
from postbus.stores import SQLiteStore
from postbus.transports import CommonSettings, WireMessage
from postbus.wire import encode
from postbus.worker import ConsumerRun
from postbus_files import FILES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence

    from postbus.stores import FailureStore
    from postbus.transports import MessageConsumer, MessageProducer

CONCURRENCY = 16
PREFETCH = 256
# Longer than any slice should take: what has not come by then was lost.
PATIENCE = 60.0
SLICE = 0.3
EXECUTOR = "run_in_executor, no worker"
TASK = "a task for each, no worker"
# How many good messages are sent with the bad ones, and how many of each bad kind.
GOOD, BAD = 10_000, 500


@attrs.frozen
class Place(Command, name="bench.place"):
    number: int


@attrs.frozen
class Refused(Command, name="bench.refused"):
    number: int


@attrs.frozen
class Unknown(Command, name="bench.unknown"):
    number: int


CATALOG = MessageCatalog()
CATALOG.add(Place)
CATALOG.add(Refused)


class Tally:
    """Counts handled messages, from any thread, and wakes the loop at the last one."""

    def expect(self, n: int) -> asyncio.Event:
        self._loop = asyncio.get_running_loop()
        self._count, self._expected, self._reached = itertools.count(1), n, asyncio.Event()
        return self._reached

    def add(self, _: object) -> None:
        if next(self._count) == self._expected:
            self._loop.call_soon_threadsafe(self._reached.set)

    async def aadd(self, message: object) -> None:
        self.add(message)


def refuse(message: Refused) -> None:
    raise ValueError(message.number)


async def arefuse(message: Refused) -> None:
    raise ValueError(message.number)


def in_groups(
    table: Table, start: Callable[[asyncio.AbstractEventLoop], Awaitable[object]]
) -> Callable[[int], float]:
    """Do nothing, as many at a time as the worker handles, for as long as it takes."""

    async def loop(n: int) -> None:
        running = asyncio.get_running_loop()
        for _ in range(n // CONCURRENCY):
            await asyncio.gather(*[start(running) for _ in range(CONCURRENCY)])

    return table.aclocked(loop)


async def ahandle() -> None:
    pass


def executor(table: Table) -> Callable[[int], float]:
    pool = table.resources.enter_context(ThreadPoolExecutor(CONCURRENCY))
    return in_groups(table, lambda loop: loop.run_in_executor(pool, int))


def tasks(table: Table) -> Callable[[int], float]:
    return in_groups(table, lambda loop: loop.create_task(ahandle()))


def folder(table: Table) -> Path:
    return Path(table.resources.enter_context(tempfile.TemporaryDirectory()))


def sqlite(table: Table, path: Path) -> SQLiteStore:
    made = SQLiteStore(path)
    table.resources.callback(made.close)
    return made


def memory() -> tuple[MessageProducer, MessageConsumer]:
    address = new_id()
    return MemoryProducer(address=address, capacity=10**9), MemoryConsumer(address=address)


def files(table: Table) -> tuple[MessageProducer, MessageConsumer]:
    path, common = str(folder(table) / "queue"), CommonSettings(name="bench", prefetch=PREFETCH)
    return (
        FILES.make_producer(FILES.producer_settings(path=path, sync=False), common),
        FILES.make_consumer(FILES.consumer_settings(path=path, sync=False), common),
    )


def wired(message: Any, body: bytes | None = None) -> WireMessage:
    envelope = Envelope(message)
    return WireMessage(body or encode(envelope), {}, envelope.id, envelope.name)


def placed(n: int) -> list[WireMessage]:
    return [wired(Place(number)) for number in range(n)]


class Working:
    """A worker on the loop of its table, over the transport that *sides* are of."""

    def __init__(
        self,
        table: Table,
        sides: tuple[MessageProducer, MessageConsumer],
        *,
        threads: bool,
        unit: Callable[[], Any] | None = None,
        handler: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> None:
        self._table = table
        self._tally = Tally()
        self.producer, consumer = sides
        bus = CommandBus()
        add, fail = (self._tally.add, refuse) if threads else (self._tally.aadd, arefuse)
        bus.utilize(CommandRouter({Place: handler or add, Refused: fail}))
        if unit is not None:
            bus.unit_of_work(unit)
        run = ConsumerRun(
            name="bench",
            consumer=consumer,
            concurrency=CONCURRENCY,
            prefetch=PREFETCH,
            **options,
        )
        worker = Worker({MessageKind.COMMAND: bus}, [run], CATALOG)
        runner = table.runner
        runner.run(worker.__aenter__())
        table.resources.callback(lambda: runner.run(worker.__aexit__(None, None, None)))
        table.resources.callback(self.producer.close)

    def handle(self, messages: Sequence[WireMessage], good: int) -> float:
        """Return the seconds it takes until *good* of *messages* have been handled."""
        # The loop stands still meanwhile, and so does the worker.
        for start in range(0, len(messages), 1000):
            self.producer.send_many(messages[start : start + 1000])
        start_time = time.perf_counter()
        self._table.runner.run(self._take(good))
        return time.perf_counter() - start_time

    async def _take(self, n: int) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._tally.expect(n).wait()

    def measure(self, n: int) -> float:
        return self.handle(placed(n), n)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Let the worker work on."""
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end:
                msg = "not all of the bad messages were kept"
                raise TimeoutError(msg)
            self._table.runner.run(asyncio.sleep(0.01))


class Poisoned:
    """A worker with a failure store, and messages of which some cannot be handled."""

    def __init__(
        self,
        table: Table,
        sides: tuple[MessageProducer, MessageConsumer],
        *,
        threads: bool,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._failures: FailureStore = sqlite(table, folder(table) / "stores.db").failures
        options = {"failure_store": self._failures, "retry": retry}
        self._working = Working(table, sides, threads=threads, **options)
        self._bad = 0

    def clean(self, n: int) -> float:
        return self._working.measure(n)

    def among_bad(self, n: int) -> float:
        """Measure until all good ones are handled; and see that then all others are kept."""
        bad, messages = n * BAD // GOOD, placed(n)
        others = [
            *(wired(Refused(number)) for number in range(bad)),
            *(wired(Place(number), new_id().encode()) for number in range(bad)),
            *(wired(Unknown(number)) for number in range(bad)),
        ]
        random.Random(n).shuffle(messages := messages + others)
        seconds = self._working.handle(messages, n)
        self._bad += len(others)
        self._working.wait_until(lambda: self._failures.count() == self._bad)
        return seconds


def connections(path: Path) -> Callable[[], Any]:
    """Return a unit of work of the application: a transaction, in a connection per thread."""
    kept = threading.local()

    @contextmanager
    def unit() -> Generator[sqlite3.Connection]:
        if not hasattr(kept, "connection"):
            kept.connection = sqlite3.connect(path, timeout=PATIENCE, check_same_thread=False)
        with kept.connection as connection:
            connection.execute("INSERT INTO effects DEFAULT VALUES")
            yield connection

    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE effects (number INTEGER PRIMARY KEY)")
    connection.close()
    return unit


def through_worker() -> Table:
    table = Table(f"whole worker, {CONCURRENCY} at a time", rates=True, slice_seconds=SLICE)
    table.limit(EXECUTOR, lambda: executor(table))
    table.row(
        "sync handlers",
        lambda: Working(table, memory(), threads=True).measure,
        against=EXECUTOR,
        at_least=0.8,
    )
    table.limit(TASK, lambda: tasks(table))
    table.row(
        "asyncio handlers",
        lambda: Working(table, memory(), threads=False).measure,
        against=TASK,
        at_least=0.5,
    )
    table.row(
        "asyncio handlers, files",
        lambda: Working(table, files(table), threads=False).measure,
        against="asyncio handlers",
    )
    return table


def with_inbox(table: Table, *, joined: bool, inbox: bool) -> Callable[[int], float]:
    path = folder(table) / "shop.db"
    unit = connections(path) if joined else None
    known = sqlite(table, path).inbox if inbox else None
    return Working(table, memory(), threads=True, unit=unit, inbox=known).measure


def inboxes() -> Table:
    table = Table("sync handlers with an inbox", rates=True, slice_seconds=SLICE)
    without, transaction = "no inbox", "a transaction each, no inbox"
    table.limit(without, lambda: with_inbox(table, joined=False, inbox=False))
    table.row("inbox apart", lambda: with_inbox(table, joined=False, inbox=True), against=without)
    table.limit(transaction, lambda: with_inbox(table, joined=True, inbox=False))
    table.row(
        "inbox joined", lambda: with_inbox(table, joined=True, inbox=True), against=transaction
    )
    return table


def poison() -> Table:
    table = Table(f"{BAD * 3:,} bad among {GOOD:,} good", rates=True, times=GOOD)
    tried = RetryPolicy(max_attempts=3, initial_delay=0.01)
    ways: dict[str, Callable[[], Poisoned]] = {
        "files": lambda: Poisoned(table, files(table), threads=True),
        "memory": lambda: Poisoned(table, memory(), threads=True),
        "memory, tried 3 times": lambda: Poisoned(table, memory(), threads=True, retry=tried),
        "memory, asyncio": lambda: Poisoned(table, memory(), threads=False),
    }
    for way, make in ways.items():
        kept, alone = cache(make), f"{way}: good ones alone"
        table.limit(alone, partial(_clean, kept))
        table.row(
            f"{way}: good ones among bad",
            partial(_among_bad, kept),
            against=alone,
            at_least=0.8 if way == "files" else None,
        )
    return table


def _clean(kept: Callable[[], Poisoned]) -> Callable[[int], float]:
    return kept().clean


def _among_bad(kept: Callable[[], Poisoned]) -> Callable[[int], float]:
    return kept().among_bad


def idle(name: str, sides: Callable[[Table], Any], *, stores: bool = False) -> Table:
    """Measure one in a second; a table has one loop, so each has a table of its own."""
    table = Table(f"an idle worker, seconds of CPU: {name}", times=1)

    def make() -> Callable[[int], float]:
        kept: dict[str, Any] = {}
        if stores:
            store = sqlite(table, folder(table) / "stores.db")
            kept = {"failure_store": store.failures, "schedule": store.schedule}
        Working(table, sides(table), threads=False, **kept)

        def measure(seconds: int) -> float:
            before = time.process_time()
            table.runner.run(asyncio.sleep(seconds))
            return time.process_time() - before

        return measure

    table.limit("a core", lambda: float)
    table.row(name, make, against="a core", at_most=0.01)
    return table


def tables() -> Iterator[Table]:
    # What is logged costs what it costs, but not that somebody reads it.
    log = logging.getLogger("postbus")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(logging.NullHandler())
    yield through_worker()
    yield inboxes()
    yield poison()
    yield idle("memory", lambda _: memory())
    yield idle("memory, stores in SQLite", lambda _: memory(), stores=True)
    yield idle("files", files)


if __name__ == "__main__":
    run(__doc__, tables, rounds=5)
