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
from postbus.unit import armed
from postbus.wire import decode, encode_result
from postbus.worker._failpoints import pointed_decode
from postbus.worker._failures import Failures

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from postbus.catalog import MessageCatalog
    from postbus.messages import Envelope
    from postbus.stores import FailureStore, Inbox, ScheduleStore
    from postbus.transports import Delivery
    from postbus.worker._limits import Budget
    from postbus.worker._retries import RetryPolicy, RetryRule

__all__ = ["STOPPED", "ConsumerRun", "Consumption", "ReceivingBus", "Watch", "stopped"]

logger = logging.getLogger("postbus.worker")

# What we wait for a consumer, or a handler, to accept its cancellation, and for a consumer to
# close: long enough for a round trip to a broker, short enough for a worker that has begun nothing
# to end within a second.
_PATIENCE = 0.75
STOPPED = "stopped"


def stopped() -> RejectedError:
    """Return what a message failed with that the end of the worker cut off."""
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
        time_limit: seconds that handling a message may take; then it is cancelled and has
            failed. What runs in a thread goes on there, and has failed all the same.
        retry: when a failed message is handled again; None: it is given up at once.
        rules: other policies for some failures; the first that fits counts.
        failure_store: keeps what was given up. None: a failed message is given back after a
            pause, again and again.
        schedule: keeps retries until they are due, where the transport cannot.
        inbox: knows what was handled, so that a redelivered message is not handled again.
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
    time_limit: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.gt(0))
    )
    retry: RetryPolicy | None = None
    rules: Sequence[RetryRule] = ()
    failure_store: FailureStore | None = None
    schedule: ScheduleStore | None = None
    inbox: Inbox | None = None

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing to do but to receive, handle and acknowledge."""
        given = (
            self.time_limit,
            self.retry,
            self.failure_store,
            self.schedule,
            self.inbox,
            self.consumer.capabilities.lease,
        )
        return all(each is None for each in given) and not self.rules


def _ignore(*_: object) -> None:
    pass


@attrs.frozen(kw_only=True)
class Watch:
    """What a worker wants to hear from its consumers.

    *budget* bounds how many messages they take together. After *empty_after* seconds without a
    message a consumer calls *on_empty*; None: it is not asked. *on_error* hears of each failed
    message.
    """

    budget: Budget | None = None
    empty_after: float | None = None
    on_empty: Callable[[], None] = _ignore
    on_error: Callable[[BaseException], None] = _ignore


def _fault_of(task: asyncio.Task[None]) -> Exception | None:
    """Return the fault that ended *task*, which would be lost otherwise."""
    error = None if task.cancelled() else task.exception()
    return error if isinstance(error, Exception) else None


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
        watch: Watch,
    ) -> None:
        self.name = run.name
        self._watch = watch
        self._task_name = f"handle {run.name}"
        self._run = run
        self._consumer = run.consumer
        self._buses = buses
        self._decode: Callable[[bytes], Envelope] = partial(
            decode,
            catalog=catalog,
            unknown_fields=run.unknown_fields,
            max_size_bytes=run.max_size_bytes,
        )
        if armed:
            self._decode = pointed_decode(self._decode)
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
        # Nothing new is received or begun meanwhile.
        self._is_paused = False
        self._is_held_back = False
        self._handling: set[asyncio.Task[None]] = set()
        self._receiving: asyncio.Task[None] | None = None
        self._is_empty = False
        # What receiving fails with, as long as it does.
        self._broken_by: str | None = None

    def start(self, on_end: Callable[[Exception | None], None]) -> None:
        """Begin to receive; *on_end* is called when the consumer has nothing more to give."""
        self._receiving = asyncio.create_task(self._receive(), name=f"receive {self.name}")
        self._receiving.add_done_callback(lambda task: on_end(_fault_of(task)))

    @property
    def is_empty(self) -> bool:
        """Whether the last look found nothing, and nothing is being handled."""
        return self._is_empty and self._held == 0

    @property
    def _is_full(self) -> bool:
        """Whether so many have failed that no more should be received."""
        return self._failures.is_full

    @property
    def state(self) -> str:
        """What it is doing, for a probe: "receiving", "paused", "broken" or "ended"."""
        if self._receiving is None or self._receiving.done():
            return "ended"
        if self._broken_by is not None:
            return "broken"
        return "paused" if self._is_paused else "receiving"

    async def _receive(self) -> None:
        failures = 0
        budget = self._watch.budget
        while True:
            room = self._limit - self._held
            if budget is not None:
                if budget.left == 0:
                    return
                room = min(room, budget.left)
            if room <= 0 or self._is_paused or self._is_full:
                await self._wait_for_room()
                continue
            try:
                batch = await self._fetch(room)
            except ClosedError:
                logger.info("consumer closed", extra={"consumer": self.name})
                return
            except UnsupportedError as error:
                logger.error(  # noqa: TRY400  a traceback could quote what was sent
                    "consumer ended: it cannot work as it is configured",
                    extra={"consumer": self.name, "error": type(error).__name__},
                )
                raise
            except Exception as error:  # noqa: BLE001  a transport's fault must not end the worker
                failures += 1
                await self._back_off(failures, error)
                continue
            if failures:
                failures = 0
                self._broken_by = None
                logger.info("receiving again", extra={"consumer": self.name})
            if not batch:
                await asyncio.sleep(0)
                continue
            if budget is not None:
                batch = self._within(budget, batch)
            self._take(batch)

    def _take(self, batch: Sequence[Delivery]) -> None:
        self._is_empty = False
        if self._is_held_back and self._acknowledge:
            for delivery in batch:
                delivery.nack()
            return
        self._held += len(batch)
        self._ready.extend(batch)
        self._start_handling()

    async def _fetch(self, room: int) -> Sequence[Delivery]:
        """Return what the consumer brings; where somebody asks, also that it brings nothing."""
        seconds = self._watch.empty_after
        if seconds is None:
            return await self._consumer.receive(room)
        try:
            async with asyncio.timeout(seconds):
                return await self._consumer.receive(room)
        except TimeoutError:
            self._is_empty = True
            self._watch.on_empty()
            return ()

    def _within(self, budget: Budget, batch: Sequence[Delivery]) -> Sequence[Delivery]:
        """Give back what other consumers were faster with; what cannot be given back is taken."""
        granted = budget.take(len(batch))
        if not self._acknowledge:
            return batch
        for delivery in batch[granted:]:
            delivery.nack()
        return batch[:granted]

    def pause(self) -> None:
        """Receive and begin nothing more; what was received goes back where it can."""
        self._is_held_back = True
        self._update_paused()
        if self._acknowledge:
            self._held -= len(self._ready)
            while self._ready:
                self._ready.pop().nack()

    def resume(self) -> None:
        """Go on."""
        self._is_held_back = False
        self._update_paused()

    def _update_paused(self) -> None:
        self._is_paused = self._is_held_back
        self._go_on()

    def _go_on(self) -> None:
        if not self._is_paused:
            self._room_came()
            if self._ready:
                self._start_handling()

    async def finish(self) -> None:
        """Stop receiving, and return when everything that was received has been handled."""
        if self._receiving is not None:
            await self._cancel({self._receiving}, "the consumer")
        while self._handling:
            await asyncio.wait(self._handling)

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
        kind = type(error).__name__
        is_news = self._broken_by != kind
        self._broken_by = kind
        pause = self._pause(failures)
        # One line for each change of state: the others say nothing new.
        logger.log(
            logging.WARNING if is_news else logging.DEBUG,
            "receive failed",
            extra={
                "consumer": self.name,
                "error": kind,
                "failures": failures,
                "pause": pause,
            },
        )
        await asyncio.sleep(pause)

    async def _wait_for_room(self) -> None:
        if self._room is None or self._room.done():
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
        while ready and not self._is_paused:
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
            self._watch.on_error(error)
            self._failures.decide(delivery, envelope, error)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                self._failures.decide(delivery, envelope, stopped(), STOPPED)
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
        loop = asyncio.get_running_loop()
        end = loop.time() + grace
        # What fails meanwhile has to be kept, and is one more.
        while self._handling and (left := end - loop.time()) > 0:
            await asyncio.wait(self._handling, timeout=left)
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
            self._failures.decide(delivery, envelope, stopped(), STOPPED)

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
