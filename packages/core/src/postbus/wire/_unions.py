"""Which member of a union a value from JSON belongs to, decided from types alone, never by trying.

Two members that JSON writes alike, such as `UUID | str`, cannot be told apart and are refused.
Classes are told apart by a field that is a Literal, or a Struct's tag, with other values in each;
else by a required field that only one of them has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_origin

from postbus.wire._types import (
    Kind,
    MismatchError,
    UnsupportedTypeError,
    classify,
    fields_of,
    name_of,
    tag_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Set as AbstractSet

_NUMBERS = frozenset({int, float})


def members(args: Iterable[Any]) -> list[Any]:
    """Return the members of a union, those of unions inside it included."""
    flat: list[Any] = []
    for arg in args:
        kind, part = classify(arg)
        flat += members(part) if kind is Kind.UNION else [arg]
    return flat


def by_shape(args: Iterable[Any]) -> dict[type, list[Any]]:
    """Map what JSON can hold (str, int, float, bool, None, list, dict) to the members it means.

    There is more than one only where all are classes.

    Raises:
        UnsupportedTypeError: members cannot be told apart.
    """
    found: dict[type, list[Any]] = {}
    flat = members(args)
    for member in flat:
        for shape in _shapes(member):
            found.setdefault(shape, []).append(member)
    if int in found.get(int, ()):
        # A whole number is an int where there is an int; otherwise float takes it.
        found[int] = [member for member in found[int] if member is not float]
    for alike in found.values():
        if len(alike) > 1 and any(classify(member)[0] is not Kind.CLASS for member in alike):
            names = " and ".join(name_of(member) for member in alike)
            msg = f"{names} look alike in JSON: a union cannot hold both"
            raise UnsupportedTypeError(msg)
    return found


def _shapes(tp: Any) -> AbstractSet[type]:
    kind, part = classify(tp)
    if kind is Kind.LEAF:
        if part is float:
            return _NUMBERS
        return {part if part in {int, bool, type(None)} else str}
    if kind is Kind.TABLE:
        return {written for written, _ in part}
    if kind is Kind.CONSTRAINED:
        return {shape for member in members(part[:1]) for shape in _shapes(member)}
    return {list} if kind in {Kind.ARRAY, Kind.TUPLE} else {dict}


def chooser(classes: list[Any]) -> Callable[[dict[str, Any]], Any]:
    """Return a function that tells which of *classes* an object means.

    Raises:
        UnsupportedTypeError: they cannot be told apart.
    """
    return _by_tag(classes) or _by_required(classes)


def _tags(tp: Any) -> dict[str, set[tuple[type, Any]]]:
    tags = {field.key: set(part) for field in fields_of(tp) for part in _literal(field.type)}
    tag = tag_of(get_origin(tp) or tp)
    return tags if tag is None else {**tags, tag[0]: {(type(tag[1]), tag[1])}}


def _literal(tp: Any) -> list[Any]:
    kind, part = classify(tp)
    return [part] if kind is Kind.TABLE else []


def _by_tag(classes: list[Any]) -> Callable[[dict[str, Any]], Any] | None:
    tags = [_tags(tp) for tp in classes]
    for key in tags[0]:
        values = [tag.get(key, set()) for tag in tags]
        meanings = {value: tp for tp, some in zip(classes, values, strict=True) for value in some}
        if all(values) and len(meanings) == sum(map(len, values)):
            return _tag_reader(key, meanings)
    return None


def _tag_reader(key: str, meanings: dict[Any, Any]) -> Callable[[dict[str, Any]], Any]:
    def choose(value: dict[str, Any]) -> Any:
        tag = value.get(key)
        found = None if isinstance(tag, list | dict) else meanings.get((type(tag), tag))
        if found is None:
            msg = f"expected {key!r} to say which class it is"
            raise MismatchError(msg)
        return found

    return choose


def _by_required(classes: list[Any]) -> Callable[[dict[str, Any]], Any]:
    fields = {tp: fields_of(tp) for tp in classes}
    own: list[tuple[Any, set[str]]] = []
    for tp in classes:
        others = {f.key for other in classes if other is not tp for f in fields[other]}
        keys = {f.key for f in fields[tp] if f.required} - others
        if not keys:
            names = " and ".join(name_of(cls) for cls in classes)
            msg = (
                f"{names} look alike in JSON: give each a required field that the others do not "
                "have, or the same field as a Literal with another value in each"
            )
            raise UnsupportedTypeError(msg)
        own.append((tp, keys))

    def choose(value: dict[str, Any]) -> Any:
        found = [tp for tp, keys in own if not keys.isdisjoint(value)]
        if len(found) != 1:
            msg = "expected the fields of exactly one of the classes"
            raise MismatchError(msg)
        return found[0]

    return choose
