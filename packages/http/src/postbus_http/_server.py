"""An ASGI server inside a worker: uvicorn without its signal handlers."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import uvicorn

from postbus.errors import ConnectionFailedError
from postbus_http.protocol import LimitedHTTPProtocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from postbus_http.settings import HTTPConsumerSettings

__all__ = ["Server", "listen"]

_BACKLOG = 1024
# Below the time after which clients drop idle connections, ours would close while they send.
_KEEP_ALIVE = 5
# Seconds for the last answers, once they were given, to leave.
_PATIENCE = 0.5


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there.

    Raises:
        ConnectionFailedError: the address cannot be bound.
    """
    try:
        ((family, _, _, _, address), *_) = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConnectionFailedError(f"cannot bind {host}:{port}: {error}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(_BACKLOG)
    except OSError as error:
        bound.close()
        raise ConnectionFailedError(f"cannot bind {host}:{port}: {error}") from error
    bound.settimeout(0)
    return bound


class _Uvicorn(uvicorn.Server):
    """uvicorn as a part of a program that has signal handlers of its own."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]  # a context manager either way
        return nullcontext()


class Server:
    """Serves an ASGI application on a socket that listens, as a task of the running loop."""

    def __init__(
        self, application: Any, listening: socket.socket, settings: HTTPConsumerSettings
    ) -> None:
        limits = {"header_timeout": settings.header_timeout}
        config = uvicorn.Config(
            application,
            interface="asgi3",
            http=type("Protocol", (LimitedHTTPProtocol,), limits),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=1,
            ssl_certfile=settings.certificate_file,
            ssl_keyfile=settings.key_file,
        )
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            text = f"certificate_file or key_file cannot be used: {error}"
            raise ConnectionFailedError(text) from error
        self._server = _Uvicorn(config)
        self._task = asyncio.create_task(
            self._server.serve(sockets=[listening]), name="postbus http server"
        )

    async def aclose(self) -> None:
        """Let the answers that were given leave, end every connection, and stop listening."""
        self._server.should_exit = True
        await asyncio.wait({self._task}, timeout=_PATIENCE)
        for connection in tuple(self._server.server_state.connections):
            transport: asyncio.Transport = connection.transport
            transport.abort()
        await self._task
