"""What the wire format makes of a type: the one answer that writing and reading share.

`classify` turns an annotation into a `Kind` and its parts. A type that is not listed here can
neither be written nor read, and says so when its class is used first.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import sys
import types
from decimal import Decimal
from enum import Enum, StrEnum, auto
from operator import attrgetter
from typing import (
    Annotated,
    Any,
    Literal,
    NewType,
    TypeGuard,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)
from uuid import UUID

import attrs
import msgspec


class UnsupportedTypeError(TypeError):
    """A type that the wire format does not have; the text says which and where."""


class MismatchError(ValueError):
    """A value that is not what its annotation says; the text names types, never the value."""

    path: str = ""

    def inside(self, name: str) -> MismatchError:
        """Return this error, found in the field *name*."""
        self.path = f"{name}.{self.path}" if self.path else name
        return self

    def __str__(self) -> str:
        """Return where it is and what was expected."""
        text = super().__str__()
        return f"{self.path}: {text}" if self.path else text


LEAVES = frozenset(
    {
        type(None),
        bool,
        int,
        float,
        str,
        bytes,
        Decimal,
        UUID,
        dt.datetime,
        dt.date,
        dt.time,
        dt.timedelta,
    }
)
_SCALARS = (str, int, bool, type(None))


class Kind(StrEnum):
    """What `classify` found; in brackets what comes with it."""

    LEAF = auto()
    """One value (the type)."""
    ANY = auto()
    """Any plain JSON (None)."""
    TABLE = auto()
    """An Enum or Literal (its values by what is written: `{(type, written): value}`)."""
    UNION = auto()
    """One of several (their types)."""
    ARRAY = auto()
    """list, set, frozenset or tuple of any length (the class and the type of an item)."""
    TUPLE = auto()
    """A tuple of fixed length (the types)."""
    MAP = auto()
    """A dict (the types of keys and values)."""
    CLASS = auto()
    """An attrs class, dataclass, Struct or pydantic model (the class, or `Class[int]`)."""
    CONSTRAINED = auto()
    """`Annotated` with `msgspec.Meta` (the type without, the whole annotation)."""


@attrs.frozen
class Field:
    """One field of a message class: its attribute, its key in JSON, its type."""

    name: str
    key: str
    type: Any
    required: bool


def classify(tp: Any) -> tuple[Kind, Any]:  # noqa: C901, PLR0911, PLR0912  the table of types
    """Tell what *tp* is on the wire.

    Raises:
        UnsupportedTypeError: it is nothing there.
    """
    if tp is None:
        tp = type(None)
    if isinstance(tp, type) and tp in LEAVES:
        return Kind.LEAF, tp
    if tp is Any or tp is object:
        return Kind.ANY, None
    origin, args = get_origin(tp), get_args(tp)
    if origin is Annotated:
        if any(isinstance(extra, msgspec.Meta) for extra in args[1:]):
            return Kind.CONSTRAINED, (args[0], _checked_constraint(tp))
        return classify(args[0])
    if isinstance(tp, NewType):
        return classify(tp.__supertype__)
    if type(tp).__name__ == "TypeAliasType":
        return classify(attrgetter("__value__")(tp))
    if origin is Literal:
        return Kind.TABLE, _table(tp, args)
    if origin is Union or origin is types.UnionType:
        return _classify_union(args)
    if tp in (list, set, frozenset) or origin in (list, set, frozenset):
        return Kind.ARRAY, (origin or tp, args[0] if args else Any)
    if tp is tuple or (origin is tuple and args[1:] == (...,)):
        return Kind.ARRAY, (tuple, args[0] if args else Any)
    if origin is tuple:
        return Kind.TUPLE, args
    if tp is dict or origin is dict:
        return Kind.MAP, args or (str, Any)
    if _is_class(tp) and issubclass(tp, Enum):
        return Kind.TABLE, _table(tp, tuple(tp))
    if is_message_class(tp if origin is None else origin):
        return Kind.CLASS, tp
    raise UnsupportedTypeError(_not_on_the_wire(tp))


def _checked_constraint(tp: Any) -> Any:
    try:
        msgspec.json.Decoder(tp)
    except TypeError as error:
        raise UnsupportedTypeError(str(error)) from None
    return tp


def _classify_union(args: tuple[Any, ...]) -> tuple[Kind, Any]:
    if any(classify(arg)[0] is Kind.ANY for arg in args):
        return Kind.ANY, None
    return Kind.UNION, args


def _not_on_the_wire(tp: Any) -> str:
    if isinstance(tp, TypeVar):
        return f"the type variable {tp} stands for no type: say which one"
    return (
        f"{name_of(tp)} cannot cross the wire: use None, bool, int, float, str, bytes, Decimal, "
        "UUID, a date or time, an Enum, a Literal, list, tuple, dict, set, a union of those, or "
        "an attrs class, dataclass, msgspec Struct or pydantic model"
    )


def _table(tp: Any, members: tuple[Any, ...]) -> dict[tuple[type, Any], Any]:
    table: dict[tuple[type, Any], Any] = {}
    for member in members:
        written = member._value_ if isinstance(member, Enum) else member
        if type(written) not in _SCALARS:
            msg = f"{name_of(tp)} has the value {written!r}: only str, int, bool and None are JSON"
            raise UnsupportedTypeError(msg)
        table[type(written), written] = member
    return table


def name_of(tp: Any) -> str:
    """Return how to show a type to a person."""
    return tp.__qualname__ if isinstance(tp, type) and not get_args(tp) else str(tp)


def json_name(value: object) -> str:
    """Return what a value read from JSON is called there."""
    return _JSON_NAMES.get(type(value), type(value).__name__)


_JSON_NAMES: dict[type, str] = {dict: "object", list: "array", type(None): "null"}


def _is_class(cls: Any) -> TypeGuard[type[Any]]:
    return isinstance(cls, type)


def is_message_class(cls: Any) -> bool:
    """Tell whether instances of *cls* can be a payload, or a part of one."""
    return _is_class(cls) and (
        attrs.has(cls)
        or dataclasses.is_dataclass(cls)
        or issubclass(cls, msgspec.Struct)
        or is_pydantic(cls)
    )


def is_pydantic(cls: type) -> bool:
    """Tell whether *cls* is a pydantic model; never loads pydantic to find out."""
    pydantic = sys.modules.get("pydantic")
    model = getattr(pydantic, "BaseModel", None)
    return model is not None and issubclass(cls, model)


def fields_of(tp: Any) -> tuple[Field, ...]:
    """Return the fields of a message class that cross the wire, in order.

    Those are what its constructor takes: `init=False` fields are left out.

    Raises:
        UnsupportedTypeError: an annotation cannot be resolved, or the class cannot be built
            from its fields.
    """
    cls = get_origin(tp) or tp
    if issubclass(cls, msgspec.Struct):
        fields = _struct_fields(cls)
    elif is_pydantic(cls):
        fields = _pydantic_fields(cls)
    elif attrs.has(cls):
        fields = _attrs_fields(cls)
    else:
        fields = _dataclass_fields(cls)
    given = dict(zip(getattr(cls, "__parameters__", ()), get_args(tp), strict=False))
    if given:
        fields = [attrs.evolve(field, type=substitute(field.type, given)) for field in fields]
    return tuple(fields)


def substitute(tp: Any, given: dict[Any, Any]) -> Any:
    """Return *tp* with the type variables in it replaced by what is *given* for them."""
    if isinstance(tp, TypeVar):
        return given.get(tp, tp)
    parameters = getattr(tp, "__parameters__", ())
    if parameters and not isinstance(tp, type):
        return tp[tuple(given.get(parameter, parameter) for parameter in parameters)]
    return tp


def _hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls, include_extras=True)
    except Exception as error:
        msg = (
            f"the annotations of {cls.__module__}.{cls.__qualname__} cannot be resolved: {error}. "
            "Import what they name at run time, and define the class at the top of its module"
        )
        raise UnsupportedTypeError(msg) from error


def _attrs_fields(cls: type) -> list[Field]:
    hints = _hints(cls)
    return [
        Field(
            a.name, a.alias or a.name, hints.get(a.name, a.type or Any), a.default is attrs.NOTHING
        )
        for a in attrs.fields(cls)
        if a.init
    ]


def _dataclass_fields(cls: type) -> list[Field]:
    hints = _hints(cls)
    missing = dataclasses.MISSING
    for name, hint in hints.items():
        if isinstance(hint, dataclasses.InitVar) and name not in vars(cls):
            msg = f"{cls.__qualname__}.{name} is an InitVar: what it was is not known afterwards"
            raise UnsupportedTypeError(msg)
    return [
        Field(f.name, f.name, hints[f.name], f.default is missing and f.default_factory is missing)
        for f in dataclasses.fields(cls)
        if f.init
    ]


def _struct_fields(cls: type[msgspec.Struct]) -> list[Field]:
    if cls.__struct_config__.array_like:
        msg = f"{cls.__qualname__} is array_like: a payload is an object"
        raise UnsupportedTypeError(msg)
    _hints(cls)
    return [Field(f.name, f.encode_name, f.type, f.required) for f in msgspec.structs.fields(cls)]


def _pydantic_fields(cls: Any) -> list[Field]:
    if getattr(cls, "__pydantic_root_model__", False):
        msg = f"{cls.__qualname__} is a RootModel: a payload is an object with fields"
        raise UnsupportedTypeError(msg)
    fields: list[Field] = []
    for name, info in cls.model_fields.items():
        key = info.validation_alias or name
        if not isinstance(key, str):
            msg = f"{cls.__qualname__}.{name} has several aliases: the wire needs one"
            raise UnsupportedTypeError(msg)
        if not info.exclude:
            fields.append(Field(name, key, info.annotation, info.is_required()))
        elif info.is_required():
            msg = f"{cls.__qualname__}.{name} is required and excluded: it could not be read back"
            raise UnsupportedTypeError(msg)
    return fields


def tag_of(cls: type) -> tuple[str, str | int] | None:
    """Return the key and value that tell a tagged Struct from others; None where there is none."""
    if not issubclass(cls, msgspec.Struct):
        return None
    config = cls.__struct_config__
    if config.tag_field is None or config.tag is None:
        return None
    return config.tag_field, config.tag
