"""A producer that sends nothing and remembers everything."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from postbus.errors import (
    ClosedError,
    PartiallySentError,
    RejectedError,
    TransportError,
    UnsupportedError,
)
from postbus.transports import Capabilities, MessageProducer, Reply
from postbus.wire import decode, encode_problem, encode_result

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from postbus.catalog import MessageCatalog
    from postbus.messages import Envelope
    from postbus.promises import Promise
    from postbus.transports import WireMessage

__all__ = ["RecordingProducer"]

_EVERYTHING = Capabilities(
    acknowledge=True,
    redeliver_on_crash=True,
    durable=True,
    queries=True,
    retry=True,
    delay=0.001,
    priority=True,
    expiry=True,
    ordering=True,
)


class RecordingProducer(MessageProducer):
    """Records what is sent, and answers queries as told. Any thread.

    Args:
        capabilities: what it claims, and so refuses (default: it can do everything).
        answers: by name of a query: its result, or an exception it fails with. A query without
            an answer is recorded and rejected.
        error: what every send and request fails with; nothing is recorded then.
    """

    def __init__(
        self,
        *,
        capabilities: Capabilities = _EVERYTHING,
        answers: Mapping[str, Any] | None = None,
        error: TransportError | None = None,
    ) -> None:
        self.capabilities = capabilities
        self._answers = dict(answers or {})
        self._error = error
        self._lock = threading.Lock()
        self._messages: list[WireMessage] = []
        self._is_closed = False

    @property
    def messages(self) -> list[WireMessage]:
        """What was sent and asked, in order; a copy."""
        with self._lock:
            return list(self._messages)

    @property
    def bodies(self) -> list[bytes]:
        """The bodies of `messages`."""
        return [message.body for message in self.messages]

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    def decoded(self, catalog: MessageCatalog) -> list[Envelope]:
        """Return `messages` as a receiver with *catalog* reads them.

        Raises:
            DecodeError: one of them is nothing that such a receiver accepts.
        """
        return [decode(body, catalog) for body in self.bodies]

    def send_many(self, messages: Sequence[WireMessage]) -> None:
        """Record *messages*.

        Raises:
            PartiallySentError: some ask for what the capabilities deny, or `error` is set.
            ClosedError: after `close()`.
        """
        failed: dict[int, TransportError] = {}
        for index, message in enumerate(messages):
            try:
                self._record(message)
            except ClosedError:
                raise
            except TransportError as error:
                failed[index] = error
        if failed:
            raise PartiallySentError(f"{len(failed)} of {len(messages)} were refused", failed)

    def request(self, message: WireMessage, reply: Promise[Reply]) -> None:
        """Record a query and settle *reply* with its answer. Raises nothing."""
        try:
            self._record(message, is_query=True)
            reply.resolve(self._answer(message))
        except Exception as error:  # noqa: BLE001  the interface: what goes wrong rejects
            reply.reject(error)

    def _answer(self, message: WireMessage) -> Reply:
        if message.name not in self._answers:
            raise RejectedError(
                f"{message.name}: no answer was given to RecordingProducer(answers=...)"
            )
        answer = self._answers[message.name]
        if isinstance(answer, BaseException):
            return Reply(encode_problem(answer), is_error=True)
        return Reply(encode_result(answer))

    def _record(self, message: WireMessage, *, is_query: bool = False) -> None:
        can = self.capabilities
        if self._is_closed:
            raise ClosedError("the recording producer is closed")
        if self._error is not None:
            raise self._error
        if not (can.queries if is_query else not can.queries_only):
            way = "for queries" if is_query else "without an answer"
            raise UnsupportedError(f"{message.name}: this producer has no way {way}")
        refusal = can.refusal(message, "this producer")
        if refusal is not None:
            raise refusal
        with self._lock:
            self._messages.append(message)

    def close(self) -> None:
        """Refuse further messages; what was recorded stays. Idempotent."""
        self._is_closed = True
