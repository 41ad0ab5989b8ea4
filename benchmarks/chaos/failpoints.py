"""Kill a worker at each point between two steps of a message, and make a table of what came of it.

For each point a worker is killed there ten times; a batch of messages waits whenever one starts.
Over files with a joined inbox nothing may be lost and nothing may happen twice; with the inbox
apart an effect may happen twice where the handler's transaction was committed and the inbox does
not know yet: at `after commit`, and at `stored`, where another message may be there. Over ZeroMQ,
which delivers at most once, what a dead worker had is gone, and nothing may happen twice. Prints
the table to standard error and one JSON line with the sums, counted as `_runs.py` says; `lost`
counts what was lost though it must not, and so does `effects_twice`; the exit code is 1 where
there is any, or where half of the workers did not come to a point.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from contextlib import suppress
from subprocess import TimeoutExpired
from typing import TYPE_CHECKING, Any

import attrs
from _runs import POINTS, TIRED, Shop, broken_of, command, is_empty_folder, parser, report, started

from postbus.worker import _kept

if TYPE_CHECKING:
    from argparse import Namespace
    from pathlib import Path

LEASE = 0.5
# Half a minute is the lease of a row in an inbox that is apart.
INBOX_LEASE = 2.0
PATIENCE = 45.0
BATCH = 20


@attrs.frozen
class Way:
    """A transport and an inbox, and at which points they may lose or repeat."""

    transport: str
    inbox: str
    may_lose: bool = False
    may_repeat: tuple[str, ...] = ()

    def sections(self, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.transport == "files":
            keys = {"transport": "files", "path": str(folder / "queue")}
            return {**keys, "sync": False}, {**keys, "lease": LEASE}
        keys = {"transport": "zeromq", "dsn": f"ipc://{folder / 'socket'}"}
        # What a worker that was killed has not taken is given up soon.
        sender = {"send_timeout": TIRED, "linger": 2.0}
        return {**keys, **sender}, {**keys, "guarantee": "at-most-once"}


WAYS = {
    "files": Way("files", "joined"),
    # While one message is being stored another one may have come to its commit.
    "files-apart": Way("files", "apart", may_repeat=("after commit", "stored")),
    "zeromq": Way("zeromq", "joined", may_lose=True),
}


class PointedShop(Shop):
    """Fails for good once in each batch, so that each point is reached."""

    refused_every = BATCH

    def config(self) -> dict[str, Any]:
        config = super().config()
        # One at a time: else another message is at another point when the worker dies.
        config["consumers"]["shop"]["concurrency"] = 1
        return config


def shop_of(options: Namespace, folder: Path) -> Shop:
    way = WAYS[options.way]
    producer, consumer = way.sections(folder)
    return PointedShop(folder, producer, consumer, inbox=way.inbox)


def row(options: Namespace, way: Way, point: str, folder: Path) -> dict[str, Any]:
    """Kill workers at *point* until all has been sent, let one finish, and count."""
    folder.mkdir()
    shop, log, kills, bites = shop_of(options, folder), folder / "log", 0, 0
    own = command(options, folder, "--way", options.way)
    for first in range(0, options.n, BATCH):
        # One message of a batch fails for good, and that one is stored.
        after = 0 if point == "stored" else random.randrange(BATCH // 2)
        with started([*own, "--point", point, "--after", str(after)], log) as worker:
            shop.send(range(first, min(first + BATCH, options.n)))
            with suppress(TimeoutExpired):
                worker.wait(TIRED)
            kills += 1
            bites += worker.returncode is not None
    with started(own, log):
        if way.may_lose:
            shop.wait_until_quiet(4.0)
        else:
            shop.wait_until_quiet(PATIENCE, lambda: is_empty_folder(folder / "queue"))
    return {**shop.figures(), "kills": kills, "bites": bites}


def measure(options: Namespace, folder: Path) -> dict[str, Any]:
    sums: Counter[str] = Counter()
    table: list[dict[str, Any]] = []
    missed = 0
    print(f"{'way':<12} {'killed at':<16}{'kills':>6}{'lost':>6}{'twice':>6}", file=sys.stderr)
    for name in options.ways:
        options.way, way = name, WAYS[name]
        for point in options.points:
            found = row(options, way, point, folder / f"{name}-{point.replace(' ', '-')}")
            lost, twice = found["lost"], found["effects_twice"]
            kills, bites = found["kills"], found["bites"]
            table.append(
                {"way": name, "point": point, "bites": bites, "lost": lost, "twice": twice}
            )
            missed += 2 * bites < kills
            told = f"{name:<12} {point:<16}{found['bites']:>6}{lost:>6}{twice:>6}"
            print(told, file=sys.stderr, flush=True)
            if way.may_lose:
                found["lost"] = 0
            if point in way.may_repeat:
                found["effects_twice"] = 0
            sums.update(found)
    return {**sums, "missed": missed, "table": table}


def broken(figures: dict[str, Any]) -> list[str]:
    missed = [f"{figures['missed']} points were not reached"] if figures["missed"] else []
    return [*broken_of(figures), *missed]


def main() -> int:
    arguments = parser(__doc__, n=200, kills=0)
    arguments.add_argument("--ways", nargs="+", choices=WAYS, default=tuple(WAYS))
    arguments.add_argument("--points", nargs="+", choices=POINTS, default=POINTS)
    arguments.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.work:
        # So that nobody has to wait for it.
        vars(_kept)["INBOX_LEASE"] = INBOX_LEASE
        shop_of(options, options.work).work(options)
        return 0
    return report(options, lambda folder: measure(options, folder), broken)


if __name__ == "__main__":
    sys.exit(main())
