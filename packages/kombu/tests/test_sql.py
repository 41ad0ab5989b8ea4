"""kombu's broker of tables, on each database that it was tried with."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from postbus import build
from postbus.errors import ConfigurationError, ConnectionFailedError, RejectedError
from postbus.promises import Promise
from postbus.transports import CommonSettings, Reply, WireMessage
from postbus_kombu import KOMBU

if os.environ.get("CI"):
    import sqlalchemy
else:
    sqlalchemy = pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")

# It is kombu that uses what SQLAlchemy will remove.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")
MakeMessage = Callable[..., WireMessage]
PATIENCE = 30.0
SERVERS = {
    "postgresql": os.environ.get(
        "POSTBUS_TEST_POSTGRESQL", "postgresql+psycopg2://postgres@127.0.0.1:5432/test"
    ),
    "mariadb": os.environ.get("POSTBUS_TEST_MARIADB", "mysql+pymysql://root@127.0.0.1:3306/test"),
}


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Name a database that is there, as one must be that the environment names."""
    if request.param == "sqlite":
        return f"sqla+sqlite:///{tmp_path}/queue.db"
    server = SERVERS[request.param]
    try:
        engine = sqlalchemy.create_engine(server)
        engine.connect().close()
        engine.dispose()
    except Exception as error:
        if f"POSTBUS_TEST_{request.param.upper()}" in os.environ:
            raise
        pytest.skip(f"{request.param} does not answer: {type(error).__name__}")
    return f"sqla+{server}"


def sides(url: str, queue: str) -> tuple[Any, Any]:
    common = CommonSettings(name="test", close_timeout=PATIENCE)
    producer = KOMBU.make_producer(KOMBU.producer_settings(url=url, queue=queue), common)
    consumer = KOMBU.make_consumer(KOMBU.consumer_settings(url=url, queues=(queue,)), common)
    return producer, consumer


def test_messages_go_through_and_can_be_counted(
    url: str, queue_name: str, message: MakeMessage
) -> None:
    """With whatever is in them, in both directions, and what waits can be removed."""
    sender, receiver = sides(url, queue_name)
    largest = sender.capabilities.max_size_bytes
    bodies = [b"\x00\xff", "grüß".encode(), b"x" * largest]
    with pytest.raises(RejectedError):
        sender.send(message(b"x" * (largest + 1)))
    sender.send_many([message(body) for body in bodies])
    assert receiver.count() == {queue_name: 3}

    async def scenario() -> tuple[list[bytes], Reply]:
        received = [await receiver.receive(1) for _ in bodies]
        reply: Promise[Reply] = Promise()
        sender.request(message(b"?"), reply)
        (query,) = await receiver.receive(1)
        query.reply(Reply(b"42"))
        answer = await reply
        return [delivery.body for (delivery,) in received], answer

    seen, answer = asyncio.run(asyncio.wait_for(scenario(), PATIENCE))
    assert sorted(seen) == sorted(bodies)
    assert answer == Reply(b"42")
    sender.send(message())
    assert (receiver.purge(queue_name), receiver.count()) == (1, {queue_name: 0})
    asyncio.run(receiver.aclose())
    sender.close()


def test_what_was_taken_is_gone(url: str, queue_name: str, message: MakeMessage) -> None:
    """It is at most once, and says so: at-least-once is refused."""
    sender, receiver = sides(url, queue_name)
    sender.send(message(b"1"))

    async def take() -> bytes:
        (delivery,) = await receiver.receive(1)
        body: bytes = delivery.body
        await receiver.aclose()
        return body

    assert asyncio.run(asyncio.wait_for(take(), PATIENCE)) == b"1"
    assert sides(url, queue_name)[1].count() == {queue_name: 0}
    sender.close()
    demanding = {"transport": "kombu", "url": url, "guarantee": "at-least-once"}
    for side in ("consumers", "producers"):
        with pytest.raises(ConfigurationError, match="at-least-once"):
            build({side: {"main": demanding}}, {})


def test_an_error_shows_no_password(queue_name: str, message: MakeMessage) -> None:
    """The URL within kombu's URL may have one."""
    url = "sqla+postgresql+psycopg2://somebody:hunter2@127.0.0.1:1/test"
    sender, _ = sides(url, queue_name)
    with pytest.raises(ConnectionFailedError) as caught:
        sender.send(message())
    sender.close()
    assert "127.0.0.1" in str(caught.value)
    assert "hunter2" not in f"{caught.value} {caught.value!r} {sender!r}"


def test_what_a_database_refuses_is_an_error_of_ours(
    tmp_path: Path, queue_name: str, message: MakeMessage
) -> None:
    """Whatever it is, and without the message in its text."""
    (tmp_path / "queue.db").write_bytes(b"no database" * 1000)
    sender, _ = sides(f"sqla+sqlite:///{tmp_path}/queue.db", queue_name)
    with pytest.raises(ConnectionFailedError, match="could not send") as caught:
        sender.send(message(b"hunter2"))
    sender.close()
    assert "hunter2" not in str(caught.value)
