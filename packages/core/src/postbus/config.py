"""Read a configuration file into the plain dict that everything else works on.

A file is only another way to write the dict. What the dict may say is `postbus.settings`'
business; here it is read, and `${VAR}` in it is replaced from the environment.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeGuard

from postbus.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from yaml import MappingNode

__all__ = ["EnvironmentText", "interpolate", "load", "unwrap"]

_REFERENCE = re.compile(
    r"\$\$|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::(?P<default>[^}]*))?\}|\$\{"
)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+").fullmatch
# What stands here is imported: a class or module comes from the file alone, never from outside.
_CODE = (("errors",), ("messages",))


class EnvironmentText(str):
    """Text with something from the environment in it.

    A variable can only be text. So where a setting wants a number or a boolean, this is read as
    one ("5", "true"), while other text is refused. *template* is what stood in the file, without
    defaults: it is what an error shows, since a variable may hold a secret.
    """

    __slots__ = ("template",)

    template: str

    def __new__(cls, text: str, template: str = "${…}") -> Self:
        """Make the text; *template* is shown in its place."""
        self = super().__new__(cls, text)
        self.template = template
        return self


def load(path: str | os.PathLike[str], environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Read a `.toml`, `.yaml`, `.yml` or `.json` file and replace `${VAR}` from *environ*.

    *environ* is `os.environ` where it is left out. Blocks while it reads.

    Raises:
        ConfigurationError: the file cannot be read, is not what its name says, is no table, or
            names a variable that is not set; with the line where the parser tells it.
    """
    file = Path(path)
    parsers: dict[str, Callable[[str, str], Any]] = {
        ".toml": _parse_toml,
        ".json": _parse_json,
        ".yaml": _parse_yaml,
        ".yml": _parse_yaml,
    }
    parser = parsers.get(file.suffix.lower())
    if parser is None:
        expected = "expected a name that ends in .toml, .yaml, .yml or .json"
        raise ConfigurationError(_one(file, expected))
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigurationError(_one(file, f"cannot be read: {reason}")) from error
    except UnicodeDecodeError as error:
        expected = f"expected UTF-8, which byte {error.start} is not"
        raise ConfigurationError(_one(file, expected)) from None
    found = parser(text, str(file))
    if not isinstance(found, dict):
        raise ConfigurationError(_one(file, "expected a table at the top"))
    config: dict[str, Any] = interpolate(found, os.environ if environ is None else environ)
    return config


def _one(path: object, expected: str, suggestion: str = "") -> list[Problem]:
    return [Problem(str(path), "", expected, suggestion)]


def _parse_toml(text: str, path: str) -> Any:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ConfigurationError(_one(path, f"expected TOML: {reason}")) from None


def _parse_json(text: str, path: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands twice")
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ConfigurationError(_one(path, f"expected JSON: {reason}")) from None


def _parse_yaml(text: str, path: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        hint = "pip install postbus[yaml]"
        raise ConfigurationError(_one(path, "reading YAML needs PyYAML", hint)) from error

    class Loader(yaml.SafeLoader):
        """Refuses a key that stands twice, which YAML forbids and PyYAML overlooks."""

        def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002  PyYAML's signature
            seen: set[tuple[str, str]] = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue
                if (key.tag, key.value) in seen:
                    what = f"the key {key.value!r} stands twice"
                    raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
                seen.add((key.tag, key.value))
            return super().construct_mapping(node, deep)

    try:
        return Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        # Not the error's own text, which quotes the line and whatever secret stands there.
        mark = error.problem_mark or error.context_mark
        where = f" (at line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        what = f"expected YAML: {error.problem or error.context}{where}"
        raise ConfigurationError(_one(path, what)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = f"expected YAML: {type(error).__name__}"
        raise ConfigurationError(_one(path, what)) from None


def interpolate(value: Any, environ: Mapping[str, str]) -> Any:
    """Return a copy of *value* in which `${VAR}` and `${VAR:default}` are replaced in all texts.

    `$$` is a `$`; a `$` before anything else stays. A default is taken as it stands, up to the
    `}`. A text with a variable in it becomes an `EnvironmentText`, which settings read as a
    number or boolean where they want one. Keys are left alone. What stands under `errors` and
    `messages` names code: a variable there is refused.

    Raises:
        ConfigurationError: a variable is not set and has no default, or a `${` is no reference.
    """
    problems: list[Problem] = []
    result = _Interpolation(environ, problems).copy(value, (), frozenset())
    if problems:
        raise ConfigurationError(problems)
    return result


class _Interpolation:
    """One pass over a config, with what it found wrong."""

    def __init__(self, environ: Mapping[str, str], problems: list[Problem]) -> None:
        self.environ = environ
        self.problems = problems

    def copy(self, value: Any, path: tuple[str | int, ...], within: frozenset[int]) -> Any:
        """Copy tables and arrays, replacing in their texts; *within* are those around *value*."""
        if id(value) in within:
            self.problems += _one(_join(path), "expected no table within itself")
            return None
        if isinstance(value, str):
            return self.replace(value, path)
        if _is_table(value):
            within |= {id(value)}
            return {key: self.copy(value[key], (*path, str(key)), within) for key in value}
        if _is_array(value):
            within |= {id(value)}
            return [self.copy(each, (*path, i), within) for i, each in enumerate(value)]
        return value

    def replace(self, text: str, path: tuple[str | int, ...]) -> str:
        """Replace the references in one text."""
        names: list[str] = []

        def expand(match: re.Match[str]) -> str:
            name, default = match["name"], match["default"]
            if name is None:
                return self._unnamed(match, path)
            names.append(name)
            if name not in self.environ and default is None:
                hint = f"set it, or write ${{{name}:default}}"
                self.problems += _one(_join(path), f"the variable {name} is not set", hint)
            return self.environ.get(name, default or "")

        result = _REFERENCE.sub(expand, text)
        if not names:
            return result
        below = path[1:] if path[:1] == ("postbus",) else path
        if below[:1] in _CODE:
            expected = "names code, which does not come from the environment"
            self.problems += _one(_join(path), expected, "write it out")
        template = _REFERENCE.sub(lambda it: f"${{{it['name']}}}" if it["name"] else "$", text)
        return EnvironmentText(result, template)

    def _unnamed(self, match: re.Match[str], path: tuple[str | int, ...]) -> str:
        if match[0] != "$$":
            expected = "expected ${VAR} or ${VAR:default} after a ${, or $$ for a $"
            self.problems += _one(_join(path), expected)
        return "$"


def _is_table(value: Any) -> TypeGuard[Mapping[Any, Any]]:
    return isinstance(value, Mapping)


def _is_array(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple)


def _join(path: tuple[str | int, ...]) -> str:
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
            continue
        bare = key if _BARE_KEY(key) else f'"{repr(key)[1:-1]}"'
        text += f".{bare}" if text else bare
    return text


def unwrap(config: Any) -> Any:
    """Return the section of a dict whose only key is `postbus`; anything else as it is."""
    return config["postbus"] if _is_table(config) and set(config) == {"postbus"} else config
