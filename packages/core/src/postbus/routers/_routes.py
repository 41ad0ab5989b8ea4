"""Routers: two tables, who handles a name and where it goes first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from postbus.errors import RoutingError
from postbus.messages import message_info
from postbus.pipeline import Target
from postbus.routers._patterns import Table, glob_table, regex_table
from postbus.transports import MessageProducer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

H = TypeVar("H")


def name_of(message: type | str) -> str:
    """Return the name that a route for *message*, a class or a name, stands for.

    Raises:
        RoutingError: it is empty.
    """
    name = message if isinstance(message, str) else message_info(message).name
    if not name:
        msg = "a route needs a message name or class, got an empty name"
        raise RoutingError(msg)
    return name


def _each(value: Any) -> Iterable[Any]:
    return cast("Iterable[Any]", value) if isinstance(value, list | tuple) else (value,)


class Routes:
    """What every router has: `routes`, `send`, and the fluent and decorator forms of both.

    Keys are names, message classes, or globs over dot segments (`shop.mail.*`). A value is a
    callable, an object, a `MessageProducer`, a service id, or a `Target`; for events also a list
    of those. Usable from any thread; a change counts from the next dispatch on.
    """

    many: ClassVar[bool] = False

    def __init__(
        self,
        routes: Mapping[Any, Any] | None = None,
        send: Mapping[Any, Any] | None = None,
    ) -> None:
        self._fill(glob_table(many=self.many), glob_table(many=self.many), routes, send)

    def _fill(
        self,
        handlers: Table,
        sends: Table,
        routes: Mapping[Any, Any] | None,
        send: Mapping[Any, Any] | None,
    ) -> None:
        self._handlers, self._sends = handlers, sends
        self._watchers: list[Callable[[], None]] = []
        self._open: Route | None = None
        for key, value in (routes or {}).items():
            for to in _each(value):
                self._add(key, to)
        for key, value in (send or {}).items():
            for to in _each(value):
                self._add_send(key, to)

    def attach(self, bus: Any) -> None:
        """Route the messages of *bus*: `bus.utilize(router)`."""
        bus.attach_router(self)

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call *changed* whenever a route is added; return what ends that."""
        self._watchers.append(changed)

        def end() -> None:
            self._watchers.remove(changed)

        return end

    def route(self, message: type | str) -> Route:
        """Begin the route of *message*: `.to(handler)` ends it.

        Raises:
            RoutingError: the route begun before has no handler yet (P02).
        """
        if self._open is not None:
            open_name = name_of(self._open.message)
            msg = f"the route of {open_name} has no handler yet: end it with .to(handler)"
            raise RoutingError(msg)
        name_of(message)
        self._open = Route(self, message)
        return self._open

    def send(self, message: type | str) -> SendRoute:
        """Begin the send of *message*: `.to(producer)` ends it."""
        name_of(message)
        return SendRoute(self, message)

    def handles(self, message: type | str) -> Callable[[H], H]:
        """Route *message* to the decorated function, which is returned as it is."""

        def decorate(handler: H) -> H:
            self._add(message, handler)
            return handler

        return decorate

    def sends(self, name: str, message_type: type) -> Sequence[Target]:
        """Return where *name* goes first."""
        return self._sends.find(name)

    def handlers(self, name: str) -> Sequence[Target]:
        """Return who handles *name*.

        Raises:
            RoutingError: two patterns claim one command or query (P05).
        """
        return self._handlers.find(name)

    def _end(self, route: Route, to: Any) -> None:
        self._add(route.message, to)
        if self._open is route:
            self._open = None

    def _add(self, message: type | str, to: Any) -> None:
        name = name_of(message)
        if to is None:
            msg = f"cannot route {name} to None: give a callable, an object, a producer or an id"
            raise RoutingError(msg)
        target = to if isinstance(to, Target) else Target(to, route=f"routes[{name!r}]")
        if isinstance(target.to, MessageProducer):
            self._add_send(message, target)
            return
        # A class is meant by itself, whatever the characters of its name are in a pattern.
        self._handlers.add(name, target, exact=isinstance(message, type))
        self._changed()

    def _add_send(self, message: type | str, to: Any) -> None:
        name = name_of(message)
        if to is None:
            msg = f"cannot send {name} to None: give a producer or the id of one"
            raise RoutingError(msg)
        target = to if isinstance(to, Target) else Target(to, route=f"send[{name!r}]")
        self._sends.add(name, target, exact=isinstance(message, type))
        self._changed()

    def _changed(self) -> None:
        for changed in tuple(self._watchers):
            changed()


class Route:
    """One route being written: `router.route(PlaceOrder).to(handler)`."""

    def __init__(self, router: Routes, message: type | str) -> None:
        self._router = router
        self.message = message

    def to(self, handler: Any) -> Route:
        """Route to *handler*; a `MessageProducer` here is short for `send`.

        Raises:
            RoutingError: *handler* is None, or the name has a handler already.
        """
        self._router._end(self, handler)  # noqa: SLF001  one object in two parts
        return self

    def and_to(self, listener: Any) -> Route:
        """Route an event to *listener* as well, after those before.

        Raises:
            RoutingError: this router's messages have one handler.
        """
        return self.to(listener)


class SendRoute:
    """One send being written: `router.send(SendMail).to(producer)`."""

    def __init__(self, router: Routes, message: type | str) -> None:
        self._router = router
        self._message = message

    def to(self, producer: Any) -> SendRoute:
        """Send to *producer*, a `MessageProducer` or the id of one.

        Raises:
            RoutingError: *producer* is None.
        """
        self._router._add_send(self._message, producer)  # noqa: SLF001  one object in two parts
        return self


class CommandRouter(Routes):
    """Routes each command to its one handler (P01)."""


class QueryRouter(Routes):
    """Routes each query to its one finder (P01)."""


class EventRouter(Routes):
    """Routes each event to any number of listeners, in the order given (P04)."""

    many = True


class RegexRouter(Routes):
    """Routes by regular expressions, matched whole (P05, P06).

    A key among *names*, the exact names there are, is that name and beats any pattern. *many*
    lets a name have several targets, as an event may.
    """

    ALL = ".*"

    def __init__(
        self,
        routes: Mapping[Any, Any] | None = None,
        send: Mapping[Any, Any] | None = None,
        *,
        many: bool = False,
        names: Iterable[str] = (),
    ) -> None:
        exact = frozenset(names)
        self._fill(regex_table(exact, many=many), regex_table(exact, many=many), routes, send)
