"""Messages to what msgspec writes: one writer per class, worked out on first use and kept.

msgspec alone would write more than can be read back: NaN as null, naive times, fields of another
type than their annotation, `init=False` fields. So every value is checked on its way.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, get_origin

import msgspec

from postbus.wire import _leaves
from postbus.wire._compiled import Compiled
from postbus.wire._plain import write_plain
from postbus.wire._types import (
    Kind,
    MismatchError,
    UnsupportedTypeError,
    classify,
    fields_of,
    is_message_class,
    is_pydantic,
    name_of,
    tag_of,
)
from postbus.wire._unions import by_shape, chooser, members

if TYPE_CHECKING:
    from collections.abc import Callable

    Writer = Callable[[Any], Any]


def writer(tp: Any) -> Writer:
    """Return the function that checks a value of type *tp* and makes it ready to write.

    It raises `MismatchError` for what is not a *tp*.

    Raises:
        UnsupportedTypeError: *tp* cannot cross the wire.
    """
    kind, part = classify(tp)
    return _class_writers.get(part) if kind is Kind.CLASS else _MAKERS[kind](part)


def _class_writer(tp: Any) -> Writer:
    cls = get_origin(tp) or tp
    fields: list[tuple[str, str, type | None, Writer]] = []
    for field in fields_of(tp):
        kind, part = classify(field.type)
        simple = part if kind is Kind.LEAF and part in _leaves.WRITTEN_AS_THEY_ARE else None
        fields.append((field.key, field.name, simple, writer(field.type)))
    steps = tuple(fields)
    tag = tag_of(cls)
    has_extra = is_pydantic(cls)

    def write(value: Any) -> Any:
        if type(value) is not cls:
            raise _leaves.mismatch(name_of(cls), value)
        written: dict[str, Any] = {} if tag is None else {tag[0]: tag[1]}
        for key, name, simple, check in steps:
            item = getattr(value, name)
            if type(item) is simple:
                written[key] = item
                continue
            try:
                written[key] = check(item)
            except MismatchError as error:
                raise error.inside(name) from None
        if has_extra and value.model_extra:
            msg = "has fields that its class does not declare"
            raise MismatchError(msg)
        return written

    return write


_class_writers = Compiled(_class_writer)


def _leaf(cls: type) -> Writer:
    return _leaves.WRITERS[cls]


def _any(_: None) -> Writer:
    return write_plain


def _table(table: dict[tuple[type, Any], Any]) -> Writer:
    values: dict[tuple[type, Any], Any] = {
        (type(member), member): written for (_, written), member in table.items()
    }

    def write(value: Any) -> Any:
        try:
            return values[type(value), value]
        except (KeyError, TypeError):
            raise _leaves.mismatch("one of the values listed", value) from None

    return write


def _union(args: tuple[Any, ...]) -> Writer:
    for alike in by_shape(args).values():
        if len(alike) > 1:
            chooser(alike)
    flat = [arg for arg in members(args) if arg not in {None, type(None)}]
    writers = tuple(writer(arg) for arg in flat)
    if len(flat) < len(args) and len(writers) == 1:
        only = writers[0]
        return lambda value: None if value is None else only(value)
    exact = {get_origin(arg) or arg: write for arg, write in zip(flat, writers, strict=True)}
    nullable = len(flat) < len(members(args))

    def write(value: Any) -> Any:
        if value is None and nullable:
            return None
        known = exact.get(type(value))
        if known is not None:
            return known(value)
        for attempt in writers:
            try:
                return attempt(value)
            except MismatchError:
                continue
        raise _leaves.mismatch(" or ".join(name_of(arg) for arg in flat), value)

    return write


def _array(part: tuple[type[Any], Any]) -> Writer:
    cls, item_type = part
    item = writer(item_type)

    def write(value: Any) -> list[Any]:
        if value.__class__ is not cls:
            raise _leaves.mismatch(cls.__name__, value)
        return [item(each) for each in value]

    return write


def _tuple(types: tuple[Any, ...]) -> Writer:
    items = tuple(writer(tp) for tp in types)

    def write(value: Any) -> list[Any]:
        kind = value.__class__
        if kind is not tuple or len(value) != len(items):
            raise _leaves.mismatch(f"a tuple of {len(items)}", value)
        return [item(each) for item, each in zip(items, value, strict=True)]

    return write


def _map(part: tuple[Any, Any]) -> Writer:
    key, item = key_writer(part[0]), writer(part[1])

    def write(value: Any) -> dict[str, Any]:
        kind = value.__class__
        if kind is not dict:
            raise _leaves.mismatch("dict", value)
        return {key(name): item(each) for name, each in value.items()}

    if part == (str, Any):
        # All of it is plain JSON, and looking at it as a whole is much faster.
        return lambda value: write_plain(value) if type(value) is dict else write(value)
    return write


def key_writer(tp: Any) -> Writer:
    """Return the writer of a dict's keys: text, ints, UUIDs, Enums and Literals of text or ints.

    Raises:
        UnsupportedTypeError: *tp* is something else.
    """
    kind, part = classify(tp)
    writable = kind is Kind.LEAF and part.__name__ in {"str", "int", "UUID"}
    if kind is Kind.TABLE:
        writable = {written for written, _ in part} in ({str}, {int})
    if not writable:
        msg = (
            f"{name_of(tp)} cannot be the key of a dict on the wire: use str, int, UUID or an Enum"
        )
        raise UnsupportedTypeError(msg)
    write = writer(tp)
    return lambda value: str(write(value))


def _constrained(part: tuple[Any, Any]) -> Writer:
    inner, whole = part
    write = writer(inner)

    def check(value: Any) -> Any:
        written = write(value)
        try:
            msgspec.convert(value, whole)
        except msgspec.ValidationError as error:
            raise MismatchError(str(error)) from None
        return written

    return check


_MAKERS: dict[Kind, Callable[[Any], Writer]] = {
    Kind.LEAF: _leaf,
    Kind.ANY: _any,
    Kind.TABLE: _table,
    Kind.UNION: _union,
    Kind.ARRAY: _array,
    Kind.TUPLE: _tuple,
    Kind.MAP: _map,
    Kind.CONSTRAINED: _constrained,
}


def write_value(value: Any) -> Any:
    """Make a value without an annotation ready to write, by what it is: the answer to a query.

    Raises:
        MismatchError: it, or something in it, cannot be written.
        UnsupportedTypeError: the same for a class.
    """
    cls = value.__class__
    if cls in _leaves.WRITERS:
        return _leaves.WRITERS[cls](value)
    if isinstance(value, Enum):
        return writer(cls)(value)
    if cls in {list, tuple, set, frozenset}:
        return [write_value(item) for item in value]
    if cls is dict:
        return {_write_key(key): write_value(item) for key, item in value.items()}
    if is_message_class(cls):
        return writer(cls)(value)
    return write_plain(value)


def _write_key(key: Any) -> str:
    return str(key_writer(type(key))(key))
