"""The sections of the buses: what every kind has, and what only one of them has."""

# ruff: noqa: RUF009  a field is made by a call; attrs reads what it returns

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import attrs

from postbus.errors import Problem
from postbus.messages import MessageKind
from postbus.settings._fields import setting
from postbus.settings._masking import join, show
from postbus.settings._parsing import INVALID, nearest, read_section, read_table
from postbus.settings._routes import (
    LONGEST_WAIT,
    NAME,
    EventRouterSettings,
    RouterSettings,
    reader_of,
)
from postbus.settings._shapes import is_table

__all__ = [
    "BusSettings",
    "CommandBusSettings",
    "EventBusSettings",
    "QueryBusSettings",
    "read_buses",
]


@attrs.frozen(kw_only=True)
class BusSettings:
    """What every bus has; each kind adds its own keys."""

    kind: ClassVar[MessageKind]

    plugins: list[str] = setting(
        attrs.Factory(list),
        pattern=r"\S+",
        expected="the id of a service",
        doc="Service ids of plugins, attached in order. Empty: none.",
    )
    unit_of_work: str | None = setting(
        None,
        pattern=r"\S+",
        expected="the id of a service",
        doc="The service id of a callable that opens a unit of work. Unset: there is nothing to "
        "commit, and sends go at once.",
    )
    router: RouterSettings = setting(
        attrs.Factory(RouterSettings),
        doc="Who handles what, and what goes where first.",
        read=reader_of(RouterSettings),
    )
    enable_handler_location: bool = setting(
        default=True,
        doc="Whether ids in routes are looked up among the services. True: routes are ids.",
    )
    message_factory: str | None = setting(
        None,
        pattern=r"\S+",
        expected="the id of a service",
        doc="The service id of a callable (name, data) that makes a message of a mapping with a "
        "`message_name`. Unset: the service `message_factory`, where there is one.",
    )


_OF_KINDS = {
    "nested": "only a command bus has it",
    "on_listener_error": "only an event bus has it",
    "timeout": "only a query bus has it",
    "kind": "only sections under 'buses' have it",
}


def _of_other_kinds(*own: str) -> dict[str, str]:
    return {key: hint for key, hint in _OF_KINDS.items() if key not in own}


@attrs.frozen(kw_only=True)
class CommandBusSettings(BusSettings):
    """`[postbus.command_bus]`."""

    kind: ClassVar[MessageKind] = MessageKind.COMMAND
    _elsewhere: ClassVar[Mapping[str, str]] = _of_other_kinds("nested")

    nested: Literal["queue", "inline"] = setting(
        "queue",
        doc="What a command does that is dispatched inside a handler: wait until that one is "
        "done, or run at once. Queued, a handler never runs in the middle of another.",
    )


@attrs.frozen(kw_only=True)
class EventBusSettings(BusSettings):
    """`[postbus.event_bus]`."""

    kind: ClassVar[MessageKind] = MessageKind.EVENT
    _elsewhere: ClassVar[Mapping[str, str]] = _of_other_kinds("on_listener_error")

    router: EventRouterSettings = setting(
        attrs.Factory(EventRouterSettings),
        doc="Who listens to what, and what goes where first.",
        read=reader_of(EventRouterSettings),
    )
    on_listener_error: Literal["collect", "stop"] = setting(
        "collect",
        doc="Whether the other listeners still run when one fails. Collecting: they do not "
        "know each other.",
    )


@attrs.frozen(kw_only=True)
class QueryBusSettings(BusSettings):
    """`[postbus.query_bus]`."""

    kind: ClassVar[MessageKind] = MessageKind.QUERY
    _elsewhere: ClassVar[Mapping[str, str]] = _of_other_kinds("timeout")

    timeout: float = setting(
        30.0,
        above=0,
        maximum=LONGEST_WAIT,
        doc="Seconds until a query is given up. 30: longer than any answer a person waits for, "
        "and short enough that a lost one is noticed.",
    )


BUSES: dict[str, type[BusSettings]] = {
    cls.kind.value: cls for cls in (CommandBusSettings, EventBusSettings, QueryBusSettings)
}


TAKEN = {f"{kind}_bus" for kind in BUSES}


def _read_bus(value: Any, path: str, problems: list[Problem]) -> Any:
    """Read a section under `buses`, whose *kind* says which class it is."""
    if not is_table(value):
        problems.append(Problem(path, show(value), "expected a table"))
        return INVALID
    kind = value.get("kind", INVALID)
    cls = BUSES.get(kind) if isinstance(kind, str) else None
    if cls is None:
        words = "'command', 'event' or 'query'"
        if kind is INVALID:
            problem = Problem(join(path, "kind"), "", f"required: {words}", "add 'kind'")
        else:
            hint = nearest(kind, BUSES) if isinstance(kind, str) else ""
            problem = Problem(join(path, "kind"), show(kind), f"expected {words}", hint)
        problems.append(problem)
        return INVALID
    section = read_section(cls, value, path, problems, also_known=("kind",))
    return INVALID if section is None else section


def read_buses(value: Any, path: str, problems: list[Problem]) -> Any:
    """Read the table `buses`; three names are taken by sections of their own."""
    buses = read_table(value, path, problems, NAME, _read_bus)
    for name in [each for each in buses if each in TAKEN]:
        expected = f"expected another name, since {name!r} is a section of its own"
        problems.append(Problem(join(path, name), "a table", expected, f"write [postbus.{name}]"))
        del buses[name]
    return buses
