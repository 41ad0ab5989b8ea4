"""A producer and a consumer of one queue, driven from plain code."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self, TypeVar

import pytest

from postbus.promises import Promise
from postbus.testing._contracts._sides import Sides, message, question
from postbus.transports import QueryClient, Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from types import TracebackType

    from postbus.testing._contracts._under_test import TransportUnderTest
    from postbus.transports import Delivery, MessageConsumer, MessageProducer

__all__ = ["Link", "Peer", "received"]

T = TypeVar("T")
# How many seconds a process may take to end that was asked to.
_LEAVING = 5.0
# How long to wait before something is looked at again.
_TURN = 0.02
_SENTINEL = b'"nothing came before this"'


class Peer:
    """Another process on the queue."""

    def __init__(self, process: subprocess.Popen[str], patience: float) -> None:
        self._process = process
        self._patience = patience

    def expect(self, line: str) -> None:
        """Wait until it says *line*."""
        assert self._process.stdout is not None
        with _limited(self._patience, self.kill):
            said = self._process.stdout.readline().strip()
        assert said == line, f"a process on this queue should say {line!r}, it says {said!r}"

    def leave(self) -> None:
        """Let it end by itself, and return when it has."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_LEAVING)
        self.kill()

    def kill(self) -> None:
        """End it by SIGKILL, with every process it forked, and return when it is gone."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextmanager
def _limited(seconds: float, end: Callable[[], None]) -> Generator[None]:
    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


class Link:
    """One queue of the transport under test; its consumers live on a loop in a thread.

    A context manager, which closes everything that was made with it. Every wait fails the test
    after the patience of what is under test.
    """

    def __init__(
        self, under_test: TransportUnderTest, on_refusal: Callable[[], None] | None = None
    ) -> None:
        self.under_test = under_test
        self.patience: float = under_test.patience
        self._sides = Sides(under_test.transport, under_test.producer, under_test.consumer)
        self._on_refusal = on_refusal
        self._stack = ExitStack()
        self._loop = asyncio.new_event_loop()
        self._producer: MessageProducer | None = None
        self._consumer: MessageConsumer | None = None

    def __enter__(self) -> Self:
        """Start the loop."""
        thread = threading.Thread(target=self._loop.run_forever, name="contract", daemon=True)
        thread.start()
        self._stack.callback(self._loop.close)
        self._stack.callback(thread.join)
        self._stack.callback(self._loop.call_soon_threadsafe, self._loop.stop)
        self._stack.callback(self.run, self._cancel_all())
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close what was made, the last first."""
        self._stack.close()

    async def _cancel_all(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    # What is declared.

    def refused(self) -> None:
        """Note that this test has shown a refusal, where others show what a transport can."""
        if self._on_refusal is not None:
            self._on_refusal()

    # The two sides.

    @property
    def producer(self) -> MessageProducer:
        """The producer of this test."""
        if self._producer is None:
            self._producer = self.make_producer()
        return self._producer

    @property
    def consumer(self) -> MessageConsumer:
        """The consumer of this test."""
        if self._consumer is None:
            self._consumer = self.make_consumer()
        return self._consumer

    def make_producer(self, **keys: Any) -> MessageProducer:
        """Return another producer, with *keys* in its section; closed at the end."""
        producer = self._sides.make_producer(**keys)
        self._stack.callback(self.finish, producer.close)
        return producer

    def make_consumer(self, **keys: Any) -> MessageConsumer:
        """Return another consumer, with *keys* in its section; closed at the end."""
        consumer = self._sides.make_consumer(**keys)
        self._stack.callback(lambda: self.run(consumer.aclose()))
        return consumer

    def make_quick_consumer(self) -> MessageConsumer:
        """Return another consumer, which soon gets what a dead one held; closed at the end."""
        return self.make_consumer(**self.under_test.quick_redelivery)

    # Waiting.

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run *coroutine* on the loop, and return at once."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def result(self, future: concurrent.futures.Future[T], what: str = "an answer") -> T:
        """Wait for *future*."""
        if not concurrent.futures.wait([future], self.patience).done:
            future.cancel()
            pytest.fail(f"waited {self.patience} seconds in vain for {what}")
        return future.result()

    def run(self, coroutine: Coroutine[Any, Any, T], what: str = "a call to return") -> T:
        """Run *coroutine* on the loop, and return what it does."""
        return self.result(self.submit(coroutine), what)

    def start(self, call: Callable[[], T]) -> concurrent.futures.Future[T]:
        """Run *call* in a thread, which the end of the test does not wait for."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        # From now on nobody can cancel it: giving up the wait leaves the thread its result.
        future.set_running_or_notify_cancel()

        def work() -> None:
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001  whoever asks for the result gets it
                future.set_exception(error)

        threading.Thread(target=work, daemon=True).start()
        return future

    def finish(self, call: Callable[[], T], what: str = "a call to return") -> T:
        """Run *call*, and fail where it hangs."""
        return self.result(self.start(call), what)

    # Messages.

    def send(self, *bodies: bytes, **fields: Any) -> None:
        """Send *bodies* with *fields* of the message."""
        batch = [message(body, **fields) for body in bodies]
        self.finish(lambda: self.producer.send_many(batch), "a send to return")

    def receive(
        self, max_messages: int = 100, consumer: MessageConsumer | None = None
    ) -> list[Delivery]:
        """Receive once."""
        return self.run(received(consumer or self.consumer, max_messages), "a message")

    def collect(
        self, count: int, consumer: MessageConsumer | None = None, max_messages: int = 100
    ) -> list[Delivery]:
        """Receive until there are *count* deliveries."""
        return self.result(self.collecting(count, consumer, max_messages), f"{count} messages")

    def collecting(
        self, count: int, consumer: MessageConsumer | None = None, max_messages: int = 100
    ) -> concurrent.futures.Future[list[Delivery]]:
        """Begin to receive until there are *count* deliveries."""
        return self.submit(_collect(consumer or self.consumer, count, max_messages))

    def exchange(self, *bodies: bytes, **fields: Any) -> list[Delivery]:
        """Send *bodies* to a consumer that is waiting, and return as many deliveries."""
        collecting = self.collecting(len(bodies))
        self.send(*bodies, **fields)
        return self.result(collecting, f"{len(bodies)} messages")

    def rest(self, consumer: MessageConsumer | None = None) -> list[bytes]:
        """Return the bodies that still come, up to one that is sent now."""
        receiving = self.submit(_until_sentinel(consumer or self.consumer))
        self.send(_SENTINEL)
        return self.result(receiving, "the last message")

    @property
    def queue(self) -> str:
        """What the consumer calls its queue, or any name where it cannot say."""
        if not self.consumer.capabilities.count:
            return "default"
        (name,) = self.finish(self.consumer.count)
        return name

    def until_counted(self, count: int, consumer: MessageConsumer | None = None) -> dict[str, int]:
        """Wait until *count* messages wait in the queue; some systems count a moment later."""
        counter = consumer or self.consumer
        deadline = time.monotonic() + self.patience
        while sum((counted := self.finish(counter.count)).values()) != count:
            assert time.monotonic() < deadline, f"{count} should wait, counted are {counted}"
            time.sleep(_TURN)
        return dict(counted)

    def ask(self, text: str = "") -> Promise[Reply]:
        """Send a query; return the promise of its answer."""
        return self.ask_message(question(text))

    def ask_message(self, query: Any) -> Promise[Reply]:
        """Send *query*; return the promise of its answer."""
        client = self.producer
        assert isinstance(client, QueryClient), "a producer with queries needs a method `request`"
        reply: Promise[Reply] = Promise()
        self.finish(lambda: client.request(query, reply), "request() to return")
        return reply

    def answer_of(self, reply: Promise[Reply]) -> Reply:
        """Wait for the answer to a query, or raise what it was rejected with."""
        settled = threading.Event()
        reply.add_done_callback(lambda _: settled.set())
        if not settled.wait(self.patience):
            pytest.fail(f"waited {self.patience} seconds in vain for the answer to a query")
        return reply.result(0)

    def settled(self, delivery: Delivery) -> None:
        """Wait until what was asked about *delivery* is carried out, or raise why it is not."""
        self.run(_awaited(delivery.settled()), "a settlement to be carried out")

    # Other processes.

    @contextmanager
    def peer(self, role: str, *bodies: bytes, quick: bool = False) -> Generator[Peer]:
        """Start a process that does what *role* says; it ends where the block ends.

        With *quick* it receives as `make_quick_consumer` does.
        """
        under_test = self.under_test
        said = {
            "role": role,
            "transport": under_test.transport.name,
            "reference": under_test.reference,
            "producer": dict(under_test.producer),
            "consumer": {
                **under_test.consumer,
                **(under_test.quick_redelivery if quick else {}),
            },
            "bodies": [body.decode() for body in bodies],
        }
        process = subprocess.Popen(  # noqa: S603  our own module
            [sys.executable, "-m", "postbus.testing._contracts._peer", json.dumps(said)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # What this process can import that one can, wherever a test runner has it from.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        peer = Peer(process, self.patience)
        with process:
            try:
                peer.expect("ready")
                yield peer
            finally:
                peer.leave()


async def received(consumer: MessageConsumer, max_messages: int) -> list[Delivery]:
    """Receive once, as much as was asked for."""
    deliveries = list(await consumer.receive(max_messages))
    assert deliveries, "receive() returns at least one delivery"
    assert len(deliveries) <= max_messages, "receive() returns no more than it was asked for"
    return deliveries


async def _collect(consumer: MessageConsumer, count: int, max_messages: int) -> list[Delivery]:
    collected: list[Delivery] = []
    while len(collected) < count:
        collected += await received(consumer, min(max_messages, count - len(collected)))
    return collected


async def _until_sentinel(consumer: MessageConsumer) -> list[bytes]:
    bodies: list[bytes] = []
    while _SENTINEL not in bodies:
        bodies += [delivery.body for delivery in await received(consumer, 1)]
    return bodies[:-1]


async def _awaited(promise: Promise[T]) -> T:
    return await promise
