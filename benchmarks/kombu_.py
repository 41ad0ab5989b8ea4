"""What a message costs at RabbitMQ and at Redis, against kombu and against whole libraries.

The brokers are those of this machine, at their usual ports. Queues are classic, durable and empty
at the start of each slice; messages are persistent. Against kombu, one process sends or takes;
end to end there are two, and a row is the time from the first message sent to the last handled.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _end_to_end import BESIDE, PATIENCE, URLS
from _harness import Receiver, Table, peer, run

from postbus.messages import new_id
from postbus.transports import CommonSettings, WireMessage
from postbus_kombu import RABBITMQ, REDIS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from postbus.transports import Delivery

BODY = b'{"text":"' + b"x" * 180 + b'"}'
AMQP, REDIS_URL = URLS["rabbitmq"], URLS["redis"]
COMMON = CommonSettings(name="bench", prefetch=100)
CONFIRMED, UNCONFIRMED = "kombu, confirm_publish", "kombu, no confirms"
SHIPPED = "kombu, as shipped"
ACK_EACH = "kombu, ack each, prefetch 100"
THREADS = 8
SLICE = 0.5
SIDES = Path(__file__).with_name("_end_to_end.py")
TO_THE_END = 5_000
WARM_UP = 50


def messages(n: int) -> list[WireMessage]:
    return [WireMessage(BODY, {}, new_id(), "bench.text") for _ in range(n)]


def kombu_queue(table: Table, url: str, **options: Any) -> tuple[Any, Any, str]:
    """Return a channel of kombu's, something to publish with, and the name of its queue."""
    kombu, name = peer("kombu"), f"postbus-bench-{new_id()}"
    connection = kombu.Connection(url, transport_options=options)
    table.resources.callback(connection.release)
    channel = connection.channel()
    queue = kombu.Queue(name, durable=True)(channel)
    queue.declare()
    table.resources.callback(queue.delete)
    sender = kombu.Producer(channel, routing_key=name)

    def publish() -> None:
        sender.publish(BODY, content_type="application/json", content_encoding="utf-8")

    return queue, publish, name


def kombu_sending(table: Table, url: str, **options: Any) -> Callable[[int], float]:
    queue, publish, _ = kombu_queue(table, url, **options)

    def measure(n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            publish()
        seconds = time.perf_counter() - start
        queue.purge()
        return seconds

    return measure


def sending(table: Table, transport: Any, url: str, *, threads: int = 0) -> Callable[[int], float]:
    queue, _, name = kombu_queue(table, url)
    shape = {"queue_type": "classic"} if transport is RABBITMQ else {}
    if transport is RABBITMQ:
        queue.delete()
    producer = transport.make_producer(
        transport.producer_settings(url=url, queue=name, **shape), COMMON
    )
    table.resources.callback(producer.close)

    def measure(n: int) -> float:
        batch = messages(n)
        start = time.perf_counter()
        if threads:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(producer.send, batch))
        else:
            producer.send_many(batch)
        seconds = time.perf_counter() - start
        queue.purge()
        return seconds

    return measure


def kombu_receiving(table: Table, url: str) -> Callable[[int], float]:
    queue, publish, _ = kombu_queue(table, url)
    connection = queue.channel.connection.client
    left = 0

    def take(_: Any, message: Any) -> None:
        nonlocal left
        message.ack()
        left -= 1

    def measure(n: int) -> float:
        nonlocal left
        for _ in range(n):
            publish()
        left = n
        start = time.perf_counter()
        consumer = connection.Consumer(
            [queue], callbacks=[take], accept=["json"], prefetch_count=100
        )
        with consumer:
            while left:
                connection.drain_events(timeout=5)
        return time.perf_counter() - start

    return measure


def receiving(table: Table, transport: Any, url: str) -> Callable[[int], float]:
    runner = table.runner
    queue, _, name = kombu_queue(table, url)
    shape = {"queue_type": "classic"} if transport is RABBITMQ else {}
    if transport is RABBITMQ:
        queue.delete()
    producer = transport.make_producer(
        transport.producer_settings(url=url, queue=name, **shape), COMMON
    )
    consumer = transport.make_consumer(
        transport.consumer_settings(url=url, queues=(name,), **shape), COMMON
    )
    table.resources.callback(producer.close)
    table.resources.callback(lambda: runner.run(consumer.aclose()))

    async def take(n: int) -> float:
        taken: list[Delivery] = []
        start = time.perf_counter()
        while len(taken) < n:
            deliveries = await consumer.receive(min(n - len(taken), 100))
            for delivery in deliveries:
                delivery.ack()
            taken += deliveries
        await taken[-1].settled()
        return time.perf_counter() - start

    def measure(n: int) -> float:
        producer.send_many(messages(n))
        seconds: float = runner.run(take(n))
        return seconds

    return measure


def rabbitmq_sending() -> Table:
    table = Table("RabbitMQ, sending, 200 B", rates=True, slice_seconds=SLICE)
    table.limit(CONFIRMED, lambda: kombu_sending(table, AMQP, confirm_publish=True))
    table.limit(UNCONFIRMED, lambda: kombu_sending(table, AMQP))
    many = "send_many"
    table.row(many, lambda: sending(table, RABBITMQ, AMQP), against=CONFIRMED, at_least=6)
    table.compare(f"{many} ", many, against=UNCONFIRMED, at_least=0.65)
    table.row(
        f"send, {THREADS} threads",
        lambda: sending(table, RABBITMQ, AMQP, threads=THREADS),
        against=CONFIRMED,
    )
    return table


def rabbitmq_receiving() -> Table:
    table = Table("RabbitMQ, receive and acknowledge", rates=True, slice_seconds=SLICE)
    table.limit(ACK_EACH, lambda: kombu_receiving(table, AMQP))
    table.row(
        "consumer.receive, ack",
        lambda: receiving(table, RABBITMQ, AMQP),
        against=ACK_EACH,
        at_least=1.3,
    )
    return table


def redis_sending() -> Table:
    table = Table("Redis, sending, 200 B", rates=True, slice_seconds=SLICE)
    table.limit(SHIPPED, lambda: kombu_sending(table, REDIS_URL))
    table.row(
        "send_many",
        lambda: sending(table, REDIS, REDIS_URL),
        against=SHIPPED,
        at_least=2.5,
    )
    return table


def redis_receiving() -> Table:
    table = Table("Redis, receive and acknowledge", rates=True, slice_seconds=SLICE)
    table.limit(SHIPPED, lambda: kombu_receiving(table, REDIS_URL))
    table.row(
        "consumer.receive, ack",
        lambda: receiving(table, REDIS, REDIS_URL),
        against=SHIPPED,
        at_least=1.3,
    )
    return table


class Side(Receiver):
    """A process that may take long: some libraries do."""

    def _line(self, timeout: float = PATIENCE) -> list[str]:
        return super()._line(timeout)


def to_the_end(broker: str, system: str, *modules: str) -> Callable[[int], float]:
    """Send to a worker in a process of its own; both end with the slice."""
    for module in modules:
        peer(module)
    kombu = peer("kombu")

    def measure(n: int) -> float:
        queue = f"postbus-bench-{new_id()}"
        arguments = (system, broker, queue)
        try:
            with (
                Side(SIDES, "work", *arguments) as worker,
                Side(SIDES, "send", *arguments) as sender,
            ):
                for messages in (WARM_UP, n):
                    worker.expect(messages)
                    sender.expect(messages)
                    end, begin = worker.wait()[0], sender.wait()[0]
        finally:
            with kombu.Connection(URLS[broker]) as connection:
                channel = connection.channel()
                for beside in BESIDE:
                    channel.queue_delete(queue + beside)
        return end - begin

    return measure


def end_to_end(broker: str) -> tuple[Table, Callable[..., Callable[[], Callable[[int], float]]]]:
    table = Table(f"{broker}, end to end", rates=True, times=TO_THE_END)

    def way(*system: str) -> Callable[[], Callable[[int], float]]:
        return lambda: to_the_end(broker, *system)

    return table, way


def rabbitmq_to_the_end() -> Table:
    table, way = end_to_end("rabbitmq")
    many = "send_many of 500, worker"
    celery, confirmed = "celery solo, no confirms", "celery solo, confirms"
    dramatiq, faststream = f"dramatiq, {THREADS} threads, no confirms", "faststream, 100 at once"
    taskiq = "taskiq, 100 at once"
    table.limit(celery, way("celery", "celery"))
    table.limit(confirmed, way("celery-confirmed", "celery"))
    table.limit(dramatiq, way("dramatiq", "dramatiq", "pika"))
    table.limit(faststream, way("faststream", "faststream.rabbit"))
    table.limit(taskiq, way("taskiq", "taskiq_aio_pika"))
    table.row(many, way("postbus"), against=celery, at_least=3)
    table.compare(f"{many} ", many, against=confirmed, at_least=5)
    table.compare(f"{many}  ", many, against=faststream, at_least=2)
    table.compare(f"{many}   ", many, against=dramatiq, at_least=1.6)
    table.compare(f"{many}    ", many, against=taskiq)
    threads, one = "dispatch, 32 threads, worker", "dispatch one by one, worker"
    table.row(threads, way("postbus-threads"), against=celery)
    table.row(one, way("postbus-one"), against=confirmed)
    return table


def redis_to_the_end() -> Table:
    table, way = end_to_end("redis")
    many, celery = "send_many of 500, worker", "celery solo"
    dramatiq, taskiq = f"dramatiq, {THREADS} threads", "taskiq, 100 at once"
    table.limit(celery, way("celery", "celery"))
    table.limit(dramatiq, way("dramatiq", "dramatiq"))
    table.limit(taskiq, way("taskiq", "taskiq_redis"))
    table.row(many, way("postbus"), against=celery, at_least=2)
    table.compare(f"{many} ", many, against=dramatiq)
    table.compare(f"{many}  ", many, against=taskiq)
    return table


def tables() -> Iterator[Table]:
    yield rabbitmq_sending()
    yield rabbitmq_receiving()
    yield redis_sending()
    yield redis_receiving()
    yield rabbitmq_to_the_end()
    yield redis_to_the_end()


if __name__ == "__main__":
    run(__doc__, tables, rounds=3)
