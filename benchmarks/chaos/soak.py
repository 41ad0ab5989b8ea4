"""Send and handle at full rate for minutes, over a RabbitMQ that dies every minute.

The broker, the run's own, is killed and started again. Both sides have to find back to their rate
each time, and neither may hold more and more: after the second minute the slopes of descriptors,
threads and memory are near zero. What raised is sent again, under its id; the queue is kept short,
so that both sides work all the time. Prints one JSON line: `rates` are those of each minute's
second half, in handled messages a second; slopes are per minute. `--n` is how far the sender may
be ahead.
"""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from _runs import Place, broken_of, report, started
from _scenarios import Scenario, arguments, work
from _servers import RabbitMQ, wait_for

from postbus import Envelope
from postbus.errors import PartiallySentError
from postbus.transports import WireMessage
from postbus.wire import encode

if TYPE_CHECKING:
    from argparse import Namespace

    from postbus import MessageProducer

WINDOW = 500
# Until caches are full and connections made.
SETTLED = 120.0
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") / 1024
# What the slopes may be, per minute: KiB for memory.
ALLOWED = {"memory": 1024.0, "descriptors": 0.5, "threads": 0.5}
# A minute's rate beside the median of all.
RECOVERED = 0.4


@attrs.frozen
class Sample:
    """What a process held at a moment."""

    at: float
    memory: float
    descriptors: float
    threads: float

    @classmethod
    def of(cls, pid: int, at: float) -> Sample:
        process = Path("/proc") / str(pid)
        resident = int((process / "statm").read_text().split()[1]) * PAGE_KIB
        descriptors, threads = (len([*(process / each).iterdir()]) for each in ("fd", "task"))
        return cls(at, resident, descriptors, threads)


def slopes(samples: list[Sample]) -> dict[str, float]:
    """Return by how much a minute each figure grows, as least squares have it."""
    settled = [each for each in samples if each.at >= min(SETTLED, samples[-1].at / 3)]
    times = [each.at / 60 for each in settled]
    found = {}
    for name in ALLOWED:
        values = [float(getattr(each, name)) for each in settled]
        found[name] = round(statistics.linear_regression(times, values).slope, 3)
    return found


class Sending(threading.Thread):
    """Sends windows of messages until it is told to stop, and what raised again."""

    def __init__(self, scenario: Scenario, producer: MessageProducer, ahead: int) -> None:
        super().__init__(name="sending")
        self._ahead = ahead
        self.shop = scenario.shop
        self._producer = producer
        self.is_over = threading.Event()
        self.sent = self.raised = 0

    def run(self) -> None:
        while not self.is_over.is_set():
            left = {number: message(number) for number in self._next_numbers()}
            while left:
                failed = self._send(left)
                for number in left.keys() - failed:
                    self.shop.sent.note(number)
                self.sent += len(left) - len(failed)
                self.raised += len(failed)
                left = {number: left[number] for number in failed}
                self.is_over.wait(0.1 if left else 0.0)
            while self.sent - handled(self.shop) > self._ahead and not self.is_over.wait(0.05):
                pass

    def _next_numbers(self) -> range:
        # Commands that succeed, and nothing else.
        begin = 10 * self.sent + 1
        return range(begin, begin + 10 * WINDOW, 10)

    def _send(self, messages: dict[int, WireMessage]) -> set[int]:
        numbers = [*messages]
        try:
            self._producer.send_many([*messages.values()])
        except PartiallySentError as error:
            return {numbers[index] for index in error.failed}
        return set()


def message(number: int) -> WireMessage:
    made = Envelope(Place(number))
    return WireMessage(encode(made), {}, made.id, made.name)


def handled(shop: Any) -> int:
    connection = shop.connect()
    (count,) = connection.execute("SELECT coalesce(max(rowid), 0) FROM effects").fetchone()
    connection.close()
    return int(count)


def soak(options: Namespace, folder: Path) -> dict[str, Any]:
    with RabbitMQ(folder / "broker") as broker:
        both = {"transport": "rabbitmq", "url": broker.url}
        producer, consumer = {**both, "queue": "soak"}, {**both, "queues": ["soak"]}
        scenario = Scenario(options, folder, producer, consumer)
        with scenario.shop.open() as postbus:
            sending = Sending(scenario, postbus.producers["shop"], options.n)
            with started(scenario.worker, folder / "log") as worker:
                sending.start()
                try:
                    figures = watch(options, sending, broker, worker.pid)
                finally:
                    sending.is_over.set()
                    sending.join()
                scenario.wait(broker)
        return scenario.figures(**figures, raised=sending.raised)


def watch(options: Namespace, sending: Sending, broker: RabbitMQ, worker: int) -> dict[str, Any]:
    """Kill the broker every minute; return rates and slopes."""
    shop = sending.shop
    samples: dict[str, list[Sample]] = {"sender": [], "worker": []}
    rates, resumed = [], []
    begun, bites = time.monotonic(), 0
    for minute in range(options.minutes):
        half = begun + 60 * minute + 30
        sample_until(half, begun, worker, samples)
        before, at = handled(shop), time.monotonic()
        sample_until(half + 30, begun, worker, samples)
        rates.append(round((handled(shop) - before) / (time.monotonic() - at)))
        if minute + 1 < options.minutes:
            broker.kill()
            bites += sending.sent > handled(shop)
            broker.start()
            up, size = time.monotonic(), handled(shop)
            wait_for(lambda size=size: handled(shop) > size, "the worker to go on")
            resumed.append(round(time.monotonic() - up, 1))
    grown = {name: slopes(each) for name, each in samples.items()}
    return {
        "kills": len(resumed),
        "bites": bites,
        "rates": rates,
        "resumed": resumed,
        "slopes": grown,
    }


def sample_until(end: float, begun: float, worker: int, samples: dict[str, list[Sample]]) -> None:
    while (now := time.monotonic()) < end:
        for name, pid in (("sender", os.getpid()), ("worker", worker)):
            samples[name].append(Sample.of(pid, now - begun))
        time.sleep(min(1.0, max(0.0, end - time.monotonic())))


def holds(figures: dict[str, Any]) -> list[str]:
    broken = broken_of(figures)
    middle = statistics.median(figures["rates"])
    broken += [
        f"{rate}/s in minute {minute}"
        for minute, rate in enumerate(figures["rates"], 1)
        if rate < RECOVERED * middle
    ]
    broken += [
        f"{name} of the {process}: {slope:+g} a minute"
        for process, each in figures["slopes"].items()
        for name, slope in each.items()
        if slope > ALLOWED[name]
    ]
    return broken


def main() -> int:
    own = arguments(__doc__, n=5_000, kills=0)
    own.add_argument("--minutes", type=int, default=10, help="default %(default)s")
    options = own.parse_args()
    if options.work:
        return work(options)
    return report(options, lambda folder: soak(options, folder), holds)


if __name__ == "__main__":
    sys.exit(main())
