"""JSON to messages, strictly: cattrs builds the classes, with hooks that convert nothing.

The only module that needs cattrs; it is imported when the first payload is read.
"""

from __future__ import annotations

import dataclasses
from functools import cache, partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, get_origin
from uuid import UUID

import attrs
import cattrs
import msgspec
from cattrs.gen import make_dict_structure_fn, override

from postbus.errors import DecodeError
from postbus.wire import _leaves
from postbus.wire._compiled import Compiled
from postbus.wire._mirrors import quick_reader
from postbus.wire._reasons import Reason
from postbus.wire._types import (
    Field,
    Kind,
    MismatchError,
    classify,
    fields_of,
    is_pydantic,
    name_of,
    tag_of,
)
from postbus.wire._unions import by_shape, chooser
from postbus.wire._write import key_writer

if TYPE_CHECKING:
    from collections.abc import Callable

    Hook = Callable[[Any, Any], Any]


def loader(tp: Any, reason: Reason, *, ignore_unknown: bool) -> Callable[[bytes], Any]:
    """Return the function that makes a *tp* of JSON; it raises `DecodeError` and nothing else.

    It is for bytes that `check_body` has passed. *reason* is its code for JSON that does not fit.
    """
    try:
        hook = _reader(ignore_unknown=ignore_unknown, explain=False).hook(tp)
    except Exception as error:  # noqa: BLE001  a class may fail in any way when looked at
        return partial(_refuse, str(error))

    quick = quick_reader(tp, ignore_unknown=ignore_unknown)

    def load(payload: bytes) -> Any:
        if quick is not None:
            try:
                return quick(payload)
            except Exception:  # noqa: BLE001, S110  whatever it was, the long way says what
                pass
        try:
            value = _parse(payload)
        except (ValueError, RecursionError) as error:
            raise DecodeError(Reason.MALFORMED, f"no JSON: {error}") from None
        try:
            return hook(value, tp)
        except Exception:  # noqa: BLE001  a class's validators may raise anything
            # Validators may say what they refused, which can be a secret: their words stay here.
            explain = _reader(ignore_unknown=ignore_unknown, explain=True).hook(tp)
            raise DecodeError(reason, f"{name_of(tp)}: {_fault(explain, value, tp)}") from None

    return load


def _refuse(text: str, _: bytes) -> Any:
    raise DecodeError(Reason.UNSUPPORTED_TYPE, text)


def _fault(explain: Hook, value: Any, tp: Any) -> str:
    fault = "refused"
    try:
        explain(value, tp)
    except Exception as error:  # noqa: BLE001  validators may raise anything
        is_ours = isinstance(error, MismatchError)
        fault = str(error) if is_ours else f"refused ({type(error).__name__})"
    return fault


_parse = msgspec.json.Decoder().decode


@cache
def _reader(*, ignore_unknown: bool, explain: bool) -> Reader:
    return Reader(ignore_unknown=ignore_unknown, explain=explain)


class Reader:
    """Makes the functions that structure values; one for each answer to unknown fields.

    Every hook takes a value and, because cattrs passes it, its type; it raises `MismatchError`,
    or whatever a class's own validators raise. With *explain* the error says in which field: that
    takes longer, so it is asked only about values that were refused.
    """

    def __init__(self, *, ignore_unknown: bool, explain: bool) -> None:
        self._ignore_unknown = ignore_unknown
        self._explain = explain
        self._converter = cattrs.Converter(detailed_validation=False)
        self._classes = Compiled(self._class)
        self._makers: dict[Kind, Callable[[Any], Hook]] = {
            Kind.LEAF: _leaves.READERS.__getitem__,
            Kind.ANY: _any,
            Kind.TABLE: _table,
            Kind.UNION: self._union,
            Kind.ARRAY: self._array,
            Kind.TUPLE: self._tuple,
            Kind.MAP: self._map,
            Kind.CLASS: self._classes.get,
            Kind.CONSTRAINED: self._constrained,
        }

    def hook(self, tp: Any) -> Hook:
        """Return the function that makes a *tp* of a value from JSON.

        Raises:
            UnsupportedTypeError: *tp* cannot cross the wire.
        """
        kind, part = classify(tp)
        return self._makers[kind](part)

    def _class(self, tp: Any) -> Hook:
        cls = get_origin(tp) or tp
        fields = fields_of(tp)
        hooks = {field.name: self.hook(field.type) for field in fields}
        tag = tag_of(cls)
        build = self._builder(tp, fields, hooks)
        if tag is None:
            if not self._ignore_unknown and not self._explain:
                # Only an object has keys, and looking for unknown ones asks for them.
                return build
            return _of_objects(build)

        def read(value: Any, _: Any = None) -> Any:
            rest = dict(_exact_dict(value))
            if rest.pop(tag[0], None) != tag[1]:
                msg = f"expected {tag[0]!r} to be {tag[1]!r}"
                raise MismatchError(msg)
            return build(rest, cls)

        return read

    def _builder(self, tp: Any, fields: tuple[Field, ...], hooks: dict[str, Hook]) -> Hook:
        cls = get_origin(tp) or tp
        by_cattrs = attrs.has(cls) or dataclasses.is_dataclass(cls)
        if not by_cattrs or self._explain or hooks.keys() & _TAKEN:
            return self._plain_builder(cls, fields, hooks)
        overrides: dict[str, Any] = {
            f.name: override(rename=f.key, struct_hook=hooks[f.name]) for f in fields
        }
        return make_dict_structure_fn(
            tp,
            self._converter,
            _cattrs_forbid_extra_keys=not self._ignore_unknown,
            _cattrs_detailed_validation=False,
            **overrides,
        )

    def _plain_builder(self, cls: Any, fields: tuple[Field, ...], hooks: dict[str, Hook]) -> Hook:
        keys = {field.key for field in fields}
        strict = not self._ignore_unknown
        make, argument_of = _constructor(cls)

        def build(value: Any, _: Any) -> Any:
            given: dict[str, Any] = {}
            for field in fields:
                if field.key in value:
                    hook = hooks[field.name]
                    given[argument_of(field)] = _in_field(field, hook, value[field.key])
                elif field.required:
                    raise MismatchError("is missing").inside(field.key)
            if strict and not value.keys() <= keys:
                unknown = ascii(next(key for key in value if key not in keys))
                raise MismatchError(f"has no field {unknown[:64]}")
            try:
                return make(**given)
            except Exception as error:  # noqa: BLE001  validators may raise anything
                raise MismatchError(f"refused its fields ({type(error).__name__})") from None

        return build

    def _union(self, args: tuple[Any, ...]) -> Hook:
        hooks = {shape: self._one_of(alike) for shape, alike in by_shape(args).items()}
        expected = " or ".join(name_of(arg) for arg in args)

        def read(value: Any, _: Any = None) -> Any:
            hook = hooks.get(value.__class__)
            if hook is None:
                raise _leaves.mismatch(expected, value)
            return hook(value, None)

        return read

    def _one_of(self, alike: list[Any]) -> Hook:
        if len(alike) == 1:
            return self.hook(alike[0])
        choose = chooser(alike)
        hooks = {tp: self.hook(tp) for tp in alike}

        def read(value: Any, _: Any = None) -> Any:
            return hooks[choose(value)](value, None)

        return read

    def _array(self, part: tuple[type, Any]) -> Hook:
        cls, item_type = part
        item = self.hook(item_type)

        def read(value: Any, _: Any = None) -> Any:
            kind = value.__class__
            if kind is not list:
                raise _leaves.mismatch("an array", value)
            items = [item(each, item_type) for each in value]
            return items if cls is list else cls(items)

        return read

    def _tuple(self, types: tuple[Any, ...]) -> Hook:
        items = tuple(self.hook(tp) for tp in types)

        def read(value: Any, _: Any = None) -> Any:
            kind = value.__class__
            if kind is not list or len(value) != len(items):
                raise _leaves.mismatch(f"an array of {len(items)}", value)
            return tuple([item(each, None) for item, each in zip(items, value, strict=True)])

        return read

    def _map(self, part: tuple[Any, Any]) -> Hook:
        key_writer(part[0])
        key = _key_hook(part[0])
        item = self.hook(part[1])

        def read(value: Any, _: Any = None) -> Any:
            kind = value.__class__
            if kind is not dict:
                raise _leaves.mismatch("an object", value)
            return {key(name): item(each, None) for name, each in value.items()}

        if part == (str, Any):
            return _exact_dict
        return read

    def _constrained(self, part: tuple[Any, Any]) -> Hook:
        inner, whole = part
        hook = self.hook(inner)

        def read(value: Any, _: Any = None) -> Any:
            made = hook(value, inner)
            try:
                msgspec.convert(made, whole)
            except msgspec.ValidationError as error:
                raise MismatchError(str(error)) from None
            return made

        return read


# A class with a field of such a name cannot be handed to cattrs' function, which has parameters
# of these names.
_TAKEN = frozenset({"cl", "converter"})


def _constructor(cls: Any) -> tuple[Callable[..., Any], Callable[[Field], str]]:
    """Return what builds a *cls* from keyword arguments, and which argument a field is."""
    if is_pydantic(cls):

        def validate(**given: Any) -> Any:
            # Its validators and constraints run; the values have their types already.
            return cls.model_validate(given, strict=True)

        return validate, attrgetter("key")
    # For attrs both are the alias; a Struct is written by another name but built by its own.
    return cls, attrgetter("key" if attrs.has(cls) else "name")


def _in_field(field: Field, hook: Hook, value: Any) -> Any:
    try:
        return hook(value, field.type)
    except MismatchError as error:
        raise error.inside(field.key) from None
    except Exception as error:  # noqa: BLE001  validators may raise anything
        raise MismatchError(f"refused ({type(error).__name__})").inside(field.key) from None


def _any(_: None) -> Hook:
    return _as_it_is


def _as_it_is(value: Any, _: Any = None) -> Any:
    return value


def _of_objects(build: Hook) -> Hook:
    def read(value: Any, tp: Any = None) -> Any:
        return build(_exact_dict(value), tp)

    return read


def _exact_dict(value: Any, _: Any = None) -> Any:
    kind = value.__class__
    if kind is not dict:
        raise _leaves.mismatch("an object", value)
    return value


def _table(table: dict[tuple[type, Any], Any]) -> Hook:
    missing = object()

    def read(value: Any, _: Any = None) -> Any:
        kind = value.__class__
        found = missing if kind in {list, dict} else table.get((kind, value), missing)
        if found is missing:
            raise _leaves.mismatch("one of the values listed", value)
        return found

    return read


def _key_hook(tp: Any) -> Callable[[str], Any]:
    kind, part = classify(tp)
    if part is str:
        return str
    parse: Callable[[str], Any] = _leaves.parse_int_key
    if kind is Kind.TABLE:
        parse = {str(written): member for (_, written), member in part.items()}.__getitem__
    elif part is UUID:
        parse = partial(msgspec.convert, type=UUID)

    def read(text: str) -> Any:
        try:
            return parse(text)
        except (KeyError, ValueError):
            msg = f"expected keys that are {name_of(tp)}"
            raise MismatchError(msg) from None

    return read
