"""Connections over plain sockets, as httpcore's network backends: ours know when to give up.

A host is resolved once for each connection, its addresses are checked where that is asked for,
and what was checked is what is connected to. Requests are written in one piece.
"""

# ruff: noqa: ASYNC109  httpcore's interface has time-outs

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import httpcore

from postbus.errors import RejectedError
from postbus_http._targets import is_public

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

T = TypeVar("T")

_CHUNK = 65_536
_Address = tuple[Any, ...]
_Found = list[tuple[Any, Any, int, str, _Address]]


class Clock:
    """The moment, in seconds of `time.monotonic`, at which a connection's user gives up."""

    __slots__ = ("deadline",)

    def __init__(self) -> None:
        self.deadline = 0.0

    def left(self, timeout: float | None) -> float:
        """Return *timeout*, or less where the deadline is nearer; 0 or less when it has passed."""
        left = self.deadline - time.monotonic()
        return left if timeout is None else min(timeout, left)


def checked(host: str, found: _Found, *, public_only: bool) -> list[tuple[int, _Address]]:
    """Return the family and address of each that was *found* for *host*.

    Raises:
        RejectedError: with *public_only*, one of them is not public.
    """
    if public_only and not all(is_public(str(address[0])) for *_, address in found):
        raise RejectedError(f"{host} has an address that is not public (`public_only`)")
    return [(int(family), address) for family, _, _, _, address in found]


class Backend(httpcore.NetworkBackend):
    """Opens connections that block, within the deadline of *clock*."""

    def __init__(self, clock: Clock, *, public_only: bool) -> None:
        self._clock = clock
        self._public_only = public_only
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address of *host* that answers."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(str(error)) from error
        failed: Exception = httpcore.ConnectError("no address")
        for _, address in checked(host, found, public_only=self._public_only):
            left = self._clock.left(timeout)
            if left <= 0:
                raise httpcore.ConnectTimeout(f"no connection within {timeout} seconds")
            try:
                opened = self._sockets.connect_tcp(str(address[0]), port, left)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
            else:
                return Stream(opened, self._clock)
        raise failed


class Stream(httpcore.NetworkStream):
    """A connection that blocks, for each call no longer than its clock allows."""

    def __init__(self, stream: httpcore.NetworkStream, clock: Clock) -> None:
        self._stream = stream
        self._clock = clock
        self._unwritten: list[bytes] = []
        self._has_ended = False

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Write what is to be written, and return what comes."""
        if self._unwritten:
            data = b"".join(self._unwritten)
            self._unwritten.clear()
            # A server may refuse before it has read everything: its words are still to be read.
            with suppress(httpcore.WriteError):
                self._stream.write(data, self._left(timeout, httpcore.WriteTimeout))
        data = self._stream.read(max_bytes, self._left(timeout, httpcore.ReadTimeout))
        self._has_ended = not data
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Keep *buffer* until an answer is read."""
        self._unwritten.append(buffer)

    def _left(self, timeout: float | None, late: type[Exception]) -> float:
        left = self._clock.left(timeout)
        if left <= 0:
            raise late("the time for this message is over")
        return left

    def close(self) -> None:
        """Close it."""
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """Return the same connection with TLS."""
        left = self._left(timeout, httpcore.ConnectTimeout)
        return Stream(self._stream.start_tls(ssl_context, server_hostname, left), self._clock)

    def get_extra_info(self, info: str) -> Any:
        """Return what httpcore asks: whether an idle connection has ended, and the socket."""
        # With TLS the other side can end what it says and leave the socket open.
        return (info == "is_readable" and self._has_ended) or self._stream.get_extra_info(info)


async def _within(
    timeout: float | None,
    call: Awaitable[T],
    late: type[Exception],
    broken: type[Exception],
) -> T:
    try:
        if timeout is None:
            return await call
        async with asyncio.timeout(timeout):
            return await call
    except TimeoutError as error:
        raise late(f"nothing within {timeout} seconds") from error
    except OSError as error:
        raise broken(str(error)) from error


class AsyncBackend(httpcore.AsyncNetworkBackend):
    """Opens connections on the running loop. The deadline is the caller's."""

    def __init__(self, *, public_only: bool) -> None:
        self._public_only = public_only

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address of *host* that answers."""
        return await _within(
            timeout, self._connect(host, port), httpcore.ConnectTimeout, httpcore.ConnectError
        )

    async def _connect(self, host: str, port: int) -> httpcore.AsyncNetworkStream:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except UnicodeError as error:
            raise httpcore.ConnectError(str(error)) from error
        failed = OSError("no address")
        for family, address in checked(host, found, public_only=self._public_only):
            opened = socket.socket(family, socket.SOCK_STREAM)
            try:
                opened.settimeout(0)
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await loop.sock_connect(opened, address)
            except OSError as error:
                opened.close()
                failed = error
            except BaseException:
                opened.close()
                raise
            else:
                return AsyncStream(opened)
        raise failed


class AsyncStream(httpcore.AsyncNetworkStream):
    """A connection of one loop. Its socket can be closed without the loop, should that be gone."""

    def __init__(self, opened: socket.socket) -> None:
        self._socket = opened
        self._unwritten: list[bytes] = []
        self._has_ended = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Write what is to be written, and return what comes."""
        data = await _within(
            timeout, self._read(max_bytes), httpcore.ReadTimeout, httpcore.ReadError
        )
        self._has_ended = not data
        return data

    async def _read(self, max_bytes: int) -> bytes:
        if self._unwritten:
            data = b"".join(self._unwritten)
            self._unwritten.clear()
            # As in the connections that block.
            with suppress(ConnectionError):
                await self._send(data)
        return await self._receive(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Keep *buffer* until an answer is read."""
        self._unwritten.append(buffer)

    async def _send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def _receive(self, max_bytes: int) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self._socket, max_bytes)

    async def aclose(self) -> None:
        """Close it."""
        self._socket.close()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Return the same connection with TLS."""
        secured = AsyncTLSStream(self._socket, ssl_context, server_hostname)
        try:
            await _within(
                timeout, secured.handshake(), httpcore.ConnectTimeout, httpcore.ConnectError
            )
        except BaseException:
            self._socket.close()
            raise
        return secured

    def get_extra_info(self, info: str) -> Any:
        """Return what httpcore asks: whether an idle connection has ended, and the socket."""
        if info == "socket":
            return self._socket
        if info == "is_readable" and self._has_ended:
            # As in the connections that block.
            return True
        if info == "is_readable":
            try:
                self._socket.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return False
            except OSError:
                return True
            return True
        return None


class AsyncTLSStream(AsyncStream):
    """The same with TLS, which the standard library has for plain sockets as a pair of buffers."""

    def __init__(
        self, opened: socket.socket, context: ssl.SSLContext, server_hostname: str | None
    ) -> None:
        super().__init__(opened)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=server_hostname
        )

    async def handshake(self) -> None:
        """Agree on keys, and check who the server is."""
        await self._drive(self._tls.do_handshake)

    async def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[await self._drive(partial(self._tls.write, view)) :]

    async def _receive(self, max_bytes: int) -> bytes:
        return await self._drive(partial(self._tls.read, max_bytes))

    async def _drive(self, step: Callable[[], T]) -> T:
        """Do *step*, and carry what it needs to and from the other side."""
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await self._flush()
            else:
                await self._flush()
                return result
            data = await super()._receive(_CHUNK)
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await super()._send(self._outgoing.read())

    def get_extra_info(self, info: str) -> Any:
        """Return what httpcore asks, and the TLS object."""
        return self._tls if info == "ssl_object" else super().get_extra_info(info)
