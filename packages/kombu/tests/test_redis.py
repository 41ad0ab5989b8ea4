"""What others put into Redis, and what they find there."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest

from postbus.errors import ClosedError, ConnectionFailedError
from postbus.promises import Promise
from postbus.transports import CommonSettings, Delivery, Reply, WireMessage
from postbus_kombu import REDIS
from postbus_kombu._virtual import kombu_item

MakeMessage = Callable[..., WireMessage]
# What conftest.py calls so.
OwnRedis = Any
PATIENCE = 30.0
redis: Any = import_module("redis")
kombu: Any = import_module("kombu")

ITEMS = {
    "a body by itself": b'{"message_name":"shop.echo-text"}',
    "no JSON": b"garbage",
    "no UTF-8": b"\xff\x00\xfe",
    "nothing at all": b"",
    "a list": b"[]",
    "JSON too deep to read": b"[" * 100_000,
    "no properties": b'{"body":"eA=="}',
    "properties that say nothing": b'{"body":"x","properties":{}}',
    "no base64": b'{"body":"!!","headers":{},"properties":{"body_encoding":"base64"}}',
    "a body that is no text": b'{"body":7,"headers":{},"properties":{"delivery_tag":"1"}}',
    "headers that are a list": b'{"body":"x","headers":[1],"properties":{"delivery_tag":"1"}}',
    "half of a character": b'{"body":"\\ud800","headers":{},"properties":{}}',
}


@pytest.fixture
def client(own_redis: OwnRedis) -> Iterator[Any]:
    """redis-py, as anybody would use it."""
    made = redis.Redis.from_url(own_redis.url)
    yield made
    made.close()


def consumer_of(url: str, queue: str, guarantee: str = "at-least-once", **keys: Any) -> Any:
    common = CommonSettings(name="test", guarantee=guarantee, close_timeout=PATIENCE)
    return REDIS.make_consumer(REDIS.consumer_settings(url=url, queues=(queue,), **keys), common)


def producer_of(url: str, queue: str) -> Any:
    settings = REDIS.producer_settings(url=url, queue=queue)
    return REDIS.make_producer(settings, CommonSettings(name="test"))


async def received(consumer: Any, count: int) -> list[Delivery]:
    deliveries: list[Delivery] = []
    async with asyncio.timeout(2 * PATIENCE):
        while len(deliveries) < count:
            deliveries += await consumer.receive(count - len(deliveries))
    return deliveries


@pytest.mark.parametrize("guarantee", ["at-least-once", "at-most-once"])
def test_what_is_no_item_of_kombu_is_a_body(
    guarantee: str, own_redis: OwnRedis, queue_name: str, client: Any
) -> None:
    """Whoever can LPUSH can send, and whatever was pushed arrives byte for byte."""
    client.lpush(queue_name, *ITEMS.values())
    consumer = consumer_of(own_redis.url, queue_name, guarantee)

    async def scenario() -> list[bytes]:
        deliveries = await received(consumer, len(ITEMS))
        for each in deliveries:
            each.ack()
        await consumer.aclose()
        return [each.body for each in deliveries]

    assert asyncio.run(scenario()) == list(ITEMS.values())
    assert client.keys(f"{queue_name}*") == []


def test_what_a_killed_process_held_comes_back_as_it_was(
    own_redis: OwnRedis, queue_name: str, client: Any
) -> None:
    """Within the lease, without new traffic, and marked; also what is no item of kombu's."""
    client.lpush(queue_name, *ITEMS.values())
    program = f"""
import asyncio
from postbus.transports import CommonSettings
from postbus_kombu import REDIS
settings = REDIS.consumer_settings(url={own_redis.url!r}, queues=({queue_name!r},), lease=1.0)
consumer = REDIS.make_consumer(settings, CommonSettings(name="doomed"))
async def main():
    held = 0
    while held < {len(ITEMS)}:
        held += len(await consumer.receive(100))
    print("held", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == b"held\n"
        os.kill(child.pid, signal.SIGKILL)
    consumer = consumer_of(own_redis.url, queue_name)

    async def scenario() -> list[Delivery]:
        deliveries = await received(consumer, len(ITEMS))
        for each in deliveries:
            each.ack()
        await consumer.aclose()
        return deliveries

    deliveries = asyncio.run(scenario())
    assert sorted(each.body for each in deliveries) == sorted(ITEMS.values())
    assert all(each.redelivered for each in deliveries)
    assert client.keys(f"{queue_name}*") == []


def test_kombu_reads_what_is_sent_here_and_is_read_here(
    own_redis: OwnRedis, queue_name: str, message: MakeMessage
) -> None:
    """Bodies, headers and priorities, both ways, with kombu's own client (D08)."""
    prefix = {"global_keyprefix": "shop-"}
    for options in ({}, prefix):
        sender, receiver = producer_of(own_redis.url, queue_name), consumer_of
        if options:
            settings = REDIS.producer_settings(
                url=own_redis.url, queue=queue_name, transport_options=options
            )
            sender = REDIS.make_producer(settings, CommonSettings(name="test"))
        with kombu.Connection(own_redis.url, transport_options=options) as connection:
            sender.send_many([message(b"1"), message(b"2", priority=9)])
            sender.close()
            queue = connection.SimpleBuffer(queue_name)
            bodies: list[bytes] = []
            for _ in range(2):
                found = queue.get(timeout=PATIENCE)
                bodies.append(found.body)
                found.ack()
            queue.put({"n": 3}, serializer="json", headers={"h": "x"})
            queue.close()
        consumer = receiver(own_redis.url, queue_name, transport_options=options)

        async def scenario(consumer: Any = consumer) -> list[tuple[Any, Any]]:
            (delivery,) = await received(consumer, 1)
            delivery.ack()
            await consumer.aclose()
            return [(json.loads(delivery.body), delivery.headers)]

        assert bodies == [b"2", b"1"]
        assert asyncio.run(scenario()) == [({"n": 3}, {"h": "x"})]


def test_each_queue_says_what_of_it_is_held(
    own_redis: OwnRedis, queue_name: str, client: Any, message: MakeMessage
) -> None:
    """`redis-cli hlen QUEUE:held` counts it, and after the acknowledgement nothing is left."""
    sender = producer_of(own_redis.url, queue_name)
    sender.send_many([message(b"1"), message(b"2")])
    sender.close()
    consumer = consumer_of(own_redis.url, queue_name)

    async def scenario() -> list[int]:
        first, second = await received(consumer, 2)
        counts = [client.hlen(f"{queue_name}:held")]
        first.ack()
        second.nack()
        await consumer.aclose()
        # kombu's name of the list of the least urgent ones.
        waiting = client.llen(f"{queue_name}\x06\x169")
        return [*counts, client.hlen(f"{queue_name}:held"), waiting]

    assert asyncio.run(scenario()) == [2, 0, 1]


def test_an_answer_that_nobody_fetches_goes_by_itself(
    own_redis: OwnRedis, queue_name: str, client: Any, message: MakeMessage
) -> None:
    """Who asked has gone, and leaves nothing; a late answer has its time."""
    sender = producer_of(own_redis.url, queue_name)
    consumer = consumer_of(own_redis.url, queue_name)
    reply: Promise[Reply] = Promise()
    sender.request(message(b"?"), reply)

    async def scenario() -> tuple[list[bytes], list[bytes]]:
        (query,) = await received(consumer, 1)
        await asyncio.to_thread(sender.close)
        left = client.keys("postbus.reply.*")
        query.reply(Reply(b"42"))
        query.ack()
        await query.settled()
        await consumer.aclose()
        return left, client.keys("postbus.reply.*")

    left, late = asyncio.run(scenario())
    assert isinstance(reply.exception(), ClosedError)
    assert left == []
    assert [0 < client.ttl(name) <= 300 for name in late] == [True]
    client.delete(*late)


def test_nobody_writes_into_a_queue_that_is_not_for_answers(
    own_redis: OwnRedis, queue_name: str, client: Any
) -> None:
    """Whatever a message names as the place of its answer."""
    for place in ("mail", "amq.gen-x", "postbus.reply.*", "postbus.reply."):
        item = kombu_item(queue_name, b"?", {}, {"reply_to": place, "correlation_id": "1"})
        client.lpush(queue_name, json.dumps(item))
    consumer = consumer_of(own_redis.url, queue_name)

    async def scenario() -> list[bool]:
        deliveries = await received(consumer, 4)
        for each in deliveries:
            each.ack()
        await consumer.aclose()
        return [each.can_reply for each in deliveries]

    assert asyncio.run(scenario()) == [False] * 4


def test_a_broken_connection_rejects_what_waits_and_the_next_query_goes_on(
    own_redis: OwnRedis, queue_name: str, message: MakeMessage
) -> None:
    """The server may have forgotten the question; nobody waits for the deadline."""
    sender = producer_of(own_redis.url, queue_name)
    consumer = consumer_of(own_redis.url, queue_name)

    def ask() -> Promise[Reply]:
        reply: Promise[Reply] = Promise()
        sender.request(message(b"?"), reply)
        return reply

    async def answer() -> None:
        try:
            (query,) = await received(consumer, 1)
        except ConnectionFailedError:
            # It hears of the server's end by now, if it has not before.
            (query,) = await received(consumer, 1)
        query.reply(Reply(b"42"))
        query.ack()

    async def scenario() -> Reply:
        lost = ask()
        await received(consumer, 1)
        own_redis.kill()
        try:
            async with asyncio.timeout(PATIENCE):
                with pytest.raises(ConnectionFailedError):
                    await lost
                with pytest.raises(ConnectionFailedError):
                    await ask()
        finally:
            own_redis.start()
        asked = ask()
        await answer()
        async with asyncio.timeout(PATIENCE):
            found = await asked
        await consumer.aclose()
        return found

    assert asyncio.run(scenario()) == Reply(b"42")
    sender.close()
