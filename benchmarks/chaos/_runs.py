"""What the chaos runs share: a shop to torment, ledgers, processes that are killed, the figures.

The shop handles commands, of which some fail for good, and events with three listeners, of which
one fails twice. What a handler does is a row that it writes in its own SQLite transaction, beside
the inbox of the consumer; that it has begun stands in an append-only file. A script brings the
sections of its transport and says who is killed. Everything is counted from those files and
rows, and nothing from a transport's own counters.

A script is two programs: the run, and with `--work FOLDER` the worker that it starts.
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
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import attrs

from postbus import Command, Event, MessageCatalog, MessageProducer, NeverRetry, build
from postbus.testing import FAILPOINTS, failpoint
from postbus.wire import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Mapping, Sequence

    from postbus import Postbus, Worker
    from postbus.transports import WireMessage

LISTENERS = ("first", "second", "third")
SABOTAGE = ("ack-early", "drop-nack", "no-inbox", "no-confirm")
# Every so many-th end of a worker is a request to stop at once instead of a kill.
STOP_EVERY = 3
# Of so many messages, the sender that does not wait for its confirms loses one.
UNCONFIRMED_EVERY = 37
# One of so many commands fails for good.
REFUSED_EVERY = 100
# What is not reached in so many seconds is not reached at all, since nothing is left to do.
TIRED = 10.0
_LINE_BYTES = 6
# The points in the order in which they are killed at: what a short run must have comes first.
POINTS = (*FAILPOINTS[FAILPOINTS.index("after commit") :], *FAILPOINTS)[: len(FAILPOINTS)]


@attrs.frozen
class Place(Command, name="chaos.place"):
    """To be handled once."""

    number: int


@attrs.frozen
class Placed(Event, name="chaos.placed"):
    """To be heard by three listeners, once each."""

    number: int


class Refused(NeverRetry):
    """Another attempt would not help."""


CATALOG = MessageCatalog()
CATALOG.add(Place)
CATALOG.add(Placed)


class Ledger:
    """An append-only file with a line for each thing that happened. Any thread, any process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, line: object) -> None:
        os.write(self._file, f"{line}\n".encode())

    def read(self) -> Counter[str]:
        return Counter(self._path.read_text().split("\n")[:-1])

    @property
    def size_bytes(self) -> int:
        return self._path.stat().st_size


class Shop:
    """The application: its database, its handlers, and the configuration of both sides.

    A script that wants other handlers overrides `seconds`, or `place`.

    Args:
        folder: where everything is that a run leaves.
        producer: the section of the producer.
        consumer: the section of the consumer; inbox, retries and failure store are put in here.
        inbox: "joined" (in the database of the effects), "apart" or "".
    """

    catalog = CATALOG
    #: One of so many commands fails for good.
    refused_every = REFUSED_EVERY

    def __init__(
        self,
        folder: Path,
        producer: Mapping[str, Any],
        consumer: Mapping[str, Any],
        *,
        inbox: str = "joined",
    ) -> None:
        self.folder = folder
        self.sent = Ledger(folder / "sent")
        self.started = Ledger(folder / "started")
        self._producer = producer
        self._consumer = consumer
        self._inbox = inbox
        self.current = threading.local()
        (folder / "failed").mkdir(exist_ok=True)
        connection = self.connect()
        connection.execute("CREATE TABLE IF NOT EXISTS effects (effect TEXT)")
        connection.close()

    # -- the application -------------------------------------------------------------------

    def connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.folder / "shop.db", timeout=60, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    @contextmanager
    def unit(self) -> Generator[sqlite3.Connection]:
        """Be a transaction on a connection of the thread's own."""
        connection = getattr(self.current, "connection", None)
        if connection is None:
            connection = self.current.connection = self.connect()
        # The first row takes the lock for writing, so that handlers are at work side by side.
        connection.execute("BEGIN")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def seconds(self, number: int) -> float:
        """Return how long the message *number* takes, by default so that a kill hits some."""
        return 0.001

    def effect(self, effect: object) -> None:
        self.started.note(effect)
        time.sleep(self.seconds(int(str(effect).partition("/")[0])))
        self.current.connection.execute("INSERT INTO effects VALUES (?)", (str(effect),))

    def place(self, message: Place) -> None:
        self.effect(message.number)
        if self.is_refused(message.number):
            raise Refused

    def first(self, message: Placed) -> None:
        self.effect(f"{message.number}/first")

    def second(self, message: Placed) -> None:
        self.effect(f"{message.number}/second")
        for attempt in (1, 2):
            with suppress(FileExistsError):
                (self.folder / "failed" / f"{message.number}.{attempt}").touch(exist_ok=False)
                msg = f"attempt {attempt} fails"
                raise RuntimeError(msg)

    def third(self, message: Placed) -> None:
        self.effect(f"{message.number}/third")

    def handlers(self) -> dict[str, Callable[[Any], None]]:
        """Return what a script adds to the services, for routes that it adds to the config."""
        return {}

    def config(self) -> dict[str, Any]:
        database = "stores.db" if self._inbox == "apart" else "shop.db"
        consumer = {
            "concurrency": 8,
            # So that whoever ends the worker finds messages that it holds and has not begun.
            "prefetch": 64,
            "guarantee": "at-least-once",
            "failure_store": "main",
            "retry": {"max_attempts": 20, "initial_delay": 0.05, "max_delay": 0.2},
            **({"inbox": "main"} if self._inbox else {}),
            **self._consumer,
        }
        send = {"send": {"chaos.*": "producers.shop"}} if self._producer else {}
        return {
            "stores": {"main": {"store": "sqlite", "path": str(self.folder / database)}},
            "producers": {"shop": dict(self._producer)} if self._producer else {},
            "consumers": {"shop": consumer},
            "command_bus": {
                "unit_of_work": "unit",
                "router": {"routes": {"chaos.place": "place"}, **send},
            },
            "event_bus": {
                "unit_of_work": "unit",
                "router": {"routes": {"chaos.placed": [*LISTENERS]}, **send},
            },
            "worker": {"shutdown_grace": 0.0},
        }

    def open(self) -> Postbus:
        """Build it; whoever asks closes it."""
        services = {name: getattr(self, name) for name in ("unit", "place", *LISTENERS)}
        return build(self.config(), {**services, **self.handlers()}, self.catalog)

    # -- its two sides ---------------------------------------------------------------------

    def work(self, options: argparse.Namespace) -> None:
        """Be the worker process, until it is told to stop or killed at a point."""
        die = failpoint(options.point, _die, after=options.after) if options.point else None
        with die or nullcontext(), self.open() as postbus:
            worker = postbus.worker()
            if options.sabotage in {"ack-early", "drop-nack"}:
                _spoil(worker, options.sabotage)
            worker.run()

    def send(self, numbers: Sequence[int], *, sabotage: str = "") -> None:
        """Send every tenth as an event and the others as commands; note what was accepted."""
        with self.open() as postbus:
            producer = postbus.producers["shop"]
            if sabotage == "no-confirm":
                producer = _Unconfirmed(producer)
            with postbus.replacing("shop", producer):
                commands, events = postbus.command_bus, postbus.event_bus
                for number in numbers:
                    if number % 10:
                        commands.dispatch(Place(number))
                    else:
                        events.dispatch(Placed(number))
                    self.sent.note(number)

    # -- what came of it -------------------------------------------------------------------

    def effects(self) -> Counter[str]:
        connection = self.connect()
        found = Counter(effect for (effect,) in connection.execute("SELECT effect FROM effects"))
        connection.close()
        return found

    def is_refused(self, number: int) -> bool:
        """Return whether the command *number* fails for good."""
        return is_refused(number, self.refused_every)

    def expected(self) -> set[str]:
        """Return the effects of what was sent, of which every tenth is an event."""
        numbers = [int(line) for line in self.sent.read()]
        commands = {str(each) for each in numbers if each % 10 and not self.is_refused(each)}
        events = [each for each in numbers if not each % 10]
        return commands | {f"{each}/{name}" for each in events for name in LISTENERS}

    def unfinished(self, begun: Counter[str]) -> set[str]:
        """Return what of *begun* has no effect, but for what is meant to fail."""
        left = (begun.keys() - self.effects().keys()) & self.expected()
        return {each for each in left if not each.endswith("/second")}

    def wait_for_work(
        self, more: int, is_over: threading.Event | None = None, patience: float = TIRED
    ) -> None:
        """Return when about *more* messages, and one, have begun from now on.

        Or when *is_over* is set, or after *patience* seconds: nothing can be left to do.
        """
        is_over = is_over or threading.Event()
        enough, end = self.started.size_bytes + more * _LINE_BYTES, time.monotonic() + patience
        while self.started.size_bytes <= enough and time.monotonic() < end:
            if is_over.wait(0.005):
                return

    def wait_until_quiet(
        self, patience: float, is_empty: Callable[[], bool] | None = None
    ) -> None:
        """Return when nothing more can come, a second delivery of what was handled included.

        That is when *is_empty* has said for a second that nothing waits anywhere. Where nobody
        can say so: when every effect is there and nothing has begun for a quarter of *patience*
        seconds. In any case when nothing has begun for all of *patience*.
        """
        wanted, size, since = self.expected(), -1, time.monotonic()
        filled = time.monotonic()
        while time.monotonic() - since < patience:
            if self.started.size_bytes != size:
                size, since = self.started.size_bytes, time.monotonic()
            if is_empty is None:
                is_settled = time.monotonic() - since > patience / 4
                if is_settled and self.effects().keys() >= wanted:
                    return
            elif not is_empty():
                filled = time.monotonic()
            elif time.monotonic() - filled > 1.0:
                return
            time.sleep(0.1)

    def failed(self) -> Counter[int]:
        """Return the numbers of what ended in the failure store."""
        config = self.config()
        store = config["consumers"]["shop"]["failure_store"]
        with build({"stores": config["stores"]}, {}, CATALOG) as postbus:
            kept = postbus.stores[store].failures.list(limit=1_000_000)
        return Counter(decode(each.body, CATALOG).message.number for each in kept)

    def figures(self) -> dict[str, Any]:
        """Count everything, from the ledgers and the rows."""
        found, failed, sent = self.effects(), self.failed(), self.sent.read()
        refused = {int(line) for line in sent if self.is_refused(int(line))}
        return {
            "sent": sent.total(),
            "handled": len(found),
            "failed": failed.total(),
            "expired": 0,
            "suppressed": self.started.read().total() - found.total(),
            "lost": len(self.expected() - found.keys()) + len(refused - failed.keys()),
            "effects_twice": found.total() - len(found) + failed.total() - len(failed),
        }


def is_empty_folder(queue: Path) -> bool:
    """Return whether nothing waits in a queue of the transport `files`, and nobody holds any."""
    return not any(any((queue / name).iterdir()) for name in ("ready", "delayed", "claimed"))


def is_refused(number: int, every: int = REFUSED_EVERY) -> bool:
    """Return whether the command *number* fails for good."""
    return number % every == every - 1


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _spoil(worker: Worker, kind: str) -> None:
    """Have the consumers of *worker* acknowledge too early, or instead of giving back."""
    for run in worker._runs:
        consumer: Any = run.consumer
        receive = consumer.receive

        async def receive_spoilt(most: int, receive: Any = receive) -> Any:
            deliveries = await receive(most)
            for delivery in deliveries:
                if kind == "ack-early":
                    delivery.ack()
                else:
                    type(delivery).nack = type(delivery).ack
            return deliveries

        consumer.receive = receive_spoilt


class _Unconfirmed(MessageProducer):
    """Says that it has sent what it has not."""

    def __init__(self, producer: MessageProducer) -> None:
        self.capabilities = producer.capabilities
        self._producer = producer
        self._counter = itertools.count(1)

    def send_many(self, messages: Sequence[WireMessage]) -> None:
        for message in messages:
            if next(self._counter) % UNCONFIRMED_EVERY:
                self._producer.send(message)

    def close(self) -> None:
        self._producer.close()


# -- processes ----------------------------------------------------------------------------------


@contextmanager
def started(command: Sequence[str], log: Path) -> Generator[subprocess.Popen[bytes]]:
    """Run *command* while the block runs, its output appended to *log*; then kill it."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Killer(threading.Thread):
    """Runs the worker, and ends it again and again; after the last kill it lets one work.

    Half of the kills are at failpoints, all of them in turn, and half wherever it is; now and
    then the worker is asked to stop instead. Each life is as long as it takes to begin with so
    many messages, by chance. Leaving the `with` ends the worker that is left.

    A kill bites where it was at a failpoint, which is in the middle of a message, or where a
    message had begun and was not committed.

    Args:
        shop: what it is the worker of.
        command: what starts it; takes `--point` and `--after`.
        kills: how many.
        n: messages in all: no life is so long that the next ones find none.
    """

    def __init__(self, shop: Shop, command: Sequence[str], kills: int, n: int) -> None:
        super().__init__(name="killer")
        self._shop = shop
        self._command = command
        self._log = shop.folder / "log"
        self._kinds = itertools.cycle([each for point in POINTS for each in (point, None)])
        self._is_over = threading.Event()
        #: Set when the last kill is done.
        self.is_done = threading.Event()
        self._within = max(1, min(200, n // (2 * max(1, kills))))
        self._left = kills
        self.kills = self.bites = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self.join()

    def run(self) -> None:
        try:
            for turn in itertools.count(1):
                if not self._left or self._is_over.is_set():
                    break
                if turn % STOP_EVERY == 1:
                    self._run_until(signal.SIGTERM)
                else:
                    self._kill(next(self._kinds))
        finally:
            self.is_done.set()
        with started(self._command, self._log):
            self._is_over.wait()

    def _kill(self, point: str | None) -> None:
        before, has_bitten = self._shop.started.read(), False
        if point is None:
            self._run_until(signal.SIGKILL)
        else:
            # Only what fails for good is stored.
            each = self._shop.refused_every if point == "stored" else 1
            passes = random.randrange(self._within) // each
            at = ("--point", point, "--after", str(passes))
            with started([*self._command, *at], self._log) as worker:
                # Where there is not so much left to do it is killed in the end.
                with suppress(subprocess.TimeoutExpired):
                    worker.wait(TIRED)
                has_bitten = worker.returncode is not None
        self.kills += 1
        self._left -= 1
        has_bitten = has_bitten or bool(self._shop.unfinished(self._shop.started.read() - before))
        self.bites += has_bitten

    def _run_until(self, end: signal.Signals) -> None:
        """Run a worker until it has begun with some more messages, and *end* it then."""
        more = random.randrange(self._within)
        with started(self._command, self._log) as worker:
            self._shop.wait_for_work(more, self._is_over)
            worker.send_signal(end)
            with suppress(subprocess.TimeoutExpired):
                worker.wait(TIRED)


# -- the program --------------------------------------------------------------------------------


def parser(
    description: str | None, *, n: int, kills: int, sabotage: Sequence[str] = SABOTAGE
) -> argparse.ArgumentParser:
    """Return a parser of what every run takes; a script adds its own."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--n", type=int, default=n, help="messages, default %(default)s")
    made.add_argument("--kills", type=int, default=kills, help="default %(default)s")
    made.add_argument("--seed", type=int, default=7, help="default %(default)s")
    made.add_argument("--sabotage", choices=(*sabotage, ""), default="", help="plant a fault")
    made.add_argument("--work", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    made.add_argument("--point", help=argparse.SUPPRESS)
    made.add_argument("--after", type=int, default=0, help=argparse.SUPPRESS)
    return made


def command(options: argparse.Namespace, folder: Path, *more: str) -> list[str]:
    """Return what starts the worker of the running script."""
    own = ("--work", str(folder), "--sabotage", options.sabotage, *more)
    return [sys.executable, sys.argv[0], *own]


def report(
    options: argparse.Namespace,
    measure: Callable[[Path], dict[str, Any]],
    holds: Callable[[dict[str, Any]], Collection[str]] | None = None,
) -> int:
    """Run *measure* in a folder of its own, print its figures, and return the exit code.

    It is 1 where something is lost or happened twice, where under half of the kills bit, or where
    *holds*, which has its place, names what does not hold.
    """
    random.seed(options.seed)
    # So that the processes that were started end with a run that is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    broken: Collection[str] = ["the run itself"]
    with tempfile.TemporaryDirectory(prefix="postbus-chaos-") as name:
        folder, began = Path(name), time.monotonic()
        try:
            figures = measure(folder)
            figures["seconds"] = round(time.monotonic() - began, 1)
            print(json.dumps(figures), flush=True)
            broken = (holds or broken_of)(figures)
        finally:
            for each in broken:
                print(f"does not hold: {each}", file=sys.stderr)
            logs = sorted(folder.glob("**/log"), key=lambda log: log.stat().st_mtime)
            for log in logs[-1:] if broken else ():
                lines = log.read_text(errors="replace").splitlines()
                print(f"{log.relative_to(folder)}:", *lines[-20:], sep="\n", file=sys.stderr)
    return 1 if broken else 0


def broken_of(figures: Mapping[str, Any]) -> list[str]:
    """Return what every run demands and these figures lack."""
    broken = [f"{name} is {figures[name]}" for name in ("lost", "effects_twice") if figures[name]]
    if 2 * figures["bites"] < figures["kills"]:
        broken.append(f"{figures['bites']} of {figures['kills']} kills hit work in progress")
    return broken
