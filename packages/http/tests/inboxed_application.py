"""An application for servers of several processes: effects and inbox are in one SQLite file.

The environment says which: `SHOP_FOLDER`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import attrs

from postbus import Command, MessageCatalog, build
from postbus_http import MessageEndpoint

FOLDER = Path(os.environ["SHOP_FOLDER"])


@attrs.frozen
class Place(Command, name="inboxed.place"):
    """To be handled once."""

    number: int


connection: ContextVar[sqlite3.Connection] = ContextVar("connection")


@contextmanager
def unit() -> Generator[sqlite3.Connection]:
    """Be one transaction."""
    opened = sqlite3.connect(FOLDER / "shop.db", timeout=60, isolation_level=None)
    opened.execute("BEGIN IMMEDIATE")
    connection.set(opened)
    try:
        yield opened
        opened.execute("COMMIT")
    except BaseException:
        opened.execute("ROLLBACK")
        raise
    finally:
        opened.close()


def place(message: Place) -> None:
    """Leave a row, with the process that has written it."""
    row = (message.number, os.getpid())
    connection.get().execute("INSERT INTO effects VALUES (?, ?)", row)


catalog = MessageCatalog()
catalog.add(Place)
postbus = build(
    {
        "stores": {"main": {"store": "sqlite", "path": str(FOLDER / "shop.db")}},
        "command_bus": {
            "unit_of_work": "unit",
            "router": {"routes": {"inboxed.place": "place"}},
        },
    },
    {"unit": unit, "place": place},
    catalog,
)
application = MessageEndpoint(postbus, allow_any_peer=True, inbox="main")
