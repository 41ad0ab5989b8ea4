"""`postbus scheduled`: the messages that wait in stores until they are due."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from postbus.cli._output import show_json, show_table, stamp
from postbus.cli._results import Results
from postbus.cli._state import State, common_options, limit_option, pass_state
from postbus.cli._stores import chosen_stores, store_option

if TYPE_CHECKING:
    from postbus.stores import ScheduledMessage, Store

__all__ = ["scheduled"]

_PAGE = 500


@click.group()
@common_options()
def scheduled() -> None:
    """Look at messages that are not due yet, and cancel them.

    They wait to be sent (producers.NAME) or to be handled again (consumers.NAME). What a
    transport delays by itself is not among them.
    """


@scheduled.command("list")
@click.option("--target", metavar="TARGET", help="Only those for producers.NAME, consumers.NAME.")
@click.option("--name", metavar="GLOB", help="Only messages of this name, or pattern.")
@limit_option(100)
@store_option
@common_options()
@pass_state
def list_scheduled(
    state: State, target: str | None, name: str | None, limit: int, store: str | None
) -> None:
    """List them, the next due first."""
    with state.opened(buses=False) as postbus:
        rows = [
            (each.due, _facts(store_name, each))
            for store_name, kept in chosen_stores(postbus, store).items()
            for each in kept.schedule.list(target=target, name=name, limit=limit)
        ]
    rows.sort(key=lambda row: row[0])
    facts = [each for _, each in rows[:limit]]
    if state.as_json:
        show_json(facts)
        return
    show_table(
        ("id", "message", "target", "due"),
        [(each["id"], each["name"], each["target"], each["due"]) for each in facts],
        empty="none",
    )


@scheduled.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("--target", metavar="TARGET", help="Only for producers.NAME or consumers.NAME.")
@store_option
@common_options()
@pass_state
def cancel(state: State, ids: tuple[str, ...], target: str | None, store: str | None) -> None:
    """Delete messages before they are due.

    One that a worker has begun with is left alone.
    """
    with state.opened(buses=False) as postbus:
        stores = chosen_stores(postbus, store)
        results = Results(state.as_json)
        for id_ in ids:
            results.add(id_, _cancel(stores, id_, target))
    results.report()


def _cancel(stores: dict[str, Store], id_: str, target: str | None) -> str | None:
    found = [
        (store, row.target)
        for store in stores.values()
        for row in _every(store, target)
        if row.message.id == id_
    ]
    if not found:
        return "not there"
    # No all() over a generator: each of them is to be cancelled, whatever became of another.
    cancelled = [store.schedule.cancel(id_, own) for store, own in found]
    return None if all(cancelled) else "a worker has begun with it"


def _every(store: Store, target: str | None) -> list[ScheduledMessage]:
    rows: list[ScheduledMessage] = []
    while page := store.schedule.list(target=target, limit=_PAGE, offset=len(rows)):
        rows += page
    return rows


def _facts(store: str, row: ScheduledMessage) -> dict[str, Any]:
    return {
        "id": row.message.id,
        "name": row.message.name,
        "target": row.target,
        "due": stamp(row.due),
        "store": store,
    }
