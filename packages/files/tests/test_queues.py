"""Files that wait can be counted, looked at and removed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from postbus.errors import ConnectionFailedError
from postbus.transports import WireMessage
from postbus_files import FilesConsumer, FilesProducer

MakeProducer = Callable[..., FilesProducer]
MakeConsumer = Callable[..., FilesConsumer]
MakeMessage = Callable[..., WireMessage]


def seen(consumer: FilesConsumer, path: Path, **which: Any) -> list[bytes]:
    return [each.body for each in consumer.peek(str(path), **which)]


def test_a_folder_that_is_not_there_yet_is_empty(consumer: MakeConsumer, path: Path) -> None:
    """Whoever looks first makes it."""
    assert consumer().count() == {str(path): 0}
    assert consumer().purge(str(path)) == 0
    assert (path / "ready").is_dir()


def test_what_expired_or_is_not_due_does_not_wait(
    producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage, path: Path
) -> None:
    """And what is due does, although nobody has received since."""
    now, looker = datetime.now(UTC), consumer()
    producer().send_many(
        [
            message(b"over", expires_at=now - timedelta(seconds=1)),
            message(b"not yet over", expires_at=now + timedelta(hours=1)),
            message(b"late", delay=600.0),
            message(b"soon", delay=0.001),
        ]
    )
    while looker.count() == {str(path): 1}:
        os.sched_yield()

    assert sorted(seen(looker, path)) == [b"not yet over", b"soon"]
    assert looker.purge(str(path)) == 2
    assert looker.count() == {str(path): 0}
    assert len([*(path / "delayed").iterdir()]) == 1


def test_what_a_dead_consumer_held_waits_again(
    producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage, path: Path
) -> None:
    """When its lease has run out, also where nobody receives."""
    producer().send(message(b"held"))

    async def die() -> None:
        assert len(await consumer(lease=0.2).receive(1)) == 1

    looker = consumer()
    asyncio.run(die())
    while looker.count() == {str(path): 0}:
        os.sched_yield()
    assert seen(looker, path) == [b"held"]


def test_a_long_queue_is_seen_a_part_at_a_time(
    producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage, path: Path
) -> None:
    """In the order in which it would be received: the most urgent first."""
    producer().send_many([message(b"%d" % number) for number in range(8)])
    producer().send(message(b"urgent", priority=9))
    looker = consumer()

    assert seen(looker, path, limit=3) == [b"urgent", b"0", b"1"]
    assert seen(looker, path, offset=7) == [b"6", b"7"]
    assert seen(looker, path, offset=9) == []


def test_what_is_no_message_is_neither_shown_nor_in_the_way(
    producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage, path: Path
) -> None:
    """A folder among the files, or one that is too large."""
    producer().send(message(b"1"))
    (path / "ready" / "0-folder").mkdir()
    (path / "ready" / "0-large").write_bytes(bytes(2_000))
    looker = consumer()

    assert seen(looker, path) == [b"1"]
    assert looker.purge(str(path)) == 2
    assert [each.name for each in (path / "ready").iterdir()] == ["0-folder"]


def test_a_folder_that_cannot_be_used_is_an_error(consumer: MakeConsumer, path: Path) -> None:
    """And not an empty queue (T13)."""
    path.write_text("no folder")
    for call in (lambda: consumer().count(), lambda: consumer().purge(str(path))):
        with pytest.raises(ConnectionFailedError):
            call()
