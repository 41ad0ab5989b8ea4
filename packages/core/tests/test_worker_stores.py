"""The worker with stores: retries, the failure store, the inbox, the schedule."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from postbus import (
    Command,
    DispatchContext,
    Envelope,
    Event,
    MessageCatalog,
    NeverRetry,
    Query,
    RetryPolicy,
    Stage,
    build,
)
from postbus.errors import (
    ConfigurationError,
    ConnectionFailedError,
    HandlerFailedError,
    ListenersFailedError,
    TransportError,
    UnsupportedError,
)
from postbus.memory import MemoryConsumer, MemoryProducer, reset
from postbus.messages import new_id
from postbus.stores import DelayedProducer, Done, MemoryStore, ScheduledMessage
from postbus.testing import RecordingProducer
from postbus.transports import Capabilities, MessageProducer, WireMessage
from postbus.wire import decode, encode
from postbus.worker import Limits, RetryRule, failure_key
from postbus.worker._patience import StoreThreads
from postbus.worker._recovery import failure_of
from postbus.worker._retries import Retries
from postbus.worker._scheduled import ScheduledDelivery

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterator
    from pathlib import Path

    from postbus import Postbus
    from postbus.stores import FailedMessage, Store


@attrs.frozen
class PlaceOrder(Command, name="shop.place-order"):
    number: int


@attrs.frozen
class SendMail(Command, name="shop.send-mail"):
    number: int


@attrs.frozen
class OrderPlaced(Event, name="shop.order-placed"):
    number: int


@attrs.frozen
class CountOrders(Query[int], name="shop.count-orders"):
    pass


CATALOG = MessageCatalog()
for each in (PlaceOrder, SendMail, OrderPlaced, CountOrders):
    CATALOG.add(each)

# What a producer can do that neither delays nor anything else.
Undelayed = Capabilities()
QUICK = {"max_attempts": 3, "initial_delay": 0.01, "jitter": 0.0}


@pytest.fixture
def address() -> Iterator[str]:
    """An address that no other test uses."""
    name = new_id()
    yield name
    reset(name)


@pytest.fixture(params=["memory", "sqlite"])
def store_section(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """A section of each kind of store."""
    if request.param == "memory":
        return {"store": "memory"}
    return {"store": "sqlite", "path": str(tmp_path / "stores.db")}


class Handlers:
    """Counts what it handles, and fails as it is told."""

    def __init__(self, *failures: BaseException | None) -> None:
        self.failures = list(failures)
        self.handled: list[Any] = []
        self.done = threading.Event()
        self.enough = 1

    def __call__(self, message: Any) -> None:
        self.handled.append(message)
        error = self.failures.pop(0) if self.failures else None
        if len(self.handled) >= self.enough:
            self.done.set()
        if error is not None:
            raise error


def config(address: str, store: dict[str, Any] | None = None, **consumer: Any) -> dict[str, Any]:
    section = {"transport": "memory", "address": address, "concurrency": 2, **consumer}
    made: dict[str, Any] = {
        "consumers": {"mail": section},
        "command_bus": {"router": {"routes": {"shop.place-order": "handler"}}},
        "worker": {"stop_when_empty": True},
    }
    if store is not None:
        made["stores"] = {"main": store}
    return made


def send(address: str, *messages: Any, **fields: Any) -> None:
    producer = MemoryProducer(address=address)
    for message in messages:
        envelope = message if isinstance(message, Envelope) else Envelope(message, **fields)
        producer.send(WireMessage(encode(envelope), {}, envelope.id, envelope.name))


def send_bytes(address: str, *bodies: bytes) -> None:
    MemoryProducer(address=address).send_many(
        [WireMessage(body, {}, new_id(), "a.name") for body in bodies]
    )


def work(postbus: Postbus, **options: Any) -> None:
    """Run a worker until nothing waits any more."""
    thread = threading.Thread(target=postbus.worker(**options).run)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


def failed_in(postbus: Postbus) -> list[FailedMessage]:
    return list(postbus.stores["main"].failures.list())


def until(condition: Callable[[], Any]) -> None:
    """Wait for *condition*, at most twenty seconds."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class TestRetries:
    def test_a_failed_message_is_tried_again_until_it_succeeds(
        self, address: str, store_section: dict[str, Any]
    ) -> None:
        """Two failures, then a success: three attempts, and nothing is kept."""
        handler = Handlers(ValueError(), ValueError())
        section = config(address, store_section, failure_store="main", retry=QUICK)
        with build(section, {"handler": handler}, CATALOG) as postbus:
            send(address, PlaceOrder(1))
            work(postbus)
            assert [PlaceOrder(1)] * 3 == handler.handled
            assert [] == failed_in(postbus)

    def test_the_attempts_are_counted_in_the_headers(self, address: str) -> None:
        """`headers.attempt` counts failures, so any worker of the queue knows it."""
        seen: list[Any] = []

        def note(context: DispatchContext) -> None:
            seen.append(context.envelope.headers.get("attempt"))

        def handler(_: Any) -> None:
            raise ValueError

        section = config(address, {"store": "memory"}, failure_store="main", retry=QUICK)
        with build(section, {"handler": handler}, CATALOG) as postbus:
            postbus.command_bus.attach(Stage.INVOKE, note)
            send(address, PlaceOrder(1))
            work(postbus)
        assert [None, 1, 2] == seen

    def test_used_up_it_goes_to_the_failure_store(
        self, address: str, store_section: dict[str, Any]
    ) -> None:
        """With its bytes, its attempts, and each failure; the secret in a text is not kept."""
        handler = Handlers(*[ValueError(f"no {n}: password=hunter2") for n in range(3)])
        section = config(address, store_section, failure_store="main", retry=QUICK)
        with build(section, {"handler": handler}, CATALOG) as postbus:
            send(address, PlaceOrder(1), id=(id_ := new_id()))
            work(postbus)
            [failed] = failed_in(postbus)
        assert ("mail", "shop.place-order", id_, "handler_failed", 3) == (
            failed.consumer,
            failed.name,
            failed.id,
            failed.reason,
            failed.attempts,
        )
        assert PlaceOrder(1) == decode(failed.body, CATALOG).message
        assert ["ValueError"] * 3 == [each.error for each in failed.history]
        assert [f"no {n}: password=***" for n in range(3)] == [
            each.text for each in failed.history
        ]
        assert all(each.where and "test_worker_stores" in each.where for each in failed.history)

    def test_without_a_policy_it_is_given_up_at_once(self, address: str) -> None:
        """A failure store alone: one attempt, exact bytes."""
        handler = Handlers(ValueError())
        section = config(address, {"store": "memory"}, failure_store="main")
        envelope = Envelope(PlaceOrder(1))
        with build(section, {"handler": handler}, CATALOG) as postbus:
            send(address, envelope)
            work(postbus)
            [failed] = failed_in(postbus)
        assert (encode(envelope), 1) == (failed.body, len(handler.handled))

    def test_what_another_attempt_cannot_change_is_given_up_at_once(
        self, address: str, store_section: dict[str, Any]
    ) -> None:
        """Undecodable, unknown, without a handler: whole, with a reason, and good ones go on."""
        handler = Handlers()
        section = config(address, store_section, failure_store="main", retry=QUICK)
        unknown = encode(Envelope(PlaceOrder(1))).replace(b"place-order", b"other-order")
        bodies = [b"\x00\xff", unknown, encode(Envelope(SendMail(1)))]
        with build(section, {"handler": handler}, CATALOG) as postbus:
            send_bytes(address, *bodies)
            send(address, PlaceOrder(2))
            work(postbus)
            failed = {each.body: each for each in failed_in(postbus)}
        assert set(bodies) == set(failed)
        assert ["not_utf8", "unknown_name", "no_handler"] == [
            failed[body].reason for body in bodies
        ]
        assert [PlaceOrder(2)] == handler.handled

    def test_poison_never_blocks_good_ones(self, address: str) -> None:
        """More failing messages than the worker holds at once, and the good ones are all done."""
        handled: list[int] = []

        def handler(message: PlaceOrder) -> None:
            if message.number % 2:
                raise ValueError
            handled.append(message.number)

        retry = {"max_attempts": 2, "initial_delay": 0.05}
        section = config(address, {"store": "memory"}, failure_store="main", retry=retry)
        with build(section, {"handler": handler}, CATALOG) as postbus:
            send(address, *map(PlaceOrder, range(300)))
            work(postbus)
            assert 150 == postbus.stores["main"].failures.count()
        assert set(range(0, 300, 2)) == set(handled)

    def test_a_marked_error_is_never_retried(self, address: str) -> None:
        """`NeverRetry` is given up at once, whatever the policy says."""

        class CardDeclined(NeverRetry):
            code = "card-declined"

        handler = Handlers(CardDeclined())
        section = config(address, {"store": "memory"}, failure_store="main", retry=QUICK)
        with build(section, {"handler": handler}, CATALOG) as postbus:
            send(address, PlaceOrder(1))
            work(postbus)
            [failed] = failed_in(postbus)
        assert (1, "card-declined") == (len(handler.handled), failed.history[0].code)

    def test_rules_are_by_name(self, address: str) -> None:
        """The first rule that matches the name counts, else the consumer's policy."""
        handler = Handlers(*[ValueError()] * 9)
        rules = [{"match": "shop.send-*", "retry": {**QUICK, "max_attempts": 1}}]
        section = config(
            address, {"store": "memory"}, failure_store="main", retry=QUICK, rules=rules
        )
        section["command_bus"]["router"]["routes"]["shop.send-mail"] = "handler"
        with build(section, {"handler": handler}, CATALOG) as postbus:
            send(address, SendMail(1), PlaceOrder(1))
            work(postbus)
        assert [1, 3] == [handler.handled.count(m) for m in (SendMail(1), PlaceOrder(1))]

    def test_rules_are_by_exception_in_code(self, address: str) -> None:
        """A rule of the worker's own counts before those of the configuration."""
        handler = Handlers(*[ValueError()] * 2, *[KeyError()] * 9)
        section = config(address, {"store": "memory"}, failure_store="main", retry=QUICK)
        rule = RetryRule(error=KeyError, policy=None)
        with build(section, {"handler": handler}, CATALOG) as postbus:
            send(address, PlaceOrder(1))
            work(postbus, rules=[rule])
        assert 3 == len(handler.handled)

    def test_of_an_event_only_the_failed_listeners_run_again(self, address: str) -> None:
        """`headers.done` holds those that finished, in the failure store as well."""
        good, bad = Handlers(), Handlers(*[ValueError()] * 3)
        section = config(address, {"store": "memory"}, failure_store="main", retry=QUICK)
        section["event_bus"] = {"router": {"routes": {"shop.order-placed": ["good", "bad"]}}}
        with build(section, {"handler": good, "good": good, "bad": bad}, CATALOG) as postbus:
            send(address, OrderPlaced(1))
            work(postbus)
            [failed] = failed_in(postbus)
        assert (1, 3) == (len(good.handled), len(bad.handled))
        assert ["good"] == decode(failed.body, CATALOG).headers["done"]

    def test_queries_are_answered_and_never_retried(self, address: str) -> None:
        """The problem goes back, once; the store keeps nothing."""
        finder = Handlers(ValueError("no"))
        section = config(address, {"store": "memory"}, failure_store="main", retry=QUICK)
        section["query_bus"] = {
            "router": {
                "routes": {"shop.count-orders": "finder"},
                "send": {"shop.count-orders": "producers.mail"},
            }
        }
        section["producers"] = {"mail": {"transport": "memory", "address": address}}
        section["worker"] = {}
        services = {"handler": finder, "finder": finder}
        with build(section, services, CATALOG) as postbus, postbus.worker().running():
            with pytest.raises(HandlerFailedError):
                postbus.query_bus.dispatch(CountOrders()).result(20)
            assert (1, []) == (len(finder.handled), failed_in(postbus))

    def test_a_query_without_a_reply_channel_is_kept(self, address: str) -> None:
        """Nobody waits for the answer, so it is not asked."""
        section = config(address, {"store": "memory"}, failure_store="main", retry=QUICK)
        with build(section, {"handler": Handlers()}, CATALOG) as postbus:
            send(address, CountOrders())
            work(postbus)
            [failed] = failed_in(postbus)
        assert "no_reply_channel" == failed.reason

    def test_without_a_failure_store_it_is_given_back(self, address: str) -> None:
        """Used up and nowhere to go: nothing is dropped."""
        handler = Handlers(*[ValueError()] * 2)
        handler.enough = 3
        retry = {"max_attempts": 2, "initial_delay": 0.0}
        section = config(address, retry=retry)
        section["worker"] = {}
        with build(section, {"handler": handler}, CATALOG) as postbus:
            send(address, PlaceOrder(1))
            with postbus.worker().running():
                assert handler.done.wait(20)

    def test_a_crash_loop_ends_in_the_failure_store(self, address: str) -> None:
        """What comes back again and again without a word is given up, and not handled."""
        handler = Handlers()
        section = config(address, {"store": "memory"}, failure_store="main", retry=QUICK)
        with build(section, {"handler": handler}, CATALOG) as postbus:
            send(address, PlaceOrder(1))

            async def crash() -> None:
                # A consumer that goes without settling what it had, as a dead process does.
                consumer = MemoryConsumer(address=address)
                await consumer.receive(1)
                await consumer.aclose()

            failures = postbus.stores["main"].failures
            asyncio.run(crash())
            envelope = asyncio.run(_peek(address))
            for _ in range(3):
                failures.note_redelivery(_key(envelope))
            work(postbus)
            [failed] = failed_in(postbus)
        assert ("crash_loop", []) == (failed.reason, handler.handled)

    def test_a_redelivery_that_is_handled_is_forgotten(self, address: str) -> None:
        """The count begins anew."""
        handler = Handlers()
        section = config(address, {"store": "memory"}, failure_store="main", retry=QUICK)
        with build(section, {"handler": handler}, CATALOG) as postbus:
            send(address, PlaceOrder(1))
            envelope = asyncio.run(_peek(address))
            work(postbus)
            assert 1 == len(handler.handled)
            assert 1 == postbus.stores["main"].failures.note_redelivery(_key(envelope))


async def _peek(address: str) -> Envelope:
    consumer = MemoryConsumer(address=address)
    [delivery] = await consumer.receive(1)
    await consumer.aclose()
    return decode(delivery.body, CATALOG)


def _key(envelope: Envelope) -> str:
    return failure_key("mail", b"", decode(encode(envelope), CATALOG))


class TestPolicies:
    def test_delays_grow_to_the_longest(self) -> None:
        """Each is a multiple of the one before."""
        policy = RetryPolicy(initial_delay=1.0, multiplier=3.0, max_delay=20.0, jitter=0.0)
        assert [1.0, 3.0, 9.0, 20.0, 20.0] == [policy.delay(n) for n in (1, 2, 3, 4, 10_000)]

    def test_chance_shortens_them(self) -> None:
        """By at most the share that `jitter` says."""
        policy = RetryPolicy(initial_delay=1.0, jitter=0.5)
        delays = [policy.delay(1) for _ in range(200)]
        assert 0.5 <= min(delays) < 0.75 < max(delays) <= 1.0

    @pytest.mark.parametrize(
        "wrong",
        [
            {"max_attempts": 0},
            {"initial_delay": -1.0},
            {"multiplier": 0.5},
            {"max_delay": float("nan")},
            {"jitter": 1.1},
        ],
    )
    def test_nonsense_is_refused(self, wrong: dict[str, Any]) -> None:
        """By name."""
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RetryPolicy(**wrong)

    def test_of_several_causes_one_that_may_be_tried_again_is_enough(self) -> None:
        """Listeners that will never succeed do not keep the others from another attempt."""
        policy = RetryPolicy()
        retries = Retries(policy, [RetryRule(match="a.*", error=(KeyError, OSError))])
        assert policy is retries.policy("a.b", [NeverRetry(), KeyError(), ValueError()])
        assert retries.policy("a.b", [NeverRetry(), KeyError()]) is None
        assert policy is retries.policy("b.b", [KeyError()])

    def test_a_failure_is_bounded(self) -> None:
        """1 KiB of text, on one line, in which no secret stands."""
        failure = failure_of(ValueError("x" * 5000 + "\n"))
        assert 1024 == len(failure.text)
        failure = failure_of(ValueError("a\nb \x1b[31m é https://u:hunter2@host/"))
        assert failure.text.isprintable()
        assert "hunter2" not in failure.text
        error = HandlerFailedError("sold-out", "none left")
        error.__cause__ = KeyError("x")
        failure = failure_of(ListenersFailedError("m", [error]))
        assert ("listeners_failed", "KeyError", "sold-out") == (
            failure.reason,
            failure.error,
            failure.code,
        )


class TestRefusals:
    def problems(self, section: dict[str, Any]) -> list[str]:
        with pytest.raises(ConfigurationError) as raised:
            build(section, {"handler": Handlers()}, CATALOG)
        return [str(problem) for problem in raised.value.problems]

    def test_an_unknown_store_is_refused_with_the_nearest(self, address: str) -> None:
        """Wherever a section names one."""
        section = config(address, {"store": "memory"}, failure_store="mian", inbox="x")
        section["producers"] = {"p": {"transport": "memory", "schedule": "mani"}}
        assert [
            "producers.p.schedule: expected a section of stores, got 'mani'; did you mean 'main'?",
            (
                "consumers.mail.failure_store: expected a section of stores, got 'mian'; "
                "did you mean 'main'?"
            ),
            "consumers.mail.inbox: expected a section of stores, got 'x'; add [postbus.stores.x]",
        ] == self.problems(section)

    def test_an_unknown_kind_and_a_wrong_key_are_refused(self, address: str) -> None:
        """As for transports."""
        section = config(address)
        section["stores"] = {
            "a": {"store": "sqlit", "path": "x"},
            "b": {"store": "sqlite", "pat": "x"},
            "c": {"store": "sqlite", "path": ":memory:"},
        }
        assert [
            (
                "stores.a.store: expected an installed store (memory, sqlite), got 'sqlit'; "
                "did you mean 'sqlite'?"
            ),
            (
                "stores.b.path: required: the path of a file; for one that lives in memory say "
                "store = \"memory\"; add 'path'"
            ),
            "stores.b.pat: not a known key, got a string; did you mean 'path'?",
            (
                "stores.c.path: expected the path of a file; for one that lives in memory say "
                "store = \"memory\", got ':memory:'"
            ),
        ] == self.problems(section)

    def test_retries_need_a_place_to_wait(self, address: str) -> None:
        """A consumer that can neither retry nor has a schedule is refused; one attempt is none."""
        section = config(address, guarantee="at-most-once", retry={"max_attempts": 2})
        assert [
            (
                "consumers.mail.retry: memory cannot retry as configured, so retries need a "
                "place to wait; add a schedule or a failure_store, or leave retry out"
            )
        ] == self.problems(section)
        section["consumers"]["mail"]["retry"] = {"max_attempts": 1}
        build(section, {"handler": Handlers()}, CATALOG).close()

    def test_a_rule_that_matches_nothing_is_refused(self, address: str) -> None:
        """And one that is no pattern."""
        rules = [{"match": "shop.plaec-order", "retry": {}}, {"match": "a**", "retry": {}}]
        first, second = self.problems(config(address, rules=rules))
        assert first.startswith("consumers.mail.rules[0].match: expected a pattern that matches")
        assert "did you mean 'shop.place-order'?" in first
        assert second.startswith("consumers.mail.rules[1].match: 'a**': ** stands for whole")

    def test_a_listener_without_a_name_is_refused(self, address: str) -> None:
        """Its id would say nothing in an inbox, or in `headers.done`."""
        section = config(address, {"store": "memory"}, inbox="main")
        section["event_bus"] = {"router": {"routes": {"shop.order-placed": [lambda _: None]}}}
        [problem] = self.problems(section)
        assert "event_bus.router.routes" in problem
        assert "expected a listener with a name of its own" in problem
        del section["consumers"]["mail"]["inbox"]
        build(section, {"handler": Handlers()}, CATALOG).close()


class Unreliable:
    """Puts a switch before a store: while it is off every call fails."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.is_down = False
        self.refused = threading.Event()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if self.is_down:
                self.refused.set()
                raise ConnectionFailedError("the store is down")
            return method(*arguments, **options)

        return call


def unreliable(postbus: Postbus, part: str) -> Unreliable:
    """Put a switch before a part of the store `main`."""
    store: Store = postbus.stores["main"]
    switch = Unreliable(getattr(store, part))
    setattr(store, part, switch)
    return switch


class TestStoresThatAreDown:
    def test_consumption_pauses_and_resumes_by_itself(
        self, address: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Nothing is dropped and nothing new begins; one line says that it is down, one back."""
        caplog.set_level("INFO", "postbus.worker")
        handler = Handlers(ValueError())
        section = config(address, {"store": "memory"}, failure_store="main", concurrency=1)
        section["worker"] = {}
        with build(section, {"handler": handler}, CATALOG) as postbus:
            switch = unreliable(postbus, "failures")
            switch.is_down = True
            send(address, PlaceOrder(0))
            worker = postbus.worker()
            worker._pause = lambda _: 0.01
            with worker.running():
                until(lambda: worker.states == {"mail": "paused"})
                send(address, *map(PlaceOrder, range(1, 5)))
                for _ in range(5):
                    switch.refused.clear()
                    assert switch.refused.wait(20)
                assert [PlaceOrder(0)] == handler.handled
                switch.is_down = False
                until(lambda: len(handler.handled) == 5)
                assert {"mail": "receiving"} == worker.states
            assert 1 == len(failed_in(postbus))
        said = [each.message for each in caplog.records]
        assert 1 == said.count("consumer paused: a store is down")
        assert 1 == said.count("consumer resumed: the store is back")

    def test_stopped_meanwhile_the_message_is_given_back(self, address: str) -> None:
        """The store never came back: the transport has the message again."""
        handler = Handlers(ValueError())
        section = config(address, {"store": "memory"}, failure_store="main")
        section["worker"] = {"shutdown_grace": 5.0}
        with build(section, {"handler": handler}, CATALOG) as postbus:
            switch = unreliable(postbus, "failures")
            switch.is_down = True
            send(address, PlaceOrder(1))
            with postbus.worker().running():
                assert switch.refused.wait(20)
            assert PlaceOrder(1) == asyncio.run(_peek(address)).message

    def test_a_broken_inbox_pauses_before_anything_is_handled(self, address: str) -> None:
        """Handling without it would be handling twice; once it is back all is handled."""
        handler = Handlers()
        section = config(address, {"store": "memory"}, inbox="main")
        section["worker"] = {}
        with build(section, {"handler": handler}, CATALOG) as postbus:
            switch = unreliable(postbus, "inbox")
            send(address, PlaceOrder(1))
            worker = postbus.worker()
            worker._pause = lambda _: 0.01
            with worker.running():
                until(lambda: handler.handled)
                switch.is_down = True
                send(address, PlaceOrder(2))
                assert switch.refused.wait(20)
                until(lambda: worker.states == {"mail": "paused"})
                switch.is_down = False
                until(lambda: len(handler.handled) == 2)

    def test_an_inbox_forgets_while_the_worker_runs(
        self, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is older than `inbox_ttl` takes no room in a worker that never stops."""
        monkeypatch.setattr("postbus.worker._kept.PURGE_INTERVAL", 0.01)
        handler = Handlers()
        store = {"store": "sqlite", "path": str(tmp_path / "main.db"), "inbox_ttl": 0.01}
        section = config(address, store, inbox="main")
        section["worker"] = {}
        again = Envelope(PlaceOrder(1))

        def is_handled_anew() -> bool:
            send(address, again)
            return len(handler.handled) > 1

        with build(section, {"handler": handler}, CATALOG) as postbus, postbus.worker().running():
            until(is_handled_anew)

    def test_stopped_while_the_inbox_is_down_nothing_was_received(self, address: str) -> None:
        """The worker ends, and the message waits where it was."""
        section = config(address, {"store": "memory"}, inbox="main")
        section["worker"] = {}
        with build(section, {"handler": Handlers()}, CATALOG) as postbus:
            switch = unreliable(postbus, "inbox")
            switch.is_down = True
            send(address, PlaceOrder(1))
            with postbus.worker().running():
                assert switch.refused.wait(20)
            assert PlaceOrder(1) == asyncio.run(_peek(address)).message


class Database:
    """The application's own database, with a unit of work on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self.open() as connection:
            connection.execute("CREATE TABLE effects (number)")
        connection.close()

    def open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, check_same_thread=False)

    @contextmanager
    def unit(self) -> Generator[sqlite3.Connection]:
        connection = self.open()
        try:
            with connection:
                yield connection
        finally:
            connection.close()

    def effects(self) -> list[int]:
        with self.open() as connection:
            rows = connection.execute("SELECT number FROM effects ORDER BY rowid").fetchall()
        connection.close()
        return [number for (number,) in rows]


@pytest.fixture(params=["joined", "apart"])
def inbox_kind(request: pytest.FixtureRequest) -> str:
    """Where the rows of the inbox are."""
    return request.param  # type: ignore[no-any-return]  # pytest does not say


class Shop:
    """An application whose handlers write into a database in their units of work."""

    def __init__(self, address: str, folder: Path, kind: str) -> None:
        self.database = Database(folder / "shop.db")
        self.address = address
        self.fails: list[BaseException] = []
        self.before_commit: list[Callable[[], None]] = []
        self.runs: list[str] = []
        self.mails = False
        path = self.database.path if kind == "joined" else folder / "stores.db"
        router: dict[str, Any] = {
            "routes": {"shop.place-order": "place", "shop.send-mail": "mail"},
            "send": {"shop.send-mail": "producers.mail"},
        }
        self.section: dict[str, Any] = {
            "consumers": {
                "mail": {
                    "transport": "memory",
                    "address": address,
                    "concurrency": 1,
                    "inbox": "main",
                    "failure_store": "main",
                    "retry": QUICK,
                }
            },
            "producers": {"mail": {"transport": "memory", "address": f"{address}-out"}},
            "command_bus": {"unit_of_work": "unit", "router": router},
            "event_bus": {
                "unit_of_work": "unit",
                "router": {"routes": {"shop.order-placed": ["first", "second"]}},
            },
            "query_bus": {"router": {"routes": {"shop.count-orders": "count"}}},
            "stores": {"main": {"store": "sqlite", "path": str(path)}},
            "worker": {"stop_when_empty": True},
        }
        self.services: dict[str, Any] = {
            "unit": self.unit,
            "place": self.place,
            "mail": lambda _: None,
            "first": lambda message: self.listen("first", message),
            "second": lambda message: self.listen("second", message),
            "count": self.count,
        }
        self.postbus = build(self.section, self.services, CATALOG)
        self.connections = threading.local()

    @contextmanager
    def unit(self) -> Generator[sqlite3.Connection]:
        with self.database.unit() as connection:
            self.connections.current = connection
            yield connection

    def write(self, number: int) -> None:
        self.connections.current.execute("INSERT INTO effects VALUES (?)", (number,))

    def place(self, message: PlaceOrder) -> None:
        self.runs.append("place")
        self.write(message.number)
        self.postbus.command_bus.dispatch(SendMail(message.number))
        for step in self.before_commit:
            step()
        if self.fails:
            raise self.fails.pop(0)

    def listen(self, name: str, message: OrderPlaced) -> None:
        self.runs.append(name)
        self.write(message.number)
        if self.mails:
            self.postbus.command_bus.dispatch(SendMail(message.number))
        if name == "second" and self.fails:
            raise self.fails.pop(0)

    def count(self, _: CountOrders) -> int:
        self.runs.append("count")
        return len(self.runs)

    def sent(self) -> int:
        """Return how many mails have left."""
        return asyncio.run(_count(f"{self.address}-out"))


async def _count(address: str) -> int:
    end = new_id().encode()
    send_bytes(address, end)
    consumer = MemoryConsumer(address=address)
    found = [each.body for each in await consumer.receive(1000)]
    await consumer.aclose()
    asyncio.get_running_loop()
    reset(address)
    for body in found:
        if body != end:
            send_bytes(address, body)
    return len(found) - 1


@pytest.fixture
def shop(address: str, tmp_path: Path, inbox_kind: str) -> Iterator[Shop]:
    """An application with an inbox."""
    made = Shop(address, tmp_path, inbox_kind)
    with made.postbus:
        yield made
    reset(f"{address}-out")


class TestInbox:
    def test_what_comes_again_is_not_handled_again(self, shop: Shop) -> None:
        """The same id twice: one effect, one mail, and both deliveries settled."""
        envelope = Envelope(PlaceOrder(1))
        send(shop.address, envelope, envelope, Envelope(PlaceOrder(2)))
        work(shop.postbus)
        assert {1, 2} == set(shop.database.effects())
        assert (2, 2) == (len(shop.runs), shop.sent())

    def test_a_failure_leaves_no_row(self, shop: Shop) -> None:
        """Rolled back, tried again, and then done once."""
        shop.fails = [ValueError()]
        send(shop.address, PlaceOrder(1))
        work(shop.postbus)
        assert ([1], 2, 1) == (shop.database.effects(), len(shop.runs), shop.sent())

    def test_another_message_under_the_same_id_is_kept(self, shop: Shop) -> None:
        """It must not pass for the one that was handled."""
        envelope = Envelope(PlaceOrder(1))
        send(shop.address, envelope)
        work(shop.postbus)
        send(shop.address, envelope.evolve(message=PlaceOrder(2)))
        work(shop.postbus)
        [failed] = failed_in(shop.postbus)
        assert ("id_conflict", [1]) == (failed.reason, shop.database.effects())

    def test_what_could_not_be_sent_leaves_when_it_comes_again(self, shop: Shop) -> None:
        """The row holds the sends: the second delivery sends them and handles nothing."""

        class Refusing(RecordingProducer):
            def send_many(self, messages: Any) -> None:
                if refusals:
                    raise refusals.pop()
                super().send_many(messages)

            send = MessageProducer.send

        refusals = [ConnectionFailedError("down")]
        with shop.postbus.replacing("mail", Refusing()) as producer:
            send(shop.address, PlaceOrder(1))
            work(shop.postbus)
        assert ([1], 1, 1) == (shop.database.effects(), len(shop.runs), len(producer.messages))
        assert [] == failed_in(shop.postbus)

    def test_a_producer_that_is_gone_keeps_the_message(self, shop: Shop) -> None:
        """What a row holds for a producer that the configuration lost is not dropped."""

        class Gone(MessageProducer):
            capabilities = Undelayed

            def send_many(self, messages: Any) -> None:
                names.clear()
                raise ConnectionFailedError("down")

            def close(self) -> None: ...

        with shop.postbus.replacing("mail", Gone()):
            names = dict(shop.postbus.producers)
            worker = shop.postbus.worker()
            worker._sending = attrs.evolve(worker._sending, producers=names)
            send(shop.address, PlaceOrder(1))
            worker.run()
        [failed] = failed_in(shop.postbus)
        assert ("send_failed", 3, 1) == (failed.reason, failed.attempts, len(shop.runs))

    def test_each_listener_of_an_event_has_its_own_row(self, shop: Shop) -> None:
        """The one that finished stays done, also where the whole event is delivered again."""
        shop.fails = [ValueError(), ValueError()]
        envelope = Envelope(OrderPlaced(1))
        send(shop.address, envelope)
        work(shop.postbus)
        assert ["first", "second", "second", "second"] == shop.runs
        send(shop.address, envelope)
        work(shop.postbus)
        assert (4, [1, 1]) == (len(shop.runs), shop.database.effects())

    def test_what_a_listener_could_not_send_leaves_when_it_comes_again(self, shop: Shop) -> None:
        """A listener whose sends are pending is not among the done: its row sends them."""
        shop.fails = [ValueError()]
        refusals = [ConnectionFailedError("down")]

        class Refusing(RecordingProducer):
            def send_many(self, messages: Any) -> None:
                if refusals:
                    raise refusals.pop()
                super().send_many(messages)

            send = MessageProducer.send

        shop.mails = True
        with shop.postbus.replacing("mail", Refusing()) as producer:
            send(shop.address, OrderPlaced(1))
            work(shop.postbus)
        assert ["first", "second", "second"] == shop.runs
        assert [SendMail(1)] * 2 == [each.message for each in producer.decoded(CATALOG)]

    def test_the_answer_of_a_query_is_kept(self, shop: Shop) -> None:
        """Asked again under the same id, the finder is not; the answer is the one it gave."""
        producer = MemoryProducer(address=shop.address)
        envelope = Envelope(CountOrders())
        shop.section["worker"] = {}
        answers: list[bytes] = []
        from postbus.promises import Promise
        from postbus.transports import Reply

        with build(shop.section, shop.services, CATALOG) as postbus, postbus.worker().running():
            for _ in range(2):
                reply: Promise[Reply] = Promise()
                message = WireMessage(encode(envelope), {}, envelope.id, envelope.name)
                producer.request(message, reply)
                answers.append(reply.result(20).body)
        assert ([b"1", b"1"], ["count"]) == (answers, shop.runs)

    def test_asyncio_handlers_have_it_too(self, address: str, tmp_path: Path) -> None:
        """A unit on the loop begins, finishes and fails as one in a thread."""
        handled: list[int] = []

        async def handler(message: PlaceOrder) -> None:
            handled.append(message.number)
            if len(handled) == 1:
                raise ValueError

        store = {"store": "sqlite", "path": str(tmp_path / "stores.db")}
        section = config(address, store, inbox="main", failure_store="main", retry=QUICK)
        with build(section, {"handler": handler}, CATALOG) as postbus:
            envelope = Envelope(PlaceOrder(1))
            send(address, envelope, envelope)
            work(postbus)
            work(postbus)
        assert [1, 1] == handled

    def test_asyncio_units_are_joined_too(self, address: str, tmp_path: Path) -> None:
        """The row is the last statement before the commit of a transaction on the loop."""
        database = Database(tmp_path / "shop.db")
        connections: list[sqlite3.Connection] = []
        fails = [ValueError()]

        @asynccontextmanager
        async def unit() -> AsyncGenerator[sqlite3.Connection]:
            # Of this thread only: nobody else may write the row.
            connection = sqlite3.connect(database.path)
            connections.append(connection)
            try:
                with connection:
                    yield connection
            finally:
                connection.close()

        async def handler(message: PlaceOrder) -> None:
            connections[-1].execute("INSERT INTO effects VALUES (?)", (message.number,))
            if fails:
                raise fails.pop()

        store = {"store": "sqlite", "path": str(database.path)}
        section = config(address, store, inbox="main", retry=QUICK, concurrency=1)
        section["command_bus"]["unit_of_work"] = "unit"
        with build(section, {"handler": handler, "unit": unit}, CATALOG) as postbus:
            envelope = Envelope(PlaceOrder(1))
            send(address, envelope, envelope)
            work(postbus)
            assert [1] == database.effects()
            done = postbus.stores["main"].inbox.begin(envelope.id, "", _digest(envelope), None)
            assert isinstance(done, Done)

    def test_asyncio_listeners_have_it_too(self, address: str) -> None:
        """Each has its row, in a unit of its own."""
        runs: list[str] = []

        async def first(_: Any) -> None:
            runs.append("first")

        async def second(_: Any) -> None:
            runs.append("second")

        section = config(address, {"store": "memory"}, inbox="main")
        routes = {"shop.order-placed": ["first", "second"]}
        section["event_bus"] = {"router": {"routes": routes}}
        services = {"handler": first, "first": first, "second": second}
        with build(section, services, CATALOG) as postbus:
            envelope = Envelope(OrderPlaced(1))
            send(address, envelope, envelope)
            work(postbus)
        assert ["first", "second"] == sorted(runs)

    def test_what_somebody_else_is_at_waits(self, address: str) -> None:
        """A live claim is respected; when it is given up the message is handled."""
        handler = Handlers()
        section = config(address, {"store": "memory"}, inbox="main")
        section["worker"] = {}
        with build(section, {"handler": handler}, CATALOG) as postbus:
            envelope = Envelope(PlaceOrder(1))
            inbox = postbus.stores["main"].inbox
            begun = inbox.begin(envelope.id, "", _digest(envelope), 60.0)
            send(address, envelope)
            with postbus.worker().running():
                asked = time.monotonic() + 0.3
                until(lambda: time.monotonic() > asked)
                assert [] == handler.handled
                inbox.abandon(begun.key)  # type: ignore[union-attr]  # it is New
                assert handler.done.wait(20)

    def test_where_nothing_can_be_given_back_it_waits_in_the_worker(self, address: str) -> None:
        """A transport without acknowledgements: the message is kept and looked at again."""
        handler = Handlers()
        section = config(address, {"store": "memory"}, inbox="main", guarantee="at-most-once")
        section["worker"] = {}
        with build(section, {"handler": handler}, CATALOG) as postbus:
            envelope = Envelope(PlaceOrder(1))
            inbox = postbus.stores["main"].inbox
            inbox.begin(envelope.id, "", _digest(envelope), 0.3)
            send(address, envelope)
            with postbus.worker().running():
                assert handler.done.wait(20)

    def test_handled_meanwhile_by_another_it_rolls_back(
        self, address: str, tmp_path: Path
    ) -> None:
        """Joined: the other's row is a duplicate, so our effects are undone and it is done."""
        shop = Shop(address, tmp_path, "joined")
        envelope = Envelope(PlaceOrder(1))

        def other() -> None:
            shop.before_commit = []
            # As another worker would: its own transaction, committed before ours.
            shop.connections.current.rollback()
            key = shop.postbus.stores["main"].inbox.begin(envelope.id, "", _digest(envelope), None)
            with shop.database.unit() as connection:
                connection.execute("INSERT INTO effects VALUES (99)")
                shop.postbus.stores["main"].inbox.finish(
                    key.key,  # type: ignore[union-attr]  # it is New
                    None,
                    (),
                    within=connection,
                )
            shop.write(1)

        shop.before_commit = [other]
        with shop.postbus:
            send(address, envelope)
            work(shop.postbus)
            assert ([99], 0, []) == (shop.database.effects(), shop.sent(), failed_in(shop.postbus))
        reset(f"{address}-out")


def _digest(envelope: Envelope) -> bytes:
    received = decode(encode(envelope), CATALOG)
    assert received.payload is not None
    return hashlib.sha256(b"\0".join((envelope.name.encode(), received.payload))).digest()


class TestSchedule:
    def test_what_a_producer_cannot_delay_a_worker_sends_when_it_is_due(
        self, address: str, store_section: dict[str, Any]
    ) -> None:
        """`dispatch(delay=)` and `at=` go to the schedule, whole, and leave in time."""
        section = self.section(address, store_section)
        producer = RecordingProducer(capabilities=Undelayed)
        postbus = build(section, {"handler": Handlers()}, CATALOG)
        with postbus, postbus.replacing("mail", producer):
            bus, schedule = postbus.command_bus, postbus.stores["main"].schedule
            bus.dispatch(SendMail(1), delay=0.2, id=(id_ := new_id()))
            bus.dispatch(SendMail(2), delay=3600)
            soon = datetime.now(UTC) + timedelta(seconds=0.1)
            asyncio.run(bus.adispatch(SendMail(3), at=soon))
            bus.dispatch(SendMail(4))
            assert [SendMail(4)] == [each.message for each in producer.decoded(CATALOG)]
            assert 3 == len(schedule.list(target="producers.mail"))
            with postbus.worker().running():
                until(lambda: len(producer.messages) == 3)
            sent = producer.decoded(CATALOG)
            assert [SendMail(4), SendMail(3), SendMail(1)] == [each.message for each in sent]
            assert id_ == sent[2].id
            assert 1 == len(schedule.list())

    @staticmethod
    def section(address: str, store: dict[str, Any]) -> dict[str, Any]:
        section = config(address, store)
        section["worker"] = {}
        section["command_bus"]["router"]["send"] = {"shop.send-mail": "producers.mail"}
        section["producers"] = {
            "mail": {"transport": "memory", "address": f"{address}-out", "schedule": "main"}
        }
        return section

    def test_what_a_producer_can_delay_does_not_go_there(self, address: str) -> None:
        """The transport's own delay is used."""
        section = self.section(address, {"store": "memory"})
        with build(section, {"handler": Handlers()}, CATALOG) as postbus:
            postbus.command_bus.dispatch(SendMail(1), delay=0.001)
            assert [] == list(postbus.stores["main"].schedule.list())

    def test_without_a_schedule_a_delay_is_refused(self, address: str) -> None:
        """Neither the producer nor a store: `UnsupportedError`."""
        section = self.section(address, {"store": "memory"})
        del section["producers"]["mail"]["schedule"]
        with build(section, {"handler": Handlers()}, CATALOG) as postbus:
            producer = RecordingProducer(capabilities=Undelayed)
            refused = pytest.raises(UnsupportedError, match="delay")
            with postbus.replacing("mail", producer), refused:
                postbus.command_bus.dispatch(SendMail(1), delay=1)

    def test_a_due_message_that_cannot_be_sent_waits_again(self, address: str) -> None:
        """Nothing is lost, and it is offered again later."""
        section = self.section(address, {"store": "memory"})
        with build(section, {"handler": Handlers()}, CATALOG) as postbus:
            tried = threading.Event()

            class Refusing(MessageProducer):
                capabilities = Undelayed

                def send_many(self, messages: Any) -> None:
                    tried.set()
                    raise ConnectionFailedError("down")

                def close(self) -> None: ...

            with postbus.replacing("mail", Refusing()):
                postbus.command_bus.dispatch(SendMail(1), delay=0.001)
                schedule = postbus.stores["main"].schedule
                with postbus.worker().running():
                    assert tried.wait(20)
                    until(lambda: not [*schedule.claim(["producers.mail"], limit=1, lease=0.0)])
                [row] = schedule.list()
                assert row.due > datetime.now(UTC) + timedelta(seconds=2)

    def test_retries_wait_there_where_the_transport_cannot(
        self, address: str, store_section: dict[str, Any]
    ) -> None:
        """A consumer that takes nothing back: the message is tried again, then kept."""
        handler = Handlers(*[ValueError()] * 9)
        section = config(
            address, store_section, failure_store="main", retry=QUICK, guarantee="at-most-once"
        )
        with build(section, {"handler": handler}, CATALOG) as postbus:
            send(address, PlaceOrder(1), PlaceOrder(2))
            work(postbus)
            assert {3} == {each.attempts for each in failed_in(postbus)}
            assert 2 == len(failed_in(postbus))
            assert [] == list(postbus.stores["main"].schedule.list())
        assert 6 == len(handler.handled)

    def test_another_worker_of_the_consumer_takes_what_is_due(
        self, address: str, tmp_path: Path
    ) -> None:
        """Rows are by consumer, not by worker: the first is gone, the second handles it."""
        store = {"store": "sqlite", "path": str(tmp_path / "stores.db")}
        retry = {"max_attempts": 3, "initial_delay": 0.3, "jitter": 0.0}
        section = config(
            address, store, failure_store="main", retry=retry, guarantee="at-most-once"
        )
        section["worker"] = {"max_messages": 1}
        first, second = Handlers(ValueError()), Handlers()
        with build(section, {"handler": first}, CATALOG) as postbus:
            send(address, PlaceOrder(1))
            work(postbus)
            assert 1 == len(postbus.stores["main"].schedule.list(target="consumers.mail"))
        section["worker"] = {}
        with build(section, {"handler": second}, CATALOG) as postbus:
            with postbus.worker().running():
                assert second.done.wait(20)
            assert [] == list(postbus.stores["main"].schedule.list())

    def test_due_messages_count_as_others_do(self, address: str) -> None:
        """A worker that ends after two messages leaves the third where it waits."""
        handler = Handlers()
        section = config(address, {"store": "memory"}, schedule="main")
        section["worker"] = {"max_messages": 2}
        with build(section, {"handler": handler}, CATALOG) as postbus:
            schedule = postbus.stores["main"].schedule
            for number in range(3):
                envelope = Envelope(PlaceOrder(number))
                message = WireMessage(encode(envelope), {}, envelope.id, envelope.name)
                now = datetime.now(UTC)
                row = ScheduledMessage(target="consumers.mail", due=now, message=message)
                schedule.put(row)
            work(postbus)
            assert (2, 1) == (len(handler.handled), len(schedule.list()))

    def test_what_a_stopped_worker_held_is_given_back(self, address: str) -> None:
        """A due message that was cut off is due again at once."""
        started, go = threading.Event(), threading.Event()

        def handler(_: Any) -> None:
            started.set()
            go.wait(20)

        section = config(address, {"store": "memory"}, schedule="main", guarantee="at-most-once")
        section["worker"] = {"shutdown_grace": 0.0}
        with build(section, {"handler": handler}, CATALOG) as postbus:
            schedule = postbus.stores["main"].schedule
            envelope = Envelope(PlaceOrder(1))
            message = WireMessage(encode(envelope), {}, envelope.id, envelope.name)
            schedule.put(
                ScheduledMessage(target="consumers.mail", due=datetime.now(UTC), message=message)
            )
            with postbus.worker().running():
                assert started.wait(20)
            [claim] = schedule.claim(["consumers.mail"], limit=1, lease=1.0)
            assert claim.redelivered
            go.set()


class TestAtTheEdges:
    def test_what_waits_for_another_is_no_crash_loop(self, address: str) -> None:
        """However often it is looked at again, a redelivered message is counted once."""
        handler = Handlers()
        section = config(address, {"store": "memory"}, inbox="main", failure_store="main")
        section["worker"] = {}
        with build(section, {"handler": handler}, CATALOG) as postbus:
            envelope = Envelope(PlaceOrder(1))
            store = postbus.stores["main"]
            store.inbox.begin(envelope.id, "", _digest(envelope), 0.5)
            send(address, envelope)
            asyncio.run(_peek(address))
            worker = postbus.worker()
            with worker.running():
                until(lambda: worker._running and worker._running[0]._busy)  # type: ignore[attr-defined]  # a consumer with an inbox
                assert 2 == store.failures.note_redelivery(_key(envelope))
                assert handler.done.wait(20)
            assert [] == failed_in(postbus)

    def test_stopped_it_gives_back_what_waits_for_another(self, address: str) -> None:
        """The message is there for whoever comes next."""
        section = config(address, {"store": "memory"}, inbox="main")
        section["worker"] = {}
        with build(section, {"handler": Handlers()}, CATALOG) as postbus:
            envelope = Envelope(PlaceOrder(1))
            postbus.stores["main"].inbox.begin(envelope.id, "", _digest(envelope), 60.0)
            send(address, envelope)
            worker = postbus.worker()
            with worker.running():
                until(lambda: worker._running and worker._running[0]._busy)  # type: ignore[attr-defined]  # a consumer with an inbox
            assert envelope.id == asyncio.run(_peek(address)).id

    def test_too_large_for_another_attempt_it_is_kept_as_it_came(self, address: str) -> None:
        """A header more would not fit: given up at the first failure, exact bytes."""
        section = config(address, {"store": "memory"}, failure_store="main", retry=QUICK)
        section["consumers"]["mail"]["max_size_bytes"] = 1024
        envelope = Envelope(PlaceOrder(1), metadata={"x": ""})
        padding = "x" * (1024 - len(encode(envelope)))
        envelope = envelope.evolve(metadata={"x": padding})
        handler = Handlers(ValueError())
        with build(section, {"handler": handler}, CATALOG) as postbus:
            send(address, envelope)
            work(postbus)
            [failed] = failed_in(postbus)
        assert (encode(envelope), 1) == (failed.body, len(handler.handled))

    def test_a_code_that_no_store_could_write_is_made_plain(
        self, address: str, store_section: dict[str, Any]
    ) -> None:
        """A message must not stop its consumer by what its handler raises."""

        class OddError(Exception):
            code = "\ud800\n"

        section = config(address, store_section, failure_store="main")
        with build(section, {"handler": Handlers(OddError("\udcff"))}, CATALOG) as postbus:
            send(address, PlaceOrder(1))
            work(postbus)
            [failed] = failed_in(postbus)
        assert ("\\ud800\\n", "\\udcff") == (failed.history[0].code, failed.history[0].text)

    def test_trouble_with_the_inbox_beside_the_work_ends_nothing(
        self, shop: Shop, inbox_kind: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What it did not hear is logged: sends that left, and a row that was given back."""
        switch = unreliable(shop.postbus, "inbox")
        for name in ("sent", "abandon"):
            setattr(switch, name, _down)
        for number, fails in enumerate(([], [ValueError()])):
            shop.fails = [*fails]
            send(shop.address, PlaceOrder(number))
            shop.postbus.worker(limits=Limits(max_messages=1)).run()
        assert "did not hear what has left" in caplog.text
        # A row that is joined goes with its transaction.
        assert (inbox_kind == "apart") == ("did not hear of a failure" in caplog.text)

    def test_a_lease_that_ended_is_told(
        self, address: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Handled by two apart: nothing can undo it, so it is logged."""
        section = config(address, {"store": "memory"}, inbox="main")
        with build(section, {"handler": Handlers()}, CATALOG) as postbus:
            monkeypatch.setattr(postbus.stores["main"].inbox, "finish", lambda *_: False)
            send(address, PlaceOrder(1))
            work(postbus)
        assert "handled twice: the inbox's lease had ended" in caplog.text

    def test_an_inbox_that_breaks_after_the_commit_has_it_handled_again(
        self, address: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Apart: at least once, and the row is there in the end."""
        handler = Handlers()
        handler.enough = 2
        section = config(address, {"store": "memory"}, inbox="main")
        section["worker"] = {}
        with build(section, {"handler": handler}, CATALOG) as postbus:
            inbox = postbus.stores["main"].inbox
            finish, broken = inbox.finish, [True]

            def once(*arguments: Any) -> bool:
                if broken:
                    broken.clear()
                    raise ConnectionFailedError("down")
                return finish(*arguments)

            monkeypatch.setattr(inbox, "finish", once)
            send(address, PlaceOrder(1))
            with postbus.worker().running():
                assert handler.done.wait(20)

    def test_several_are_put_into_a_schedule(self) -> None:
        """What stands in for a producer takes many, in order, and closing it is nothing."""
        store = MemoryStore()
        producer = DelayedProducer("mail", store.schedule, Undelayed)
        envelope = Envelope(PlaceOrder(1))
        producer.send_many(
            [WireMessage(b"x", {}, f"{n}", envelope.name, delay=float(n)) for n in range(3)]
        )
        producer.close()
        assert ["0", "1", "2"] == [row.message.id for row in store.schedule.list()]
        assert producer.capabilities.delay is not None

    def test_a_claim_that_ended_is_lost(self) -> None:
        """A due message whose settlement the store refuses says so, and settles once."""

        async def main() -> None:
            store, threads = MemoryStore(), StoreThreads()
            message = WireMessage(b"x", {}, "one", "a.b")
            row = ScheduledMessage(target="consumers.c", due=datetime.now(UTC), message=message)
            store.schedule.put(row)
            [claim] = store.schedule.claim(["consumers.c"], limit=1, lease=9.0)
            first, second = (ScheduledDelivery(claim, store.schedule, threads) for _ in range(2))
            assert not first.lost
            first.ack()
            first.nack()
            first.extend(1.0)
            await first.settled()
            second.retry(message)
            with pytest.raises(TransportError, match="the claim had ended"):
                await second.settled()
            assert (False, True) == (first.lost, second.lost)
            switch: Any = Unreliable(store.schedule)
            switch.is_down = True
            broken = ScheduledDelivery(claim, switch, threads)
            broken.nack()
            with pytest.raises(ConnectionFailedError):
                await broken.settled()
            assert broken.lost
            await threads.aclose(1.0)

        asyncio.run(main())

    def test_a_schedule_that_did_not_hear_sends_again(
        self, address: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Under the same id, when the lease has ended."""
        section = TestSchedule.section(address, {"store": "memory"})
        producer = RecordingProducer(capabilities=Undelayed)
        postbus = build(section, {"handler": Handlers()}, CATALOG)
        with postbus, postbus.replacing("mail", producer):
            schedule = postbus.stores["main"].schedule
            postbus.command_bus.dispatch(SendMail(1), delay=0.001)
            monkeypatch.setattr(schedule, "complete", _down)
            with postbus.worker().running():
                until(lambda: "did not hear what was sent" in caplog.text)
            assert 1 == len(producer.messages) == len(schedule.list())


def _down(*_: Any) -> Any:
    raise ConnectionFailedError("down")
