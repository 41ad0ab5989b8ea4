"""A consumer with more to do than to handle: stores, retries, leases, limits of time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from msgspec import convert

from postbus.errors import ClosedError, TimedOutError, TransportError, UnsupportedError
from postbus.messages import MessageKind
from postbus.stores import consumer_target
from postbus.transports import Reply
from postbus.wire import encode_result
from postbus.worker._consumption import STOPPED, ConsumerRun, Consumption, Watch, stopped
from postbus.worker._failures import MAX_SET_ASIDE
from postbus.worker._patience import Patience, StoreThreads
from postbus.worker._receipts import (
    INBOX_LEASE,
    PURGE_INTERVAL,
    BusyError,
    ConflictError,
    InboxReceipt,
    KeptReply,
    Receipts,
    inbox_trouble,
)
from postbus.worker._recovery import Recovery
from postbus.worker._retries import Retries
from postbus.worker._scheduled import SCHEDULE_LEASE, Due, ScheduledDelivery, Sending

if TYPE_CHECKING:
    from postbus.catalog import MessageCatalog
    from postbus.messages import Envelope
    from postbus.stores import Inbox
    from postbus.transports import Delivery
    from postbus.worker._consumption import ReceivingBus

__all__ = ["KeptConsumption"]

logger = logging.getLogger("postbus.worker")

# How long a message waits that somebody else is at, before it is looked at again, in seconds.
_BUSY_PAUSE = 1.0


class KeptConsumption(Consumption):
    """Runs one consumer that has stores, policies, limits of time or leases."""

    def __init__(
        self,
        run: ConsumerRun,
        buses: Mapping[MessageKind, ReceivingBus],
        catalog: MessageCatalog,
        pause: Callable[[int], float],
        watch: Watch,
        threads: StoreThreads,
        sending: Sending,
    ) -> None:
        super().__init__(run, buses, catalog, pause, watch)
        self._threads = threads
        self._patience = Patience(run.name, threads, pause, self._update_paused)
        self._due: Due | None = None
        if run.schedule is not None:
            self._due = Due(run.schedule, [consumer_target(run.name)], self._patience)
        self._receipts: Receipts | None = None
        if run.inbox is not None:
            self._receipts = Receipts(
                run.inbox, threads, sending.producers, sending.later, INBOX_LEASE
            )
        self._recovery = Recovery(
            run.name,
            Retries(run.retry, run.rules),
            run.failure_store,
            run.schedule,
            self._patience,
            run.max_size_bytes,
            self._can_delay,
            self._failures.hold,
            self._due.changed if self._due is not None else lambda: None,
        )
        self._is_due_empty = True
        # Those that are being handled, whose leases may have to be renewed.
        self._working: set[Delivery] = set()
        # Those that wait for another worker, which is at them.
        self._busy: set[Delivery] = set()
        # Those that failed, until a store or the transport has them.
        self._recovering: set[Delivery] = set()
        self._tending: list[asyncio.Task[None]] = []

    def _can_delay(self, delivery: Delivery) -> bool:
        able = self._consumer.capabilities
        return isinstance(delivery, ScheduledDelivery) or (able.retry and able.delay is not None)

    # -- receiving -----------------------------------------------------------------------------

    def start(self, on_end: Callable[[Exception | None], None]) -> None:
        """Begin to receive, and to do what is due by itself."""
        super().start(on_end)
        if self._due is not None:
            self._tending.append(
                asyncio.create_task(self._receive_due(self._due), name=f"schedule {self.name}")
            )
        leases = [
            self._consumer.capabilities.lease,
            None if self._due is None else SCHEDULE_LEASE,
            None if self._receipts is None else self._receipts.lease,
        ]
        known = [lease for lease in leases if lease is not None]
        if known:
            renewing = self._renew_leases(min(known) / 3)
            self._tending.append(asyncio.create_task(renewing, name=f"leases {self.name}"))
        if self._run.inbox is not None:
            purging = self._purge(self._run.inbox)
            self._tending.append(asyncio.create_task(purging, name=f"inbox {self.name}"))

    async def _purge(self, inbox: Inbox) -> None:
        """Let the inbox forget what is old, a little at a time."""
        while True:
            await asyncio.sleep(PURGE_INTERVAL)
            try:
                await self._patience.call(inbox.purge)
            except ClosedError:
                return

    async def _receive(self) -> None:
        if self._run.inbox is not None:
            # Its tables have to be there before a transaction that joins them begins.
            try:
                await self._patience.call(self._run.inbox.purge)
            except ClosedError:
                return
        await super()._receive()

    async def _receive_due(self, due: Due) -> None:
        assert self._run.schedule is not None  # noqa: S101  there is a Due
        schedule, threads, budget = self._run.schedule, self._threads, self._watch.budget
        while budget is None or budget.left > 0:
            room = self._limit - self._held
            if budget is not None:
                room = min(room, budget.left)
            if room <= 0 or self._is_paused or self._is_full:
                await self._wait_for_room()
                continue
            try:
                claims = await due.take(room)
            except ClosedError:
                return
            self._is_due_empty = not claims
            if claims:
                due_now = [ScheduledDelivery(claim, schedule, threads) for claim in claims]
                granted = len(due_now) if budget is None else budget.take(len(due_now))
                for delivery in due_now[granted:]:
                    delivery.nack()
                self._take(due_now[:granted])

    @property
    def is_empty(self) -> bool:
        """Whether nothing is due either, and nothing waits for a store."""
        return super().is_empty and self._is_due_empty and not self._recovering

    @property
    def _is_full(self) -> bool:
        return super()._is_full or len(self._recovering) >= MAX_SET_ASIDE

    def _update_paused(self) -> None:
        self._is_paused = self._is_held_back or self._patience.is_waiting
        self._go_on()

    async def _renew_leases(self, interval: float) -> None:
        lease = self._consumer.capabilities.lease
        while True:
            await asyncio.sleep(interval)
            for delivery in (*self._working, *self._recovering, *self._busy, *self._ready):
                self._extend(delivery, lease)
            if self._receipts is not None:
                for receipt in tuple(self._receipts.claimed):
                    self._threads.submit(receipt.renew)

    def _extend(self, delivery: Delivery, lease: float | None) -> None:
        if isinstance(delivery, ScheduledDelivery):
            lease = SCHEDULE_LEASE
        if lease is None or delivery.lost:
            return
        try:
            delivery.extend(lease)
        except TransportError as error:
            logger.warning(
                "a lease could not be renewed",
                extra={"consumer": self.name, "error": type(error).__name__},
            )

    # -- handling ------------------------------------------------------------------------------

    async def _handle(self, delivery: Delivery) -> None:
        envelope: Envelope | None = None
        self._working.add(delivery)
        try:
            envelope = self._decode(delivery.body)
            await self._work(delivery, envelope)
        except Exception as error:  # noqa: BLE001  whatever went wrong, the consumer goes on
            self._fail(delivery, envelope, error)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                self._failures.decide(delivery, envelope, stopped(), STOPPED)
                raise
            # The handler awaited something that somebody else cancelled: a failure like others.
            self._fail(delivery, envelope, error)
        except BaseException as error:  # SystemExit and the like: end, but lose nothing
            self._failures.decide(delivery, envelope, error)
            raise
        finally:
            self._working.discard(delivery)

    async def _work(self, delivery: Delivery, envelope: Envelope) -> None:
        is_query = envelope.kind is MessageKind.QUERY
        is_counted = delivery in self._busy
        self._busy.discard(delivery)
        may_loop = delivery.redelivered and not (is_query or is_counted)
        if may_loop and await self._recovery.came_back(delivery, envelope):
            return
        while True:
            try:
                if is_query:
                    await self._answer(delivery, envelope)
                    return
                await self._dispatch(envelope, None)
                break
            except (TransportError, ExceptionGroup) as error:
                trouble = inbox_trouble(error)
                if trouble is None:
                    raise
            if isinstance(trouble, BusyError):
                self._wait_for_other(delivery, trouble)
                return
            # Nothing was handled: once the inbox is back the same message has another go.
            assert self._run.inbox is not None  # noqa: S101  it said so
            await self._patience.call(self._run.inbox.purge)
        delivery.ack()
        forget = self._recovery.handled(delivery, envelope)
        if forget is not None:
            await forget

    async def _dispatch(
        self, envelope: Envelope, encode_reply: Callable[[Any], bytes] | None
    ) -> Any:
        bus: Any = self._bus(envelope)
        options: dict[str, InboxReceipt] = {}
        if self._receipts is not None:
            options["receipt"] = self._receipts.make(envelope, encode_reply)
        handling = bus.areceive(envelope, self.name, threads=True, **options)
        limit = self._run.time_limit
        if limit is None:
            return await handling
        scope = asyncio.timeout(limit)
        try:
            async with scope:
                return await handling
        except TimeoutError:
            if not scope.expired():
                raise
            msg = f"{envelope.name} was not handled within {limit} seconds"
            raise TimedOutError(msg, envelope) from None

    def _wait_for_other(self, delivery: Delivery, busy: BusyError) -> None:
        # Kept and not given back: each time it came it would count as one that a crash left.
        left = (busy.until - datetime.now(UTC)).total_seconds()
        seconds = min(max(left, 0.0), _BUSY_PAUSE)
        self._busy.add(delivery)

        def take_up() -> None:
            if self._patience.is_stopped:
                self._failures.decide(delivery, None, stopped(), STOPPED)
                return
            self._held += 1
            self._ready.append(delivery)
            self._start_handling()

        self._failures.hold(delivery, seconds, take_up)

    async def _answer(self, delivery: Delivery, envelope: Envelope) -> None:
        if not delivery.can_reply:
            error: TransportError = UnsupportedError(
                f"{envelope.name} came without a reply channel"
            )
            self._fail(delivery, envelope, error, "no_reply_channel")
            return
        deadline = envelope.headers.get("deadline")
        if deadline is not None and convert(deadline, datetime) <= datetime.now(UTC):
            error = TimedOutError("the deadline passed before the query was handled")
            self._fail(delivery, envelope, error, "deadline_passed")
            return
        result = await self._dispatch(envelope, self._encode_reply)
        body = result.body if isinstance(result, KeptReply) else self._encode_reply(result)
        delivery.reply(Reply(body))
        delivery.ack()

    def _encode_reply(self, result: Any) -> bytes:
        return encode_result(result, max_size_bytes=self._run.max_size_bytes)

    def _fail(
        self,
        delivery: Delivery,
        envelope: Envelope | None,
        error: BaseException,
        reason: str | None = None,
    ) -> None:
        """Settle what was not handled, while others are handled: stores take their time."""
        self._watch.on_error(error)
        self._recovering.add(delivery)
        recovering = self._recover(delivery, envelope, error, reason)
        task = asyncio.create_task(recovering, name=f"recover {self.name}")

        def end(task: asyncio.Task[None]) -> None:
            self._recovering.discard(delivery)
            if task.cancelled():
                self._failures.decide(delivery, envelope, stopped(), STOPPED)
            if len(self._ready) <= self._low:
                self._room_came()

        task.add_done_callback(end)
        self._handling.add(task)
        task.add_done_callback(self._handled)

    async def _recover(
        self,
        delivery: Delivery,
        envelope: Envelope | None,
        error: BaseException,
        reason: str | None,
    ) -> None:
        """Settle it: by its policy, else by a store, else by giving it back."""
        if isinstance(error, ConflictError):
            reason = "id_conflict"
        if envelope is None:
            is_for_sender = delivery.is_awaited
        else:
            is_for_sender = envelope.kind is MessageKind.QUERY and delivery.can_reply
        try:
            if is_for_sender or not await self._recovery.recover(
                delivery, envelope, error, reason
            ):
                self._failures.decide(delivery, envelope, error, reason)
        except Exception as trouble:  # noqa: BLE001  the worker stops, or the transport has it back
            logger.warning(
                "a failed delivery could not be recovered",
                extra={"consumer": self.name, "error": type(trouble).__name__},
            )
            self._failures.decide(delivery, envelope, error, reason)

    # -- stopping ------------------------------------------------------------------------------

    async def finish(self) -> None:
        """Do what every consumer does, and take nothing that becomes due."""
        await self._stop_schedule()
        await super().finish()

    async def _stop_schedule(self) -> None:
        receiving = [task for task in self._tending if task.get_name().startswith("schedule")]
        await self._cancel(set(receiving), "the schedule")

    async def drain(self, grace: float) -> None:
        """Do what every consumer does, and stop waiting for stores."""
        self._patience.stop()
        await self._stop_schedule()
        await super().drain(grace)
        self._recovery.cancel()
        await self._cancel(set(self._tending), "renewing leases")
