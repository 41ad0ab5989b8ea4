"""How much of a queue a consumer takes ahead of what is asked of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from postbus.transports import Delivery, WireMessage
from postbus_kombu import RabbitMQConsumer, RabbitMQProducer

COUNT = 400
PREFETCH = 16
PATIENCE = 30.0


def test_a_consumer_that_always_wants_more_never_holds_more_than_that(
    broker: Any,
    queue: str,
    producer: Callable[..., RabbitMQProducer],
    consumer: Callable[..., RabbitMQConsumer],
    message: Callable[..., WireMessage],
) -> None:
    """What waits in the consumer already counts as asked for: the rest stays in the queue."""
    producer(queue=queue).send_many([message(b"%d" % number) for number in range(COUNT)])
    receiver = consumer(queues=(queue,))

    async def take() -> int:
        """Keep some unsettled, and ask for more each time a few are."""
        held: list[Delivery] = []
        taken = 0
        while taken < COUNT // 2:
            for delivery in await receiver.receive(PREFETCH - len(held)):
                held.append(delivery)
                taken += 1
            settled, held = held[:5], held[5:]
            for delivery in settled:
                delivery.ack()
            # The broker sends on before the next call.
            await settled[-1].settled()
            await asyncio.sleep(0.005)
        return taken

    async def main() -> tuple[int, int]:
        async with asyncio.timeout(PATIENCE):
            taken = await take()
            with broker.clone() as connection:
                found = connection.channel().queue_declare(queue, passive=True)
            await receiver.aclose()
            return taken, int(found.message_count)

    taken, waiting = asyncio.run(main())
    assert waiting >= COUNT - taken - PREFETCH
