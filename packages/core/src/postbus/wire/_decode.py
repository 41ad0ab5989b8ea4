"""Bytes to envelopes."""

# ruff: noqa: SLF001  an envelope is filled in here, without a call for every message

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from postbus.errors import DecodeError
from postbus.messages import Envelope, is_canonical_id, parse_id
from postbus.messages._envelope import NOT_LOADED
from postbus.messages._ids import CANONICAL_ID, DIGITS_AS_ZEROS
from postbus.wire._direct import Direct
from postbus.wire._encode import SHORTEST_NAME, escaped
from postbus.wire._headers import JUST_VERSION, own_headers
from postbus.wire._reasons import Reason
from postbus.wire._scan import (
    DEFAULT_MAX_SIZE_BYTES,
    MAX_DIGITS,
    check_digits,
    check_nesting,
    check_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from postbus.catalog import MessageCatalog


class _Read(msgspec.Struct):
    """The object on the wire as it arrives. PHP writes an empty object as an empty array."""

    message_name: str
    uuid: str
    payload: msgspec.Raw
    metadata: dict[str, str | bool | int | float] | list[Any]
    created_at: datetime
    headers: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class _ReadStrictly(_Read, forbid_unknown_fields=True):
    """The same, refusing unknown top-level fields."""


_KEYS = _Read.__struct_fields__
_read = msgspec.json.Decoder(_Read).decode
_read_strictly = msgspec.json.Decoder(_ReadStrictly).decode
_new = object.__new__
_UNSET = msgspec.UNSET
# By whether they are ignored and by class: what makes a message of a payload left for later.
_loaders: dict[bool, dict[type, Callable[[bytes], Any]]] = {False: {}, True: {}}


def decode(
    body: bytes,
    catalog: MessageCatalog,
    *,
    unknown_fields: Literal["refuse", "ignore"] = "refuse",
    max_size_bytes: int = DEFAULT_MAX_SIZE_BYTES,
) -> Envelope:
    """Return the envelope that *body* holds; its message is made when first asked for.

    The class and the kind come from *catalog* and from nowhere else. *unknown_fields* is about
    the top level and about the payload. Any thread.

    Raises:
        DecodeError: the bytes are no message we accept, with a `Reason`; accessing `.message`
            raises it too. Nothing else is raised, whatever the bytes.
    """
    if len(body) > max_size_bytes or not body.isascii():
        check_text(body, max_size_bytes)
    compiled: dict[str, Direct] = catalog._compiled
    direct = compiled.get(unknown_fields)
    if direct is None:
        direct = compiled[unknown_fields] = Direct(ignore_unknown=unknown_fields == "ignore")
    # What is skipped may be of any depth, what is read is as deep as its type.
    if direct.ignores_unknown:
        check_nesting(body)
    elif len(body) > MAX_DIGITS:
        check_digits(body)
    decode_body, known = direct.known
    try:
        wire = decode_body(body)
        uuid, made = wire.uuid, wire.created_at
        metadata: dict[str, Any] = wire.metadata or {}
        if made.tzinfo is not None:
            made = made.astimezone(UTC)
        entry, make, payload_of = known[wire.__class__]
        source: Any = body, wire.payload
        if payload_of is bytes:
            check_nesting(body)
            source = _object(wire.payload)
    except Exception:  # noqa: BLE001  whatever it was, the usual way says what
        return _decode_in_parts(body, catalog, direct)
    # is_canonical_id(), written out: this is the way of every message of a worker.
    if "" in metadata or uuid.encode().translate(DIGITS_AS_ZEROS) != CANONICAL_ID:
        return _decode_in_parts(body, catalog, direct)
    headers = wire.headers
    if headers is _UNSET or (headers == JUST_VERSION and headers["v"].__class__ is int):
        headers = {}
    else:
        headers = own_headers(headers, entry)
    # Envelope.lazy(), written out.
    envelope = _new(Envelope)
    envelope._message = NOT_LOADED
    envelope._received = source, make, payload_of
    envelope._name, envelope._kind = entry.name, entry.kind
    envelope._id, envelope._created_at = uuid, made
    envelope._metadata, envelope._headers = metadata, headers
    envelope._received_from = None
    return envelope


def _decode_in_parts(body: bytes, catalog: MessageCatalog, direct: Direct) -> Envelope:
    """Decode a body of any class, in any spelling; its payload is left for later."""
    check_nesting(body)
    ignore = direct.ignores_unknown
    try:
        wire = _read(body) if ignore else _read_strictly(body)
        uuid = wire.uuid if is_canonical_id(wire.uuid) else parse_id(wire.uuid)
        created_at = _utc(wire.created_at)
    except (ValueError, OverflowError, RecursionError) as error:
        raise _explain(body, error, ignore=ignore) from None
    entry = catalog.find(wire.message_name)
    if entry is None:
        raise _unknown(wire.message_name)
    metadata, headers = wire.metadata, wire.headers
    if isinstance(metadata, list) or "" in metadata:
        metadata = _empty(metadata)
    headers = {} if headers is msgspec.UNSET else own_headers(headers, entry)
    payload = _object(wire.payload)
    load = _loaders[ignore].get(entry.cls) or _loader_of(entry.cls, ignore=ignore)
    direct.add(wire.message_name, entry, load)
    return Envelope.lazy(
        (payload, load, bytes),
        entry.name,
        entry.kind,
        uuid,
        created_at,
        metadata,
        headers,
    )


_BRACE = ord("{")


def _unknown(name: str) -> DecodeError:
    if len(name) < SHORTEST_NAME:
        return DecodeError(Reason.INVALID_NAME, _EXPECTED[Reason.INVALID_NAME])
    return DecodeError(Reason.UNKNOWN_NAME, f"{escaped(name)} is in no catalogue here")


def _utc(moment: datetime) -> datetime:
    """Return *moment* in UTC; one without an offset is, and the envelope says so when asked."""
    return moment if moment.tzinfo is None else moment.astimezone(UTC)


def _empty(metadata: Any) -> dict[str, Any]:
    if metadata:
        raise DecodeError(Reason.INVALID_METADATA, _EXPECTED[Reason.INVALID_METADATA])
    return {}


def _object(raw: msgspec.Raw) -> bytes:
    payload = bytes(raw)
    if payload[0] == _BRACE:
        return payload
    if payload.startswith(b"[") and not payload[1:-1].strip():
        return b"{}"
    raise DecodeError(Reason.INVALID_PAYLOAD, "payload: expected an object")


def _loader_of(cls: type, *, ignore: bool) -> Callable[[bytes], Any]:
    # cattrs comes with it, and takes longer to load than all of this package.
    from postbus.wire._read import loader

    found = loader(cls, Reason.INVALID_PAYLOAD, ignore_unknown=ignore)
    _loaders[ignore][cls] = found
    return found


_EXPECTED = {
    Reason.INVALID_NAME: f"message_name: expected text of at least {SHORTEST_NAME} characters",
    Reason.INVALID_UUID: "uuid: expected a UUID as text",
    Reason.INVALID_METADATA: "metadata: expected a flat object of text, bools, ints and floats",
    Reason.INVALID_CREATED_AT: "created_at: expected an RFC 3339 time, with or without an offset",
    Reason.INVALID_HEADERS: "headers: expected an object",
}
_CHECKS: tuple[tuple[str, Reason, Callable[[bytes], object]], ...] = (
    ("message_name", Reason.INVALID_NAME, msgspec.json.Decoder(str).decode),
    ("uuid", Reason.INVALID_UUID, lambda raw: parse_id(msgspec.json.decode(raw, type=str))),
    (
        "metadata",
        Reason.INVALID_METADATA,
        msgspec.json.Decoder(dict[str, str | bool | int | float] | list[Any]).decode,
    ),
    (
        "created_at",
        Reason.INVALID_CREATED_AT,
        lambda raw: _utc(msgspec.json.decode(raw, type=datetime)),
    ),
    ("headers", Reason.INVALID_HEADERS, msgspec.json.Decoder(dict[str, Any]).decode),
)
_fields_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def _explain(body: bytes, error: Exception, *, ignore: bool) -> DecodeError:
    """Find out what is wrong with a body that the decoder refused, slowly and exactly."""
    try:
        fields = _fields_raw(body)
    except msgspec.ValidationError:
        return DecodeError(Reason.NOT_AN_OBJECT, "expected a JSON object")
    except RecursionError:
        return DecodeError(Reason.TOO_DEEP, "nested too deeply")
    except ValueError as malformed:
        return DecodeError(Reason.MALFORMED, f"no JSON: {malformed}")
    for key in _KEYS[:-1]:
        if key not in fields:
            return DecodeError(Reason.MISSING_FIELD, f"{key} is missing")
    unknown = [key for key in fields if key not in _KEYS]
    if unknown and not ignore:
        return DecodeError(Reason.UNKNOWN_FIELD, f"{escaped(unknown[0])} is no field of a message")
    wrong = (
        reason
        for key, reason, check in _CHECKS
        if key in fields and _is_refused(check, bytes(fields[key]))
    )
    found = next(wrong, Reason.MALFORMED)
    return DecodeError(found, _EXPECTED.get(found, f"no JSON: {error}"))


def _is_refused(check: Callable[[bytes], object], raw: bytes) -> bool:
    try:
        check(raw)
    except (ValueError, OverflowError):
        return True
    return False
