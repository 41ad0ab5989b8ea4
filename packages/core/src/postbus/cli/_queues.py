"""`postbus queues`: what waits in the systems that consumers take from."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import click
import msgspec

from postbus.cli._output import show_error, show_json, show_table, stamp
from postbus.cli._state import (
    State,
    common_options,
    limit_option,
    offset_option,
    pass_state,
)
from postbus.errors import DecodeError, TransportError, UnsupportedError
from postbus.wire import decode

if TYPE_CHECKING:
    from postbus.catalog import MessageCatalog
    from postbus.messages import Envelope
    from postbus.runtime import Postbus
    from postbus.settings import ConsumerSection
    from postbus.transports import MessageConsumer

__all__ = ["queues"]


@click.group()
@common_options()
def queues() -> None:
    """Look at what waits for consumers, and remove it.

    A queue is what a consumer takes from, as its transport calls it: a queue, a tube, a folder.
    What a worker holds and what is delayed does not wait there, and is neither shown nor removed.
    """


@attrs.frozen
class Looking:
    """A consumer that receives nothing, under the *name* of its section."""

    name: str
    section: ConsumerSection
    consumer: MessageConsumer

    def need(self, capability: str) -> None:
        """Refuse to go on where the transport cannot.

        Raises:
            UnsupportedError: the capabilities deny *capability*.
        """
        can = self.consumer.capabilities
        if getattr(can, capability):
            return
        advice = "where it has queues, its own tools show them"
        if can.count:
            advice = f"try `postbus queues count {self.name}`, or the system's own tools"
        lacking = f"{self.section.transport} lacks the capability {capability}"
        raise UnsupportedError(f"consumers.{self.name}: {lacking}; {advice}")

    def queue(self, given: str | None) -> tuple[str, int]:
        """Return the queue that is meant, the one *given* or the only one, and what waits in it.

        Raises:
            BadParameter: the consumer does not take from it.
            UsageError: there are several.
        """
        known = self.consumer.count()
        names = ", ".join(known)
        if given is None and len(known) > 1:
            raise click.UsageError(f"which queue? give --queue, one of: {names}")
        if given is not None and given not in known:
            text = f"{self.name} does not take from {given!r}, only from: {names}"
            raise click.BadParameter(text, param_hint="--queue")
        name = next(iter(known)) if given is None else given
        return name, known[name]


@contextmanager
def _looking(postbus: Postbus, name: str) -> Generator[Looking]:
    consumer = postbus.consumer(name)
    try:
        yield Looking(name, postbus.project().settings.consumers[name], consumer)
    finally:
        asyncio.run(consumer.aclose())


_consumer = click.argument("consumer")
_queue = click.option("--queue", metavar="NAME", help="Which of them. Default: the only one.")


@queues.command("list")
@common_options()
@pass_state
def list_queues(state: State) -> None:
    """List the queues of all consumers, with how many messages wait in each.

    A consumer whose transport cannot count has a line all the same. Exits with 4 where a system
    cannot be reached; the others are listed.
    """
    with state.opened(buses=False) as postbus:
        rows = [row for name in postbus.project().consumers for row in _rows(postbus, name)]
    if state.as_json:
        show_json(rows)
    else:
        columns = ("consumer", "transport", "queue", "waiting")
        show_table(columns, [[row[each] for each in columns] for row in rows], empty="none")
    troubles = [f"consumers.{row['consumer']}: {row['trouble']}" for row in rows if row["trouble"]]
    for trouble in troubles:
        show_error(trouble, as_json=state.as_json, kind="TransportError")
    if troubles:
        click.get_current_context().exit(4)


def _rows(postbus: Postbus, name: str) -> list[dict[str, Any]]:
    found: list[tuple[str | None, int | None]] = [(None, None)]
    trouble: str | None = None
    with _looking(postbus, name) as looking:
        if looking.consumer.capabilities.count:
            try:
                found = [*looking.consumer.count().items()]
            except TransportError as error:
                trouble = str(error)
    facts = {"consumer": name, "transport": looking.section.transport}
    return [
        {**facts, "queue": queue, "waiting": waiting, "trouble": trouble}
        for queue, waiting in found
    ]


@queues.command()
@_consumer
@click.option("--queue", metavar="NAME", help="Only in this one. Default: in all of them.")
@common_options()
@pass_state
def count(state: State, consumer: str, queue: str | None) -> None:
    """Print how many messages wait for a consumer: a number, for scripts."""
    with state.opened(buses=False) as postbus, _looking(postbus, consumer) as looking:
        looking.need("count")
        found = dict(looking.consumer.count() if queue is None else [looking.queue(queue)])
    total = sum(found.values())
    if state.as_json:
        show_json({"total": total, "queues": found})
    else:
        click.echo(total)


@queues.command()
@_consumer
@_queue
@limit_option(20)
@offset_option
@click.option("--body", is_flag=True, help="Print what is in them, too.")
@common_options()
@pass_state
def peek(
    state: State, consumer: str, queue: str | None, limit: int, offset: int, *, body: bool
) -> None:
    """Show messages that wait, the next one first, and take none.

    What a worker could not read is shown with the reason that it would give.
    """
    with state.opened(buses=False) as postbus, _looking(postbus, consumer) as looking:
        looking.need("inspect")
        name, _ = looking.queue(queue)
        found = looking.consumer.peek(name, offset=offset, limit=limit)
        shown = [_facts(each.body, looking, postbus.catalog, body=body) for each in found]
    if state.as_json:
        show_json({"queue": name, "messages": shown})
        return
    columns = ("name", "id", "created_at", "attempts", "bytes", "reason")
    if not body:
        rows = [[each[column] for column in columns] for each in shown]
        show_table([each.replace("_", " ") for each in columns], rows, empty="none")
        return
    for facts, message in zip(shown, found, strict=True):
        is_read = facts["reason"] is None
        words = ("name", "id", "created_at") if is_read else ("reason",)
        click.echo("  ".join([*(facts[word] for word in words), f"{facts['bytes']} bytes"]))
        # Nothing in it may speak to the terminal.
        click.echo(f"  {json.dumps(facts['payload']) if is_read else ascii(message.body)}")
    if not shown:
        click.echo("none")


def _facts(
    data: bytes, looking: Looking, catalog: MessageCatalog, *, body: bool
) -> dict[str, Any]:
    envelope, reason = _read(data, looking, catalog)
    facts: dict[str, Any] = {
        "name": None,
        "id": None,
        "created_at": None,
        "attempts": None,
        "bytes": len(data),
        "reason": reason,
    }
    if envelope is not None:
        facts["name"], facts["id"] = envelope.name, envelope.id
        facts["created_at"] = stamp(envelope.created_at)
        facts["attempts"] = envelope.headers.get("attempt", 0)
    if body:
        is_read = envelope is not None
        facts["payload"] = msgspec.json.decode(data)["payload"] if is_read else None
        facts["body"] = None if is_read else base64.b64encode(data).decode("ascii")
    return facts


def _read(
    data: bytes, looking: Looking, catalog: MessageCatalog
) -> tuple[Envelope | None, str | None]:
    """Return the envelope as the worker of this consumer would read it, or the reason why not."""
    section, limit = looking.section, looking.consumer.capabilities.max_size_bytes
    try:
        envelope = decode(
            data,
            catalog,
            unknown_fields=section.unknown_fields,
            max_size_bytes=limit or section.max_size_bytes,
        )
        _ = envelope.message  # what is in it may be wrong, too
    except DecodeError as error:
        return None, error.reason
    return envelope, None


@queues.command()
@_consumer
@_queue
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options()
@pass_state
def purge(state: State, consumer: str, queue: str | None, *, yes: bool) -> None:
    """Remove what waits in a queue, for good."""
    with state.opened(buses=False) as postbus, _looking(postbus, consumer) as looking:
        looking.need("purge")
        name, waiting = looking.queue(queue)
        if waiting and not yes:
            what = "1 message" if waiting == 1 else f"{waiting} messages"
            click.confirm(f"Remove {what} from {name!r} for good?", abort=True, err=True)
        removed = looking.consumer.purge(name)
    if state.as_json:
        show_json({"queue": name, "removed": removed})
    else:
        click.echo(f"{removed} removed")
