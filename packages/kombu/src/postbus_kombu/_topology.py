"""What there is at the broker: queues, exchanges, and queues that hold messages back.

Everything is declared when it is first used, over a channel of its own: one that differs from
what is there already costs that channel, and nothing else.
"""

from __future__ import annotations

import math
import re
import time
from typing import TYPE_CHECKING, Any

import attrs

from postbus_kombu._amqp import translated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from postbus_kombu._amqp import Channel, Link

__all__ = ["RESOLUTION", "Route", "Shape", "Topology", "held_back", "named"]

#: The shortest delay, and the step between two, below ten seconds.
RESOLUTION = 0.1
# Delays of more digits share a queue: the later one, at most a tenth later.
_DIGITS = 2
# An unused queue for delays goes after its delay and this time; it is declared again, and so
# kept, when half of that has gone by.
_SPARE = 120.0
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[_\s]+")


@attrs.frozen
class Shape:
    """How the queues of a section are declared."""

    queue_type: str
    arguments: Mapping[str, Any]
    max_priority: int | None = None

    @classmethod
    def of(cls, settings: Any) -> Shape:
        """Return the shape that a producer's or consumer's settings ask for."""
        return cls(settings.queue_type, settings.queue_arguments, settings.max_priority)

    def as_arguments(self) -> dict[str, Any]:
        """Return the arguments of a declaration."""
        arguments: dict[str, Any] = {"x-queue-type": self.queue_type, **self.arguments}
        if self.max_priority is not None:
            arguments["x-max-priority"] = self.max_priority
        return arguments


@attrs.frozen
class Route:
    """Where a message goes: an exchange, its default one for a queue's name, and a key."""

    exchange: str
    key: str


class Topology:
    """What has been declared over one connection. Belongs to the thread of its link."""

    def __init__(self, link: Link, shape: Shape, exchange_type: str = "topic") -> None:
        self._link = link
        self._shape = shape
        self._exchange_type = exchange_type
        self._until: dict[tuple[str, str], float] = {}

    def ensure(self, route: Route) -> bool:
        """Declare where *route* leads, unless that has been done; return whether it was now.

        Raises:
            RejectedError: it is there and differs.
            TransportError: the connection is broken.
        """
        if (route.exchange, route.key) in self._until:
            return False
        if route.exchange:
            self.declare_exchange(route.exchange)
        else:
            self.declare_queue(route.key)
        self._until[route.exchange, route.key] = math.inf
        return True

    def forget(self, route: Route) -> None:
        """Declare it again at its next use: the broker does not know it any more."""
        self._until.pop((route.exchange, route.key), None)

    def declare_queue(self, name: str) -> None:
        """Declare the queue *name*. Raises as `ensure` does."""
        self._declare(name, self._shape.as_arguments())

    def declare_exchange(self, name: str, queue: str = "", keys: tuple[str, ...] = ()) -> None:
        """Declare the exchange *name*, and bind *queue* to it. Raises as `ensure` does."""

        def declare(channel: Channel) -> None:
            channel.exchange_declare(name, self._exchange_type, durable=True, auto_delete=False)
            for key in keys:
                channel.queue_bind(queue, exchange=name, routing_key=key)

        self._on_channel(f"declare the exchange {name}", declare)

    def hold_back(self, route: Route, delay: float) -> tuple[Route, bool]:
        """Return where a message waits for *delay* seconds before it goes along *route*.

        And whether that was declared now.

        Raises:
            TransportError: the queue for that cannot be declared.
        """
        waiting, arguments = held_back(route, delay)
        until, now = self._until.get(("", waiting), 0.0), time.monotonic()
        if until <= now:
            self._declare(waiting, arguments)
            self._until["", waiting] = now + _SPARE / 2
        return Route("", waiting), until == 0.0

    def _declare(self, name: str, arguments: Mapping[str, Any]) -> None:
        def declare(channel: Channel) -> None:
            channel.queue_declare(name, durable=True, auto_delete=False, arguments=dict(arguments))

        self._on_channel(f"declare the queue {name}", declare)

    def _on_channel(self, doing: str, declare: Callable[[Channel], None]) -> None:
        channel = self._link.channel()
        with translated(doing):
            declare(channel)
            channel.close()


def held_back(route: Route, delay: float) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments of the queue that holds messages back for *delay*.

    Its messages run out after the delay, and RabbitMQ then takes them on along *route*; it is a
    quorum queue that lets go of a message when the next one has it.
    """
    milliseconds = _round_up(delay)
    name = f"postbus.delay.{milliseconds}.{route.exchange}.{route.key}"
    return name[:255], {
        "x-queue-type": "quorum",
        "x-message-ttl": milliseconds,
        "x-expires": milliseconds + int(_SPARE * 1000),
        "x-dead-letter-exchange": route.exchange,
        "x-dead-letter-routing-key": route.key,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def _round_up(delay: float) -> int:
    """Return milliseconds, of two digits at most, and never earlier."""
    steps = max(1, math.ceil(round(delay / RESOLUTION, 6)))
    unit = int(10.0 ** max(0, len(str(steps)) - _DIGITS))
    return math.ceil(steps / unit) * unit * int(RESOLUTION * 1000)


def named(template: str, name: str) -> str:
    """Return *template* for a message called *name*."""
    if "{" not in template:
        return template
    kebab = _WORD.sub("-", name.rpartition(".")[2]).lower()
    return template.replace("{name}", name).replace("{kebab}", kebab)
