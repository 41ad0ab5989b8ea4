"""uvicorn with limits on headers, as the documentation recommends it for an endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import Any

import pytest

from postbus_http.protocol import LimitedHTTPProtocol

PATIENCE = 30.0


async def hello(_: Any, __: Any, send: Any) -> None:
    """Answer whatever comes."""
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@pytest.fixture
def port(served: Any) -> int:
    """Serve it, with the protocol named as on the command line."""
    found: int = served(hello, http="postbus_http.protocol:LimitedHTTPProtocol").port
    return found


class TestLimits:
    def test_headers_that_do_not_come_end_the_connection(
        self, port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Never begun, or a byte now and then; a good one is answered meanwhile."""
        monkeypatch.setattr(LimitedHTTPProtocol, "header_timeout", 0.5)
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            slow = [
                stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
                for _ in range(20)
            ]
            for connection in slow[10:]:
                connection.sendall(b"POST / HTTP/1.1\r\nX: ")
            assert _get(port).startswith(b"HTTP/1.1 204")
            dripping = slow[10:]
            while dripping:
                assert time.monotonic() - began < PATIENCE
                dripping = [each for each in dripping if _is_open(each)]
                time.sleep(0.02)
            for connection in slow[:10]:
                connection.settimeout(PATIENCE)
                assert connection.recv(1) == b""

    def test_headers_that_never_end_are_not_kept(
        self, port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However fast they come."""
        monkeypatch.setattr(LimitedHTTPProtocol, "max_header_bytes", 5_000)
        sent = 0
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
            connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n")
            with contextlib.suppress(OSError):
                while sent < 50_000_000:
                    connection.sendall(b"X: " + b"y" * 997 + b"\r\n")
                    sent += 1_000
        assert sent < 50_000_000

    def test_a_slow_answer_has_no_limit(
        self, served: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The headers are there: the rest is the application's."""
        monkeypatch.setattr(LimitedHTTPProtocol, "header_timeout", 0.1)

        async def slow(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.sleep(0.4)
            await hello(scope, receive, send)

        port = served(slow, http="postbus_http.protocol:LimitedHTTPProtocol").port
        assert _get(port).startswith(b"HTTP/1.1 204")


def _is_open(connection: socket.socket) -> bool:
    """Send another byte."""
    connection.settimeout(0)
    try:
        connection.sendall(b"y")
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _get(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        return connection.recv(65_536)
