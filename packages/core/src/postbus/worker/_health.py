"""Two pages for whoever watches over a worker: is it alive, and is it ready?"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress

import msgspec

from postbus.errors import ConnectionFailedError

__all__ = ["Health"]

logger = logging.getLogger("postbus.worker")

_LONGEST_REQUEST_BYTES = 8192
# Longer than a probe waits; a client that says nothing is not waited for.
_PATIENCE = 5.0


class Health:
    """Answers `GET /live` and `GET /ready` over HTTP. Used on the worker's loop.

    Alive is a worker whose loop answers and of whose consumers at least one has not ended; ready
    is one whose consumers all receive. 200 says yes and 503 no, and the body what each consumer
    is doing, as JSON. Everything else is 404.

    Args:
        address: HOST:PORT to listen at; port 0 lets the system choose.
        states: what each consumer is doing now, by name.
    """

    def __init__(self, address: str, states: Callable[[], Mapping[str, str]]) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._states = states
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        """Begin to listen; return the address.

        Raises:
            ConnectionFailedError: the address cannot be had.
        """
        try:
            self._server = await asyncio.start_server(
                self._answer, self._host, self._port, limit=_LONGEST_REQUEST_BYTES
            )
        except (OSError, OverflowError) as error:
            msg = f"health: cannot listen at {self._host}:{self._port}: {error}"
            raise ConnectionFailedError(msg) from error
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    def close(self) -> None:
        """Stop listening. Idempotent."""
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(
            OSError, TimeoutError, asyncio.LimitOverrunError, asyncio.IncompleteReadError
        ):
            async with asyncio.timeout(_PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._response(head.split(b"\r\n", 1)[0]))
                await writer.drain()
        writer.close()

    def _response(self, request: bytes) -> bytes:
        states = self._states()
        method, path, *_ = (*request.split(b" "), b"", b"")
        if method not in {b"GET", b"HEAD"}:
            return _written("405 Method Not Allowed", b"{}", head=False)
        if path == b"/live":
            is_well = any(state != "ended" for state in states.values())
        elif path == b"/ready":
            is_well = all(state == "receiving" for state in states.values())
        else:
            return _written("404 Not Found", b"{}", head=method == b"HEAD")
        status = "200 OK" if is_well else "503 Service Unavailable"
        body = msgspec.json.encode({"consumers": dict(states)})
        return _written(status, body, head=method == b"HEAD")


def _written(status: str, body: bytes, *, head: bool) -> bytes:
    lines = (
        f"HTTP/1.1 {status}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Connection: close",
    )
    return "\r\n".join((*lines, "", "")).encode("ascii") + (b"" if head else body)
