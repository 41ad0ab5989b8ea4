"""From a route's target to something that can be called, with its colour and its name."""

from __future__ import annotations

import inspect
import types
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import attrs

from postbus.errors import HandlerFailedError, RoutingError
from postbus.messages import Envelope
from postbus.unit import Lifetime, arun_in_unit, current_unit, raise_unsent, run_in_unit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from postbus.pipeline._routes import Target
    from postbus.unit import Services


@attrs.frozen
class Call:
    """A handler, ready to be called with the message.

    *function* is for plain code and *acall* for asyncio, where it may return an awaitable.
    *in_unit* says that it is made anew for each unit of work.
    """

    function: Callable[[Any], Any]
    acall: Callable[[Any], Any]
    is_async: bool
    label: str
    in_unit: bool = False
    threads: bool | None = None
    timeout: float | None = None

    @property
    def is_special(self) -> bool:
        """Whether calling it in asyncio takes more than calling it."""
        return bool(self.threads) or self.timeout is not None


def is_async(function: Any) -> bool:
    """Return whether calling *function* gives a coroutine, as far as can be seen before."""
    if inspect.iscoroutinefunction(function):
        return True
    if inspect.isroutine(function) or isinstance(function, type):
        return False
    return _calls_async(function)


def _calls_async(instance_or_class: Any) -> bool:
    return inspect.iscoroutinefunction(getattr(instance_or_class, "__call__", None))  # noqa: B004  its colour is asked, not whether it exists


def is_awaitable(result: Any) -> bool:
    """Return whether *result* has to be awaited; a tenth of what `inspect.isawaitable` costs."""
    if result is None:
        return False
    cls = result.__class__
    return cls is types.CoroutineType or hasattr(cls, "__await__")


def label_of(target: Any) -> str:
    """Return the stable name of a handler: `module.qualname`, an id as it stands."""
    if isinstance(target, str):
        return target
    while isinstance(target, partial):
        target = target.func
    named: Any = target if hasattr(target, "__qualname__") else target.__class__
    return f"{named.__module__}.{named.__qualname__}"


def invocable(handler: Any, strategies: Sequence[str]) -> Callable[[Any], Any] | None:
    """Return what to call of *handler*: itself, else its first method among *strategies*."""
    if callable(handler):
        return cast("Callable[[Any], Any]", handler)
    return _method(handler, strategies)


def _method(handler_or_class: Any, names: Sequence[str]) -> Callable[[Any], Any] | None:
    methods = (getattr(handler_or_class, name, None) for name in names)
    return next(filter(callable, methods), None)


def direct(function: Callable[[Any], Any], target: Target, label: str | None = None) -> Call:
    """Return the call of a plain callable.

    Raises:
        RoutingError: it is a generator function, of which a call runs nothing.
    """
    label = label or label_of(function)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        msg = f"{label} is a generator function, and calling one runs nothing of it: use return"
        raise RoutingError(msg)
    return Call(
        function,
        function,
        is_async(function),
        label,
        threads=target.threads,
        timeout=target.timeout,
    )


def lifetime_call(
    services: Services,
    id_: str,
    target: Target,
    strategies: Sequence[str] = (),
) -> Call | None:
    """Return the call of a service that has to be asked for anew, None for one made once."""
    lifetime = services.lifetime(id_)
    if lifetime is Lifetime.ONCE:
        return None

    def method_of(service: Any) -> Callable[[Any], Any]:
        method = _method(service, strategies)
        if method is None:
            name = label_of(service)
            raise RoutingError(f"{id_}: {name} is not callable and no strategy invokes it")
        return method

    if lifetime is Lifetime.PER_UNIT:
        function, acall = _per_unit(services, id_, method_of)
    else:
        function, acall = _shared(services, id_, method_of)
    provides = getattr(services, "provides", None)
    return Call(
        function,
        acall,
        provides is not None and _makes_async(provides(id_), strategies),
        id_,
        in_unit=lifetime is Lifetime.PER_UNIT,
        threads=target.threads,
        timeout=target.timeout,
    )


def _makes_async(maker: Any, strategies: Sequence[str]) -> bool:
    """Return whether what the class *maker* makes is called by awaiting it."""
    # Every class can be called itself; what it makes only where one of its bases says so.
    if isinstance(maker, type) and not any("__call__" in vars(cls) for cls in maker.__mro__):
        return inspect.iscoroutinefunction(_method(maker, strategies))
    return _calls_async(maker)


def _per_unit(
    services: Services,
    id_: str,
    method_of: Callable[[Any], Callable[[Any], Any]],
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Return the calls of a service that is made once per unit of work, for both colours."""
    # Two buses of one unit may have different services of the same id.
    key = (id(services), id_)

    def make() -> Any:
        return services.get(id_)

    def function(message: Any) -> Any:
        unit = current_unit()
        if unit is not None:
            service = unit.instance(key, make)
            return (service if callable(service) else method_of(service))(message)
        result, unsent = run_in_unit(None, partial(function, message))
        raise_unsent(unsent)
        return result

    async def acall(message: Any) -> Any:
        unit = current_unit()
        if unit is not None:
            service = await unit.ainstance(key, make)
            result: Any = (service if callable(service) else method_of(service))(message)
            return await result if is_awaitable(result) else result
        result, unsent = await arun_in_unit(None, partial(acall, message))
        raise_unsent(unsent)
        return result

    return function, acall


def _shared(
    services: Services,
    id_: str,
    method_of: Callable[[Any], Callable[[Any], Any]],
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    def function(message: Any) -> Any:
        service = services.get(id_)
        return (service if callable(service) else method_of(service))(message)

    return function, function


def refuse_coroutine(result: Any, label: str) -> None:
    """Raise for a coroutine that something which looked synchronous returned to plain code.

    Other awaitables run by themselves; nothing would ever run this one.
    """
    if result.__class__ is types.CoroutineType:
        result.close()
        raise RoutingError(
            f"{label} returned a coroutine, which dispatch cannot await: use adispatch"
        )


def checked(call: Call) -> Callable[[Any], Any]:
    """Return the function of *call*, checked with every call unless it is a plain `def`."""
    function, label = call.function, call.label
    if (
        call.is_async  # refused before it is called
        or (
            isinstance(function, types.FunctionType | types.MethodType)
            and function.__name__ != "<lambda>"
            # What a decorator returns closes over what it decorates.
            and function.__closure__ is None
        )
    ):
        return function

    def call_and_check(message: Any) -> Any:
        result = function(message)
        if result is not None:
            refuse_coroutine(result, label)
        return result

    return call_and_check


@attrs.frozen
class Failures:
    """Turns what a handler raised into the error its caller sees.

    *codes* maps exception classes to the codes that the configuration registered for them.
    """

    codes: Mapping[type[BaseException], str]

    def code_of(self, error: BaseException) -> str:
        """Return the registered code, else the exception's own `code` text, else "error"."""
        for cls in type(error).__mro__:
            code = self.codes.get(cls)
            if code is not None:
                return code
        own = getattr(error, "code", None)
        return own if isinstance(own, str) and own else "error"

    def wrap(self, error: BaseException, envelope: Envelope) -> HandlerFailedError:
        """Return the error for *envelope* whose handler raised *error*, which is its cause."""
        text = error.message if isinstance(error, HandlerFailedError) else str(error)
        code = self.code_of(error)
        wrapped = HandlerFailedError(code, text or type(error).__name__, envelope)
        wrapped.__cause__ = error
        wrapped.is_registered = self._is_registered(error)
        return wrapped

    def _is_registered(self, error: BaseException) -> bool:
        if isinstance(error, HandlerFailedError):
            return error.is_registered
        return any(cls in self.codes for cls in type(error).__mro__)
