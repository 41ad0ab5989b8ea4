"""`postbus failed`: the messages that workers gave up."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import click

from postbus.cli._output import progress, show_json, show_table, stamp
from postbus.cli._results import Results
from postbus.cli._state import (
    State,
    common_options,
    limit_option,
    offset_option,
    pass_state,
)
from postbus.cli._stores import chosen_stores, store_option
from postbus.errors import DecodeError
from postbus.stores import FailedMessage, ScheduledMessage, consumer_target
from postbus.transports import WireMessage
from postbus.wire import decode

if TYPE_CHECKING:
    from postbus.runtime import Postbus
    from postbus.stores import ScheduleStore, Store

__all__ = ["failed"]

F = TypeVar("F", bound=Callable[..., Any])

_PAGE = 500


@click.group()
@common_options()
def failed() -> None:
    """Look at failed messages, and decide about them.

    They stand in the stores that consumers name as failure_store, each under a KEY.
    """


@attrs.frozen(kw_only=True)
class Filters:
    """Which of them."""

    consumer: str | None = None
    name: str | None = None
    reason: str | None = None

    def find(self, stores: dict[str, Store]) -> Iterator[tuple[str, FailedMessage]]:
        """Yield every message that fits, with the name of its store."""
        facts = attrs.asdict(self)
        for store_name, store in stores.items():
            offset = 0
            while page := store.failures.list(**facts, limit=_PAGE, offset=offset):
                for each in page:
                    yield store_name, each
                offset += len(page)


def _filters(function: F) -> F:
    for option in (
        click.option("--reason", metavar="CODE", help="Only those with this reason."),
        click.option("--name", metavar="GLOB", help="Only messages of this name, or pattern."),
        click.option("--consumer", metavar="NAME", help="Only those of this consumer."),
        store_option,
    ):
        function = option(function)
    return function


_all = click.option("--all", "takes_all", is_flag=True, help="All that the filters let through.")
_keys = click.argument("keys", metavar="[KEY]...", nargs=-1)


@failed.command("list")
@limit_option(100)
@offset_option
@_filters
@common_options()
@pass_state
def list_failed(state: State, /, store: str | None, limit: int, offset: int, **given: Any) -> None:
    """List them, the longest failed first."""
    filters = Filters(**given)
    with state.opened(buses=False) as postbus:
        stores = chosen_stores(postbus, store)
        total = sum(each.failures.count(**attrs.asdict(filters)) for each in stores.values())
        found = list(filters.find(stores)) if offset + limit > _PAGE else _first(stores, filters)
    found.sort(key=lambda each: (each[1].failed_at, each[1].key))
    shown = found[offset : offset + limit]
    if state.as_json:
        show_json({"total": total, "failed": [_facts(*each) for each in shown]})
        return
    show_table(
        ("key", "consumer", "message", "reason", "attempts", "failed at"),
        [(f.key, f.consumer, f.name, f.reason, f.attempts, stamp(f.failed_at)) for _, f in shown],
        empty="none",
    )
    if total > len(shown):
        click.echo(f"{len(shown)} of {total}", err=True)


def _first(stores: dict[str, Store], filters: Filters) -> list[tuple[str, FailedMessage]]:
    facts = attrs.asdict(filters)
    return [
        (name, each)
        for name, store in stores.items()
        for each in store.failures.list(**facts, limit=_PAGE)
    ]


@failed.command()
@click.argument("key")
@click.option("--body", is_flag=True, help="Print the message itself, byte for byte.")
@store_option
@common_options()
@pass_state
def show(state: State, key: str, store: str | None, *, body: bool) -> None:
    """Show one, with what it failed with each time."""
    with state.opened(buses=False) as postbus:
        store_name, found = _one(chosen_stores(postbus, store), key)
    if body:
        click.echo(found.body, nl=False)
        return
    facts = _facts(store_name, found)
    if state.as_json:
        show_json(facts)
        return
    history = facts.pop("history")
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{name.replace('_', ' '):{width}}  {'-' if value is None else value}")
    for each in history:
        where = f" ({each['where']})" if each["where"] else ""
        click.echo(f"\n{each['at']}  {each['reason']}  {each['error']}{where}\n  {each['text']}")


@failed.command()
@_keys
@_all
@_filters
@common_options()
@pass_state
def retry(
    state: State, /, keys: tuple[str, ...], store: str | None, *, takes_all: bool, **given: Any
) -> None:
    """Have messages handled once more.

    Each goes to the schedule of its consumer, whose worker takes it from there. When it fails
    again, it comes back here.
    """
    with state.opened(buses=False) as postbus:
        stores = chosen_stores(postbus, store)
        results = Results(state.as_json)
        schedules = _schedules(postbus)
        for key in progress(_wanted(stores, keys, Filters(**given), takes_all=takes_all), "retry"):
            results.add(key, _retry(stores, schedules, key))
    results.report()


def _retry(stores: dict[str, Store], schedules: dict[str, ScheduleStore], key: str) -> str | None:
    name, found = _find(stores, key)
    if found is None:
        return "not there"
    schedule = schedules.get(found.consumer)
    if schedule is None:
        return f"the consumer {found.consumer} has no schedule and no failure_store"
    message = WireMessage(found.body, {}, found.id or found.key, found.name or "")
    target = consumer_target(found.consumer)
    # In this order: a crash between the two leaves it in both places, and lost in none.
    schedule.put(ScheduledMessage(target=target, due=datetime.now(UTC), message=message))
    stores[name].failures.delete(key)
    return None


def _schedules(postbus: Postbus) -> dict[str, ScheduleStore]:
    """Return where each consumer's retries wait."""
    found: dict[str, ScheduleStore] = {}
    for name, section in postbus.project().settings.consumers.items():
        store = section.schedule or section.failure_store
        if store is not None:
            found[name] = postbus.stores[store].schedule
    return found


@failed.command()
@click.argument("key")
@click.option(
    "--file",
    "path",
    type=click.Path(allow_dash=True),
    metavar="FILE",
    help='Take the new body from a file, "-" for standard input. Default: open an editor.',
)
@click.option("--force", is_flag=True, help="Keep a body that is no valid message.")
@store_option
@common_options()
@pass_state
def edit(state: State, key: str, path: str | None, store: str | None, *, force: bool) -> None:
    """Correct the body of one, to retry it afterwards."""
    with state.opened(buses=False) as postbus:
        stores = chosen_stores(postbus, store)
        store_name, found = _one(stores, key)
        body = _new_body(found, path)
        if body is None or body == found.body:
            click.echo("unchanged")
            return
        if not force:
            try:
                _ = decode(body, postbus.catalog).message
            except DecodeError as error:
                msg = f"no message: {error}; --force keeps it all the same"
                raise click.BadParameter(msg, param_hint="the new body") from None
        results = Results(state.as_json)
        kept = stores[store_name].failures.replace(key, body)
        results.add(key, None if kept else "not there any more")
    results.report()


def _new_body(found: FailedMessage, path: str | None) -> bytes | None:
    if path is not None:
        with click.open_file(path, "rb") as file:
            body: bytes = file.read()
            return body
    try:
        text = found.body.decode()
    except UnicodeDecodeError:
        msg = "the body is no text: give the new one with --file"
        raise click.UsageError(msg) from None
    edited = click.edit(text, extension=".json")
    return None if edited is None else edited.rstrip("\n").encode()


@failed.command()
@_keys
@_all
@click.option("--yes", is_flag=True, help="Do not ask.")
@_filters
@common_options()
@pass_state
def drop(
    state: State,
    /,
    keys: tuple[str, ...],
    store: str | None,
    *,
    takes_all: bool,
    yes: bool,
    **given: Any,
) -> None:
    """Delete messages for good."""
    with state.opened(buses=False) as postbus:
        stores = chosen_stores(postbus, store)
        wanted = _wanted(stores, keys, Filters(**given), takes_all=takes_all)
        if takes_all and wanted and not yes:
            click.confirm(f"Delete {len(wanted)} messages for good?", abort=True, err=True)
        results = Results(state.as_json)
        for key in progress(wanted, "drop"):
            is_gone = any(each.failures.delete(key) for each in stores.values())
            results.add(key, None if is_gone else "not there")
    results.report()


@failed.command()
@click.option(
    "--output", metavar="FILE", help="Write a file, mode 0600. Default: standard output."
)
@_filters
@common_options()
@pass_state
def export(state: State, /, store: str | None, output: str | None, **given: Any) -> None:
    """Write messages as JSON, one a line, with their bodies in base64. Deletes none."""
    with state.opened(buses=False) as postbus:
        found = list(Filters(**given).find(chosen_stores(postbus, store)))
    lines = [_exported(*each) for each in progress(found, "export")]
    if output is None:
        click.echo("".join(lines), nl=False)
        return
    file = os.open(Path(output), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(file, "w", encoding="utf-8") as stream:
        stream.writelines(lines)
    click.echo(f"{len(lines)} written to {output}", err=True)


def _exported(store: str, found: FailedMessage) -> str:
    body = base64.b64encode(found.body).decode("ascii")
    return f"{json.dumps({**_facts(store, found), 'body': body})}\n"


def _wanted(
    stores: dict[str, Store], keys: Sequence[str], filters: Filters, *, takes_all: bool
) -> list[str]:
    """Return the keys that are meant: those given, or with --all those that fit."""
    if takes_all == bool(keys):
        raise click.UsageError("which ones? give KEYs, or --all with or without filters")
    if keys and filters != Filters():
        raise click.UsageError("filters belong to --all")
    return list(keys) or [found.key for _, found in filters.find(stores)]


def _find(stores: dict[str, Store], key: str) -> tuple[str, FailedMessage | None]:
    for name, store in stores.items():
        if (found := store.failures.get(key)) is not None:
            return name, found
    return "", None


def _one(stores: dict[str, Store], key: str) -> tuple[str, FailedMessage]:
    name, found = _find(stores, key)
    if found is None:
        raise click.ClickException(f"{key} is not among the failed messages")
    return name, found


def _facts(store: str, found: FailedMessage) -> dict[str, Any]:
    """Return everything but the body."""
    return {
        "key": found.key,
        "store": store,
        "consumer": found.consumer,
        "id": found.id,
        "name": found.name,
        "reason": found.reason,
        "attempts": found.attempts,
        "failed_at": stamp(found.failed_at),
        "body_bytes": len(found.body),
        "history": [{**attrs.asdict(each), "at": stamp(each.at)} for each in found.history],
    }
