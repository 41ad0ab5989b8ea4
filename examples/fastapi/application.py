"""A warehouse in FastAPI: pages that dispatch messages, and an endpoint that takes them.

export WAREHOUSE_KEY=whsec_$(openssl rand -base64 32)
uvicorn application:application --http postbus_http.protocol:LimitedHTTPProtocol
curl -X POST http://127.0.0.1:8000/reservations/lamp
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
from fastapi import FastAPI, HTTPException

from postbus import Command, MessageCatalog, Query, build
from postbus.config import load
from postbus.errors import HandlerFailedError, RejectedError
from postbus_http import MessageEndpoint

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

DATABASE = os.environ.get("WAREHOUSE_DATABASE", "warehouse.db")
PIECES = 2


# What is said.


@attrs.frozen
class Reserve(Command, name="warehouse.reserve"):
    article: str


@attrs.frozen
class CountStock(Query[int], name="warehouse.count-stock"):
    article: str


class OutOfStockError(Exception):
    """Nothing of it is left."""


CATALOG = MessageCatalog()
CATALOG.add(Reserve)
CATALOG.add(CountStock)


# What is done: in one transaction with the row of the inbox, which is in the same file.

current: ContextVar[sqlite3.Connection] = ContextVar("current")


@contextmanager
def transaction() -> Generator[sqlite3.Connection]:
    connection = sqlite3.connect(DATABASE, timeout=10, isolation_level=None)
    try:
        connection.execute("CREATE TABLE IF NOT EXISTS reservations (article TEXT)")
        connection.execute("BEGIN IMMEDIATE")
        current.set(connection)
        yield connection
        connection.execute("COMMIT")
    finally:
        # What was not committed is rolled back.
        connection.close()


def count_stock(query: CountStock) -> int:
    statement = "SELECT count(*) FROM reservations WHERE article = ?"
    ((reserved,),) = current.get().execute(statement, (query.article,))
    return PIECES - int(reserved)


def reserve(command: Reserve) -> None:
    if not count_stock(CountStock(command.article)):
        raise OutOfStockError(command.article)
    current.get().execute("INSERT INTO reservations VALUES (?)", (command.article,))


# The application: `postbus.toml` says where each message is handled.

postbus = build(
    load(Path(__file__).with_name("postbus.toml")),
    {"transaction": transaction, "reserve": reserve, "count_stock": count_stock},
    CATALOG,
)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    async with postbus:
        yield


application = FastAPI(lifespan=lifespan)
application.mount(
    "/messages",
    MessageEndpoint(postbus, signing_keys=[os.environ["WAREHOUSE_KEY"]], inbox="main"),
)


@application.get("/stock/{article}")
async def stock(article: str) -> dict[str, int]:
    return {"left": await postbus.query_bus.adispatch(CountStock(article))}


@application.post("/reservations/{article}", status_code=201)
async def reservation(article: str) -> dict[str, int]:
    try:
        await postbus.command_bus.adispatch(Reserve(article))
    except (HandlerFailedError, RejectedError) as error:
        # The one where it was handled here, the other where it was sent.
        raise HTTPException(409, f"{article}: out of stock") from error
    return {"left": await postbus.query_bus.adispatch(CountStock(article))}
