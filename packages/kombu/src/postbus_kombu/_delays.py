"""Queues that hold messages back, so that RabbitMQ delays them and no process of ours has to live.

A short delay has a queue of its own, where messages run out and go on. A long one is a sum of
powers of two: a ladder, shared by all, has a queue for each, and the bits of the delay, which
stand in the routing key, say which of them a message waits in. From the last it goes on by a
queue of its destination, which holds nothing back.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

from postbus_kombu._topology import Part, Route

__all__ = ["LONG_DELAY", "RESOLUTION", "ladder", "landing", "on_ladder", "waiting_room"]

#: The shortest delay, and the step between two.
RESOLUTION = 0.1
#: From here on delays go by the ladder: below it they are so few that each may have a queue, which
#: stays.
LONG_DELAY = 1.0
# More than a month.
_RUNGS = 25
_LADDER = "postbus.ladder."
_EXIT = f"{_LADDER}exit"
_LONGEST_NAME_BYTES = 255


def waiting_room(route: Route, delay: float) -> Part:
    """Return the queue where a short *delay* is waited for, before *route*.

    It stays: no declaring keeps a quorum queue with `x-expires` alive, and what it holds when it
    goes is lost (seen with RabbitMQ 3.10).
    """
    milliseconds = int(_steps(delay) * RESOLUTION * 1000)
    name = _name(f"postbus.delay.{milliseconds}", route)
    return Part("queue", name, {**_on_to(route), "x-message-ttl": milliseconds})


def landing(route: Route) -> list[Part]:
    """Return where the ladder ends for *route*."""
    name = _name("postbus.delayed", route)
    queue = Part("queue", name, {**_on_to(route), "x-message-ttl": 0})
    return [queue, Part("binding", name, exchange=_EXIT, key=f"#.{_word(route)}")]


def on_ladder(route: Route, delay: float) -> Route:
    """Return where a message with a long *delay* gets on the ladder, to leave it for *route*."""
    bits = format(_steps(delay), f"0{_RUNGS}b")
    return Route(_rung(_RUNGS - 1), ".".join((*bits, _word(route))))


def ladder() -> list[Part]:
    """Return the ladder, from below."""
    parts = [Part("exchange", _EXIT, type="topic")]
    below = _EXIT
    for rung in range(_RUNGS):
        name = _rung(rung)
        above = "*." * (_RUNGS - 1 - rung)
        milliseconds = int(2**rung * RESOLUTION * 1000)
        parts += [
            Part("exchange", name, type="topic"),
            Part("queue", name, {**_on_to(Route(below, "")), "x-message-ttl": milliseconds}),
            Part("binding", name, exchange=name, key=f"{above}1.#"),
            Part("shortcut", below, exchange=name, key=f"{above}0.#"),
        ]
        below = name
    return parts


def _rung(rung: int) -> str:
    return f"{_LADDER}{rung:02}"


def _on_to(route: Route) -> dict[str, Any]:
    """Return the arguments of a quorum queue whose messages go on along *route*.

    It lets go of a message when the next queue has it.
    """
    arguments = {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": route.exchange,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    # Else it keeps the key that it came with.
    return {**arguments, "x-dead-letter-routing-key": route.key} if route.key else arguments


def _steps(delay: float) -> int:
    return max(1, math.ceil(round(delay / RESOLUTION, 6)))


def _word(route: Route) -> str:
    """Return a word for *route* that may stand in a routing key, whatever its names are."""
    return hashlib.blake2b(f"{route.exchange}\0{route.key}".encode(), digest_size=16).hexdigest()


def _name(prefix: str, route: Route) -> str:
    """Return a name for people, or for long names one that is as unique."""
    name = f"{prefix}.{route.exchange}.{route.key}"
    return name if len(name.encode()) <= _LONGEST_NAME_BYTES else f"{prefix}.{_word(route)}"
