"""SQS beyond the contract, with kombu's own client on the other side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

from postbus import build
from postbus.errors import (
    ConfigurationError,
    PartiallySentError,
    TransportError,
    UnsupportedError,
)
from postbus.transports import CommonSettings, Delivery, WireMessage
from postbus_kombu import SQS
from postbus_kombu._sqs import MAX_SIZE_BYTES, _requests

MakeMessage = Callable[..., WireMessage]
PATIENCE = 60.0
kombu: Any = import_module("kombu")


def sides(
    sqs: dict[str, Any], queue: str, guarantee: str | None = None, **keys: Any
) -> tuple[Any, Any]:
    common = CommonSettings(name="test", guarantee=guarantee, close_timeout=PATIENCE)
    producer = SQS.producer_settings(**sqs, queue=queue)
    consumer = SQS.consumer_settings(**sqs, queues=(queue,), poll_interval=0.05, **keys)
    return SQS.make_producer(producer, common), SQS.make_consumer(consumer, common)


async def received(consumer: Any, count: int) -> list[Delivery]:
    deliveries: list[Delivery] = []
    async with asyncio.timeout(PATIENCE):
        while len(deliveries) < count:
            deliveries += await consumer.receive(count - len(deliveries))
    return deliveries


def test_large_messages_go_in_several_requests(
    sqs: dict[str, Any], queue_name: str, message: MakeMessage
) -> None:
    """A request has a limit of its own, below ten of the largest messages."""
    sender, receiver = sides(sqs, queue_name, "at-most-once")
    bodies = [bytes([ord("0") + number]) * MAX_SIZE_BYTES for number in range(4)]
    sender.send_many([message(body) for body in bodies])
    sender.close()

    async def scenario() -> set[bytes]:
        deliveries = await received(receiver, 4)
        await receiver.aclose()
        return {each.body for each in deliveries}

    assert asyncio.run(scenario()) == set(bodies)
    # moto's server would take more at once than Amazon's.
    entries = [{"Id": str(number), "MessageBody": "x" * 100_000} for number in range(5)]
    assert [[each["Id"] for each in request] for request in _requests(entries)] == [
        ["0", "1"],
        ["2", "3"],
        ["4"],
    ]


def test_a_delay_that_sqs_does_not_have_is_refused(
    sqs: dict[str, Any], queue_name: str, message: MakeMessage
) -> None:
    """The others of the batch are sent."""
    sender, receiver = sides(sqs, queue_name)
    with pytest.raises(PartiallySentError) as caught:
        sender.send_many([message(delay=901.0), message(b"now")])
    assert {index: type(error) for index, error in caught.value.failed.items()} == {
        0: UnsupportedError
    }
    assert receiver.count() == {queue_name: 1}
    sender.close()
    asyncio.run(receiver.aclose())


def test_kombu_reads_what_is_sent_here_and_is_read_here(
    sqs: dict[str, Any], queue_name: str, message: MakeMessage
) -> None:
    """Bodies and headers, both ways (D07)."""
    sender, receiver = sides(sqs, queue_name)
    sender.send(message(b"1"))
    sender.close()
    options = {**sqs["transport_options"], "region": sqs["region"], "wait_time_seconds": 0}
    with kombu.Connection(sqs["url"], transport_options=options) as connection:
        channel = connection.channel()
        found = channel.basic_get(queue_name, no_ack=False)
        assert found.body == b"1"
        found.ack()
        content = channel.prepare_message(
            "{}", content_type="application/json", content_encoding="utf-8", headers={"h": "x"}
        )
        channel.basic_publish(content, exchange="", routing_key=queue_name)

    async def scenario() -> tuple[bytes, Any]:
        (delivery,) = await received(receiver, 1)
        delivery.ack()
        await receiver.aclose()
        return delivery.body, delivery.headers

    assert asyncio.run(scenario()) == (b"{}", {"h": "x"})


def test_what_aws_refuses_is_an_error_of_ours(
    sqs: dict[str, Any], queue_name: str, message: MakeMessage
) -> None:
    """With the reason, without the credentials."""
    with_predefined = {"predefined_queues": {queue_name: {"url": "http://127.0.0.1:1/1/gone"}}}
    options = {**sqs["transport_options"], **with_predefined}
    sender, receiver = sides({**sqs, "transport_options": options}, queue_name)
    with pytest.raises(TransportError) as caught:
        sender.send(message())
    sender.close()
    asyncio.run(receiver.aclose())
    assert "hunter2" not in str(caught.value)
    assert "could not send" in str(caught.value)


def test_a_queue_that_sqs_cannot_have_is_refused() -> None:
    """Its names have no dots."""
    for side, keys in (("producers", {"queue": "a.b"}), ("consumers", {"queues": ["a.b"]})):
        with pytest.raises(ConfigurationError, match="letters, digits"):
            build({side: {"main": {"transport": "sqs", **keys}}}, {})
