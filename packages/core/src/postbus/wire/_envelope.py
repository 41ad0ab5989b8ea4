"""Envelopes to bytes and back."""

# ruff: noqa: SLF001  what an envelope's properties hand out are proxies, which cannot be written

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import msgspec

from postbus.errors import DecodeError, EncodeError
from postbus.messages import Envelope, is_canonical_id, message_info, parse_id
from postbus.wire._headers import VERSION, fault_in
from postbus.wire._mirrors import quick_writer
from postbus.wire._plain import write_plain
from postbus.wire._reasons import Reason
from postbus.wire._scan import (
    DEFAULT_MAX_SIZE_BYTES,
    MAX_DEPTH,
    MAX_DIGITS,
    check_body,
    check_nesting,
    check_size,
)
from postbus.wire._types import is_message_class
from postbus.wire._write import writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from postbus.catalog import CatalogEntry, MessageCatalog

SHORTEST_NAME = 3
_LONGEST_SHOWN = 128


class _Written(msgspec.Struct):
    """The object on the wire, in the order of its keys."""

    message_name: str
    uuid: str
    payload: Any
    metadata: dict[str, Any]
    created_at: str
    headers: dict[str, Any]


class _Read(msgspec.Struct):
    """The same as it arrives. PHP writes an empty object as an empty array."""

    message_name: str
    uuid: str
    payload: msgspec.Raw
    metadata: dict[str, str | bool | int | float] | list[Any]
    created_at: datetime
    headers: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class _ReadStrictly(_Read, forbid_unknown_fields=True):
    """The same, refusing unknown top-level fields."""


_KEYS = _Read.__struct_fields__
_write = msgspec.json.Encoder().encode
_read = msgspec.json.Decoder(_Read).decode
_read_strictly = msgspec.json.Decoder(_ReadStrictly).decode
# By class: how its payload is written and which version of it that is.
_payloads: dict[type, tuple[Callable[[Any], Any], int]] = {}
# By class: how its payload is read, where unknown fields are ignored (True) and refused (False).
_loaders: dict[bool, dict[type, Callable[[bytes], Any]]] = {False: {}, True: {}}


def encode(envelope: Envelope, *, max_size_bytes: int = DEFAULT_MAX_SIZE_BYTES) -> bytes:
    """Return *envelope* as it goes on the wire: JSON in UTF-8 that `decode` takes back.

    An envelope that `decode` made is written with the payload it came with, be its message read
    or not; headers that are unknown here go on as they came. Any thread; blocks for no one.

    Raises:
        EncodeError: what would be written could not be read: a class, a value, a name or a size
            that the format does not have.
    """
    try:
        written = _written(envelope)
        try:
            body = _write(written)
        except TypeError:
            # A subclass of a plain type, which the long way reduces to it.
            written.payload = writer(envelope._message.__class__)(envelope._message)
            body = _write(written)
        check_size(body, max_size_bytes)
        if (
            len(body) > MAX_DIGITS
            or written.payload.__class__ in _UNBOUNDED
            or len(written.headers) > 1
        ):
            check_nesting(body)
    except EncodeError:
        raise
    except DecodeError as error:
        raise EncodeError(f"{_shown(envelope)}: {error.message}") from error
    except Exception as error:
        # Properties, validators and annotations of the user's classes may raise anything.
        raise EncodeError(f"{_shown(envelope)}: {error}") from error
    return body


# What the short way makes of a payload is as deep as its type, and these may be of any depth. A
# number that is too long takes a body that is longer.
_UNBOUNDED = (dict, msgspec.Raw)


def _shown(envelope: Any) -> str:
    return escaped(envelope.name) if isinstance(envelope, Envelope) else type(envelope).__name__


def escaped(name: object) -> str:
    """Return a name from outside, safe to log: printable ASCII, at most 128 characters."""
    text = str(name)[:_LONGEST_SHOWN]
    return text.encode("unicode_escape").decode("ascii")[:_LONGEST_SHOWN]


def _written(envelope: Envelope) -> _Written:
    name = envelope._name
    if len(name) < SHORTEST_NAME or name.startswith("__main__"):
        _refuse_name(name)
    given, received = envelope._headers, envelope._received
    headers = {"v": VERSION, **_checked_headers(name, given)} if given else {"v": VERSION}
    if received is None:
        message = envelope._message
        cls = message.__class__
        write, version = _payloads.get(cls) or _payload_of(cls)
        payload = write(message)
        if version != 1:
            headers["schema"] = version
    else:
        payload = msgspec.Raw(received[0])
    made = envelope._created_at
    if not isinstance(made, int):
        made = (envelope.created_at - _EPOCH) // _MICROSECOND
    return _Written(name, envelope._id, payload, envelope._metadata, _time_text(made), headers)


# The last second that was written and its text: most messages of a busy process share it.
_last_second: tuple[int, str] = (-1, "")


def _time_text(microseconds: int) -> str:
    """Return a time since the epoch as the wire has it: UTC without an offset, six digits."""
    global _last_second  # noqa: PLW0603  a cache of one; a lost race costs one computation
    second, rest = divmod(microseconds, 1_000_000)
    known, text = _last_second
    if second != known:
        text = (_NAIVE_EPOCH + timedelta(seconds=second)).isoformat()
        _last_second = second, text
    return f"{text}.{rest:06d}"


def _refuse_name(name: object) -> NoReturn:
    if type(name) is str and name.startswith("__main__"):
        msg = (
            f"{escaped(name)} is the name of a class in the script that is running, which has "
            "another name everywhere else: say name= in its class statement"
        )
    else:
        msg = f"a name has at least {SHORTEST_NAME} characters, got {escaped(name)!r}"
    raise EncodeError(msg)


def _checked_headers(name: str, given: dict[str, Any]) -> dict[str, Any]:
    headers = {header: value for header, value in given.items() if header != "v"}
    fault = fault_in(headers)
    if fault is not None:
        raise EncodeError(f"{escaped(name)}: {fault}")
    write_plain(headers)
    return headers


def _payload_of(cls: type) -> tuple[Callable[[Any], Any], int]:
    if not is_message_class(cls):
        msg = (
            f"{cls.__module__}.{cls.__qualname__} cannot be sent: make it an attrs class, a "
            "dataclass, a msgspec Struct or a pydantic model"
        )
        raise EncodeError(msg)
    found = _payloads[cls] = quick_writer(cls, writer(cls)), message_info(cls).version
    return found


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
    # Small, plain and shallow, as most bodies are: what else there is to check costs more.
    if (
        len(body) > _SMALL
        or len(body) > max_size_bytes
        or not body.isascii()
        or body.count(b"{") + body.count(b"[") > MAX_DEPTH
    ):
        check_body(body, max_size_bytes)
    ignore = unknown_fields == "ignore"
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
    if headers is msgspec.UNSET:
        headers = {}
    else:
        version = headers.pop("v", VERSION)
        if version.__class__ is not int or version != VERSION:
            text = f"headers.v: expected {VERSION}, the only version there is"
            raise DecodeError(Reason.UNSUPPORTED_VERSION, text)
        if headers:
            _check_headers(headers, entry)
    payload = bytes(wire.payload)
    if payload[0] != _BRACE:
        payload = _empty_payload(payload)
    return Envelope.lazy(
        payload,
        _loaders[ignore].get(entry.cls) or _loader_of(entry.cls, ignore=ignore),
        entry.name,
        entry.kind,
        uuid,
        created_at,
        metadata,
        headers,
    )


_SMALL = MAX_DIGITS
_BRACE = ord("{")


def _unknown(name: str) -> DecodeError:
    if len(name) < SHORTEST_NAME:
        return DecodeError(Reason.INVALID_NAME, _EXPECTED[Reason.INVALID_NAME])
    return DecodeError(Reason.UNKNOWN_NAME, f"{escaped(name)} is in no catalogue here")


def _utc(moment: datetime) -> datetime:
    """Return *moment* in UTC; one without an offset is, and the envelope says so when asked."""
    return moment if moment.tzinfo is None else moment.astimezone(UTC)


_NAIVE_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  it is subtracted from naive times
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def _empty(metadata: Any) -> dict[str, Any]:
    if metadata:
        raise DecodeError(Reason.INVALID_METADATA, _EXPECTED[Reason.INVALID_METADATA])
    return {}


def _check_headers(headers: dict[str, Any], entry: CatalogEntry) -> None:
    fault = fault_in(headers)
    if fault is not None:
        raise DecodeError(Reason.INVALID_HEADERS, fault)
    schema = headers.get("schema", 1)
    if schema > entry.version:
        text = f"{entry.name} came as version {schema}, the class here is {entry.version}"
        raise DecodeError(Reason.NEWER_SCHEMA, text)


def _empty_payload(raw: bytes) -> bytes:
    if raw.startswith(b"[") and not raw[1:-1].strip():
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
