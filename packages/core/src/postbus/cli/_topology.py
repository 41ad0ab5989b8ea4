"""`postbus topology`: what has to be there at the systems that an application uses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from postbus.cli._output import show_error, show_json, show_table
from postbus.cli._state import State, common_options, pass_state
from postbus.errors import TransportError
from postbus.transports import Topology, TopologyPart

if TYPE_CHECKING:
    from postbus.runtime import Postbus

__all__ = ["topology"]

_Call = Callable[[Topology], Sequence[TopologyPart]]


@click.group()
@common_options()
def topology() -> None:
    """Queues and exchanges that producers and consumers need at their systems.

    Each declares its own on first use, so that nobody has to. For transports without any there
    is nothing to show.
    """


@topology.command()
@common_options()
@pass_state
def show(state: State) -> None:
    """Show them and how they stand; make nothing.

    Exits with 1 where one of them differs from what is configured, with 4 where a system cannot
    be reached; the others are shown.
    """
    _report(state, lambda each: each.show_topology())


@topology.command()
@common_options()
@pass_state
def apply(state: State) -> None:
    """Make what is missing; change nothing that is there.

    Exits with 1 where one of them differs from what is configured, with 4 where a system cannot
    be reached; the others are made.
    """
    _report(state, lambda each: each.apply_topology())


def _report(state: State, call: _Call) -> None:
    rows: list[dict[str, Any]] = []
    unreachable = False
    with state.opened(buses=False) as postbus, _sides(postbus) as sides:
        for section, side in sides.items():
            try:
                rows += [_row(section, part) for part in call(side)]
            except TransportError as error:
                unreachable = True
                text = f"{section}: {error}"
                show_error(text, as_json=state.as_json, kind=type(error).__name__)
    if state.as_json:
        show_json(rows)
    else:
        show_table(
            ("section", "kind", "name", "state", "difference"),
            [(*list(row.values())[:4], row["difference"] or None) for row in rows],
            empty="none",
        )
    if unreachable or any(row["state"] == "differs" for row in rows):
        click.get_current_context().exit(4 if unreachable else 1)


def _row(section: str, part: TopologyPart) -> dict[str, Any]:
    return {
        "section": section,
        "kind": part.kind,
        "name": part.name,
        "state": part.state,
        "difference": part.difference,
    }


@contextmanager
def _sides(postbus: Postbus) -> Generator[dict[str, Topology]]:
    """Yield what has a topology, by its section."""
    project = postbus.project()
    consumers = {name: prepared.consumer() for name, prepared in project.consumers.items()}
    found: dict[str, Any] = {f"producers.{name}": each for name, each in project.producers.items()}
    found |= {f"consumers.{name}": each for name, each in consumers.items()}
    try:
        yield {name: each for name, each in found.items() if isinstance(each, Topology)}
    finally:
        for each in consumers.values():
            asyncio.run(each.aclose())
