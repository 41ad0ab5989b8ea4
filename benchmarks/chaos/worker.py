"""Kill a worker again and again, at random and between any two steps, and count the effects.

Commands and events go through a folder (`transport = "files"`) to a worker process whose handlers
write rows in their own SQLite transaction, beside an inbox: joined (in the same database) or
apart. Every tenth message is an event with three listeners, of which one fails twice. The worker
is killed at random moments, at each failpoint in turn, and now and then asked to stop instead.
Prints one JSON line, counted from append-only files and from the rows; the exit code is 1 where
something is lost, where a joined inbox let an effect happen twice, or where too few kills bit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from postbus import Command, Event, MessageCatalog, build
from postbus.testing import FAILPOINTS, failpoint
from postbus.threaded import Action
from postbus_files import FilesConsumer, FilesContainer, FilesProducer
from postbus_files._client import FolderClient

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from postbus.transports import Delivery, WireMessage

LISTENERS = ("first", "second", "third")
SABOTAGE = ("ack-early", "drop-nack", "no-inbox", "no-confirm")
LEASE = 2.0
CONCURRENCY = 8
# How long nothing may happen before what is missing counts as lost: many leases.
PATIENCE = 15 * LEASE
# Every so many-th end of a worker is a request to stop at once instead of a kill.
STOP_EVERY = 4


@attrs.frozen
class Place(Command, name="chaos.place"):
    """To be handled once."""

    number: int


@attrs.frozen
class Placed(Event, name="chaos.placed"):
    """To be heard by three listeners, once each."""

    number: int


CATALOG = MessageCatalog()
CATALOG.add(Place)
CATALOG.add(Placed)


class Shop:
    """The application: its database, its handlers, and what they note before they begin."""

    def __init__(self, folder: Path, *, is_joined: bool, sabotage: str = "") -> None:
        self.folder = folder
        self._is_joined = is_joined
        self._sabotage = sabotage
        self._started = os.open(folder / "started", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._current = threading.local()

    def connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.folder / "shop.db", timeout=60, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    def make_tables(self) -> None:
        connection = self.connect()
        connection.execute("CREATE TABLE effects (effect TEXT)")
        connection.close()
        (self.folder / "failed").mkdir()

    @contextmanager
    def unit(self) -> Generator[sqlite3.Connection]:
        """Be a transaction on a connection of the thread's own."""
        connection = getattr(self._current, "connection", None)
        if connection is None:
            connection = self._current.connection = self.connect()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def place(self, message: Place) -> None:
        self._effect(str(message.number))

    def _effect(self, effect: str) -> None:
        os.write(self._started, f"{effect}\n".encode())
        self._current.connection.execute("INSERT INTO effects VALUES (?)", (effect,))

    def first(self, message: Placed) -> None:
        self._effect(f"{message.number}/first")

    def second(self, message: Placed) -> None:
        self._effect(f"{message.number}/second")
        for attempt in (1, 2):
            with suppress(FileExistsError):
                (self.folder / "failed" / f"{message.number}.{attempt}").touch(exist_ok=False)
                msg = f"attempt {attempt} fails"
                raise RuntimeError(msg)

    def third(self, message: Placed) -> None:
        self._effect(f"{message.number}/third")

    def config(self) -> dict[str, Any]:
        inbox = {} if self._sabotage == "no-inbox" else {"inbox": "main"}
        database = "shop.db" if self._is_joined else "stores.db"
        listeners = [*LISTENERS]
        return {
            "stores": {"main": {"store": "sqlite", "path": str(self.folder / database)}},
            "consumers": {
                "shop": {
                    "transport": "files",
                    "path": str(self.folder / "queue"),
                    "lease": LEASE,
                    "concurrency": CONCURRENCY,
                    "guarantee": "at-least-once",
                    "failure_store": "main",
                    "retry": {"max_attempts": 20, "initial_delay": 0.05, "max_delay": 0.2},
                    **inbox,
                }
            },
            "command_bus": {
                "unit_of_work": "unit",
                "router": {"routes": {"chaos.place": "place"}},
            },
            "event_bus": {
                "unit_of_work": "unit",
                "router": {"routes": {"chaos.placed": listeners}},
            },
            "worker": {"shutdown_grace": 0.0},
        }

    def work(self) -> None:
        services = {name: getattr(self, name) for name in ("unit", "place", *LISTENERS)}
        with build(self.config(), services, CATALOG) as postbus:
            postbus.worker().run()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sabotage_worker(kind: str) -> None:
    """Plant a fault in the consumer of this process."""
    if kind == "ack-early":
        receive = FilesConsumer.receive

        async def receive_and_ack(self: FilesConsumer, most: int) -> Sequence[Delivery]:
            deliveries = await receive(self, most)
            for delivery in deliveries:
                delivery.ack()
            return deliveries

        FilesConsumer.receive = receive_and_ack  # type: ignore[method-assign]  # the fault
    elif kind == "drop-nack":
        settle = FolderClient.settle

        def settle_and_drop(self: Any, settlements: Sequence[Any]) -> Any:
            dropped = [
                attrs.evolve(each, action=Action.ACK) if each.action is Action.NACK else each
                for each in settlements
            ]
            return settle(self, dropped)

        FolderClient.settle = settle_and_drop  # type: ignore[method-assign]  # the fault


def sabotage_sender(kind: str) -> None:
    if kind == "no-confirm":
        send_many = FilesProducer.send_many

        def send_most(self: FilesProducer, messages: Sequence[WireMessage]) -> None:
            send_many(self, messages[:-1])

        FilesProducer.send_many = send_most  # type: ignore[method-assign]  # the fault


class Killer:
    """Runs the worker, and ends it again and again."""

    def __init__(self, shop: Shop, arguments: list[str], kills: int) -> None:
        self._shop = shop
        self._arguments = arguments
        self._left = kills
        self.kills = self.bites = 0
        # Every second kill is at a failpoint, all of them in turn.
        self._points = itertools.cycle([None, *(x for p in FAILPOINTS for x in (p, None))][:-1])

    def run_worker(self, is_over: threading.Event) -> None:
        """Go on until everything is over."""
        for turn in itertools.count(1):
            if is_over.is_set():
                return
            if not self._left:
                self._run_until(is_over)
            elif turn % STOP_EVERY == 0:
                self._run_for(random.uniform(0.5, 1.5), signal.SIGTERM)
            else:
                self._kill(next(self._points))

    def _start(self, *extra: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*self._arguments, *extra])

    def _run_until(self, is_over: threading.Event) -> None:
        with self._start() as worker:
            is_over.wait()
            worker.kill()

    def _run_for(self, seconds: float, end: signal.Signals) -> None:
        with self._start() as worker:
            self._wait_for_work()
            time.sleep(seconds)
            worker.send_signal(end)

    def _kill(self, point: str | None) -> None:
        if point is None:
            self._run_for(random.uniform(0.2, 1.0), signal.SIGKILL)
        else:
            with self._start("--point", point, "--after", str(random.randrange(200))) as worker:
                try:
                    worker.wait(10.0)
                except subprocess.TimeoutExpired:  # there was not so much to do
                    worker.kill()
        self.kills += 1
        self._left -= 1
        self.bites += bool(started(self._shop.folder) - set(effects(self._shop)))

    def _wait_for_work(self) -> None:
        before = (self._shop.folder / "started").stat().st_size
        end = time.monotonic() + 10.0
        while (self._shop.folder / "started").stat().st_size == before:
            if time.monotonic() > end:
                return
            time.sleep(0.01)


def started(folder: Path) -> set[str]:
    return set((folder / "started").read_text().split())


def effects(shop: Shop) -> Counter[str]:
    connection = shop.connect()
    found = Counter(effect for (effect,) in connection.execute("SELECT effect FROM effects"))
    connection.close()
    return found


def expected(n: int) -> set[str]:
    """Return the effects of *n* messages, of which every tenth is an event."""
    commands = {str(number) for number in range(n) if number % 10}
    events = {f"{number}/{name}" for number in range(0, n, 10) for name in LISTENERS}
    return commands | events


def send_all(shop: Shop, n: int) -> int:
    """Send *n* messages and return how many were accepted."""
    config = {"path": str(shop.folder / "queue"), "sync": False}
    sent = 0
    with FilesContainer(config=config) as files:
        commands, events = files.command_bus(), files.event_bus()
        for number in range(n):
            if number % 10:
                commands.dispatch(Place(number))
            else:
                events.dispatch(Placed(number))
            sent += 1
    return sent


def wait_until_done(shop: Shop, n: int) -> None:
    """Return when every effect is there, or nothing has happened for long."""
    wanted, last, since = len(expected(n)), -1, time.monotonic()
    while time.monotonic() - since < PATIENCE:
        found = len(effects(shop))
        if found == wanted:
            return
        if found != last:
            last, since = found, time.monotonic()
        time.sleep(0.2)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    shop = Shop(folder, is_joined=options.inbox == "joined", sabotage=options.sabotage)
    shop.make_tables()
    arguments = [sys.executable, __file__, "--work", str(folder), "--inbox", options.inbox]
    killer = Killer(shop, [*arguments, "--sabotage", options.sabotage], options.kills)
    is_over, began = threading.Event(), time.monotonic()
    thread = threading.Thread(target=killer.run_worker, args=(is_over,))
    thread.start()
    try:
        sabotage_sender(options.sabotage)
        sent = send_all(shop, options.n)
        while killer._left and thread.is_alive():
            time.sleep(0.1)
        wait_until_done(shop, options.n)
        # A redelivery that is still on its way must not be missed.
        time.sleep(2 * LEASE)
    finally:
        is_over.set()
        thread.join()
    found = effects(shop)
    return {
        "sent": sent,
        "handled": len(found),
        "failed": failed_for_good(shop),
        "expired": 0,
        "suppressed": sum(Counter((folder / "started").read_text().split()).values())
        - sum(found.values()),
        "lost": len(expected(options.n) - set(found)),
        "effects_twice": sum(count - 1 for count in found.values()),
        "kills": killer.kills,
        "bites": killer.bites,
        "seconds": round(time.monotonic() - began, 1),
    }


def failed_for_good(shop: Shop) -> int:
    """Count what ended in the failure store."""
    with build({"stores": shop.config()["stores"]}, {}, CATALOG) as postbus:
        return postbus.stores["main"].failures.count()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=20_000, help="messages, default %(default)s")
    parser.add_argument("--kills", type=int, default=20, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=7, help="default %(default)s")
    parser.add_argument("--inbox", choices=("joined", "apart"), default="joined")
    parser.add_argument("--sabotage", choices=(*SABOTAGE, ""), default="", help="plant a fault")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--point", help=argparse.SUPPRESS)
    parser.add_argument("--after", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        sabotage_worker(options.sabotage)
        shop = Shop(options.work, is_joined=options.inbox == "joined", sabotage=options.sabotage)
        if options.point is None:
            shop.work()
        else:
            with failpoint(options.point, die, after=options.after):
                shop.work()
        return 0
    random.seed(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options, Path(folder))
    print(json.dumps(figures))
    is_well = not figures["lost"] and not (figures["effects_twice"] and options.inbox == "joined")
    return 0 if is_well and 2 * figures["bites"] >= figures["kills"] else 1


if __name__ == "__main__":
    sys.exit(main())
