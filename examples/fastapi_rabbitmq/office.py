"""An office in FastAPI: pages that give letters to RabbitMQ, and a worker that types them.

uvicorn office:application
postbus worker --app office:open_postbus
curl -X POST http://127.0.0.1:8000/letters/ada
curl http://127.0.0.1:8000/letters/ada
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from fastapi import FastAPI, HTTPException

from postbus import Command, MessageCatalog, Postbus, Query, build
from postbus.config import load
from postbus.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

# The worker's alone: the pages ask it.
DATABASE = os.environ.get("OFFICE_DATABASE", "office.db")


# What is said.


@attrs.frozen
class TypeLetter(Command, name="office.type-letter"):
    to: str


@attrs.frozen
class CountLetters(Query[int], name="office.count-letters"):
    to: str


CATALOG = MessageCatalog()
CATALOG.add(TypeLetter)
CATALOG.add(CountLetters)


# What the worker does: in one transaction with the row of the inbox, which is in the same file,
# so that a letter that comes twice is typed once.

current: ContextVar[sqlite3.Connection] = ContextVar("current")


@contextmanager
def transaction() -> Generator[sqlite3.Connection]:
    connection = sqlite3.connect(DATABASE, timeout=10, isolation_level=None)
    try:
        connection.execute("CREATE TABLE IF NOT EXISTS letters (recipient TEXT)")
        connection.execute("BEGIN IMMEDIATE")
        current.set(connection)
        yield connection
        connection.execute("COMMIT")
    finally:
        # What was not committed is rolled back.
        connection.close()


def type_letter(command: TypeLetter) -> None:
    current.get().execute("INSERT INTO letters VALUES (?)", (command.to,))


def count_letters(query: CountLetters) -> int:
    statement = "SELECT count(*) FROM letters WHERE recipient = ?"
    ((letters,),) = current.get().execute(statement, (query.to,))
    return int(letters)


# The application: `postbus.toml` says where each message is handled.


def open_postbus() -> Postbus:
    services: dict[str, Any] = {
        "transaction": transaction,
        "type_letter": type_letter,
        "count_letters": count_letters,
    }
    return build(load(Path(__file__).with_name("postbus.toml")), services, CATALOG)


@asynccontextmanager
async def lifespan(application: FastAPI) -> AsyncGenerator[None]:
    async with open_postbus() as postbus:
        application.state.postbus = postbus
        yield


application = FastAPI(lifespan=lifespan)


@application.post("/letters/{to}", status_code=202)
async def letter(to: str) -> dict[str, str]:
    # It is answered when RabbitMQ has the letter: on the disks of a quorum queue.
    try:
        await application.state.postbus.command_bus.adispatch(TypeLetter(to))
    except TransportError as error:
        raise HTTPException(503, "the letter was not taken") from error
    return {"letter": "taken"}


@application.get("/letters/{to}")
async def letters(to: str) -> dict[str, int]:
    try:
        typed = await application.state.postbus.query_bus.adispatch(CountLetters(to), timeout=5.0)
    except TransportError as error:
        raise HTTPException(503, "no worker answers") from error
    return {"typed": typed}
