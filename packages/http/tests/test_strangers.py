"""What strangers cannot do: forge, replay, learn why they were refused, or write into logs."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import random
import socket
import ssl
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import attrs
import pytest

from postbus import Command, Query, build
from postbus.cli._logs import Lines
from postbus.errors import PostbusError
from postbus.messages import Envelope
from postbus.wire import encode
from postbus_http import (
    HTTPConsumerSettings,
    HTTPContainer,
    HTTPProducerSettings,
    MessageEndpoint,
    WebhookKeys,
)

OLD = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NEW = "whsec_plJ3nmyCDGBKInavdOK15jsl3Tr7Yhmb"
WRONG = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
PATIENCE = 30.0
FORGERIES = 10_000
Run = Callable[[Awaitable[Any]], Any]


@attrs.frozen
class Note(Command, name="strangers.note"):
    """A command."""

    text: str


@attrs.frozen
class Ask(Query[str], name="strangers.ask"):
    """A query."""

    text: str


class Shop:
    """The handlers of an application."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.failing = ""

    def note(self, message: Note) -> None:
        """Handle a command."""
        if self.failing:
            raise ValueError(self.failing)
        self.notes.append(message.text)

    def ask(self, message: Ask) -> str:
        """Answer a query."""
        if self.failing:
            raise ValueError(self.failing)
        return message.text


CONFIG = {
    "messages": [__name__],
    "command_bus": {"router": {"routes": {"strangers.note": "note"}}},
    "query_bus": {"router": {"routes": {"strangers.ask": "ask"}}},
}


@pytest.fixture
def shop() -> Shop:
    """Handlers, and what they were given."""
    return Shop()


@pytest.fixture
def postbus(shop: Shop) -> Iterator[Any]:
    """An application around them."""
    with build(CONFIG, {"note": shop.note, "ask": shop.ask}) as made:
        yield made


def wire(message: Any, **changes: Any) -> bytes:
    """Return the bytes of a message."""
    return json.dumps({**json.loads(encode(Envelope(message))), **changes}).encode()


def signed(body: bytes, *keys: str, now: float | None = None) -> dict[bytes, bytes]:
    """Return the headers of a request."""
    made = WebhookKeys(keys).sign("msg_1", body, now=now) if keys else {}
    headers = {name.encode(): value.encode() for name, value in made.items()}
    return {b"content-type": b"application/json", **headers}


async def post(endpoint: MessageEndpoint, headers: dict[bytes, bytes], body: bytes) -> int:
    """Give the endpoint a request without a server; return the status."""
    statuses: list[int] = []
    scope = {"type": "http", "method": "POST", "headers": [*headers.items()], "client": ("x", 1)}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(event: Any) -> None:
        if event["type"] == "http.response.start":
            statuses.append(event["status"])

    await endpoint(scope, receive, send)
    (status,) = statuses
    return status


class TestAuthentication:
    @pytest.mark.parametrize(
        ("keys", "status"),
        [((), 401), ((WRONG,), 401), ((OLD,), 204), ((NEW,), 204), ((OLD, NEW), 204)],
    )
    def test_of_two_keys_either_is_good_and_no_other(
        self, postbus: Any, run: Run, keys: tuple[str, ...], status: int
    ) -> None:
        """While a key changes no good request is refused."""
        endpoint, body = MessageEndpoint(postbus, signing_keys=[OLD, NEW]), wire(Note("a"))
        assert run(post(endpoint, signed(body, *keys), body)) == status

    def test_a_key_that_was_taken_away_is_no_key(self, postbus: Any, run: Run) -> None:
        """At the end of its rotation."""
        endpoint, body = MessageEndpoint(postbus, signing_keys=[NEW]), wire(Note("a"))
        assert run(post(endpoint, signed(body, OLD), body)) == 401

    def test_no_forgery_is_accepted(self, postbus: Any, shop: Shop, run: Run) -> None:
        """One bit of id, time, signature, content type, name or any other part of the body."""
        endpoint, chosen = MessageEndpoint(postbus, signing_keys=[OLD]), random.Random(5)

        async def forge() -> set[int]:
            statuses: set[int] = set()
            for number in range(FORGERIES):
                body = wire(Note(str(number)))
                headers = signed(body, OLD)
                part = chosen.choice([*headers, b"name", b"body"])
                if part in headers:
                    headers[part] = _flipped(headers[part], chosen)
                elif part == b"name":
                    name = b"strangers.note"
                    body = body.replace(name, _flipped(name, chosen))
                else:
                    body = _flipped(body, chosen)
                statuses.add(await post(endpoint, headers, body))
            return statuses

        assert run(forge()) == {401, 415}
        assert shop.notes == []

    def test_a_replay_has_no_second_effect_inside_the_window_and_none_is_taken_outside(
        self, postbus: Any, shop: Shop, run: Run
    ) -> None:
        """Answered as the first time while it is remembered, then too old to be looked at."""
        endpoint, body = MessageEndpoint(postbus, signing_keys=[OLD]), wire(Note("once"))

        async def replay() -> list[int]:
            ages = [0.0, 100.0, 299.0, 301.0, 1e6, -301.0]
            return [
                await post(endpoint, signed(body, OLD, now=time.time() - age), body)
                for age in ages
                for _ in range(20)
            ]

        assert run(replay()) == [204] * 60 + [401] * 60
        assert shop.notes == ["once"]

    def test_whatever_is_wrong_the_answer_is_the_same_to_the_byte(
        self, postbus: Any, served: Any
    ) -> None:
        """A11: nobody learns whether a signature was malformed, wrong, or too old."""
        server = served(
            MessageEndpoint(postbus, signing_keys=[OLD], bearer="t0ken"), date_header=False
        )
        body = wire(Note("a"))
        good = {**signed(body, OLD), b"authorization": b"Bearer t0ken"}
        assert _ask(server.port, good, body).startswith(b"HTTP/1.1 204")
        wrong: list[tuple[bytes, bytes | None]] = [
            (b"authorization", value)
            for value in (None, b"", b"Bearer", b"Bearer t0keN", b"Basic dDBrZW4=", b"\xff" * 99)
        ]
        wrong += [
            (b"webhook-id", value) for value in (None, b"", b"msg_2", b"with.stop", b"a" * 65)
        ]
        wrong += [
            (b"webhook-timestamp", value)
            for value in (None, b"0", b"-1", b"1e9", b"9" * 400, b"%d" % (time.time() + 1))
        ]
        forged = b"v1," + base64.b64encode(b"x" * 32)
        wrong += [
            (b"webhook-signature", value)
            for value in (None, b"", b"v1", b"v1,", b"v1,no base64", b"v1,\xff", b"v2,AAAA")
        ]
        wrong += [(b"webhook-signature", forged), (b"webhook-signature", b"v1a" + forged[2:])]
        answers = set()
        for name, value in wrong:
            headers = {**good, name: value or b""}
            if value is None:
                del headers[name]
            answers.add(_ask(server.port, headers, body))
        (answer,) = answers
        assert answer.startswith(b"HTTP/1.1 401")


def _flipped(value: bytes, chosen: random.Random) -> bytes:
    """Return *value* with one bit changed; never only from a small letter to its capital."""
    while True:
        flipped = bytearray(value)
        flipped[chosen.randrange(len(value))] ^= 1 << chosen.randrange(8)
        if flipped.lower() != value.lower():
            return bytes(flipped)


def _ask(port: int, headers: dict[bytes, bytes], body: bytes) -> bytes:
    """Send a request as bytes, and return what comes to the end."""
    lines = [b"POST / HTTP/1.1", b"Host: x", b"Content-Length: %d" % len(body)]
    lines += [b"%b: %b" % header for header in headers.items()]
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        connection.sendall(b"\r\n".join([*lines, b"Connection: close", b"", b""]) + body)
        answer = b""
        while more := connection.recv(65_536):
            answer += more
    return answer


class Told:
    """Everything that is said at DEBUG, as the lines that the command writes, and as JSON."""

    def __init__(self) -> None:
        self.text, self.json = io.StringIO(), io.StringIO()
        self.records: list[logging.LogRecord] = []
        self.others: list[str] = []

    @property
    def whole(self) -> str:
        """All of it."""
        return "\n".join([self.text.getvalue(), self.json.getvalue(), *self.others])

    def note(self, record: logging.LogRecord) -> bool:
        """Keep a record beside its line."""
        self.records.append(record)
        return True

    def error(self, error: BaseException) -> None:
        """Note everything that an error shows."""
        self.others += [str(error), repr(error), *traceback.format_exception(error)]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[Told]:
    """What is logged from now on."""
    made = Told()
    root = logging.getLogger()
    handlers = []
    for stream, as_json in ((made.text, False), (made.json, True)):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(Lines(as_json=as_json))
        handlers.append(handler)
    handlers[0].addFilter(made.note)
    with caplog.at_level(logging.DEBUG):
        for handler in handlers:
            root.addHandler(handler)
        yield made
        for handler in handlers:
            root.removeHandler(handler)


SIGNING = "whsec_" + base64.b64encode(b"canary-signing-key-0123456789").decode()
SECRETS = {
    "signing_keys": SIGNING,
    "bearer": "canary-bearer",
    "password": "canary-password",
    "url": "canary-url",
    "query": "canary-query",
    "body": "canary-body",
    "handler": "canary-handler",
    "header": "canary-header",
}


class TestSecrets:
    @pytest.mark.parametrize("auth", ["bearer", "password"])
    def test_a_sender_tells_nothing_whatever_goes_wrong(
        self,
        told: Told,
        scripted: Any,
        respond: Any,
        free_port: Callable[[], int],
        capfd: pytest.CaptureFixture[str],
        auth: str,
    ) -> None:
        """A18: neither in logs nor in errors, nor in what shows an object."""

        def echo(request: Any, _: Any) -> bytes:
            said = json.dumps(dict(request.headers)).encode()
            return bytes(respond("500 Broken", said, "Content-Type: text/plain"))

        def drop(*_: Any) -> None:
            return None

        credentials = (
            {"bearer": SECRETS["bearer"]}
            if auth == "bearer"
            else {"username": "shop", "password": SECRETS["password"]}
        )
        nobody = f"http://127.0.0.1:{free_port()}"
        plain = scripted(drop).url.replace("http:", "https:").rpartition("/")[0]
        origins = [
            scripted(answer).url.rpartition("/")[0]
            for answer in (echo, drop, respond("302 Found", b"", "Location: http://x/"))
        ]
        for origin in [*origins, nobody, plain]:
            section: dict[str, Any] = {
                "url": f"{origin}/{SECRETS['url']}?token={SECRETS['query']}",
                "signing_keys": [SIGNING],
                "total_timeout": 5.0,
                **credentials,
            }
            with HTTPContainer(config=section) as http:
                told.others += [repr(http.settings()), repr(http.producer()), repr(http)]
                told.others += [str(HTTPProducerSettings(**section))]
                with pytest.raises(PostbusError) as sent:
                    http.command_bus().dispatch(Note(SECRETS["body"]))
                with pytest.raises(PostbusError) as asked:
                    http.query_bus().dispatch(Ask(SECRETS["body"])).result(PATIENCE)
                for each in (sent, asked):
                    told.error(each.value)
        told.others += capfd.readouterr()
        encoded = base64.b64encode(f"shop:{SECRETS['password']}".encode()).decode()
        assert [each for each in [*SECRETS.values(), encoded] if each in told.whole] == []

    def test_a_receiver_tells_nothing_whatever_comes(
        self,
        told: Told,
        postbus: Any,
        shop: Shop,
        served: Any,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        """Not to the sender either."""
        endpoint = MessageEndpoint(
            postbus, signing_keys=[SIGNING], bearer=SECRETS["bearer"], max_size_bytes=10_000
        )
        told.others += [repr(endpoint), repr(vars(endpoint)["_intake"])]
        told.others += [
            repr(HTTPConsumerSettings(signing_keys=[SIGNING], bearer=SECRETS["bearer"]))
        ]
        server = served(endpoint, log_level="debug")
        shop.failing = SECRETS["handler"]
        canary = SECRETS["body"]
        bodies = [wire(message) for message in (Note(canary), Ask(canary))]
        bodies += [
            wire(Note(canary), uuid=canary),
            wire(Note(canary), payload={"text": 1, canary: canary}),
            wire(Note(canary), metadata={canary: [canary]}),
            wire(Note(canary), headers={"v": canary}),
            wire(Note(canary), created_at=canary),
            f'{{"{canary}'.encode(),
            canary.encode(),
            canary.encode() * 1_000,
        ]
        for body in bodies:
            good = {**signed(body, SIGNING), b"authorization": b"Bearer canary-bearer"}
            for headers in (good, {**good, b"webhook-signature": b"v1,canary-header"}):
                told.others.append(_ask(server.port, headers, body).decode())
            bad = {**good, b"authorization": b"Bearer canary-header"}
            told.others.append(_ask(server.port, bad, body).decode())
        told.others += capfd.readouterr()
        assert "400 Bad Request" in told.whole
        assert "500 Internal" in told.whole
        assert [each for each in SECRETS.values() if each in told.whole] == []


class TestLogs:
    def test_there_is_one_line_for_each_event(
        self, told: Told, postbus: Any, shop: Shop, run: Run
    ) -> None:
        """A17: line ends and escape sequences of strangers are data; lines are short."""
        endpoint = MessageEndpoint(postbus, allow_any_peer=True)
        evil = ["\r\nERROR root: owned", "\x1b[2J\x1b[31mowned", "\u2028owned", "a\x00\x08b\n"]
        shop.failing = "\n".join(evil)

        async def attack() -> list[int]:
            statuses = []
            for number in range(200):
                text = evil[number % 4] * (1 + number)
                bodies = [
                    wire(Note(text)),
                    wire(Note("a"), message_name=text),
                    wire(Note("a"), uuid=text),
                    wire(Note("a"), **{text: text}),
                    wire(Note("a"), payload={text: text}),
                ]
                headers = {b"content-type": b"application/json", b"x-evil": text.encode()}
                statuses += [await post(endpoint, headers, body) for body in bodies]
                headers[b"content-type"] = text.encode()
                statuses.append(await post(endpoint, headers, bodies[0]))
            return statuses

        # The first of them is refused for its name by what a payload of this message is.
        statuses = run(attack())
        assert len(statuses) == 1_200
        assert all(status >= 400 for status in statuses)
        ours = [record for record in told.records if record.name == "postbus.http"]
        assert len(ours) == 1_200
        for stream in (told.text, told.json):
            lines = [line for line in stream.getvalue().split("\n") if "asyncio" not in line]
            lines = [line for line in lines if line and "selector" not in line]
            assert len(lines) == 1_200
            assert max(map(len, lines)) <= 512
            assert [line for line in lines if "owned" in line or "\x1b" in line] == []


def test_a_secret_is_found_where_it_is_told(told: Told) -> None:
    """What these tests rest on."""
    logging.getLogger("postbus.http").debug("said", extra={"what": SECRETS["body"]})
    with contextlib.suppress(ssl.SSLError):
        raise ssl.SSLError
    assert told.whole.count(SECRETS["body"]) == 2
