"""The interface every transport implements, as small as it can be.

A producer takes ready bytes to a system; a consumer brings them back as deliveries, which the
worker settles. Neither knows a bus, a handler or a message class. What an instance can do, as it
is configured, stands in its `Capabilities`, and is proved by the conformance kit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import attrs
import msgspec

from postbus.errors import PartiallySentError, RejectedError, TransportError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
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
    "Topology",
    "TopologyPart",
    "Transport",
    "WaitingMessage",
    "WireMessage",
]

_LAST_PRIORITY = 9


@attrs.frozen(kw_only=True)
class Capabilities:
    """What one configured producer or consumer can do. Everything defaults to "cannot".

    *acknowledge*: a delivery can be acknowledged after it was handled. *redeliver_on_crash*: what
    was not acknowledged comes back when the consumer dies. *durable*: an accepted message
    survives a restart of the system. *queries*: answers come back. *queries_only*: what wants
    no answer is refused. *retry*: a delivery can be replaced by a new body. *delay*: the
    resolution of delayed sending in seconds, None for none. *priority*, *expiry*: honoured.
    *ordering*: first in, first out. *max_size_bytes*: the largest body, None for no limit.
    *count*, *inspect*, *purge*: waiting messages can be counted, looked at without being taken,
    removed; the last two never without the first, which says what the queues are called.
    *lease*: the seconds for which a consumer has a delivery unless it extends that, None for no
    end.
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
    count: bool = False
    inspect: bool = False
    purge: bool = False
    lease: float | None = None

    def refusal(
        self, message: WireMessage, system: str, *, size_key: str = "max_size_bytes"
    ) -> TransportError | None:
        """Return why *message* cannot be sent with these, None where it can.

        A `RejectedError` for a body that is too large and a priority that is none, an
        `UnsupportedError` for what is denied. Cheap: made for every send.

        Args:
            message: what is to be sent.
            system: what the transport is called, for people.
            size_key: the setting that says how large a body may be.
        """
        limit, priority = self.max_size_bytes, message.priority
        if limit is not None and len(message.body) > limit:
            return RejectedError(
                f"{message.name} {message.id}: the body has {len(message.body)} bytes, "
                f"at most {limit} are configured (`{size_key}`)"
            )
        if priority is not None:
            if not self.priority:
                return _denied(message, system, "priorities")
            if not 0 <= priority <= _LAST_PRIORITY:
                return RejectedError(
                    f"{message.name} {message.id}: priority must be 0 to {_LAST_PRIORITY}, "
                    f"got {priority}"
                )
        if message.delay and self.delay is None:
            return _denied(message, system, "delays")
        if message.expires_at is not None and not self.expiry:
            return _denied(message, system, "expiry")
        return None


def _denied(message: WireMessage, system: str, what: str) -> UnsupportedError:
    return UnsupportedError(f"{message.name} {message.id}: {system} has no {what}")


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
    def is_awaited(self) -> bool:
        """Whether somebody is known to wait for the reply; False where the system does not say.

        What cannot be read is answered with a problem then, and its bytes stay with the sender;
        otherwise they are kept.
        """
        return self.can_reply

    @property
    def lost(self) -> bool:
        """Whether the delivery is no longer ours: its lease or connection is gone."""
        return False

    def _unsupported(self, call: str) -> TransportError:
        return UnsupportedError(f"{self.source}: this transport cannot {call} a delivery")


@attrs.frozen
class WaitingMessage:
    """A message that somebody looked at and nobody has taken.

    *headers* are copies for the system's own tools, as a delivery has them.
    """

    body: bytes
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])


class MessageConsumer(ABC):
    """Brings deliveries from a system, and says what waits there.

    `receive` has one caller at a time. `count`, `peek` and `purge` block, for any thread, whether
    anything was received or not, and disturb nobody's deliveries. They are about what could be
    received now: what a consumer holds, and what is delayed, is neither counted nor removed.
    """

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
        """Carry out the settlements asked for, give back the rest, let go. Idempotent.

        No queue is deleted, and nothing that waits in one.
        """

    def count(self) -> Mapping[str, int]:
        """Return how many messages wait in each queue that this consumer takes from.

        Raises:
            UnsupportedError: the transport cannot.
            TransportError: the system cannot be reached now.
            ClosedError: after `aclose()`.
        """
        raise self._unsupported("count")

    def peek(self, queue: str, *, offset: int = 0, limit: int = 20) -> Sequence[WaitingMessage]:
        """Return messages that wait in *queue*, the next one first, and take none.

        Args:
            queue: a name that `count` has.
            offset: how many to leave out at the beginning.
            limit: how many to return at most.

        Raises:
            UnsupportedError: the transport cannot, or the consumer does not take from *queue*.
            TransportError: the system cannot be reached now.
            ClosedError: after `aclose()`.
        """
        raise self._unsupported("peek at")

    def purge(self, queue: str) -> int:
        """Remove for good what waits in *queue*; return how many messages that were.

        Args:
            queue: a name that `count` has.

        Raises:
            UnsupportedError: the transport cannot, or the consumer does not take from *queue*.
            TransportError: the system cannot be reached now.
            ClosedError: after `aclose()`.
        """
        raise self._unsupported("purge")

    def _unsupported(self, call: str) -> TransportError:
        return UnsupportedError(f"{type(self).__name__} cannot {call} what waits")

    def _refuse_unknown(self, queue: str, queues: Iterable[str]) -> None:
        known = tuple(queues)
        if queue not in known:
            names = ", ".join(map(repr, known))
            text = f"{type(self).__name__} takes from no queue {queue!r}, only from {names}"
            raise UnsupportedError(text)


@attrs.frozen
class TopologyPart:
    """Something that has to be there at a system, such as a queue, and how that stands.

    *state* is `missing`, `there`, `made` by this call, `differs` from what is configured (then
    *difference* says in what), or `unknown` where the system does not tell.
    """

    kind: str
    name: str
    state: Literal["missing", "there", "made", "differs", "unknown"]
    difference: str = ""


@runtime_checkable
class Topology(Protocol):
    """A producer or consumer that needs something to be there at its system.

    It declares that on first use anyway. Both calls block, over a connection of their own.
    """

    def show_topology(self) -> Sequence[TopologyPart]:
        """Return what is needed and how it stands; change nothing.

        Raises:
            TransportError: the system cannot be reached.
        """
        ...

    def apply_topology(self) -> Sequence[TopologyPart]:
        """Make what is missing, leave what differs, and return all of it.

        Raises:
            TransportError: the system cannot be reached.
        """
        ...


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
