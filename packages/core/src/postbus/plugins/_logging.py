"""A record in the log for every dispatch."""

from __future__ import annotations

import logging
from time import perf_counter
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from postbus.pipeline import Stage
from postbus.promises import Promise

if TYPE_CHECKING:
    from postbus.messages import Envelope
    from postbus.pipeline import DispatchContext

# Later than any listener that may still change the outcome, a FinalizeGuard included.
LAST = -1_000_000


class LoggingPlugin:
    """Logs how each dispatch ended: which message, how long it took, what failed.

    A record says "message dispatched" or "message dispatch failed" and carries, as attributes,
    *message_name*, *message_id*, *kind*, *source* (the consumer of a received message),
    *correlation_id*, *causation_id* and *duration*: seconds from INVOKE to the end, 0.0 where
    INVOKE was not reached. Of a failure also *error*, the name of the exception's class, and
    *code*. Never a payload, nor the words of an exception, which may quote one. A query that was
    sent is logged when its answer is there, in the thread that brings it. A unit of work commits
    after the record was written.

    Args:
        logger: where to; `postbus.dispatch` unless given.
        level: of dispatches that went well; INFO, since it is a record per message.
        failure_level: of those that failed; WARNING, since whoever dispatched gets the error and
            knows whether it matters.
    """

    def __init__(
        self,
        logger: logging.Logger | None = None,
        *,
        level: int = logging.INFO,
        failure_level: int = logging.WARNING,
    ) -> None:
        self._logger = logging.getLogger("postbus.dispatch") if logger is None else logger
        self._level = level
        self._failure_level = failure_level
        self._started: WeakKeyDictionary[DispatchContext, float] = WeakKeyDictionary()

    def attach(self, bus: Any) -> None:
        """Log the dispatches of *bus*: `bus.utilize(plugin)`."""
        bus.attach(Stage.INVOKE, self._start, LAST)
        bus.attach(Stage.FINALIZE, self._finish, LAST)

    def _start(self, context: DispatchContext) -> None:
        # Asked for now, so that what is sent and what is logged is one identity.
        _ = context.envelope
        self._started[context] = perf_counter()

    def _finish(self, context: DispatchContext) -> None:
        started = self._started.pop(context, None)
        envelope, answer = context.envelope, context.result
        if context.error is not None or answer.__class__ is not Promise:
            self._log(envelope, started, context.error)
            return

        def on_done(answer: Promise[Any]) -> None:
            self._log(envelope, started, answer.exception())

        answer.add_done_callback(on_done)

    def _log(
        self,
        envelope: Envelope,
        started: float | None,
        error: BaseException | None,
    ) -> None:
        level = self._level if error is None else self._failure_level
        if not self._logger.isEnabledFor(level):
            return
        facts = {
            "message_name": envelope.name,
            "message_id": envelope.id,
            "kind": envelope.kind,
            "source": envelope.received_from,
            "correlation_id": envelope.headers.get("correlation_id"),
            "causation_id": envelope.headers.get("causation_id"),
            "duration": 0.0 if started is None else perf_counter() - started,
        }
        if error is None:
            self._logger.log(level, "message dispatched", extra=facts)
            return
        code = getattr(error, "code", None)
        facts["error"] = type(error).__name__
        facts["code"] = code if isinstance(code, str) else None
        self._logger.log(level, "message dispatch failed", extra=facts)
