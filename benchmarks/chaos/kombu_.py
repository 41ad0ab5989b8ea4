"""Kill workers and brokers while messages go over RabbitMQ and Redis, and count what came of them.

The brokers are the run's own. Scenarios, each with a JSON line of its own:

- worker: the worker is killed 20 times in 20,000 messages.
- sends: the broker is killed at 8,000 and at 14,000 of 20,000 sends. Each either raised or
  arrives, and no more raise than two windows of confirms hold.
- classic, quorum: the broker is killed three times while 10,000 messages of a queue of that type
  are handled. The worker goes on within 10 seconds. `repeated` counts the commands that the
  inbox answered: what the worker held, and on a busy classic queue what it had acknowledged.
- refused: 1,000 sends each that no queue takes, that a full queue refuses, and to a broker that
  is out of memory: all raise in time.
- redis: the worker is killed five times in 2,000 messages. What it held comes back within the
  lease and 5 seconds, without new traffic.

`--n` and `--kills` are those of the first; the others keep their share.
"""

from __future__ import annotations

import random
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _runs import CATALOG, Killer, Ledger, Place, Placed, broken_of, started
from _scenarios import SCHEDULED, Scenario, run
from _servers import RabbitMQ, Redis, wait_for

from postbus import Envelope, build
from postbus.errors import PartiallySentError, TimedOutError, TransportError
from postbus.transports import WireMessage
from postbus.wire import encode
from postbus_kombu._confirms import Outlet

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Generator

    from postbus import MessageProducer

# How many messages may be on their way to RabbitMQ at once.
WINDOW = 500
# What a worker may hold when the broker dies; what comes again beyond it had been acknowledged.
PREFETCH = 16
LEASE = 5.0
# What is allowed beyond a lease, and until a worker consumes again.
RECOVERY, RESUMPTION = 5.0, 10.0
# Long enough for a busy machine, and short where it is measured.
CONNECT_TIMEOUT, TIMEOUT = 20.0, 1.0
CALLERS = 100


class OverRabbitMQ:
    """The scenarios over one broker, which starts when the first of them needs it."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    @cached_property
    def broker(self) -> RabbitMQ:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="postbus-chaos-"))
        return self._stack.enter_context(RabbitMQ(Path(folder)))

    def _scenario(self, options: Namespace, folder: Path, queue_type: str = "quorum") -> Scenario:
        both = {"transport": "rabbitmq", "url": self.broker.url, "queue_type": queue_type}
        patience = {"connect_timeout": CONNECT_TIMEOUT, "confirm_timeout": CONNECT_TIMEOUT}
        producer = {**both, **patience, "queue": folder.name}
        return Scenario(
            options, folder, producer, {**both, "queues": [folder.name], "prefetch": PREFETCH}
        )

    def kill_the_worker(self, options: Namespace, folder: Path) -> dict[str, Any]:
        scenario = self._scenario(options, folder)
        return scenario.kill_the_worker(self.broker, options.n, options.kills)

    def kill_the_broker_while_sending(self, options: Namespace, folder: Path) -> dict[str, Any]:
        scenario = self._scenario(options, folder)
        shop, raised = scenario.shop, Ledger(folder / "raised")
        kills_at = [options.n * 2 // 5, options.n * 7 // 10]
        bites = 0
        with ExitStack() as stack:
            if options.sabotage == "no-confirm":
                stack.enter_context(unconfirmed())
            producer = stack.enter_context(shop.open()).producers["shop"]
            producer.send(message(1))
            shop.sent.note(1)
            self.broker.sync()
            for begun in range(2, options.n, WINDOW):
                numbers = range(begun, min(begun + WINDOW, options.n))
                if kills_at and numbers[-1] >= kills_at[0]:
                    kills_at.pop(0)
                    failed = self._kill_while_sending(producer, numbers)
                    bites += bool(failed)
                else:
                    failed = send_window(producer, numbers)
                for number in numbers:
                    (raised if number in failed else shop.sent).note(number)
        with started(scenario.worker, folder / "log"):
            scenario.wait(self.broker)
        effects, every = shop.effects(), raised.read()
        arrived = sum(f"{number}" in effects or f"{number}/first" in effects for number in every)
        return scenario.figures(2, bites, raised=len(every), raised_and_arrived=arrived)

    def _kill_while_sending(self, producer: MessageProducer, numbers: range) -> set[int]:
        killing = threading.Timer(random.uniform(0.0, 0.03), self.broker.kill)
        killing.start()
        failed = send_window(producer, numbers)
        killing.join()
        self.broker.start()
        return failed

    def kill_the_broker_while_consuming(
        self, options: Namespace, folder: Path, queue_type: str
    ) -> dict[str, Any]:
        kills = max(1, options.kills * 3 // 20)
        scenario = self._scenario(options, folder, queue_type)
        scenario.send(options.n // 2)
        self.broker.sync()
        bites, resumed = 0, []
        with started(scenario.worker, folder / "log"):
            for number in range(kills):
                scenario.wait_for_share(number + 1, kills + 1)
                self.broker.kill()
                bites += scenario.is_unfinished()
                self.broker.start()
                resumed.append(time_to_resume(scenario))
            scenario.wait(self.broker)
        return scenario.figures(kills, bites, resumed=resumed)

    def have_them_refused(self, options: Namespace, folder: Path) -> dict[str, Any]:
        n = options.n // 20
        section = {"transport": "rabbitmq", "url": self.broker.url, "queue_type": "classic"}
        section = {**section, "confirm_timeout": TIMEOUT}
        full = {"x-max-length": 1, "x-overflow": "reject-publish"}
        producers = {
            "nowhere": {**section, "exchange": f"{folder.name}-nowhere"},
            "full": {**section, "queue": f"{folder.name}-full", "queue_arguments": full},
            "blocked": {**section, "queue": f"{folder.name}-blocked"},
        }
        outcomes: dict[str, list[tuple[bool, float]]] = {}
        with build({"producers": producers}, {}, CATALOG) as postbus:
            for name in ("full", "blocked"):
                postbus.producers[name].send(message(1))
            for name, producer in postbus.producers.items():
                if name == "blocked":
                    self._block(producer)
                with ThreadPoolExecutor(CALLERS) as pool:
                    outcomes[name] = list(pool.map(partial(outcome, producer), range(n)))
            self.broker.control("set_vm_memory_high_watermark", "0.4")
            blocked = postbus.producers["blocked"]
            wait_for(lambda: not outcome(blocked, 1)[0], "the alarm to end")
        raised = sum(has_raised for each in outcomes.values() for has_raised, _ in each)
        return {
            "sent": 3 * n,
            "handled": 0,
            "failed": raised,
            "expired": 0,
            "suppressed": 0,
            "lost": 3 * n - raised,
            "effects_twice": 0,
            "kills": 0,
            "bites": 0,
            "slowest": {
                name: round(max(seconds for _, seconds in each), 2)
                for name, each in outcomes.items()
            },
        }

    def _block(self, producer: MessageProducer) -> None:
        """Have the broker think that it is out of memory, and wait until it acts so."""
        self.broker.control("set_vm_memory_high_watermark", "0.00001")

        def is_blocked() -> bool:
            try:
                producer.send(message(1))
            except TimedOutError:
                return True
            return False

        wait_for(is_blocked, "the alarm")


def message(number: int) -> WireMessage:
    """Return what `Shop.send` would send."""
    made = Envelope(Place(number) if number % 10 else Placed(number))
    return WireMessage(encode(made), {}, made.id, made.name)


def send_window(producer: MessageProducer, numbers: range) -> set[int]:
    """Send them at once, and return those that raised."""
    try:
        producer.send_many([message(number) for number in numbers])
    except PartiallySentError as error:
        return {numbers[index] for index in error.failed}
    return set()


@contextmanager
def unconfirmed() -> Generator[None]:
    """Have producers take every message for confirmed when it is written."""
    write = Outlet._write

    def write_and_settle(self: Outlet, posting: Any, route: Any) -> None:
        write(self, posting, route)
        posting.settle()

    Outlet._write = write_and_settle  # type: ignore[method-assign]  # the fault
    try:
        yield
    finally:
        Outlet._write = write  # type: ignore[method-assign]  # as above


def outcome(producer: MessageProducer, number: int) -> tuple[bool, float]:
    """Send; return whether that raised, and how many seconds it took."""
    begin, has_raised = time.monotonic(), False
    try:
        producer.send(message(number))
    except TransportError:
        has_raised = True
    return has_raised, time.monotonic() - begin


def time_to_resume(scenario: Scenario) -> float:
    begun, before = time.monotonic(), scenario.shop.started.size_bytes
    wait_for(lambda: scenario.shop.started.size_bytes > before, "the worker to go on")
    return round(time.monotonic() - begun, 1)


def kill_the_worker_over_redis(options: Namespace, folder: Path) -> dict[str, Any]:
    n, kills = options.n // 10, max(1, options.kills // 4)
    with Redis(folder / "redis") as server:
        both = {"transport": "redis", "url": server.url, "durable": True}
        consumer = {**both, "queues": [folder.name], "lease": LEASE, "prefetch": PREFETCH}
        scenario = Scenario(options, folder, {**both, "queue": folder.name}, consumer)
        shop = scenario.shop
        scenario.send(n)
        with Killer(shop, scenario.worker, kills, n) as killer:
            killer.is_done.wait()
            shop.wait_until_quiet(scenario.patience + SCHEDULED)
        # One more, which dies with all that there is in its hands.
        last = range(n + 1, n + 10)
        scenario.shop.send(last)
        with started([*scenario.worker, "--point", "before handler"], folder / "log") as worker:
            worker.wait(scenario.patience)
        begin = time.monotonic()
        with started(scenario.worker, folder / "log"):
            held = {str(number) for number in last}
            wait_for(lambda: shop.effects().keys() >= held, "what the killed worker held")
            recovered = round(time.monotonic() - begin, 1)
            shop.wait_until_quiet(scenario.patience)
        return scenario.figures(killer.kills, killer.bites, recovered=recovered)


def holds(figures: dict[str, Any]) -> list[str]:
    broken = broken_of(figures)
    if figures.get("raised", 0) > 2 * WINDOW:
        broken.append(f"{figures['raised']} sends raised, more than two windows")
    if any(seconds > RESUMPTION for seconds in figures.get("resumed", [])):
        broken.append(f"consuming again took more than {RESUMPTION:g} s")
    if figures["scenario"] == "classic" and not figures["repeated"]:
        broken.append("nothing came twice: the kills hit nothing")
    if any(seconds > TIMEOUT + 1 for seconds in figures.get("slowest", {}).values()):
        broken.append(f"a send took more than its {TIMEOUT:g} s and one more")
    if figures.get("recovered", 0.0) > LEASE + RECOVERY:
        broken.append(f"what the last kill left took more than {LEASE + RECOVERY:g} s")
    return broken


def main() -> int:
    with ExitStack() as stack:
        over = OverRabbitMQ(stack)
        scenarios: dict[str, Callable[[Namespace, Path], dict[str, Any]]] = {
            "worker": over.kill_the_worker,
            "sends": over.kill_the_broker_while_sending,
            "classic": partial(over.kill_the_broker_while_consuming, queue_type="classic"),
            "quorum": partial(over.kill_the_broker_while_consuming, queue_type="quorum"),
            "refused": over.have_them_refused,
            "redis": kill_the_worker_over_redis,
        }
        return run(__doc__, scenarios, holds, n=20_000, kills=20)


if __name__ == "__main__":
    sys.exit(main())
