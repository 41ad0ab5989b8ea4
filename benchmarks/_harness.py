"""Measure rows in turn, round by round, and compare each with its rival inside the same round.

On a shared machine a rate moves by a factor of two between runs; the ratio of two rows that run
within the same fraction of a second hardly moves. So every figure here is a ratio: the median,
over the rounds, of one row's cost to another's.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import math
import select
import statistics
import subprocess
import sys
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self

import attrs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    Measure = Callable[[int], float]
    """Do something *n* times and return the seconds it took."""

__all__ = ["Receiver", "Table", "clocked", "peer", "run", "timed"]


class NotInstalledError(Exception):
    """A peer is not installed: its rows are listed as such."""


def peer(module: str) -> Any:
    """Import a peer that may be absent.

    Raises:
        NotInstalledError: it is absent.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        msg = f"{error.name} is not installed: pip install -r benchmarks/requirements.txt"
        raise NotInstalledError(msg) from error


def clocked(loop: Callable[[int], object]) -> Measure:
    """Measure a loop that does its work *n* times by itself."""

    def measure(n: int) -> float:
        start = perf_counter()
        loop(n)
        return perf_counter() - start

    return measure


def timed(call: Callable[[Any], object], argument: Any) -> Measure:
    """Measure a plain call."""

    def loop(n: int) -> None:
        for _ in range(n):
            call(argument)

    return clocked(loop)


@attrs.frozen
class Claim:
    """A row of the printed table: *subject* compared with *against*."""

    row: str
    subject: str
    against: str
    at_most: float | None
    at_least: float | None
    is_speed: bool

    @property
    def target(self) -> str | None:
        """The target as text, None for a row that is only reported."""
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return None if self.at_least is None else f">= {self.at_least:g}"

    def holds(self, ratio: float) -> bool | None:
        """Say whether *ratio* is within the target, None where there is none."""
        if self.at_most is not None:
            return ratio <= self.at_most
        return None if self.at_least is None else ratio >= self.at_least


class Table:
    """Subjects that are measured in turn, and the claims about them.

    Args:
        title: the heading.
        rates: ratios are of speed (larger is better) and operations per second are printed;
            else of cost (smaller is better) and nanoseconds.
        slice_seconds: how long a subject runs in each round.
        times: operations in a slice instead.
    """

    def __init__(
        self,
        title: str,
        *,
        rates: bool = False,
        slice_seconds: float = 0.02,
        times: int | None = None,
    ) -> None:
        self.title = title
        self.resources = ExitStack()
        self._rates = rates
        self._slice_seconds = slice_seconds
        self._times = times
        self._subjects: dict[str, Callable[[], Measure]] = {}
        self._claims: list[Claim] = []
        self._absent: dict[str, str] = {}

    def limit(self, name: str, make: Callable[[], Measure]) -> None:
        """Add a subject that others are compared with. *make* runs only where it is needed."""
        self._subjects[name] = make

    def row(
        self,
        name: str,
        make: Callable[[], Measure],
        *,
        against: str,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """Add a subject and its first claim, without a target where none is given."""
        self._subjects[name] = make
        self.compare(name, name, against=against, at_most=at_most, at_least=at_least)

    def compare(
        self,
        row: str,
        subject: str,
        *,
        against: str,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """Claim that *subject* costs at most, or is at least, so many times *against*."""
        is_speed = at_least is not None or (self._rates and at_most is None)
        self._claims.append(Claim(row, subject, against, at_most, at_least, is_speed))

    def faster(self, subject: str, *, than: str, at_least: float | None = None) -> None:
        """Claim that *subject* is at least so many times as fast as *than*."""
        row = f"{subject}, times as fast"
        self._claims.append(Claim(row, subject, than, None, at_least, is_speed=True))

    @cached_property
    def runner(self) -> asyncio.Runner:
        """The loop on which the asyncio subjects of this table run."""
        return self.resources.enter_context(asyncio.Runner())

    def aclocked(self, loop: Callable[[int], Awaitable[object]]) -> Measure:
        """Measure an asyncio loop that does its work *n* times by itself."""

        async def measure(n: int) -> float:
            start = perf_counter()
            await loop(n)
            return perf_counter() - start

        return lambda n: self.runner.run(measure(n))

    def atimed(self, call: Callable[[Any], Awaitable[object]], argument: Any) -> Measure:
        """Measure an asyncio call, awaited one at a time."""

        async def loop(n: int) -> None:
            for _ in range(n):
                await call(argument)

        return self.aclocked(loop)

    def measure(self, rounds: int, only: str) -> list[dict[str, Any]]:
        """Measure what the claims that contain *only* need, print them, return them."""
        claims = [c for c in self._claims if only.lower() in f"{self.title}: {c.row}".lower()]
        needed = {name for claim in claims for name in (claim.subject, claim.against)}
        with self.resources:
            costs = self._costs([name for name in self._subjects if name in needed], rounds)
        return self._report(claims, costs) if claims else []

    def _costs(self, names: Iterable[str], rounds: int) -> dict[str, list[float]]:
        measures = {}
        for name in names:
            try:
                measure = self._subjects[name]()
                # The first calls connect, compile plans and warm caches.
                measure(1)
                times = self._times or _calibrate(measure, self._slice_seconds)
                measures[name] = (measure, times)
            except NotInstalledError as error:
                self._absent[name] = str(error)
            except Exception as error:
                self._absent[name] = f"{type(error).__name__}: {error}"
        costs: dict[str, list[float]] = {name: [] for name in measures}
        gc.collect()
        gc.disable()
        try:
            for number in range(rounds):
                # Every other round runs backwards, so that no row always follows the same one.
                for name in list(measures)[:: -1 if number % 2 else 1]:
                    measure, times = measures[name]
                    costs[name].append(measure(times) / times)
                gc.collect()
        finally:
            gc.enable()
        return costs

    def _report(
        self, claims: Iterable[Claim], costs: dict[str, list[float]]
    ) -> list[dict[str, Any]]:
        print(f"\n## {self.title}")
        print(f"{'row':<44} {'against':<29} {'ratio':>7} {'(min..max)':>16} {'target':>7}")
        rows: list[dict[str, Any]] = []
        for claim in claims:
            row = {"row": f"{self.title}: {claim.row}", "against": claim.against}
            absent = self._absent.get(claim.subject) or self._absent.get(claim.against)
            if absent:
                print(f"{claim.row:<44} {claim.against:<29} {absent}")
                rows.append(row | {"ratio": None, "target": claim.target, "holds": None})
                continue
            pair = zip(costs[claim.subject], costs[claim.against], strict=True)
            ratios = [b / a if claim.is_speed else a / b for a, b in pair]
            ratio = statistics.median(ratios)
            spread = f"({min(ratios):.2f}..{max(ratios):.2f})"
            holds = claim.holds(ratio)
            verdict = {True: "holds", False: "MISSED", None: ""}[holds]
            print(
                f"{claim.row:<44} {claim.against:<29} {ratio:7.2f} {spread:>16} "
                f"{claim.target or '-':>7} {verdict}"
            )
            target = claim.target
            rows.append(row | {"ratio": round(ratio, 3), "target": target, "holds": holds})
        medians = {name: statistics.median(values) for name, values in costs.items()}
        shown = (f"{name} {self._absolute(cost)}" for name, cost in medians.items())
        print("   " + "; ".join(shown), flush=True)
        return rows

    def _absolute(self, cost: float) -> str:
        return f"{1 / cost:,.0f}/s" if self._rates else f"{cost * 1e9:,.0f} ns"


def _calibrate(measure: Measure, slice_seconds: float) -> int:
    times = 1
    while (seconds := measure(times)) < slice_seconds / 4:
        times *= 4
    return max(1, math.ceil(times * slice_seconds / seconds))


class Receiver:
    """A second process that counts what arrives: `python <script> <argument>…`.

    It prints the ports it has bound. Then, as often as wanted: it reads a number, prints
    "ready", takes that many messages and prints "done", with figures of its own after it. It
    ends when its stdin closes; `__exit__` makes sure.
    """

    def __init__(self, script: Path, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        try:
            self.ports = [int(port) for port in self._line()]
        except BaseException:
            self.__exit__()
            raise

    def expect(self, messages: int) -> None:
        """Have the next *messages* counted; returns when the other side is ready."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"%d\n" % messages)
        self._line()

    def wait(self) -> list[float]:
        """Block until all expected messages were taken; returns the figures sent with it."""
        return [float(figure) for figure in self._line()[1:]]

    def __enter__(self) -> Self:
        """Start nothing: the process runs since it was made."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process: by closing its stdin, else by its pid."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _line(self, timeout: float = 30.0) -> list[str]:
        assert self._process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self._process.stdout], [], [], timeout)[0]:
                msg = f"the receiver said nothing for {timeout:g} s: messages were lost"
                raise TimeoutError(msg)
            if not (piece := self._process.stdout.read(4096)):
                msg = f"the receiver ended with code {self._process.wait()}"
                raise ConnectionError(msg)
            line += piece
        return line.decode().split()


def run(description: str, tables: Callable[[], Iterable[Table]], *, rounds: int) -> None:
    """Be the main program of a benchmark: read the options, measure, print, write the JSON."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="A ratio stands beside its target: '<= 2' bounds the cost, '>= 5' the speed,\n"
        "'-' is only reported. The exit code is 0 whatever holds.",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the rows here as well")
    parser.add_argument(
        "--rounds", type=int, default=rounds, metavar="N", help="default %(default)s"
    )
    parser.add_argument(
        "--only", default="", metavar="SUBSTRING", help="only rows whose 'table: row' has it"
    )
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for table in tables():
        rows += table.measure(max(1, options.rounds), options.only)
    judged = [row["holds"] for row in rows if row["holds"] is not None]
    print(f"\n{sum(judged)} of {len(judged)} targets hold, {len(rows)} rows")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
