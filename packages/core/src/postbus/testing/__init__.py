"""Fakes for the tests of an application, and the contracts that every transport keeps.

The fakes need no extra: `RecordingProducer` takes the place of a producer, `FakeConsumer` that of
a consumer. The memory transport is the third: `reset_memory` empties it between tests, and
`run_worker_until_idle` has a worker handle what waits there.

The contracts need `postbus[testing]`, which brings pytest: `ProducerContract`, `ConsumerContract`,
`QueryContract` and `ContainerContract` are classes of tests that a transport's package derives its
own from. `TransportUnderTest` tells the first three what to test.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from postbus.memory import reset as reset_memory
from postbus.testing._consumers import FakeConsumer, FakeDelivery
from postbus.testing._failpoints import FAILPOINTS, failpoint
from postbus.testing._producers import RecordingProducer
from postbus.testing._workers import run_worker_until_idle

if TYPE_CHECKING:
    from postbus.testing._containers import ContainerContract
    from postbus.testing._contracts._consumers import ConsumerContract
    from postbus.testing._contracts._producers import ProducerContract
    from postbus.testing._contracts._queries import QueryContract
    from postbus.testing._contracts._under_test import System, TransportUnderTest, declaring

__all__ = [
    "FAILPOINTS",
    "ConsumerContract",
    "ContainerContract",
    "FakeConsumer",
    "FakeDelivery",
    "ProducerContract",
    "QueryContract",
    "RecordingProducer",
    "System",
    "TransportUnderTest",
    "declaring",
    "failpoint",
    "reset_memory",
    "run_worker_until_idle",
]

_CONTRACTS = {
    "ConsumerContract": "_contracts._consumers",
    "ContainerContract": "_containers",
    "ProducerContract": "_contracts._producers",
    "QueryContract": "_contracts._queries",
    "System": "_contracts._under_test",
    "TransportUnderTest": "_contracts._under_test",
    "declaring": "_contracts._under_test",
}


def __getattr__(name: str) -> object:
    """Import a contract when it is asked for: only then is pytest needed."""
    if name in _CONTRACTS:
        return getattr(import_module(f"{__name__}.{_CONTRACTS[name]}"), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
