"""Fakes for the tests of an application; they need no extra.

`RecordingProducer` takes the place of a producer, `FakeConsumer` that of a consumer. The memory
transport is the third: `reset_memory` empties it between tests.
"""

from __future__ import annotations

from postbus.memory import reset as reset_memory
from postbus.testing._consumers import FakeConsumer, FakeDelivery
from postbus.testing._producers import RecordingProducer

__all__ = ["FakeConsumer", "FakeDelivery", "RecordingProducer", "reset_memory"]
