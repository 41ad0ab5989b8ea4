"""Which names mean which classes: the only way from a name on the wire to a class.

A name that arrives selects an entry or nothing. Nothing is imported because of it, and a kind is
never read from a message.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import attrs

from postbus.errors import ConfigurationError, Problem
from postbus.messages import Command, Event, MessageKind, Query, message_info

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["CatalogEntry", "MessageCatalog"]

_SHORTEST_NAME = 3
_KINDS = frozenset(MessageKind)


@attrs.frozen
class CatalogEntry:
    """One message class under its name, with what a receiver has to know about it."""

    cls: type
    name: str
    kind: MessageKind
    key: str | None = None
    version: int = 1
    aliases: tuple[str, ...] = ()


class MessageCatalog:
    """The message classes that an application knows, by name and by class.

    Fill it while the application is built; reading it is safe from any thread.

    Args:
        modules: modules, or their dotted paths, whose commands, events and queries are added.

    Raises:
        ConfigurationError: as `add_module`.
    """

    def __init__(self, modules: Iterable[str | ModuleType] = ()) -> None:
        self._by_name: dict[str, CatalogEntry] = {}
        self._by_class: dict[type, CatalogEntry] = {}
        # What the wire format has worked out for these entries.
        self._compiled: dict[str, Any] = {}
        for module in modules:
            self.add_module(module)

    def add(
        self,
        cls: type,
        *,
        name: str | None = None,
        kind: MessageKind | str | None = None,
        key: str | None = None,
        version: int | None = None,
        aliases: Sequence[str] = (),
    ) -> None:
        """Make *cls* known under a name; what is left out is what the class statement says.

        A class that is in already is described anew, under the same name.

        Raises:
            ConfigurationError: another class has the name or an alias, the class is known under
                another name, a name is shorter than three characters, or there is no kind.
        """
        info = message_info(cls)
        given = (
            info.aliases if not aliases else (aliases,) if isinstance(aliases, str) else aliases
        )
        name = info.name if name is None else name
        kind = info.kind if kind is None else kind
        problems = self._problems(cls, name, kind, given)
        if problems:
            raise ConfigurationError(problems)
        entry = CatalogEntry(
            cls,
            name,
            MessageKind(str(kind)),
            info.key if key is None else key,
            info.version if version is None else version,
            tuple(dict.fromkeys(alias for alias in given if alias != name)),
        )
        self._by_name = {n: known for n, known in self._by_name.items() if known.cls is not cls}
        self._by_class[cls] = entry
        self._by_name.update(dict.fromkeys((name, *entry.aliases), entry))
        # A decode that runs meanwhile keeps what it finds in the old one.
        self._compiled = {}

    def _problems(
        self, cls: type, name: str, kind: object, aliases: Iterable[str]
    ) -> list[Problem]:
        problems: list[Problem] = []
        for each in (name, *aliases):
            known = self._by_name.get(each)
            if known is not None and known.cls is not cls:
                expected = f"a name that {_dotted(known.cls)} does not have"
                problems.append(Problem(f"messages.{each}", _dotted(cls), expected))
            if len(each) < _SHORTEST_NAME:
                expected = f"a name of at least {_SHORTEST_NAME} characters"
                problems.append(Problem("messages", repr(each), expected))
        if kind not in _KINDS:
            expected = "a kind: command, event or query"
            suggestion = "derive the class from Command, Event or Query, or add it with kind="
            problems.append(Problem(f"messages.{name}", repr(kind), expected, suggestion))
        before = self._by_class.get(cls)
        if before is not None and before.name != name:
            expected = f"one name for a class, and it has {before.name!r}; others are aliases"
            problems.append(Problem(f"messages.{name}", _dotted(cls), expected))
        return problems

    def add_module(self, module: str | ModuleType) -> None:
        """Add the commands, events and queries that a module and its submodules define.

        A path is imported; submodules count once something has imported them, and classes made
        inside a function do not.

        Raises:
            ConfigurationError: the module cannot be imported, or as `add`, all at once.
        """
        path = module.__name__ if isinstance(module, ModuleType) else module
        if path not in sys.modules:
            try:
                import_module(path)
            except Exception as error:
                expected = f"a module that can be imported ({type(error).__name__}: {error})"
                raise ConfigurationError([Problem("messages", path, expected)]) from error
        problems: list[Problem] = []
        for cls in _declared_in(path):
            try:
                self.add(cls)
            except ConfigurationError as error:
                problems += error.problems
        if problems:
            raise ConfigurationError(problems)

    def find(self, name: str) -> CatalogEntry | None:
        """Return the entry that *name* means, by name or alias; None for no such name."""
        return self._by_name.get(name)

    def entry(self, cls: type) -> CatalogEntry | None:
        """Return the entry of exactly *cls*, not of its parents; None where it is unknown."""
        return self._by_class.get(cls)

    def names(self) -> tuple[str, ...]:
        """Return the names in the order they were added, without aliases."""
        return tuple(entry.name for entry in self)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[CatalogEntry]:
        return iter(tuple(self._by_class.values()))

    def __len__(self) -> int:
        return len(self._by_class)


def _declared_in(path: str) -> list[type]:
    """Find the message classes of a module and its submodules, nested ones included."""
    inside = f"{path}."
    found: dict[type, None] = {}
    waiting: list[type] = [Query, Event, Command]
    while waiting:
        cls = waiting.pop()
        waiting += reversed(cls.__subclasses__())
        module = cls.__module__
        if (module == path or module.startswith(inside)) and _is_in_place(cls):
            found[cls] = None
    return list(found)


def _is_in_place(cls: type) -> bool:
    """Tell whether *cls* stands where its name says.

    attrs builds slotted classes anew, and both stand in `__subclasses__`; so do the leftovers of
    a reloaded module.
    """
    there: object = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        there = getattr(there, name, None)
    return there is cls


def _dotted(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
