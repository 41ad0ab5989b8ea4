"""What stands beside a body at RabbitMQ: properties that any AMQP client reads."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from postbus.errors import UnsupportedError
from postbus.transports import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from postbus.transports import Capabilities, WireMessage

__all__ = [
    "DIRECT_REPLY",
    "OWN_REPLIES",
    "Content",
    "answer_of",
    "check",
    "encode",
    "own_reply_queue",
    "properties_of",
    "reply_channel",
    "reply_type",
]

#: RabbitMQ's own pseudo queue: answers come to the channel that asked.
DIRECT_REPLY = "amq.rabbitmq.reply-to"
#: How the names of our own queues for answers begin.
OWN_REPLIES = "postbus.reply."
_PERSISTENT = 2
# The one thing that it can lack.
_SYSTEM = 'a queue without queue_type = "classic" and max_priority = 9'
_LONGEST_SHORT_TEXT = 255
# A month, in seconds: RabbitMQ counts in 32 bits of milliseconds.
_LONGEST_DELAY = 30 * 86_400.0
_RESULT, _PROBLEM = "postbus.result", "postbus.problem"
# What a question may name as the place of its answer: nothing that somebody else relies on.
_REPLY_TO = re.compile(
    r"amq\.rabbitmq\.reply-to\.[^\0]+|amq\.gen-[A-Za-z0-9_=+/-]+|postbus\.reply\.[a-z0-9-]+"
).fullmatch


def check(message: WireMessage, capabilities: Capabilities) -> None:
    """Refuse what RabbitMQ, as it is configured, cannot do for *message*.

    Raises:
        RejectedError: the body is too large, or the priority is none.
        UnsupportedError: *capabilities* deny what it asks for.
    """
    refusal = capabilities.refusal(message, _SYSTEM)
    if refusal is not None:
        raise refusal
    if message.delay:
        about = f"{message.name} {message.id}"
        if message.delay > _LONGEST_DELAY:
            raise UnsupportedError(f"{about}: the longest delay is {_LONGEST_DELAY:.0f} s")
        if message.expires_at is not None:
            raise UnsupportedError(f"{about}: RabbitMQ forgets an expiry while it delays")


def properties_of(message: WireMessage) -> dict[str, Any]:
    """Return the properties of *message*; what is too long for one is left out."""
    properties: dict[str, Any] = {
        "content_type": "application/json",
        "delivery_mode": _PERSISTENT,
        "message_id": message.id,
        "timestamp": int(time.time()),
    }
    if _fits(message.name):
        properties["type"] = message.name
    if message.priority is not None:
        properties["priority"] = message.priority
    if message.expires_at is not None:
        left = message.expires_at - datetime.now(UTC)
        properties["expiration"] = str(max(0, int(left.total_seconds() * 1000)))
    headers = {key: value for key, value in message.headers.items() if _fits(key)}
    if headers:
        properties["application_headers"] = headers
    return properties


def _fits(text: str) -> bool:
    return len(text.encode()) <= _LONGEST_SHORT_TEXT


def reply_channel(properties: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the queue and the id that an answer goes to; None where nobody asked."""
    queue = properties.get("reply_to")
    if not isinstance(queue, str) or _REPLY_TO(queue) is None:
        return None
    return queue, str(properties.get("correlation_id") or properties.get("message_id") or "")


def own_reply_queue(properties: Mapping[str, Any]) -> tuple[str, str] | None:
    """Do the same where no broker but us names such queues."""
    found = reply_channel(properties)
    return found if found is not None and found[0].startswith(OWN_REPLIES) else None


def reply_type(reply: Reply) -> str:
    """Return the property `type` of an answer."""
    return _PROBLEM if reply.is_error else _RESULT


def answer_of(body: bytes, properties: Mapping[str, Any]) -> Reply:
    """Return the answer that a message is; one without our mark is a result."""
    return Reply(body, is_error=properties.get("type") == _PROBLEM)


class Content:
    """A body and its properties on the wire, as py-amqp's writer of frames wants them."""

    __slots__ = ("body", "encoded")

    def __init__(self, body: bytes, encoded: bytes) -> None:
        self.body = body
        self.encoded = encoded

    def _serialize_properties(self) -> bytes:
        return self.encoded


def encode(properties: Mapping[str, Any]) -> bytes:
    """Return properties as AMQP 0-9-1 has them: a bit for each that is there, then their values.

    py-amqp does the same for any class of content, at five times the cost.
    """
    flags = 0
    parts = [b""]
    for name, flag, write in _FIELDS:
        value = properties.get(name)
        if value is not None:
            flags |= flag
            parts.append(write(value))
    parts[0] = flags.to_bytes(2, "big")
    return b"".join(parts)


def _short_text(text: str) -> bytes:
    encoded = text.encode()
    return len(encoded).to_bytes(1, "big") + encoded


def _table(headers: Mapping[str, str]) -> bytes:
    fields = b"".join(
        _short_text(name) + b"S" + len(encoded).to_bytes(4, "big") + encoded
        for name, encoded in ((name, text.encode()) for name, text in headers.items())
    )
    return len(fields).to_bytes(4, "big") + fields


def _octet(number: int) -> bytes:
    return number.to_bytes(1, "big")


def _long(number: int) -> bytes:
    return number.to_bytes(8, "big")


# In the order of the specification, 4.2.6.1; each flag is a bit of its own.
_FIELDS: tuple[tuple[str, int, Callable[[Any], bytes]], ...] = (
    ("content_type", 1 << 15, _short_text),
    ("application_headers", 1 << 13, _table),
    ("delivery_mode", 1 << 12, _octet),
    ("priority", 1 << 11, _octet),
    ("correlation_id", 1 << 10, _short_text),
    ("reply_to", 1 << 9, _short_text),
    ("expiration", 1 << 8, _short_text),
    ("message_id", 1 << 7, _short_text),
    ("timestamp", 1 << 6, _long),
    ("type", 1 << 5, _short_text),
)
