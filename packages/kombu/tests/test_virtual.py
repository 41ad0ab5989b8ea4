"""Redis and kombu's simple brokers beyond the contract, with redis-py on the other side."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import pytest

from postbus import build
from postbus.errors import (
    ConfigurationError,
    ConnectionFailedError,
    RejectedError,
    UnsupportedError,
)
from postbus.promises import Promise
from postbus.transports import Capabilities, CommonSettings, Reply, Transport, WireMessage
from postbus_kombu import KOMBU, REDIS, SQS, KombuContainer, RedisContainer, SQSContainer

T = TypeVar("T")
MakeMessage = Callable[..., WireMessage]
# What conftest.py calls so.
OwnRedis = Any
PATIENCE = 30.0


def run(test: Callable[[], Awaitable[T]]) -> T:
    async def limited() -> T:
        async with asyncio.timeout(2 * PATIENCE):
            return await test()

    return asyncio.run(limited())


def sides(transport: Transport, url: str, queues: list[str], **keys: Any) -> tuple[Any, Any]:
    common = CommonSettings(name="test", max_size_bytes=1000, close_timeout=PATIENCE)
    producer = transport.producer_settings(url=url, queue=queues[0])
    consumer = transport.consumer_settings(url=url, queues=tuple(queues), **keys)
    return transport.make_producer(producer, common), transport.make_consumer(consumer, common)


def test_redis_cli_reads_a_message(
    own_redis: OwnRedis, queue_name: str, message: MakeMessage
) -> None:
    """It is kombu's JSON around the body, in a list of the queue's name (D08)."""
    sender, _ = sides(REDIS, own_redis.url, [queue_name])
    sender.send(message(priority=9))
    sender.close()
    client = import_module("redis").Redis.from_url(own_redis.url)
    item = json.loads(client.rpop(queue_name))
    assert base64.b64decode(item["body"]) == message().body
    assert item["content-type"] == "application/json"
    client.close()


def test_queues_of_redis_are_taken_from_in_turn(
    own_redis: OwnRedis, queue_name: str, message: MakeMessage
) -> None:
    """A long queue keeps nobody waiting, and a server that went costs one call (K16)."""
    other = f"{queue_name}-short"
    sender, receiver = sides(REDIS, own_redis.url, [queue_name, other])
    short, _ = sides(REDIS, own_redis.url, [other])
    sender.send_many([message(b"long") for _ in range(20)])
    short.send_many([message(b"short") for _ in range(2)])

    async def scenario() -> list[bytes]:
        received = list(await receiver.receive(4))
        own_redis.kill()
        with pytest.raises(ConnectionFailedError):
            await receiver.receive(4)
        with pytest.raises(ConnectionFailedError):
            await asyncio.to_thread(sender.send, message())
        assert all(each.lost for each in received)
        own_redis.start()
        await asyncio.to_thread(sender.send, message(b"after"))
        (after,) = await receiver.receive(4)
        after.ack()
        await receiver.aclose()
        return [each.body for each in (*received, after)]

    assert run(scenario) == [b"long", b"long", b"short", b"short", b"after"]
    for each in (sender, short):
        each.close()


def test_a_retry_that_is_refused_comes_back(
    own_redis: OwnRedis, queue_name: str, message: MakeMessage
) -> None:
    """The old message, where the new one is too large or has no priority there is."""
    sender, receiver = sides(REDIS, own_redis.url, [queue_name])
    sender.send(message(b"old"))

    async def scenario() -> list[tuple[bytes, bool]]:
        seen: list[tuple[bytes, bool]] = []
        for refused in (message(b"x" * 2000), message(priority=10)):
            (delivery,) = await receiver.receive(1)
            seen.append((delivery.body, delivery.redelivered))
            delivery.retry(refused)
            with pytest.raises(RejectedError):
                await delivery.settled()
        await receiver.aclose()
        return seen

    assert run(scenario) == [(b"old", False), (b"old", True)]
    sender.close()


@pytest.mark.parametrize("scheme", ["memory", "filesystem"])
def test_a_simple_broker_is_at_most_once(
    scheme: str, tmp_path: Path, queue_name: str, message: MakeMessage
) -> None:
    """It carries messages, and more is refused while building (X01, X03, X06)."""
    options: dict[str, Any] = {}
    if scheme == "filesystem":
        folders = ("data_folder_in", "data_folder_out", "control_folder")
        options = {folder: str(tmp_path) for folder in folders}
    section = {
        "url": f"{scheme}://",
        "queue": queue_name,
        "transport_options": options,
        "consumer": {
            "url": f"{scheme}://",
            "queues": [queue_name],
            "transport_options": options,
        },
    }
    with KombuContainer(config=section) as container:
        container.producer().send(message(b"1"))

        async def scenario() -> bytes:
            receiver = container.consumer()
            (delivery,) = await receiver.receive(1)
            await receiver.aclose()
            return bytes(delivery.body)

        assert run(scenario) == b"1"
    demanding = {"transport": "kombu", "url": f"{scheme}://", "guarantee": "at-least-once"}
    with pytest.raises(ConfigurationError, match="at-least-once"):
        build({"consumers": {"main": demanding}}, {})


def test_a_broker_that_was_not_tried_promises_little(message: MakeMessage) -> None:
    """No acknowledgement, no queries, nothing to look into: more is refused (D05)."""
    section = {"transport": "kombu", "url": "consul://somebody:hunter2@127.0.0.1"}
    for keys in ({"guarantee": "at-least-once"}, {"requires": ["durable"]}):
        with pytest.raises(ConfigurationError, match=next(iter(keys))):
            build({"consumers": {"main": {**section, **keys}}}, {})
    sender, receiver = sides(KOMBU, section["url"], ["postbus"])
    assert sender.capabilities == Capabilities(max_size_bytes=1000)
    reply: Promise[Reply] = Promise()
    sender.request(message(), reply)
    assert isinstance(reply.exception(), UnsupportedError)
    for call in (receiver.count, lambda: receiver.peek("postbus")):
        with pytest.raises(UnsupportedError):
            call()


@pytest.mark.parametrize("transport", [REDIS, SQS])
def test_a_client_library_that_is_not_there_is_named(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While building, with what brings it."""
    library = {"redis": "redis", "sqs": "boto3"}[transport.name]
    monkeypatch.setitem(sys.modules, library, None)
    for side in ("producers", "consumers"):
        with pytest.raises(ConfigurationError) as caught:
            build({side: {"main": {"transport": transport.name}}}, {})
        assert f"pip install 'postbus-kombu[{transport.name}]'" in str(caught.value)


def test_what_kombu_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """While building, for any of its brokers."""
    monkeypatch.setitem(sys.modules, "pymongo", None)
    monkeypatch.delitem(sys.modules, "kombu.transport.mongodb", raising=False)
    for side in ("producers", "consumers"):
        with pytest.raises(ConfigurationError, match="pymongo"):
            build({side: {"main": {"transport": "kombu", "url": "mongodb://127.0.0.1"}}}, {})


def test_a_broker_with_a_transport_of_its_own_is_refused() -> None:
    """`kombu` would promise less than `rabbitmq` and `redis` do."""
    for url in ("amqp://127.0.0.1", "redis://127.0.0.1", "sentinel://127.0.0.1", "sqs://"):
        with pytest.raises(ConfigurationError, match="transports of their own"):
            build({"producers": {"main": {"transport": "kombu", "url": url}}}, {})


def test_containers_know_their_transports() -> None:
    """Each has the record that its entry point names."""
    found = [each.transport for each in (RedisContainer, SQSContainer, KombuContainer)]
    assert found == [REDIS, SQS, KOMBU]
