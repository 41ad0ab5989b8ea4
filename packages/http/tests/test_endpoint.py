"""The endpoint, driven by clients that know nothing of it, under a real server."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import json
import logging
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import pytest
import standardwebhooks

from postbus import Command, Event, MessageCatalog, Query, build
from postbus.errors import UnauthorizedError
from postbus.memory import MemoryConsumer, MemoryProducer
from postbus.messages import Envelope
from postbus.testing import RecordingProducer
from postbus.transports import WireMessage
from postbus.wire import encode
from postbus_http import HTTPProducer, MessageEndpoint, WebhookKeys

KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PATIENCE = 30.0


@attrs.frozen
class Note(Command, name="endpoint.note"):
    """A command."""

    text: str


@attrs.frozen
class Noted(Event, name="endpoint.noted"):
    """An event."""

    text: str


@attrs.frozen
class CountNotes(Query[int], name="endpoint.count-notes"):
    """A query."""

    at_least: int = 0


@attrs.frozen
class Unhandled(Command, name="endpoint.unhandled"):
    """A command that nothing handles."""


class SoldOutError(Exception):
    """An error that the configuration registers."""


class Shop:
    """The handlers of an application."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.failing: Exception | None = None
        self.cancelled = False
        self.is_waiting = False
        self.threads: set[str] = set()
        self.go = threading.Event()
        self.started = threading.Event()
        self.go.set()

    def note(self, message: Any) -> None:
        """Handle a command or an event; blocks until told to go on."""
        self.threads.add(threading.current_thread().name)
        self.started.set()
        assert self.go.wait(PATIENCE)
        if self.failing is not None:
            raise self.failing
        self.notes.append(message.text)

    async def count(self, query: CountNotes) -> int:
        """Answer a query."""
        if self.failing is not None:
            raise self.failing
        if self.is_waiting:
            self.started.set()
            await asyncio.get_running_loop().create_future()
        if self.cancelled:
            awaited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            awaited.cancel()
            return await awaited
        return max(len(self.notes), query.at_least)


@pytest.fixture
def shop() -> Shop:
    """Handlers, and what they were given."""
    return Shop()


@pytest.fixture
def postbus(shop: Shop) -> Iterator[Any]:
    """An application around them."""
    config = {
        "messages": [__name__],
        "errors": {"sold-out": f"{__name__}:SoldOutError"},
        "command_bus": {"router": {"routes": {"endpoint.note": "note"}}},
        "event_bus": {"router": {"routes": {"endpoint.noted": "note"}}},
        "query_bus": {"router": {"routes": {"endpoint.count-notes": "count"}}},
    }
    with build(config, {"note": shop.note, "count": shop.count}) as made:
        yield made


def wire(message: Any, **changes: Any) -> bytes:
    """Return the bytes of a message."""
    fields = {**json.loads(encode(Envelope(message))), **changes}
    return json.dumps(fields).encode()


@attrs.frozen
class Response:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> Any:
        """The body of a failure."""
        assert self.headers["content-type"] == "application/problem+json"
        return json.loads(self.body)


Post = Callable[..., Response]


@pytest.fixture
def serve(served: Any, postbus: Any) -> Callable[..., Post]:
    """Return a function that serves an endpoint, and returns one that posts to it."""

    def start(**options: Any) -> Post:
        signing_keys = options.get("signing_keys", ())
        is_open = "bearer" not in options and not signing_keys
        given: dict[str, Any] = {"allow_any_peer": is_open, **options}
        endpoint = MessageEndpoint(postbus, **given)
        server = served(endpoint)

        def post(body: bytes, method: str = "POST", **headers: str) -> Response:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
            with contextlib.closing(connection):
                given = {"Content-Type": "application/json"}
                given |= {name.replace("_", "-"): value for name, value in headers.items()}
                connection.request(method, "/any/path", body, given)
                answer = connection.getresponse()
                found = {name.lower(): value for name, value in answer.getheaders()}
                return Response(answer.status, found, answer.read())

        post.server = server  # type: ignore[attr-defined]  # for tests that need the address
        post.endpoint = endpoint  # type: ignore[attr-defined]  # and the endpoint
        return post

    return start


def signed(body: bytes, key: str = KEY, message_id: str = "msg_1") -> dict[str, str]:
    """Return the headers of a signature."""
    return WebhookKeys([key]).sign(message_id, body)


class TestMessages:
    def test_a_command_is_handled_before_it_is_answered(
        self, serve: Callable[..., Post], shop: Shop
    ) -> None:
        """204, in a thread: the handler is a plain function."""
        response = serve()(wire(Note("first")))
        assert (response.status, response.body) == (204, b"")
        assert shop.notes == ["first"]
        assert all(name != "MainThread" for name in shop.threads)

    def test_an_event_goes_to_its_listeners(self, serve: Callable[..., Post], shop: Shop) -> None:
        """On the event bus."""
        assert serve()(wire(Noted("happened"))).status == 204
        assert shop.notes == ["happened"]

    def test_a_query_is_answered_with_its_result(self, serve: Callable[..., Post]) -> None:
        """200, JSON and nothing else."""
        response = serve()(wire(CountNotes(7)))
        assert (response.status, response.body) == (200, b"7")
        assert response.headers["content-type"] == "application/json"

    def test_an_array_has_an_answer_for_each(self, serve: Callable[..., Post], shop: Shop) -> None:
        """In order, whatever became of the others."""
        body = b" [%b, %b, {}, %b]" % (
            wire(Note("a")),
            wire(CountNotes(3)),
            wire(Unhandled()),
        )
        response = serve()(body)
        assert response.status == 200
        first, second, third, fourth = json.loads(response.body)
        assert first == {"status": 204}
        assert second == {"status": 200, "result": 3}
        assert (third["status"], third["code"]) == (400, "missing_field")
        assert (fourth["status"], fourth["code"]) == (404, "no-handler")
        assert shop.notes == ["a"]

    def test_our_producer_sends_to_it(
        self,
        serve: Callable[..., Post],
        shop: Shop,
        producer: Callable[..., HTTPProducer],
        run: Any,
    ) -> None:
        """Signed, one by one and in batches."""
        post: Any = serve(signing_keys=[KEY])
        single = producer(post.server.url, signing_keys=[KEY])
        batched = producer(post.server.url, signing_keys=[KEY], batch=8)
        for made in (single, batched):
            run(
                made.asend_many(
                    [
                        WireMessage(wire(Note("x")), {}, str(uuid.uuid4()), "endpoint.note")
                        for _ in range(20)
                    ]
                )
            )
        reply = run(
            single.arequest(WireMessage(wire(CountNotes()), {}, "an-id", "endpoint.count-notes"))
        )
        assert reply.body == b"40"

    @pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
    def test_so_does_curl(self, serve: Callable[..., Post], shop: Shop) -> None:
        """What a person would type."""
        post: Any = serve(bearer="t0ken")
        command = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--noproxy", "*"]
        headers = ["-H", "Authorization: Bearer t0ken", "-H", "Content-Type: application/json"]
        done = subprocess.run(
            [*command, *headers, "--data-binary", wire(Note("typed")).decode(), post.server.url],
            capture_output=True,
            check=True,
            timeout=PATIENCE,
            text=True,
        )
        assert (done.stdout, shop.notes) == ("204", ["typed"])

    def test_the_package_of_the_specification_signs_for_it(
        self, serve: Callable[..., Post], shop: Shop
    ) -> None:
        """Written by others."""
        from datetime import UTC, datetime

        body, moment = wire(Note("signed")), datetime.now(UTC)
        headers = {
            "webhook-id": "msg_1",
            "webhook-timestamp": str(int(moment.timestamp())),
            "webhook-signature": standardwebhooks.Webhook(KEY).sign(
                "msg_1", moment, body.decode()
            ),
        }
        assert serve(signing_keys=[KEY])(body, **headers).status == 204
        assert shop.notes == ["signed"]


class TestFailures:
    def test_what_a_handler_raises_stays_here(
        self, serve: Callable[..., Post], shop: Shop, caplog: pytest.LogCaptureFixture
    ) -> None:
        """500 with a code: neither words nor traceback, in the answer or in the log."""
        caplog.set_level(logging.DEBUG, "postbus")
        shop.failing = ValueError("hunter2")
        post = serve()
        for message in (Note("a"), Noted("a"), CountNotes()):
            response = post(wire(message))
            assert response.status == 500
            assert response.problem["code"] == "error"
            assert response.problem["type"] == "urn:postbus:problem:handler-failed"
            assert b"hunter2" not in response.body
        assert "hunter2" not in caplog.text
        # What the server itself writes depends on what configured its logging before.
        ours = [record for record in caplog.records if record.name.startswith("postbus")]
        assert [record.message for record in ours] == ["message failed"] * 3

    def test_something_that_a_handler_awaits_may_be_cancelled(
        self, serve: Callable[..., Post], shop: Shop
    ) -> None:
        """By somebody else: a failure like others."""
        shop.cancelled = True
        post = serve()
        assert post(wire(CountNotes())).status == 500
        assert post(wire(Noted("async"))).status == 204

    def test_a_failure_of_business_is_final(self, serve: Callable[..., Post], shop: Shop) -> None:
        """422 for an error that the configuration registers: sending again would not help."""
        shop.failing = SoldOutError("none left")
        post = serve()
        for message in (Note("a"), CountNotes()):
            response = post(wire(message))
            assert response.status == 422
            assert response.problem["code"] == "sold-out"
            assert response.problem["detail"] == "none left"

    @pytest.mark.parametrize(
        ("body", "status", "code"),
        [
            (b"", 400, "malformed"),
            (b"{", 400, "malformed"),
            (b"nonsense", 400, "malformed"),
            (b"{}", 400, "missing_field"),
            (b"\xff\xfe{}", 400, "not_utf8"),
            (b"\xef\xbb\xbf{}", 400, "bom"),
            (b"1", 400, "not_an_object"),
            (b"[{", 400, "not_an_object"),
            (b"[" * 1000, 400, "too_deep"),
            (b"[" * 100_000 + b"]" * 100_000, 400, "too_deep"),
            (b'{"a":' * 100 + b"1" + b"}" * 100, 400, "too_deep"),
            (b"[]", 413, "batch_too_large"),
            (b"[1" + b",1" * 100 + b"]", 413, "batch_too_large"),
            (wire(Note("a"), message_name="os.system"), 400, "unknown_name"),
            (wire(Note("a"), message_name="../../etc/passwd"), 400, "unknown_name"),
            (wire(Note("a"), payload={"text": 1}), 400, "invalid_payload"),
            (wire(Note("a"), uuid="a\r\nb"), 400, "invalid_uuid"),
            (wire(Unhandled()), 404, "no-handler"),
            (wire(CountNotes(), headers={"deadline": "2020-01-01T00:00:00Z"}), 504, "timed-out"),
            (b'"' + b"x" * 2000 + b'"', 400, "not_an_object"),
        ],
    )
    def test_what_is_no_message_is_refused_with_a_reason(
        self, serve: Callable[..., Post], shop: Shop, body: bytes, status: int, code: str
    ) -> None:
        """A2 to A7: before anything of it is used."""
        response = serve()(body)
        assert (response.status, response.problem["code"]) == (status, code)
        assert response.problem["type"].startswith("urn:postbus:problem:")
        assert shop.notes == []

    def test_two_hundred_wrong_names_import_nothing(
        self, serve: Callable[..., Post], shop: Shop
    ) -> None:
        """A6: a name is looked up in the catalogue, and nowhere else."""
        import sys

        post = serve()
        names = [
            "os.system",
            "builtins.eval",
            "__main__.x",
            "postbus.Command",
            "../x",
            "\x00\x01\x02",
        ]
        names += [f"this.module{n}" for n in range(194)]
        post(wire(Note("a")))
        before = set(sys.modules)
        refused = [post(wire(Note("a"), message_name=name)).status for name in names]
        assert refused == [400] * 200
        assert {name for name in set(sys.modules) - before if "this" in name} == set()
        assert shop.notes == ["a"]

    def test_a_result_that_cannot_be_written_is_a_failure(self, served: Any) -> None:
        """Of the handler, which is here."""
        catalog = MessageCatalog()
        catalog.add(CountNotes)
        config = {"query_bus": {"router": {"routes": {"endpoint.count-notes": "count"}}}}
        with build(config, {"count": lambda _: object()}, catalog) as made:
            server = served(MessageEndpoint(made, allow_any_peer=True))
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
            with contextlib.closing(connection):
                headers = {"Content-Type": "application/json"}
                connection.request("POST", "/", wire(CountNotes()), headers)
                assert connection.getresponse().status == 500


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "status"),
        [
            ({"method": "GET"}, 405),
            ({"Content_Type": "text/plain"}, 415),
            ({"Content_Type": ""}, 415),
            ({"Content_Type": "application/json; charset=utf-16"}, 415),
            ({"Content_Encoding": "gzip"}, 415),
        ],
    )
    def test_what_is_no_post_of_json(
        self, serve: Callable[..., Post], shop: Shop, options: dict[str, str], status: int
    ) -> None:
        """Refused before the body is read, and the connection ends."""
        response = serve()(wire(Note("a")), **options)
        assert response.status == status
        assert response.headers["connection"] == "close"
        assert response.problem["code"]
        assert shop.notes == []

    def test_charset_utf_8_is_what_json_has(self, serve: Callable[..., Post]) -> None:
        """Spelt out by many clients."""
        post = serve()
        for kind in ("application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"'):
            assert post(wire(Note("a")), Content_Type=kind).status == 204

    def test_a_bomb_is_not_unpacked(self, serve: Callable[..., Post], shop: Shop) -> None:
        """A1: 10 MB of blanks in 10 kB."""
        bomb = gzip.compress(b" " * 10_000_000)
        assert serve()(bomb, Content_Encoding="gzip").status == 415
        assert serve()(bomb).status == 400

    def test_a_body_is_counted(self, serve: Callable[..., Post]) -> None:
        """A1: by what is announced, and by what comes."""
        post: Any = serve(max_size_bytes=1000)
        assert post(b" " * 1001).problem["code"] == "too_large"
        assert post(b" " * 1001).status == 413
        for length in ("9" * 50, "-1", "x"):
            answer = _raw(post.server.port, b"Content-Length: " + length.encode(), b"")
            # What is no length is the server's to refuse.
            assert answer[:12] in {b"HTTP/1.1 413", b"HTTP/1.1 400"}

    @pytest.mark.parametrize(("size", "status"), [(1000, 400), (1001, 413)])
    def test_a_body_without_a_length_is_counted_too(
        self, serve: Callable[..., Post], size: int, status: int
    ) -> None:
        """A1: in pieces, each of them small; to the byte."""
        post: Any = serve(max_size_bytes=1000)
        connection = http.client.HTTPConnection("127.0.0.1", post.server.port, timeout=PATIENCE)
        pieces = [b" " * (size // 2), b" " * (size - size // 2)]
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/", iter(pieces), headers, encode_chunked=True)
            answer = connection.getresponse()
            assert answer.status == status
            # What is too large is not read to its end.
            assert answer.getheader("connection") == ("close" if status == 413 else None)

    def test_three_hundred_mebibytes_in_chunks_are_not_read(
        self, serve: Callable[..., Post], shop: Shop
    ) -> None:
        """A1: counted whatever is announced; memory does not grow, and others are served."""
        import resource

        post: Any = serve()
        post(wire(Note("before")))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sent = 0
        with socket.create_connection(("127.0.0.1", post.server.port), PATIENCE) as attacker:
            attacker.sendall(
                b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n"
            )
            chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
            with contextlib.suppress(OSError):
                for _ in range(300 * 16):
                    attacker.sendall(chunk)
                    sent += 65_536
        assert post(wire(Note("after"))).status == 204
        assert sent < 100 * 1024 * 1024
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024

    def test_a_slow_body_ends(self, serve: Callable[..., Post], shop: Shop) -> None:
        """A14: fifty that send a byte now and then are gone in time, and others are served."""
        post: Any = serve(read_timeout=0.5)
        slow = [_open_slow(post.server.port) for _ in range(50)]
        start = time.monotonic()
        assert post(wire(Note("good"))).status == 204
        for connection in slow:
            with connection:
                assert connection.recv(65_536).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - start < 15

    def test_bodies_that_are_read_at_once_are_bounded(
        self, serve: Callable[..., Post], shop: Shop
    ) -> None:
        """All together: the newest is put off."""
        post: Any = serve(max_size_bytes=1000, read_timeout=PATIENCE)
        with contextlib.ExitStack() as stack:
            answers = []
            for _ in range(40):
                connection = stack.enter_context(_open_slow(post.server.port, 1000, b" " * 900))
                answers.append(connection)
            for connection in answers[:40]:
                connection.setblocking(False)
            assert post(b" " * 1000).status in {400, 503}
            deadline = time.monotonic() + PATIENCE
            refused = 0
            while not refused and time.monotonic() < deadline:
                for connection in answers:
                    with contextlib.suppress(BlockingIOError):
                        refused += connection.recv(65_536).startswith(b"HTTP/1.1 503")
            assert refused

    def test_headers_are_bounded(self, serve: Callable[..., Post], shop: Shop) -> None:
        """A1: neither ten thousand nor large ones."""
        post: Any = serve()
        many = b"\r\n".join(b"X-%d: y" % n for n in range(65))
        large = b"X: " + b"y" * 17_000
        for headers in (many, large):
            assert _raw(post.server.port, headers, wire(Note("a"))).startswith(b"HTTP/1.1 431")
        assert shop.notes == []

    def test_more_than_is_in_flight_is_put_off(
        self, serve: Callable[..., Post], shop: Shop
    ) -> None:
        """503, and when to come again."""
        post = serve(max_in_flight=1)
        shop.go.clear()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(post, wire(Note("first")))
            assert shop.started.wait(PATIENCE)
            response = post(wire(Note("second")))
            assert (response.status, response.headers["retry-after"]) == (503, "1")
            assert response.problem["code"] == "busy"
            shop.go.set()
            assert first.result(PATIENCE).status == 204
        assert post(wire(Note("third"))).status == 204


class TestAuthentication:
    def test_somebody_must_be_named(self, postbus: Any) -> None:
        """A12: an endpoint without any authentication says that it is meant."""
        with pytest.raises(ValueError, match="allow_any_peer=True"):
            MessageEndpoint(postbus)

    def test_a_token(self, serve: Callable[..., Post], shop: Shop) -> None:
        """The same refusal for none and for a wrong one."""
        post = serve(bearer="t0ken")
        good = post(wire(Note("a")), Authorization="Bearer t0ken")
        refusals = [
            post(wire(Note("b"))),
            post(wire(Note("b")), Authorization="Bearer wrong"),
            post(wire(Note("b")), Authorization="Basic t0ken"),
            post(wire(Note("b")), Authorization="Bearer t\u00f8ken"),
        ]
        assert good.status == 204
        assert {(each.status, each.body) for each in refusals} == {(401, refusals[0].body)}
        assert refusals[0].problem["type"] == "urn:postbus:problem:unauthorized"
        assert refusals[0].headers["www-authenticate"]
        assert shop.notes == ["a"]

    def test_a_signature(self, serve: Callable[..., Post], shop: Shop) -> None:
        """A9, A10: of the body, by the key, in time; all refusals are the same."""
        post = serve(signing_keys=[KEY])
        body, other = wire(Note("a")), wire(Note("b"))
        old = WebhookKeys([KEY]).sign("msg_1", body, now=time.time() - 301)
        wrong = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwd"
        refusals = [
            post(body),
            post(body, **signed(other)),
            post(body, **signed(body, wrong)),
            post(body, **old),
            post(body, **{**signed(body), "webhook-id": "msg_2"}),
            post(body, **{**signed(body), "webhook-signature": "v1,not base64"}),
        ]
        assert {(each.status, each.body) for each in refusals} == {(401, refusals[0].body)}
        assert post(body, **signed(body)).status == 204
        assert shop.notes == ["a"]

    def test_both_where_both_are_configured(self, serve: Callable[..., Post]) -> None:
        """One alone is not enough."""
        post = serve(signing_keys=[KEY], bearer="t0ken")
        body = wire(Note("a"))
        assert post(body, **signed(body)).status == 401
        assert post(body, Authorization="Bearer t0ken").status == 401
        assert post(body, Authorization="Bearer t0ken", **signed(body)).status == 204


class TestDuplicates:
    def test_the_same_message_is_handled_once(
        self, serve: Callable[..., Post], shop: Shop
    ) -> None:
        """Same id and same bytes: the first answer again."""
        post, body = serve(), wire(Note("once"))
        assert [post(body).status for _ in range(3)] == [204, 204, 204]
        assert shop.notes == ["once"]

    def test_another_with_its_id_is_refused(self, serve: Callable[..., Post], shop: Shop) -> None:
        """422: somebody reuses ids, or forges; also while the first is at work."""
        post, body = serve(), wire(Note("once"))
        known = json.loads(body)["uuid"]
        shop.go.clear()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(post, body)
            assert shop.started.wait(PATIENCE)
            response = post(wire(Note("other"), uuid=known))
            assert (response.status, response.problem["code"]) == (422, "conflict")
            shop.go.set()
            first.result(PATIENCE)
        assert post(wire(Note("other"), uuid=known.upper())).status == 422
        assert shop.notes == ["once"]

    def test_one_that_is_being_handled_is_put_off(
        self, serve: Callable[..., Post], shop: Shop
    ) -> None:
        """409, and when to come again; then it is done."""
        post, body = serve(), wire(Note("slow"))
        shop.go.clear()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(post, body)
            assert shop.started.wait(PATIENCE)
            response = post(body)
            assert (response.status, response.headers["retry-after"]) == (409, "1")
            shop.go.set()
            assert first.result(PATIENCE).status == 204
        assert post(body).status == 204
        assert shop.notes == ["slow"]

    def test_one_that_failed_may_come_again(self, serve: Callable[..., Post], shop: Shop) -> None:
        """Only what was handled is remembered."""
        post, body = serve(), wire(Note("later"))
        shop.failing = ValueError()
        assert post(body).status == 500
        shop.failing = None
        assert post(body).status == 204
        assert shop.notes == ["later"]

    def test_a_query_is_asked_each_time(self, serve: Callable[..., Post], shop: Shop) -> None:
        """Its answer changes."""
        post, body = serve(), wire(CountNotes())
        assert post(body).body == b"0"
        post(wire(Note("a")))
        assert post(body).body == b"1"

    def test_a_sender_that_waits_too_long_learns_later(
        self, serve: Callable[..., Post], shop: Shop
    ) -> None:
        """503 after `answer_timeout`; the handler goes on, and the same message is then done."""
        post: Any = serve(answer_timeout=0.1)
        body = wire(Note("long"))
        shop.go.clear()
        response = post(body)
        assert (response.status, response.problem["code"]) == (503, "still_running")
        assert post(body).status == 409
        (task,) = post.endpoint._running
        shop.go.set()

        async def wait() -> None:
            await asyncio.wait({task}, timeout=PATIENCE)

        asyncio.run_coroutine_threadsafe(wait(), post.server.loop).result(PATIENCE)
        assert post(body).status == 204
        assert shop.notes == ["long"]

    def test_ten_thousand_replays_have_one_effect(
        self, postbus: Any, shop: Shop, run: Any
    ) -> None:
        """A10: within the window the id is known, and outside of it the signature is too old."""
        endpoint = MessageEndpoint(postbus, signing_keys=[KEY])
        body = wire(Note("once"))
        headers = [(b"content-type", b"application/json")]
        headers += [(name.encode(), value.encode()) for name, value in signed(body).items()]
        statuses: list[int] = []

        async def replay() -> None:
            scope = {"type": "http", "method": "POST", "headers": headers, "client": ("x", 1)}

            async def receive() -> dict[str, Any]:
                return {"type": "http.request", "body": body}

            async def send(event: Any) -> None:
                if event["type"] == "http.response.start":
                    statuses.append(event["status"])

            for _ in range(10_000):
                await endpoint(scope, receive, send)

        run(replay())
        assert statuses == [204] * 10_000
        assert shop.notes == ["once"]


class TestAccept:
    def test_a_message_is_stored_and_answered_202(
        self, serve: Callable[..., Post], shop: Shop
    ) -> None:
        """Its bytes go on as they came; nothing is handled here."""
        store = RecordingProducer()
        post, body = serve(mode="accept", store=store), wire(Note("later"))
        assert [post(body).status for _ in range(2)] == [202, 202]
        assert [each.body for each in store.messages] == [body]
        assert shop.notes == []
        assert post(wire(CountNotes(5))).body == b"5"

    def test_a_store_that_blocks_does_so_in_a_thread(
        self, serve: Callable[..., Post], run: Any
    ) -> None:
        """Any producer will do."""
        address = str(uuid.uuid4())
        post = serve(mode="accept", store=MemoryProducer(address=address))
        assert post(wire(Note("later"))).status == 202

        async def receive() -> bytes:
            consumer = MemoryConsumer(address=address)
            (delivery,) = await consumer.receive(1)
            await consumer.aclose()
            return delivery.body

        assert b"later" in run(receive())

    def test_a_store_may_be_another_server(
        self, serve: Callable[..., Post], scripted: Any, producer: Callable[..., HTTPProducer]
    ) -> None:
        """One with asyncio calls of its own."""
        behind = scripted()
        post, body = serve(mode="accept", store=producer(behind.url)), wire(Note("on"))
        assert post(body).status == 202
        assert [each.body for each in behind.requests] == [body]

    def test_a_store_that_is_down_is_a_failure(
        self, serve: Callable[..., Post], shop: Shop
    ) -> None:
        """The sender keeps the message: nothing is accepted that nobody has."""
        store = RecordingProducer()
        post, body = serve(mode="accept", store=store), wire(Note("later"))
        store.close()
        assert post(body).status == 503
        assert post(body).status == 503

    @pytest.mark.parametrize("options", [{"mode": "accept"}, {"store": RecordingProducer()}])
    def test_mode_and_store_belong_together(self, postbus: Any, options: dict[str, Any]) -> None:
        """One without the other is a mistake."""
        with pytest.raises(ValueError, match="store"):
            MessageEndpoint(postbus, allow_any_peer=True, **options)


class TestAsgi:
    def test_it_lives_with_a_server(self, served: Any, postbus: Any) -> None:
        """A server that tells when it starts and stops is answered."""
        server = served(MessageEndpoint(postbus, allow_any_peer=True), lifespan="on")
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            body, headers = wire(Note("a")), {"Content-Type": "application/json"}
            connection.request("POST", "/", body, headers)
            assert connection.getresponse().status == 204

    def test_it_mounts_below_a_path(self, served: Any, postbus: Any, shop: Shop) -> None:
        """Into Starlette, beside routes of the application."""
        from starlette.applications import Starlette
        from starlette.routing import Mount

        endpoint = MessageEndpoint(postbus, allow_any_peer=True)
        server = served(Starlette(routes=[Mount("/messages", app=endpoint)]))
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            body, headers = wire(Note("mounted")), {"Content-Type": "application/json"}
            connection.request("POST", "/messages/", body, headers)
            assert connection.getresponse().status == 204
        assert shop.notes == ["mounted"]

    def test_it_takes_nothing_else(self, postbus: Any, run: Any) -> None:
        """A web socket is a mistake of whoever mounts it."""
        endpoint: Any = MessageEndpoint(postbus, allow_any_peer=True)
        with pytest.raises(ValueError, match="'websocket'"):
            run(endpoint({"type": "websocket"}, None, None))

    def test_a_sender_that_is_gone_is_not_answered(self, postbus: Any, run: Any) -> None:
        """Half a message is none."""
        endpoint: Any = MessageEndpoint(postbus, allow_any_peer=True)
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(event: Any) -> None:
            sent.append(event)

        headers = [(b"content-type", b"application/json")]
        run(endpoint({"type": "http", "method": "POST", "headers": headers}, receive, send))
        assert sent == []

    def test_http_2_has_no_connection_header(self, postbus: Any, run: Any) -> None:
        """There it is an error to send one."""
        endpoint: Any = MessageEndpoint(postbus, allow_any_peer=True)
        sent: list[Any] = []

        async def send(event: Any) -> None:
            sent.append(event)

        scope = {"type": "http", "method": "GET", "headers": [], "http_version": "2"}
        run(endpoint(scope, None, send))
        assert sent[0]["status"] == 405
        assert b"connection" not in dict(sent[0]["headers"])

    def test_a_server_that_gives_up_a_request_leaves_the_handler_alone(
        self, postbus: Any, shop: Shop, run: Any
    ) -> None:
        """Cancelled, the request ends; what was begun is finished, and known."""
        endpoint: Any = MessageEndpoint(postbus, allow_any_peer=True)
        body = wire(Note("whole"))
        shop.go.clear()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(event: Any) -> None:
            raise AssertionError(event)

        async def scenario() -> None:
            headers = [(b"content-type", b"application/json")]
            scope = {"type": "http", "method": "POST", "headers": headers}
            request = asyncio.create_task(endpoint(scope, receive, send))
            await asyncio.to_thread(shop.started.wait, PATIENCE)
            request.cancel()
            await asyncio.wait({request})
            assert request.cancelled()
            (task,) = endpoint._running
            shop.go.set()
            await task

        run(scenario())
        assert shop.notes == ["whole"]

    @pytest.mark.parametrize("message", [Note("whole"), CountNotes()])
    def test_a_loop_that_ends_is_no_failure(
        self, postbus: Any, shop: Shop, run: Any, message: Any
    ) -> None:
        """What is cancelled with it is not answered as if its handler had failed."""
        endpoint: Any = MessageEndpoint(postbus, allow_any_peer=True)
        shop.go.clear()
        shop.is_waiting = True

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": wire(message)}

        async def send(event: Any) -> None:
            raise AssertionError(event)

        async def scenario() -> None:
            headers = [(b"content-type", b"application/json")]
            scope = {"type": "http", "method": "POST", "headers": headers}
            request = asyncio.create_task(endpoint(scope, receive, send))
            await asyncio.to_thread(shop.started.wait, PATIENCE)
            (task,) = endpoint._running
            task.cancel()
            await asyncio.wait({request})
            assert request.cancelled()
            shop.go.set()

        run(scenario())


class TestGuards:
    def test_a_guard_s_refusal_is_403(self, served: Any) -> None:
        """Who may do what is the application's business."""

        def refuse(_: Any) -> None:
            raise UnauthorizedError("not you")

        catalog = MessageCatalog()
        catalog.add(Note)

        class Bus:
            async def areceive(self, *_: Any, **__: Any) -> None:
                refuse(None)

        class Application:
            def __init__(self) -> None:
                self.catalog = catalog
                self.command_bus = self.event_bus = self.query_bus = Bus()

            def receiver(self, inbox: str) -> Any:
                raise NotImplementedError(inbox)

        server = served(MessageEndpoint(Application(), allow_any_peer=True))
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/", wire(Note("a")), headers)
            assert connection.getresponse().status == 403


def _raw(port: int, headers: bytes, body: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        length = (
            b"" if headers.startswith(b"Content-Length") else b"Content-Length: %d\r\n" % len(body)
        )
        connection.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + length
            + headers
            + b"\r\n\r\n"
            + body
        )
        return connection.recv(65_536)


def _open_slow(port: int, length: int = 100, begin: bytes = b"{") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), PATIENCE)
    connection.sendall(
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % length + begin
    )
    return connection
