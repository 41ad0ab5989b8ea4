"""Messages over Redis, SQS and kombu's simple brokers, each with what it can really promise."""

from __future__ import annotations

import os
import threading
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from postbus.errors import ClosedError, PartiallySentError, TransportError, UnsupportedError
from postbus.threaded import ThreadedConsumer
from postbus.transports import Capabilities, CommonSettings, MessageProducer, Transport
from postbus_kombu._brokers import broker_of
from postbus_kombu._polling import Held, LeasingClient, PollingClient
from postbus_kombu._reply_queue import ReplyQueue
from postbus_kombu._sqs import MAX_SIZE_BYTES
from postbus_kombu._virtual import is_tried, scheme_of
from postbus_kombu.settings import (
    KombuConsumerSettings,
    KombuProducerSettings,
    RedisConsumerSettings,
    RedisProducerSettings,
    SQSConsumerSettings,
    SQSProducerSettings,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from postbus.promises import Promise
    from postbus.transports import Reply, WireMessage

__all__ = [
    "KOMBU",
    "REDIS",
    "SQS",
    "KombuConsumer",
    "KombuProducer",
    "KombuTransport",
    "LeasingTransport",
    "RedisTransport",
    "SQSTransport",
]


# What fits into its type TEXT, which kombu's table has, with what kombu writes around a body.
_MYSQL_MAX_SIZE_BYTES = 45_000
_MYSQL = tuple(f"{kombu}+{of}" for kombu in ("sqla", "sqlalchemy") for of in ("mysql", "mariadb"))


class KombuProducer(MessageProducer):
    """Sends messages through one of kombu's brokers.

    A send returns when the broker has answered; to Redis a hundred messages go in one round trip.
    Any thread, one at a time; also after a fork. A connection that broke is made anew by the next
    send. Queries have connections of their own, and a queue of this process for their answers.
    Whoever built it closes it.
    """

    def __init__(
        self,
        settings: KombuProducerSettings | RedisProducerSettings | SQSProducerSettings,
        capabilities: Capabilities,
    ) -> None:
        self.capabilities: Capabilities = capabilities
        self._settings = settings
        self._is_closed = False
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._broker = broker_of(self._settings)
        self._replies = ReplyQueue(self._settings)

    def send_many(self, messages: Sequence[WireMessage]) -> None:
        """Hand over *messages*, in order.

        Raises:
            PartiallySentError: some were refused, or the connection broke.
            ClosedError: after `close()`.
        """
        self._leave_parent()
        failed: dict[int, TransportError] = {}
        good: list[int] = []
        for index, message in enumerate(messages):
            try:
                self._broker.check(message, self.capabilities)
                good.append(index)
            except TransportError as error:
                failed[index] = error
        size = self._broker.window
        for window in [good[start : start + size] for start in range(0, len(good), size)]:
            try:
                self._put([messages[index] for index in window])
            except TransportError as error:
                failed.update(dict.fromkeys(window, error))
        if self._is_closed:
            raise self._closed()
        if failed:
            raise PartiallySentError(
                f"{self._broker.place} did not take {len(failed)} of {len(messages)} messages",
                dict(sorted(failed.items())),
            )

    def request(self, message: WireMessage, reply: Promise[Reply]) -> None:
        """Send a query over a connection for queries; its answer settles *reply*."""
        self._leave_parent()
        if not self.capabilities.queries:
            reply.reject(UnsupportedError(f"{self._broker.place}: queries were not tried there"))
            return
        try:
            self._broker.check(message, self.capabilities)
            self._replies.ask(message, reply)
        except TransportError as error:
            reply.reject(error)

    def _leave_parent(self) -> None:
        if self._process != os.getpid():
            # In a forked child: the lock may be held for ever, the connections are the parent's.
            self._start_afresh()

    def _put(self, messages: Sequence[WireMessage]) -> None:
        with self._lock:
            if self._is_closed:
                raise self._closed()
            with self._broker.channel("send") as channel:
                self._broker.put_many(channel, self._settings.queue, messages)

    def _closed(self) -> ClosedError:
        return ClosedError(f"the producer for {self._broker.place} is closed")

    def close(self) -> None:
        """Close the connections and reject the queries that wait. Idempotent.

        Blocks while another thread's message is put.
        """
        self._is_closed = True
        if self._process == os.getpid():
            self._replies.close()
            with self._lock:
                self._broker.close()


class KombuConsumer(ThreadedConsumer[Held]):
    """Takes messages from queues of one of kombu's brokers, from each in turn.

    Whoever built it closes it.
    """


class KombuTransport(Transport):
    """Any of kombu's brokers: at most once, since none of them keeps what a dead consumer held."""

    name = "kombu"
    producer_settings: type[Any] = KombuProducerSettings
    consumer_settings: type[Any] = KombuConsumerSettings

    def make_producer(self, settings: Any, common: CommonSettings) -> KombuProducer:
        """Build a producer; connects nothing.

        Raises:
            UnsupportedError: the client library of the broker is not installed.
        """
        self._refuse_lack(settings)
        return KombuProducer(settings, self.capabilities(settings, common))

    def make_consumer(self, settings: Any, common: CommonSettings) -> KombuConsumer:
        """Build a consumer; connects nothing.

        Raises:
            UnsupportedError: the client library of the broker is not installed.
        """
        self._refuse_lack(settings)
        client = PollingClient(settings, self.capabilities(settings, common))
        return KombuConsumer(client, close_timeout=common.close_timeout)

    def _refuse_lack(self, settings: Any) -> None:
        try:
            _ = broker_of(settings).place
        except ImportError as error:
            text = f"{self.name}: what kombu needs for it is not installed: {error}"
            raise UnsupportedError(text) from error

    def capabilities(self, settings: Any, common: CommonSettings) -> Capabilities:
        """Return what a producer or consumer with these settings can do."""
        tried = is_tried(settings.url)
        size = common.max_size_bytes
        if settings.url.startswith(_MYSQL):
            size = min(size, _MYSQL_MAX_SIZE_BYTES)
        return Capabilities(
            queries=tried,
            # A folder does not keep the order, and tables keep that of several clocks.
            ordering=scheme_of(settings.url) == "memory",
            max_size_bytes=size,
            count=tried,
            purge=tried,
        )


class LeasingTransport(KombuTransport):
    """What Redis and SQS have in common: a consumer holds messages for the time of a lease."""

    #: What kombu needs, and the extra of this package that brings it.
    needs: ClassVar[tuple[str, str]]

    def make_consumer(self, settings: Any, common: CommonSettings) -> KombuConsumer:
        """Build a consumer; connects nothing.

        Raises:
            UnsupportedError: the client library of the broker is not installed.
        """
        self._refuse_lack(settings)
        capabilities = self.capabilities(settings, common)
        kind = LeasingClient if capabilities.acknowledge else PollingClient
        return KombuConsumer(kind(settings, capabilities), close_timeout=common.close_timeout)

    def _refuse_lack(self, settings: Any) -> None:
        library, extra = self.needs
        if find_spec(library) is None:
            text = f"{library} is not installed: pip install 'postbus-kombu[{extra}]'"
            raise UnsupportedError(f"{self.name}: {text}")


class RedisTransport(LeasingTransport):
    """Redis: at least once, by leases, with as much durability as the server was given."""

    name = "redis"
    producer_settings: type[Any] = RedisProducerSettings
    consumer_settings: type[Any] = RedisConsumerSettings
    needs: ClassVar[tuple[str, str]] = ("redis", "redis")

    def capabilities(self, settings: Any, common: CommonSettings) -> Capabilities:
        """Return what a producer or consumer with these settings can do."""
        acknowledge = common.guarantee != "at-most-once"
        is_consumer = isinstance(settings, RedisConsumerSettings)
        return Capabilities(
            acknowledge=acknowledge,
            redeliver_on_crash=acknowledge,
            durable=settings.durable,
            queries=True,
            retry=acknowledge,
            priority=True,
            ordering=True,
            max_size_bytes=common.max_size_bytes,
            count=True,
            inspect=True,
            purge=True,
            lease=settings.lease if acknowledge and is_consumer else None,
        )


class SQSTransport(LeasingTransport):
    """Amazon SQS: at least once, by leases, without an order."""

    name = "sqs"
    producer_settings: type[Any] = SQSProducerSettings
    consumer_settings: type[Any] = SQSConsumerSettings
    needs: ClassVar[tuple[str, str]] = ("boto3", "sqs")

    def capabilities(self, settings: Any, common: CommonSettings) -> Capabilities:
        """Return what a producer or consumer with these settings can do."""
        acknowledge = common.guarantee != "at-most-once"
        is_consumer = isinstance(settings, SQSConsumerSettings)
        return Capabilities(
            acknowledge=acknowledge,
            redeliver_on_crash=acknowledge,
            durable=True,
            retry=acknowledge,
            # Whole seconds.
            delay=1.0,
            max_size_bytes=min(MAX_SIZE_BYTES, common.max_size_bytes),
            count=True,
            lease=settings.lease if acknowledge and is_consumer else None,
        )


KOMBU = KombuTransport()
REDIS = RedisTransport()
SQS = SQSTransport()
