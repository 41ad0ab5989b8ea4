"""The rules of metadata: what a user may add to a message so that it crosses the wire."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from postbus.errors import MetadataError

# What every reader of JSON in use keeps exact as an integer.
_SMALLEST_INT, _LARGEST_INT = -(2**63), 2**64 - 1


def check_metadata(metadata: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a copy of *metadata*, after making sure that it can cross the wire.

    Raises:
        MetadataError: a key is no text or empty, or a value is not str, int, bool or a finite
            float.
    """
    checked: dict[str, Any] = {}
    for key, value in metadata.items():
        if not isinstance(key, str) or not key:
            raise MetadataError(f"metadata keys are non-empty text, got {key!r}")
        checked[_text(key, key)] = _scalar(key, value)
    return checked


def _scalar(key: str, value: Any) -> Any:
    """Return *value* as exactly one of the types JSON has, subclasses reduced to them.

    Raises:
        MetadataError: it is something else.
    """
    if isinstance(value, str):
        return _text(key, value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and _SMALLEST_INT <= value <= _LARGEST_INT:
        return int.__int__(value)
    if isinstance(value, float) and isfinite(value):
        return float.__float__(value)
    shown = repr(value) if isinstance(value, int | float) else type(value).__name__
    msg = (
        f"metadata[{key!r}] must be text, a bool, an int of 64 bits or a finite float, "
        f"got {shown[:64]}"
    )
    raise MetadataError(msg)


def _text(key: str, text: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            msg = f"metadata[{key!a}] holds half a surrogate pair, which UTF-8 cannot write"
            raise MetadataError(msg) from None
    return str.__str__(text)
