"""The interface every transport implements, as small as it can be.

A producer takes ready bytes to a system; a consumer brings them back as deliveries, which the
worker settles. Neither knows a bus, a handler or a message class. What an instance can do, as it
is configured, stands in its `Capabilities`, and is proved by the conformance kit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import attrs
import msgspec

from postbus.errors import PartiallySentError, TransportError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from postbus.promises import Promise

__all__ = [
    "AsyncMessageProducer",
    "AsyncQueryClient",
    "Capabilities",
    "CommonSettings",
    "Delivery",
    "MessageConsumer",
    "MessageProducer",
    "QueryClient",
    "Reply",
    "Transport",
    "WireMessage",
]


@attrs.frozen(kw_only=True)
class Capabilities:
    """What one configured producer or consumer can do. Everything defaults to "cannot".

    *acknowledge*: a delivery can be acknowledged after it was handled. *redeliver_on_crash*: what
    was not acknowledged comes back when the consumer dies. *durable*: an accepted message
    survives a restart of the system. *queries*: answers come back. *queries_only*: what wants
    no answer is refused. *retry*: a delivery can be replaced by a new body. *delay*: the
    resolution of delayed sending in seconds, None for none. *priority*, *expiry*: honoured.
    *ordering*: first in, first out. *max_size_bytes*: the largest body, None for no limit.
    *inspect*, *purge*: waiting messages can be listed, removed. *lease*: the seconds for which a
    consumer has a delivery unless it extends that, None for no end.
    """

    acknowledge: bool = False
    redeliver_on_crash: bool = False
    durable: bool = False
    queries: bool = False
    queries_only: bool = False
    retry: bool = False
    delay: float | None = None
    priority: bool = False
    expiry: bool = False
    ordering: bool = False
    max_size_bytes: int | None = None
    inspect: bool = False
    purge: bool = False
    lease: float | None = None


class WireMessage(msgspec.Struct):
    """One message as a producer sends it: the body is the truth, the rest are copies beside it.

    *headers* are text for the system's own tools and never read back. *priority* is 0 to 9,
    larger is more urgent. *delay* is in seconds. Treated as immutable.
    """

    body: bytes
    headers: Mapping[str, str]
    id: str
    name: str
    key: str | None = None
    priority: int | None = None
    expires_at: datetime | None = None
    delay: float | None = None


@attrs.frozen
class Reply:
    """An answer on the wire: JSON of the result, or an RFC 9457 problem when *is_error*."""

    body: bytes
    is_error: bool = False


class MessageProducer(ABC):
    """Takes messages to a system. Usable from any thread, and after a fork.

    It connects on first use, never when built. Whoever built it closes it.
    """

    capabilities: Capabilities

    @abstractmethod
    def send_many(self, messages: Sequence[WireMessage]) -> None:
        """Hand over *messages*, in order; blocks until the system has them all.

        Raises:
            PartiallySentError: some were not taken; `.failed` maps their index to an error.
            UnsupportedError: a message asks for what the capabilities deny.
            ClosedError: after `close()`.
        """

    def send(self, message: WireMessage) -> None:
        """Hand over one message; returns when the system has it.

        Raises:
            TransportError: the system does not have it.
        """
        try:
            self.send_many((message,))
        except PartiallySentError as error:
            raise error.failed[0] from error

    @abstractmethod
    def close(self) -> None:
        """Flush and let go of the connection. Idempotent, also while another thread is blocked."""


class AsyncMessageProducer(MessageProducer):
    """A producer with asyncio calls of its own; for the others a bounded pool runs `send_many`."""

    @abstractmethod
    async def asend_many(self, messages: Sequence[WireMessage]) -> None:
        """Do what `send_many` does without blocking the loop."""

    async def asend(self, message: WireMessage) -> None:
        """Do what `send` does without blocking the loop."""
        try:
            await self.asend_many((message,))
        except PartiallySentError as error:
            raise error.failed[0] from error

    @abstractmethod
    async def aclose(self) -> None:
        """Do what `close` does without blocking the loop."""


@runtime_checkable
class QueryClient(Protocol):
    """A producer whose system carries answers back."""

    def request(self, message: WireMessage, reply: Promise[Reply]) -> None:
        """Send a query and settle *reply* when its answer comes.

        Returns at once and raises nothing: what goes wrong rejects *reply*, and so does the
        close of the producer, with `ClosedError`. Any thread. An answer that comes late is
        dropped. The deadline is the caller's.
        """


@runtime_checkable
class AsyncQueryClient(QueryClient, Protocol):
    """A query client with an asyncio call of its own."""

    async def arequest(self, message: WireMessage) -> Reply:
        """Send a query and return its answer, or raise a `TransportError`."""
        ...


class Delivery(ABC):
    """One message taken from a system, to be settled once.

    `ack`, `nack`, `retry`, `reply` and `extend` return at once, from any thread, and are carried
    out in the order asked; the first of ack, nack and retry wins.
    """

    __slots__ = ("body", "headers", "redelivered", "source")

    def __init__(
        self,
        body: bytes,
        headers: Mapping[str, str],
        source: str,
        *,
        redelivered: bool = False,
    ) -> None:
        self.body: bytes = body
        self.headers: Mapping[str, str] = headers
        self.source: str = source
        self.redelivered: bool = redelivered

    @abstractmethod
    def ack(self) -> None:
        """Say that it was handled: it never comes back. Does nothing where there is no need."""

    def nack(self) -> None:
        """Give it back untouched, for now or for another consumer.

        Raises:
            UnsupportedError: the transport cannot.
        """
        raise self._unsupported("nack")

    def retry(self, message: WireMessage) -> None:
        """Put *message* (a new body, a delay) in the place of this delivery.

        Raises:
            UnsupportedError: the transport cannot.
        """
        raise self._unsupported("retry")

    def reply(self, reply: Reply) -> None:
        """Answer the query; the first answer counts.

        Raises:
            UnsupportedError: this delivery carries no reply channel.
        """
        raise self._unsupported("reply")

    def extend(self, seconds: float) -> None:
        """Keep the lease for another *seconds*.

        Raises:
            UnsupportedError: the transport has no leases.
        """
        raise self._unsupported("extend")

    @abstractmethod
    def settled(self) -> Promise[None]:
        """Return a promise, made only when asked for, of the settlement asked last.

        It resolves when the system has taken it and rejects with a `TransportError` when it
        has not; `lost` is then True.
        """

    @property
    def can_reply(self) -> bool:
        """Whether `reply` has somewhere to go."""
        return False

    @property
    def lost(self) -> bool:
        """Whether the delivery is no longer ours: its lease or connection is gone."""
        return False

    def _unsupported(self, call: str) -> TransportError:
        return UnsupportedError(f"{self.source}: this transport cannot {call} a delivery")


class MessageConsumer(ABC):
    """Brings deliveries from a system. One caller of `receive` at a time."""

    capabilities: Capabilities

    @abstractmethod
    async def receive(self, max_messages: int) -> Sequence[Delivery]:
        """Wait for at least one delivery and return at most *max_messages*.

        Never fetches more than *max_messages* ahead. Cancelled, what it had fetched comes first
        in the next call. A `TransportError` loses nothing, and the next call reconnects.

        Raises:
            ClosedError: after `aclose()`.
            TransportError: the system cannot be reached now.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Carry out the settlements asked for, give back the rest, let go. Idempotent."""


@attrs.frozen(kw_only=True)
class CommonSettings:
    """What core reads from a section and a transport may need: name, guarantee, prefetch.

    *name* is the section's own name. *guarantee* is what the configuration demands, None when it
    leaves the choice to the transport. *prefetch* is how many deliveries may be ahead of the
    worker. *max_size_bytes* bounds a body. *close_timeout* is how many seconds a consumer's
    `aclose` may take to carry out the settlements asked for.
    """

    name: str
    guarantee: str | None = None
    prefetch: int = 1
    max_size_bytes: int = 1024 * 1024
    close_timeout: float = 5.0


class Transport(ABC):
    """The record an entry point of the group `postbus.transports` names.

    *producer_settings* and *consumer_settings* are attrs classes: their fields are the keys that
    a section may have beside core's own.
    """

    name: str
    producer_settings: type[Any]
    consumer_settings: type[Any]

    @abstractmethod
    def make_producer(self, settings: Any, common: CommonSettings) -> MessageProducer:
        """Build a producer; connects nothing."""

    @abstractmethod
    def make_consumer(self, settings: Any, common: CommonSettings) -> MessageConsumer:
        """Build a consumer; connects nothing."""

    @abstractmethod
    def capabilities(self, settings: Any, common: CommonSettings) -> Capabilities:
        """Return what a producer or consumer with these settings can do; builds nothing."""
