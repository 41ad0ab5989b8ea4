"""Everything about the section of a bus that can be wrong before a message is dispatched."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from postbus.errors import Problem, RoutingError
from postbus.messages import MessageKind
from postbus.runtime._routing import entries_of, make_router, matcher
from postbus.runtime._services import PRODUCERS
from postbus.settings import nearest, show
from postbus.transports import MessageProducer, QueryClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from postbus.catalog import MessageCatalog
    from postbus.pipeline import Router, Target
    from postbus.runtime._routing import RouteEntry
    from postbus.runtime._services import Wiring
    from postbus.settings import BusSettings, PostbusSettings, RouterSettings


ONLY_ASKS = 'leave rpc out, or write rpc = "both" on both sides where the transport has it'

MAIN_BUSES = {
    "command_bus": MessageKind.COMMAND,
    "event_bus": MessageKind.EVENT,
    "query_bus": MessageKind.QUERY,
}


def bus_sections(settings: PostbusSettings) -> dict[str, BusSettings]:
    """Return the section of every bus, by the name of the bus."""
    return {
        "command_bus": settings.command_bus,
        "event_bus": settings.event_bus,
        "query_bus": settings.query_bus,
        **settings.buses,
    }


def path_of(bus: str) -> str:
    """Return where the section of *bus* stands."""
    return bus if bus in MAIN_BUSES else f"buses.{bus}"


def check_buses(
    settings: PostbusSettings,
    catalog: MessageCatalog,
    wiring: Wiring,
    *,
    complete: bool = True,
) -> list[Problem]:
    """Return every problem of every bus. Makes no service.

    *complete* is False where modules of messages could not be read.
    """
    return [
        problem
        for name, section in bus_sections(settings).items()
        for problem in BusCheck(section, path_of(name), catalog, wiring, complete).problems()
    ]


@attrs.frozen
class BusCheck:
    """The check of one bus: names, patterns, ids, capabilities (T04, T11)."""

    settings: BusSettings
    path: str
    catalog: MessageCatalog
    wiring: Wiring
    complete: bool

    @property
    def kind(self) -> MessageKind:
        """What the bus dispatches."""
        return type(self.settings).kind

    def problems(self) -> Iterator[Problem]:
        """Yield every problem of the section."""
        settings, path = self.settings, f"{self.path}.router"
        for entry in entries_of(settings.router, path):
            yield from self._name_problems(entry)
        yield from self._service_problems()
        located = settings.enable_handler_location
        yield from target_problems(settings.router, path, self.wiring, located=located)
        found: list[Problem] = []
        router = make_router(self.kind, settings.router, self.catalog, path, found)
        yield from found
        yield from self._resolution_problems(router)

    def _name_problems(self, entry: RouteEntry) -> Iterator[Problem]:
        key, syntax = entry.key, self.settings.router.type
        known = self.catalog.find(key)
        if known is not None:
            if known.kind is not self.kind:
                is_one = f"{known.name} is {_a(known.kind)}"
                expected = f"expected the name of {_a(self.kind)}, {is_one}"
                advice = f"route it on the {known.kind} bus"
                yield Problem(entry.path, "", expected, advice, rule="unknown-message")
            return
        own = [each.name for each in self.catalog if each.kind is self.kind]
        add = "add its module to `messages`" if self.complete else "correct `messages` first"
        if syntax != "regex" and "*" not in key:
            expected = f"expected the name of {_a(self.kind)} in the catalogue"
            advice = nearest(key, own) or add
            yield Problem(entry.path, "", expected, advice, rule="unknown-message")
            return
        alone = matcher(key, syntax)
        if alone is not None and not any(alone.handlers(name) for name in own):
            expected = f"expected a pattern that matches {_a(self.kind)} in the catalogue"
            advice = nearest(key, own) or f"correct it, or {add}"
            yield Problem(entry.path, "", expected, advice, rule="unmatched-pattern")

    def _service_problems(self) -> Iterator[Problem]:
        settings = self.settings
        for index, id_ in enumerate(settings.plugins):
            path = f"{self.path}.plugins[{index}]"
            if (problem := id_problem(id_, path, self.wiring, "a plugin")) is not None:
                yield problem
            elif (known := self.wiring.known(id_)) is not None and not hasattr(known, "attach"):
                expected = "expected a plugin, which has attach(bus)"
                advice = "name the id of a plugin"
                yield Problem(path, repr(id_), expected, advice, rule="wrong-service")
        for key, named, what in (
            ("unit_of_work", settings.unit_of_work, "a unit of work"),
            ("message_factory", settings.message_factory, "a message factory"),
        ):
            if named is None:
                continue
            problem = id_problem(named, f"{self.path}.{key}", self.wiring, what)
            if problem is not None:
                yield problem

    def _resolution_problems(self, router: Router) -> Iterator[Problem]:
        """Ask the router for every name in the catalogue, as dispatching each would."""
        refused: set[str] = set()
        for entry in self.catalog:
            if entry.kind is not self.kind:
                continue
            found: list[Problem] = []
            self._ask("routes", partial(router.handlers, entry.name), found)
            for target in self._ask("send", partial(router.sends, entry.name, entry.cls), found):
                problem = self._send_problem(entry.name, target)
                # One line of configuration is refused once, however many names it matches.
                if problem is not None and problem.path not in refused:
                    refused.add(problem.path)
                    found.append(problem)
            yield from found

    def _ask(
        self,
        table: str,
        ask: Callable[[], Sequence[Target]],
        problems: list[Problem],
    ) -> Sequence[Target]:
        try:
            return ask()
        except RoutingError as error:
            advice = "make one pattern narrower, or route the name itself"
            path = f"{self.path}.router.{table}"
            problems.append(Problem(path, "", str(error), advice, rule="ambiguous-route"))
            return ()

    def _send_problem(self, name: str, target: Target) -> Problem | None:
        path = target.route
        if path == "async_switch":
            path = f"{self.path}.router.async_switch"
        to = target.to
        if isinstance(to, str):
            to = self.wiring.known(to) if self.wiring.has(to) else None
            if to is None:
                return None
        if not _sends(to):
            advice = "name it under `routes`, or send to producers.NAME"
            expected = "expected a message producer to send to"
            return Problem(path, "", expected, advice, rule="wrong-service")
        if self.kind is MessageKind.QUERY and not isinstance(to, type) and not answers(to):
            expected = f"expected a producer that brings answers back, since {name} is a query"
            advice = "set rpc where the transport has it, or choose a transport with queries"
            return Problem(path, "", expected, advice, rule="capability")
        if self.kind is not MessageKind.QUERY and not isinstance(to, type) and only_asks(to):
            expected = f"expected a producer that sends, since {name} is {_a(self.kind)}"
            return Problem(path, "", expected, ONLY_ASKS, rule="capability")
        return None


def answers(producer: Any) -> bool:
    """Tell whether queries can go to *producer*."""
    return producer.capabilities.queries and isinstance(producer, QueryClient)


def only_asks(producer: Any) -> bool:
    """Tell whether *producer* takes queries and nothing else (Z02)."""
    return bool(producer.capabilities.queries_only)


def target_problems(
    settings: RouterSettings,
    path: str,
    wiring: Wiring,
    *,
    located: bool,
) -> Iterator[Problem]:
    """Yield what is wrong with the ids that a router section names.

    *located* is False where ids of services are not looked up.
    """
    named = [(entry.path, entry.target.to) for entry in entries_of(settings, path)]
    named.append((f"{path}.async_switch", settings.async_switch))
    for where, id_ in named:
        if not isinstance(id_, str):
            continue
        if not located and not id_.startswith(PRODUCERS):
            expected = "ids are not looked up, since enable_handler_location is false"
            advice = "give the object itself"
            yield Problem(where, show(id_), expected, advice, rule="unknown-id")
        elif (problem := id_problem(id_, where, wiring)) is not None:
            yield problem


def id_problem(id_: str, path: str, wiring: Wiring, what: str = "a service") -> Problem | None:
    """Return what is wrong with *id_*, if nothing answers to it."""
    if wiring.has(id_):
        return None
    if id_.startswith(PRODUCERS):
        what = "a producer"
    advice = nearest(id_, wiring.ids()) or f"add {what} with this id"
    expected = f"expected the id of {what}"
    return Problem(path, show(id_), expected, advice, rule="unknown-id")


def _sends(to: Any) -> bool:
    if isinstance(to, type):
        return issubclass(to, MessageProducer)
    return isinstance(to, MessageProducer)


def _a(kind: MessageKind) -> str:
    return f"an {kind}" if kind is MessageKind.EVENT else f"a {kind}"
