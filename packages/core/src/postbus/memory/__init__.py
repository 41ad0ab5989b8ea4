"""The in-process transport: queues shared by the whole process, by address.

It is the reference implementation of the transport interface and a verified fake: what a test
proves over memory holds over a broker. It always carries bytes, never the objects themselves.
Nothing survives the process; after a fork the child starts with empty queues.
"""

from __future__ import annotations

from postbus.memory._consumer import MemoryConsumer, MemoryDelivery
from postbus.memory._producer import MemoryProducer
from postbus.memory._queues import reset
from postbus.memory._transport import (
    MEMORY,
    MemoryConsumerSettings,
    MemoryProducerSettings,
    MemoryTransport,
)

__all__ = [
    "MEMORY",
    "MemoryConsumer",
    "MemoryConsumerSettings",
    "MemoryDelivery",
    "MemoryProducer",
    "MemoryProducerSettings",
    "MemoryTransport",
    "reset",
]
