"""Runs of scenarios, each over a server of the run's own and with a JSON line of its own."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from _runs import Killer, Ledger, Shop, command, parser, report
from _servers import wait_for

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from _servers import Server

    Figures = dict[str, Any]
    Measure = Callable[[Namespace, Path], Figures]

SENDERS = 4
# How long a retry stays with a killed worker that had claimed it of the schedule store, which
# keeps those that a transport cannot delay.
SCHEDULED = 30.0
# What a worker logs of a delivery that its inbox answered.
REPEATED = "message was handled before"


class WatchedShop(Shop):
    """A shop that also notes which deliveries of commands its inbox answered."""

    def __init__(self, folder: Path, *sections: Mapping[str, Any], inbox: str = "joined") -> None:
        super().__init__(folder, *sections, inbox=inbox)
        self.repeated = Ledger(folder / "repeated")

    def work(self, options: Namespace) -> None:
        logger = logging.getLogger("postbus.worker")
        logger.setLevel(logging.INFO)
        logger.addHandler(Repetitions(self.repeated))
        super().work(options)

    def figures(self) -> Figures:
        missing = sorted(self.expected() - self.effects().keys())
        return {
            **super().figures(),
            "repeated": self.repeated.read().total(),
            **({"missing": missing[:5]} if missing else {}),
        }


class Repetitions(logging.Handler):
    """Notes the command that a worker says it had handled before."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def emit(self, record: logging.LogRecord) -> None:
        facts = record.__dict__
        if record.msg == REPEATED and facts["message_name"] == "chaos.place":
            self._ledger.note(facts["message_id"])


class Scenario:
    """A shop over a server, and what starts its worker.

    Args:
        options: of the run.
        folder: where everything is that it leaves.
        producer: the section of the producer.
        consumer: the section of the consumer; the worker gets it as an argument.
    """

    def __init__(
        self,
        options: Namespace,
        folder: Path,
        producer: Mapping[str, Any],
        consumer: Mapping[str, Any],
    ) -> None:
        self.shop = _shop(options, folder, producer, consumer)
        self.worker = command(options, folder, "--section", json.dumps(consumer))
        self.patience: float = options.patience
        self._sabotage = options.sabotage

    def send(self, n: int) -> None:
        """Send *n* messages, by several threads."""
        send = partial(self.shop.send, sabotage=self._sabotage)
        with ThreadPoolExecutor(SENDERS) as pool:
            list(pool.map(send, [range(first, n, SENDERS) for first in range(SENDERS)]))

    def kill_the_worker(self, server: Server, n: int, kills: int) -> Figures:
        """Send *n* messages to *server* while the worker is killed; count when all is over."""
        with Killer(self.shop, self.worker, kills, n) as killer:
            self.send(n)
            killer.is_done.wait()
            self.wait(server)
        return self.figures(killer.kills, killer.bites)

    def wait(self, server: Server) -> None:
        """Return when every effect is there and *server* has nothing, or nothing happens."""
        expected = self.shop.expected()
        self.shop.wait_until_quiet(
            self.patience,
            lambda: not expected - self.shop.effects().keys() and server.is_empty(),
        )

    def wait_for_share(self, part: int, parts: int) -> None:
        """Return when so much of what was sent has been handled."""
        share = len(self.shop.expected()) * part // parts
        wait_for(lambda: len(self.shop.effects()) >= share, "the worker", 10 * self.patience)

    def is_unfinished(self) -> bool:
        return bool(self.shop.expected() - self.shop.effects().keys())

    def figures(self, kills: int, bites: int, **more: Any) -> Figures:
        return {**self.shop.figures(), "kills": kills, "bites": bites, **more}


def _shop(
    options: Namespace, folder: Path, producer: Mapping[str, Any], consumer: Mapping[str, Any]
) -> WatchedShop:
    inbox = "" if options.sabotage == "no-inbox" else "joined"
    return WatchedShop(folder, producer, consumer, inbox=inbox)


def arguments(description: str | None, *, n: int, kills: int) -> argparse.ArgumentParser:
    """Return a parser of what such a run takes; from now on a request to end ends its servers."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    made = parser(description, n=n, kills=kills)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument(
        "--patience",
        type=float,
        default=20.0,
        help="seconds without news after which what is missing is lost, default %(default)g",
    )
    made.add_argument("--section", type=json.loads, help=argparse.SUPPRESS)
    return made


def work(options: Namespace) -> int:
    """Be the worker that a `Scenario` starts."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _shop(options, options.work, {}, options.section).work(options)
    return 0


def run(
    description: str | None,
    scenarios: Mapping[str, Measure],
    holds: Callable[[Figures], Collection[str]],
    *,
    n: int,
    kills: int,
) -> int:
    """Be the main program: the scenarios, or those of `--only`, or the worker of one of them."""
    own = arguments(description, n=n, kills=kills)
    own.add_argument("--only", nargs="+", choices=[*scenarios], default=[*scenarios])
    options = own.parse_args()
    if options.work:
        return work(options)

    def measure(name: str, folder: Path) -> Figures:
        return {"scenario": name, **scenarios[name](options, folder)}

    return max(report(options, partial(measure, name), holds) for name in options.only)
