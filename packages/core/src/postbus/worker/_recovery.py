"""What becomes of a failed message where there are stores: tried again, and then kept.

Nothing is acknowledged before its place is sure: the transport has taken the retry, or a store
has the message.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from postbus.errors import (
    DecodeError,
    EncodeError,
    HandlerFailedError,
    ListenersFailedError,
    NoHandlerError,
    TransportError,
    UnsupportedError,
)
from postbus.settings import mask
from postbus.stores import (
    FailedMessage,
    Failure,
    FailureStore,
    ScheduledMessage,
    ScheduleStore,
    consumer_target,
)
from postbus.transports import Reply, WireMessage
from postbus.wire import encode, encode_problem
from postbus.worker._failures import facts_of, reason_of
from postbus.worker._patience import Patience, Together
from postbus.worker._retries import Retries, RetryPolicy, causes_of

if TYPE_CHECKING:
    from postbus.messages import Envelope
    from postbus.transports import Delivery

__all__ = ["CRASH_LOOP", "Recovery", "failure_key"]

logger = logging.getLogger("postbus.worker")

CRASH_LOOP = "crash_loop"
# How often a message may come back without a word where no policy says how often it is tried.
_MAX_REDELIVERIES = 5
_MAX_TEXT_BYTES = 1024
# What another attempt cannot change.
_HOPELESS = (DecodeError, NoHandlerError, UnsupportedError)


def failure_key(consumer: str, body: bytes, envelope: Envelope | None) -> str:
    """Return the key of a message in a failure store: the same each time it is tried.

    Not its id alone, under which another message may have come.
    """
    own: tuple[bytes, ...] = (body,)
    if envelope is not None:
        own = (envelope.id.encode(), envelope.name.encode(), envelope.payload or b"")
    return hashlib.sha256(b"\0".join((consumer.encode(), *own))).hexdigest()[:16]


@attrs.define(eq=False)
class Recovery:
    """Decides about the failed messages of one consumer. Used on the worker's loop.

    Args:
        consumer: its name.
        retries: its policies.
        failures: where given up messages go, if anywhere.
        schedule: where retries wait that the transport cannot delay, if anywhere.
        patience: how stores are called.
        max_size_bytes: the largest body.
        can_delay: whether a delivery can be retried with a delay.
        hold: keeps a delivery for some seconds and then calls what settles it.
        on_scheduled: called when a message may have been put into the schedule.
    """

    consumer: str
    retries: Retries
    failures: FailureStore | None
    schedule: ScheduleStore | None
    patience: Patience
    max_size_bytes: int
    can_delay: Callable[[Delivery], bool]
    hold: Callable[[Delivery, float, Callable[[], None]], None]
    on_scheduled: Callable[[], None]
    _put: Together[FailedMessage] | None = attrs.field(init=False, default=None)
    _note: Together[tuple[str, Failure]] | None = attrs.field(init=False, default=None)
    _schedule: Together[ScheduledMessage] | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        """Make the ways into the stores."""
        if self.failures is not None:
            self._put = Together(self.failures.put_many, self.patience)
            self._note = Together(self.failures.note_many, self.patience)
        if self.schedule is not None:
            self._schedule = Together(self.schedule.put_many, self.patience)

    def cancel(self) -> None:
        """Wait for no store any more."""
        for each in (self._put, self._note, self._schedule):
            if each is not None:
                each.cancel()

    async def recover(
        self,
        delivery: Delivery,
        envelope: Envelope | None,
        error: BaseException,
        reason: str | None = None,
    ) -> bool:
        """Settle a delivery that failed; False where there is no place for it.

        Raises:
            ClosedError: the worker stopped while a store was down.
            TransportError: the transport refused the retry; the delivery comes back.
        """
        failure = failure_of(error, reason)
        attempt = 1
        if envelope is not None:
            attempt += envelope.headers.get("attempt", 0)
            policy = None
            if reason is None and not isinstance(error, _HOPELESS):
                policy = self.retries.policy(envelope.name, causes_of(error))
            again = _again(envelope, error)
            try:
                if policy is not None and attempt < policy.max_attempts:
                    await self._retry(delivery, again, attempt, policy, failure)
                    return True
                body = delivery.body if again is envelope else self._encode(again)
            except EncodeError:
                # With what we have to add it is too large: then as it came.
                body = delivery.body
        else:
            body = delivery.body
        return await self._give_up(delivery, envelope, body, attempt, failure, error)

    async def came_back(self, delivery: Delivery, envelope: Envelope) -> bool:
        """Count a delivery that came back without a word; True when it was given up for that.

        Raises:
            ClosedError: the worker stopped while the store was down.
        """
        if self.failures is None:
            return False
        key = failure_key(self.consumer, delivery.body, envelope)
        count = await self.patience.call(self.failures.note_redelivery, key)
        policy = self.retries.policy(envelope.name, (Exception(),))
        if count <= (_MAX_REDELIVERIES if policy is None else policy.max_attempts):
            return False
        error = UnsupportedError(f"it was delivered {count} times, and no worker finished it")
        attempt = envelope.headers.get("attempt", 0)
        failure = failure_of(error, CRASH_LOOP)
        return await self._give_up(delivery, envelope, delivery.body, attempt, failure, error)

    def handled(self, delivery: Delivery, envelope: Envelope) -> Any:
        """Return what has to be awaited after a success, None for nothing."""
        if self.failures is None or not (delivery.redelivered or "attempt" in envelope.headers):
            return None
        key = failure_key(self.consumer, delivery.body, envelope)
        return self.patience.call(self.failures.forget, key)

    def _encode(self, envelope: Envelope) -> bytes:
        return encode(envelope, max_size_bytes=self.max_size_bytes)

    async def _retry(
        self,
        delivery: Delivery,
        envelope: Envelope,
        attempt: int,
        policy: RetryPolicy,
        failure: Failure,
    ) -> None:
        delay = policy.delay(attempt)
        body = self._encode(envelope.evolve(headers={**envelope.headers, "attempt": attempt}))
        message = WireMessage(body, delivery.headers, envelope.id, envelope.name, delay=delay)
        if self._note is not None:
            key = failure_key(self.consumer, delivery.body, envelope)
            await self._note.call((key, failure))
        if self.can_delay(delivery):
            delivery.retry(message)
            await delivery.settled()
        elif self._schedule is None:
            message.delay = None
            self.hold(delivery, delay, partial(delivery.retry, message))
        else:
            message.delay = None
            due = datetime.now(UTC) + timedelta(seconds=delay)
            row = ScheduledMessage(target=consumer_target(self.consumer), due=due, message=message)
            await self._schedule.call(row)
            delivery.ack()
        self.on_scheduled()
        logger.info(
            "message is tried again",
            extra={**self._about(delivery, envelope, failure), "attempt": attempt, "delay": delay},
        )

    async def _give_up(
        self,
        delivery: Delivery,
        envelope: Envelope | None,
        body: bytes,
        attempts: int,
        failure: Failure,
        error: BaseException,
    ) -> bool:
        if self._put is None:
            return False
        failed = FailedMessage(
            key=failure_key(self.consumer, delivery.body, envelope),
            consumer=self.consumer,
            body=body,
            reason=failure.reason,
            id=None if envelope is None else envelope.id,
            name=None if envelope is None else envelope.name,
            attempts=attempts,
            failed_at=failure.at,
            history=(failure,),
        )
        await self._put.call(failed)
        if envelope is None and delivery.can_reply:
            # Nobody may be there to read it.
            delivery.reply(Reply(encode_problem(error), is_error=True))
        delivery.ack()
        logger.error(
            "message given up: %s",
            failed.key,
            extra={**self._about(delivery, envelope, failure), "attempt": attempts},
        )
        return True

    def _about(
        self, delivery: Delivery, envelope: Envelope | None, failure: Failure
    ) -> dict[str, Any]:
        return {
            "consumer": self.consumer,
            "message_id": envelope and envelope.id,
            "message_name": envelope and envelope.name,
            "body_bytes": len(delivery.body),
            "reason": failure.reason,
            "error": failure.error,
            "code": failure.code,
            "where": failure.where,
        }


def _again(envelope: Envelope, error: BaseException) -> Envelope:
    """Return what to handle next time: of an event only what has not finished."""
    known = error.envelope if isinstance(error, ListenersFailedError | TransportError) else None
    if known is None or known.id != envelope.id or "done" not in known.headers:
        return envelope
    if known.headers["done"] == envelope.headers.get("done", []):
        return envelope
    return envelope.evolve(headers={**envelope.headers, "done": known.headers["done"]})


def failure_of(error: BaseException, reason: str | None = None) -> Failure:
    """Return what a failure store keeps about *error*: bounded, and without what looks secret."""
    facts = facts_of(error)
    causes = causes_of(error)
    said = error.message if isinstance(error, HandlerFailedError) else str(causes[0])
    code = facts["code"]
    return Failure(
        at=datetime.now(UTC),
        reason=str(reason or reason_of(error)),
        error=_printable(facts["error"] or ""),
        code=None if code is None else _printable(code),
        text=_printable(mask(said)),
        where=facts["where"],
    )


def _printable(text: str) -> str:
    """Return *text* on one line and in ASCII, whatever it is, so that any store takes it."""
    return text.encode("unicode_escape")[:_MAX_TEXT_BYTES].decode("ascii")
