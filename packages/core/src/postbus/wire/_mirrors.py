"""A short way for classes of simple fields: a Struct with the same fields, checked by msgspec.

Most messages are flat: text, numbers, ids, a few nested classes of the same. For those msgspec
can do in C what the writers and readers do field by field, as strictly. What it refuses goes the
long way round, which says what is wrong, or knows better: so nothing is accepted here that would
be refused there, and nothing refused here is lost.
"""

from __future__ import annotations

import inspect
from datetime import datetime
from functools import partial
from types import GenericAlias
from typing import TYPE_CHECKING, Annotated, Any, Union, get_origin
from uuid import UUID

import msgspec
from msgspec.structs import astuple

from postbus.wire._quick import MAX_NESTING, NotSimpleError
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
    datetime: Annotated[datetime, msgspec.Meta(tz=True)],
}
_UNSET = msgspec.UNSET


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
        if level > MAX_NESTING or tag_of(cls) is not None or is_pydantic(cls):
            raise NotSimpleError
        fields = fields_of(tp)
        self.cls = cls
        self._ignore_unknown = ignore_unknown
        self._any = plain
        self._level = level
        # By the place of a field: what makes its value of what msgspec read.
        self._makers: list[tuple[int, Callable[[Any], Any]]] = []
        self._names = _require_positional(cls, fields)
        self._optional = [i for i, field in enumerate(fields) if not field.required]
        self.struct: Any = msgspec.defstruct(
            f"{cls.__name__}Mirror",
            [self._member(index, field) for index, field in enumerate(fields)],
            rename={field.name: field.key for field in fields},
            forbid_unknown_fields=not ignore_unknown,
            kw_only=True,
        )

    def _member(self, index: int, field: Field) -> Any:
        tp, make = self._type(field.type, self._level)
        if make is not None:
            self._makers.append((index, make))
        if field.required:
            return field.name, tp
        # The class knows its defaults; what is missing has to be told from what is given.
        return field.name, _one_of(tp, msgspec.UnsetType), _UNSET

    def _type(self, tp: Any, level: int) -> tuple[Any, Callable[[Any], Any] | None]:
        kind, part = classify(tp)
        if kind is Kind.LEAF and part in _SIMPLE:
            return _SIMPLE[part], None
        if kind is Kind.MAP and part == (str, Any):
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
                level=level + 1,
            )
            return nested.struct, nested.build
        if kind is Kind.ARRAY and part[0] in {list, tuple} and level < MAX_NESTING:
            cls, item_type = part
            item, make = self._type(item_type, level + 1)
            items = (item,) if cls is list else (item, ...)
            return GenericAlias(cls, items), None if make is None else partial(_each, cls, make)
        raise NotSimpleError

    @property
    def is_flat(self) -> bool:
        """Whether the class takes what is in the Struct as it is: nothing nested, no defaults."""
        return not self._optional and not self._makers

    @property
    def build(self) -> Callable[[Any], Any]:
        """What makes the object that a Struct read from JSON stands for."""
        if self._optional:
            return self._build_with_defaults
        cls, makers = self.cls, tuple(self._makers)
        if self.is_flat:
            return lambda mirrored: cls(*astuple(mirrored))

        def build(mirrored: Any) -> Any:
            values = list(astuple(mirrored))
            for index, make in makers:
                values[index] = make(values[index])
            return cls(*values)

        return build

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


def _each(cls: type, make: Callable[[Any], Any], items: Any) -> Any:
    made = [make(item) for item in items]
    return made if cls is list else tuple(made)


def _require_positional(cls: Any, fields: tuple[Field, ...]) -> tuple[str, ...]:
    """Return the names of the constructor's arguments.

    Raises:
        NotSimpleError: it does not take exactly the fields, in their order.
    """
    parameters = list(inspect.signature(cls).parameters.values())
    if len(parameters) != len(fields) or any(
        p.kind not in {p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY} for p in parameters
    ):
        raise NotSimpleError
    for parameter, field in zip(parameters, fields, strict=True):
        if parameter.name not in {field.name, field.key}:
            raise NotSimpleError
    return tuple(parameter.name for parameter in parameters)


def mirror_of(tp: Any, **options: Any) -> Mirror | None:
    """Return the mirror of *tp*, None where it is not simple enough to have one."""
    try:
        return Mirror(tp, **options)
    except Exception:  # noqa: BLE001  whatever is odd about the class, the long way says it
        return None


def quick_reader(tp: Any, *, ignore_unknown: bool) -> Callable[[bytes], Any] | None:
    """Return what makes an object of JSON, None for a class not simple.

    It raises anything at all for what the long way has to look at.
    """
    mirror = mirror_of(tp, ignore_unknown=ignore_unknown)
    if mirror is None:
        return None
    decode, build = msgspec.json.Decoder(mirror.struct).decode, mirror.build

    def read(payload: bytes) -> Any:
        return build(decode(payload))

    return read
