"""uvicorn's HTTP protocol with limits on headers, which uvicorn itself does not have.

`uvicorn shop:application --http postbus_http.protocol:LimitedHTTPProtocol`; a worker has it too.
Needs `postbus-http[server]`.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["LimitedHTTPProtocol"]


class LimitedHTTPProtocol(HttpToolsProtocol):
    """Ends a connection whose headers take too long, or are too large.

    Derive from it for other limits.
    """

    #: Seconds from the connection, or from the first byte of a later request, to the last header.
    header_timeout: ClassVar[float] = 10.0
    #: As they come, counted from the first byte of a request.
    max_header_bytes: ClassVar[int] = 32 * 1024

    _timer: asyncio.TimerHandle | None = None
    _header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the class that it derives from
        """Begin to wait for headers."""
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        """Count what comes before a request has its headers."""
        before: Any = self.cycle
        is_waiting = before is None or before.response_complete
        super().data_received(data)
        if self.cycle is not before:
            self._stop()
        elif is_waiting and not self.transport.is_closing():
            self._header_bytes += len(data)
            if self._header_bytes > self.max_header_bytes:
                self.transport.close()
            elif self._timer is None:
                self._await_headers()

    def shutdown(self) -> None:
        """End a connection that has no request at once."""
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:
            # Not close(), which with TLS waits for a client that has nothing to say.
            self.transport.abort()
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._stop()
        super().connection_lost(exc)

    def _await_headers(self) -> None:
        self._timer = self.loop.call_later(self.header_timeout, self.transport.close)

    def _stop(self) -> None:
        self._header_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
