"""A short way to write classes of simple fields: all values of an object are checked at once.

Most messages are flat: text, numbers, ids, a few nested classes and lists of the same. For those
one look at the types of all values says as much as the writers, which look at each. What is not
exactly as declared goes the long way round, which says what is wrong, or knows better. As what
is made here is only as deep as its type, nobody has to measure it afterwards.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from math import isfinite
from operator import attrgetter
from typing import TYPE_CHECKING, Any, get_origin

import msgspec

from postbus.wire._leaves import WRITTEN_AS_THEY_ARE
from postbus.wire._plain import PlainValue
from postbus.wire._types import Field, Kind, classify, fields_of, is_pydantic, tag_of

if TYPE_CHECKING:
    from collections.abc import Callable

    Check = Callable[[Any], Any]
    Part = tuple[frozenset[type], Check | None]
    """What a value's class may be, and what makes it ready to write where that says not all."""

MAX_NESTING = 8
_convert = msgspec.convert
_AS_THEY_ARE = WRITTEN_AS_THEY_ARE | {type(None)}
# Fields that may be None come in many combinations: not all of them are kept.
_MAX_SHAPES = 64


class NotSimpleError(Exception):
    """The class is not simple enough, or a value is not exactly what was declared."""


def quick_writer(tp: Any) -> Check:
    """Return what makes an object of exactly the class *tp* ready to write.

    It raises anything for what the long way has to look at: all of them where *tp* is not simple.
    """
    try:
        return _writer(tp, 0)
    except Exception:  # noqa: BLE001  whatever is odd about the class, the long way says it
        return _refuse


def _refuse(_: Any) -> Any:
    raise NotSimpleError


def _writer(tp: Any, level: int) -> Check:
    cls = get_origin(tp) or tp
    if level > MAX_NESTING or tag_of(cls) is not None or is_pydantic(cls):
        raise NotSimpleError
    fields = fields_of(tp)
    parts = [_part(field.type, level) for field in fields]
    struct: Any = msgspec.defstruct(
        cls.__name__,
        [(field.name, Any) for field in fields],
        rename={field.name: field.key for field in fields},
        gc=False,  # None of them outlives its encoding.
    )
    if len(fields) == 1:
        return _writer_of_one(fields[0].name, *parts[0], struct)
    return _writer_of_many(fields, parts, struct)


def _part(tp: Any, level: int) -> Part:
    kind, part = classify(tp)
    if kind is Kind.LEAF:
        if part in _AS_THEY_ARE:
            return frozenset({part}), None
        if part in _CHECKS:
            return frozenset({part}), _CHECKS[part]
    elif kind is Kind.UNION:
        parts = [_part(each, level) for each in part]
        if all(check is None for _, check in parts):
            return frozenset[type]().union(*(classes for classes, _ in parts)), None
    elif kind is Kind.MAP and part == (str, Any):
        return frozenset({dict}), _plain
    elif kind is Kind.CLASS:
        return frozenset({get_origin(part) or part}), _writer(part, level + 1)
    elif kind is Kind.ARRAY and part[0] in {list, tuple} and level < MAX_NESTING:
        classes, check = _part(part[1], level + 1)
        return frozenset({part[0]}), partial(_each, classes, check)
    raise NotSimpleError


def _writer_of_one(name: str, classes: frozenset[type], check: Check | None, struct: Any) -> Check:
    get = attrgetter(name)

    def write_plain(value: Any) -> Any:
        item = get(value)
        if type(item) is not dict:
            raise NotSimpleError
        _convert((item,), PlainValue)
        return struct(item)

    def write(value: Any) -> Any:
        item = get(value)
        if type(item) not in classes:
            raise NotSimpleError
        return struct(item if check is None else check(item))

    return write_plain if check is _plain else write


def _writer_of_many(fields: tuple[Field, ...], parts: list[Part], struct: Any) -> Check:
    get: Check = attrgetter(*(field.name for field in fields)) if fields else lambda _: ()
    checks = [(i, check) for i, (_, check) in enumerate(parts) if check is not None]
    known: set[tuple[type, ...]] = set()

    def look_at(shape: tuple[type, ...]) -> None:
        for found, (classes, _) in zip(shape, parts, strict=True):
            if found not in classes:
                raise NotSimpleError
        if len(known) < _MAX_SHAPES:
            known.add(shape)

    def write(value: Any) -> Any:
        values = get(value)
        shape = tuple(map(type, values))
        if shape not in known:
            look_at(shape)
        if checks:
            values = list(values)
            for index, check in checks:
                values[index] = check(values[index])
        return struct(*values)

    return write


def _each(classes: frozenset[type], check: Check | None, items: Any) -> Any:
    if not classes.issuperset(map(type, items)):
        raise NotSimpleError
    return items if check is None else [check(item) for item in items]


def _plain(value: Any) -> Any:
    _convert((value,), PlainValue)
    return value


def _finite(value: float) -> float:
    if not isfinite(value):
        raise NotSimpleError
    return value


def _in_utc(value: datetime) -> datetime:
    # An offset may have seconds, which RFC 3339 has not.
    if value.tzinfo is not UTC:
        raise NotSimpleError
    return value


_CHECKS: dict[type, Check] = {float: _finite, datetime: _in_utc}
