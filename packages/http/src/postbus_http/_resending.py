"""Whether and when a request is sent again: what failed, how often, and what the server asked."""

from __future__ import annotations

import math
import random
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from postbus.errors import ConnectionFailedError, TimedOutError
from postbus_http._exchange import Answer

if TYPE_CHECKING:
    from postbus.errors import TransportError
    from postbus_http.settings import ResendSettings

__all__ = ["Attempts", "retry_after"]

# Request Timeout, Too Early, Too Many Requests; beside all of 5xx.
_WORTH_RESENDING = frozenset({408, 425, 429})
_SERVER_ERRORS = range(500, 600)
# Conflict: the message of an earlier attempt is still being handled, where a server says when to
# ask again.
_STILL_RUNNING = 409
# Added to what a server asks for, so that those it turned away do not come back together.
_SPREAD = 0.25


class Attempts:
    """The attempts at one request, until *deadline*, in seconds of `time.monotonic`.

    *is_query*: a problem that comes back is the answer, unless it says when to come again.
    """

    def __init__(
        self, settings: ResendSettings | None, deadline: float, *, is_query: bool = False
    ) -> None:
        self._settings = settings
        self._deadline = deadline
        self._is_query = is_query
        self._count = 0

    def pause_after(self, outcome: Answer | TransportError) -> float | None:
        """Return how many seconds to wait before the next attempt, None for no other.

        Pauses are drawn from all between 0 and a bound that grows (full jitter); what a server
        asks for by `Retry-After` is waited in full. A pause that the deadline does not allow is
        none. Source: aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter.
        """
        self._count += 1
        settings = self._settings
        if settings is None or self._count >= settings.max_attempts or not self._is_worth(outcome):
            return None
        growth = settings.multiplier ** min(self._count - 1, 64)
        pause = random.uniform(0.0, min(settings.max_delay, settings.initial_delay * growth))  # noqa: S311  nothing secret about a pause
        asked = retry_after(outcome) if isinstance(outcome, Answer) else None
        if asked is not None:
            pause = asked + min(pause, _SPREAD)
        return pause if time.monotonic() + pause < self._deadline else None

    def _is_worth(self, outcome: Answer | TransportError) -> bool:
        if not isinstance(outcome, Answer):
            return isinstance(outcome, ConnectionFailedError | TimedOutError)
        is_final = outcome.status == _STILL_RUNNING or (self._is_query and outcome.is_problem)
        if is_final:
            return b"retry-after" in outcome.headers
        return outcome.status in _WORTH_RESENDING or outcome.status in _SERVER_ERRORS


def retry_after(answer: Answer) -> float | None:
    """Return the seconds that `Retry-After` asks for, as a number or as a date; None for none.

    Source: RFC 9110, section 10.2.3.
    """
    text = answer.headers.get(b"retry-after", b"").decode("latin-1").strip()
    if text.isascii() and text.isdigit():
        seconds = float(text)
        return seconds if math.isfinite(seconds) else None
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
