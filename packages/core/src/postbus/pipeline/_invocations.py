"""What INVOKE does for one name: call a handler, run listeners, or send."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NoReturn

import attrs

from postbus.errors import TimedOutError
from postbus.pipeline._calls import is_awaitable, refuse_coroutine
from postbus.pipeline._unenveloped import aunenveloped, unenveloped

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from postbus.errors import NoHandlerError, RoutingError, UnsupportedError
    from postbus.messages import Envelope
    from postbus.pipeline._calls import Call
    from postbus.pipeline._sending import Asker, Sender, SendOptions

    MakeEnvelope = Callable[[Any, Envelope | None], Envelope]
    Function = Callable[[Any], Any]


@attrs.frozen
class Bare:
    """Handlers with nothing around them: `dispatch` calls them itself, one after the other.

    *is_async*: there is one, to be awaited instead.
    *fail* takes (message, what one of them raised, how many come after it), has these run as
    well where that is the rule, and raises what the caller is to see.
    """

    functions: tuple[Function, ...]
    label: str
    fail: Callable[[Any, Exception, int], NoReturn]
    is_async: bool = False

    def check(self, result: Any) -> None:
        """Refuse a coroutine, which is something to await."""
        refuse_coroutine(result, self.label)


@attrs.frozen
class Invocation:
    """The end of a plan. *call* and *acall* take (message, envelope or None, options or None).

    *shown* is what the route names and *located* what that turned out to be, for listeners to
    see. *function* is the one handler, whose errors are wrapped for the caller, and *is_bare*:
    calling it is all there is to do. *bare* are handlers that plain code may call one by one,
    where *call* does no more. *blocker* names what only `adispatch` can run. *in_unit*:
    a service of the unit takes part. *sends*: it leaves this process.
    """

    label: str
    call: Callable[[Any, Envelope | None, SendOptions | None], Any]
    acall: Callable[[Any, Envelope | None, SendOptions | None], Coroutine[Any, Any, Any]]
    shown: Any
    located: Any
    function: Callable[[Any], Any] | None = None
    is_bare: bool = False
    bare: Bare | None = None
    blocker: str | None = None
    in_unit: bool = False
    sends: bool = False
    threads: bool | None = None
    timeout: float | None = None


def handle(call: Call, shown: Any, *, limits: bool = True) -> Invocation:
    """Return the invocation of one handler. *limits*: a time-out is the handler's failure."""
    function, acall, label = call.function, call.acall, call.label

    def run(message: Any, _envelope: Envelope | None, _options: SendOptions | None) -> Any:
        return function(message)

    async def arun(message: Any, _envelope: Envelope | None, options: SendOptions | None) -> Any:
        result = acall(message)
        if not is_awaitable(result):
            return result
        if not limits:
            return await result
        limit = call.timeout if options is None or options.timeout is None else options.timeout
        return await (result if limit is None else limited(result, limit, label))

    return Invocation(
        label,
        run,
        arun,
        shown,
        acall,
        function=function,
        is_bare=acall is function and not (limits and call.timeout),
        blocker=label if call.is_async else None,
        in_unit=call.in_unit,
        threads=call.threads,
        timeout=call.timeout,
    )


async def limited(
    awaitable: Awaitable[Any],
    seconds: float,
    label: str,
    envelope: Envelope | None = None,
) -> Any:
    """Await for at most *seconds*, then cancel it and raise `TimedOutError` naming *label*."""
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            return await awaitable
    except TimeoutError:
        if not scope.expired():
            raise
        msg = f"{label} did not finish within {seconds} seconds"
        raise TimedOutError(msg, envelope) from None


def send(
    sender: Sender, envelope_of: MakeEnvelope, shown: Any, unmarked: type | None = None
) -> Invocation:
    """Return the invocation that hands a command or event to its producers.

    Envelopes that *envelope_of* makes for messages of the class *unmarked* hold nothing but an
    identity and the sender's name.
    """

    def run(message: Any, envelope: Envelope | None = None, options: Any = None) -> None:
        sender.send(envelope_of(message, envelope), options)

    async def arun(message: Any, envelope: Envelope | None = None, options: Any = None) -> None:
        await sender.asend(envelope_of(message, envelope), options)

    bodies: tuple[Any, Any] = run, arun
    if unmarked is not None and sender.key_field is None and len(sender.producers) == 1:
        bodies = (
            unenveloped(sender, unmarked, envelope_of, run),
            aunenveloped(sender, unmarked, envelope_of, arun),
        )
    return Invocation(sender.name, *bodies, shown, sender.producers[0], sends=True)


def ask(asker: Asker, envelope_of: MakeEnvelope, shown: Any) -> Invocation:
    """Return the invocation that sends a query; its call gives a promise."""

    def run(message: Any, envelope: Envelope | None = None, options: Any = None) -> Any:
        return asker.ask(envelope_of(message, envelope), options)

    async def arun(message: Any, envelope: Envelope | None = None, options: Any = None) -> Any:
        return await asker.aask(envelope_of(message, envelope), options)

    return Invocation(asker.sender.name, run, arun, shown, asker.client, sends=True)


def broken(label: str, error: RoutingError | NoHandlerError | UnsupportedError) -> Invocation:
    """Return the invocation of a name that cannot be routed: it raises *error* when run."""

    # Made for each dispatch: one instance would gather the traceback of every caller.
    def run(_message: Any, envelope: Envelope | None = None, _options: Any = None) -> Any:
        raise type(error)(error.message, envelope)

    async def arun(_message: Any, envelope: Envelope | None = None, _options: Any = None) -> Any:
        raise type(error)(error.message, envelope)

    return Invocation(label, run, arun, None, None)
