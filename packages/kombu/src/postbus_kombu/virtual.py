"""Messages over Redis and over kombu's simple brokers, each with what it can really promise."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, TypeAlias

from postbus.errors import ClosedError, PartiallySentError, TransportError
from postbus.threaded import ThreadedConsumer
from postbus.transports import Capabilities, CommonSettings, MessageProducer, Transport
from postbus_kombu._polling import Held, LeasingClient, PollingClient
from postbus_kombu._virtual import Broker, check, connection_options, scheme_of
from postbus_kombu.settings import (
    KombuConsumerSettings,
    KombuProducerSettings,
    RedisConsumerSettings,
    RedisProducerSettings,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from postbus.transports import WireMessage

__all__ = ["KOMBU", "REDIS", "KombuConsumer", "KombuProducer", "KombuTransport", "RedisTransport"]

AnySettings: TypeAlias = (
    KombuProducerSettings | KombuConsumerSettings | RedisProducerSettings | RedisConsumerSettings
)


class KombuProducer(MessageProducer):
    """Sends messages through one of kombu's brokers.

    A send returns when the broker has answered; to Redis a hundred messages go in one round trip.
    Any thread, one at a time; also after a fork. A connection that broke is made anew by the next
    send. Whoever built it closes it.
    """

    def __init__(
        self,
        settings: KombuProducerSettings | RedisProducerSettings,
        capabilities: Capabilities,
    ) -> None:
        self.capabilities: Capabilities = capabilities
        self._settings = settings
        self._is_closed = False
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._broker = Broker(self._settings.url, connection_options(self._settings))

    def send_many(self, messages: Sequence[WireMessage]) -> None:
        """Hand over *messages*, in order.

        Raises:
            PartiallySentError: some were refused, or the connection broke.
            ClosedError: after `close()`.
        """
        if self._process != os.getpid():
            # In a forked child: the lock may be held for ever, the connection is the parent's.
            self._start_afresh()
        failed: dict[int, TransportError] = {}
        good: list[int] = []
        for index, message in enumerate(messages):
            try:
                check(message, self.capabilities)
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

    def _put(self, messages: Sequence[WireMessage]) -> None:
        with self._lock:
            if self._is_closed:
                raise self._closed()
            with self._broker.channel("send") as channel:
                self._broker.put_many(channel, self._settings.queue, messages)

    def _closed(self) -> ClosedError:
        return ClosedError(f"the producer for {self._broker.place} is closed")

    def close(self) -> None:
        """Close the connection. Idempotent. Blocks while another thread's message is put."""
        self._is_closed = True
        if self._process == os.getpid():
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
        """Build a producer; connects nothing."""
        return KombuProducer(settings, self.capabilities(settings, common))

    def make_consumer(self, settings: Any, common: CommonSettings) -> KombuConsumer:
        """Build a consumer; connects nothing."""
        client = PollingClient(settings, self.capabilities(settings, common))
        return KombuConsumer(client, close_timeout=common.close_timeout)

    def capabilities(self, settings: Any, common: CommonSettings) -> Capabilities:
        """Return what a producer or consumer with these settings can do."""
        # A folder does not keep the order; of the others it was not tried.
        ordering = scheme_of(settings.url) == "memory"
        return Capabilities(ordering=ordering, max_size_bytes=common.max_size_bytes)


class RedisTransport(KombuTransport):
    """Redis: at least once, by leases, with as much durability as the server was given."""

    name = "redis"
    producer_settings: type[Any] = RedisProducerSettings
    consumer_settings: type[Any] = RedisConsumerSettings

    def make_consumer(self, settings: Any, common: CommonSettings) -> KombuConsumer:
        """Build a consumer; connects nothing."""
        capabilities = self.capabilities(settings, common)
        kind = LeasingClient if capabilities.acknowledge else PollingClient
        return KombuConsumer(kind(settings, capabilities), close_timeout=common.close_timeout)

    def capabilities(self, settings: Any, common: CommonSettings) -> Capabilities:
        """Return what a producer or consumer with these settings can do."""
        acknowledge = common.guarantee != "at-most-once"
        is_consumer = isinstance(settings, RedisConsumerSettings)
        return Capabilities(
            acknowledge=acknowledge,
            redeliver_on_crash=acknowledge,
            durable=settings.durable,
            retry=acknowledge,
            priority=True,
            ordering=True,
            max_size_bytes=common.max_size_bytes,
            lease=settings.lease if acknowledge and is_consumer else None,
        )


KOMBU = KombuTransport()
REDIS = RedisTransport()
