"""Our own facts about a message: which headers are known, and what each must be."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

from msgspec import convert

from postbus.errors import DecodeError
from postbus.wire._reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from postbus.catalog import CatalogEntry

VERSION = 1
JUST_VERSION = {"v": VERSION}
_REPLY_TO = re.compile(r"postbus\.reply\.[a-z0-9-]+").fullmatch


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_version(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_texts(value: Any) -> bool:
    return value.__class__ is list and all(map(_is_text, value))


def _is_reply_channel(value: Any) -> bool:
    return type(value) is str and _REPLY_TO(value) is not None


def _is_aware_time(value: Any) -> bool:
    if type(value) is not str:
        return False
    try:
        return convert(value, datetime).tzinfo is not None
    except ValueError:
        return False


_KNOWN: dict[str, tuple[Callable[[Any], bool], str]] = {
    "correlation_id": (_is_text, "text"),
    "causation_id": (_is_text, "text"),
    "traceparent": (_is_text, "text"),
    "deadline": (_is_aware_time, "an RFC 3339 time with an offset, as text"),
    "attempt": (_is_count, "an int, 0 or more"),
    "schema": (_is_version, "an int, 1 or more"),
    "done": (_is_texts, "a list of texts"),
    "reply_to": (_is_reply_channel, "postbus.reply. and then a-z, 0-9 and -"),
}


def fault_in(headers: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a known header, or None; unknown ones are nobody's business."""
    for name, value in headers.items():
        known = _KNOWN.get(name)
        if known is not None and not known[0](value):
            return f"headers.{name}: expected {known[1]}, got {type(value).__name__}"
    return None


def own_headers(headers: dict[str, Any], entry: CatalogEntry) -> dict[str, Any]:
    """Return the headers of a body without the version of the format, after a look at each.

    Raises:
        DecodeError: unsupported_version, invalid_headers or newer_schema.
    """
    version = headers.pop("v", VERSION)
    if version.__class__ is not int or version != VERSION:
        text = f"headers.v: expected {VERSION}, the only version there is"
        raise DecodeError(Reason.UNSUPPORTED_VERSION, text)
    fault = fault_in(headers)
    if fault is not None:
        raise DecodeError(Reason.INVALID_HEADERS, fault)
    schema = headers.get("schema", 1)
    if schema > entry.version:
        text = f"{entry.name} came as version {schema}, the class here is {entry.version}"
        raise DecodeError(Reason.NEWER_SCHEMA, text)
    return headers
