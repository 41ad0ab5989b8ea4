"""Receiving from RabbitMQ: queues that come and go, fairness, acknowledgements, heartbeats."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any, TypeVar

import pytest

from postbus.errors import (
    ConnectionFailedError,
    RejectedError,
    TransportError,
)
from postbus.transports import Delivery, WireMessage
from postbus_kombu import RabbitMQConsumer, RabbitMQProducer

# It has no types.
pika: Any = import_module("pika")
T = TypeVar("T")
MakeProducer = Callable[..., RabbitMQProducer]
MakeConsumer = Callable[..., RabbitMQConsumer]
MakeMessage = Callable[..., WireMessage]
PATIENCE = 30.0


def run(test: Callable[[], Awaitable[T]]) -> T:
    async def limited() -> T:
        async with asyncio.timeout(2 * PATIENCE):
            return await test()

    return asyncio.run(limited())


async def collect(receiver: RabbitMQConsumer, count: int, most: int = 10) -> list[Delivery]:
    deliveries: list[Delivery] = []
    while len(deliveries) < count:
        deliveries += await receiver.receive(min(most, count - len(deliveries)))
    return deliveries


async def bodies(receiver: RabbitMQConsumer, count: int) -> list[bytes]:
    received = await collect(receiver, count)
    for each in received:
        each.ack()
    await receiver.aclose()
    return [each.body for each in received]


@pytest.fixture
def channel(url: str) -> Iterator[Any]:
    """A channel of pika's."""
    with pika.BlockingConnection(pika.URLParameters(url.rstrip("/") + "/%2f")) as connection:
        yield connection.channel()


class TestReceiving:
    """Queues that come and go, and acknowledgements out of order."""

    def test_a_deleted_queue_is_declared_and_consumed_again(
        self,
        queue: str,
        channel: Any,
        producer: MakeProducer,
        consumer: MakeConsumer,
        message: MakeMessage,
    ) -> None:
        """The consumer never stays up without consuming (T13)."""
        sender, receiver = producer(), consumer()

        async def scenario() -> bytes:
            sender.send(message(b"1"))
            (held,) = await receiver.receive(1)
            waiting = asyncio.ensure_future(receiver.receive(1))
            channel.queue_delete(queue)
            with pytest.raises(TransportError, match=r"cancelled|NOT_FOUND"):
                await waiting
            assert held.lost
            waiting = asyncio.ensure_future(receiver.receive(1))
            while not waiting.done():
                try:
                    await asyncio.to_thread(sender.send, message(b"2"))
                except RejectedError:
                    continue
                break
            (again,) = await waiting
            await receiver.aclose()
            return again.body

        assert run(scenario) == b"2"

    def test_several_queues_are_taken_from_in_turn(
        self, queue: str, channel: Any, consumer: MakeConsumer, message: MakeMessage, url: str
    ) -> None:
        """A long queue keeps nobody waiting (K16)."""
        names = [queue, f"{queue}-short", f"{queue}-empty"]
        receiver = consumer(queues=tuple(names), queue_type="classic")
        for name, count in zip(names, (50, 3, 0), strict=True):
            channel.queue_declare(name, durable=True, arguments={"x-queue-type": "classic"})
            for number in range(count):
                channel.basic_publish("", name, b"%d %s" % (number, name.encode()))

        async def scenario() -> list[bytes]:
            received = await collect(receiver, 53, most=4)
            for each in received:
                each.ack()
            await receiver.aclose()
            return [each.body for each in received]

        received = run(scenario)
        short = [index for index, body in enumerate(received) if body.endswith(b"-short")]
        assert len(short) == 3
        assert short[-1] < 12
        for name in names[1:]:
            channel.queue_delete(name)

    def test_queues_of_an_exchange_all_get_what_they_want(
        self,
        url: str,
        queue: str,
        channel: Any,
        producer: MakeProducer,
        consumer: MakeConsumer,
        message: MakeMessage,
    ) -> None:
        """One message, two queues; the third wants other keys. A retry stays in its queue."""
        exchange, names = f"{queue}-exchange", [queue, f"{queue}-2", f"{queue}-3"]
        keys = (("shop.*",), ("#",), ("other.#",))
        receivers = [
            consumer(queues=(name,), exchange=exchange, bindings=wanted, queue_type="classic")
            for name, wanted in zip(names, keys, strict=True)
        ]
        sender = producer(exchange=exchange)

        async def scenario() -> list[list[bytes]]:
            waiting = [asyncio.ensure_future(each.receive(1)) for each in receivers]
            await asyncio.to_thread(wait_for_consumers, url, names)
            await asyncio.to_thread(sender.send, message(b"1", delay=0.1))
            found = [await waiting[0], await waiting[1]]
            found[0][0].retry(message(b"retried"))
            again = await receivers[0].receive(1)
            waiting[2].cancel()
            for each in receivers:
                await each.aclose()
            return [[delivery.body for delivery in part] for part in (*found, again)]

        assert run(scenario) == [[b"1"], [b"1"], [b"retried"]]
        for name in names:
            channel.queue_delete(name)
        channel.exchange_delete(exchange)

    def test_a_queue_that_cannot_be_consumed_from_yet_is_tried_again(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage
    ) -> None:
        """The broker closes the connection where somebody else declares the queue right now."""
        sender, receiver = producer(), consumer()
        client: Any = receiver._client
        subscribe, closed = client._subscribe, threading.Event()

        def closed_once(*arguments: Any) -> None:
            if not closed.is_set():
                closed.set()
                client._link._socket.shutdown(socket.SHUT_RDWR)
            subscribe(*arguments)

        client._subscribe = closed_once
        sender.send(message(b"1"))

        async def scenario() -> list[bytes]:
            (held,) = await receiver.receive(1)
            closed.clear()
            with pytest.raises(ConnectionFailedError):
                await receiver.receive(1)
            assert held.lost
            return await bodies(receiver, 1)

        assert run(scenario) == [b"1"]
        assert closed.is_set()

    def test_acknowledged_out_of_order_only_the_rest_comes_back(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage
    ) -> None:
        """One frame acknowledges up to the first that is held, and nothing beyond it."""
        sender, receiver, other = producer(), consumer(), consumer()
        sender.send_many([message(b"%d" % number) for number in range(6)])

        async def scenario() -> list[bytes]:
            held = await collect(receiver, 6)
            for index in (0, 1, 3, 5):
                held[index].ack()
            await held[5].settled()
            held[2].ack()
            await held[2].settled()
            await receiver.aclose()
            return await bodies(other, 1)

        assert run(scenario) == [b"4"]

    def test_a_retry_that_is_refused_loses_nothing(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage
    ) -> None:
        """The old message comes back where the new one cannot be."""
        sender, receiver = producer(), consumer()
        sender.send(message(b"old"))

        async def scenario() -> tuple[bytes, bool]:
            (delivery,) = await receiver.receive(1)
            delivery.retry(message(b"x" * 2_000_000))
            with pytest.raises(RejectedError):
                await delivery.settled()
            (again,) = await receiver.receive(1)
            await receiver.aclose()
            return again.body, again.redelivered

        assert run(scenario) == (b"old", True)

    def test_a_retry_into_a_full_queue_loses_nothing(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage
    ) -> None:
        """The broker refuses the new message, and has the old one back."""
        shape: dict[str, Any] = {
            "queue_type": "classic",
            "queue_arguments": {"x-max-length": 1, "x-overflow": "reject-publish"},
        }
        sender, receiver = producer(**shape), consumer(**shape)
        sender.send(message(b"old"))

        async def scenario() -> list[bytes]:
            (delivery,) = await receiver.receive(1)
            await asyncio.to_thread(sender.send, message(b"other"))
            delivery.retry(message(b"new"))
            with pytest.raises(RejectedError, match="full"):
                await delivery.settled()
            return await bodies(receiver, 2)

        assert sorted(run(scenario)) == [b"old", b"other"]

    @pytest.mark.parametrize("heartbeat", [0, 1])
    def test_heartbeats_go_on_while_a_message_is_handled(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage, heartbeat: int
    ) -> None:
        """The broker gives up who is silent for twice the time; nobody receives meanwhile."""
        sender, receiver = producer(), consumer(heartbeat=heartbeat)
        sender.send(message())

        async def scenario() -> bool:
            (delivery,) = await receiver.receive(1)
            # Handling: the broker looks twice in this time.
            await asyncio.sleep(3.5 * heartbeat)
            delivery.ack()
            await delivery.settled()
            await receiver.aclose()
            return delivery.lost

        assert run(scenario) is False

    def test_many_retries_are_confirmed_together(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage
    ) -> None:
        """More than fit into one window arrive, each once."""
        sender, receiver = producer(queue_type="classic"), consumer(queue_type="classic")
        count = 700
        sender.send_many([message(b"%d" % number) for number in range(count)])

        async def scenario() -> list[bytes]:
            for delivery in await collect(receiver, count, most=count):
                delivery.retry(message(delivery.body + b"!"))
            return await bodies(receiver, count)

        assert sorted(run(scenario)) == sorted(b"%d!" % number for number in range(count))


def wait_for_consumers(url: str, queues: list[str]) -> None:
    """Return when each of *queues* is there and somebody consumes from it."""
    end = time.monotonic() + PATIENCE
    with pika.BlockingConnection(pika.URLParameters(f"{url.rstrip('/')}/%2f")) as connection:
        missing = list(queues)
        while missing:
            assert time.monotonic() < end, f"nobody consumes from {missing}"
            with suppress(pika.exceptions.ChannelClosedByBroker):
                found = connection.channel().queue_declare(missing[0], passive=True)
                if found.method.consumer_count:
                    missing.pop(0)
