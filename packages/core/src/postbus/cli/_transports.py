"""`postbus transports`: what is installed, and what it can do."""

from __future__ import annotations

from typing import Any

import attrs
import click

from postbus.cli._output import show_json, show_table
from postbus.cli._state import State, common_options, pass_state
from postbus.discovery import find_transport, installed_transports
from postbus.errors import ConfigurationError, PostbusError, Problem
from postbus.runtime import Postbus
from postbus.settings import parse
from postbus.transports import Capabilities, CommonSettings, Transport

__all__ = ["transports"]


@click.command()
@common_options()
@pass_state
def transports(state: State) -> None:
    """List the installed transports with their capabilities.

    Without an application: what each can do where a section says nothing but its transport. With
    one: what its producers and consumers can do as they are configured.
    """
    if state.app is None and state.config is None:
        rows = [row for name in installed_transports() for row in _installed(name)]
    else:
        with state.opened(buses=False) as postbus:
            rows = _configured(postbus)
    if state.as_json:
        show_json(rows)
        return
    show_table(
        ("section", "transport", "capabilities"),
        [(row["section"], row["transport"], _words(row)) for row in rows],
        empty="none",
    )


def _installed(name: str) -> list[dict[str, Any]]:
    try:
        transport = find_transport(name)
    except ConfigurationError as error:
        return [_row("-", name, None, error.problems[0].expected)]
    return [_of_role(transport, name, role) for role in ("producer", "consumer")]


def _of_role(transport: Transport, name: str, role: str) -> dict[str, Any]:
    wanted = transport.consumer_settings if role == "consumer" else transport.producer_settings
    problems: list[Problem] = []
    settings = parse(wanted, {}, "", problems)
    if settings is None or problems:
        missing = ", ".join(problem.path for problem in problems)
        return _row(role, name, None, f"as configured; needs {missing}")
    try:
        able = transport.capabilities(settings, CommonSettings(name=name))
    except PostbusError as error:
        return _row(role, name, None, str(error))
    return _row(role, name, able)


def _configured(postbus: Postbus) -> list[dict[str, Any]]:
    project = postbus.project()
    sections = project.settings.producers
    producers = [
        _row(f"producers.{name}", sections[name].transport, producer.capabilities)
        for name, producer in project.producers.items()
    ]
    consumers = [
        _row(f"consumers.{name}", prepared.section.transport, project.capabilities(name))
        for name, prepared in project.consumers.items()
    ]
    return [*producers, *consumers]


def _row(
    section: str, transport: str, able: Capabilities | None, note: str | None = None
) -> dict[str, Any]:
    facts = None if able is None else attrs.asdict(able)
    return {"section": section, "transport": transport, "capabilities": facts, "note": note}


def _words(row: dict[str, Any]) -> str:
    """Return the capabilities that there are, in words."""
    facts = row["capabilities"]
    if facts is None:
        return str(row["note"])
    words = [
        name if value is True else f"{name}={value}"
        for name, value in facts.items()
        if value is not None and value is not False
    ]
    return " ".join(words) or "none"
