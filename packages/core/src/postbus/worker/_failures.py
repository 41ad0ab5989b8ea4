"""What becomes of a delivery that was not handled, where no store takes it.

A query is answered with a problem. Anything else goes back to its transport after a pause that
grows with every failure of the same bytes, so that neither a poisoned message nor a broken
handler spins, and messages behind it are handled meanwhile. Where a transport takes nothing
back, the message is lost, and an error in the log says which.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from postbus.errors import (
    DecodeError,
    HandlerFailedError,
    ListenersFailedError,
    NoHandlerError,
    TransportError,
    UnauthorizedError,
    ValidationFailedError,
)
from postbus.messages import MessageKind
from postbus.transports import Reply
from postbus.wire import encode_problem
from postbus.worker._scheduled import ScheduledDelivery

if TYPE_CHECKING:
    from collections.abc import Callable

    from postbus.messages import Envelope
    from postbus.transports import Delivery

__all__ = ["MAX_SET_ASIDE", "Failures", "default_pause", "facts_of", "reason_of"]

logger = logging.getLogger("postbus.worker")

# Deliveries that wait for their pause to end are held in memory, and so is the number of failures
# of a message: both are bounded, whatever arrives.
MAX_SET_ASIDE = 100
_MAX_COUNTED = 1_000
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (HandlerFailedError, "handler_failed"),
    (ListenersFailedError, "listeners_failed"),
    (NoHandlerError, "no_handler"),
    (UnauthorizedError, "unauthorized"),
    (ValidationFailedError, "validation_failed"),
    (TransportError, "send_failed"),
    (asyncio.CancelledError, "cancelled"),
)


def default_pause(failures: int) -> float:
    """Return the seconds to wait after *failures* in a row: 0.1, doubled each time, at most 5.

    Up to a quarter less, at random, so that many workers do not come back at one moment.
    """
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures - 1, 16))
    return longest * random.uniform(0.75, 1.0)  # noqa: S311  nothing secret about a pause


def reason_of(error: BaseException) -> str:
    """Return the stable code that a log record and a failure store have for *error*."""
    if isinstance(error, DecodeError):
        return error.reason
    return next((code for cls, code in _REASONS if isinstance(error, cls)), "error")


class Failures:
    """The failed deliveries of one consumer. Used on the worker's loop only.

    Args:
        consumer: its name, for the log.
        acknowledge: whether its deliveries can be given back.
        pause: the seconds to wait after the nth failure.
        on_given_back: called when a delivery that was set aside has left.
    """

    def __init__(
        self,
        consumer: str,
        *,
        acknowledge: bool,
        pause: Callable[[int], float],
        on_given_back: Callable[[], None],
    ) -> None:
        self._consumer = consumer
        self._acknowledge = acknowledge
        self._pause = pause
        self._on_given_back = on_given_back
        self._is_stopping = False
        self._aside: dict[int, tuple[Callable[[], None], asyncio.TimerHandle]] = {}
        # Failures in a row by the hash of the body, which is there even where no id is.
        self._counts: dict[int, int] = {}

    @property
    def is_full(self) -> bool:
        """Whether so many deliveries are set aside that no more should be received."""
        return len(self._aside) >= MAX_SET_ASIDE

    def forget(self, delivery: Delivery) -> None:
        """Note that *delivery* was handled: its next failure, if any, is a first one."""
        if self._counts:
            self._counts.pop(hash(delivery.body), None)

    def decide(
        self,
        delivery: Delivery,
        envelope: Envelope | None,
        error: BaseException,
        reason: str | None = None,
    ) -> None:
        """Settle a delivery that was not handled because of *error*. Raises nothing.

        *envelope* is None where the bytes could not be decoded; *reason* is a stable code
        (default: what *error* says).
        """
        try:
            self._decide(delivery, envelope, error, reason or reason_of(error))
        except Exception as problem:  # noqa: BLE001  a transport's fault must not end the consumer
            logger.error(  # noqa: TRY400  a traceback could quote the message
                "a failed delivery could not be settled",
                extra={"consumer": self._consumer, "error": type(problem).__name__},
            )

    def _decide(
        self, delivery: Delivery, envelope: Envelope | None, error: BaseException, reason: str
    ) -> None:
        facts = {
            "consumer": self._consumer,
            "message_id": envelope and envelope.id,
            "message_name": envelope and envelope.name,
            "body_bytes": len(delivery.body),
            "reason": reason,
            **facts_of(error),
        }
        is_query = envelope is None or envelope.kind is MessageKind.QUERY
        may_return = self._acknowledge and self._is_stopping
        if is_query and delivery.can_reply and not may_return:
            delivery.reply(Reply(encode_problem(error), is_error=True))
            delivery.ack()
            logger.warning("query failed", extra=facts)
        elif not (self._acknowledge or isinstance(delivery, ScheduledDelivery)):
            logger.error("message lost: %s", facts["message_id"], extra=facts)
        elif self._is_stopping:
            delivery.nack()
            logger.info("message given back", extra=facts)
        else:
            failures, pause = self._set_aside(delivery)
            logger.warning("message failed", extra={**facts, "failures": failures, "pause": pause})

    def _set_aside(self, delivery: Delivery) -> tuple[int, float]:
        counts, key = self._counts, hash(delivery.body)
        failures = counts.pop(key, 0) + 1
        counts[key] = failures
        if len(counts) > _MAX_COUNTED:
            del counts[next(iter(counts))]
        pause = self._pause(failures)
        self.hold(delivery, pause, delivery.nack)
        return failures, pause

    def hold(self, delivery: Delivery, seconds: float, settle: Callable[[], None]) -> None:
        """Set *delivery* aside; after *seconds*, or when the worker stops, *settle* is called."""
        # The delivery is what `settle` holds on to, so its identity is its own until then.
        timer = asyncio.get_running_loop().call_later(seconds, self._give_back, id(delivery))
        self._aside[id(delivery)] = (settle, timer)

    def _give_back(self, key: int) -> None:
        settle, timer = self._aside.pop(key)
        timer.cancel()
        try:
            settle()
        except Exception as problem:  # noqa: BLE001  as in decide()
            logger.error(  # noqa: TRY400  as in decide()
                "a failed delivery could not be given back",
                extra={"consumer": self._consumer, "error": type(problem).__name__},
            )
        self._on_given_back()

    def stop(self) -> None:
        """Give back at once what is set aside, and from now on whatever fails."""
        self._is_stopping = True
        for key in tuple(self._aside):
            self._give_back(key)


def facts_of(error: BaseException) -> dict[str, str | None]:
    """Say what was raised and where: of an exception the parts that cannot quote a message."""
    if isinstance(error, ListenersFailedError):
        error = error.exceptions[0]
    origin = error.__cause__ or error
    return {
        "error": type(origin).__name__,
        "code": error.code if isinstance(error, HandlerFailedError) else None,
        "where": _where(origin),
        # The decoder says what it expected and where, never what it found.
        "detail": error.message if isinstance(error, DecodeError) else None,
    }


def _where(error: BaseException) -> str | None:
    frame = error.__traceback__
    if frame is None:
        return None
    while frame.tb_next is not None:
        frame = frame.tb_next
    code = frame.tb_frame.f_code
    return f"{code.co_filename}:{frame.tb_lineno} in {code.co_qualname}"
