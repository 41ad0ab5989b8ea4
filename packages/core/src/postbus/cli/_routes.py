"""`postbus routes`: what goes where, and what that guarantees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from postbus.cli._output import show_json, show_table
from postbus.cli._state import State, common_options, pass_state
from postbus.runtime import Project, Way, guarantee_of

if TYPE_CHECKING:
    from postbus.settings import ConsumerSection

__all__ = ["routes"]


@click.command()
@click.option("--mermaid", is_flag=True, help="Print a Mermaid flowchart.")
@common_options()
@pass_state
def routes(state: State, *, mermaid: bool) -> None:
    """List what goes where.

    For each message: the bus, the producer that it is sent to first, what handles it (here, or
    where it is received), and the guarantee of the weakest producer. For each consumer: its
    guarantee, and what keeps effects from happening twice.
    """
    with state.opened() as postbus:
        project = postbus.project()
        ways = sorted(project.ways(), key=lambda way: (way.name, way.bus))
        if mermaid:
            click.echo("\n".join(_flowchart(project, ways)))
        elif state.as_json:
            show_json({"routes": list(map(_way_facts, ways)), "consumers": _consumers(project)})
        else:
            _show(project, ways)


def _show(project: Project, ways: list[Way]) -> None:
    show_table(
        ("message", "kind", "bus", "sent to", "guarantee", "handled by"),
        [
            (way.name, way.kind, way.bus, way.producers, way.guarantee, way.handlers)
            for way in ways
        ],
        empty="no messages",
    )
    consumers = _consumers(project)
    if consumers:
        click.echo()
        show_table(
            ("consumer", "transport", "guarantee", "effects", "retries", "failures go to"),
            [tuple(each.values()) for each in consumers],
            empty="",
        )


def _way_facts(way: Way) -> dict[str, Any]:
    return {
        "message": way.name,
        "kind": str(way.kind),
        "bus": way.bus,
        "sent_to": list(way.producers),
        "guarantee": way.guarantee,
        "handled_by": list(way.handlers),
    }


def _consumers(project: Project) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, prepared in project.consumers.items():
        section = prepared.section
        guarantee = guarantee_of(section, project.capabilities(name))
        rows.append(
            {
                "consumer": name,
                "transport": section.transport,
                "guarantee": guarantee,
                "effects": _effects(section, guarantee),
                "retries": 0 if section.retry is None else section.retry.max_attempts - 1,
                "failure_store": section.failure_store,
            }
        )
    return rows


def _effects(section: ConsumerSection, guarantee: str) -> str:
    if guarantee == "at-most-once":
        return "at most once"
    if section.inbox is None:
        return "perhaps twice"
    return "once, where the unit of work joins the inbox"


def _flowchart(project: Project, ways: list[Way]) -> Iterator[str]:
    """Yield the lines: messages on the left, then producers, then what handles them."""
    yield "flowchart LR"
    ids: dict[str, str] = {}

    def node(text: str, left: str, right: str) -> str:
        if text in ids:
            return ids[text]
        ids[text] = f"n{len(ids)}"
        return f'{ids[text]}{left}"{text.replace(chr(34), "#quot;")}"{right}'

    for way in ways:
        message = node(f"{way.kind} {way.name}", "[", "]")
        for producer in way.producers:
            arrow = f"-- {way.guarantee} -->"
            yield f"  {message} {arrow} {node(f'producer {producer}', '([', '])')}"
            message = message.partition("[")[0]
        arrow = "-. when received .->" if way.producers else "-->"
        for handler in way.handlers:
            label = handler if way.bus.endswith("_bus") else f"{handler} ({way.bus})"
            yield f"  {message} {arrow} {node(label, '(', ')')}"
            message = message.partition("[")[0]
        if not (way.producers or way.handlers):
            yield f"  {message}"
    for name in project.consumers:
        yield f"  {node(f'consumer {name}', '([', '])')} --> {node('worker', '[', ']')}"
