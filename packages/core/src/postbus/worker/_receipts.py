"""The inbox of a consumer: what was handled is handled once, however often it is delivered."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from postbus.errors import ListenersFailedError, RejectedError, TransportError
from postbus.promises import Promise
from postbus.stores import Conflict, Done, Inbox, InboxKey, New, PendingSend, Running
from postbus.unit import HandledError, Outgoing
from postbus.worker._patience import StoreThreads

if TYPE_CHECKING:
    from postbus.messages import Envelope
    from postbus.transports import MessageProducer

__all__ = [
    "INBOX_LEASE",
    "PURGE_INTERVAL",
    "BusyError",
    "ConflictError",
    "InboxDownError",
    "InboxReceipt",
    "KeptReply",
    "Receipts",
    "inbox_trouble",
]

logger = logging.getLogger("postbus.worker")

# How long others wait for a row whose holder has died; a live one renews it.
INBOX_LEASE = 30.0
# Seconds between two looks at what an inbox may forget: so often that each finds little.
PURGE_INTERVAL = 60.0


class InboxDownError(TransportError):
    """The inbox cannot be asked: the message waits until it can."""


class BusyError(TransportError):
    """Somebody else handles the message right now, until *until* at least."""

    def __init__(self, message: str, envelope: Any = None, until: datetime | None = None) -> None:
        super().__init__(message, envelope)
        self.until: datetime = until or datetime.now(UTC)


class ConflictError(RejectedError):
    """Another message was handled under the same id."""


@attrs.frozen
class KeptReply:
    """The answer that a query got when it was handled, as bytes."""

    body: bytes


def inbox_trouble(error: BaseException) -> InboxDownError | BusyError | None:
    """Return what an inbox said, where that is the only reason for *error*."""
    # A listener's is wrapped as any failure of a listener is.
    errors = error.exceptions if isinstance(error, ListenersFailedError) else ()
    causes = [each.__cause__ for each in errors] or [error]
    found = [each for each in causes if isinstance(each, InboxDownError | BusyError)]
    return found[0] if len(found) == len(causes) else None


@attrs.frozen
class Receipts:
    """Makes the receipts of one consumer.

    Args:
        inbox: where rows are.
        threads: where it is called from asyncio code.
        producers: by the names that rows have for them; looked up anew each time.
        later: what delays messages for producers that cannot, by the same names.
        lease: seconds for which a row is claimed.
        claimed: the receipts that have a row claimed now, for whoever renews leases.
    """

    inbox: Inbox
    threads: StoreThreads
    producers: Mapping[str, MessageProducer]
    later: Mapping[str, MessageProducer]
    lease: float
    claimed: set[InboxReceipt] = attrs.field(factory=set["InboxReceipt"])

    def make(
        self, envelope: Envelope, encode_reply: Callable[[Any], bytes] | None
    ) -> InboxReceipt:
        """Return the receipt of a received message. *encode_reply* is that of a query."""
        digest = hashlib.sha256(b"\0".join((envelope.name.encode(), envelope.payload or b"")))
        return InboxReceipt(self, envelope, "", digest.digest(), encode_reply)

    def named(self, outgoing: Sequence[Outgoing]) -> list[PendingSend]:
        """Return what was sent with the names of its producers."""
        tables = (self.producers, self.later)
        names = {id(producer): name for table in tables for name, producer in table.items()}
        return [
            PendingSend(names[id(producer)], message)
            for message, producers in outgoing
            for producer in producers
            if id(producer) in names
        ]

    def producer(self, pending: PendingSend) -> MessageProducer | None:
        """Return what sends *pending*, if it is there still."""
        later = self.later.get(pending.producer) if pending.message.delay else None
        return later or self.producers.get(pending.producer)


class InboxReceipt:
    """The row of one message and handler; a `postbus.unit.Receipt`."""

    delay: ClassVar[None] = None
    timeout: ClassVar[None] = None

    def __init__(
        self,
        receipts: Receipts,
        envelope: Envelope,
        handler: str,
        digest: bytes,
        encode_reply: Callable[[Any], bytes] | None,
    ) -> None:
        self._receipts = receipts
        self._envelope = envelope
        self._handler = handler
        self._digest = digest
        self._encode_reply = encode_reply
        self._handle: Any = None
        self._is_joined = False
        self._key: InboxKey | None = None
        self._done: Done | None = None

    def of(self, handler: str) -> InboxReceipt:
        """Return the receipt of one listener."""
        return InboxReceipt(
            self._receipts, self._envelope, handler, self._digest, self._encode_reply
        )

    def join(self, handle: Any) -> None:
        """Find out whether the row can be written within the transaction of *handle*."""
        self._is_joined = handle is not None and self._receipts.inbox.joins(handle)
        self._handle = handle

    def begin(self) -> None:
        """Look into the inbox; where it is apart, claim the row."""
        lease = None if self._is_joined else self._receipts.lease
        with _down_is_told(self._envelope):
            begun = self._receipts.inbox.begin(
                self._envelope.id, self._handler, self._digest, lease
            )
        match begun:
            case New(key):
                self._key = key
                if not self._is_joined:
                    self._receipts.claimed.add(self)
            case Done():
                self._done = begun
                raise HandledError
            case Running(until):
                text = f"{self._envelope.name} {self._envelope.id} is handled by somebody else"
                raise BusyError(text, self._envelope, until)
            case Conflict():
                text = f"{self._envelope.id} is the id of another message that was handled"
                raise ConflictError(text, self._envelope)

    def _reply(self, result: Any) -> bytes | None:
        if self._encode_reply is None:
            return None
        if result.__class__ is Promise:
            result = result.result()
        return self._encode_reply(result)

    def finish_within(self, result: Any, outgoing: Sequence[Outgoing]) -> None:
        """Write the row as the last statement of the transaction."""
        if not self._is_joined:
            return
        assert self._key is not None  # noqa: S101  begin() came first
        sends = self._receipts.named(outgoing)
        inbox = self._receipts.inbox
        with _down_is_told(self._envelope):
            is_ours = inbox.finish(self._key, self._reply(result), sends, within=self._handle)
        if not is_ours:
            # It rolls back in any case; begin() says what the other has come to.
            self.begin()
            text = f"{self._envelope.name} {self._envelope.id} was handled by somebody else"
            raise BusyError(text, self._envelope)

    def finish_apart(self, result: Any, outgoing: Sequence[Outgoing]) -> None:
        """Write the row after the commit."""
        if self._is_joined:
            return
        assert self._key is not None  # noqa: S101  begin() came first
        sends = self._receipts.named(outgoing)
        try:
            with _down_is_told(self._envelope):
                is_ours = self._receipts.inbox.finish(self._key, self._reply(result), sends)
        finally:
            self._receipts.claimed.discard(self)
        if not is_ours:
            logger.warning(
                "handled twice: the inbox's lease had ended",
                extra={"message_id": self._envelope.id, "message_name": self._envelope.name},
            )

    def sent(self) -> None:
        """Note that everything has left; else it leaves again, under the same id."""
        key = self._key if self._done is None else self._done.key
        assert key is not None  # noqa: S101  begin() came first
        try:
            self._receipts.inbox.sent(key)
        except TransportError as error:
            logger.warning(
                "an inbox did not hear what has left; it may be sent again",
                extra={"message_id": self._envelope.id, "error": type(error).__name__},
            )

    def abandon(self) -> None:
        """Give the row back."""
        self._receipts.claimed.discard(self)
        if self._is_joined or self._key is None:
            return
        try:
            self._receipts.inbox.abandon(self._key)
        except TransportError as error:
            logger.warning(
                "an inbox did not hear of a failure; its lease has to end first",
                extra={"message_id": self._envelope.id, "error": type(error).__name__},
            )

    def again(self) -> tuple[Any, list[TransportError]]:
        """Send what has not left yet; return the reply that was kept, and what failed."""
        assert self._done is not None  # noqa: S101  begin() said so
        unsent: list[TransportError] = []
        for pending in self._done.sends:
            producer = self._receipts.producer(pending)
            try:
                if producer is None:
                    raise TransportError(f"there is no producer {pending.producer} any more")  # noqa: TRY301  reported as the others
                producer.send(pending.message)
            except TransportError as error:
                error.envelope = error.envelope or self._envelope
                unsent.append(error)
        if self._done.sends and not unsent:
            self.sent()
        logger.info(
            "message was handled before",
            extra={
                "message_id": self._envelope.id,
                "message_name": self._envelope.name,
                "sends": len(self._done.sends),
            },
        )
        reply = self._done.reply
        return (None if reply is None else KeptReply(reply)), unsent

    def renew(self) -> None:
        """Keep the claimed row for another lease. Raises nothing."""
        if self._key is not None:
            try:
                self._receipts.inbox.extend(self._key, self._receipts.lease)
            except TransportError as error:
                logger.warning(
                    "a lease in an inbox could not be renewed",
                    extra={"message_id": self._envelope.id, "error": type(error).__name__},
                )

    def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Awaitable[Any]:
        """Call *function* in a thread for stores."""
        return asyncio.wrap_future(self._receipts.threads.submit(function, *arguments))


@contextmanager
def _down_is_told(envelope: Envelope) -> Generator[None]:
    """Raise what the inbox says in the block as `InboxDownError`."""
    try:
        yield
    except TransportError as error:
        raise InboxDownError(f"the inbox is down: {error}", envelope) from error
