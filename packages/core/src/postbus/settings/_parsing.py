"""Turn a plain dict into an instance of a settings class, collecting every problem on the way.

Nothing is ignored: a key is a field of the class, somebody else's by name, or a problem.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

import attrs

from postbus.errors import Problem
from postbus.settings._fields import Key, Rule, describe, keys_of, members_of, roles_of
from postbus.settings._masking import join, looks_secret, mask, show
from postbus.settings._scalars import INVALID, from_text, read_scalar
from postbus.settings._shapes import article_of, is_array, is_table

__all__ = ["INVALID", "nearest", "parse", "plain_copy", "read_section", "read_table"]

T = TypeVar("T")


def parse(
    cls: type[T],
    section: Any,
    path: str,
    problems: list[Problem],
    *,
    also_known: Iterable[str] = (),
) -> T | None:
    """Turn *section* into an instance of *cls*, an attrs class of `setting` fields.

    *section* is not changed, and nothing of it is shared with the instance but objects.
    *also_known* are keys that somebody else reads: left alone, and offered for a misspelling.

    A `ValueError` from the class itself (an attrs validator, `__attrs_post_init__`) becomes a
    problem too: its text says what is expected, without the value.

    Returns:
        None when anything was wrong; what was is appended to *problems*.
    """
    found: list[Problem] = []
    instance = read_section(cls, section, path, found, also_known=frozenset(also_known))
    problems += found
    return None if found else instance


def read_section(
    cls: type[T],
    section: Any,
    path: str,
    problems: list[Problem],
    *,
    also_known: Collection[str] = (),
    secret: bool = False,
) -> T | None:
    """Do what `parse` does, but with defaults in place of what was wrong.

    So whoever looks for further problems can go on. None when a required key is missing.
    """
    if not is_table(section):
        problems.append(Problem(path, show(section, secret=secret), "expected a table"))
        return None
    keys = keys_of(cls)
    values: dict[str, Any] = {}
    complete = True
    for key in keys:
        value = INVALID
        if key.name in section:
            value = _read_key(key, section[key.name], join(path, key.name), problems, secret)
        elif key.is_required:
            expected = f"required: {describe(key.type, key.rule)}"
            problems.append(Problem(join(path, key.name), "", expected, f"add {key.name!r}"))
        if value is not INVALID:
            values[key.argument] = value
        elif key.is_required:
            complete = False
    others = _read_others(cls, section, path, problems, {key.name for key in keys}, also_known)
    special = {"rest": others, "path": path}
    values.update({argument: special[role] for role, argument in roles_of(cls).items()})
    if not complete:
        return None
    try:
        return cls(**values)
    except ValueError as error:
        problems.append(Problem(path, "", _without_secrets(error, keys, values)))
        return None


def _read_key(key: Key, value: Any, path: str, problems: list[Problem], secret: bool) -> Any:  # noqa: FBT001  private, handed through
    rule = key.rule
    if not rule.available:
        if not _says_default(key, value):
            problems.append(Problem(path, article_of(value), "not available yet", "leave it out"))
        return INVALID
    if rule.read is not None:
        return rule.read(value, path, problems)
    if secret or looks_secret(key.name):
        rule = attrs.evolve(rule, secret=True)
    return _Reader(rule, key.default, problems).read(key.type, value, path)


def _says_default(key: Key, value: Any) -> bool:
    """Say whether a value is what the key has without it; 0 is not False."""
    factory = getattr(key.default, "factory", None)
    default = key.default if factory is None else factory()
    problems: list[Problem] = []
    read = _Reader(key.rule, key.default, problems).read(key.type, value, "")
    return not problems and bool(read == default)


def _read_others(
    cls: type,
    section: Mapping[Any, Any],
    path: str,
    problems: list[Problem],
    known: set[str],
    also_known: Collection[str],
) -> dict[str, Any]:
    """Return the keys that no field is named after, where *cls* takes such; else refuse them."""
    elsewhere: Mapping[str, str] = getattr(cls, "_elsewhere", {})
    takes_rest = "rest" in roles_of(cls)
    others: dict[str, Any] = {}
    for name, value in section.items():
        if name in known or name in also_known:
            continue
        where = join(path, name)
        if not isinstance(name, str):
            expected = "expected a string as key"
            problems.append(Problem(where, show(name), expected, "put it in quotes"))
        elif name in elsewhere:
            problems.append(Problem(where, article_of(value), "not a key here", elsewhere[name]))
        elif takes_rest:
            others[name] = plain_copy(value, where, problems)
        else:
            hint = nearest(name, {*known, *also_known}) or f"known: {', '.join(sorted(known))}"
            problems.append(Problem(where, article_of(value), "not a known key", hint))
    return others


def _without_secrets(error: ValueError, keys: Iterable[Key], values: Mapping[str, Any]) -> str:
    """Return what the error says, on one line; attrs' validators put the value beside it."""
    text = " ".join(str(error.args[0] if error.args else "refused").split())
    for key in keys:
        if not (key.rule.secret or looks_secret(key.name)):
            continue
        value = values.get(key.argument)
        for each in value if is_array(value) else [value]:
            if isinstance(each, str) and each:
                text = text.replace(each, "***")
    return mask(text)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "did you mean 'dsn'?", or nothing where no known name is near."""
    folded = {_fold(each): each for each in sorted(known)}
    close = difflib.get_close_matches(_fold(name), folded, n=1)
    return f"did you mean {folded[close[0]]!r}?" if close else ""


def _fold(name: str) -> str:
    return name.lower().replace("-", "_")


def plain_copy(
    value: Any, path: str, problems: list[Problem], within: frozenset[int] = frozenset()
) -> Any:
    """Copy tables and arrays; what they hold stays the same objects.

    So text from the environment keeps what marks it, and a later `parse` can read it.
    """
    if id(value) in within:
        problems.append(Problem(path, article_of(value), "expected no table within itself"))
        return None
    if is_table(value):
        within |= {id(value)}
        return {
            name: plain_copy(each, join(path, name), problems, within)
            for name, each in value.items()
        }
    if is_array(value):
        within |= {id(value)}
        return [plain_copy(each, f"{path}[{i}]", problems, within) for i, each in enumerate(value)]
    return value


def read_table(
    value: Any,
    path: str,
    problems: list[Problem],
    names: str | None,
    read: Any,
) -> dict[str, Any]:
    """Read a table of like entries by *read(value, path, problems)*; what is wrong is left out.

    *names* is the regular expression of its keys.
    """
    if not is_table(value):
        problems.append(Problem(path, show(value), "expected a table"))
        return {}
    entries: dict[str, Any] = {}
    for name, each in value.items():
        where = join(path, name)
        if not isinstance(name, str):
            problems.append(Problem(where, show(name), "expected a string as key"))
        elif names is not None and not re.fullmatch(names, name):
            problems.append(Problem(where, show(name), f"expected a name that matches {names}"))
        elif (entry := read(each, where, problems)) is not INVALID:
            entries[name] = entry
    return entries


class _Reader:
    """Reads the value of one key by its type and rule."""

    def __init__(self, rule: Rule, default: Any, problems: list[Problem]) -> None:
        self.rule = rule
        self.default = default
        self.problems = problems

    def read(self, type_: Any, value: Any, path: str) -> Any:
        """Return the value as *type_*, or INVALID with a problem noted."""
        members = members_of(type_)
        if value is None and type(None) in get_args(type_):
            return None
        for member in members:
            if _has_shape_of(member, value):
                return self._read_container(member, value, path)
        # Where text is welcome, text from the environment stays what it is.
        for member in sorted(members, key=lambda each: each is not str):
            result = read_scalar(member, value, self.rule)
            if result is not INVALID:
                return result
        return self._refuse(type_, value, path)

    def _read_container(self, type_: Any, value: Any, path: str) -> Any:
        if type_ is Any:
            return plain_copy(value, path, self.problems)
        origin, arguments = get_origin(type_), get_args(type_)
        entries = _Reader(self.rule, attrs.NOTHING, self.problems)
        if origin in {list, tuple}:
            found: list[Any] = [
                entries.read(arguments[0], each, f"{path}[{i}]") for i, each in enumerate(value)
            ]
            kept = [each for each in found if each is not INVALID]
            return kept if origin is list else tuple(kept)
        if origin is None:
            secret = self.rule.secret
            section = read_section(type_, value, path, self.problems, secret=secret)
            return INVALID if section is None else section

        def read(each: Any, where: str, _: list[Problem]) -> Any:
            return entries.read(arguments[1], each, where)

        return read_table(value, path, self.problems, self.rule.names, read)

    def _refuse(self, type_: Any, value: Any, path: str) -> Any:
        expected = describe(type_, self.rule)
        shown = show(value, secret=self.rule.secret)
        remedy = self._remedy(type_, value)
        self.problems.append(Problem(path, shown, f"expected {expected}", remedy))
        return INVALID

    def _remedy(self, type_: Any, value: Any) -> str:
        members = members_of(type_)
        if isinstance(value, str) and not self.rule.secret:
            words = list(self.rule.choices)
            for member in members:
                words += _texts_of(member)
            if hint := nearest(value, words):
                return hint
            plain = [each for each in members if each in {bool, int, float}]
            if any(from_text(each, value) is not INVALID for each in plain):
                return "write it without quotes"
        if self.default is attrs.NOTHING:
            return ""
        if isinstance(self.default, str | int | float):
            return f"leave it out for the default, {show(self.default)}"
        return "leave it out for the default"


def _has_shape_of(type_: Any, value: Any) -> bool:
    origin = get_origin(type_)
    if type_ is Any:
        return isinstance(value, Mapping | list | tuple)
    if is_table(value):
        return origin in {dict, Mapping} or attrs.has(type_)
    return isinstance(value, list | tuple) and origin in {list, tuple}


def _texts_of(type_: Any) -> list[str]:
    """List the texts that a Literal allows."""
    if get_origin(type_) is not Literal:
        return []
    return [each for each in get_args(type_) if isinstance(each, str)]
