"""What a settings class says about each of its keys, beside the type and the default."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs

from postbus.errors import Problem
from postbus.settings._masking import mask

__all__ = [
    "Key",
    "Rule",
    "describe",
    "keys_of",
    "members_of",
    "path_field",
    "rest",
    "roles_of",
    "setting",
]

Reader = Callable[[Any, str, list[Problem]], Any]

_RULE = "postbus.setting"
_UNIONS = (Union, types.UnionType)


@attrs.frozen(kw_only=True)
class Rule:
    """Everything that `setting` was told; see there. *role* sets two special fields apart."""

    doc: str = ""
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    pattern: str | None = None
    expected: str = ""
    names: str | None = None
    secret: bool = False
    available: bool = True
    key: str | None = None
    read: Reader | None = None
    role: Literal["key", "rest", "path"] = "key"


@attrs.frozen
class Key:
    """One key of a section: its *name* there, the *argument* it fills, its type and its rule."""

    name: str
    argument: str
    type: Any
    rule: Rule
    default: Any

    @property
    def is_required(self) -> bool:
        """Whether a section must have it."""
        return self.default is attrs.NOTHING


def setting(  # noqa: PLR0913  one keyword per thing that a schema can say about a key
    default: Any = attrs.NOTHING,
    *,
    doc: str,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
    pattern: str | None = None,
    expected: str = "",
    names: str | None = None,
    secret: bool = False,
    available: bool = True,
    key: str | None = None,
    read: Reader | None = None,
) -> Any:
    """Make a field of an attrs settings class: one key of a section.

    The annotation says the type: `bool`, `int`, `float`, `str`, `Literal[...]`, `list[...]`,
    `tuple[X, ...]`, `dict[str, ...]`, another settings class, `Any`, and unions of these.

    Args:
        default: what a section without the key gets; a key without a default is required. An
            `attrs.Factory` works as usual.
        doc: what the key does and why the default is what it is; printed in the reference.
        minimum: the smallest number, itself allowed.
        maximum: the largest number, itself allowed.
        above: a number that the value must exceed.
        choices: the texts that are allowed.
        pattern: a regular expression that a text must match as a whole.
        expected: words to show in place of *pattern*.
        names: a regular expression for the keys of a table.
        secret: the value is never shown, not even in the `repr` of the settings.
        available: False refuses every value but the default, as not available yet.
        key: the name in the section where it is not the name of the field.
        read: a function of value, path and problems that reads the value in place of the type.
    """
    rule = Rule(
        doc=doc,
        minimum=minimum,
        maximum=maximum,
        above=above,
        choices=choices,
        pattern=pattern,
        expected=expected,
        names=names,
        secret=secret,
        available=available,
        key=key,
        read=read,
    )
    return attrs.field(
        default=default,
        metadata={_RULE: rule},
        repr=False if secret else lambda value: mask(repr(value)),
    )


def rest(*, doc: str) -> Any:
    """Make the field that takes every key which no other field has; not shown in the `repr`."""
    return attrs.field(
        factory=dict[str, Any], repr=False, metadata={_RULE: Rule(doc=doc, role="rest")}
    )


def path_field() -> Any:
    """Make the field that says where the section stood, for problems that are found later."""
    return attrs.field(default="", eq=False, metadata={_RULE: Rule(role="path")})


def keys_of(cls: type) -> tuple[Key, ...]:
    """List the keys that a section of the attrs class *cls* may have, in order."""
    hints = get_type_hints(cls)
    return tuple(
        Key(rule.key or argument, argument, hints[field.name], rule, field.default)
        for field, argument, rule in _fields(cls)
        if rule.role == "key" and field.init
    )


def roles_of(cls: type) -> dict[str, str]:
    """Return the arguments of *cls* that take what no key does, by role: "rest", "path"."""
    return {rule.role: argument for _, argument, rule in _fields(cls) if rule.role != "key"}


def _fields(cls: type) -> Iterator[tuple[attrs.Attribute[Any], str, Rule]]:
    for field in attrs.fields(cls):
        yield field, field.alias or field.name, field.metadata.get(_RULE, Rule())


def members_of(type_: Any) -> tuple[Any, ...]:
    """List the members of a union without None; of any other type the type itself."""
    if get_origin(type_) in _UNIONS:
        return tuple(each for each in get_args(type_) if each is not type(None))
    return (type_,)


def describe(type_: Any, rule: Rule) -> str:
    """Say in words what a value must be.

    Raises:
        TypeError: no section can hold the type.
    """
    *words, last = (_describe_member(each, rule) for each in members_of(type_))
    return f"{', '.join(words).replace(' or ', ', ')} or {last}" if words else last


def _describe_member(type_: Any, rule: Rule) -> str:
    origin = get_origin(type_)
    if origin in {list, tuple}:
        return f"an array, each item {describe(get_args(type_)[0], rule)}"
    if origin in {dict, Mapping} or attrs.has(type_):
        return "a table"
    if origin is Literal:
        return _one_of(get_args(type_))
    return _describe_scalar(type_, rule)


def _describe_scalar(type_: Any, rule: Rule) -> str:
    if type_ is bool:
        return "true or false"
    if type_ is int:
        return "an integer" + _range(rule)
    if type_ is float:
        return "a number" + _range(rule)
    if type_ is str:
        if rule.expected:
            return rule.expected
        if rule.choices:
            return _one_of(rule.choices)
        return f"a string that matches {rule.pattern}" if rule.pattern else "a string"
    if type_ is Any:
        return rule.expected or "a value"
    message = f"a settings class cannot have a field of type {type_!r}"
    raise TypeError(message)


def _range(rule: Rule) -> str:
    if rule.minimum is not None and rule.maximum is not None:
        return f" from {rule.minimum} to {rule.maximum}"
    words: list[str] = []
    if rule.above is not None:
        words.append(f"above {rule.above}")
    if rule.minimum is not None:
        words.append(f"of at least {rule.minimum}")
    if rule.maximum is not None:
        words.append(f"of at most {rule.maximum}")
    return f" {' and '.join(words)}" if words else ""


def _one_of(choices: tuple[Any, ...]) -> str:
    shown = [repr(each) for each in choices]
    if len(shown) <= 2:  # noqa: PLR2004  two read better with "or"
        return " or ".join(shown)
    return f"one of {', '.join(shown)}"
