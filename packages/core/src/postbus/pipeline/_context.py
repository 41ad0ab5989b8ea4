"""The stages of a dispatch, and what listeners and middleware see of one."""

from __future__ import annotations

from enum import StrEnum
from types import CoroutineType
from typing import TYPE_CHECKING, Any

import msgspec

from postbus.pipeline._calls import is_awaitable, refuse_coroutine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from postbus.messages import Envelope
    from postbus.pipeline._sending import SendOptions


class Stage(StrEnum):
    """The stages of every dispatch, in order. Listeners run before the bus's own step.

    All of them are part of the unit of work: its commit comes after FINALIZE.
    """

    INITIALIZE = "initialize"
    DETECT_NAME = "detect-name"
    ROUTE = "route"
    LOCATE = "locate"
    INVOKE = "invoke"
    FINALIZE = "finalize"


class DispatchContext(msgspec.Struct, eq=False, dict=True, weakref=True):
    """One dispatch on its way through the stages, as listeners and middleware see it.

    *message* may be replaced up to INVOKE, *name* set at DETECT_NAME, *handler* (command, query)
    or *listeners* (event) at ROUTE and LOCATE. *error* is what was raised, as it was raised.
    One task or thread at a time uses a context, and only while its dispatch runs.
    """

    # A struct, since one is made for every message and nothing else is made in so little time.
    bus: Any
    message: Any
    name: str
    _envelope: Envelope | None = None
    handler: Any = None
    listeners: Sequence[Any] = ()
    # The invocation that INVOKE runs, and the options of the dispatch that concern it.
    _invocation: Any = None
    _options: SendOptions | None = None
    result: Any = None
    error: BaseException | None = None
    # What the handler itself raised; other errors are a middleware's, a listener's or ours.
    _failure: BaseException | None = None
    _stopped: bool = False

    @property
    def envelope(self) -> Envelope:
        """The identity of the message; made when first asked for, then kept."""
        envelope = self._envelope
        if envelope is None:
            envelope = self.bus.make_envelope(self.message, self.name)
        elif envelope.message is not self.message:
            envelope = envelope.evolve(message=self.message)
        if self.name and envelope.name != self.name:
            envelope = envelope.evolve(name=self.name)
        self._envelope = envelope
        return envelope

    @envelope.setter
    def envelope(self, envelope: Envelope) -> None:
        self._envelope = envelope
        self.message = envelope.message
        self.name = envelope.name

    @property
    def source(self) -> str | None:
        """The consumer that a received message came from, None for a local dispatch."""
        return None if self._envelope is None else self._envelope.received_from

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def stop(self) -> None:
        """End the dispatch before INVOKE: a command or query fails, an event ends quietly."""
        self._stopped = True

    def recover(self, result: Any = None) -> None:
        """Clear the error at FINALIZE; the dispatch then ends well, a query with *result*."""
        self.error = None
        self.result = result

    def _made(self) -> Envelope | None:
        """Return the envelope where there is one: it costs nothing where nobody asked."""
        return None if self._envelope is None else self.envelope

    def __repr__(self) -> str:
        """Its name; never the message, which may hold secrets."""
        return f"<DispatchContext of {self.name or 'a message'}>"

    def _call(self) -> Any:
        """Run the invocation in plain code: the innermost `call_next`."""
        invocation = self._invocation
        function = invocation.function
        try:
            if function is not None:
                result = function(self.message)
            else:
                result = invocation.call(self.message, self._made(), self._options)
        except Exception as error:
            self._failure = error
            raise
        # A command's handler returns nothing, and asking None for its class costs more than this.
        if result is not None and result.__class__ is CoroutineType:
            refuse_coroutine(result, invocation.label)
        return result

    def _call_inline(self) -> Any:
        """Run it in asyncio without awaiting it, as plain middleware needs it."""
        invocation = self._invocation
        try:
            return invocation.call(self.message, self._made(), self._options)
        except Exception as error:
            self._failure = error
            raise

    async def _acall(self) -> Any:
        """Run it in asyncio."""
        invocation = self._invocation
        try:
            if invocation.is_bare and self._options is None:
                result = invocation.located(self.message)
                if result.__class__ is CoroutineType or is_awaitable(result):
                    result = await result
                return result
            return await invocation.acall(self.message, self._made(), self._options)
        except Exception as error:
            self._failure = error
            raise

    # What the outermost middleware is given; a chain puts its second layer here.
    _call_next = _call
    _acall_next = _acall
