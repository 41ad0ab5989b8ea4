"""`MemoryContainer`: the transport that stays inside the process, in a container of its own."""

from __future__ import annotations

from typing import ClassVar

from postbus.containers._transport import TransportContainer
from postbus.memory import MEMORY
from postbus.transports import Transport


class MemoryContainer(TransportContainer):
    """Producer, consumer, plugin, router and buses over the transport `memory`.

    >>> with MemoryContainer(config={"address": "mail"}) as memory:
    ...     memory.settings().address
    'mail'
    """

    transport: ClassVar[Transport] = MEMORY
