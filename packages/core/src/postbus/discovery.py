"""Transports and stores by name, through entry points: found when asked for, loaded when used.

A distribution announces its transports in the group `postbus.transports`, each entry naming a
`Transport` record, and its stores in `postbus.stores`, each naming a `StoreKind`. Of transports
core knows no list; of stores it has two itself.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from postbus.errors import ConfigurationError, Problem
from postbus.settings import mask, nearest, show
from postbus.stores import MEMORY, SQLITE, StoreKind
from postbus.transports import Transport

__all__ = [
    "GROUP",
    "STORES_GROUP",
    "find_store",
    "find_transport",
    "installed_stores",
    "installed_transports",
]

T = TypeVar("T")
GROUP = "postbus.transports"
STORES_GROUP = "postbus.stores"
_OWN_STORES: dict[str, StoreKind] = {kind.name: kind for kind in (MEMORY, SQLITE)}


def installed_transports() -> tuple[str, ...]:
    """Return the names of all installed transports, sorted; loads none."""
    return tuple(sorted({entry.name for entry in entry_points(group=GROUP)}))


def installed_stores() -> tuple[str, ...]:
    """Return the names of all kinds of stores, core's included, sorted; loads none."""
    return tuple(sorted({*_OWN_STORES, *(e.name for e in entry_points(group=STORES_GROUP))}))


def find_transport(name: str, path: str = "transport") -> Transport:
    """Return the transport that is installed as *name*, and import its client library.

    *path* is where the configuration names it.

    Raises:
        ConfigurationError: it is not installed, two distributions claim the name, or what the
            entry names cannot be loaded or is no `Transport`.
    """
    return _find(GROUP, name, path, Transport, installed_transports())  # type: ignore[type-abstract]  # it is not made here


def find_store(name: str, path: str = "store") -> StoreKind:
    """Return the kind of store that is called *name*: core's own, or an installed one.

    *path* is where the configuration names it.

    Raises:
        ConfigurationError: as for transports.
    """
    own = _OWN_STORES.get(name)
    if own is not None:
        return own
    return _find(STORES_GROUP, name, path, StoreKind, installed_stores())  # type: ignore[type-abstract]  # as above


def _find(group: str, name: str, path: str, kind: type[T], known: tuple[str, ...]) -> T:
    entries = list(entry_points(group=group, name=name))
    what = "transport" if group == GROUP else "store"
    if not entries:
        # Of a misspelling nobody should be told to install a distribution of that name.
        advice = nearest(name, known) or f"install postbus-{name}"
        expected = f"expected an installed {what} ({', '.join(known) or 'none is'})"
        raise ConfigurationError([_problem(path, name, expected, advice)])
    if len(entries) > 1:
        owners = " and ".join(sorted(_owner(entry) for entry in entries))
        expected = f"expected one distribution to provide it, and these do: {owners}"
        advice = "uninstall all but one"
        raise ConfigurationError([_problem(path, name, expected, advice)])
    (entry,) = entries
    try:
        found = entry.load()
    except Exception as error:
        expected = f"expected {entry.value} to load: {type(error).__name__}: {mask(str(error))}"
        advice = f"install {_owner(entry)} anew, with its dependencies"
        raise ConfigurationError([_problem(path, name, expected, advice)]) from error
    if not isinstance(found, kind):
        expected = (
            f"expected {entry.value} to be a {kind.__name__}, it is a {type(found).__name__}"
        )
        advice = f"ask the maintainers of {_owner(entry)}"
        raise ConfigurationError([_problem(path, name, expected, advice)])
    return found


def _problem(path: str, name: str, expected: str, advice: str) -> Problem:
    return Problem(path, show(name), expected, advice, rule="not-installed")


def _owner(entry: EntryPoint) -> str:
    """Name the distribution of *entry*; metadata without a name leaves what it points to."""
    # Not `dist.name`: a distribution without a name is None there, a warning or an error, by
    # version of Python.
    if entry.dist is None or "Name" not in entry.dist.metadata:
        return entry.value
    return entry.dist.metadata["Name"]
