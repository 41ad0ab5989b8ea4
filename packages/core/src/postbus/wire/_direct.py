"""Bodies read in one pass, for classes simple enough that msgspec checks the whole message.

The usual way cuts the payload out and leaves it for later, which goes over it twice. Here it is
read with the rest of the body, and kept as msgspec left it until the message is asked for. What
is refused here takes the usual way, which says what is wrong or knows better: nothing is accepted
that would be refused there.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from postbus.messages import Envelope, is_canonical_id
from postbus.wire._headers import JUST_VERSION, own_headers
from postbus.wire._mirrors import Mirror
from postbus.wire._plain import READ_PLAIN
from postbus.wire._scan import MAX_DIGITS, check_digits, check_nesting

if TYPE_CHECKING:
    from collections.abc import Callable

    from postbus.catalog import MessageCatalog

    Read = Callable[[bytes, MessageCatalog], Envelope | None]

_NOTHING = Annotated[list[int], msgspec.Meta(max_length=0)]


class _Cut(msgspec.Struct):
    payload: msgspec.Raw


_cut = msgspec.json.Decoder(_Cut).decode


def _payload_of(source: tuple[bytes, Any]) -> bytes:
    return bytes(_cut(source[0]).payload)


def direct_reader(
    cls: type, name: str, load: Callable[[bytes], Any], *, ignore_unknown: bool
) -> Read:
    """Return what makes an envelope of a body that says *name*, where that means *cls*.

    It returns None for what the usual way has to look at. *load* makes the message of a payload
    that cannot be made of what was read; it says why not. Bodies are UTF-8 of a size allowed.
    """
    try:
        mirror = Mirror(cls, ignore_unknown=ignore_unknown, plain=READ_PLAIN)
        whole = _whole(name, mirror.struct, forbid_unknown=not ignore_unknown)
        decode = msgspec.json.Decoder(whole).decode
    except Exception:  # noqa: BLE001  whatever is odd about the class, the usual way says it
        return _never
    build, lazy, unset = mirror.build, Envelope.lazy, msgspec.UNSET
    # What is skipped may be of any depth, what is read is as deep as its type.
    check = check_nesting if ignore_unknown else check_digits

    def make(source: tuple[bytes, Any]) -> Any:
        try:
            return build(source[1])
        except Exception:  # noqa: BLE001  whatever it was, the usual way says what
            return load(_payload_of(source))

    def read(body: bytes, catalog: MessageCatalog) -> Envelope | None:
        entry = catalog.find(name)
        if entry is None or entry.cls is not cls:
            return None
        if ignore_unknown or len(body) > MAX_DIGITS:
            check(body)
        try:
            wire = decode(body)
            made = wire.created_at
            if made.tzinfo is not None:
                made = made.astimezone(UTC)
        except Exception:  # noqa: BLE001  whatever it was, the usual way says what
            return None
        metadata: dict[str, Any] = wire.metadata or {}
        uuid, headers = wire.uuid, wire.headers
        if "" in metadata or not is_canonical_id(uuid):
            return None
        if headers is unset or (headers == JUST_VERSION and headers["v"].__class__ is int):
            headers = {}
        else:
            headers = own_headers(headers, entry)
        return lazy(
            ((body, wire.payload), make, _payload_of),
            entry.name,
            entry.kind,
            uuid,
            made,
            metadata,
            headers,
        )

    return read


def _never(_body: bytes, _catalog: MessageCatalog) -> None:
    """Leave every body to the usual way."""


def _whole(name: str, payload: Any, *, forbid_unknown: bool) -> Any:
    """Return the Struct for a body of that name and payload: as deep as its types, no deeper."""
    return msgspec.defstruct(
        "Whole",
        [
            ("message_name", Literal[name]),
            ("uuid", str),
            ("payload", payload),
            ("metadata", dict[str, str | bool | int | float] | _NOTHING),
            ("created_at", datetime),
            ("headers", dict[str, READ_PLAIN] | msgspec.UnsetType, msgspec.UNSET),
        ],
        forbid_unknown_fields=forbid_unknown,
    )
