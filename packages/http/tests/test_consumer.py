"""The consumer: a worker that is a web server."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, ClassVar

import attrs
import pytest

from postbus import Command, Query, build
from postbus.errors import (
    ClosedError,
    ConnectionFailedError,
    HandlerFailedError,
    NoHandlerError,
    RejectedError,
    UnsupportedError,
)
from postbus.messages import Envelope
from postbus.transports import Capabilities, CommonSettings, Delivery, Reply, WireMessage
from postbus.wire import encode, encode_problem
from postbus_http import (
    HTTP,
    HTTPConsumer,
    HTTPConsumerSettings,
    ResendSettings,
    StatusError,
    WebhookKeys,
)

KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PATIENCE = 30.0
Run = Callable[[Awaitable[Any]], Any]


@attrs.frozen
class Note(Command, name="consumer.note"):
    """A command."""

    text: str


@attrs.frozen
class CountNotes(Query[int], name="consumer.count-notes"):
    """A query."""


def wire(message: Any = None, **changes: Any) -> bytes:
    """Return the bytes of a message."""
    fields = {**json.loads(encode(Envelope(message or Note("a")))), **changes}
    return json.dumps(fields).encode()


def consumer_of(*, guarantee: str | None = None, **settings: Any) -> HTTPConsumer:
    """Return a consumer at a free port."""
    given: dict[str, Any] = {"bind": "127.0.0.1:0", **settings}
    consumer = HTTP.make_consumer(
        HTTPConsumerSettings(**given),
        CommonSettings(name="inbound", guarantee=guarantee, max_size_bytes=10_000),
    )
    assert isinstance(consumer, HTTPConsumer)
    return consumer


@attrs.frozen
class Response:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The reason of a failure."""
        found: str = json.loads(self.body)["code"]
        return found


def post(port: int, body: bytes, path: str = "/", **headers: str) -> Response:
    """Post once, over a connection of its own. Blocks."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Response(answer.status, found, answer.read())


class Posting:
    """Posts from threads to a consumer that is used on this loop."""

    def __init__(self, consumer: HTTPConsumer) -> None:
        self.consumer = consumer
        self.tasks: list[asyncio.Task[Any]] = []

    async def start(self) -> int:
        """Have the consumer listen; return its port."""
        self.receiving = asyncio.ensure_future(self.consumer.receive(100))
        await asyncio.sleep(0)
        assert self.consumer.address is not None
        return self.consumer.address[1]

    async def post(self, body: bytes, **headers: str) -> tuple[Any, Delivery]:
        """Post; return the answer to wait for, and the delivery."""
        assert self.consumer.address is not None
        port = self.consumer.address[1]
        task = asyncio.create_task(asyncio.to_thread(post, port, body, **headers))
        self.tasks.append(task)
        (delivery,) = await self.receiving
        self.receiving = asyncio.ensure_future(self.consumer.receive(100))
        return task, delivery

    async def answer(self, body: bytes, path: str = "/", **headers: str) -> Response:
        """Post what is answered without a delivery."""
        assert self.consumer.address is not None
        return await asyncio.to_thread(post, self.consumer.address[1], body, path, **headers)

    async def stop(self) -> None:
        """Close the consumer, and see that nothing is left."""
        await self.consumer.aclose()
        with contextlib.suppress(ClosedError, asyncio.CancelledError):
            await self.receiving
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
def with_posting(run: Run) -> Callable[..., Any]:
    """Return a function that runs asyncio code with a consumer that listens."""

    def call(work: Callable[[Posting], Awaitable[Any]], **settings: Any) -> Any:
        async def scenario() -> Any:
            posting = Posting(consumer_of(**settings))
            await posting.start()
            try:
                return await work(posting)
            finally:
                await posting.stop()

        return run(scenario())

    return call


class TestSettling:
    def test_ack_is_204(self, with_posting: Callable[..., Any]) -> None:
        """And the promise of it is kept once the answer is with the server."""

        async def work(posting: Posting) -> None:
            body = wire()
            answer, delivery = await posting.post(body)
            assert delivery.body == body
            assert delivery.can_reply
            assert not delivery.redelivered
            delivery.ack()
            delivery.nack()
            await delivery.settled()
            assert (await answer).status == 204
            assert not delivery.lost

        with_posting(work)

    def test_nack_is_503_and_when_to_come_again(self, with_posting: Callable[..., Any]) -> None:
        """The sender has it still, and may send it again."""

        async def work(posting: Posting) -> None:
            body = wire()
            answer, delivery = await posting.post(body)
            delivery.nack()
            response = await answer
            assert (response.status, response.headers["retry-after"]) == (503, "1")
            assert response.code == "not_handled"
            again, delivery = await posting.post(body)
            delivery.ack()
            assert (await again).status == 204

        with_posting(work)

    def test_a_reply_is_the_answer(self, with_posting: Callable[..., Any]) -> None:
        """The first one; a later ack does not change it, and it is asked each time."""

        async def work(posting: Posting) -> None:
            body = wire()
            for number in (b"7", b"8"):
                answer, delivery = await posting.post(body)
                delivery.reply(Reply(number))
                delivery.reply(Reply(b"9"))
                delivery.ack()
                response = await answer
                assert (response.status, response.body) == (200, number)

        with_posting(work)

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (ValueError("hunter2"), 500),
            (ConnectionFailedError("down"), 500),
            (ClosedError("closed"), 500),
            (RejectedError("stopped"), 503),
            (NoHandlerError("nobody"), 404),
        ],
    )
    def test_a_failure_is_a_problem(
        self, with_posting: Callable[..., Any], error: Exception, status: int
    ) -> None:
        """With the status of its kind."""

        async def work(posting: Posting) -> None:
            answer, delivery = await posting.post(wire())
            delivery.reply(Reply(encode_problem(error), is_error=True))
            delivery.ack()
            response = await answer
            assert response.status == status
            assert b"hunter2" not in response.body
            assert response.headers["content-type"] == "application/problem+json"

        with_posting(work)

    def test_settles_from_any_thread(self, with_posting: Callable[..., Any]) -> None:
        """In the order asked."""

        async def work(posting: Posting) -> None:
            answer, delivery = await posting.post(wire())

            def settle() -> None:
                delivery.reply(Reply(b"1"))
                delivery.ack()
                delivery.settled().result(PATIENCE)

            await asyncio.to_thread(settle)
            assert (await answer).body == b"1"

        with_posting(work)

    def test_a_settlement_after_the_loop_has_ended_is_late(
        self, with_posting: Callable[..., Any]
    ) -> None:
        """It raises nothing; the sender was told otherwise."""

        async def work(posting: Posting) -> Delivery:
            _, delivery = await posting.post(wire())
            return delivery

        delivery: Delivery = with_posting(work)
        delivery.ack()
        assert delivery.lost

    def test_what_http_cannot_is_refused(self, with_posting: Callable[..., Any]) -> None:
        """There is no queue to put another message in, and no lease."""

        async def work(posting: Posting) -> None:
            _, delivery = await posting.post(wire())
            with pytest.raises(UnsupportedError):
                delivery.extend(1.0)
            with pytest.raises(UnsupportedError):
                delivery.retry(None)  # type: ignore[arg-type]  # it is not looked at
            delivery.ack()

        with_posting(work)


class TestReceive:
    def test_takes_no_more_than_asked(self, run: Run) -> None:
        """The others come with the next call."""

        async def scenario() -> None:
            consumer = consumer_of()
            receiving = asyncio.ensure_future(consumer.receive(2))
            await asyncio.sleep(0)
            assert consumer.address is not None
            body = b"[%b,%b,%b]" % (wire(), wire(), wire())
            answer = asyncio.create_task(asyncio.to_thread(post, consumer.address[1], body))
            first = await receiving
            second = await consumer.receive(2)
            assert (len(first), len(second)) == (2, 1)
            first[0].ack()
            first[1].nack()
            second[0].ack()
            items = json.loads((await answer).body)
            assert [item["status"] for item in items] == [204, 503, 204]
            await consumer.aclose()

        run(scenario())

    def test_cancelled_it_has_taken_nothing(self, with_posting: Callable[..., Any]) -> None:
        """What comes meanwhile is for the next call."""

        async def work(posting: Posting) -> None:
            posting.receiving.cancel()
            await asyncio.wait({posting.receiving})
            assert posting.consumer.address is not None
            port = posting.consumer.address[1]
            answer = asyncio.create_task(asyncio.to_thread(post, port, wire()))
            (delivery,) = await posting.consumer.receive(10)
            delivery.ack()
            assert (await answer).status == 204

        with_posting(work)

    def test_an_address_in_use_is_told_and_tried_again(self, run: Run) -> None:
        """The next call binds it, once it is free."""

        async def scenario() -> None:
            with socket.create_server(("127.0.0.1", 0)) as taken:
                port = taken.getsockname()[1]
                consumer = consumer_of(bind=f"127.0.0.1:{port}")
                with pytest.raises(ConnectionFailedError, match="cannot bind"):
                    await consumer.receive(1)
            receiving = asyncio.ensure_future(consumer.receive(1))
            await asyncio.sleep(0)
            assert consumer.address == ("127.0.0.1", port)
            await consumer.aclose()
            with pytest.raises(ClosedError):
                await receiving

        run(scenario())

    def test_a_host_that_is_none_is_told(self, run: Run) -> None:
        """As any address that cannot be bound."""
        consumer = consumer_of(bind="nowhere.invalid:1", allow_any_peer=True)
        with pytest.raises(ConnectionFailedError, match="cannot bind nowhere"):
            run(consumer.receive(1))

    def test_a_certificate_that_is_none_is_told(self, run: Run, tmp_path: Any) -> None:
        """And the address is free again."""
        consumer = consumer_of(certificate_file=str(tmp_path / "none.pem"))
        with pytest.raises(ConnectionFailedError, match="certificate_file"):
            run(consumer.receive(1))

    def test_closed_it_receives_nothing(self, run: Run) -> None:
        """Idempotent; also one that never listened."""
        consumer = consumer_of()

        async def scenario() -> None:
            await consumer.aclose()
            await consumer.aclose()
            with pytest.raises(ClosedError):
                await consumer.receive(1)

        run(scenario())


class TestClose:
    def test_what_nobody_settled_is_answered_503(self, with_posting: Callable[..., Any]) -> None:
        """Received or not; the sender sends it again, elsewhere or later."""

        async def work(posting: Posting) -> None:
            answer, delivery = await posting.post(wire())
            posting.receiving.cancel()
            await asyncio.wait({posting.receiving})
            assert posting.consumer.address is not None
            port = posting.consumer.address[1]
            behind = asyncio.create_task(asyncio.to_thread(post, port, wire()))
            # It is there when the consumer says so, and nobody takes it.
            posting.consumer._arrived = arrived = asyncio.Event()
            await arrived.wait()
            await posting.consumer.aclose()
            for each in (answer, behind):
                response = await each
                assert (response.status, response.code) == (503, "stopped")
                assert "retry-after" in response.headers
            assert delivery.lost
            with pytest.raises(ClosedError):
                await delivery.settled()
            delivery.ack()

        with_posting(work)

    def test_half_a_request_does_not_hold_it_up(self, with_posting: Callable[..., Any]) -> None:
        """A body that never comes, when the worker stops."""

        async def work(posting: Posting) -> None:
            assert posting.consumer.address is not None
            reader, writer = await asyncio.open_connection(*posting.consumer.address)
            writer.write(
                b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n"
            )
            # The server reads the body now.
            assert b"100 Continue" in await reader.readline()
            start = time.monotonic()
            await posting.consumer.aclose()
            assert time.monotonic() - start < 10
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

        with_posting(work, read_timeout=PATIENCE)

    def test_a_request_behind_the_end_is_put_off(self, run: Run) -> None:
        """On a connection that was open before."""

        async def scenario() -> None:
            consumer = consumer_of()
            consumer._is_closed = True
            (answered,) = await consumer._take([wire()], False)
            assert answered.status == 503

        run(scenario())


class TestRequests:
    def test_another_path_does_not_exist(self, with_posting: Callable[..., Any]) -> None:
        """Only the configured one does."""

        async def work(posting: Posting) -> None:
            assert (await posting.answer(wire(), path="/other")).status == 404

        with_posting(work, path="/messages")

    def test_a_request_must_be_signed(self, with_posting: Callable[..., Any]) -> None:
        """As an endpoint's."""

        async def work(posting: Posting) -> None:
            body = wire()
            assert (await posting.answer(body)).status == 401
            answer, delivery = await posting.post(body, **WebhookKeys([KEY]).sign("m", body))
            delivery.ack()
            assert (await answer).status == 204

        with_posting(work, signing_keys=[KEY])

    def test_a_duplicate_is_not_delivered(self, with_posting: Callable[..., Any]) -> None:
        """While it is handled 409, then as the first; another with its id never."""

        async def work(posting: Posting) -> None:
            body = wire()
            other = wire(Note("other"), uuid=json.loads(body)["uuid"].upper())
            answer, delivery = await posting.post(body)
            running, conflict = await posting.answer(body), await posting.answer(other)
            assert (running.status, running.headers["retry-after"]) == (409, "1")
            assert conflict.status == 422
            delivery.ack()
            assert (await answer).status == 204
            assert (await posting.answer(body)).status == 204
            assert (await posting.answer(other)).status == 422

        with_posting(work)

    def test_a_sender_that_waits_too_long_learns_later(
        self, with_posting: Callable[..., Any]
    ) -> None:
        """503 after `answer_timeout`; the delivery goes on, and the same message is then done."""

        async def work(posting: Posting) -> None:
            body = wire()
            answer, delivery = await posting.post(body)
            assert (await answer).code == "still_running"
            assert (await posting.answer(body)).status == 409
            delivery.ack()
            assert (await posting.answer(body)).status == 204

        with_posting(work, answer_timeout=0.1)

    def test_what_is_no_message_is_the_worker_s_to_refuse(
        self, with_posting: Callable[..., Any]
    ) -> None:
        """It is delivered as it came."""

        async def work(posting: Posting) -> None:
            for body in (b"nonsense", b"{}", b'{"uuid": 1}'):
                answer, delivery = await posting.post(body)
                assert delivery.body == body
                delivery.nack()
                assert (await answer).status == 503

        with_posting(work)

    def test_slow_headers_end(self, with_posting: Callable[..., Any]) -> None:
        """A14: never begun, half sent, or half sent behind a good request."""

        async def work(posting: Posting) -> None:
            assert posting.consumer.address is not None
            address = posting.consumer.address

            def open_slow(begin: bytes) -> bytes:
                with socket.create_connection(address, PATIENCE) as connection:
                    connection.sendall(begin)
                    found = b""
                    while data := connection.recv(65_536):
                        found += data
                    return found

            good = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
            start = time.monotonic()
            found = await asyncio.gather(
                *(
                    asyncio.to_thread(open_slow, begin)
                    for begin in (b"", b"POST / HTTP/1.1\r\nX: ")
                )
            )
            assert found == [b"", b""]
            assert time.monotonic() - start < 15
            assert (await asyncio.to_thread(open_slow, good)).startswith(b"HTTP/1.1 405")

            def slow_behind_a_good_one() -> bytes:
                with socket.create_connection(address, PATIENCE) as connection:
                    connection.sendall(b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert connection.recv(65_536).startswith(b"HTTP/1.1 404")
                    connection.sendall(b"POST / HT")
                    return connection.recv(65_536)

            assert await asyncio.to_thread(slow_behind_a_good_one) == b""
            assert time.monotonic() - start < 15

        with_posting(work, header_timeout=0.3)

    def test_headers_have_a_size(self, with_posting: Callable[..., Any]) -> None:
        """A1: ten thousand of them, or one without end."""

        async def work(posting: Posting) -> None:
            assert posting.consumer.address is not None
            address = posting.consumer.address

            def flood() -> int:
                sent = 0
                with socket.create_connection(address, PATIENCE) as connection:
                    connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n")
                    with contextlib.suppress(OSError):
                        for number in range(1_000_000):
                            line = b"X-%d: %b\r\n" % (number, b"y" * 100)
                            connection.sendall(line)
                            sent += len(line)
                return sent

            assert await asyncio.to_thread(flood) < 20_000_000
            answer, delivery = await posting.post(wire())
            delivery.ack()
            assert (await answer).status == 204

        with_posting(work)


class TestAccepting:
    """At-most-once: a message is answered when it is there, not when it was handled."""

    PREFER: ClassVar = {"Prefer": "respond-async"}

    def test_who_need_not_wait_does_not(self, with_posting: Callable[..., Any]) -> None:
        """202; the delivery has no way back, and there is nothing to settle."""

        async def work(posting: Posting) -> None:
            body = wire()
            answer, delivery = await posting.post(body, **self.PREFER)
            assert (await answer).status == 202
            assert not delivery.can_reply
            for settle in (delivery.nack, lambda: delivery.reply(Reply(b"1"))):
                with pytest.raises(UnsupportedError):
                    settle()
            delivery.ack()
            await delivery.settled()
            assert (await posting.answer(body, **self.PREFER)).status == 202
            other = wire(Note("other"), uuid=json.loads(body)["uuid"])
            assert (await posting.answer(other, **self.PREFER)).status == 422

        with_posting(work, guarantee="at-most-once")

    def test_who_waits_does(self, with_posting: Callable[..., Any]) -> None:
        """A sender that asks, or that says nothing."""

        async def work(posting: Posting) -> None:
            answer, delivery = await posting.post(wire())
            assert delivery.can_reply
            delivery.reply(Reply(b"7"))
            delivery.ack()
            assert (await answer).body == b"7"

        with_posting(work, guarantee="at-most-once")

    def test_what_waits_is_bounded(self, with_posting: Callable[..., Any]) -> None:
        """Behind that the sender keeps its message."""

        async def work(posting: Posting) -> None:
            posting.receiving.cancel()
            await asyncio.wait({posting.receiving})
            bodies = [wire() for _ in range(3)]
            statuses = [(await posting.answer(body, **self.PREFER)).status for body in bodies]
            assert statuses == [202, 202, 503]
            assert len(await posting.consumer.receive(10)) == 2
            assert (await posting.answer(bodies[2], **self.PREFER)).status == 202

        with_posting(work, guarantee="at-most-once", max_in_flight=2)

    def test_at_least_once_everybody_waits(self, with_posting: Callable[..., Any]) -> None:
        """What was answered is handled, whatever a sender prefers."""

        async def work(posting: Posting) -> None:
            answer, delivery = await posting.post(wire(), **self.PREFER)
            delivery.nack()
            assert (await answer).status == 503

        with_posting(work, guarantee="at-least-once")


class Shop:
    """The handlers of an application."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.go: Future[None] = Future()

    def note(self, message: Note) -> None:
        """Handle a command."""
        if message.text == "bad":
            raise ValueError(message.text)
        self.notes.append(message.text)

    def count(self, _: CountNotes) -> int:
        """Answer a query."""
        if not self.notes:
            raise LookupError
        return len(self.notes)


class TestWorker:
    def test_runs_by_configuration_alone(self, free_port: Callable[[], int]) -> None:
        """Commands, queries, failures of both, and what is no message; one dict for both sides."""
        port, shop = free_port(), Shop()
        config = {
            "messages": [__name__],
            "producers": {
                "remote": {
                    "transport": "http",
                    "url": f"http://127.0.0.1:{port}/messages",
                    "signing_keys": [KEY],
                    "resend": {"max_attempts": 100, "initial_delay": 0.05, "max_delay": 0.1},
                }
            },
            "consumers": {
                "inbound": {
                    "transport": "http",
                    "bind": f"127.0.0.1:{port}",
                    "path": "/messages",
                    "signing_keys": [KEY],
                    "guarantee": "at-least-once",
                }
            },
            "command_bus": {
                "router": {
                    "routes": {"consumer.note": "note"},
                    "send": {"consumer.note": "producers.remote"},
                }
            },
            "query_bus": {
                "router": {
                    "routes": {"consumer.count-notes": "count"},
                    "send": {"consumer.count-notes": "producers.remote"},
                }
            },
        }
        services = {"note": shop.note, "count": shop.count}
        with build(config, services) as postbus, postbus.worker().running():
            # Not failed, although the worker may not listen yet: it is sent again.
            postbus.command_bus.dispatch(Note("first"))
            assert shop.notes == ["first"]
            assert postbus.query_bus.dispatch(CountNotes()).result(PATIENCE) == 1
            shop.notes.clear()
            with pytest.raises(HandlerFailedError) as caught:
                postbus.query_bus.dispatch(CountNotes()).result(PATIENCE)
            assert caught.value.code == "error"

    def test_a_command_that_fails_is_the_sender_s_again(
        self, free_port: Callable[[], int]
    ) -> None:
        """Nothing is lost: who sent it is told, and has it still."""
        port, shop = free_port(), Shop()
        config = {
            "messages": [__name__],
            "consumers": {"inbound": {"transport": "http", "bind": f"127.0.0.1:{port}"}},
            "command_bus": {"router": {"routes": {"consumer.note": "note"}}},
        }
        with build(config, {"note": shop.note}) as postbus, postbus.worker().running():
            made = HTTP.make_producer(
                HTTP.producer_settings(
                    url=f"http://127.0.0.1:{port}/",
                    resend=ResendSettings(max_attempts=3, initial_delay=0.2),
                ),
                CommonSettings(name="remote"),
            )
            with contextlib.closing(made):
                body = wire(Note("bad"))
                with pytest.raises(StatusError, match="503"):
                    made.send(WireMessage(body, {}, "an-id", "consumer.note"))


class TestTransport:
    def test_a_consumer_needs_its_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The extra is named when the application is built."""
        monkeypatch.setattr("postbus_http.transport.find_spec", lambda _: None)
        with pytest.raises(UnsupportedError, match=r"postbus-http\[server\]"):
            consumer_of()

    def test_capabilities_are_honest(self) -> None:
        """What is not acknowledged is never answered with success."""
        expected = Capabilities(
            acknowledge=True, redeliver_on_crash=True, queries=True, max_size_bytes=10_000
        )
        assert expected == consumer_of().capabilities
        accepting = Capabilities(queries=True, max_size_bytes=10_000)
        assert accepting == consumer_of(guarantee="at-most-once").capabilities
