"""An endpoint with an inbox: what it answers to a message that comes again."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import pytest

from postbus import Command, Event, Query, build
from postbus.errors import ConfigurationError, ConnectionFailedError
from postbus.messages import Envelope
from postbus.testing import RecordingProducer
from postbus.wire import encode
from postbus_http import MessageEndpoint

PATIENCE = 60.0


@attrs.frozen
class Note(Command, name="inbox.note"):
    """A command."""

    text: str


@attrs.frozen
class Noted(Event, name="inbox.noted"):
    """An event."""

    text: str


@attrs.frozen
class CountNotes(Query[int], name="inbox.count-notes"):
    """A query."""


class Shop:
    """The handlers of an application."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.failing = False
        self.started = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def note(self, message: Any) -> None:
        """Handle a command; blocks until told to go on."""
        self.started.set()
        assert self.go.wait(PATIENCE)
        self.notes.append(message.text)

    def first(self, message: Noted) -> None:
        """Hear an event."""
        self.notes.append(f"first {message.text}")

    def second(self, message: Noted) -> None:
        """Hear it too."""
        if self.failing:
            raise ValueError
        self.notes.append(f"second {message.text}")

    def count(self, _: CountNotes) -> int:
        """Answer a query."""
        return len(self.notes)


@pytest.fixture
def shop() -> Shop:
    """Handlers, and what they were given."""
    return Shop()


@pytest.fixture(params=["memory", "sqlite"])
def postbus(request: pytest.FixtureRequest, shop: Shop, tmp_path: Path) -> Iterator[Any]:
    """An application around them, with a store of each kind."""
    store = {"store": request.param}
    if request.param == "sqlite":
        store["path"] = str(tmp_path / "main.db")
    config = {
        "messages": [__name__],
        "stores": {"main": store},
        "command_bus": {"router": {"routes": {"inbox.note": "note"}}},
        "event_bus": {"router": {"routes": {"inbox.noted": ["first", "second"]}}},
        "query_bus": {"router": {"routes": {"inbox.count-notes": "count"}}},
    }
    services = {name: getattr(shop, name) for name in ("note", "first", "second", "count")}
    with build(config, services) as made:
        yield made


def wire(message: Any, **changes: Any) -> bytes:
    """Return the bytes of a message."""
    return json.dumps({**json.loads(encode(Envelope(message))), **changes}).encode()


@attrs.frozen
class Response:
    """What came back."""

    status: int
    body: bytes
    retry_after: str | None


def post(port: int, body: bytes) -> Response:
    """Post a message, on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("POST", "/", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return Response(answer.status, answer.read(), answer.getheader("Retry-After"))


@pytest.fixture
def serve(served: Any, postbus: Any) -> Callable[..., Callable[[bytes], Response]]:
    """Return a function that serves another endpoint, as after a restart or in another process."""

    def start(**options: Any) -> Callable[[bytes], Response]:
        endpoint = MessageEndpoint(postbus, allow_any_peer=True, inbox="main", **options)
        port = served(endpoint).port
        return lambda body: post(port, body)

    return start


Serve = Callable[..., Callable[[bytes], Response]]


class Down:
    """An inbox that cannot be asked."""

    def __getattr__(self, name: str) -> Any:
        """Fail, whatever is asked."""

        def call(*_: Any, **__: Any) -> Any:
            raise ConnectionFailedError(name)

        return call


class TestInbox:
    def test_the_same_message_is_handled_once_for_all_endpoints(
        self, serve: Serve, shop: Shop
    ) -> None:
        """Same id and same bytes: the first answer again, from whichever of them."""
        one, other, body = serve(), serve(), wire(Note("once"))
        assert [each(body).status for each in (one, other, one, other)] == [204] * 4
        assert shop.notes == ["once"]

    def test_another_message_with_its_id_is_refused(self, serve: Serve, shop: Shop) -> None:
        """422, of any kind."""
        one, other = serve(), serve()
        for message, changed in [
            (Note("a"), Note("b")),
            (Noted("a"), Noted("b")),
            (CountNotes(), Note("c")),
        ]:
            body = wire(message)
            assert one(body).status in {200, 204}
            notes = list(shop.notes)
            refused = other(wire(changed, uuid=json.loads(body)["uuid"].upper()))
            assert (refused.status, json.loads(refused.body)["code"]) == (422, "conflict")
            assert shop.notes == notes

    def test_what_only_its_headers_tell_apart_is_the_same_message(
        self, serve: Serve, shop: Shop
    ) -> None:
        """A sender that tries again may count its attempts."""
        one, body = serve(), wire(Note("once"))
        headers = {**json.loads(body)["headers"], "attempt": 1}
        assert one(body).status == 204
        assert one(wire(Note("once"), **{**json.loads(body), "headers": headers})).status == 204
        assert shop.notes == ["once"]

    def test_one_that_is_being_handled_is_put_off(self, serve: Serve, shop: Shop) -> None:
        """409 and when to come again, from every endpoint; then it is done."""
        one, other, body = serve(), serve(), wire(Note("slow"))
        shop.go.clear()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(one, body)
            assert shop.started.wait(PATIENCE)
            for each in (one, other):
                response = each(body)
                assert (response.status, response.retry_after) == (409, "1")
            shop.go.set()
            assert first.result(PATIENCE).status == 204
        assert other(body).status == 204
        assert shop.notes == ["slow"]

    def test_of_an_event_only_the_failed_listeners_hear_it_again(
        self, serve: Serve, shop: Shop
    ) -> None:
        """Each has a row of its own; without an inbox all of them would."""
        one, body = serve(), wire(Noted("a"))
        shop.failing = True
        assert one(body).status == 500
        shop.failing = False
        assert serve()(body).status == 204
        assert shop.notes == ["first a", "second a"]

    def test_the_first_answer_of_a_query_is_given_again(self, serve: Serve, shop: Shop) -> None:
        """Byte by byte, whatever has changed."""
        one, body = serve(), wire(CountNotes())
        assert (one(body).status, one(body).body) == (200, b"0")
        one(wire(Note("a")))
        assert serve()(body).body == b"0"
        assert one(wire(CountNotes())).body == b"1"

    def test_a_batch_has_an_answer_for_each(self, serve: Serve, shop: Shop) -> None:
        """Also where two of it are the same."""
        note, count = wire(Note("a")), wire(CountNotes())
        one = serve()
        assert one(note).status == 204
        answer = json.loads(one(b"[%b,%b]" % (note, count)).body)
        assert answer == [{"status": 204}, {"status": 200, "result": 1}]
        assert shop.notes == ["a"]

    def test_an_inbox_that_is_down_is_503(self, serve: Serve, shop: Shop, postbus: Any) -> None:
        """Nothing is handled that cannot be noted; the sender comes again."""
        store = postbus.stores["main"]
        inbox, store.inbox = store.inbox, Down()
        one, body = serve(), wire(Note("a"))
        response = one(body)
        assert (response.status, response.retry_after) == (503, "1")
        assert shop.notes == []
        store.inbox = inbox
        assert serve()(body).status == 204


class TestConstructor:
    def test_a_store_must_be_there(self, postbus: Any) -> None:
        """A wrong name is told when the endpoint is made."""
        with pytest.raises(ConfigurationError, match="main"):
            MessageEndpoint(postbus, allow_any_peer=True, inbox="mian")

    def test_what_is_accepted_has_no_inbox_here(self, postbus: Any) -> None:
        """Its row would tell the worker that it was handled."""
        with pytest.raises(ValueError, match="worker"):
            MessageEndpoint(
                postbus,
                allow_any_peer=True,
                mode="accept",
                store=RecordingProducer(),
                inbox="main",
            )


class TestProcesses:
    def test_two_processes_of_a_server_handle_each_message_once(
        self, tmp_path: Path, free_port: Callable[[], int]
    ) -> None:
        """`uvicorn --workers 2` and one SQLite file: every message comes three times."""
        with sqlite3.connect(tmp_path / "shop.db") as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("CREATE TABLE effects (number INTEGER, pid INTEGER)")
        connection.close()
        count, port = 60, free_port()
        bodies = [_place(number) for number in range(count)]
        posts = bodies * 3
        random.Random(7).shuffle(posts)
        with _workers(port, tmp_path), ThreadPoolExecutor(12) as pool:
            # One of them may be slow to start.
            end, more = time.monotonic() + PATIENCE, itertools.count(count)
            while len({pid for _, pid in _effects(tmp_path)}) < 2:
                list(pool.map(lambda _: post(port, _place(next(more))), range(12)))
                assert time.monotonic() < end
            statuses = Counter(pool.map(lambda body: _until_done(port, body), posts))
        assert statuses == {204: 3 * count}
        numbers = [number for number, _ in _effects(tmp_path) if number < count]
        assert sorted(numbers) == list(range(count))


def _effects(folder: Path) -> list[tuple[int, int]]:
    with contextlib.closing(sqlite3.connect(folder / "shop.db")) as connection:
        return connection.execute("SELECT number, pid FROM effects").fetchall()


def _place(number: int) -> bytes:
    return json.dumps(
        {
            "message_name": "inboxed.place",
            "uuid": f"0b0c41cf-5c9a-4bd9-9c2e-{number:012d}",
            "payload": {"number": number},
            "metadata": {},
            "created_at": "2026-01-31T12:00:00.000000",
        }
    ).encode()


@contextlib.contextmanager
def _workers(port: int, folder: Path) -> Generator[None]:
    """Serve the application in two processes until the block ends."""
    command = [sys.executable, "-m", "uvicorn", "inboxed_application:application"]
    command += ["--port", str(port), "--workers", "2", "--lifespan", "off"]
    command += ["--app-dir", str(Path(__file__).parent), "--log-level", "warning"]
    environment = {**os.environ, "SHOP_FOLDER": str(folder)}
    with subprocess.Popen(command, env=environment) as server:
        try:
            end = time.monotonic() + PATIENCE
            while True:
                with contextlib.suppress(OSError):
                    post(port, b"")
                    break
                assert time.monotonic() < end
                time.sleep(0.05)
            yield
        finally:
            server.terminate()
            server.wait(PATIENCE)


def _until_done(port: int, body: bytes) -> int:
    """Post until it was neither put off nor turned away."""
    end = time.monotonic() + PATIENCE
    while True:
        status = post(port, body).status
        if status not in {409, 503} or time.monotonic() > end:
            return status
        time.sleep(0.01)
