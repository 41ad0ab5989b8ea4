"""Transports by name, through entry points: found when asked for, loaded when used.

A distribution announces its transports in the group `postbus.transports`; each entry names a
`Transport` record. Core knows no list.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from postbus.errors import ConfigurationError, Problem
from postbus.settings import mask, nearest, show
from postbus.transports import Transport

__all__ = ["GROUP", "find_transport", "installed_transports"]

GROUP = "postbus.transports"


def installed_transports() -> tuple[str, ...]:
    """Return the names of all installed transports, sorted; loads none."""
    return tuple(sorted({entry.name for entry in entry_points(group=GROUP)}))


def find_transport(name: str, path: str = "transport") -> Transport:
    """Return the transport that is installed as *name*, and import its client library.

    *path* is where the configuration names it.

    Raises:
        ConfigurationError: it is not installed, two distributions claim the name, or what the
            entry names cannot be loaded or is no `Transport`.
    """
    entries = list(entry_points(group=GROUP, name=name))
    if not entries:
        known = installed_transports()
        # Of a misspelling nobody should be told to install a distribution of that name.
        advice = nearest(name, known) or f"install postbus-{name}"
        expected = f"expected an installed transport ({', '.join(known) or 'none is'})"
        raise ConfigurationError([Problem(path, show(name), expected, advice)])
    if len(entries) > 1:
        owners = " and ".join(sorted(_owner(entry) for entry in entries))
        expected = f"expected one distribution to provide it, and these do: {owners}"
        advice = "uninstall all but one"
        raise ConfigurationError([Problem(path, show(name), expected, advice)])
    (entry,) = entries
    try:
        transport = entry.load()
    except Exception as error:
        expected = f"expected {entry.value} to load: {type(error).__name__}: {mask(str(error))}"
        advice = f"install {_owner(entry)} anew, with its dependencies"
        raise ConfigurationError([Problem(path, show(name), expected, advice)]) from error
    if not isinstance(transport, Transport):
        expected = f"expected {entry.value} to be a Transport, it is a {type(transport).__name__}"
        advice = f"ask the maintainers of {_owner(entry)}"
        raise ConfigurationError([Problem(path, show(name), expected, advice)])
    return transport


def _owner(entry: EntryPoint) -> str:
    """Name the distribution of *entry*; metadata without a name leaves what it points to."""
    # Not `dist.name`: a distribution without a name is None there, a warning or an error, by
    # version of Python.
    if entry.dist is None or "Name" not in entry.dist.metadata:
        return entry.value
    return entry.dist.metadata["Name"]
