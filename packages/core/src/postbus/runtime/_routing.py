"""From the router section of a bus to its router."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import attrs

from postbus.errors import Problem, RoutingError
from postbus.messages import MessageKind
from postbus.pipeline import Target
from postbus.routers import (
    AsyncSwitchMessageRouter,
    CommandRouter,
    EventRouter,
    QueryRouter,
    RegexRouter,
)
from postbus.runtime._services import PRODUCERS
from postbus.settings._masking import join
from postbus.transports import MessageProducer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from postbus.catalog import MessageCatalog
    from postbus.pipeline import Router
    from postbus.routers import Routes
    from postbus.settings import RouterSettings, RouteTarget

_ROUTERS: dict[MessageKind, type[Routes]] = {
    MessageKind.COMMAND: CommandRouter,
    MessageKind.EVENT: EventRouter,
    MessageKind.QUERY: QueryRouter,
}


@attrs.frozen
class RouteEntry:
    """One line of `routes` or `send`, with the path it stands at."""

    table: Literal["routes", "send"]
    key: str
    path: str
    target: RouteTarget

    @property
    def leaves(self) -> bool:
        """Whether it sends: a producer under `routes` is short for `send`."""
        return self.table == "send" or names_producer(self.target.to)


def names_producer(to: Any) -> bool:
    """Tell whether a target is a producer by itself, whatever the services have."""
    return isinstance(to, MessageProducer) or (isinstance(to, str) and to.startswith(PRODUCERS))


def entries_of(settings: RouterSettings, path: str) -> Iterator[RouteEntry]:
    """Yield every line of the section at *path*, in order."""
    for key, targets in settings.routes.items():
        where = join(f"{path}.routes", key)
        for index, target in enumerate(targets):
            place = where if len(targets) == 1 else f"{where}[{index}]"
            yield RouteEntry("routes", key, place, target)
    for key, target in settings.send.items():
        yield RouteEntry("send", key, join(f"{path}.send", key), target)


def make_router(
    kind: MessageKind,
    settings: RouterSettings,
    names: MessageCatalog,
    path: str,
    problems: list[Problem],
    timeouts: Mapping[str, float | None] | None = None,
) -> Router:
    """Return the router that *settings* describe; what is wrong is left out and noted.

    *names* says which aliases are one name. *timeouts* are the producers' own, by
    `producers.NAME`, where a route says none.
    """
    tables: dict[bool, dict[str, list[Target]]] = {True: {}, False: {}}
    first: dict[tuple[bool, str], RouteEntry] = {}
    for entry in entries_of(settings, path):
        known = names.find(entry.key)
        name = entry.key if known is None else known.name
        before = first.setdefault((entry.leaves, name), entry)
        if before is not entry and kind is not MessageKind.EVENT:
            expected = f"{name} is routed already, by {before.path}"
            problems.append(
                Problem(entry.path, "", expected, "remove one of the two", rule="ambiguous-route")
            )
        else:
            target = _target(entry, timeouts or {})
            tables[entry.leaves].setdefault(name, []).append(target)
    routes = _filled(kind, settings.type, names.names(), tables)
    if settings.async_switch is not None:
        return AsyncSwitchMessageRouter(routes, settings.async_switch)
    return routes


def _filled(
    kind: MessageKind,
    syntax: str,
    names: Iterable[str],
    tables: Mapping[bool, Mapping[str, list[Target]]],
) -> Routes:
    if syntax != "regex":
        return _ROUTERS[kind](tables[False], tables[True])
    sound = {
        leaves: {key: targets for key, targets in table.items() if matcher(key, syntax)}
        for leaves, table in tables.items()
    }
    return RegexRouter(sound[False], sound[True], many=kind is MessageKind.EVENT, names=names)


def matcher(key: str, syntax: str) -> Routes | None:
    """Return a router of *key* alone, which says what it matches; None where it is no pattern.

    What is wrong with an expression has been said where the section was read.
    """
    alone = {key: [_nobody]}
    try:
        return RegexRouter(alone, many=True) if syntax == "regex" else EventRouter(alone)
    except RoutingError:
        return None


def _target(entry: RouteEntry, timeouts: Mapping[str, float | None]) -> Target:
    target = entry.target
    timeout = target.timeout
    if timeout is None and entry.leaves and isinstance(target.to, str):
        timeout = timeouts.get(target.to)
    return Target(
        target.to,
        threads=target.threads,
        timeout=timeout,
        when=target.when,
        route=entry.path,
    )


def _nobody(message: Any) -> None:
    """Stand in for a handler where only the key of a route is looked at."""
