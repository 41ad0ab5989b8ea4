"""The two sides of a queue, made from their sections as a configuration would make them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from postbus.containers._closing import Closer
from postbus.containers._section import TransportSection
from postbus.messages import new_id
from postbus.transports import WireMessage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from postbus.transports import MessageConsumer, MessageProducer, Transport

__all__ = ["NAME", "Sides", "message", "question", "text_of"]

#: What the messages of the contracts are called.
NAME = "postbus.testing.knock"


def message(body: bytes, **fields: Any) -> WireMessage:
    """Return a message of *body* with an id of its own."""
    return WireMessage(body, {"name": NAME}, new_id(), NAME, **fields)


def question(text: str = "") -> WireMessage:
    """Return a query, in the wire format: some transports keep the way back in its headers."""
    message_id = new_id()
    fields = {
        "message_name": NAME,
        "uuid": message_id,
        "payload": {"text": text},
        "metadata": {},
        "created_at": "2024-05-17T09:30:12.250000",
        "headers": {"v": 1},
    }
    return WireMessage(msgspec.json.encode(fields), {"name": NAME}, message_id, NAME)


def text_of(body: bytes) -> str:
    """Return the text of a `question` that arrived."""
    return str(msgspec.json.decode(body)["payload"]["text"])


@attrs.frozen
class Sides:
    """Makes producers and consumers of one queue. Whoever asks for one closes it.

    Each method raises `ConfigurationError` for a section that cannot be.
    """

    transport: Transport
    producer: Mapping[str, Any]
    consumer: Mapping[str, Any]

    def make_producer(self, **keys: Any) -> MessageProducer:
        """Make a producer, with *keys* in its section."""
        return self._read({**self.producer, **keys}).make_producer()

    def make_consumer(self, **keys: Any) -> MessageConsumer:
        """Make a consumer, with *keys* in its section."""
        section = {**self.producer, "consumer": {**self.consumer, **keys}}
        return self._read(section).make_consumer()

    def _read(self, section: Mapping[str, Any]) -> TransportSection:
        return TransportSection(self.transport, section, Closer())
