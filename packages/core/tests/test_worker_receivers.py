"""Received messages beside an inbox, for a server that is no worker's."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from postbus import Command, Envelope, Event, MessageCatalog, Query, build
from postbus.errors import (
    ConfigurationError,
    ConnectionFailedError,
    HandlerFailedError,
    ListenersFailedError,
    TransportError,
)
from postbus.memory import MemoryProducer, reset
from postbus.messages import new_id
from postbus.stores import Conflict, Running
from postbus.testing import RecordingProducer
from postbus.transports import WireMessage
from postbus.wire import decode, encode
from postbus.worker import Limits

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator, Iterator
    from pathlib import Path

    from postbus import Postbus

PATIENCE = 30.0


@attrs.frozen
class Place(Command, name="receivers.place"):
    number: int


@attrs.frozen
class Mail(Command, name="receivers.mail"):
    number: int


@attrs.frozen
class Placed(Event, name="receivers.placed"):
    number: int


@attrs.frozen
class Count(Query[int], name="receivers.count"):
    pass


CATALOG = MessageCatalog()
for each in (Place, Mail, Placed, Count):
    CATALOG.add(each)


class Shop:
    """An application with a database, beside which the inbox is or is not."""

    def __init__(self, folder: Path, address: str, *, is_joined: bool) -> None:
        self._folder = folder
        self._local = threading.local()
        self.calls: list[str] = []
        self.failing: set[str] = set()
        self.go = threading.Event()
        self.go.set()
        self.started = threading.Event()
        with sqlite3.connect(folder / "shop.db") as connection:
            connection.execute("CREATE TABLE effects (effect TEXT)")
        connection.close()
        store = folder / ("shop.db" if is_joined else "inbox.db")
        self.config: dict[str, Any] = {
            "stores": {"main": {"store": "sqlite", "path": str(store)}},
            "producers": {"mail": {"transport": "memory", "address": f"{address}-mail"}},
            "consumers": {
                "shop": {"transport": "memory", "address": address, "inbox": "main"},
            },
            "command_bus": {
                "unit_of_work": "unit",
                "router": {
                    "routes": {"receivers.place": "place"},
                    "send": {"receivers.mail": "producers.mail"},
                },
            },
            "event_bus": {
                "unit_of_work": "unit",
                "router": {"routes": {"receivers.placed": ["first", "second"]}},
            },
            "query_bus": {"router": {"routes": {"receivers.count": "count"}}},
        }
        self.services = {
            "unit": self.unit,
            "place": self.place,
            "count": self.count,
            "first": lambda _: self._effect("first"),
            "second": lambda _: self._effect("second"),
        }
        self.postbus: Postbus

    @contextmanager
    def unit(self) -> Generator[sqlite3.Connection]:
        connection = sqlite3.connect(self._folder / "shop.db", timeout=60, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        self._local.connection = connection
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        finally:
            connection.close()

    def place(self, message: Place) -> None:
        self._effect("place")
        self.postbus.command_bus.dispatch(Mail(message.number))

    def _effect(self, effect: str) -> None:
        self.calls.append(effect)
        self.started.set()
        assert self.go.wait(PATIENCE)
        if effect in self.failing:
            msg = "not now"
            raise ValueError(msg)
        if "unit_of_work" in self.config["command_bus"]:
            self._local.connection.execute("INSERT INTO effects VALUES (?)", (effect,))

    def count(self, _: Count) -> int:
        self.calls.append("count")
        return len(self.calls)

    @property
    def effects(self) -> list[str]:
        connection = sqlite3.connect(self._folder / "shop.db")
        found = [effect for (effect,) in connection.execute("SELECT effect FROM effects")]
        connection.close()
        return found


@pytest.fixture(params=["joined", "apart"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path, f"receivers-{new_id()}", is_joined=request.param == "joined")
    with build(made.config, made.services, CATALOG) as made.postbus:
        yield made
    reset()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(PATIENCE):
            return await work

    return asyncio.run(limited())


def coming(message: Any, **changes: Any) -> Envelope:
    """Return *message* as it comes off a wire."""
    return decode(encode(Envelope(message, **changes)), CATALOG)


def receive(shop: Shop, *envelopes: Envelope, receiver: Any = None) -> list[Any]:
    """Have *envelopes* received in turn; what is raised stands in the place of a result."""
    receiver = receiver or shop.postbus.receiver("main")

    async def work() -> list[Any]:
        found: list[Any] = []
        for envelope in envelopes:
            try:
                found.append(await receiver.areceive(envelope, "test", lambda x: b"%d" % x))
            except Exception as error:
                found.append(error)
        return found

    found: list[Any] = run(work())
    return found


class TestOnce:
    def test_what_comes_again_is_not_handled_again(self, shop: Shop) -> None:
        """As in a worker."""
        envelope = coming(Place(1))
        assert receive(shop, envelope, envelope) == [None, None]
        assert receive(shop, envelope) == [None]
        assert shop.effects == ["place"]

    def test_another_message_under_the_id_is_a_conflict(self, shop: Shop) -> None:
        """It must not pass for the first."""
        id_ = new_id()
        assert receive(shop, coming(Place(1), id=id_), coming(Place(2), id=id_)) == [
            None,
            Conflict(),
        ]
        events = [coming(Placed(n), id=new_id()) for n in (1, 2)]
        other = decode(encode(Envelope(Placed(3), id=events[0].id)), CATALOG)
        assert receive(shop, *events, other) == [None, None, Conflict()]
        assert shop.effects == ["place", "first", "second", "first", "second"]

    def test_one_that_failed_may_come_again(self, shop: Shop) -> None:
        """It left no row."""
        envelope = coming(Place(1))
        shop.failing.add("place")
        (error,) = receive(shop, envelope)
        assert isinstance(error, HandlerFailedError)
        shop.failing.clear()
        assert receive(shop, envelope) == [None]
        assert shop.effects == ["place"]

    def test_of_an_event_only_the_failed_listeners_run_again(self, shop: Shop) -> None:
        """Each has a row of its own."""
        envelope = coming(Placed(1))
        shop.failing.add("second")
        (error,) = receive(shop, envelope)
        assert isinstance(error, ListenersFailedError)
        shop.failing.clear()
        assert receive(shop, envelope) == [None]
        assert shop.calls == ["first", "second", "second"]
        assert shop.effects == ["first", "second"]

    def test_the_first_answer_of_a_query_is_kept(self, shop: Shop) -> None:
        """The same bytes, whatever the handler would say now."""
        envelope = coming(Count())
        assert receive(shop, envelope, envelope) == [b"1", b"1"]
        assert shop.calls == ["count"]

    def test_what_could_not_be_sent_leaves_when_it_comes_again(self, shop: Shop) -> None:
        """The work stands, and is not done again."""
        envelope, receiver = coming(Place(1)), shop.postbus.receiver("main")
        closed = RecordingProducer()
        closed.close()
        with shop.postbus.replacing("mail", closed):
            (error,) = receive(shop, envelope, receiver=receiver)
        assert isinstance(error, TransportError)
        with shop.postbus.replacing("mail", RecordingProducer()) as mail:
            assert receive(shop, envelope, receiver=receiver) == [None]
        assert [message.name for message in mail.messages] == ["receivers.mail"]
        assert shop.effects == ["place"]

    def test_it_agrees_with_a_worker(self, shop: Shop) -> None:
        """One inbox: what either has handled, the other does not."""
        first, second = coming(Place(1)), coming(Place(2))
        address = shop.config["consumers"]["shop"]["address"]
        receive(shop, first)
        producer = MemoryProducer(address=address)
        for envelope in (first, second):
            producer.send(WireMessage(encode(envelope), {}, envelope.id, envelope.name))
        shop.postbus.worker(limits=Limits(stop_when_empty=True)).run()
        receive(shop, second)
        assert shop.effects == ["place", "place"]


class TestSomebodyElse:
    """Only a row that is apart says that somebody is at it; here without any unit of work."""

    @pytest.fixture
    def shop(self, tmp_path: Path) -> Shop:
        """An application that has no transactions."""
        shop = Shop(tmp_path, f"receivers-{new_id()}", is_joined=False)
        del shop.config["command_bus"]["unit_of_work"]
        return shop

    def test_a_message_that_is_being_handled_is_running(self, shop: Shop) -> None:
        """Said at once; whoever has it goes on."""
        with build(shop.config, shop.services, CATALOG) as shop.postbus:
            envelope = coming(Place(1))
            receiver = shop.postbus.receiver("main")
            shop.go.clear()

            async def work() -> None:
                def encode_reply(_: Any) -> bytes:
                    raise AssertionError

                first = asyncio.create_task(receiver.areceive(envelope, "test", encode_reply))
                await asyncio.to_thread(shop.started.wait, PATIENCE)
                other = shop.postbus.receiver("main")
                said = await other.areceive(envelope, "test", encode_reply)
                assert isinstance(said, Running)
                shop.go.set()
                assert await first is None

            run(work())
        assert shop.calls == ["place"]

    def test_its_claim_is_renewed_as_long_as_it_takes(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A lease that ended would let another one in."""
        lease = 0.3
        monkeypatch.setattr("postbus.worker._receivers.INBOX_LEASE", lease)
        with build(shop.config, shop.services, CATALOG) as shop.postbus:
            envelope = coming(Place(1))
            shop.go.clear()

            async def work() -> None:
                receiver = shop.postbus.receiver("main")
                first = asyncio.create_task(receiver.areceive(envelope, "test", lambda _: b""))
                await asyncio.to_thread(shop.started.wait, PATIENCE)
                seen: list[Any] = []
                until = time.time() + 5 * lease
                while not seen or seen[-1].until.timestamp() < until:
                    seen.append(await receiver.areceive(envelope, "test", lambda _: b""))
                    assert isinstance(seen[-1], Running)
                    await asyncio.sleep(lease / 10)
                shop.go.set()
                assert await first is None

            run(work())
        assert shop.calls == ["place"]

    def test_cancelled_it_gives_the_message_back(self, shop: Shop) -> None:
        """An asyncio handler is cancelled with it, and its row is free at once."""
        started = asyncio.Event()

        async def place(_: Place) -> None:
            started.set()
            if not shop.go.is_set():
                await asyncio.get_running_loop().create_future()

        services = {**shop.services, "place": place}
        with build(shop.config, services, CATALOG) as shop.postbus:
            envelope, receiver = coming(Place(1)), shop.postbus.receiver("main")
            shop.go.clear()

            async def work() -> None:
                first = asyncio.create_task(receiver.areceive(envelope, "test", lambda _: b""))
                await started.wait()
                first.cancel()
                await asyncio.wait({first})
                assert first.cancelled()
                shop.go.set()
                # Giving a row back is not waited for: its turn may come a little later.
                for pause in (0.0, *[0.1] * 100):
                    await asyncio.sleep(pause)
                    if await receiver.areceive(envelope, "test", lambda _: b"") is None:
                        return
                raise AssertionError

            run(work())


class Down:
    """An inbox that cannot be asked."""

    def __init__(self, inbox: Any) -> None:
        self._inbox = inbox
        self.is_down = True

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if self.is_down:
                msg = "down"
                raise ConnectionFailedError(msg)
            return getattr(self._inbox, name)(*arguments, **options)

        return call


class TestTrouble:
    def test_an_inbox_that_is_down_lets_nothing_be_handled(self, shop: Shop) -> None:
        """Until it is back."""
        store: Any = shop.postbus.stores["main"]
        down = store.inbox = Down(store.inbox)
        envelope, receiver = coming(Place(1)), shop.postbus.receiver("main")
        (error,) = receive(shop, envelope, receiver=receiver)
        assert isinstance(error, TransportError)
        assert shop.calls == []
        down.is_down = False
        assert receive(shop, envelope, receiver=receiver) == [None]
        down.is_down = True
        (error,) = receive(shop, coming(Place(2)), receiver=receiver)
        assert isinstance(error, TransportError)
        assert shop.effects == ["place"]

    def test_a_store_must_be_there(self, shop: Shop) -> None:
        """The nearest name is offered."""
        with pytest.raises(ConfigurationError) as caught:
            shop.postbus.receiver("mian")
        (problem,) = caught.value.problems
        assert (problem.path, problem.suggestion) == ("stores.mian", "did you mean 'main'?")

    def test_a_listener_needs_a_name(self) -> None:
        """By which a row could know it."""
        config = {
            "stores": {"main": {"store": "memory"}},
            "event_bus": {"router": {"routes": {"receivers.placed": [lambda _: None]}}},
        }
        with build(config, {}, CATALOG) as postbus, pytest.raises(ConfigurationError) as caught:
            postbus.receiver("main")
        (problem,) = caught.value.problems
        assert problem.rule == "unnamed-listener"
