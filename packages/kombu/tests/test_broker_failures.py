"""What becomes of messages when the broker is killed, or takes nothing more."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import attrs
import pytest

from postbus.errors import PartiallySentError, TimedOutError, TransportError
from postbus.transports import WireMessage
from postbus_kombu import RabbitMQConsumer, RabbitMQProducer

T = TypeVar("T")
MakeProducer = Callable[..., RabbitMQProducer]
MakeConsumer = Callable[..., RabbitMQConsumer]
MakeMessage = Callable[..., WireMessage]
# What conftest.py calls OwnBroker.
OwnBroker = Any
PATIENCE = 20.0
COUNT = 3_000


def run(test: Callable[[], Awaitable[T]]) -> T:
    async def limited() -> T:
        async with asyncio.timeout(2 * PATIENCE):
            return await test()

    return asyncio.run(limited())


@attrs.define
class Traffic:
    """Messages through one queue: what was accepted, what arrived, how many sends raised."""

    sender: RabbitMQProducer
    receiver: RabbitMQConsumer
    message: MakeMessage
    accepted: set[bytes] = attrs.Factory(set[bytes])
    received: set[bytes] = attrs.Factory(set[bytes])
    raised: int = 0

    def send(self, begun: threading.Semaphore) -> None:
        bodies = [b"%d" % number for number in range(COUNT)]
        for start in range(0, COUNT, 50):
            batch = bodies[start : start + 50]
            while not self.accepted.issuperset(batch):
                missing = [body for body in batch if body not in self.accepted]
                failed: set[int] = set()
                try:
                    self.sender.send_many([self.message(body) for body in missing])
                except PartiallySentError as error:
                    failed = set(error.failed)
                    self.raised += 1
                self.accepted.update(
                    body for index, body in enumerate(missing) if index not in failed
                )
            if start == COUNT // 4:
                begun.release()

    async def receive(self) -> None:
        while len(self.received) < COUNT:
            # The worker backs off; here the next call has to do.
            with suppress(TransportError):
                for delivery in await self.receiver.receive(50):
                    self.received.add(delivery.body)
                    delivery.ack()
        await self.receiver.aclose()


def test_what_was_confirmed_survives_a_killed_broker(
    own_broker: OwnBroker,
    queue: str,
    producer: MakeProducer,
    consumer: MakeConsumer,
    message: MakeMessage,
) -> None:
    """A send that returned arrives, and both sides go on with the broker that comes after."""
    begun = threading.Semaphore(0)
    both: list[Traffic] = []
    for queue_type in ("quorum", "classic"):
        name, shape = f"{queue}-{queue_type}", {"url": own_broker.url, "queue_type": queue_type}
        both.append(
            Traffic(producer(queue=name, **shape), consumer(queues=(name,), **shape), message)
        )
        both[-1].sender.send(message(b"0"))
    # What the broker knows of a new quorum queue is on the disk three seconds later only.
    own_broker.control(
        "eval", "[dets:sync(Table) || Table <- dets:all()], mnesia:sync_log(), mnesia:dump_log()."
    )

    def kill_and_start() -> None:
        for _ in both:
            begun.acquire(timeout=PATIENCE)
        own_broker.kill()
        own_broker.start()

    async def receive_all() -> None:
        await asyncio.gather(*(each.receive() for each in both))

    with ThreadPoolExecutor(3) as pool:
        working = [pool.submit(kill_and_start), *(pool.submit(each.send, begun) for each in both)]
        run(receive_all)
        for future in working:
            future.result(PATIENCE)

    assert sum(each.raised for each in both) > 0, "the kill hit no send"
    for each in both:
        assert each.received >= each.accepted


def test_a_blocked_broker_is_an_error_in_time(
    own_broker: OwnBroker, producer: MakeProducer, message: MakeMessage
) -> None:
    """A broker that is out of memory takes nothing: the send says so, and a later one succeeds."""
    sender = producer(url=own_broker.url, confirm_timeout=1.0, connect_timeout=PATIENCE)
    sender.send(message())
    alarm = "{{resource_limit, memory, node()}, []}"
    own_broker.control("eval", f"rabbit_alarm:set_alarm({alarm}).")
    start = time.monotonic()
    with pytest.raises(TimedOutError, match="blocked"):
        sender.send(message())
    with pytest.raises(PartiallySentError) as caught:
        sender.send_many([message(b"x" * 100_000) for _ in range(200)])
    assert len(caught.value.failed) == 200
    assert time.monotonic() - start < PATIENCE / 2
    own_broker.control("eval", "rabbit_alarm:clear_alarm({resource_limit, memory, node()}).")
    sender.send(message())
