"""A short way for classes of simple fields: a Struct with the same fields, checked by msgspec.

Most messages are flat: text, numbers, ids, a few nested classes of the same. For those msgspec
can do in C what the writers and readers do field by field, as strictly. What it refuses goes the
long way round, which says what is wrong, or knows better: so nothing is accepted here that would
be refused there, and nothing refused here is lost.
"""

from __future__ import annotations

import inspect
from datetime import UTC, datetime
from functools import partial
from types import GenericAlias
from typing import TYPE_CHECKING, Annotated, Any, Union, get_origin
from uuid import UUID

import msgspec
from msgspec.structs import astuple

from postbus.wire._plain import PLAIN
from postbus.wire._types import Field, Kind, classify, fields_of, is_pydantic, tag_of

if TYPE_CHECKING:
    from collections.abc import Callable

# Beyond it an int that is read as a float may lose its last digits: the long way notices.
_EXACT = 2.0**53 - 1
_SIMPLE: dict[Any, Any] = {
    str: str,
    int: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)],
    bool: bool,
    float: Annotated[float, msgspec.Meta(ge=-_EXACT, le=_EXACT)],
    UUID: UUID,
    type(None): None,
}
_TIME = Annotated[datetime, msgspec.Meta(tz=True)]
# Without it text would pass for one of them where a message is written.
_BUILTIN = (UUID, datetime)
_MAX_NESTING = 8
_UNSET = msgspec.UNSET


class NoMirrorError(Exception):
    """The class is not simple enough."""


class Mirror:
    """The Struct for one class, and the way back to the class."""

    def __init__(
        self,
        tp: Any,
        *,
        ignore_unknown: bool = False,
        plain: Any = Any,
        level: int = 0,
    ) -> None:
        cls = get_origin(tp) or tp
        if level > _MAX_NESTING or tag_of(cls) is not None or is_pydantic(cls):
            raise NoMirrorError
        fields = fields_of(tp)
        self.cls = cls
        self._ignore_unknown = ignore_unknown
        self._any = plain
        self._level = level
        # By the place of a field: what makes its value of what msgspec read.
        self._makers: list[tuple[int, Callable[[Any], Any]]] = []
        self._names = _require_positional(cls, fields)
        self._optional = [i for i, field in enumerate(fields) if not field.required]
        self.times: list[str] = []
        self.maps: list[str] = []
        # msgspec takes a tuple for a list, and a dict or another class for a nested one.
        self.has_lists = False
        self.nested: list[tuple[str, Mirror]] = []
        self.struct: Any = msgspec.defstruct(
            f"{cls.__name__}Mirror",
            [self._member(index, field) for index, field in enumerate(fields)],
            rename={field.name: field.key for field in fields},
            forbid_unknown_fields=not ignore_unknown,
            kw_only=True,
        )

    def _member(self, index: int, field: Field) -> Any:
        tp, make = self._type(field.type, field.name)
        if make is not None:
            self._makers.append((index, make))
        if field.required:
            return field.name, tp
        # The class knows its defaults; what is missing has to be told from what is given.
        return field.name, _one_of(tp, msgspec.UnsetType), _UNSET

    def _type(self, tp: Any, name: str) -> tuple[Any, Callable[[Any], Any] | None]:
        kind, part = classify(tp)
        if kind is Kind.LEAF and part in _SIMPLE:
            return _SIMPLE[part], None
        if kind is Kind.LEAF and part is datetime:
            self.times.append(name)
            return _TIME, None
        if kind is Kind.MAP and part == (str, Any):
            self.maps.append(name)
            return GenericAlias(dict, (str, self._any)), None
        if kind is Kind.UNION:
            parts = [classify(each) for each in part]
            if all(k is Kind.LEAF and p in _SIMPLE for k, p in parts):
                return _one_of(*(_SIMPLE[p] for _, p in parts)), None
        if kind is Kind.CLASS:
            nested = Mirror(
                part,
                ignore_unknown=self._ignore_unknown,
                plain=self._any,
                level=self._level + 1,
            )
            self.has_lists = self.has_lists or nested.has_lists
            self.nested.append((name, nested))
            return nested.struct, nested.build
        if kind is Kind.ARRAY and part[0] is list:
            self.has_lists = True
            item, make = self._type(part[1], name)
            return GenericAlias(list, (item,)), None if make is None else partial(_each, make)
        raise NoMirrorError

    def is_exact(self, value: Any) -> bool:
        """Tell whether *value* and what it holds are of exactly the classes declared."""
        if type(value) is not self.cls:
            return False
        for name in self.times:
            # An offset may have seconds, which RFC 3339 has not.
            if getattr(value, name).tzinfo is not UTC:
                return False
        for name in self.maps:
            if type(getattr(value, name)) is not dict:
                return False
        for name, nested in self.nested:  # noqa: SIM110  a generator costs more than the rest
            if not nested.is_exact(getattr(value, name)):
                return False
        return True

    @property
    def build(self) -> Callable[[Any], Any]:
        """What makes the object that a Struct read from JSON stands for."""
        if self._optional:
            return self._build_with_defaults
        return self._build_nested if self._makers else self._build_flat

    def _build_flat(self, mirrored: Any) -> Any:
        return self.cls(*astuple(mirrored))

    def _build_nested(self, mirrored: Any) -> Any:
        values = list(astuple(mirrored))
        for index, make in self._makers:
            values[index] = make(values[index])
        return self.cls(*values)

    def _build_with_defaults(self, mirrored: Any) -> Any:
        values = list(astuple(mirrored))
        for index, make in self._makers:
            if values[index] is not _UNSET:
                values[index] = make(values[index])
        left_out = [index for index in self._optional if values[index] is _UNSET]
        if not left_out:
            return self.cls(*values)
        given = dict(zip(self._names, values, strict=True))
        for index in left_out:
            del given[self._names[index]]
        return self.cls(**given)


def _one_of(*types: Any) -> Any:
    return Union[types]  # noqa: UP007  the types are known at run time only


def _each(make: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    return [make(item) for item in items]


def _require_positional(cls: Any, fields: tuple[Field, ...]) -> tuple[str, ...]:
    """Return the names of the constructor's arguments.

    Raises:
        NoMirrorError: it does not take exactly the fields, in their order.
    """
    parameters = list(inspect.signature(cls).parameters.values())
    if len(parameters) != len(fields) or any(
        p.kind not in {p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY} for p in parameters
    ):
        raise NoMirrorError
    for parameter, field in zip(parameters, fields, strict=True):
        if parameter.name not in {field.name, field.key}:
            raise NoMirrorError
    return tuple(parameter.name for parameter in parameters)


def _mirror(tp: Any, **options: Any) -> Mirror | None:
    try:
        return Mirror(tp, **options)
    except Exception:  # noqa: BLE001  whatever is odd about the class, the long way says it
        return None


def quick_writer(tp: Any, write: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what checks an object and makes it ready to write.

    That is *write*, the long way, where the class is not simple or the object is not what it
    should be.
    """
    mirror = _mirror(tp, plain=PLAIN)
    if mirror is None or mirror.has_lists:
        return write
    cls, struct, convert, is_exact = mirror.cls, mirror.struct, msgspec.convert, mirror.is_exact
    is_flat = not (mirror.nested or mirror.times or mirror.maps)

    def quick(value: Any) -> Any:
        if value.__class__ is cls and (is_flat or is_exact(value)):
            try:
                return convert(value, struct, from_attributes=True, builtin_types=_BUILTIN)
            except Exception:  # noqa: BLE001, S110  whatever it was, the long way says what
                pass
        return write(value)

    return quick


def quick_reader(tp: Any, *, ignore_unknown: bool) -> Callable[[bytes], Any] | None:
    """Return what makes an object of JSON, None for a class not simple.

    It raises anything at all for what the long way has to look at.
    """
    mirror = _mirror(tp, ignore_unknown=ignore_unknown)
    if mirror is None:
        return None
    decode, build = msgspec.json.Decoder(mirror.struct).decode, mirror.build

    def read(payload: bytes) -> Any:
        return build(decode(payload))

    return read
