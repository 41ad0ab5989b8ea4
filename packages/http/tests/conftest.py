"""What the tests share: servers for real, foreign ones and faulty ones, all on the loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any

import attrs
import pytest
import uvicorn

from postbus.transports import CommonSettings, WireMessage
from postbus_http import HTTP, HTTPProducer, HTTPProducerSettings

PATIENCE = 30.0


@attrs.frozen
class Request:
    """What a scripted server was sent."""

    line: str
    headers: dict[str, str]
    body: bytes
    connection: int


Answer = Callable[[Request, socket.socket], bytes | None]


class ScriptedServer:
    """A web server by hand: what it answers, and how, is a function's business.

    That function returns the bytes of a response, or writes to the socket itself and returns
    None, after which the connection is closed.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.requests: list[Request] = []
        self.connections = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listening.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}/messages"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._open.add(connection)
                number = self.connections
            thread = threading.Thread(target=self._serve, args=(connection, number), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with (
            connection,
            contextlib.suppress(OSError, ValueError),
            connection.makefile("rb") as file,
        ):
            while line := file.readline():
                headers: dict[str, str] = {}
                while (header := file.readline().decode("latin-1").strip()) != "":
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                body = file.read(int(headers.get("content-length", "0")))
                request = Request(line.decode().strip(), headers, body, number)
                with self._lock:
                    self.requests.append(request)
                    self.in_flight += 1
                    self.most_in_flight = max(self.most_in_flight, self.in_flight)
                try:
                    response = self._answer(request, connection)
                finally:
                    with self._lock:
                        self.in_flight -= 1
                if response is None:
                    break
                connection.sendall(response)
        with self._lock:
            self._open.discard(connection)

    def close(self) -> None:
        """Stop listening and end every connection."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with self._lock:
            opened = tuple(self._open)
        for connection in opened:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in [self._accepting, *self._threads]:
            thread.join(PATIENCE)


def response(status: str = "204 No Content", body: bytes = b"", *headers: str) -> bytes:
    """Return the bytes of a response."""
    lines = [f"HTTP/1.1 {status}", *headers]
    if not status.startswith("204"):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


NO_CONTENT = response()


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedServer]]:
    """Return a function that starts a server which answers by a function, or with a response."""
    with ExitStack() as stack:

        def start(answer: Answer | bytes = NO_CONTENT) -> ScriptedServer:
            server = ScriptedServer(answer if callable(answer) else lambda *_: answer)
            stack.callback(server.close)
            return server

        yield start


class ServedApplication:
    """An ASGI application under uvicorn, in a thread with a loop of its own."""

    def __init__(self, application: Any, bind: int = 0, **options: Any) -> None:
        self._listening = socket.create_server(("127.0.0.1", bind), backlog=1024)
        self.port: int = self._listening.getsockname()[1]
        defaults: dict[str, Any] = {
            "log_config": None,
            "lifespan": "off",
            "timeout_graceful_shutdown": 1,
        }
        config = uvicorn.Config(application, **{**defaults, **options})
        self._server = uvicorn.Server(config)
        self._loop: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.loop = self._loop.result(PATIENCE)

    def _run(self) -> None:
        async def serve() -> None:
            self._loop.set_result(asyncio.get_running_loop())
            await self._server.serve(sockets=[self._listening])

        asyncio.run(serve())

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}/"

    def close(self) -> None:
        """Stop it and wait until it has."""
        self._server.should_exit = True
        self._thread.join(PATIENCE)


@pytest.fixture
def served() -> Iterator[Callable[..., ServedApplication]]:
    """Return a function that serves an ASGI application on the loopback."""
    with ExitStack() as stack:

        def start(application: Any, **options: Any) -> ServedApplication:
            server = ServedApplication(application, **options)
            stack.callback(server.close)
            return server

        yield start


@pytest.fixture
def producer() -> Iterator[Callable[..., HTTPProducer]]:
    """Return a function that makes a producer for a URL."""
    with ExitStack() as stack:

        def make(url: str, *, max_size_bytes: int = 1024 * 1024, **settings: Any) -> HTTPProducer:
            made = HTTP.make_producer(
                HTTPProducerSettings(url=url, **settings),
                CommonSettings(name="remote", max_size_bytes=max_size_bytes),
            )
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def respond() -> Callable[..., bytes]:
    """Return a function that makes the bytes of a response."""
    return response


@pytest.fixture
def message() -> Callable[..., WireMessage]:
    """Return a function that makes a message to send."""

    def make(
        body: bytes = b'{"text":"It works"}',
        message_id: str = "11111111-1111-4111-8111-111111111111",
        name: str = "shop.echo-text",
        **fields: Any,
    ) -> WireMessage:
        return WireMessage(body, {}, message_id, name, **fields)

    return make


@pytest.fixture
def run() -> Callable[[Awaitable[Any]], Any]:
    """Return a function that runs asyncio code to its end, not for ever."""

    async def limited(work: Awaitable[Any]) -> Any:
        async with asyncio.timeout(PATIENCE):
            return await work

    return lambda work: asyncio.run(limited(work))


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Return a function that names a port of this machine that nobody has."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port

    return find
