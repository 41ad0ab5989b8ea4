"""One consumer at work: receive, decode, dispatch, answer, acknowledge."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import attrs
from msgspec import convert

from postbus.errors import (
    ClosedError,
    DecodeError,
    NoHandlerError,
    RejectedError,
    TimedOutError,
    UnsupportedError,
)
from postbus.messages import MessageKind
from postbus.transports import MessageConsumer, Reply
from postbus.wire import decode, encode_result
from postbus.worker._failures import Failures

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from postbus.catalog import MessageCatalog
    from postbus.messages import Envelope
    from postbus.transports import Delivery

__all__ = ["ConsumerRun", "Consumption", "ReceivingBus"]

logger = logging.getLogger("postbus.worker")

# What we wait for a consumer, or a handler, to accept its cancellation, and for a consumer to
# close: long enough for a round trip to a broker, short enough for a container's second signal.
_PATIENCE = 1.0
_STOPPED = "stopped"


def _stopped() -> RejectedError:
    return RejectedError("the worker stopped before this message was handled")


class ReceivingBus(Protocol):
    """What the worker needs of a bus."""

    def areceive(
        self, envelope: Envelope, source: str, *, threads: bool = False
    ) -> Awaitable[Any]:
        """Dispatch a received message and return the answer of a query."""
        ...


@attrs.frozen(kw_only=True)
class ConsumerRun:
    """A consumer and how the worker runs it.

    Args:
        name: of its section; in logs, and what `envelope.received_from` says.
        consumer: closed by the worker.
        concurrency: how many of its messages are handled at once.
        prefetch: how many deliveries the worker holds at once, those being handled included; at
            least *concurrency*. None means twice that, so that no handler waits for the network.
        unknown_fields: what a payload field that the class lacks does.
        max_size_bytes: the largest body that is decoded, and the largest answer.
    """

    name: str
    consumer: MessageConsumer
    concurrency: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    prefetch: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.ge(0))
    )
    unknown_fields: Literal["refuse", "ignore"] = "refuse"
    max_size_bytes: int = 1024 * 1024


class Consumption:
    """Runs one consumer until it is drained. Used on one loop.

    One task receives; up to *concurrency* tasks handle what it brought, each taking the next
    delivery when it is done with one, so that a busy consumer starts no task per message.
    """

    def __init__(
        self,
        run: ConsumerRun,
        buses: Mapping[MessageKind, ReceivingBus],
        catalog: MessageCatalog,
        pause: Callable[[int], float],
    ) -> None:
        self.name = run.name
        self._task_name = f"handle {run.name}"
        self._run = run
        self._consumer = run.consumer
        self._buses = buses
        self._decode = partial(
            decode,
            catalog=catalog,
            unknown_fields=run.unknown_fields,
            max_size_bytes=run.max_size_bytes,
        )
        self._pause = pause
        self._acknowledge = run.consumer.capabilities.acknowledge
        self._failures = Failures(
            run.name,
            acknowledge=self._acknowledge,
            pause=pause,
            on_given_back=self._room_came,
        )
        prefetch = 2 * run.concurrency if run.prefetch is None else run.prefetch
        self._limit = max(run.concurrency, prefetch)
        # Receiving goes on when half of what is held ahead is used up: neither a call for each
        # message nor a handler that waits.
        self._low = (self._limit - run.concurrency) // 2
        self._held = 0
        self._ready: deque[Delivery] = deque()
        self._room: asyncio.Future[None] | None = None
        # Beside the tasks: a handler that has ended is still among them for a turn of the loop.
        self._handlers = 0
        self._handling: set[asyncio.Task[None]] = set()
        self._receiving: asyncio.Task[None] | None = None

    def start(self, on_end: Callable[[], None]) -> None:
        """Begin to receive; *on_end* is called when the consumer has nothing more to give."""
        self._receiving = asyncio.create_task(self._receive(), name=f"receive {self.name}")
        self._receiving.add_done_callback(lambda _: on_end())

    async def _receive(self) -> None:
        failures = 0
        while True:
            room = self._limit - self._held
            if room <= 0 or self._failures.is_full:
                await self._wait_for_room()
                continue
            try:
                batch = await self._consumer.receive(room)
            except ClosedError:
                logger.info("consumer closed", extra={"consumer": self.name})
                return
            except Exception as error:  # noqa: BLE001  a transport's fault must not end the worker
                failures += 1
                await self._back_off(failures, error)
                continue
            failures = 0
            if not batch:
                await asyncio.sleep(0)
                continue
            self._held += len(batch)
            self._ready.extend(batch)
            self._start_handling()

    def _start_handling(self) -> None:
        if self._handlers < self._run.concurrency:
            self._handlers += 1
            task = asyncio.create_task(self._handle_ready(), name=self._task_name)
            self._handling.add(task)
            task.add_done_callback(self._handled)

    def _handled(self, task: asyncio.Task[None]) -> None:
        self._handling.discard(task)
        if not task.cancelled():
            # What passed _handle() is on its way out of the loop: no second report of it.
            task.exception()

    async def _back_off(self, failures: int, error: Exception) -> None:
        pause = self._pause(failures)
        logger.warning(
            "receive failed",
            extra={
                "consumer": self.name,
                "error": type(error).__name__,
                "failures": failures,
                "pause": pause,
            },
        )
        await asyncio.sleep(pause)

    async def _wait_for_room(self) -> None:
        self._room = asyncio.get_running_loop().create_future()
        await self._room

    def _room_came(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    async def _handle_ready(self) -> None:
        ready = self._ready
        if len(ready) > 1:
            # Each starts the next: handlers that never wait leave it nothing to do, and so a
            # batch costs two tasks then and not one for each of its messages.
            self._start_handling()
        while ready:
            await self._handle(ready.popleft())
            self._held -= 1
            if len(ready) <= self._low:
                self._room_came()
        self._handlers -= 1

    async def _handle(self, delivery: Delivery) -> None:
        envelope: Envelope | None = None
        try:
            envelope = self._decode(delivery.body)
            if envelope.kind is MessageKind.QUERY:
                await self._answer(delivery, envelope)
            else:
                await self._bus(envelope).areceive(envelope, self.name, threads=True)
                delivery.ack()
                self._failures.forget(delivery)
        except Exception as error:  # noqa: BLE001  whatever went wrong, the consumer goes on
            self._failures.decide(delivery, envelope, error)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                self._failures.decide(delivery, envelope, _stopped(), _STOPPED)
                raise
            # The handler awaited something that somebody else cancelled: a failure like others.
            self._failures.decide(delivery, envelope, error)
        except BaseException as error:  # SystemExit and the like: end, but lose nothing
            self._failures.decide(delivery, envelope, error)
            raise

    async def _answer(self, delivery: Delivery, envelope: Envelope) -> None:
        if not delivery.can_reply:
            unsupported = UnsupportedError(f"{envelope.name} came without a reply channel")
            self._failures.decide(delivery, envelope, unsupported, "no_reply_channel")
            return
        # As text, and checked by decode(): the same parser reads it here.
        deadline = envelope.headers.get("deadline")
        if deadline is not None and convert(deadline, datetime) <= datetime.now(UTC):
            timed_out = TimedOutError("the deadline passed before the query was handled")
            self._failures.decide(delivery, envelope, timed_out, "deadline_passed")
            return
        result = await self._bus(envelope).areceive(envelope, self.name, threads=True)
        body = encode_result(result, max_size_bytes=self._run.max_size_bytes)
        delivery.reply(Reply(body))
        delivery.ack()

    def _bus(self, envelope: Envelope) -> ReceivingBus:
        bus = self._buses.get(envelope.kind) if envelope.kind is not None else None
        if bus is None:
            raise NoHandlerError(f"no bus takes {envelope.name}", envelope)
        return bus

    async def drain(self, grace: float) -> None:
        """Stop receiving, let handlers finish for *grace* seconds, give back the rest, close.

        Takes at most *grace* and a few seconds, whatever handlers and consumer do.
        """
        if self._receiving is not None:
            await self._cancel({self._receiving}, "the consumer")
        self._failures.stop()
        if self._acknowledge:
            self._give_back_ready()
        if self._handling:
            await asyncio.wait(self._handling, timeout=grace)
            await self._cancel(self._handling, "a handler")
        self._give_back_ready()
        closing = asyncio.create_task(self._close())
        await asyncio.wait({closing}, timeout=_PATIENCE)
        await self._cancel({closing}, "closing the consumer")

    def _give_back_ready(self) -> None:
        while self._ready:
            delivery = self._ready.pop()
            envelope = None
            if not self._acknowledge:
                with suppress(DecodeError):
                    envelope = self._decode(delivery.body)
            self._failures.decide(delivery, envelope, _stopped(), _STOPPED)

    async def _cancel(self, tasks: set[asyncio.Task[None]], what: str) -> None:
        pending = {task for task in tasks if not task.done()}
        for task in pending:
            task.cancel()
        if pending:
            _, stuck = await asyncio.wait(pending, timeout=_PATIENCE)
            if stuck:
                logger.error("%s ignores its cancellation", what, extra={"consumer": self.name})

    async def _close(self) -> None:
        try:
            await self._consumer.aclose()
        except Exception as error:  # noqa: BLE001  the other consumers are closed all the same
            logger.error(  # noqa: TRY400  a traceback could quote what was sent
                "closing a consumer failed",
                extra={"consumer": self.name, "error": type(error).__name__},
            )
