"""The router section of a bus: which names are handled by what, and which go away first.

Every way to write a target becomes a `RouteTarget`; whether its id means something is checked
by whoever knows the services.
"""

# ruff: noqa: RUF009  a field is made by a call; attrs reads what it returns

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, TypeVar

import attrs

from postbus.errors import Problem
from postbus.settings._fields import setting
from postbus.settings._masking import join, show
from postbus.settings._parsing import INVALID, read_section, read_table
from postbus.settings._shapes import is_array, is_table

__all__ = [
    "ID",
    "ID_WORDS",
    "NAME",
    "EventRouterSettings",
    "RouteTarget",
    "RouterSettings",
    "reader_of",
]

R = TypeVar("R", bound="RouterSettings")

NAME = "[a-z][a-z0-9_]*"
ID = rf"producers\.{NAME}|(?!producers\.)\S+"
ID_WORDS = "the id of a service, or 'producers.NAME'"
LONGEST_PATTERN = 256
LONGEST_WAIT = 31_536_000  # a year in seconds; timers and clocks overflow somewhere beyond
TARGET_WORDS = "a service id, 'producers.NAME', a table with 'to', or a callable"
_PLAIN_VALUES = (bool, int, float, bytes, list, tuple, set, frozenset, type(None))


@attrs.frozen(kw_only=True)
class RouteTarget:
    """Where a route leads: *to* is an id, `producers.NAME`, or a callable or other object.

    *threads* runs the whole unit in a thread of a bounded pool; None leaves it to the caller, and
    a worker then says yes for plain handlers. *timeout* is in seconds. *when* is "dispatched" for
    a listener that runs in the dispatching process even where the event is sent.
    """

    to: Any = setting(
        expected="a service id, 'producers.NAME', or a callable",
        doc="What takes the message; the configuration of a program may name any object.",
    )
    threads: bool | None = setting(
        None, doc="Whether it runs in a thread. Unset: plain handlers do, in a worker only."
    )
    timeout: float | None = setting(
        None,
        above=0,
        maximum=LONGEST_WAIT,
        doc="Seconds until a query is given up. Unset: the bus's own.",
    )
    when: Literal["handled", "dispatched"] = setting(
        "handled",
        doc="Of an event: `dispatched` runs where it is dispatched, even where it is sent. "
        "Most listeners belong to where the event is handled.",
    )


@attrs.frozen(kw_only=True)
class _Target(RouteTarget):
    """A target as a table of a command or query."""

    _elsewhere: ClassVar[Mapping[str, str]] = {"when": "only the routes of an event bus have it"}
    when: Literal["handled"] = attrs.field(default="handled", init=False)


@attrs.frozen(kw_only=True)
class _SendTarget(_Target):
    """A target of `send` as a table."""

    _elsewhere: ClassVar[Mapping[str, str]] = {
        "threads": "only 'routes' have it: nothing is handled where a message is sent",
        "when": "only 'routes' have it: nothing is handled where a message is sent",
    }
    threads: None = attrs.field(default=None, init=False)


def _read_target(cls: type[RouteTarget], value: Any, path: str, problems: list[Problem]) -> Any:
    """Return a `RouteTarget` for any way to write one, else INVALID."""
    if is_table(value):
        return _read_target_table(cls, value, path, problems)
    to = _read_id(value, path, problems)
    return to if to is INVALID else RouteTarget(to=to)


def _read_target_table(
    cls: type[RouteTarget], table: Mapping[Any, Any], path: str, problems: list[Problem]
) -> Any:
    if "to" not in table and any(isinstance(each, str | Mapping) for each in table.values()):
        # shop.register-user = "x" without quotes: TOML made tables of the dots.
        expected = f"expected {TARGET_WORDS}"
        hint = "add 'to'; or quote a name with dots: \"shop.register-user\" = …"
        problems.append(Problem(path, "a table", expected, hint))
        return INVALID
    target = read_section(cls, table, path, problems)
    if target is None:
        return INVALID
    to = _read_id(target.to, join(path, "to"), problems)
    if to is INVALID:
        return INVALID
    return RouteTarget(to=to, threads=target.threads, timeout=target.timeout, when=target.when)


def _read_id(value: Any, path: str, problems: list[Problem]) -> Any:
    if isinstance(value, str):
        if re.fullmatch(ID, value):
            return str(value)
        problems.append(Problem(path, show(value), f"expected {ID_WORDS}"))
        return INVALID
    if isinstance(value, (*_PLAIN_VALUES, Mapping)):
        problems.append(Problem(path, show(value), f"expected {TARGET_WORDS}"))
        return INVALID
    return value


def _read_one(value: Any, path: str, problems: list[Problem]) -> Any:
    if is_array(value):
        hint = "a command or query has exactly one handler"
        problems.append(Problem(path, show(value), f"expected {TARGET_WORDS}", hint))
        return INVALID
    target = _read_target(_Target, value, path, problems)
    return target if target is INVALID else (target,)


def _read_many(value: Any, path: str, problems: list[Problem]) -> Any:
    if is_array(value):
        found = [
            _read_target(RouteTarget, each, f"{path}[{i}]", problems)
            for i, each in enumerate(value)
        ]
    else:
        found = [_read_target(RouteTarget, value, path, problems)]
    return tuple(each for each in found if each is not INVALID)


def _read_sent(value: Any, path: str, problems: list[Problem]) -> Any:
    return _read_target(_SendTarget, value, path, problems)


def _table_of(read: Callable[[Any, str, list[Problem]], Any]) -> Any:
    def read_routes(value: Any, path: str, problems: list[Problem]) -> Any:
        return read_table(value, path, problems, r".+", read)

    return read_routes


@attrs.frozen(kw_only=True)
class RouterSettings:
    """Who handles a command or query, and where it goes first."""

    type: Literal["exact", "regex"] = setting(
        "exact",
        doc="How keys are read: names and globs over dot segments, or regular expressions. "
        "A name says what it means; an expression has to be read twice.",
    )
    routes: dict[str, tuple[RouteTarget, ...]] = setting(
        attrs.Factory(dict),
        doc="What handles a name: a service id, or a table with `to`, `threads`, `timeout`. "
        "Empty: the bus handles nothing here.",
        read=_table_of(_read_one),
    )
    send: dict[str, RouteTarget] = setting(
        attrs.Factory(dict),
        doc="Where a name goes first: `producers.NAME`. Empty: everything is handled here.",
        read=_table_of(_read_sent),
    )
    async_switch: str | None = setting(
        None,
        pattern=ID,
        expected=ID_WORDS,
        doc="The producer of messages marked `AsyncMessage`. Unset: the mark has no effect.",
    )


@attrs.frozen(kw_only=True)
class EventRouterSettings(RouterSettings):
    """Who listens to an event, any number of them, and where it goes first."""

    routes: dict[str, tuple[RouteTarget, ...]] = setting(
        attrs.Factory(dict),
        doc="What listens to a name: one target or an array of them; a table may also have "
        "`when`. Empty: nothing listens, which is fine for an event.",
        read=_table_of(_read_many),
    )


def reader_of(cls: type[R]) -> Callable[[Any, str, list[Problem]], Any]:
    """Return what reads a router section as *cls*."""

    def read_router(value: Any, path: str, problems: list[Problem]) -> Any:
        router = read_section(cls, value, path, problems)
        if router is None:
            return INVALID
        if router.type == "regex":
            for table, keys in (("routes", router.routes), ("send", router.send)):
                for key in keys:
                    _check_expression(key, join(join(path, table), key), problems)
        return router

    return read_router


def _check_expression(key: str, path: str, problems: list[Problem]) -> None:
    if len(key) > LONGEST_PATTERN:
        expected = f"expected a regular expression of at most {LONGEST_PATTERN} characters"
        problems.append(Problem(path, f"{len(key)} characters", expected))
        return
    try:
        re.compile(key)
    except (re.error, OverflowError, RecursionError) as error:
        problems.append(Problem(path, "", f"expected a regular expression: {error}"))
