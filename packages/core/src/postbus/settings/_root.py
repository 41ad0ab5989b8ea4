"""The whole of a configuration, and the way from a plain dict to it."""

# ruff: noqa: RUF009  a field is made by a call; attrs reads what it returns

from __future__ import annotations

from typing import Any

import attrs

from postbus.errors import Problem
from postbus.settings._buses import (
    BusSettings,
    CommandBusSettings,
    EventBusSettings,
    QueryBusSettings,
    read_buses,
)
from postbus.settings._fields import setting
from postbus.settings._masking import join, show
from postbus.settings._parsing import read_section
from postbus.settings._routes import NAME
from postbus.settings._sections import (
    ConsumerSection,
    ProducerSection,
    StoreSection,
    WorkerSettings,
)
from postbus.settings._shapes import article_of, is_table

__all__ = ["PostbusSettings", "read_settings"]

SHORT_FORM = "_producer"
MODULE = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
CODE = "[a-z][a-z0-9-]*"


@attrs.frozen(kw_only=True)
class PostbusSettings:
    """`[postbus]`: everything."""

    messages: list[str] = setting(
        attrs.Factory(list),
        pattern=MODULE,
        expected="the dotted name of a module",
        doc="Modules whose messages may be received; no other way leads from a name on the wire "
        "to a class. Empty: only what is added to the catalogue in code.",
    )
    producers: dict[str, ProducerSection] = setting(
        attrs.Factory(dict),
        names=NAME,
        doc="Where messages go, by name. Empty: none is sent. `[postbus.zeromq_producer]` is "
        'short for `[postbus.producers.zeromq]` with `transport = "zeromq"`.',
    )
    consumers: dict[str, ConsumerSection] = setting(
        attrs.Factory(dict),
        names=NAME,
        doc="Where messages come from, by name. Empty: a worker has nothing to receive.",
    )
    command_bus: CommandBusSettings = setting(
        attrs.Factory(CommandBusSettings), doc="The command bus, which is there in any case."
    )
    event_bus: EventBusSettings = setting(
        attrs.Factory(EventBusSettings), doc="The event bus, which is there in any case."
    )
    query_bus: QueryBusSettings = setting(
        attrs.Factory(QueryBusSettings), doc="The query bus, which is there in any case."
    )
    buses: dict[str, BusSettings] = setting(
        attrs.Factory(dict),
        names=NAME,
        doc="More buses, by name; `kind` is 'command', 'event' or 'query'. Empty: three are "
        "enough.",
        read=read_buses,
    )
    stores: dict[str, StoreSection] = setting(
        attrs.Factory(dict),
        names=NAME,
        doc="Where messages are kept, by name: those that failed, that wait, that were handled. "
        "Empty: nowhere.",
    )
    worker: WorkerSettings = setting(attrs.Factory(WorkerSettings), doc="How a worker runs.")
    errors: dict[str, str] = setting(
        attrs.Factory(dict),
        names=CODE,
        pattern=rf"{MODULE}:{MODULE}",
        expected="'package.module:ExceptionClass'",
        doc="The code that an exception class has on the wire, by code. Empty: a class's own "
        "`code`, else `error`.",
    )


def read_settings(config: Any, problems: list[Problem]) -> PostbusSettings:
    """Read the whole dict, the `[postbus]` section itself; it is copied, never changed.

    Everything wrong is appended to *problems*. Then the settings returned have defaults in place
    of it, and lack the sections that could not be read at all: good for looking for more
    problems, and for nothing else.
    """
    if not is_table(config):
        problems.append(Problem("postbus", show(config), "expected a table"))
        return PostbusSettings()
    short = {key: key.removesuffix(SHORT_FORM) for key in config if _is_short_form(key)}
    settings = read_section(PostbusSettings, config, "", problems, also_known=short)
    assert settings is not None  # noqa: S101  no key of the root is required
    named = config.get("producers")
    for key, name in short.items():
        if is_table(named) and name in named:
            expected = f"expected either this or 'producers.{name}', which it is short for"
            problems.append(Problem(key, article_of(config[key]), expected, "remove one"))
        elif (section := _read_short(config[key], name, key, problems)) is not None:
            settings.producers[name] = section
    return settings


def _is_short_form(key: Any) -> bool:
    return (
        isinstance(key, str) and key.endswith(SHORT_FORM) and key not in {SHORT_FORM, "producers"}
    )


def _read_short(
    section: Any, name: str, path: str, problems: list[Problem]
) -> ProducerSection | None:
    if not is_table(section):
        problems.append(Problem(path, show(section), "expected a table"))
        return None
    if section.get("transport", name) != name:
        where = join(path, "transport")
        expected = f"expected {name!r}, which the section's name says already"
        hint = "leave it out, or write [postbus.producers.NAME]"
        problems.append(Problem(where, show(section["transport"]), expected, hint))
    return read_section(ProducerSection, {**section, "transport": name}, path, problems)
