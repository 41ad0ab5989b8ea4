"""Single values: how each is checked and written, and how it is read back from JSON.

A writer returns what msgspec is given to write, a reader what the message gets. Neither converts
one kind of thing into another: "5" is no int and True is no 1.
"""

from __future__ import annotations

import datetime as dt
import re
from base64 import b64decode, b64encode
from decimal import Decimal, InvalidOperation
from math import isfinite
from typing import TYPE_CHECKING, Any
from uuid import UUID

from msgspec import convert

from postbus.wire._types import MismatchError, json_name

if TYPE_CHECKING:
    from collections.abc import Callable

_DECIMAL = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?").fullmatch
_INT_KEY = re.compile(r"0|-?[1-9][0-9]*").fullmatch
_MINUTE = dt.timedelta(minutes=1)


def mismatch(expected: str, value: object) -> MismatchError:
    """Return the error for a value of another type; it names types only."""
    return MismatchError(f"expected {expected}, got {json_name(value)}")


def _exact(cls: type) -> Callable[[Any, Any], Any]:
    expected = "null" if cls is type(None) else cls.__name__

    def read(value: Any, _: Any = None) -> Any:
        if type(value) is not cls:
            raise mismatch(expected, value)
        return value

    return read


def _read_float(value: Any, _: Any = None) -> float:
    if type(value) is float:
        return value
    if type(value) is int:
        number = float(value)
        if number == value:
            return number
        msg = "expected a number that a float can hold"
        raise MismatchError(msg)
    raise mismatch("float", value)


def _from_text(
    expected: str, cls: Any, parse: Callable[[str, Any], Any] = convert
) -> Callable[[Any, Any], Any]:
    def read(value: Any, _: Any = None) -> Any:
        if type(value) is not str:
            raise mismatch(f"{expected} as text", value)
        try:
            return parse(value, cls)
        except ValueError:
            msg = f"expected {expected} as text, got other text"
            raise MismatchError(msg) from None

    return read


def _parse_bytes(text: str, _: type[bytes]) -> bytes:
    value = b64decode(text.encode("ascii"), validate=True)
    if b64encode(value).decode() != text:
        raise ValueError
    return value


def _parse_decimal(text: str, _: type[Decimal]) -> Decimal:
    if not _DECIMAL(text):
        raise ValueError
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent that no Decimal has
        raise ValueError from None


def _parse_datetime(text: str, cls: type[dt.datetime]) -> dt.datetime:
    value = convert(text, cls)
    if value.tzinfo is None:
        raise ValueError
    return value


READERS: dict[type, Callable[[Any, Any], Any]] = {
    type(None): _exact(type(None)),
    bool: _exact(bool),
    int: _exact(int),
    float: _read_float,
    str: _exact(str),
    bytes: _from_text("base64", bytes, _parse_bytes),
    Decimal: _from_text("a finite decimal number", Decimal, _parse_decimal),
    UUID: _from_text("a UUID", UUID),
    dt.datetime: _from_text("an RFC 3339 time with an offset", dt.datetime, _parse_datetime),
    dt.date: _from_text("a date as YYYY-MM-DD", dt.date),
    dt.time: _from_text("a time of day as hh:mm:ss", dt.time),
    dt.timedelta: _from_text("an ISO 8601 duration of days and less", dt.timedelta),
}


def parse_int_key(text: str) -> int:
    """Read the key of a `dict[int, …]`.

    Raises:
        ValueError: it is not how an int is written.
    """
    if not _INT_KEY(text):
        raise ValueError
    return int(text)


def _plain(cls: Any) -> Callable[[Any], Any]:
    """Write a value as it is; one of a subclass as its base class would be."""
    reduce = {int: int.__int__, str: str.__str__, bytes: bytes}.get(cls)

    def write(value: Any) -> Any:
        if type(value) is cls:
            return value
        if reduce is not None and isinstance(value, cls) and not isinstance(value, bool):
            return reduce(value)
        raise mismatch(cls.__name__, value)

    return write


def _write_none(value: Any) -> None:
    if value is not None:
        raise mismatch("None", value)


def _write_float(value: Any) -> Any:
    if type(value) is float and isfinite(value):
        return value
    if isinstance(value, float):
        if isfinite(value):
            return float.__float__(value)
        msg = "expected a finite float: JSON has no NaN and no Infinity"
        raise MismatchError(msg)
    if isinstance(value, int) and not isinstance(value, bool):
        _read_float(int.__int__(value))
        return int.__int__(value)
    raise mismatch("float", value)


def _write_decimal(value: Any) -> str:
    if isinstance(value, Decimal) and value.is_finite():
        return Decimal.__str__(value)
    raise mismatch("a finite Decimal", value)


def _write_uuid(value: Any) -> Any:
    if isinstance(value, UUID):
        return UUID.__str__(value)
    raise mismatch("UUID", value)


def _in_minutes(value: dt.datetime | dt.time) -> bool:
    offset = value.utcoffset()
    return offset is None or not offset % _MINUTE


def _write_datetime(value: Any) -> Any:
    if type(value) is dt.datetime and value.tzinfo is dt.UTC:
        return value
    if not isinstance(value, dt.datetime):
        raise mismatch("datetime", value)
    if value.utcoffset() is None:
        msg = "expected a datetime with an offset, got a naive one: give it a tzinfo"
        raise MismatchError(msg)
    if not _in_minutes(value):
        msg = "expected an offset of whole minutes: RFC 3339 has no seconds there"
        raise MismatchError(msg)
    return value if type(value) is dt.datetime else dt.datetime.isoformat(value)


def _write_date(value: Any) -> Any:
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        return dt.date.isoformat(value)
    raise mismatch("date", value)


def _write_time(value: Any) -> Any:
    if isinstance(value, dt.time) and _in_minutes(value):
        return dt.time.isoformat(value)
    raise mismatch("a time of day with an offset of whole minutes or none", value)


WRITERS: dict[type, Callable[[Any], Any]] = {
    type(None): _write_none,
    bool: _plain(bool),
    int: _plain(int),
    float: _write_float,
    str: _plain(str),
    bytes: _plain(bytes),
    Decimal: _write_decimal,
    UUID: _write_uuid,
    dt.datetime: _write_datetime,
    dt.date: _write_date,
    dt.time: _write_time,
    dt.timedelta: _plain(dt.timedelta),
}
# Where nothing but the exact type is to be checked, a class's writer need not call one.
WRITTEN_AS_THEY_ARE = frozenset({bool, int, str, bytes, UUID, dt.timedelta})
