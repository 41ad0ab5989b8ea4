"""One side of a message's way over a broker: `python … SIDE SYSTEM BROKER QUEUE`.

SIDE is `send` or `work`, SYSTEM a key of SYSTEMS, BROKER a key of URLS. Each side serves its
parent over stdin and stdout, as `_harness.Receiver` describes, and tells a monotonic time with
"done": a sender that of its first message, a worker that of the last it handled. All send the
same 200 bytes of JSON, and all handlers do nothing but count.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
from _harness import peer

from postbus import Command, Envelope, MessageCatalog, build
from postbus.transports import WireMessage
from postbus.wire import encode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Send = Callable[[int], object]

URLS = {
    "rabbitmq": "amqp://guest:guest@127.0.0.1:5672/%2f",
    "redis": "redis://127.0.0.1:6379/9",
}
BODY: dict[str, Any] = {"i": 1, "name": "OrderPlaced", "pad": "x" * 158}
# What a queue's name has behind it for those that some of the libraries make beside it.
BESIDE = ("", ".DQ", ".XQ")
PATIENCE = 120.0
AT_ONCE = 100
THREADS = 8
PREFETCH = 200
BATCH = 500


@attrs.frozen
class Placed(Command, name="bench.placed"):
    """What postbus sends: the fields of BODY."""

    i: int
    name: str
    pad: str


class Count:
    """What all handlers do: count, and note when all that was expected has come."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._left = 0
        self._end = 0.0

    def expect(self, n: int) -> None:
        self._is_over.clear()
        self._left = n

    def handled(self, *_: object) -> None:
        with self._lock:
            self._left -= 1
            if not self._left:
                self._end = time.monotonic()
                self._is_over.set()

    def wait(self) -> float:
        if not self._is_over.wait(PATIENCE):
            msg = f"{self._left} messages are missing after {PATIENCE:g} s"
            raise TimeoutError(msg)
        return self._end


count = Count()


def one_by_one(send: Callable[[], object]) -> Send:
    def send_all(n: int) -> None:
        for _ in range(n):
            send()

    return send_all


def many_at_once(runner: asyncio.Runner, send: Callable[[], Awaitable[object]]) -> Send:
    """Await *send* so often, with a hundred on their way."""

    async def send_all(n: int) -> None:
        left = iter(range(n))

        async def send_some() -> None:
            for _ in left:
                await send()

        await asyncio.gather(*(send_some() for _ in range(AT_ONCE)))

    return lambda n: runner.run(send_all(n))


@attrs.define
class System:
    """A library at a broker, with a queue of its own there."""

    broker: str
    queue: str

    @property
    def url(self) -> str:
        return URLS[self.broker]

    def sender(self) -> Send:
        """Connect, and return what sends so many messages."""
        raise NotImplementedError

    def work(self) -> None:
        """Handle messages for ever, on the main thread."""
        raise NotImplementedError


class Postbus(System):
    """Sends batches: 500 messages in a call of `send_many`."""

    def _built(self, section: dict[str, Any], services: dict[str, Any]) -> Any:
        catalog = MessageCatalog()
        catalog.add(Placed)
        return build(section, services, catalog)

    def _section(self, **keys: Any) -> dict[str, Any]:
        shape = {"queue_type": "classic"} if self.broker == "rabbitmq" else {}
        return {"transport": self.broker, "url": self.url, **shape, **keys}

    def postbus(self) -> Any:
        return self._built(
            {
                "producers": {"out": self._section(queue=self.queue)},
                "command_bus": {"router": {"send": {"bench.placed": "producers.out"}}},
            },
            {},
        )

    def sender(self) -> Send:
        producer = self.postbus().producers["out"]

        def message() -> WireMessage:
            made = Envelope(Placed(**BODY))
            return WireMessage(encode(made), {}, made.id, made.name)

        def send(n: int) -> None:
            for begun in range(0, n, BATCH):
                producer.send_many([message() for _ in range(min(BATCH, n - begun))])

        return send

    def work(self) -> None:
        consumer = self._section(queues=[self.queue], concurrency=AT_ONCE, prefetch=PREFETCH)
        route = {"to": "handle", "threads": False}
        config = {
            "consumers": {"in": consumer},
            "command_bus": {"router": {"routes": {"bench.placed": route}}},
        }
        with self._built(config, {"handle": count.handled}) as postbus:
            postbus.worker().run()


class PostbusThreads(Postbus):
    """Dispatches on a bus from threads, whose confirms share their round trips."""

    threads: ClassVar[int] = 32

    def sender(self) -> Send:
        bus, pool = self.postbus().command_bus, ThreadPoolExecutor(self.threads)
        message = Placed(**BODY)

        def send_some(n: int) -> None:
            for _ in range(n):
                bus.dispatch(message)

        def send(n: int) -> None:
            share, rest = divmod(n, self.threads)
            shares = [share + (number < rest) for number in range(self.threads)]
            list(pool.map(send_some, shares))

        return send


class PostbusOne(Postbus):
    """Dispatches on a bus, one message after the other: each waits for its confirm."""

    def sender(self) -> Send:
        return one_by_one(partial(self.postbus().command_bus.dispatch, Placed(**BODY)))


class Celery(System):
    """The solo pool with default flags; without confirms."""

    options: ClassVar[dict[str, Any]] = {}

    def _task(self) -> Any:
        app = peer("celery").Celery("bench", broker=self.url)
        app.conf.update(
            task_ignore_result=True,
            task_default_queue=self.queue,
            worker_hijack_root_logger=False,
            broker_connection_retry_on_startup=True,
            broker_transport_options=self.options,
        )
        return app.task(name="bench.placed", ignore_result=True)(count.handled)

    def sender(self) -> Send:
        return one_by_one(partial(self._task().apply_async, (BODY,)))

    def work(self) -> None:
        flags = ["--pool", "solo", "--loglevel", "ERROR"]
        self._task().app.worker_main(["worker", *flags])


class CeleryConfirmed(Celery):
    options: ClassVar[dict[str, Any]] = {"confirm_publish": True}


class Dramatiq(System):
    """One worker process with eight threads; without confirms."""

    options: ClassVar[dict[str, Any]] = {}

    def _actor(self) -> Any:
        dramatiq = peer("dramatiq")
        if self.broker == "rabbitmq":
            made = peer("dramatiq.brokers.rabbitmq").RabbitmqBroker(url=self.url, **self.options)
        else:
            made = peer("dramatiq.brokers.redis").RedisBroker(url=self.url, namespace=self.queue)
        dramatiq.set_broker(made)
        return dramatiq.actor(actor_name="placed", queue_name=self.queue)(count.handled)

    def sender(self) -> Send:
        return one_by_one(partial(self._actor().send, BODY))

    def work(self) -> None:
        worker = peer("dramatiq").Worker(self._actor().broker, worker_threads=THREADS)
        worker.start()
        threading.Event().wait()


class DramatiqConfirmed(Dramatiq):
    options: ClassVar[dict[str, Any]] = {"confirm_delivery": True}


class Taskiq(System):
    """Confirms on RabbitMQ, a list on Redis; a hundred on their way."""

    def _task(self) -> Any:
        if self.broker == "rabbitmq":
            pika = peer("taskiq_aio_pika")
            made = pika.AioPikaBroker(
                self.url,
                qos=AT_ONCE,
                exchange=pika.Exchange(name=self.queue),
                task_queues=[pika.Queue(name=self.queue)],
                dead_letter_queue=pika.Queue(name=f"{self.queue}.DQ"),
                delay_queue=pika.Queue(name=f"{self.queue}.XQ"),
            )
        else:
            made = peer("taskiq_redis").ListQueueBroker(self.url, queue_name=self.queue)

        async def placed(body: dict[str, Any]) -> None:
            count.handled()

        return made.task(task_name="bench.placed")(placed)

    def sender(self) -> Send:
        task, runner = self._task(), asyncio.Runner()
        runner.run(task.broker.startup())
        return many_at_once(runner, partial(task.kiq, BODY))

    def work(self) -> None:
        run = peer("taskiq.api").run_receiver_task
        asyncio.run(run(self._task().broker, run_startup=True, max_async_tasks=AT_ONCE))


class FastStream(System):
    """Confirms; a hundred on their way."""

    def _broker(self) -> tuple[Any, Any]:
        rabbit = peer("faststream.rabbit")
        channel = rabbit.Channel(prefetch_count=AT_ONCE)
        made = rabbit.RabbitBroker(self.url, logger=None, default_channel=channel)
        return made, rabbit.RabbitQueue(self.queue, durable=True)

    def sender(self) -> Send:
        (broker, queue), runner = self._broker(), asyncio.Runner()

        async def connect() -> None:
            await broker.connect()
            await broker.declare_queue(queue)

        runner.run(connect())
        return many_at_once(runner, partial(broker.publish, BODY, queue, persist=True))

    def work(self) -> None:
        broker, queue = self._broker()

        async def placed(body: dict[str, Any]) -> None:
            count.handled()

        broker.subscriber(queue)(placed)
        asyncio.run(peer("faststream").FastStream(broker, logger=None).run())


SYSTEMS: dict[str, type[System]] = {
    "postbus": Postbus,
    "postbus-threads": PostbusThreads,
    "postbus-one": PostbusOne,
    "celery": Celery,
    "celery-confirmed": CeleryConfirmed,
    "dramatiq": Dramatiq,
    "dramatiq-confirmed": DramatiqConfirmed,
    "taskiq": Taskiq,
    "faststream": FastStream,
}


def serve_sender(system: System, say: Callable[..., None]) -> None:
    send = system.sender()
    say(0)
    for line in sys.stdin:
        say("ready")
        begin = time.monotonic()
        send(int(line))
        say("done", begin)


def serve_worker(say: Callable[..., None]) -> None:
    say(0)
    try:
        for line in sys.stdin:
            count.expect(int(line))
            say("ready")
            say("done", count.wait())
    finally:
        # The library's worker has the main thread, and need not know how to be stopped.
        os._exit(0)


def main() -> None:
    _, side, name, broker, queue = sys.argv
    # Libraries may print what they like: our stdout is the parent's.
    parent = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    warnings.simplefilter("ignore")
    say = partial(print, file=parent, flush=True)
    system = SYSTEMS[name](broker, queue)
    if side == "send":
        serve_sender(system, say)
        os._exit(0)
    threading.Thread(target=serve_worker, args=(say,), daemon=True).start()
    system.work()


if __name__ == "__main__":
    main()
