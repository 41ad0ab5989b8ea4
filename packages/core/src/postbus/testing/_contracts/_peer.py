"""A process of its own on one queue, for a test to kill: `python -m … '{"role": "hold", …}'`.

It says when it is ready, and what it has done, a line each. Then it waits to be killed, or for
the end of its input.
"""

from __future__ import annotations

import asyncio
import json
import os
import pkgutil
import sys
from typing import TYPE_CHECKING, Any

from postbus.discovery import find_transport
from postbus.testing._contracts._sides import Sides, message

if TYPE_CHECKING:
    from collections.abc import Callable


def hold(sides: Sides, bodies: list[str]) -> None:
    """Receive as many messages as there are *bodies*, and settle none."""

    async def receive() -> None:
        consumer, held = sides.make_consumer(), 0
        while held < len(bodies):
            held += len(await consumer.receive(len(bodies) - held))
        say("held")
        await asyncio.to_thread(sys.stdin.read)

    asyncio.run(receive())


def send(sides: Sides, bodies: list[str]) -> None:
    """Send *bodies*, and be killed before anything is closed."""
    producer = sides.make_producer()
    producer.send_many([message(body.encode()) for body in bodies])
    say("sent")
    sys.stdin.read()


def fork(sides: Sides, bodies: list[str]) -> None:
    """Send the first of *bodies* before a fork, the second in the child, the third after it."""
    first, second, third = (message(body.encode()) for body in bodies)
    producer = sides.make_producer()
    producer.send(first)
    child = os.fork()
    if child == 0:
        failed = True
        try:
            producer.send(second)
            producer.close()
            failed = False
        finally:
            os._exit(failed)
    status = os.waitpid(child, 0)[1]
    producer.send(third)
    producer.close()
    say("sent" if status == 0 else "the child could not send")


def say(what: str) -> None:
    """Tell the test, at once."""
    print(what, flush=True)  # noqa: T201  the test reads it


ROLES: dict[str, Callable[[Sides, list[str]], None]] = {"hold": hold, "send": send, "fork": fork}


def main(argument: str) -> None:
    """Do what the JSON in *argument* says."""
    said: dict[str, Any] = json.loads(argument)
    reference = said["reference"]
    transport = (
        find_transport(said["transport"]) if reference is None else pkgutil.resolve_name(reference)
    )
    say("ready")
    ROLES[said["role"]](Sides(transport, said["producer"], said["consumer"]), said["bodies"])


if __name__ == "__main__":
    main(sys.argv[1])
