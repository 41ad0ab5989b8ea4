"""What the contracts have to know about a transport, and a transport that declares otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import attrs

from postbus.transports import (
    MessageConsumer,
    MessageProducer,
    QueryClient,
    Transport,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from postbus.promises import Promise
    from postbus.transports import (
        Capabilities,
        CommonSettings,
        Delivery,
        Reply,
        WaitingMessage,
        WireMessage,
    )

__all__ = ["System", "TransportUnderTest", "declaring"]


class System(Protocol):
    """The system behind a transport, a broker for instance, as a test treats it."""

    def start(self) -> None:
        """Start it again where it was, and return when it can be used."""

    def kill(self) -> None:
        """End it without a warning, and return when it is gone."""


@attrs.frozen(kw_only=True)
class TransportUnderTest:
    """A transport and one queue of it that is empty and that no other test has.

    *producer* and *consumer* are sections, as `[postbus.producers.NAME]` and
    `[postbus.consumers.NAME]` have them. *quick_redelivery* are keys that are added to the
    consumer's section where a test waits for a message whose holder is gone, such as a lease of a
    second. *is_in_process* says that no other process reaches the queue. *system* is None where
    there is nothing to start. *secrets* are texts of the sections that must not be seen anywhere.
    *reference* is where another process finds the record, as `package.module:NAME`; left out, it
    is found by its entry point. *patience* is how many seconds a test waits for something that
    must happen.
    """

    transport: Transport
    producer: Mapping[str, Any]
    consumer: Mapping[str, Any]
    quick_redelivery: Mapping[str, Any] = attrs.Factory(dict[str, Any])
    is_in_process: bool = False
    system: System | None = None
    secrets: Sequence[str] = ()
    reference: str | None = None
    patience: float = 30.0


def declaring(transport: Transport, **changes: Any) -> Transport:
    """Return *transport* with capabilities that say *changes*, and that does what it did.

    For the test of a test: where a transport is not as it declares, its contract has to fail.
    """
    return _Declaring(transport, changes)


class _Declaring(Transport):
    def __init__(self, inner: Transport, changes: Mapping[str, Any]) -> None:
        self.name = inner.name
        self.producer_settings = inner.producer_settings
        self.consumer_settings = inner.consumer_settings
        self._inner = inner
        self._changes = changes

    def make_producer(self, settings: Any, common: CommonSettings) -> MessageProducer:
        inner = self._inner.make_producer(settings, common)
        kind = _Client if isinstance(inner, QueryClient) else _Producer
        return kind(inner, attrs.evolve(inner.capabilities, **self._changes))

    def make_consumer(self, settings: Any, common: CommonSettings) -> MessageConsumer:
        inner = self._inner.make_consumer(settings, common)
        return _Consumer(inner, attrs.evolve(inner.capabilities, **self._changes))

    def capabilities(self, settings: Any, common: CommonSettings) -> Capabilities:
        return attrs.evolve(self._inner.capabilities(settings, common), **self._changes)


class _Producer(MessageProducer):
    def __init__(self, inner: MessageProducer, capabilities: Capabilities) -> None:
        self.capabilities = capabilities
        self._inner: Any = inner

    def send_many(self, messages: Sequence[WireMessage]) -> None:
        self._inner.send_many(messages)

    def close(self) -> None:
        self._inner.close()


class _Client(_Producer):
    def request(self, message: WireMessage, reply: Promise[Reply]) -> None:
        self._inner.request(message, reply)


class _Consumer(MessageConsumer):
    def __init__(self, inner: MessageConsumer, capabilities: Capabilities) -> None:
        self.capabilities = capabilities
        self._inner = inner

    async def receive(self, max_messages: int) -> Sequence[Delivery]:
        return await self._inner.receive(max_messages)

    async def aclose(self) -> None:
        await self._inner.aclose()

    def count(self) -> Mapping[str, int]:
        return self._inner.count()

    def peek(self, queue: str, *, offset: int = 0, limit: int = 20) -> Sequence[WaitingMessage]:
        return self._inner.peek(queue, offset=offset, limit=limit)

    def purge(self, queue: str) -> int:
        return self._inner.purge(queue)
