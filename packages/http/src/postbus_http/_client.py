"""The one client of this package: connections, one request on each, from httpx and httpcore.

What httpx has in its own pool becomes slow with many requests in flight: it looks through all its
connections for each of them. Here every connection stands alone, and the one used last is used
next. Redirects are not followed, cookies not kept, bodies not unpacked, and no variable of the
environment is read.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
import weakref
from collections import deque
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import httpcore
import httpx

from postbus.errors import (
    ClosedError,
    ConnectionFailedError,
    RejectedError,
    TimedOutError,
    TransportError,
    UnsupportedError,
)
from postbus_http._exchange import Answer
from postbus_http._streams import AsyncBackend, Backend, Clock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from socket import socket

    from postbus_http.settings import HTTPProducerSettings

__all__ = ["BY_CLASS", "AsyncConnections", "Connections", "Plan", "plan_of", "translate"]

Headers = list[tuple[bytes, bytes]]
C = TypeVar("C")

BY_CLASS: dict[type[BaseException], type[TransportError]] = {
    httpcore.ConnectionNotAvailable: ConnectionFailedError,
    httpcore.ProxyError: ConnectionFailedError,
    httpcore.UnsupportedProtocol: UnsupportedError,
    httpcore.ProtocolError: ConnectionFailedError,
    httpcore.RemoteProtocolError: ConnectionFailedError,
    httpcore.LocalProtocolError: RejectedError,
    httpcore.TimeoutException: TimedOutError,
    httpcore.PoolTimeout: TimedOutError,
    httpcore.ConnectTimeout: TimedOutError,
    httpcore.ReadTimeout: TimedOutError,
    httpcore.WriteTimeout: TimedOutError,
    httpcore.NetworkError: ConnectionFailedError,
    httpcore.ConnectError: ConnectionFailedError,
    httpcore.ReadError: ConnectionFailedError,
    httpcore.WriteError: ConnectionFailedError,
    # Of an auth object that a user gave.
    httpx.HTTPError: TransportError,
    # What a socket says itself, such as one that was closed meanwhile.
    OSError: ConnectionFailedError,
}


def translate(error: BaseException, doing: str) -> TransportError:
    """Return the postbus error for *error*; raise it `from` that one.

    *doing* says what failed and where: "post to https://example.org".
    """
    kind = next(BY_CLASS[each] for each in type(error).__mro__ if each in BY_CLASS)
    return kind(f"cannot {doing}: {str(error) or type(error).__name__}")


_CAUGHT = tuple(BY_CLASS)


@attrs.frozen(eq=False)
class Plan:
    """Where and how requests go: what every connection of a producer has in common."""

    shown: str
    url: httpcore.URL
    host_header: tuple[bytes, bytes]
    context: ssl.SSLContext | None
    http2: bool
    public_only: bool
    max_connections: int
    keepalive_timeout: float
    connect_timeout: float
    idle_timeout: float
    max_response_bytes: int
    auth: Any

    def request(self, headers: Headers, body: bytes, seconds: float) -> httpcore.Request:
        """Return a request that has *seconds*."""
        idle = None if self.idle_timeout >= seconds else self.idle_timeout
        return httpcore.Request(
            b"POST",
            self.url,
            headers=[self.host_header, *headers],
            content=body,
            extensions={"timeout": {"connect": self.connect_timeout, "read": idle}},
        )

    @property
    def options(self) -> dict[str, Any]:
        """What httpcore's connections are made with."""
        return {
            "origin": self.url.origin,
            "ssl_context": self.context,
            "keepalive_expiry": self.keepalive_timeout,
            "http2": self.http2,
        }


def plan_of(settings: HTTPProducerSettings, shown: str, max_size_bytes: int) -> Plan:
    """Return the plan of *settings*; reads certificates, connects nothing.

    Raises:
        UnsupportedError: HTTP/2 was asked for, and its package is not installed.
        RejectedError: the address is none, or a certificate or its key cannot be read.
    """
    try:
        url = httpx.URL(settings.url)
    except httpx.InvalidURL as error:
        raise RejectedError(f"{shown}: no address: {error}") from error
    if settings.http2 and find_spec("h2") is None:
        raise UnsupportedError(f"{shown}: http2 needs `postbus-http[http2]`")
    return Plan(
        shown=shown,
        url=httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        ),
        host_header=(b"Host", url.netloc),
        context=_context(settings, shown) if url.scheme == "https" else None,
        http2=settings.http2,
        public_only=settings.public_only,
        max_connections=settings.max_connections,
        keepalive_timeout=settings.keepalive_timeout,
        connect_timeout=settings.connect_timeout,
        idle_timeout=settings.idle_timeout,
        max_response_bytes=settings.max_response_bytes or max_size_bytes,
        auth=settings.auth,
    )


def _context(settings: HTTPProducerSettings, shown: str) -> ssl.SSLContext:
    try:
        if settings.ca_file is None:
            context = httpx.create_ssl_context(trust_env=False)
        else:
            context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.certificate_file is not None:
            # Never ask on a terminal: a key with a passphrase is an error.
            context.load_cert_chain(settings.certificate_file, settings.key_file, password="")
    except (OSError, ValueError) as error:
        text = f"{shown}: ca_file, certificate_file or key_file cannot be used: {error}"
        raise RejectedError(text) from error
    return context


class _Collected:
    """The body of a response as far as it may be read."""

    def __init__(self, response: httpcore.Response, limit: int) -> None:
        self._response = response
        self._limit = limit
        self._chunks: list[bytes] = []
        self._size = 0

    def add(self, chunk: bytes) -> bool:
        """Add *chunk*; False when that is more than may be read."""
        room = self._limit - self._size
        self._size += len(chunk)
        self._chunks.append(chunk[: max(room, 0)])
        return self._size <= self._limit

    def answer(self) -> Answer:
        """Return what was read."""
        headers = {name.lower(): value for name, value in self._response.headers}
        body = b"".join(self._chunks)
        return Answer(self._response.status, headers, body, self._size <= self._limit)


class _AuthFlow:
    """The requests of an `httpx.Auth`, one after the other, as ours."""

    def __init__(self, plan: Plan, headers: Headers, body: bytes) -> None:
        self._plan = plan
        url = plan.url
        self.request = httpx.Request(
            "POST",
            httpx.URL(
                scheme=url.scheme.decode(),
                host=url.host.decode(),
                port=url.port,
                raw_path=url.target,
            ),
            headers=[plan.host_header, *headers],
            content=body,
        )
        self._url = self.request.url

    def headers_of(self, request: httpx.Request) -> Headers:
        """Return what the flow made of the headers.

        Raises:
            UnsupportedError: it wants to ask somebody else.
        """
        if request.url != self._url:
            raise UnsupportedError(
                f"{self._plan.shown}: the auth object asks another address first; "
                "get its token elsewhere"
            )
        return [pair for pair in request.headers.raw if pair[0].lower() != b"host"]

    def response_of(self, answer: Answer, request: httpx.Request) -> httpx.Response:
        """Return *answer* as the flow wants it."""
        return httpx.Response(
            answer.status,
            headers=list(answer.headers.items()),
            content=answer.body,
            request=request,
        )


class _Connection:
    """One connection that blocks, opened again when it has ended."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._clock = Clock()
        self._backend = Backend(self._clock, public_only=plan.public_only)
        self._open: httpcore.HTTPConnection | None = None

    def post(self, headers: Headers, body: bytes, deadline: float) -> Answer:
        auth = self._plan.auth
        if auth is None:
            return self._post(headers, body, deadline)
        flow = _AuthFlow(self._plan, headers, body)
        steps = auth.sync_auth_flow(flow.request)
        try:
            request = next(steps)
            while True:
                answer = self._post(flow.headers_of(request), body, deadline)
                try:
                    request = steps.send(flow.response_of(answer, request))
                except StopIteration:
                    return answer
        finally:
            steps.close()

    def _post(self, headers: Headers, body: bytes, deadline: float) -> Answer:
        connection = self._open
        if connection is None or not connection.is_idle() or connection.has_expired():
            self.close()
            connection = self._open = httpcore.HTTPConnection(
                network_backend=self._backend, **self._plan.options
            )
        self._clock.deadline = deadline
        request = self._plan.request(headers, body, deadline - time.monotonic())
        response = connection.handle_request(request)
        collected = _Collected(response, self._plan.max_response_bytes)
        try:
            for chunk in _iterate(response):
                if not collected.add(chunk):
                    break
        finally:
            response.close()
        return collected.answer()

    def close(self) -> None:
        """Close it; the next request opens it again."""
        connection, self._open = self._open, None
        if connection is not None:
            connection.close()


def _iterate(response: httpcore.Response) -> Iterator[bytes]:
    stream: Any = response.stream
    return iter(stream)


class Connections:
    """The connections of one producer for calls that block. Any thread."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._idle: list[_Connection] = []
        self._count = 0
        self._changed = threading.Condition(threading.Lock())
        self._is_closed = False

    def post(self, headers: Headers, body: bytes, deadline: float) -> Answer:
        """Send one request and return what came back, until *deadline*.

        Raises:
            TransportError: nothing came back.
        """
        connection = self._take(deadline)
        try:
            return connection.post(headers, body, deadline)
        except _CAUGHT as error:
            connection.close()
            raise translate(error, f"post to {self._plan.shown}") from error
        except BaseException:
            connection.close()
            raise
        finally:
            self._give_back(connection)

    def _take(self, deadline: float) -> _Connection:
        with self._changed:
            while not self._idle and self._count >= self._plan.max_connections:
                self._refuse_closed()
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    raise _all_busy(self._plan)
            self._refuse_closed()
            if self._idle:
                return self._idle.pop()
            self._count += 1
        return _Connection(self._plan)

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise ClosedError(f"the producer for {self._plan.shown} is closed")

    def _give_back(self, connection: _Connection) -> None:
        with self._changed:
            if not self._is_closed:
                self._idle.append(connection)
                self._changed.notify()
                return
        connection.close()

    def close(self) -> None:
        """Close what is idle now, and what is busy when it is done; who waits gets an error."""
        with self._changed:
            self._is_closed = True
            idle, self._idle = self._idle, []
            self._changed.notify_all()
        for connection in idle:
            connection.close()


def _all_busy(plan: Plan) -> TimedOutError:
    return TimedOutError(
        f"{plan.shown}: all {plan.max_connections} connections were busy until the time was over "
        "(`max_connections`, `total_timeout`)"
    )


class _AsyncConnection:
    """One connection of a loop, opened again when it has ended."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._backend = AsyncBackend(public_only=plan.public_only)
        self._open: httpcore.AsyncHTTPConnection | None = None
        self._socket: socket | None = None

    async def post(self, headers: Headers, body: bytes, seconds: float) -> Answer:
        auth = self._plan.auth
        if auth is None:
            return await self._post(headers, body, seconds)
        flow = _AuthFlow(self._plan, headers, body)
        steps = auth.async_auth_flow(flow.request)
        try:
            request = await anext(steps)
            while True:
                answer = await self._post(flow.headers_of(request), body, seconds)
                try:
                    request = await steps.asend(flow.response_of(answer, request))
                except StopAsyncIteration:
                    return answer
        finally:
            await steps.aclose()

    async def _post(self, headers: Headers, body: bytes, seconds: float) -> Answer:
        connection = self._open
        if connection is None or not connection.is_idle() or connection.has_expired():
            self.close()
            connection = self._open = httpcore.AsyncHTTPConnection(
                network_backend=self._backend, **self._plan.options
            )
        response: Any = await connection.handle_async_request(
            self._plan.request(headers, body, seconds)
        )
        self._socket = response.extensions["network_stream"].get_extra_info("socket")
        collected = _Collected(response, self._plan.max_response_bytes)
        try:
            async for chunk in response.stream:
                if not collected.add(chunk):
                    break
        finally:
            await response.aclose()
        return collected.answer()

    def close(self) -> None:
        """Close it, on its loop or when that has ended; the next request opens it again.

        The socket is all there is: nothing here keeps anything else of a loop.
        """
        self._open = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class AsyncConnections:
    """The connections of one producer on one loop."""

    def __init__(self, plan: Plan, loop: asyncio.AbstractEventLoop) -> None:
        self._plan = plan
        self._loop = weakref.ref(loop)
        # A loop that ends takes its connections with it.
        weakref.finalize(loop, self.close_here)
        self._idle: list[_AsyncConnection] = []
        self._count = 0
        self._waiting: deque[asyncio.Future[_AsyncConnection | None]] = deque()
        self._is_closed = False

    async def post(self, headers: Headers, body: bytes, deadline: float) -> Answer:
        """Send one request and return what came back. The deadline is the caller's to keep.

        Raises:
            TransportError: nothing came back.
        """
        connection = await self._take()
        try:
            return await connection.post(headers, body, deadline - time.monotonic())
        except _CAUGHT as error:
            connection.close()
            raise translate(error, f"post to {self._plan.shown}") from error
        except BaseException:
            connection.close()
            raise
        finally:
            self._give_back(connection)

    async def _take(self) -> _AsyncConnection:
        if self._is_closed:
            raise self._closed_error()
        if self._idle:
            return self._idle.pop()
        if self._count < self._plan.max_connections:
            self._count += 1
            return _AsyncConnection(self._plan)
        turn: asyncio.Future[_AsyncConnection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            connection = await turn
        except asyncio.CancelledError:
            # It may have been its turn already.
            if turn.done() and not turn.cancelled() and (given := turn.result()) is not None:
                self._give_back(given)
            raise
        if connection is None:
            raise self._closed_error()
        return connection

    def _give_back(self, connection: _AsyncConnection) -> None:
        if self._is_closed:
            connection.close()
            return
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(connection)
                return
        self._idle.append(connection)

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"the producer for {self._plan.shown} is closed")

    def close(self) -> None:
        """Do what `Connections.close` does; on the loop, or from elsewhere."""
        loop = self._loop()
        if loop is not None and loop.is_running() and asyncio._get_running_loop() is not loop:  # noqa: SLF001  documented as public for libraries in asyncio.events
            loop.call_soon_threadsafe(self.close_here)
        else:
            self.close_here()

    def close_here(self) -> None:
        """Close without regard to where the loop is."""
        self._is_closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        for turn in self._waiting:
            if not turn.done():
                turn.set_result(None)
        self._waiting.clear()
