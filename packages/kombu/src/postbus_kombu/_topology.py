"""What has to be there at the broker: queues, exchanges, bindings; and how that stands."""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal

import attrs

from postbus.errors import RejectedError
from postbus.transports import TopologyPart
from postbus_kombu._amqp import Link, amqp, translated

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from postbus_kombu._amqp import Address, Channel
    from postbus_kombu.settings import RabbitMQConsumerSettings, RabbitMQProducerSettings

__all__ = [
    "Part",
    "Route",
    "Shape",
    "declare",
    "examine",
    "named",
    "parts_of_consumer",
    "parts_of_producer",
]

_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[_\s]+")


@attrs.frozen
class Route:
    """Where a message goes: an exchange, its default one for a queue's name, and a key."""

    exchange: str
    key: str


@attrs.frozen
class Part:
    """A queue, an exchange of a type, or what binds a queue, or an exchange, to one with a key."""

    kind: Literal["queue", "exchange", "binding", "shortcut"]
    name: str
    arguments: Mapping[str, Any] = attrs.Factory(dict[str, Any])
    type: str = ""
    exchange: str = ""
    key: str = ""

    def __str__(self) -> str:
        return f"{self.name} to {self.exchange} by {self.key}" if self.key else self.name

    def declare(self, channel: Channel, *, passive: bool = False) -> None:
        """Declare it; *passive* fails where it is not there."""
        if self.kind == "binding":
            channel.queue_bind(self.name, exchange=self.exchange, routing_key=self.key)
        elif self.kind == "shortcut":
            channel.exchange_bind(self.name, source=self.exchange, routing_key=self.key)
        elif self.kind == "exchange":
            channel.exchange_declare(
                self.name, self.type, passive=passive, durable=True, auto_delete=False
            )
        else:
            arguments = dict(self.arguments)
            channel.queue_declare(
                self.name, passive=passive, durable=True, auto_delete=False, arguments=arguments
            )


@attrs.frozen
class Shape:
    """How the queues and exchanges of a section are declared."""

    queue_type: str = "quorum"
    arguments: Mapping[str, Any] = attrs.Factory(dict[str, Any])
    exchange_type: str = "topic"
    dead_letter_exchange: str = ""
    dead_letter_queue: str = ""

    @classmethod
    def of(cls, settings: Any) -> Shape:
        """Return the shape that a producer's or consumer's settings ask for."""
        arguments = {
            "x-max-priority": settings.max_priority,
            "x-max-length": settings.max_length,
            "x-max-length-bytes": settings.max_length_bytes,
            "x-overflow": settings.overflow,
            **settings.queue_arguments,
        }
        exchange, queue = settings.dead_letter_exchange, settings.dead_letter_queue
        if exchange or queue:
            arguments["x-dead-letter-exchange"] = exchange
            arguments["x-dead-letter-routing-key"] = None if exchange else queue
            if settings.queue_type == "quorum" and settings.overflow == "reject-publish":
                # Then it lets go of a dead letter when the next queue has it.
                arguments["x-dead-letter-strategy"] = "at-least-once"
        wanted = {name: value for name, value in arguments.items() if value is not None}
        return cls(settings.queue_type, wanted, settings.exchange_type, exchange, queue)

    def queue(self, name: str) -> list[Part]:
        """Return the queue *name*, after what takes its dead letters."""
        parts: list[Part] = []
        exchange, letters = self.dead_letter_exchange, self.dead_letter_queue
        if exchange:
            parts.append(Part("exchange", exchange, type="topic"))
        if letters:
            parts.append(Part("queue", letters, {"x-queue-type": self.queue_type}))
        if exchange and letters:
            parts.append(Part("binding", letters, exchange=exchange, key="#"))
        arguments = {"x-queue-type": self.queue_type, **self.arguments}
        return [*parts, Part("queue", name, arguments)]

    def exchange(self, name: str, queue: str = "", keys: Sequence[str] = ()) -> list[Part]:
        """Return the exchange *name*, and what binds *queue* to it."""
        bindings = [Part("binding", queue, exchange=name, key=key) for key in keys]
        return [Part("exchange", name, type=self.exchange_type), *bindings]


def parts_of_producer(settings: RabbitMQProducerSettings) -> list[Part]:
    """Return what a producer needs; nothing where its queue is named by the message."""
    shape = Shape.of(settings)
    if settings.exchange:
        return shape.exchange(settings.exchange)
    return [] if "{" in settings.queue else shape.queue(settings.queue)


def parts_of_consumer(settings: RabbitMQConsumerSettings) -> list[Part]:
    """Return what a consumer needs."""
    shape = Shape.of(settings)
    parts = [part for queue in settings.queues for part in shape.queue(queue)]
    if settings.exchange:
        for queue in settings.queues:
            parts += shape.exchange(settings.exchange, queue, settings.bindings)
    return list({str(part): part for part in parts}.values())


def examine(address: Address, parts: Sequence[Part], *, make: bool) -> list[TopologyPart]:
    """Return how *parts* stand at the broker; with *make*, those that were missing are made.

    Raises:
        TransportError: the broker cannot be reached.
    """
    with closing(Link(address)) as link:
        return [_examined(link, part, make=make) for part in parts]


def _examined(link: Link, part: Part, *, make: bool) -> TopologyPart:
    name = str(part)
    if part.kind == "binding":
        # The protocol has no question for it; to bind again changes nothing.
        if make:
            declare(link, part)
        return TopologyPart(part.kind, name, "there" if make else "unknown")
    try:
        declare(link, part, passive=True)
    except RejectedError as error:
        if not isinstance(error.__cause__, amqp.NotFound):
            raise
        if make:
            declare(link, part)
        return TopologyPart(part.kind, name, "made" if make else "missing")
    try:
        # It is there, so that this changes nothing, but says what differs.
        declare(link, part)
    except RejectedError as error:
        return TopologyPart(part.kind, name, "differs", error.message)
    return TopologyPart(part.kind, name, "there")


def declare(link: Link, *parts: Part, passive: bool = False) -> None:
    """Declare *parts*, over a channel of its own: one that differs costs that channel alone.

    Raises:
        RejectedError: it is there and differs; *passive*: it is not there.
        TransportError: the connection is broken.
    """
    channel = link.channel()
    for part in parts:
        with translated(f"declare the {part.kind} {part}"):
            part.declare(channel, passive=passive)
    with translated("close a channel"):
        channel.close()


def named(template: str, name: str) -> str:
    """Return *template* for a message called *name*."""
    if "{" not in template:
        return template
    kebab = _WORD.sub("-", name.rpartition(".")[2]).lower()
    return template.replace("{name}", name).replace("{kebab}", kebab)
