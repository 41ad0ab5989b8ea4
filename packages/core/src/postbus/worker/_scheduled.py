"""Messages that come from a schedule instead of a transport, when they are due."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from postbus.errors import TransportError
from postbus.promises import Promise
from postbus.stores import Claim, ScheduledMessage, ScheduleStore, producer_target
from postbus.transports import Delivery, WireMessage
from postbus.worker._patience import Patience, StoreThreads

if TYPE_CHECKING:
    from postbus.transports import MessageProducer

__all__ = ["Due", "DueSends", "ScheduledDelivery", "Sending"]

logger = logging.getLogger("postbus.worker")

# How long others wait for what a dead worker had claimed; a live one renews it.
SCHEDULE_LEASE = 30.0
# Others may put something into the schedule: how often an idle worker looks, in seconds.
_LONGEST_WAIT = 1.0
# What a producer did not take is offered to it again after this many seconds.
_SEND_AGAIN = 5.0
_BATCH = 100


class ScheduledDelivery(Delivery):
    """A due message. What is asked about it is carried out in a thread for stores.

    Used on the worker's loop. A settlement that the store refuses is lost: the lease ends, and
    the message comes again.
    """

    __slots__ = ("_claim", "_future", "_is_final", "_schedule", "_threads")

    def __init__(self, claim: Claim, schedule: ScheduleStore, threads: StoreThreads) -> None:
        message = claim.scheduled.message
        super().__init__(
            message.body, message.headers, claim.scheduled.target, redelivered=claim.redelivered
        )
        self._claim = claim
        self._schedule = schedule
        self._threads = threads
        self._is_final = False
        self._future: Future[bool] | None = None

    def _settle(self, function: Callable[..., bool], *arguments: Any) -> None:
        if not self._is_final:
            self._is_final = True
            self._future = self._threads.submit(function, self._claim, *arguments)

    def ack(self) -> None:
        """Drop the row."""
        self._settle(self._schedule.complete)

    def nack(self) -> None:
        """Let others claim it."""
        self._settle(self._schedule.release)

    def retry(self, message: WireMessage) -> None:
        """Put *message* in its place, due after its delay."""
        due = datetime.now(UTC) + timedelta(seconds=message.delay or 0.0)
        message = WireMessage(message.body, message.headers, message.id, message.name)
        row = ScheduledMessage(target=self._claim.scheduled.target, due=due, message=message)
        self._settle(self._schedule.replace, row)

    def extend(self, seconds: float) -> None:
        """Keep the claim for another *seconds*."""
        if not self._is_final:
            self._threads.submit(self._schedule.extend, self._claim, seconds)

    def settled(self) -> Promise[None]:
        """Return a promise of the settlement asked last."""
        promise: Promise[None] = Promise()

        def settle(future: Future[bool]) -> None:
            error = future.exception()
            if error is None and not future.result():
                error = TransportError(f"{self.source}: the claim had ended")
            if error is None:
                promise.resolve(None)
            else:
                promise.reject(error)

        assert self._future is not None  # noqa: S101  asked for after a settlement
        self._future.add_done_callback(settle)
        return promise

    @property
    def lost(self) -> bool:
        """Whether a settlement has failed."""
        future = self._future
        if future is None or not future.done():
            return False
        return future.exception() is not None or not future.result()


@attrs.frozen(kw_only=True)
class Sending:
    """The producers through which a worker sends what stores have kept, all by their names.

    Args:
        producers: an inbox sends through them what a handled message has still to send.
        later: what delays messages for producers that cannot.
        schedules: where delayed messages wait for this worker, and for which producers.
    """

    producers: Mapping[str, MessageProducer] = attrs.field(factory=dict[str, "MessageProducer"])
    later: Mapping[str, MessageProducer] = attrs.field(factory=dict[str, "MessageProducer"])
    schedules: Sequence[tuple[ScheduleStore, Sequence[str]]] = ()


class Due:
    """Waits for what is due for some targets, on the worker's loop.

    Args:
        schedule: where it is.
        targets: whose it is.
        patience: how the store is called.
    """

    def __init__(
        self, schedule: ScheduleStore, targets: Sequence[str], patience: Patience
    ) -> None:
        self._schedule = schedule
        self._targets = tuple(targets)
        self._patience = patience
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Look again: something was put into the schedule."""
        self._changed.set()

    async def take(self, limit: int) -> Sequence[Claim]:
        """Return what is due, at most *limit*; waits a second at most for a first one."""
        claims = await self._patience.call(self._claim, limit)
        if claims:
            return claims
        due = await self._patience.call(self._schedule.next_due, self._targets)
        wait = _LONGEST_WAIT
        if due is not None:
            wait = min(wait, max(0.0, (due - datetime.now(UTC)).total_seconds()))
        try:
            async with asyncio.timeout(wait):
                await self._changed.wait()
        except TimeoutError:
            return ()
        self._changed.clear()
        return ()

    def _claim(self, limit: int) -> Sequence[Claim]:
        return self._schedule.claim(self._targets, limit=limit, lease=SCHEDULE_LEASE)


@attrs.define
class DueSends:
    """Sends what was dispatched with a delay, through producers that cannot delay.

    Args:
        schedule: where it waits.
        producers: by the names of their sections.
        names: of the producers whose messages wait there.
        threads: where producers and store are called.
        patience: how the store is called.
    """

    schedule: ScheduleStore
    producers: Mapping[str, MessageProducer]
    names: Sequence[str]
    threads: StoreThreads
    patience: Patience

    async def run(self) -> None:
        """Send whatever becomes due, until cancelled."""
        targets = {producer_target(name): name for name in self.names}
        due = Due(self.schedule, tuple(targets), self.patience)
        while True:
            for claim in await due.take(_BATCH):
                name = targets[claim.scheduled.target]
                await self.threads.run(self._send, claim, self.producers[name])

    def _send(self, claim: Claim, producer: MessageProducer) -> None:
        message = claim.scheduled.message
        try:
            producer.send(message)
        except Exception as error:  # noqa: BLE001  a producer's fault keeps the message
            again = datetime.now(UTC) + timedelta(seconds=_SEND_AGAIN)
            logger.warning(
                "a due message could not be sent",
                extra={
                    "message_id": message.id,
                    "message_name": message.name,
                    "error": type(error).__name__,
                },
            )
            put_off = attrs.evolve(claim.scheduled, due=again)
            settle = partial(self.schedule.replace, claim, put_off)
        else:
            settle = partial(self.schedule.complete, claim)
        try:
            settle()
        except TransportError as error:
            # The lease ends, and it is sent again under the same id.
            logger.warning(
                "a schedule did not hear what was sent",
                extra={"message_id": message.id, "error": type(error).__name__},
            )
