"""Ask queries over ZeroMQ of a worker that is killed again and again, and check every outcome.

Each query is to be answered, or rejected, within its deadline and half a second, and none with
another's answer. The worker is a process of its own; half of the queries are asked by tasks of a
loop, half by promises. Prints one JSON line; the exit code is 1 where a query is lost or crossed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import attrs

from postbus import MessageCatalog, MessageKind, Query, QueryBus, QueryRouter, Worker
from postbus.errors import HandlerFailedError, TimedOutError, TransportError
from postbus.transports import CommonSettings
from postbus.worker import ConsumerRun
from postbus_zeromq import ZEROMQ, ZeroMQContainer

DEADLINE = 2.0
GRACE = 0.5
# A query waits no longer than this for a worker that is starting again.
SEND_TIMEOUT = 1.0
BETWEEN_KILLS = 1.0
IN_FLIGHT = 64
SABOTAGE = ("cross-replies", "no-deadline")


@attrs.frozen
class Square(Query[int], name="chaos.square"):
    """Asks for the square of a number."""

    number: int


def answer(dsn: str, ledger: Path, sabotage: str) -> None:
    """Be the worker: note what is started in an append-only file, take a while, answer."""
    started = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def find(query: Square) -> int:
        os.write(started, b"%d\n" % query.number)
        await asyncio.sleep(random.uniform(0.0, 0.01))
        return (query.number + (sabotage == "cross-replies")) ** 2

    catalog = MessageCatalog()
    catalog.add(Square)
    bus = QueryBus()
    bus.utilize(QueryRouter({Square: find}))
    settings = ZEROMQ.consumer_settings(dsn=dsn, rpc=True)
    consumer = ZEROMQ.make_consumer(settings, CommonSettings(name="chaos"))
    run = ConsumerRun(name="chaos", consumer=consumer, concurrency=IN_FLIGHT)
    Worker({MessageKind.QUERY: bus}, [run], catalog).run()


class Outcomes:
    """What became of each query. Any thread."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.open: dict[int, float] = {}

    def ask(self, number: int) -> None:
        """Note that *number* is asked now."""
        self.counts["sent"] += 1
        self.open[number] = time.monotonic()

    def settle(self, number: int, result: object) -> None:
        """Note what *number* came to: an answer, or an error."""
        took = time.monotonic() - self.open.pop(number)
        if took > DEADLINE + GRACE:
            self.counts["lost"] += 1
        elif isinstance(result, TimedOutError):
            self.counts["expired"] += 1
        elif isinstance(result, TransportError | HandlerFailedError):
            self.counts["failed"] += 1
        elif result == number**2:
            self.counts["handled"] += 1
        else:
            self.counts["crossed"] += 1


class Killer(threading.Thread):
    """Starts the worker, kills it a second after its first answer, and starts it again."""

    def __init__(self, arguments: list[str], kills: int, outcomes: Outcomes, ledger: Path) -> None:
        super().__init__(daemon=True)
        self._arguments = arguments
        self._left = kills
        self._outcomes = outcomes
        self._ledger = ledger
        self.kills = self.bites = 0
        self.is_over = threading.Event()

    def run(self) -> None:
        """Go on until the last query is settled."""
        while not self.is_over.is_set():
            handled = self._outcomes.counts["handled"]
            with subprocess.Popen(self._arguments) as worker:
                while self._outcomes.counts["handled"] == handled and self._left:
                    if self.is_over.wait(0.01):
                        break
                self.is_over.wait(BETWEEN_KILLS if self._left else None)
                os.kill(worker.pid, signal.SIGKILL)
                worker.wait()
            if not self.is_over.is_set():
                self._count()

    def _count(self) -> None:
        self.kills += 1
        self._left -= 1
        started = {int(line) for line in self._ledger.read_bytes().split(b"\n")[:-1]}
        self.bites += bool(started & set(self._outcomes.open))


async def ask_all(bus: QueryBus, n: int, kills: int, outcomes: Outcomes, sabotage: str) -> None:
    numbers = iter(range(n))
    timeout = 60.0 if sabotage == "no-deadline" else DEADLINE
    # So that the last query is asked after the last kill.
    pause = IN_FLIGHT * (kills + 1) * BETWEEN_KILLS / n

    async def ask(number: int) -> object:
        if number % 2:
            return await bus.adispatch(Square(number), timeout=timeout)
        return await bus.dispatch(Square(number), timeout=timeout)

    async def client() -> None:
        for number in numbers:
            outcomes.ask(number)
            try:
                result: object = await ask(number)
            except Exception as error:
                result = error
            outcomes.settle(number, result)
            await asyncio.sleep(random.uniform(0.0, 2 * pause))

    await asyncio.gather(*[client() for _ in range(IN_FLIGHT)])


def free_dsn() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"tcp://127.0.0.1:{server.getsockname()[1]}"


def measure(n: int, kills: int, sabotage: str, folder: Path) -> dict[str, Any]:
    outcomes, ledger, dsn = Outcomes(), folder / "started", free_dsn()
    ledger.touch()
    worker = [sys.executable, __file__, "--answer", dsn, str(ledger), "--sabotage", sabotage]
    killer = Killer(worker, kills, outcomes, ledger)
    started = time.monotonic()
    killer.start()
    config = {"dsn": dsn, "rpc": True, "send_timeout": SEND_TIMEOUT}
    with ZeroMQContainer(config=config) as zeromq:
        asyncio.run(ask_all(zeromq.query_bus(), n, kills, outcomes, sabotage))
    killer.is_over.set()
    killer.join()
    names = ("sent", "handled", "failed", "expired", "suppressed", "lost", "effects_twice")
    return {
        **{name: outcomes.counts[name] for name in (*names, "crossed")},
        "kills": killer.kills,
        "bites": killer.bites,
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10_000, help="queries, default %(default)s")
    parser.add_argument("--kills", type=int, default=20, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=7, help="default %(default)s")
    parser.add_argument("--sabotage", choices=(*SABOTAGE, ""), default="", help="plant a fault")
    parser.add_argument("--answer", nargs=2, metavar=("DSN", "LEDGER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    random.seed(options.seed)
    if options.answer:
        answer(options.answer[0], Path(options.answer[1]), options.sabotage)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options.n, options.kills, options.sabotage, Path(folder))
    print(json.dumps(figures))
    is_well = not (figures["lost"] or figures["crossed"])
    return 0 if is_well and 2 * figures["bites"] >= figures["kills"] else 1


if __name__ == "__main__":
    sys.exit(main())
