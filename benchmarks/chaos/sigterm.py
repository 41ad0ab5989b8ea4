"""Ask a worker to stop again and again, under load, while it connects, and while it backs off.

Handlers take 5 ms, every hundredth 3 s; the worker has 5 s to finish what has begun. The last
fifth of the workers are asked twice, and end at once. Prints one JSON line, counted as `_runs.py`
says, with the slowest ends in seconds; the exit code is 1 where something is lost or happened
twice, where a worker took longer than its grace and a second, where one that was asked once ended
with another code than 0, left what it had begun or gave back what it had done, and where one that
was asked twice, connects, or backs off took longer than a second.
"""

from __future__ import annotations

import argparse
import random
import signal
import socket
import sys
import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

from _runs import (
    CATALOG,
    TIRED,
    Shop,
    broken_of,
    command,
    is_empty_folder,
    parser,
    report,
    started,
)

from postbus.wire import decode
from postbus_files._names import Entry

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable
    from pathlib import Path

GRACE = 5.0
LEASE = 2.0
PATIENCE = 30.0
QUICK, SLOW_EVERY = 0.005, 100
# The last of the workers are asked twice, that long after the first time.
TWICE = 0.2
BETWEEN = 0.2
AT_ONCE = 1.0
BACK_OFF = "back-off"


def consumers_of(address: str) -> dict[str, dict[str, Any]]:
    """Return a consumer of each transport that connects to *address*."""
    return {
        "beanstalkd": {"address": address, "tubes": ["chaos"]},
        "gearman": {"servers": [address], "functions": ["chaos"]},
        "rabbitmq": {"url": f"amqp://guest:guest@{address}//", "queues": ["chaos"]},
        "redis": {"url": f"redis://{address}/0", "queues": ["chaos"]},
    }


TROUBLES = (BACK_OFF, *consumers_of(""))


class SlowShop(Shop):
    """Takes its time for each message, and for some a lot of it."""

    slow = 3.0

    def seconds(self, number: int) -> float:
        return self.slow if number % SLOW_EVERY == SLOW_EVERY // 2 + 1 else QUICK

    def config(self) -> dict[str, Any]:
        return {**super().config(), "worker": {"shutdown_grace": GRACE}}


def shop_of(options: Namespace, folder: Path) -> Shop:
    SlowShop.slow = options.slow
    inbox = "" if options.sabotage == "no-inbox" else "joined"
    if options.address:
        silent = consumers_of(options.address)[options.trouble]
        return SlowShop(folder, {}, {"transport": options.trouble, **silent}, inbox=inbox)
    queue = folder / "queue"
    if options.trouble == BACK_OFF:
        queue.touch()  # no folder can be made there
    producer = {"transport": "files", "path": str(queue), "sync": False}
    consumer = {"transport": "files", "path": str(queue), "lease": LEASE}
    return SlowShop(folder, producer, consumer, inbox=inbox)


class Stops:
    """Starts workers, stops them, and remembers how they ended."""

    def __init__(self, shop: Shop, folder: Path, options: Namespace) -> None:
        self._shop = shop
        self._folder = folder
        self._options = options
        self._more = ("--slow", str(options.slow))
        self.kills = self.bites = self.left_behind = self.unfinished = 0
        self.done_again = 0
        self.wrong_codes: list[int] = []
        self.slowest = {"once": 0.0, "twice": 0.0, **dict.fromkeys(TROUBLES, 0.0)}

    def command(self) -> list[str]:
        """Return what starts a worker."""
        return command(self._options, self._folder, *self._more)

    def under_load(self, more: int, *, twice: bool) -> None:
        """Stop a worker that has begun with *more* messages."""
        shop, before = self._shop, self._shop.started.read()
        with started(self.command(), self._folder / "log") as worker:
            # Before it has begun a signal would end it as any other process.
            shop.wait_for_work(more, patience=PATIENCE)
            worker.send_signal(signal.SIGTERM)
            self.kills += 1
            self.bites += bool(shop.unfinished(shop.started.read() - before))
            if twice:
                time.sleep(BETWEEN)
                worker.send_signal(signal.SIGTERM)
            code = self._wait(worker.wait, "twice" if twice else "once")
        if not twice:
            self.wrong_codes += [code] if code else []
            # Nobody is at work now: what was claimed has been finished, or given back.
            self.left_behind += len(list((self._folder / "queue" / "claimed").iterdir()))
            self.unfinished += len(shop.unfinished(shop.started.read() - before))
            self.done_again += len(self._returned() & shop.effects().keys())

    def _returned(self) -> set[str]:
        """Return the numbers of the commands that a worker had and gave back."""
        names = {path: Entry.parse(path.name) for path in (self._folder / "queue/ready").iterdir()}
        paths = [path for path, entry in names.items() if entry is not None and entry.deliveries]
        envelopes = [decode(path.read_bytes(), CATALOG) for path in paths]
        return {str(each.message.number) for each in envelopes if each.name == "chaos.place"}

    def in_trouble(self, trouble: str) -> None:
        """Stop a worker that cannot receive: it backs off, or nobody answers it."""
        folder = self._folder / trouble
        folder.mkdir()
        with ExitStack() as stack:
            server = stack.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
            address = f"127.0.0.1:{server.getsockname()[1]}" if trouble != BACK_OFF else ""
            more = ("--trouble", trouble, "--address", address)
            run = started(command(self._options, folder, *self._more, *more), folder / "log")
            worker = stack.enter_context(run)
            if address:
                server.settimeout(TIRED)
                stack.enter_context(closing(server.accept()[0]))
            else:
                wait_for_line(folder / "log", "receive failed")
            time.sleep(BETWEEN)
            worker.send_signal(signal.SIGTERM)
            code = self._wait(worker.wait, trouble)
            self.wrong_codes += [code] if code else []

    def _wait(self, wait: Callable[[float], int], kind: str) -> int:
        began = time.monotonic()
        code = wait(GRACE + TIRED)
        self.slowest[kind] = round(max(self.slowest[kind], time.monotonic() - began), 2)
        return code


def wait_for_line(log: Path, words: str) -> None:
    end = time.monotonic() + TIRED
    while words not in log.read_text() and time.monotonic() < end:
        time.sleep(0.01)


def measure(options: Namespace, folder: Path) -> dict[str, Any]:
    shop = shop_of(options, folder)
    stops = Stops(shop, folder, options)
    for trouble in TROUBLES:
        stops.in_trouble(trouble)
    shop.send(range(options.n), sabotage=options.sabotage)
    within = max(1, min(200, options.n // (2 * options.kills)))
    for turn in range(1, options.kills + 1):
        twice = turn > options.kills * (1.0 - TWICE)
        stops.under_load(random.randrange(within), twice=twice)
    with started(stops.command(), folder / "log"):
        shop.wait_until_quiet(PATIENCE, lambda: is_empty_folder(folder / "queue"))
    return {
        **shop.figures(),
        "kills": stops.kills,
        "bites": stops.bites,
        "left_behind": stops.left_behind,
        "unfinished": stops.unfinished,
        "done_again": stops.done_again,
        "wrong_codes": stops.wrong_codes,
        "slowest": stops.slowest,
    }


def broken(figures: dict[str, Any]) -> list[str]:
    slowest = figures["slowest"]
    limits = {"once": GRACE + AT_ONCE, "twice": AT_ONCE + BETWEEN}
    return [
        *broken_of(figures),
        *(
            f"{key} is {figures[key]}"
            for key in ("left_behind", "unfinished", "done_again", "wrong_codes")
            if figures[key]
        ),
        *(
            f"{kind}: {took} seconds"
            for kind, took in slowest.items()
            if took > limits.get(kind, AT_ONCE)
        ),
    ]


def main() -> int:
    arguments = parser(__doc__, n=20_000, kills=50)
    arguments.add_argument(
        "--slow", type=float, default=3.0, help="seconds of every hundredth message"
    )
    arguments.add_argument("--trouble", choices=TROUBLES, help=argparse.SUPPRESS)
    arguments.add_argument("--address", default="", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.work:
        shop_of(options, options.work).work(options)
        return 0
    return report(options, lambda folder: measure(options, folder), broken)


if __name__ == "__main__":
    sys.exit(main())
