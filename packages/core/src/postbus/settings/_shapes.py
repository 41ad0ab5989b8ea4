"""Tell tables, arrays and plain values apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

__all__ = ["article_of", "is_array", "is_table"]

_WORDS = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    type(None): "null",
}


def is_table(value: Any) -> TypeGuard[Mapping[Any, Any]]:
    """Say whether a value is a table; its keys may still be anything."""
    return isinstance(value, Mapping)


def is_array(value: Any) -> TypeGuard[Sequence[Any]]:
    """Say whether a value is an array: a list, or in Python a tuple."""
    return isinstance(value, list | tuple)


def article_of(value: Any) -> str:
    """Name the kind of a value in words: "a string", "a table"."""
    if is_table(value):
        return "a table"
    if is_array(value):
        return "an array"
    for type_, words in _WORDS.items():
        if isinstance(value, type_):
            return words
    return f"an object of {type(value).__qualname__}"
