"""Send a worker what is no message, and see that it bears it and loses nothing.

Of the bodies 60 % are mutated messages, 30 % noise and 10 % known tricks, of which there are
some hundred; every thousandth is valid. They go through a folder, over ZeroMQ and through
memory to a worker process each. A body is valid where `postbus.wire.decode` takes it and its
payload can be structured: then it is to be handled, once, and else it is to be in the failure
store, byte for byte. Prints one JSON line with the sums and what each transport came to; the exit
code is 1 where a body is in neither place or in the wrong one, where a worker died or logged a
traceback, or where its memory grew by 32 MiB or more after the first tenth.
"""

from __future__ import annotations

import argparse
import hashlib
import signal
import sqlite3
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _bodies import CATALOG, Fuzzed, bodies
from _runs import Ledger, command, parser, report, started

from postbus import build
from postbus.errors import DecodeError, TransportError
from postbus.messages import new_id
from postbus.transports import WireMessage
from postbus.wire import decode

if TYPE_CHECKING:
    import subprocess
    from argparse import Namespace
    from collections.abc import Iterable, Iterator

    from postbus import MessageProducer, Postbus

TRANSPORTS = ("files", "zeromq", "memory")
SABOTAGE = ("forgive", "forget")
PATIENCE = 60.0
MOST_GROWTH_MIB = 32.0
_LENGTH_BYTES = 4


def config(transport: str, folder: Path, sabotage: str) -> dict[str, Any]:
    keys = {
        "files": {"path": str(folder / "queue")},
        "zeromq": {"dsn": f"ipc://{folder / 'socket'}"},
        "memory": {"address": "fuzz"},
    }[transport]
    # A crash of the machine is not what is tried here.
    producer = {**keys, "sync": False} if transport == "files" else keys
    consumer = {"concurrency": 32, "failure_store": "main", **keys}
    if sabotage == "forgive":
        consumer["unknown_fields"] = "ignore"
    return {
        "stores": {"main": {"store": "sqlite", "path": str(folder / "stores.db")}},
        "producers": {"fuzz": {"transport": transport, **producer}},
        "consumers": {"fuzz": {"transport": transport, **consumer}},
        "command_bus": {"router": {"routes": {"chaos.fuzzed": "handle"}}},
    }


def open_application(transport: str, folder: Path, sabotage: str) -> Postbus:
    handled = Ledger(folder / "handled")

    def handle(message: Fuzzed) -> None:
        handled.note(fingerprint(message))

    return build(config(transport, folder, sabotage), {"handle": handle}, CATALOG)


def fingerprint(message: object) -> str:
    return hashlib.sha256(repr(message).encode("utf-8", "surrogatepass")).hexdigest()


def work(options: Namespace) -> None:
    """Be the worker; over memory the sender too."""
    folder, sabotage = options.work, options.sabotage
    with open_application(options.transport, folder, sabotage) as postbus:
        worker = postbus.worker()
        if sabotage == "forget":
            failures: Any = postbus.stores["main"].failures
            failures.put = failures.put_many = lambda failed: None
        if options.transport == "memory":
            arguments = (postbus.producers["fuzz"], written(folder.parent / "bodies"))
            threading.Thread(target=send, args=arguments, daemon=True).start()
        worker.run()


def send(producer: MessageProducer, found: Iterable[bytes]) -> None:
    for body in found:
        message = WireMessage(body, {}, new_id(), "chaos.fuzzed")
        tired = time.monotonic() + PATIENCE
        while True:
            try:
                producer.send(message)
                break
            except TransportError:  # no room: the worker is not so fast, or dead
                if time.monotonic() > tired:
                    raise
                time.sleep(0.01)


def write(path: Path, found: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        for body in found:
            file.write(len(body).to_bytes(_LENGTH_BYTES) + body)


def written(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while length := file.read(_LENGTH_BYTES):
            yield file.read(int.from_bytes(length))


class Accounts:
    """What has become of the bodies that went over one transport."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def kept(self) -> list[tuple[bytes, str]]:
        return self._read("SELECT body, reason FROM postbus_failures")

    def handled(self) -> Counter[str]:
        return Ledger(self._folder / "handled").read()

    def count(self) -> int:
        rows = self._read("SELECT count(*) FROM postbus_failures")
        return (rows[0][0] if rows else 0) + self.handled().total() + self.refused()

    def refused(self) -> int:
        return sum(1 for _ in self._folder.glob("queue/rejected/*"))

    def _read(self, statement: str) -> list[Any]:
        path = self._folder / "stores.db"
        if not path.exists():
            return []
        with closing(sqlite3.connect(path, timeout=60)) as connection:
            try:
                return connection.execute(statement).fetchall()
            except sqlite3.OperationalError:  # its tables are not there yet
                return []


def resident_mib(worker: subprocess.Popen[bytes]) -> float:
    lines = Path(f"/proc/{worker.pid}/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def run(transport: str, options: Namespace, top: Path) -> dict[str, Any]:
    """Send everything over *transport*, and return what came of it."""
    folder = top / transport
    folder.mkdir()
    accounts = Accounts(folder)
    own = ("--transport", transport)
    with started(command(options, folder, *own), folder / "log") as worker:
        if transport != "memory":
            with open_application(transport, folder, "") as postbus:
                send(postbus.producers["fuzz"], written(top / "bodies"))
        before, growth, seen, since = 0.0, 0.0, -1, time.monotonic()
        while time.monotonic() - since < options.patience and worker.poll() is None:
            count = accounts.count()
            if count != seen:
                seen, since = count, time.monotonic()
            if count >= options.n // 10:
                before = before or resident_mib(worker)
                growth = max(growth, resident_mib(worker) - before)
            if count >= options.n:
                break
            time.sleep(0.1)
        is_alive = worker.poll() is None
        worker.send_signal(signal.SIGTERM)
        code = worker.wait(PATIENCE)
    is_well = is_alive and code == 0 and "Traceback" not in (folder / "log").read_text()
    return {**compared(accounts, top), "growth_mib": round(growth, 1), "is_well": is_well}


def compared(accounts: Accounts, top: Path) -> dict[str, Any]:
    """Return how what was handled and kept compares with what should have been."""
    valid: Counter[str] = Counter()
    invalid: Counter[bytes] = Counter()
    for body in written(top / "bodies"):
        try:
            valid[fingerprint(decode(body, CATALOG).message)] += 1
        except DecodeError:
            invalid[body] += 1
    handled, rows = accounts.handled(), accounts.kept()
    kept = Counter(body for body, _ in rows)
    return {
        "handled": handled.total(),
        "failed": kept.total(),
        "refused": accounts.refused(),
        # Handlers that were called for what they should not have seen, or once more.
        "handled_invalid": (handled - valid).total(),
        "missing": (valid - handled).total() + (invalid - kept).total(),
        "kept_valid": (kept - invalid).total(),
        "reasons": len({reason for _, reason in rows}),
    }


def measure(options: Namespace, folder: Path) -> dict[str, Any]:
    write(folder / "bodies", bodies(options.n, options.seed))
    runs = {name: run(name, options, folder) for name in options.transports}

    def total(key: str) -> int:
        return sum(each[key] for each in runs.values())

    return {
        "sent": options.n * len(runs),
        "handled": total("handled"),
        "failed": total("failed"),
        "expired": 0,
        "suppressed": 0,
        "lost": total("missing") - total("refused"),
        "effects_twice": total("handled_invalid"),
        "kills": 0,
        "bites": 0,
        "transports": runs,
    }


def broken(figures: dict[str, Any]) -> list[str]:
    found = [f"{name} is {figures[name]}" for name in ("lost", "effects_twice") if figures[name]]
    for name, each in figures["transports"].items():
        if not each["is_well"]:
            found.append(f"{name}: the worker died, or logged a traceback")
        if each["kept_valid"]:
            found.append(f"{name}: {each['kept_valid']} in the store that could be handled")
        if each["growth_mib"] >= MOST_GROWTH_MIB:
            found.append(f"{name}: {each['growth_mib']} MiB more")
    return found


def main() -> int:
    arguments = parser(__doc__, n=100_000, kills=0, sabotage=SABOTAGE)
    arguments.add_argument("--transports", nargs="+", choices=TRANSPORTS, default=TRANSPORTS)
    arguments.add_argument(
        "--patience", type=float, default=PATIENCE, help="seconds to wait for what does not come"
    )
    arguments.add_argument("--transport", choices=TRANSPORTS, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.work:
        work(options)
        return 0
    return report(options, lambda folder: measure(options, folder), broken)


if __name__ == "__main__":
    sys.exit(main())
