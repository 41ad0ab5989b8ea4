"""Take a worker's failure store away for a while, twice, while messages fail.

Of the messages, which go through a folder, a tenth fail for good and belong into the failure
store, an SQLite file of its own. First another process holds the lock of that file; then the
worker may write to no file at all, as on a full disk (`RLIMIT_FSIZE` of 0: every write fails,
those to the ledger and of the effects too). In the first outage the worker is killed, and the
next one begins without its store. Prints one JSON line, counted as `_runs.py` says, with whether
it paused and how many seconds after each outage it went on; the exit code is 1 where something is
lost or happened twice, where it did not pause, or where it went on later than 10 seconds after.
"""

from __future__ import annotations

import resource
import sqlite3
import sys
import time
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

from _runs import Shop, broken_of, command, is_empty_folder, parser, report, started

if TYPE_CHECKING:
    import subprocess
    from argparse import Namespace
    from collections.abc import Generator
    from pathlib import Path

LEASE = 2.0
PATIENCE = 30.0
RESUMED_WITHIN = 10.0


class FailingShop(Shop):
    """Has a failure store of its own, and a lot to put there."""

    refused_every = 10

    @property
    def store(self) -> Path:
        return self.folder / "failures.db"

    def config(self) -> dict[str, Any]:
        config = super().config()
        failures = {"store": "sqlite", "path": str(self.store), "busy_timeout": 1.0}
        config["stores"]["failures"] = failures
        config["consumers"]["shop"]["failure_store"] = "failures"
        return config


def shop_of(options: Namespace, folder: Path) -> FailingShop:
    queue = str(folder / "queue")
    return FailingShop(
        folder,
        {"transport": "files", "path": queue, "sync": False},
        {"transport": "files", "path": queue, "lease": LEASE},
        inbox="" if options.sabotage == "no-inbox" else "joined",
    )


@contextmanager
def locked(shop: FailingShop, worker: subprocess.Popen[bytes]) -> Generator[None]:
    """Be another process that has the store for itself."""
    with closing(sqlite3.connect(shop.store, timeout=60, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def full(shop: FailingShop, worker: subprocess.Popen[bytes]) -> Generator[None]:
    """Refuse every write of *worker*, to any file."""
    _, most = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (0, most))
    yield
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (most, most))


OUTAGES = {"locked": locked, "full": full}


def measure(options: Namespace, folder: Path) -> dict[str, Any]:
    shop, log, half = shop_of(options, folder), folder / "log", options.n // 2
    work = command(options, folder)
    kills = bites = 0
    paused: dict[str, bool] = {}
    resumed: dict[str, float] = {}
    for index, (name, outage) in enumerate(OUTAGES.items()):
        shop.send(range(index * half, (index + 1) * half), sabotage=options.sabotage)
        with ExitStack() as stack:
            worker = stack.enter_context(started(work, log))
            shop.wait_for_work(half // 10)
            with outage(shop, worker):
                before = shop.started.read()
                if outage is locked:
                    # The next one begins without its store.
                    time.sleep(options.down / 3)
                    worker.kill()
                    worker.wait()
                    kills += 1
                    # It had messages in hand that the store did not take.
                    begun = shop.started.read() - before
                    bites += any(shop.is_refused(int(each)) for each in begun if "/" not in each)
                    stack.enter_context(started(work, log))
                time.sleep(options.down / 3)
                size_bytes = shop.started.size_bytes
                time.sleep(options.down / 3)
                paused[name] = shop.started.size_bytes == size_bytes
            ended = time.monotonic()
            shop.wait_for_work(0)
            resumed[name] = round(time.monotonic() - ended, 1)
            shop.wait_until_quiet(PATIENCE, lambda: is_empty_folder(folder / "queue"))
    outcome = {"kills": kills, "bites": bites, "paused": paused, "resumed": resumed}
    return {**shop.figures(), **outcome}


def broken(figures: dict[str, Any]) -> list[str]:
    late = [
        f"{name}: went on after {took} s"
        for name, took in figures["resumed"].items()
        if took > RESUMED_WITHIN
    ]
    busy = [
        f"{name}: did not pause" for name, is_paused in figures["paused"].items() if not is_paused
    ]
    return [*broken_of(figures), *late, *busy]


def main() -> int:
    arguments = parser(__doc__, n=2_000, kills=1)
    arguments.add_argument(
        "--down", type=float, default=20.0, help="seconds of each outage, default %(default)s"
    )
    options = arguments.parse_args()
    if options.work:
        shop_of(options, options.work).work(options)
        return 0
    return report(options, lambda folder: measure(options, folder), broken)


if __name__ == "__main__":
    sys.exit(main())
