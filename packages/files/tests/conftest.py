"""What the tests share: a fresh folder, and the two sides of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from postbus.messages import new_id
from postbus.transports import CommonSettings, WireMessage
from postbus_files import FILES, FilesConsumer, FilesProducer

Make = Callable[..., Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Name a folder that is not there yet."""
    return tmp_path / "queue"


@pytest.fixture
def producer(path: Path) -> Callable[..., FilesProducer]:
    """Return a function that makes producers of the folder."""

    def make(*, max_size_bytes: int = 1000, **settings: Any) -> FilesProducer:
        common = CommonSettings(name="test", max_size_bytes=max_size_bytes)
        return FILES.make_producer(
            FILES.producer_settings(path=str(path), poll_interval=0.001, **settings), common
        )

    return make


@pytest.fixture
def consumer(path: Path) -> Callable[..., FilesConsumer]:
    """Return a function that makes consumers of the folder."""

    def make(
        *, max_size_bytes: int = 1000, guarantee: str | None = None, **settings: Any
    ) -> FilesConsumer:
        common = CommonSettings(
            name="test", max_size_bytes=max_size_bytes, guarantee=guarantee, close_timeout=30.0
        )
        return FILES.make_consumer(
            FILES.consumer_settings(path=str(path), poll_interval=0.001, **settings), common
        )

    return make


@pytest.fixture
def message() -> Callable[..., WireMessage]:
    """Return a function that makes a message of a body."""

    def make(body: bytes = b'{"text":"It works"}', **fields: Any) -> WireMessage:
        return WireMessage(body, {}, new_id(), "shop.echo-text", **fields)

    return make
