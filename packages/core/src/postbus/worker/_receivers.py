"""Received messages handled once, for a server that is no worker's: with an inbox, as there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from postbus.errors import ListenersFailedError, PostbusError
from postbus.messages import MessageKind
from postbus.stores import Conflict, Running
from postbus.worker._patience import StoreThreads
from postbus.worker._receipts import (
    INBOX_LEASE,
    PURGE_INTERVAL,
    BusyError,
    ConflictError,
    KeptReply,
    Receipts,
    inbox_trouble,
)
from postbus.worker._scheduled import Sending

if TYPE_CHECKING:
    from postbus.messages import Envelope
    from postbus.stores import Inbox

__all__ = ["IdempotentReceiver"]


class IdempotentReceiver:
    """Dispatches a received message once, however often it comes.

    It does with *inbox* what a worker does with that of a consumer, so that both agree about a
    message, whichever of them it reaches. Used on any loop.

    Args:
        buses: where messages are dispatched, by their kind.
        inbox: knows what was handled; several processes may share it.
        sending: through which a message that was handled sends what has not left yet.
    """

    def __init__(
        self, buses: Mapping[MessageKind, Any], inbox: Inbox, sending: Sending | None = None
    ) -> None:
        self._buses = buses
        self._inbox = inbox
        self._sending = sending or Sending()
        self._threads = StoreThreads()
        self._purge_at = 0.0

    async def areceive(
        self, envelope: Envelope, source: str, encode_reply: Callable[[Any], bytes]
    ) -> bytes | Running | Conflict | None:
        """Dispatch *envelope* unless it was handled; functions run in threads of the bus.

        Returns what *encode_reply* made of the answer of a query, now or the first time, and None
        for a command or event; `Running` where somebody else is at it, and `Conflict` where
        another message was handled under its id. Cancelled, the handler is too.

        Raises:
            DecodeError: the payload does not fit the class.
            DispatchError: as the bus raises it; the message may come again.
            TransportError: the inbox is down, or something that is sent could not be; the message
                should come again.
        """
        if time.monotonic() >= self._purge_at:
            # Its tables have to be there before a transaction that joins them begins.
            await self._threads.run(self._inbox.purge)
            self._purge_at = time.monotonic() + PURGE_INTERVAL
        assert envelope.kind is not None  # noqa: S101  it has the one of the catalogue
        is_query = envelope.kind is MessageKind.QUERY
        receipts = Receipts(
            self._inbox, self._threads, self._sending.producers, self._sending.later, INBOX_LEASE
        )
        receipt = receipts.make(envelope, encode_reply if is_query else None)
        bus = self._buses[envelope.kind]
        handling = asyncio.ensure_future(
            bus.areceive(envelope, source, threads=True, receipt=receipt)
        )
        try:
            result = await self._renewing(handling, receipts)
        except PostbusError as error:
            said = _said_by_inbox(error)
            if said is None:
                raise
            return said
        if not is_query:
            return None
        return result.body if isinstance(result, KeptReply) else encode_reply(result)

    async def _renewing(self, handling: asyncio.Future[Any], receipts: Receipts) -> Any:
        """Await *handling*, and keep its claims as long as it takes."""
        try:
            while not (await asyncio.wait({handling}, timeout=INBOX_LEASE / 3))[0]:
                for claimed in tuple(receipts.claimed):
                    self._threads.submit(claimed.renew)
        except asyncio.CancelledError:
            handling.cancel()
            raise
        return handling.result()


def _said_by_inbox(error: PostbusError) -> Running | Conflict | None:
    """Return why an inbox let nothing be handled; None where there is another reason."""
    errors = error.exceptions if isinstance(error, ListenersFailedError) else (error,)
    if any(isinstance(each.__cause__ or each, ConflictError) for each in errors):
        return Conflict()
    trouble = inbox_trouble(error)
    return Running(trouble.until) if isinstance(trouble, BusyError) else None
