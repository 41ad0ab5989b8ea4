"""Envelopes to bytes."""

# ruff: noqa: SLF001  what an envelope's properties hand out are proxies, which cannot be written

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from postbus.errors import DecodeError, EncodeError
from postbus.messages import Envelope, message_info
from postbus.wire._headers import JUST_VERSION, VERSION, fault_in
from postbus.wire._plain import write_plain
from postbus.wire._quick import quick_writer
from postbus.wire._scan import (
    DEFAULT_MAX_SIZE_BYTES,
    MAX_DIGITS,
    check_digits,
    check_nesting,
    check_size,
)
from postbus.wire._types import is_message_class
from postbus.wire._write import writer

if TYPE_CHECKING:
    from collections.abc import Callable

    Write = Callable[[Any], Any]
    Parts = tuple[str, Write, msgspec.Raw, msgspec.Raw]
    """A name, the short way to write a payload, and as JSON that name and the headers."""

SHORTEST_NAME = 3
_MAIN = "__main__"
_LONGEST_SHOWN = 128
_NAIVE_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  it is subtracted from naive times
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MILLISECOND = 1000


class _Written(msgspec.Struct, gc=False):
    """The object on the wire, in the order of its keys. What never changes is kept as JSON."""

    message_name: str | msgspec.Raw
    uuid: str
    payload: Any
    metadata: dict[str, Any]
    created_at: str
    headers: dict[str, Any] | msgspec.Raw


_write = msgspec.json.Encoder().encode
_NONE: dict[str, Any] = {}
# By class: the short and the long way to write its payload, and the headers that go with it.
_payloads: dict[type, tuple[Write, Write, dict[str, Any]]] = {}
# By class: what the short way to write its messages needs, under the name its last one had.
_parts: dict[type, Parts] = {}


def encode(envelope: Envelope, *, max_size_bytes: int = DEFAULT_MAX_SIZE_BYTES) -> bytes:
    """Return *envelope* as it goes on the wire: JSON in UTF-8 that `decode` takes back.

    An envelope that `decode` made is written with the payload it came with, be its message read
    or not; headers that are unknown here go on as they came. Any thread; blocks for no one.

    Raises:
        EncodeError: what would be written could not be read: a class, a value, a name or a size
            that the format does not have.
    """
    try:
        message, made = envelope._message, envelope._created_at
        name, quick, written_name, headers = _parts[message.__class__]
        if name == envelope._name and envelope._received is None and not envelope._headers:
            if not isinstance(made, int):
                made = _microseconds(envelope)
            # As new_encoder() has it, written out: this is the way of most envelopes.
            body = _write(
                _Written(
                    written_name,
                    envelope._id,
                    quick(message),
                    envelope._metadata,
                    _time_text(made),
                    headers,
                )
            )
            size = len(body)
            if size > max_size_bytes:
                check_size(body, max_size_bytes)
            if size > MAX_DIGITS:
                check_digits(body)
            return body
    except Exception:  # noqa: BLE001, S110  whatever it was, the long way says what
        pass
    return _encode_in_full(envelope, max_size_bytes)


def _encode_in_full(envelope: Envelope, max_size_bytes: int) -> bytes:
    try:
        name, message, headers = envelope._name, envelope._message, envelope._headers
        made = _microseconds(envelope)
        received = envelope.payload
        body = _write_body(
            name,
            envelope._id,
            message,
            received,
            envelope._metadata,
            made,
            headers,
            max_size_bytes,
        )
        if received is None:
            _parts[message.__class__] = _parts_of(name, message.__class__)
    except EncodeError:
        raise
    except Exception as error:
        raise _refusal(_shown(envelope), error) from error
    return body


def _microseconds(envelope: Envelope) -> int:
    made = envelope._created_at
    return made if isinstance(made, int) else (envelope.created_at - _EPOCH) // _MICROSECOND


def new_encoder(name: str, cls: type) -> Callable[[Any, str, int], bytes]:
    """Return what does `encode` for messages of *cls* that are called *name* and have no headers.

    Nobody has to make an envelope for them. It takes the message, an id of `new_id` and the time
    since the epoch in microseconds, and raises `EncodeError` as `encode` does. Any thread.
    """

    def encode_in_full(message: Any, id: str, microseconds: int) -> bytes:
        return _write_body(
            name, id, message, None, _NONE, microseconds, _NONE, DEFAULT_MAX_SIZE_BYTES
        )

    try:
        _, quick, written_name, headers = _parts_of(name, cls)
    except Exception:  # noqa: BLE001  it is said for each message
        return encode_in_full

    def encode_quickly(message: Any, id: str, microseconds: int) -> bytes:
        try:
            made = _time_text(microseconds)
            body = _write(_Written(written_name, id, quick(message), _NONE, made, headers))
            if len(body) > MAX_DIGITS:
                check_size(body, DEFAULT_MAX_SIZE_BYTES)
                check_digits(body)
        except Exception:  # noqa: BLE001  whatever it was, the long way says what
            return encode_in_full(message, id, microseconds)
        return body

    return encode_quickly


def _refusal(shown: str, error: Exception) -> EncodeError:
    # Properties, validators and annotations of the user's classes may raise anything.
    text = error.message if isinstance(error, DecodeError) else error
    return EncodeError(f"{shown}: {text}")


def _shown(envelope: Any) -> str:
    return escaped(envelope.name) if isinstance(envelope, Envelope) else type(envelope).__name__


def escaped(name: object) -> str:
    """Return a name from outside, safe to log: printable ASCII, at most 128 characters."""
    text = str(name)[:_LONGEST_SHOWN]
    return text.encode("unicode_escape").decode("ascii")[:_LONGEST_SHOWN]


def _write_body(
    name: str,
    id: str,
    message: Any,
    received: bytes | None,
    metadata: dict[str, Any],
    microseconds: int,
    given: dict[str, Any],
    max_size_bytes: int,
) -> bytes:
    try:
        _check_name(name)
        if received is None:
            cls = message.__class__
            quick, write, headers = _payloads.get(cls) or _payload_of(cls)
            try:
                payload = quick(message)
            except Exception:  # noqa: BLE001  whatever it was, the long way says what
                payload = write(message)
        else:
            payload, headers = msgspec.Raw(received), JUST_VERSION
        if given:
            headers = {"v": VERSION, **_checked_headers(name, given), **headers}
        body = _write(_Written(name, id, payload, metadata, _time_text(microseconds), headers))
        check_size(body, max_size_bytes)
        check_nesting(body)
    except EncodeError:
        raise
    except Exception as error:
        raise _refusal(escaped(name), error) from error
    return body


# The last millisecond that was written, since the epoch in microseconds, and its text: most
# messages of a busy process share it.
_last_millisecond: tuple[int, str] = (0, "1970-01-01T00:00:00.000")
# Twice as fast as a format.
_THREE_DIGITS = [f"{number:03}" for number in range(1000)]


def _time_text(microseconds: int) -> str:
    """Return a time since the epoch as the wire has it: UTC without an offset, six digits."""
    global _last_millisecond  # noqa: PLW0603  a cache of one; a lost race costs one computation
    start, text = _last_millisecond
    rest = microseconds - start
    if not 0 <= rest < _MILLISECOND:
        milliseconds, rest = divmod(microseconds, _MILLISECOND)
        seconds, number = divmod(milliseconds, 1000)
        moment = _NAIVE_EPOCH + timedelta(seconds=seconds)
        text = f"{moment.isoformat()}.{_THREE_DIGITS[number]}"
        _last_millisecond = microseconds - rest, text
    return text + _THREE_DIGITS[rest]


def _check_name(name: Any) -> None:
    if name[: len(_MAIN)] == _MAIN:
        msg = (
            f"{escaped(name)} is the name of a class in the script that is running, which has "
            "another name everywhere else: say name= in its class statement"
        )
    elif len(name) < SHORTEST_NAME:
        msg = f"a name has at least {SHORTEST_NAME} characters, got {escaped(name)!r}"
    else:
        return
    raise EncodeError(msg)


def _checked_headers(name: str, given: dict[str, Any]) -> dict[str, Any]:
    headers = {header: value for header, value in given.items() if header != "v"}
    fault = fault_in(headers)
    if fault is not None:
        raise EncodeError(f"{escaped(name)}: {fault}")
    write_plain(headers)
    return headers


def _parts_of(name: str, cls: type) -> Parts:
    _check_name(name)
    quick, _, headers = _payloads.get(cls) or _payload_of(cls)
    return name, quick, msgspec.Raw(_write(name)), msgspec.Raw(_write(headers))


def _payload_of(cls: type) -> tuple[Write, Write, dict[str, Any]]:
    if not is_message_class(cls):
        msg = (
            f"{cls.__module__}.{cls.__qualname__} cannot be sent: make it an attrs class, a "
            "dataclass, a msgspec Struct or a pydantic model"
        )
        raise EncodeError(msg)
    version = message_info(cls).version
    headers = JUST_VERSION if version == 1 else {"v": VERSION, "schema": version}
    found = _payloads[cls] = quick_writer(cls), writer(cls), headers
    return found
