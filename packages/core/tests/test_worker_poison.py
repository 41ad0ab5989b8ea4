"""Messages that nobody can handle, many at once: kept whole, and no trouble for the others."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs
import pytest
from click.testing import CliRunner

from postbus import Command, Envelope, MessageCatalog, Postbus, Worker, build
from postbus.cli._program import program
from postbus.errors import ConnectionFailedError
from postbus.memory import MemoryProducer, reset
from postbus.memory._queues import queue_of
from postbus.messages import new_id
from postbus.transports import WireMessage
from postbus.wire import decode, encode

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from postbus.stores import FailedMessage, FailureStore

GOOD, BAD = 10_000, 500


@attrs.frozen
class PlaceOrder(Command, name="shop.place-order"):
    number: int


@attrs.frozen
class RefundOrder(Command, name="shop.refund-order"):
    number: int


@attrs.frozen
class ReturnOrder(Command, name="shop.return-order"):
    number: int


class Shop:
    """What handles orders; refunds fail until it is mended, and so long returns are unknown."""

    def __init__(self) -> None:
        self.placed: Counter[int] = Counter()
        self.others: Counter[object] = Counter()
        self.is_mended = False

    def place(self, order: PlaceOrder) -> None:
        self.placed[order.number] += 1

    def other(self, order: object) -> None:
        if not self.is_mended:
            raise ValueError(order)
        self.others[order] += 1

    def catalog(self) -> MessageCatalog:
        known = MessageCatalog()
        for each in (PlaceOrder, RefundOrder, ReturnOrder):
            if self.is_mended or each is not ReturnOrder:
                known.add(each)
        return known

    def build(self, section: dict[str, Any]) -> Postbus:
        return build(section, {"place": self.place, "other": self.other}, self.catalog())


@pytest.fixture
def address() -> Iterator[str]:
    """An address that no other test uses."""
    name = new_id()
    yield name
    reset(name)


def config(address: str, **consumer: Any) -> dict[str, Any]:
    section = {"transport": "memory", "address": address, "failure_store": "main", **consumer}
    return {
        "consumers": {"orders": section},
        "command_bus": {
            "router": {"routes": {"shop.place-order": "place", "shop.re*-order": "other"}}
        },
        "stores": {"main": {"store": "memory"}},
    }


def send(address: str, *bodies: bytes) -> None:
    MemoryProducer(address=address, capacity=10**6).send_many(
        [WireMessage(body, {}, new_id(), "a.name") for body in bodies]
    )


def orders(kind: Callable[[int], Command], count: int) -> list[bytes]:
    return [encode(Envelope(kind(number))) for number in range(count)]


def work(postbus: Postbus) -> None:
    """Run a worker until nothing waits any more."""
    thread = threading.Thread(target=postbus.worker().run)
    thread.start()
    thread.join(100)
    assert not thread.is_alive()


def until(condition: Callable[[], Any]) -> None:
    """Wait for *condition*, at most twenty seconds."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


current: dict[str, Callable[[], Postbus]] = {}


def application() -> Postbus:
    return current["build"]()


@pytest.fixture
def logs_as_before() -> Iterator[None]:
    """The command line sets up logging for a process of its own."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before


def all_failed(postbus: Postbus) -> Sequence[FailedMessage]:
    return postbus.stores["main"].failures.list(limit=10 * GOOD)


class TestPoison:
    @pytest.mark.usefixtures("logs_as_before")
    def test_good_ones_are_done_and_bad_ones_are_kept_until_they_can_be(
        self, address: str, tmp_path: Path
    ) -> None:
        """1,500 of three kinds among 10,000: whole in the store, and after a fix handled once."""
        shop = Shop()
        section = config(
            address, concurrency=8, prefetch=64, retry={"max_attempts": 2, "initial_delay": 0.01}
        )
        section["worker"] = {"stop_when_empty": True}
        section["stores"]["main"] = {"store": "sqlite", "path": str(tmp_path / "failed.db")}
        good, refunds = orders(PlaceOrder, GOOD), orders(RefundOrder, BAD)
        unknown, broken = orders(ReturnOrder, BAD), [b"\xff" * (n + 1) for n in range(BAD)]
        for start in range(BAD):
            share = good[start::BAD]
            send(address, *share, refunds[start], unknown[start], broken[start])
        with shop.build(section) as postbus:
            work(postbus)
            failed = all_failed(postbus)
        assert Counter(range(GOOD)) == shop.placed
        by_reason = {
            reason: [each for each in failed if each.reason == reason]
            for reason in {each.reason for each in failed}
        }
        assert {"handler_failed", "unknown_name", "not_utf8"} == by_reason.keys()
        assert sorted(unknown) == sorted(each.body for each in by_reason["unknown_name"])
        assert sorted(broken) == sorted(each.body for each in by_reason["not_utf8"])
        # What was tried again says so in its headers, and has everything else as it was.
        tried = [decode(each.body, shop.catalog()) for each in by_reason["handler_failed"]]
        came = [decode(body, shop.catalog()) for body in refunds]
        assert sorted((e.id, e.payload) for e in came) == sorted((e.id, e.payload) for e in tried)
        assert {2} == {each.attempts for each in by_reason["handler_failed"]}
        assert {2} == {len(each.history) for each in by_reason["handler_failed"]}
        shop.is_mended = True
        with shop.build(section) as postbus:
            corrected = orders(PlaceOrder, BAD)
            for each, body in zip(by_reason["not_utf8"], corrected, strict=True):
                assert postbus.stores["main"].failures.replace(each.key, body)
        current["build"] = lambda: shop.build(section)
        arguments = ["--app", f"{__name__}:application", "failed", "retry", "--all"]
        done = CliRunner().invoke(program, arguments, catch_exceptions=False)
        assert 0 == done.exit_code, done.output
        with shop.build(section) as postbus:
            work(postbus)
            assert 0 == postbus.stores["main"].failures.count()
            assert 0 == len(postbus.stores["main"].schedule.list())
        expected = [kind(number) for kind in (RefundOrder, ReturnOrder) for number in range(BAD)]
        assert Counter(expected) == shop.others
        assert Counter(range(GOOD)) + Counter(range(BAD)) == shop.placed


class TestKeys:
    def test_another_message_under_the_same_id_is_kept_beside_it(self, address: str) -> None:
        """Whoever sends an id twice makes nobody lose the bytes that came first."""
        id_ = new_id()
        bodies = [encode(Envelope(RefundOrder(number), id=id_)) for number in range(2)]
        bodies += [encode(Envelope(ReturnOrder(0), id=id_)), bodies[0]]
        shop = Shop()
        section = config(address, retry={"max_attempts": 2, "initial_delay": 0.01})
        section["worker"] = {"stop_when_empty": True}
        send(address, *bodies)
        with shop.build(section) as postbus:
            work(postbus)
            failed = all_failed(postbus)
        known = shop.catalog()
        refunds = [decode(each.body, known) for each in failed if each.name is not None]
        assert {RefundOrder(0), RefundOrder(1)} == {each.message for each in refunds}
        assert bodies[2] in [each.body for each in failed]
        assert 3 == len(failed)


class SlowFailures:
    """A failure store that keeps nothing before it is let; everything else is the real one's."""

    def __init__(self, inner: FailureStore) -> None:
        self.inner = inner
        self.let = threading.Event()
        self.asked: list[int] = []
        self.is_down = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def put_many(self, failed: Sequence[FailedMessage]) -> None:
        self.asked.append(len(failed))
        assert self.let.wait(60)
        if self.is_down:
            raise ConnectionFailedError("the store is down")
        self.inner.put_many(failed)


@contextmanager
def at_work(section: dict[str, Any], shop: Shop) -> Generator[tuple[SlowFailures, Worker]]:
    """Run a worker whose failures are kept slowly; at the end they are let."""
    with shop.build(section) as postbus:
        store = postbus.stores["main"]
        slow = SlowFailures(store.failures)
        store.failures = cast("Any", slow)
        worker = postbus.worker()
        worker._pause = lambda _: 0.01
        with worker.running():
            try:
                yield slow, worker
            finally:
                slow.let.set()


def waiting(address: str) -> list[bytes]:
    """Return what waits at *address*."""
    return [each.body for each in queue_of(address).peek(0, 10 * GOOD)]


def turns(worker: Worker, count: int) -> None:
    """Let the loop of a running worker go round *count* times."""
    for _ in range(count):
        passed = threading.Event()
        assert worker._loop is not None
        worker._loop.call_soon_threadsafe(passed.set)
        assert passed.wait(20)


class TestSlowStore:
    def test_others_are_handled_meanwhile(self, address: str) -> None:
        """One at a time, and a failed message that waits for its store takes nobody's turn."""
        shop = Shop()
        send(address, *orders(RefundOrder, 3), *orders(PlaceOrder, 50))
        with at_work(config(address, concurrency=1, prefetch=1), shop) as (slow, _):
            until(lambda: shop.placed.total() == 50)
            assert 0 == slow.inner.count()
            slow.let.set()
            until(lambda: slow.inner.count() == 3)
        assert [] == waiting(address)

    def test_what_waits_for_a_store_is_no_empty_worker(self, address: str) -> None:
        """A worker that stops when it is empty first has it kept."""
        section = config(address) | {"worker": {"stop_when_empty": True}}
        send(address, *orders(RefundOrder, 3))
        with at_work(section, Shop()) as (slow, worker):
            until(lambda: slow.asked)
            until(lambda: worker._running[0]._is_empty)
            turns(worker, 20)
            assert {"orders": "receiving"} == worker.states
            slow.let.set()
            until(lambda: worker.states == {"orders": "ended"})
            assert 3 == slow.inner.count()

    def test_what_comes_meanwhile_is_kept_together(self, address: str) -> None:
        """One call has all that failed while the store was busy: it commits once for them."""
        with at_work(config(address, concurrency=4, prefetch=4), Shop()) as (slow, worker):
            send(address, *orders(RefundOrder, 1))
            until(lambda: slow.asked)
            send(address, *orders(RefundOrder, 60))
            until(lambda: waiting(address) == [])
            turns(worker, 20)
            slow.let.set()
            until(lambda: slow.inner.count() == 61)
            assert len(slow.asked) <= 4

    def test_nothing_is_acknowledged_before_it_is_kept(self, address: str) -> None:
        """A worker that is cut off while the store has not answered gives all of it back."""
        section = config(address) | {"worker": {"shutdown_grace": 0.0}}
        bodies = orders(RefundOrder, 5)
        send(address, *bodies)
        with at_work(section, Shop()) as (slow, worker):
            until(lambda: slow.asked)
            until(lambda: waiting(address) == [])
            worker.stop()
            until(lambda: len(waiting(address)) == 5)
        assert sorted(bodies) == sorted(waiting(address))

    def test_stopping_keeps_what_can_be_kept(self, address: str) -> None:
        """Within the grace what has failed reaches its store, and is not given back."""
        section = config(address, concurrency=8) | {"worker": {"shutdown_grace": 60.0}}
        send(address, *orders(RefundOrder, 30))
        with at_work(section, Shop()) as (slow, worker):
            until(lambda: slow.asked and waiting(address) == [])
            turns(worker, 50)
            worker.stop()
            slow.let.set()
        assert 30 == sum(slow.asked) == slow.inner.count()
        assert [] == waiting(address)

    def test_what_fails_while_it_stops_is_kept(self, address: str) -> None:
        """A handler that fails within the grace is no reason to give its message back."""
        shop, begun, fails = Shop(), threading.Event(), threading.Event()

        def place(order: object) -> None:
            begun.set()
            assert fails.wait(60)
            raise ValueError(order)

        shop.place = place  # type: ignore[method-assign]  # this one fails
        section = config(address) | {"worker": {"shutdown_grace": 60.0}}
        send(address, *orders(PlaceOrder, 1))
        with at_work(section, shop) as (slow, worker):
            slow.let.set()
            assert begun.wait(20)
            worker.stop()
            until(lambda: worker.states == {"orders": "ended"})
            turns(worker, 20)
            fails.set()
        assert ([1], []) == (slow.asked, waiting(address))

    def test_there_is_an_end_to_what_waits(self, address: str) -> None:
        """With a hundred that wait for their store no more is received, until it has them."""
        shop = Shop()
        send(address, *orders(RefundOrder, 300), *orders(PlaceOrder, 10))
        with at_work(config(address, concurrency=2, prefetch=4), shop) as (slow, worker):
            until(lambda: len(waiting(address)) <= 210)
            turns(worker, 300)
            assert 200 <= len(waiting(address))
            slow.let.set()
            until(lambda: (300, 10) == (slow.inner.count(), shop.placed.total()))

    def test_a_store_that_refuses_many_gets_them_again(self, address: str) -> None:
        """Down while a hundred fail: each is kept once it is back, once, and acknowledged."""
        send(address, *orders(RefundOrder, 100))
        with at_work(config(address, concurrency=4), Shop()) as (slow, worker):
            slow.is_down = True
            slow.let.set()
            until(lambda: worker.states == {"orders": "paused"} and len(slow.asked) > 3)
            assert 0 == slow.inner.count()
            slow.is_down = False
            until(lambda: slow.inner.count() == 100)
            until(lambda: worker.states == {"orders": "receiving"})
        assert [] == waiting(address)
