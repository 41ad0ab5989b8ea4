"""Closing a consumer whose client has not come so far as to receive."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from postbus.errors import ClosedError
from postbus.threaded import BlockingClient, Received, Settlement, ThreadedConsumer
from postbus.transports import Capabilities

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from postbus.errors import TransportError


class ConnectingClient(BlockingClient[str]):
    """Connects to something that takes the connection and never says a word."""

    def __init__(self) -> None:
        self.source = "silent"
        self.capabilities = Capabilities(acknowledge=True)
        self.is_connecting = threading.Event()
        self.give_up = threading.Event()
        self.closed = threading.Event()

    def open(self) -> None:
        self.is_connecting.set()
        assert self.give_up.wait(30.0)

    def poll(self, max_messages: int, seconds: float) -> Sequence[Received[str]]:
        return []

    def settle(self, settlements: Sequence[Settlement[str]]) -> Mapping[int, TransportError]:
        return {}

    def close(self) -> None:
        self.closed.set()


def test_a_client_that_is_still_connecting_does_not_hold_up_the_close() -> None:
    """It has nothing to carry out; when it is through, its thread closes it."""
    client = ConnectingClient()
    took = 0.0

    async def scenario() -> None:
        nonlocal took
        consumer = ThreadedConsumer(client, close_timeout=30.0)
        receiving = asyncio.create_task(consumer.receive(1))
        await asyncio.to_thread(client.is_connecting.wait, 30.0)
        began = time.monotonic()
        await consumer.aclose()
        took = time.monotonic() - began
        with suppress(ClosedError):
            await receiving

    asyncio.run(scenario())
    client.give_up.set()

    assert took < 15.0
    assert client.closed.wait(30.0)
