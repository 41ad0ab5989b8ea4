"""Which of the stores of an application a command is about."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from postbus.errors import ConfigurationError, Problem
from postbus.settings import nearest

if TYPE_CHECKING:
    from postbus.runtime import Postbus
    from postbus.stores import Store

__all__ = ["chosen_stores", "store_option"]

store_option = click.option("--store", metavar="NAME", help="Only this store. Default: all.")


def chosen_stores(postbus: Postbus, name: str | None) -> dict[str, Store]:
    """Return the stores that are meant, by name.

    Raises:
        ConfigurationError: there is none, or none of that name.
    """
    known = dict(postbus.stores)
    if name is None and known:
        return known
    if name is None or name not in known:
        advice = nearest(name or "", known) or "add [postbus.stores.NAME]"
        path = f"stores.{name}" if name else "stores"
        raise ConfigurationError([Problem(path, "", "expected a section of stores", advice)])
    return {name: known[name]}
