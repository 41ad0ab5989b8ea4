"""The producer, beside servers that others wrote and servers that misbehave."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import json
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from postbus.errors import (
    ClosedError,
    ConnectionFailedError,
    HandlerFailedError,
    PartiallySentError,
    RejectedError,
    TimedOutError,
    TransportError,
    UnsupportedError,
)
from postbus.promises import Promise
from postbus.transports import Capabilities, Reply, WireMessage
from postbus.wire import decode_problem, encode_problem
from postbus_http import HTTPProducer, ResendSettings, StatusError
from postbus_http._client import AsyncConnections

KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ID = "11111111-1111-4111-8111-111111111111"
PATIENCE = 30.0
Make = Callable[..., HTTPProducer]
Message = Callable[..., WireMessage]
Run = Callable[[Awaitable[Any]], Any]
Respond = Callable[..., bytes]


class ByThread:
    """The calls that block."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def send(self, producer: HTTPProducer, message: WireMessage) -> None:
        producer.send(message)

    def send_many(self, producer: HTTPProducer, messages: list[WireMessage]) -> None:
        producer.send_many(messages)

    def ask(self, producer: HTTPProducer, message: WireMessage) -> Reply:
        promise: Promise[Reply] = Promise()
        producer.request(message, promise)
        return promise.result(PATIENCE)


class ByLoop(ByThread):
    """The same on a loop; each call on a loop of its own."""

    def send(self, producer: HTTPProducer, message: WireMessage) -> None:
        self._run(producer.asend(message))

    def send_many(self, producer: HTTPProducer, messages: list[WireMessage]) -> None:
        self._run(producer.asend_many(messages))

    def ask(self, producer: HTTPProducer, message: WireMessage) -> Reply:
        reply: Reply = self._run(producer.arequest(message))
        return reply


@pytest.fixture(params=[ByThread, ByLoop], ids=["sync", "async"])
def way(request: pytest.FixtureRequest, run: Run) -> ByThread:
    """Call it both ways."""
    made: ByThread = request.param(run)
    return made


class TestSend:
    def test_posts_the_body_as_it_is(
        self, way: ByThread, scripted: Any, producer: Make, message: Message
    ) -> None:
        """H01: POST, JSON, to the whole address; id and name beside the body."""
        server = scripted()
        way.send(producer(server.url + "?token=1"), message(b'{"text":"\xc3\xa9"}'))

        (request,) = server.requests
        assert request.line == "POST /messages?token=1 HTTP/1.1"
        assert request.body == b'{"text":"\xc3\xa9"}'
        assert request.headers == {
            "host": f"127.0.0.1:{server.port}",
            "accept": "application/json, application/problem+json",
            "accept-encoding": "identity",
            "user-agent": "postbus-http",
            "content-type": "application/json",
            "content-length": "13",
            "idempotency-key": ID,
            "prefer": "respond-async",
            "postbus-message-id": ID,
            "postbus-message-name": "shop.echo-text",
        }

    @pytest.mark.parametrize("status", ["200 OK", "201 Created", "202 Accepted", "204 No Content"])
    def test_any_2xx_is_success(
        self,
        way: ByThread,
        scripted: Any,
        producer: Make,
        message: Message,
        respond: Respond,
        status: str,
    ) -> None:
        """H02: whatever the body says."""
        body = b"" if status.startswith("204") else b"no json at all"
        server = scripted(respond(status, body))
        way.send(producer(server.url), message())
        assert len(server.requests) == 1

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 400, 404, 409, 500, 503, 599])
    def test_any_other_status_is_an_error_with_it(
        self,
        way: ByThread,
        scripted: Any,
        producer: Make,
        message: Message,
        respond: Respond,
        status: int,
    ) -> None:
        """H02, A15: no redirect is followed; status and the beginning of the body are told."""
        elsewhere = scripted()
        server = scripted(
            respond(f"{status} Whatever", b"out\x1b[31m of order", f"Location: {elsewhere.url}")
        )
        with pytest.raises(StatusError, match=f"127.0.0.1:{server.port} answered {status}") as e:
            way.send(producer(server.url), message())

        assert e.value.status == status
        assert e.value.excerpt == "out [31m of order"
        assert elsewhere.connections == 0

    def test_an_excerpt_is_short_and_without_secrets(
        self, way: ByThread, scripted: Any, producer: Make, message: Message, respond: Respond
    ) -> None:
        """A18: neither ours, should a server echo them, nor what looks like one."""
        body = b"Bearer hunter2 and password=swordfish " + b"x" * 100_000
        server = scripted(respond("400 Bad Request", body))
        with pytest.raises(StatusError) as caught:
            way.send(producer(f"{server.url}/s3cr3t", bearer="hunter2"), message())

        shown = f"{caught.value} {caught.value!r}"
        assert all(secret not in shown for secret in ("hunter2", "swordfish", "s3cr3t"))
        assert len(caught.value.excerpt) <= 200

    def test_a_name_that_no_header_can_have_is_encoded(
        self, scripted: Any, producer: Make, message: Message
    ) -> None:
        """A16: no line break, no other header."""
        server = scripted()
        producer(server.url).send(message(name="shop.\u00fc\r\nX-Evil: 1"))
        (request,) = server.requests
        assert request.headers["postbus-message-name"] == "shop.%C3%BC%0D%0AX-Evil:%201"
        assert "x-evil" not in request.headers

    def test_refuses_what_http_has_not(
        self, way: ByThread, scripted: Any, producer: Make, message: Message
    ) -> None:
        """Delay, priority and expiry; nothing is sent."""
        server = scripted()
        for field in ({"delay": 1.0}, {"priority": 1}, {"expires_at": object()}):
            with pytest.raises(UnsupportedError, match="HTTP has no"):
                way.send(producer(server.url), message(**field))
        assert server.requests == []

    def test_refuses_a_body_that_is_too_large(
        self, way: ByThread, scripted: Any, producer: Make, message: Message
    ) -> None:
        """By the limit of the section."""
        server = scripted()
        with pytest.raises(RejectedError, match=r"11 bytes, at most 10"):
            way.send(producer(server.url, max_size_bytes=10), message(b"x" * 11))
        way.send(producer(server.url, max_size_bytes=10), message(b"x" * 10))
        assert len(server.requests) == 1

    def test_nobody_there_is_a_failed_connection(
        self, way: ByThread, producer: Make, message: Message, free_port: Callable[[], int]
    ) -> None:
        """The error names the origin, and no path."""
        url = f"http://127.0.0.1:{free_port()}/s3cr3t"
        with pytest.raises(ConnectionFailedError, match="cannot post to http://127") as caught:
            way.send(producer(url), message())
        assert "s3cr3t" not in str(caught.value)

    def test_a_host_without_address_is_a_failed_connection(
        self, way: ByThread, producer: Make, message: Message
    ) -> None:
        """Names are looked up when a connection is opened."""
        url = "https://nowhere.invalid/"
        with pytest.raises(ConnectionFailedError):
            way.send(producer(url), message())
        with pytest.raises(ConnectionFailedError):
            way.send(producer(f"https://{'a' * 64}.invalid/"), message())


class TestFaults:
    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"HTTP/1.1",
            b"no http at all\r\n\r\n",
            b"HTTP/1.1 abc OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
        ],
    )
    def test_broken_framing_is_a_failed_connection(
        self, way: ByThread, scripted: Any, producer: Make, message: Message, raw: bytes
    ) -> None:
        """And the next message is sent over a new one."""
        answers = [raw]

        def answer(_: Any, connection: socket.socket) -> bytes | None:
            if not answers:
                return b"HTTP/1.1 204 No Content\r\n\r\n"
            connection.sendall(answers.pop())
            return None

        server = scripted(answer)
        made = producer(server.url)
        with pytest.raises(ConnectionFailedError):
            way.ask(made, message())
        way.send(made, message())

    @pytest.mark.parametrize("drip", [b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 200 OK\r\n\r\n"])
    def test_the_time_for_a_message_is_total(
        self, way: ByThread, scripted: Any, producer: Make, message: Message, drip: bytes
    ) -> None:
        """A byte now and then keeps no message waiting, neither in headers nor in a body."""
        over = threading.Event()

        def answer(_: Any, connection: socket.socket) -> None:
            connection.sendall(drip)
            while not over.wait(0.05):
                connection.sendall(b"x")

        server = scripted(answer)
        made = producer(server.url, total_timeout=0.5, idle_timeout=0.4)
        start = time.monotonic()
        with pytest.raises(TimedOutError):
            way.ask(made, message())
        assert time.monotonic() - start < 10
        over.set()

    def test_silence_is_a_time_out(
        self, way: ByThread, scripted: Any, producer: Make, message: Message
    ) -> None:
        """By `idle_timeout`, long before the message's time is over."""
        over = threading.Event()

        def answer(*_: Any) -> None:
            over.wait(PATIENCE)

        made = producer(scripted(answer).url, idle_timeout=0.1)
        with pytest.raises(TimedOutError):
            way.send(made, message())
        over.set()

    def test_the_answer_to_a_query_has_a_size(
        self, way: ByThread, scripted: Any, producer: Make, message: Message
    ) -> None:
        """Counted as it comes, whatever is announced, if anything."""
        over = threading.Event()

        def answer(_: Any, connection: socket.socket) -> None:
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while not over.is_set():
                connection.sendall(b"10000\r\n" + b"x" * 65_536 + b"\r\n")

        made = producer(scripted(answer).url, max_response_bytes=100_000)
        with pytest.raises(RejectedError, match="more than 100000 bytes"):
            way.ask(made, message())
        over.set()

    def test_a_command_is_sent_whatever_else_comes(
        self, way: ByThread, scripted: Any, producer: Make, message: Message
    ) -> None:
        """H02: the status is all that counts."""
        over = threading.Event()

        def answer(_: Any, connection: socket.socket) -> None:
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while not over.is_set():
                connection.sendall(b"x" * 65_536)

        way.send(producer(scripted(answer).url, max_response_bytes=1000), message())
        over.set()

    def test_a_body_that_is_packed_is_not_unpacked(
        self, way: ByThread, scripted: Any, producer: Make, message: Message, respond: Respond
    ) -> None:
        """A1: what was not asked for stays as it is."""
        server = scripted(respond("200 OK", b"\x1f\x8b", "Content-Encoding: gzip"))
        assert way.ask(producer(server.url), message()).body == b"\x1f\x8b"

    def test_a_refusal_before_the_body_was_read_is_heard(
        self, way: ByThread, producer: Make, message: Message
    ) -> None:
        """A server may answer 413 and close while we still write."""
        listening = socket.create_server(("127.0.0.1", 0))

        def refuse() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
                connection.shutdown(socket.SHUT_WR)
                # Until the client is gone: a reset would take the answer with it.
                while connection.recv(65_536):
                    pass

        thread = threading.Thread(target=refuse)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        made = producer(url, max_size_bytes=1 << 24)
        with pytest.raises(StatusError, match="413"):
            way.send(made, message(b"x" * (1 << 20)))
        made.close()
        thread.join(PATIENCE)
        listening.close()


class TestAsk:
    def test_the_body_of_a_success_is_the_answer(
        self, way: ByThread, scripted: Any, producer: Make, message: Message, respond: Respond
    ) -> None:
        """H03: JSON and nothing else; whether it is JSON core finds out."""
        server = scripted(respond("200 OK", b'{"count": 3}'))
        assert way.ask(producer(server.url), message()) == Reply(b'{"count": 3}')

    def test_a_problem_comes_back_as_one(
        self, way: ByThread, scripted: Any, producer: Make, message: Message, respond: Respond
    ) -> None:
        """T10: marked by the status and the content type, typed by its kind."""
        failed = HandlerFailedError("sold-out", "none left")
        failed.is_registered = True
        problem = encode_problem(failed)
        kind = "Content-Type: application/problem+json; charset=utf-8"
        server = scripted(respond("422 Unprocessable Content", problem, kind))
        reply = way.ask(producer(server.url), message())

        assert reply.is_error
        error = decode_problem(reply.body, None)
        assert isinstance(error, HandlerFailedError)
        assert (error.code, error.message) == ("sold-out", "none left")

    def test_the_status_is_looked_at_before_the_body(
        self, way: ByThread, scripted: Any, producer: Make, message: Message, respond: Respond
    ) -> None:
        """H04, T10: a 500 with JSON is no answer."""
        server = scripted(respond("500 Internal Server Error", b'{"count": 3}'))
        with pytest.raises(StatusError, match="500"):
            way.ask(producer(server.url), message())

    def test_a_query_that_cannot_be_sent_rejects(
        self, scripted: Any, producer: Make, message: Message
    ) -> None:
        """`request` raises nothing, also when it is closed."""
        made = producer(scripted().url, max_size_bytes=10)
        promise: Promise[Reply] = Promise()
        made.request(message(b"x" * 11), promise)
        assert isinstance(promise.exception(), RejectedError)

        made.close()
        promise = Promise()
        made.request(message(b"x"), promise)
        assert isinstance(promise.exception(), ClosedError)

    def test_a_query_that_nobody_waits_for_is_not_asked(
        self, scripted: Any, producer: Make, message: Message, respond: Respond
    ) -> None:
        """Its deadline passed while it waited for a thread."""
        go, started = threading.Event(), threading.Event()

        def answer(*_: Any) -> bytes:
            started.set()
            go.wait(PATIENCE)
            return respond("200 OK", b"1")

        server = scripted(answer)
        made = producer(server.url, max_connections=1)
        first: Promise[Reply] = Promise()
        second: Promise[Reply] = Promise()
        made.request(message(), first)
        assert started.wait(PATIENCE)
        made.request(message(), second)
        second.reject(TimedOutError("late"))
        assert isinstance(second.exception(), TimedOutError)
        go.set()

        assert first.result(PATIENCE) == Reply(b"1")
        third: Promise[Reply] = Promise()
        made.request(message(), third)
        third.result(PATIENCE)
        assert len(server.requests) == 2


class TestConnections:
    def test_one_connection_serves_one_message_after_the_other(
        self, scripted: Any, producer: Make, message: Message
    ) -> None:
        """From any thread."""
        server = scripted()
        made = producer(server.url)
        for _ in range(5):
            made.send(message())
        with ThreadPoolExecutor(1) as pool:
            pool.submit(made.send, message()).result(PATIENCE)
        assert (len(server.requests), server.connections) == (6, 1)

    def test_so_it_does_on_a_loop(
        self, scripted: Any, producer: Make, message: Message, run: Run
    ) -> None:
        """Each loop has connections of its own."""
        server = scripted()
        made = producer(server.url)

        async def send_some() -> None:
            for _ in range(5):
                await made.asend(message())

        run(send_some())
        run(send_some())
        assert (len(server.requests), server.connections) == (10, 2)

    def test_requests_in_flight_are_bounded(
        self, way: ByThread, scripted: Any, producer: Make, message: Message, respond: Respond
    ) -> None:
        """Forty at once over four connections: four at a time, and all of them arrive."""
        first_four = threading.Barrier(4)
        count = iter(range(1000))

        def answer(*_: Any) -> bytes:
            if next(count) < 4:
                first_four.wait(PATIENCE)
            return respond()

        server = scripted(answer)
        way.send_many(producer(server.url, max_connections=4), [message()] * 40)
        assert len(server.requests) == 40
        assert server.most_in_flight == server.connections == 4

    def test_a_thread_that_waits_too_long_for_one_is_told(
        self, scripted: Any, producer: Make, message: Message, respond: Respond
    ) -> None:
        """The time for a message counts from its send."""
        go, started = threading.Event(), threading.Event()

        def answer(*_: Any) -> bytes:
            started.set()
            go.wait(PATIENCE)
            return respond()

        made = producer(scripted(answer).url, max_connections=1)
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(made.send, message())
            assert started.wait(PATIENCE)
            for seconds in (0.1, -1.0):
                with pytest.raises(TimedOutError, match="all 1 connections were busy"):
                    made._connections.post([], b"", time.monotonic() + seconds)
            go.set()
            sending.result(PATIENCE)

    def test_a_connection_that_the_server_closed_is_not_used(
        self, way: ByThread, scripted: Any, producer: Make, message: Message, respond: Respond
    ) -> None:
        """An idle one that has ended is opened again, without an error."""
        server = scripted(respond("200 OK", b"", "Connection: close"))
        made = producer(server.url)
        for _ in range(3):
            way.send(made, message())
        assert server.connections == 3

    def test_an_end_of_an_idle_connection_is_noticed(
        self, scripted: Any, producer: Make, message: Message, run: Run
    ) -> None:
        """The server ends it without a word; both ways."""
        closed = threading.Event()

        def answer(_: Any, connection: socket.socket) -> None:
            connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            connection.shutdown(socket.SHUT_RDWR)
            closed.set()

        server = scripted(answer)
        made = producer(server.url)

        def send() -> None:
            made.send(message())
            assert closed.wait(PATIENCE)
            closed.clear()

        async def asend() -> None:
            await made.asend(message())
            assert await asyncio.to_thread(closed.wait, PATIENCE)
            closed.clear()

        async def asend_twice() -> None:
            await asend()
            await asend()

        send()
        send()
        run(asend_twice())
        assert server.connections == 4

    def test_a_reset_of_an_idle_connection_is_noticed(
        self, scripted: Any, producer: Make, message: Message, run: Run
    ) -> None:
        """A server that is gone at once."""
        closed = threading.Event()

        def answer(_: Any, connection: socket.socket) -> None:
            connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            if not closed.wait(PATIENCE):
                return
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

        server = scripted(answer)
        made = producer(server.url)

        async def send_twice() -> None:
            await made.asend(message())
            closed.set()
            (connections,) = made._of_loops.values()
            opened: Any = connections._idle[0]._socket
            await asyncio.to_thread(select.select, [opened], [], [], PATIENCE)
            await made.asend(message())

        run(send_twice())
        assert server.connections == 2

    def test_a_server_that_takes_no_connection_is_a_time_out(
        self, way: ByThread, producer: Make, message: Message
    ) -> None:
        """By `connect_timeout`; nothing stays open."""
        with contextlib.ExitStack() as stack:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
            address = listening.getsockname()
            for _ in range(3):
                # Until its queue is full.
                filling = stack.enter_context(socket.socket())
                filling.setblocking(False)
                filling.connect_ex(address)
            made = producer(f"http://127.0.0.1:{address[1]}/", connect_timeout=0.2)
            with pytest.raises(TimedOutError):
                way.send(made, message())

    def test_a_look_up_may_use_up_the_time(
        self, scripted: Any, producer: Make, message: Message, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Then nothing is connected to."""
        server = scripted()
        made = producer(server.url, total_timeout=0.05)

        def resolve(*_: Any, **__: Any) -> Any:
            # Nobody answers before the deadline.
            threading.Event().wait(0.1)
            return [(2, 1, 6, "", ("127.0.0.1", server.port))]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        with pytest.raises(TimedOutError):
            made.send(message())
        assert server.connections == 0

    def test_a_cancelled_send_gives_its_place_back(
        self, scripted: Any, producer: Make, message: Message, respond: Respond, run: Run
    ) -> None:
        """In flight, or while it waits; the next message takes it."""
        go, arrived = threading.Event(), threading.Event()
        blocked = [True, True]

        def answer(*_: Any) -> bytes:
            arrived.set()
            if blocked:
                blocked.pop()
                go.wait(PATIENCE)
            return respond()

        server = scripted(answer)
        made = producer(server.url, max_connections=1)

        async def cancel_two() -> None:
            tasks = [asyncio.create_task(made.asend(message())) for _ in range(3)]
            await asyncio.to_thread(arrived.wait, PATIENCE)
            tasks[1].cancel()
            tasks[0].cancel()
            await asyncio.wait(tasks[:2])
            blocked.clear()
            await tasks[2]
            await made.asend(message())

        run(cancel_two())
        go.set()
        assert len(server.requests) == 3

    def test_a_place_given_to_a_cancelled_task_goes_to_the_next(
        self, scripted: Any, producer: Make, message: Message, run: Run
    ) -> None:
        """Cancelled on the very turn on which it was its turn."""
        server = scripted()
        made = producer(server.url, max_connections=1)

        async def scenario() -> None:
            await made.asend(message())
            connections: Any = made._of_loops[asyncio.get_running_loop()]
            assert isinstance(connections, AsyncConnections)
            held: Any = await connections._take()
            waiting = asyncio.create_task(connections._take())
            behind = asyncio.create_task(connections._take())
            await asyncio.sleep(0)
            connections._give_back(held)
            waiting.cancel()
            assert await behind is held
            connections._give_back(held)

        run(scenario())

    def test_a_child_opens_connections_of_its_own(
        self, scripted: Any, producer: Make, message: Message
    ) -> None:
        """After a fork neither side disturbs the other's."""
        server = scripted()
        made = producer(server.url)
        made.send(message())
        child = os.fork()
        if child == 0:  # pragma: no cover  another process
            status = 1
            try:
                made.send(message())
                made.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        made.send(message())
        assert sorted(each.connection for each in server.requests) == [1, 1, 2]

    def test_a_producer_that_is_closed_is_so_in_a_child(
        self, scripted: Any, producer: Make, message: Message
    ) -> None:
        """Forking opens nothing again."""
        made = producer(scripted().url)
        made.close()
        made.leave_to_parent()
        with pytest.raises(ClosedError):
            made.send(message())


class TestSendMany:
    def test_every_message_arrives(
        self, way: ByThread, scripted: Any, producer: Make, message: Message
    ) -> None:
        """None twice; an empty list is one."""
        server = scripted()
        made = producer(server.url)
        way.send_many(made, [])
        way.send_many(made, [message(b"%d" % n) for n in range(50)])
        assert sorted(int(each.body) for each in server.requests) == list(range(50))

    def test_what_failed_is_told_by_index(
        self, way: ByThread, scripted: Any, producer: Make, message: Message, respond: Respond
    ) -> None:
        """Refused here or there; the others arrived."""

        def answer(request: Any, _: socket.socket) -> bytes:
            return respond("400 Bad Request") if request.body == b"2" else respond()

        server = scripted(answer)
        messages = [message(b"%d" % n) for n in range(4)] + [message(b"x" * 11)]
        with pytest.raises(PartiallySentError, match="2 of 5") as caught:
            way.send_many(producer(server.url, max_size_bytes=10), messages)
        failed = caught.value.failed
        assert {index: type(error) for index, error in failed.items()} == {
            2: StatusError,
            4: RejectedError,
        }
        assert len(server.requests) == 4

    def test_one_alone_needs_no_thread(
        self, way: ByThread, scripted: Any, producer: Make, message: Message, respond: Respond
    ) -> None:
        """And fails as others do."""
        server = scripted(respond("400 Bad Request"))
        with pytest.raises(PartiallySentError):
            way.send_many(producer(server.url), [message()])

    def test_a_batch_is_an_array(
        self, way: ByThread, scripted: Any, producer: Make, message: Message, respond: Respond
    ) -> None:
        """So many in each request as `batch` says, and no more bytes than a body may have."""

        def answer(request: Any, _: socket.socket) -> bytes:
            found = json.loads(request.body)
            items = [{"status": 204}] * len(found) if isinstance(found, list) else []
            return respond("200 OK", json.dumps(items).encode())

        server = scripted(answer)
        made = producer(server.url, batch=4, max_size_bytes=20, max_response_bytes=1000)
        way.send_many(made, [message(b"%d" % n) for n in range(10)])
        bodies = sorted(each.body for each in server.requests)
        assert bodies == [b"[0,1,2,3]", b"[4,5,6,7]", b"[8,9]"]

        server.requests.clear()
        way.send_many(made, [message(b"1" * 9), message(b"2" * 9), message(b"3")])
        assert sorted(each.body for each in server.requests) == [
            b"1" * 9,
            b"[222222222,3]",
        ]

    def test_each_of_a_batch_has_its_own_answer(
        self, way: ByThread, scripted: Any, producer: Make, message: Message, respond: Respond
    ) -> None:
        """What failed is told by the index in what was sent."""
        items = [{"status": 204}, {"status": 422, "detail": "none left"}, {"status": 202}]
        server = scripted(respond("200 OK", json.dumps(items).encode()))
        messages = [message(b"x" * 300), *[message(b"%d" % n) for n in range(3)]]
        with pytest.raises(PartiallySentError) as caught:
            way.send_many(producer(server.url, batch=10, max_size_bytes=200), messages)
        assert sorted(caught.value.failed) == [0, 2]
        error = caught.value.failed[2]
        assert isinstance(error, StatusError)
        assert error.status == 422
        assert "none left" in error.excerpt

    @pytest.mark.parametrize(
        "body", [b"", b"{}", b"[]", b"[1, 2]", b'[{"status": 204}]', b'[{"status": "x"}, {}]']
    )
    def test_a_receiver_that_knows_no_batch_is_refused(
        self,
        way: ByThread,
        scripted: Any,
        producer: Make,
        message: Message,
        respond: Respond,
        body: bytes,
    ) -> None:
        """Its 200 says nothing about each message."""
        server = scripted(respond("200 OK", body))
        with pytest.raises(PartiallySentError) as caught:
            way.send_many(producer(server.url, batch=10), [message(), message()])
        assert all("leave out `batch`" in str(error) for error in caught.value.failed.values())

    def test_a_batch_that_is_refused_is_refused_whole(
        self, way: ByThread, scripted: Any, producer: Make, message: Message, respond: Respond
    ) -> None:
        """With the status that it was answered."""
        server = scripted(respond("413 Too Large"))
        with pytest.raises(PartiallySentError) as caught:
            way.send_many(producer(server.url, batch=10), [message(), message()])
        assert [getattr(each, "status", 0) for each in caught.value.failed.values()] == [413, 413]


class TestResend:
    @pytest.fixture
    def resend(self) -> ResendSettings:
        """Pauses that a test can afford."""
        return ResendSettings(initial_delay=0.01, max_attempts=4)

    def test_the_same_message_comes_again_with_the_same_id(
        self,
        way: ByThread,
        scripted: Any,
        producer: Make,
        message: Message,
        respond: Respond,
        resend: ResendSettings,
    ) -> None:
        """Until it is taken."""
        statuses = ["503 Service Unavailable", "429 Too Many Requests", "204 No Content"]

        def answer(*_: Any) -> bytes:
            return respond(statuses.pop(0))

        server = scripted(answer)
        way.send(producer(server.url, resend=resend, signing_keys=[KEY]), message())
        assert {each.headers["idempotency-key"] for each in server.requests} == {ID}
        assert {each.headers["webhook-id"] for each in server.requests} == {ID}
        assert len({each.body for each in server.requests}) == 1
        assert len(server.requests) == 3

    def test_a_broken_connection_is_worth_another(
        self,
        way: ByThread,
        scripted: Any,
        producer: Make,
        message: Message,
        respond: Respond,
        resend: ResendSettings,
    ) -> None:
        """The reply is lost, the message perhaps not: the receiver knows its id."""
        answers: list[bytes | None] = [None, None, respond("200 OK", b"7")]

        def answer(*_: Any) -> bytes | None:
            return answers.pop(0)

        server = scripted(answer)
        assert way.ask(producer(server.url, resend=resend), message()) == Reply(b"7")
        assert len(server.requests) == 3

    def test_the_last_answer_is_the_error(
        self,
        way: ByThread,
        scripted: Any,
        producer: Make,
        message: Message,
        respond: Respond,
        resend: ResendSettings,
    ) -> None:
        """After `max_attempts`."""
        server = scripted(respond("503 Service Unavailable", b"closed"))
        with pytest.raises(StatusError, match="503 Service Unavailable: closed"):
            way.send(producer(server.url, resend=resend), message())
        assert len(server.requests) == 4

    def test_retry_after_is_waited_for(
        self,
        way: ByThread,
        scripted: Any,
        producer: Make,
        message: Message,
        respond: Respond,
        resend: ResendSettings,
    ) -> None:
        """In full, and hardly longer."""
        times: list[float] = []

        def answer(*_: Any) -> bytes:
            times.append(time.monotonic())
            if len(times) == 1:
                return respond("503 Service Unavailable", b"", "Retry-After: 1")
            return respond()

        way.send(producer(scripted(answer).url, resend=resend), message())
        assert times[1] - times[0] >= 1.0

    def test_no_pause_outlasts_the_time_for_the_message(
        self,
        way: ByThread,
        scripted: Any,
        producer: Make,
        message: Message,
        respond: Respond,
        resend: ResendSettings,
    ) -> None:
        """The error comes at once."""
        server = scripted(respond("503 Service Unavailable", b"", "Retry-After: 3600"))
        with pytest.raises(StatusError, match="503"):
            way.send(producer(server.url, resend=resend), message())
        assert len(server.requests) == 1

    def test_the_time_may_end_in_a_later_attempt(
        self,
        scripted: Any,
        producer: Make,
        message: Message,
        respond: Respond,
        resend: ResendSettings,
        run: Run,
    ) -> None:
        """Then the message has timed out, whatever came before."""
        over = threading.Event()
        answers = [respond("503 Service Unavailable")]

        def answer(*_: Any) -> bytes | None:
            if answers:
                return answers.pop()
            over.wait(PATIENCE)
            return None

        made = producer(scripted(answer).url, resend=resend, total_timeout=0.5)
        with pytest.raises(TimedOutError, match=r"did not answer within 0\.5 seconds"):
            run(made.asend(message()))
        over.set()

    def test_close_ends_a_pause(
        self,
        scripted: Any,
        producer: Make,
        message: Message,
        respond: Respond,
        resend: ResendSettings,
    ) -> None:
        """What waits to be sent again is not."""
        answered = threading.Event()

        def answer(*_: Any) -> bytes:
            answered.set()
            return respond("503 Service Unavailable", b"", "Retry-After: 20")

        made = producer(scripted(answer).url, resend=resend)
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(made.send, message())
            assert answered.wait(PATIENCE)
            made.close()
            with pytest.raises(ClosedError):
                sending.result(PATIENCE)


class TwoSteps(httpx.Auth):
    """An authentication that answers a challenge."""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        response = yield request
        if response.status_code == 401:
            request.headers["X-Answer"] = response.headers["X-Challenge"][::-1]
            yield request


class AsksElsewhere(httpx.Auth):
    """An authentication that gets a token from somewhere."""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        yield httpx.Request("POST", "https://tokens.example.org/")


class FailingAuth(httpx.Auth):
    """An authentication that fails."""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if request.url.scheme == "http":
            raise httpx.HTTPError("no token")
        yield request


class TestAuthentication:
    def test_bearer(self, way: ByThread, scripted: Any, producer: Make, message: Message) -> None:
        """By configuration."""
        server = scripted()
        way.send(producer(server.url, bearer="t0ken"), message())
        assert server.requests[0].headers["authorization"] == "Bearer t0ken"

    def test_basic(self, way: ByThread, scripted: Any, producer: Make, message: Message) -> None:
        """User and password in UTF-8."""
        server = scripted()
        account = {"username": "ada", "password": "p\u00e4ss"}
        way.send(producer(server.url, **account), message())
        kind, _, pair = server.requests[0].headers["authorization"].partition(" ")
        assert kind == "Basic"
        assert base64.b64decode(pair).decode() == "ada:p\u00e4ss"

    def test_an_object_of_httpx(
        self, way: ByThread, scripted: Any, producer: Make, message: Message, respond: Respond
    ) -> None:
        """Here one that takes two requests."""

        def answer(request: Any, _: socket.socket) -> bytes:
            if request.headers.get("x-answer") == "abc":
                return respond()
            return respond("401 Unauthorized", b"", "X-Challenge: cba")

        server = scripted(answer)
        made = producer(server.url, auth=TwoSteps())
        way.send(made, message())
        way.send(made, message())
        assert len(server.requests) == 4
        assert {each.body for each in server.requests} == {message().body}
        assert {each.headers["host"] for each in server.requests} == {f"127.0.0.1:{server.port}"}

    def test_an_object_may_not_send_elsewhere(
        self, way: ByThread, scripted: Any, producer: Make, message: Message
    ) -> None:
        """A15: messages go to the configured address, with all that belongs to them."""
        server = scripted()
        with pytest.raises(UnsupportedError, match="get its token elsewhere"):
            way.send(producer(server.url, auth=AsksElsewhere()), message())
        assert server.connections == 0

    def test_what_an_object_raises_is_translated(
        self, way: ByThread, scripted: Any, producer: Make, message: Message
    ) -> None:
        """Nothing of httpx gets out."""
        with pytest.raises(TransportError, match="no token"):
            way.send(producer(scripted().url, auth=FailingAuth()), message())

    def test_an_id_that_cannot_be_signed_is_refused(
        self, way: ByThread, scripted: Any, producer: Make, message: Message
    ) -> None:
        """A16: on the way out, too."""
        server = scripted()
        with pytest.raises(RejectedError, match="cannot be signed"):
            way.send(producer(server.url, signing_keys=[KEY]), message(message_id="a.b"))
        assert server.connections == 0


class TestPublicOnly:
    # Ways to write this machine, or the one beside it; https, so that the section is taken.
    URLS = (
        "https://127.0.0.1:{port}/",
        "https://127.1:{port}/",
        "https://127.0.1:{port}/",
        "https://2130706433:{port}/",
        "https://0x7f000001:{port}/",
        "https://0x7f.0.0.1:{port}/",
        "https://0177.0.0.1:{port}/",
        "https://017700000001:{port}/",
        "https://127.0.0.1.:{port}/",
        "https://localhost:{port}/",
        "https://LOCALHOST:{port}/",
        "https://localhost.:{port}/",
        "https://0:{port}/",
        "https://0.0.0.0:{port}/",
        "https://[::1]:{port}/",
        "https://[::]:{port}/",
        "https://[::ffff:127.0.0.1]:{port}/",
        "https://[::ffff:7f00:1]:{port}/",
        "https://[0:0:0:0:0:0:0:1]:{port}/",
        "https://169.254.169.254:{port}/",
        "https://[fd00:ec2::254]:{port}/",
        "https://10.0.0.1:{port}/",
        "https://[64:ff9b::7f00:1]:{port}/",
        "http://localhost:{port}/",
        "http://127.0.0.1:{port}/",
    )

    @pytest.mark.parametrize("url", URLS)
    def test_no_way_of_writing_leads_to_this_machine(
        self, way: ByThread, scripted: Any, producer: Make, message: Message, url: str
    ) -> None:
        """A15: what counts is what the system makes of it."""
        server = scripted()
        with pytest.raises(TransportError):
            way.send(producer(url.format(port=server.port), public_only=True), message())
        assert server.connections == 0

    def test_what_was_checked_is_what_is_connected_to(
        self,
        way: ByThread,
        scripted: Any,
        producer: Make,
        message: Message,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A name that means another address when it is looked up again is looked up once."""
        server = scripted()
        asked: list[str] = []
        family, kind = socket.AF_INET, socket.SOCK_STREAM

        def resolve(host: Any, *_: Any, **__: Any) -> Any:
            asked.append(str(host))
            address = "127.0.0.1" if len(asked) > 1 else "192.0.2.1"
            return [(family, kind, 6, "", (address, server.port))]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        made = producer("https://rebind.example/", public_only=True)
        with pytest.raises(RejectedError, match="not public"):
            way.send(made, message())
        assert asked == ["rebind.example"]
        assert server.connections == 0

    def test_one_address_that_is_not_public_is_enough(
        self,
        way: ByThread,
        scripted: Any,
        producer: Make,
        message: Message,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """All of a name's addresses are checked before any is used."""
        server = scripted()
        found = [(2, 1, 6, "", (each, server.port)) for each in ("8.8.8.8", "127.0.0.1")]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with pytest.raises(RejectedError, match=r"rebind\.example has an address"):
            way.send(producer("https://rebind.example/", public_only=True), message())
        assert server.connections == 0

    def test_the_next_address_is_tried_where_one_does_not_answer(
        self,
        way: ByThread,
        scripted: Any,
        producer: Make,
        message: Message,
        monkeypatch: pytest.MonkeyPatch,
        free_port: Callable[[], int],
    ) -> None:
        """As with any name of several addresses."""
        server = scripted()
        nobody = free_port()
        found = [(2, 1, 6, "", ("127.0.0.1", port)) for port in (nobody, server.port)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        way.send(producer("http://localhost/"), message())
        assert len(server.requests) == 1


class TestClose:
    def test_closed_it_refuses(
        self, way: ByThread, scripted: Any, producer: Make, message: Message
    ) -> None:
        """Idempotent; every call raises `ClosedError`."""
        made = producer(scripted().url)
        way.send(made, message())
        made.close()
        made.close()
        for call in (way.send, way.ask):
            with pytest.raises(ClosedError):
                call(made, message())
        with pytest.raises(ClosedError):
            way.send_many(made, [message()])

    def test_a_request_in_flight_is_finished(
        self, way: ByThread, scripted: Any, producer: Make, message: Message, respond: Respond
    ) -> None:
        """The server may have it: its answer is worth waiting for. Close waits for nothing."""
        started, go = threading.Event(), threading.Event()

        def answer(*_: Any) -> bytes:
            started.set()
            go.wait(PATIENCE)
            return respond()

        made = producer(scripted(answer).url)
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(way.send, made, message())
            assert started.wait(PATIENCE)
            made.close()
            go.set()
            sending.result(PATIENCE)

    def test_those_that_wait_for_a_connection_are_told(
        self, scripted: Any, producer: Make, message: Message, respond: Respond
    ) -> None:
        """Closed from another thread while it is blocked."""
        started, go = threading.Event(), threading.Event()

        def answer(*_: Any) -> bytes:
            started.set()
            go.wait(PATIENCE)
            return respond()

        made = producer(scripted(answer).url, max_connections=1)
        with ThreadPoolExecutor(3) as pool:
            first = pool.submit(made.send, message())
            assert started.wait(PATIENCE)
            second = pool.submit(made.send, message())
            third = pool.submit(made.send_many, [message(), message()])
            made.close()
            with pytest.raises(ClosedError):
                second.result(PATIENCE)
            with pytest.raises((ClosedError, PartiallySentError)):
                third.result(PATIENCE)
            go.set()
            first.result(PATIENCE)

    def test_so_are_tasks(
        self, scripted: Any, producer: Make, message: Message, respond: Respond, run: Run
    ) -> None:
        """`aclose` on the same loop."""
        started, go = threading.Event(), threading.Event()

        def answer(*_: Any) -> bytes:
            started.set()
            go.wait(PATIENCE)
            return respond()

        made = producer(scripted(answer).url, max_connections=1)

        async def scenario() -> None:
            first = asyncio.create_task(made.asend(message()))
            second = asyncio.create_task(made.asend(message()))
            await asyncio.to_thread(started.wait, PATIENCE)
            third = asyncio.create_task(made.asend(message()))
            await asyncio.sleep(0)
            third.cancel()
            await made.aclose()
            with pytest.raises(ClosedError):
                await second
            go.set()
            await first

        run(scenario())

    def test_a_loop_that_sent_before_is_refused_too(
        self, scripted: Any, producer: Make, message: Message, run: Run
    ) -> None:
        """Its connections are closed, and no others opened."""
        made = producer(scripted().url)

        async def scenario() -> None:
            await made.asend(message())
            await made.aclose()
            with pytest.raises(ClosedError):
                await made.asend(message())

        run(scenario())

    def test_a_loop_that_is_gone_leaves_nothing_open(
        self, scripted: Any, producer: Make, message: Message, run: Run
    ) -> None:
        """With it go its connections; also where the producer lives on."""
        server = scripted()
        made = producer(server.url)
        run(made.asend(message()))
        gc.collect()
        assert len(made._of_loops) == 0

    def test_a_loop_in_another_thread_closes_its_own(
        self, scripted: Any, producer: Make, message: Message
    ) -> None:
        """Closing from here touches no socket that is used there."""
        made = producer(scripted().url)
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        asyncio.run_coroutine_threadsafe(made.asend(message()), loop).result(PATIENCE)
        connections = made._of_loops[loop]
        made.close()
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(PATIENCE)
        assert connections._idle == []
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE)
        loop.close()


class Plain(BaseHTTPRequestHandler):
    """A handler of the standard library, as anybody would write it."""

    received: list[Any]

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        self.received.append(json.loads(self.rfile.read(size)))
        body = json.dumps({"doubled": 42}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  as in its base
        """Be quiet."""


class TestForeignServers:
    def test_http_server_of_the_standard_library(
        self, way: ByThread, producer: Make, message: Message
    ) -> None:
        """Receives a message and answers a query; HTTP/1.0, a connection for each."""
        handler = type("Handler", (Plain,), {"received": []})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            made = producer(f"http://127.0.0.1:{server.server_port}/")
            way.send(made, message())
            assert way.ask(made, message()) == Reply(b'{"doubled": 42}')
        finally:
            server.shutdown()
            thread.join(PATIENCE)
            server.server_close()
        assert handler.received == [{"text": "It works"}] * 2  # type: ignore[attr-defined]  # made above

    def test_a_stock_fastapi_application(
        self, way: ByThread, served: Any, producer: Make, message: Message
    ) -> None:
        """Two routes, nothing of ours."""
        import fastapi

        application = fastapi.FastAPI()
        received: list[Any] = []

        @application.post("/notes", status_code=202)
        async def take(note: dict[str, Any]) -> None:
            received.append(note)

        @application.post("/count")
        def count(note: dict[str, Any]) -> dict[str, int]:
            return {"letters": len(note["text"])}

        url = served(application).url
        way.send(producer(f"{url}notes"), message())
        assert received == [{"text": "It works"}]
        assert json.loads(way.ask(producer(f"{url}count"), message()).body) == {"letters": 8}


class TestCapabilities:
    def test_are_honest(self, producer: Make) -> None:
        """What is not acknowledged comes back where it is sent again, and only there."""
        made = producer("https://example.org/", max_size_bytes=2000)
        expected = Capabilities(acknowledge=True, queries=True, max_size_bytes=2000)
        assert expected == made.capabilities
