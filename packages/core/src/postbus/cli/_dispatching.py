"""`postbus send` and `postbus query`: one message, or a stream of them, from JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from postbus.catalog import CatalogEntry
from postbus.cli._output import progress, show_json
from postbus.cli._state import State, common_options, pass_state
from postbus.errors import DecodeError
from postbus.messages import MessageKind, new_id
from postbus.settings import nearest
from postbus.wire import decode, encode_result

if TYPE_CHECKING:
    from postbus.runtime import Postbus

__all__ = ["query", "send"]


@click.command()
@click.argument("name")
@click.argument("payload", metavar="[JSON]", required=False)
@click.option("--lines", is_flag=True, help="Read one message a line from standard input.")
@click.option("--bus", metavar="NAME", help="Dispatch on this bus. Default: the one of the kind.")
@click.option("--id", "id_", metavar="UUID", help="The id; the same id is the same message.")
@click.option("--metadata", metavar="KEY=TEXT", multiple=True, help="Metadata; repeatable.")
@click.option("--delay", type=click.FloatRange(min=0), metavar="SECONDS", help="Send it later.")
@click.option("--at", metavar="TIME", help="Send it at an RFC 3339 time, such as …T12:00:00Z.")
@click.option("--key", metavar="TEXT", help="What orders it among others.")
@click.option("--priority", type=click.IntRange(0, 9), metavar="N", help="9 is the most urgent.")
@common_options()
@pass_state
def send(
    state: State,
    /,
    name: str,
    payload: str | None,
    bus: str | None,
    *,
    lines: bool,
    **given: Any,
) -> None:
    """Dispatch a command or event, as the application would.

    Where it goes is what the routes say: a handler here, or a producer. JSON is the object with
    the fields of the message; left out or "-" it is read from standard input, and where there is
    nothing it is {}.

    Example: postbus send shop.mail.send-welcome '{"to": "ada@example.com"}'
    """
    if lines and (payload is not None or given["id_"] is not None):
        raise click.UsageError("--lines reads standard input: no JSON and no --id beside it")
    texts = _lines() if lines else [_payload(payload)]
    options = _options(given)
    with state.opened() as postbus:
        entry = _entry(postbus, name, (MessageKind.COMMAND, MessageKind.EVENT))
        # All are read before one is sent: half a file is worse than none.
        messages = [_message(postbus, entry, text) for text in texts]
        target: Any = postbus.bus(bus or f"{entry.kind}_bus")
        ids: list[str] = []

        async def dispatch_all() -> None:
            for message in progress(messages, "sending"):
                id_ = options.get("id") or new_id()
                await target.adispatch(message, **{**options, "id": id_})
                ids.append(id_)

        try:
            asyncio.run(dispatch_all())
        finally:
            _report(state, entry, ids, len(messages))


@click.command()
@click.argument("name")
@click.argument("payload", metavar="[JSON]", required=False)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Give up after this long. Default: what the route or the bus says.",
)
@click.option("--bus", metavar="NAME", help="Ask on this bus. Default: query_bus.")
@common_options()
@pass_state
def query(
    state: State, name: str, payload: str | None, timeout: float | None, bus: str | None
) -> None:
    """Ask a query and print the answer as JSON.

    JSON is the object with the fields of the query, as for `send`.

    Example: postbus query shop.count-orders
    """
    text = _payload(payload)
    with state.opened() as postbus:
        entry = _entry(postbus, name, (MessageKind.QUERY,))
        message = _message(postbus, entry, text)
        target: Any = postbus.bus(bus or "query_bus")
        options: dict[str, Any] = {} if timeout is None else {"timeout": timeout}

        async def ask() -> Any:
            return await target.adispatch(message, **options)

        click.echo(encode_result(asyncio.run(ask())))


def _payload(given: str | None) -> str:
    if given is None and sys.stdin.isatty():
        return "{}"
    text = sys.stdin.read() if given is None or given == "-" else given
    return text if text.strip() else "{}"


def _lines() -> list[str]:
    return [line for line in sys.stdin if line.strip()]


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a dispatch; what was not given is left out."""
    metadata = [each.partition("=") for each in given.pop("metadata")]
    for key, equals, _ in metadata:
        if not (key and equals):
            raise click.BadParameter("expected KEY=TEXT", param_hint="--metadata")
    options = {
        **given,
        "id": given.pop("id_"),
        "at": _moment(given["at"]),
        "metadata": {key: text for key, _, text in metadata} or None,
    }
    options.pop("id_", None)
    return {key: value for key, value in options.items() if value is not None}


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise click.BadParameter(
            "expected an RFC 3339 time with an offset, such as 2030-01-31T12:00:00Z",
            param_hint="--at",
        )
    return moment


def _entry(postbus: Postbus, name: str, kinds: Sequence[MessageKind]) -> CatalogEntry:
    entry = postbus.catalog.find(name)
    if entry is None:
        known = [each.name for each in postbus.catalog if each.kind in kinds]
        advice = nearest(name, known) or f"known: {', '.join(sorted(known)) or 'none'}"
        raise click.BadParameter(f"{name!r} is in no catalogue; {advice}", param_hint="NAME")
    if entry.kind not in kinds:
        command = "query" if entry.kind is MessageKind.QUERY else "send"
        msg = f"{entry.name} is a {entry.kind}: postbus {command}"
        raise click.BadParameter(msg, param_hint="NAME")
    return entry


def _message(postbus: Postbus, entry: CatalogEntry, text: str) -> Any:
    """Return the message of *entry* that the JSON in *text* describes, read as from the wire."""
    try:
        payload = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"no JSON: {error}", param_hint="JSON") from None
    if not isinstance(payload, dict):
        raise click.BadParameter("expected a JSON object", param_hint="JSON")
    body: dict[str, Any] = {
        "message_name": entry.name,
        "uuid": new_id(),
        "payload": payload,
        "metadata": {},
        "created_at": datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="microseconds"),
    }
    try:
        return decode(json.dumps(body, ensure_ascii=False).encode(), postbus.catalog).message
    except (DecodeError, UnicodeEncodeError) as error:
        raise click.BadParameter(f"{entry.name}: {error}", param_hint="JSON") from None


def _report(state: State, entry: CatalogEntry, ids: list[str], wanted: int) -> None:
    if state.as_json:
        show_json({"name": entry.name, "ids": ids, "left": wanted - len(ids)})
    elif wanted == 1:
        for id_ in ids:
            click.echo(f"dispatched {entry.name} {id_}")
    else:
        click.echo(f"dispatched {len(ids)} of {wanted} {entry.name}")
