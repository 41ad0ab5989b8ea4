"""Every error postbus raises: one tree, so `except PostbusError` misses nothing of ours.

    PostbusError
    ├ ConfigurationError        .problems: all of them, each with path, value, expectation
    ├ DispatchError             .envelope where there is one
    │ ├ NoHandlerError          nothing handles the name
    │ ├ RoutingError            two routes claim it, or a target cannot be used as it stands
    │ ├ HandlerFailedError      .code .message: what the handler raised, here or elsewhere
    │ │ └ CommandDispatchError  .pending: nested commands that were not run
    │ ├ ListenersFailedError    an ExceptionGroup; .failed .done: listener ids
    │ ├ UnauthorizedError       a guard said no
    │ └ ValidationFailedError   a validator refused it
    ├ MetadataError             also a ValueError
    ├ WireError                 never retried
    │ ├ EncodeError
    │ └ DecodeError             .reason: a stable code
    └ TransportError            .envelope where there is one
      ├ ConnectionFailedError   the peer cannot be reached
      ├ TimedOutError           also a TimeoutError
      ├ RejectedError           the system refused the message
      ├ PartiallySentError      .failed: error by index
      ├ UnsupportedError        this transport cannot do it
      └ ClosedError             used after close

Fields are positional and handed to `Exception.args`, so every error can be pickled and copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from postbus.messages import Envelope

__all__ = [
    "ClosedError",
    "CommandDispatchError",
    "ConfigurationError",
    "ConnectionFailedError",
    "DecodeError",
    "DispatchError",
    "EncodeError",
    "HandlerFailedError",
    "ListenersFailedError",
    "MetadataError",
    "NoHandlerError",
    "PartiallySentError",
    "PostbusError",
    "Problem",
    "RejectedError",
    "RoutingError",
    "TimedOutError",
    "TransportError",
    "UnauthorizedError",
    "UnsupportedError",
    "ValidationFailedError",
    "WireError",
]


class PostbusError(Exception):
    """The root of everything postbus raises."""


@attrs.frozen
class Problem:
    """One thing wrong with a configuration: where, what was found, what was expected.

    *value* is the text to show: a secret has been replaced before it gets here.
    *suggestion* is the nearest valid name or the next step; empty when there is none.
    *rule* is the id of a rule of `postbus check`, which says more; it is not compared.
    """

    path: str
    value: str
    expected: str
    suggestion: str = ""
    rule: str = attrs.field(default="configuration", eq=False, repr=False)

    def __str__(self) -> str:
        """Return the problem as one line, ready to show to a person."""
        text = f"{self.path}: {self.expected}"
        if self.value:
            text += f", got {self.value}"
        if self.suggestion:
            text += f"; {self.suggestion}"
        return text


class ConfigurationError(PostbusError):
    """Raised while building, with every problem found, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(tuple(problems))
        self.problems: tuple[Problem, ...] = tuple(problems)

    def __str__(self) -> str:
        """Return one line per problem under a line that counts them."""
        count = len(self.problems)
        head = "1 problem" if count == 1 else f"{count} problems"
        return "\n".join([f"{head} in the configuration", *(f"  {p}" for p in self.problems)])


class DispatchError(PostbusError):
    """Raised when a message could not be dispatched; the root of all such errors."""

    def __init__(self, message: str, envelope: Envelope | None = None) -> None:
        super().__init__(message, envelope)
        self.message = message
        self.envelope = envelope

    def __str__(self) -> str:
        """Return the message alone; the envelope is a field."""
        return self.message


class NoHandlerError(DispatchError):
    """Raised when nothing handles the name of a command or query."""


class RoutingError(DispatchError):
    """Raised when routes contradict each other or a target cannot be used as it stands."""


class HandlerFailedError(DispatchError):
    """Raised when a handler raised, here or on the other side of a transport.

    Branch on *code*. In process `__cause__` is what the handler raised; from the wire there is
    no cause, and *message* is filled for registered errors only.
    """

    # Whether the configuration registered what was raised: only then may its words cross the wire.
    is_registered: bool = False

    def __init__(self, code: str, message: str, envelope: Envelope | None = None) -> None:
        super().__init__(message, envelope)
        self.args: tuple[Any, ...] = (code, message, envelope)
        self.code = code

    def __str__(self) -> str:
        """Return which message failed, the code, and what the handler said."""
        name = self.envelope.name if self.envelope is not None else "a message"
        return f"{name} failed with {self.code!r}: {self.message}"


class CommandDispatchError(HandlerFailedError):
    """Raised instead of its base when nested commands were still waiting.

    *pending* are their envelopes, in order. They have left the bus: dispatch them again, or not.
    """

    def __init__(
        self,
        code: str,
        message: str,
        envelope: Envelope | None,
        pending: Sequence[Envelope],
    ) -> None:
        super().__init__(code, message, envelope)
        self.pending: tuple[Envelope, ...] = tuple(pending)
        self.args: tuple[Any, ...] = (code, message, envelope, self.pending)

    def __str__(self) -> str:
        """Return the failure and how many commands did not run."""
        return f"{super().__str__()} ({len(self.pending)} nested commands were not run)"


class ListenersFailedError(DispatchError, ExceptionGroup[HandlerFailedError]):
    """Raised when at least one listener of an event failed; the others ran.

    An `ExceptionGroup`: *exceptions* holds a `HandlerFailedError` per failure, in route order.
    *failed* and *done* are the ids of the listeners that failed and of those that finished.
    """

    def __new__(
        cls,
        message: str,
        exceptions: Sequence[HandlerFailedError],
        envelope: Envelope | None = None,  # noqa: ARG004  ExceptionGroup fixes its own fields here
        failed: Sequence[str] = (),  # noqa: ARG004  set by __init__
        done: Sequence[str] = (),  # noqa: ARG004  set by __init__
    ) -> Self:
        """Make the group; the fields of ours are set by `__init__`."""
        return ExceptionGroup.__new__(cls, message, exceptions)

    def __init__(
        self,
        message: str,
        exceptions: Sequence[HandlerFailedError],
        envelope: Envelope | None = None,
        failed: Sequence[str] = (),
        done: Sequence[str] = (),
    ) -> None:
        # Not super(): the group's own `message` is read-only and already set by __new__.
        Exception.__init__(self, message, list(exceptions))
        self.envelope = envelope
        self.failed: tuple[str, ...] = tuple(failed)
        self.done: tuple[str, ...] = tuple(done)
        self.args: tuple[Any, ...] = (message, list(exceptions), envelope, self.failed, self.done)

    def derive(self, excs: Sequence[Any], /) -> ListenersFailedError:  # type: ignore[override]  # a generic group cannot know that ours holds one kind of error
        """Return a group of the same event with other exceptions (for `split`, `subgroup`)."""
        return type(self)(self.message, excs, self.envelope, self.failed, self.done)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the fields; the base class would drop ours."""
        return type(self), self.args

    def __str__(self) -> str:
        """Return which event failed and what each failed listener said."""
        failures = [e for e in self.exceptions if isinstance(e, HandlerFailedError)]
        lines = [f"{e.code!r}: {e.message}" for e in failures]
        return "\n  ".join([self.message, *lines])


class UnauthorizedError(DispatchError):
    """Raised when a guard refuses a message or a result."""


class ValidationFailedError(DispatchError):
    """Raised when a validator refuses a message; `__cause__` is what the validator raised."""


class MetadataError(PostbusError, ValueError):
    """Raised at dispatch for metadata that could not cross the wire: not a flat map of scalars."""


class WireError(PostbusError):
    """The root of what goes wrong between a message and its bytes; never worth a retry."""


class EncodeError(WireError):
    """Raised when a message cannot be written so that the other side can read it."""


class DecodeError(WireError):
    """Raised for bytes that are not a message we accept, with a stable reason code."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        """Return the reason code and the explanation."""
        return f"{self.reason}: {self.message}"


class TransportError(PostbusError):
    """The root of what goes wrong between a producer or consumer and its system."""

    def __init__(self, message: str, envelope: Envelope | None = None) -> None:
        super().__init__(message, envelope)
        self.message = message
        self.envelope = envelope

    def __str__(self) -> str:
        """Return the message alone; the envelope is a field."""
        return self.message


class ConnectionFailedError(TransportError):
    """Raised when the system on the other side cannot be reached, or went away."""


class TimedOutError(TransportError, TimeoutError):
    """Raised when the other side did not do its part in time."""


class RejectedError(TransportError):
    """Raised when the system refused the message: too large, unroutable, over a limit."""


class PartiallySentError(TransportError):
    """Raised when some messages of a batch were not taken; *failed* maps index to error."""

    def __init__(
        self,
        message: str,
        failed: Mapping[int, TransportError],
        envelope: Envelope | None = None,
    ) -> None:
        super().__init__(message, envelope)
        self.failed: dict[int, TransportError] = dict(failed)
        self.args: tuple[Any, ...] = (message, self.failed, envelope)


class UnsupportedError(TransportError):
    """Raised when a transport, as configured, cannot do what was asked of it."""


class ClosedError(TransportError):
    """Raised when something is used after its `close()`."""
