"""A folder as a durable queue for postbus: no broker, and messages survive crashes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from postbus_files.consumer import FilesConsumer
from postbus_files.producer import FilesProducer
from postbus_files.settings import FilesConsumerSettings, FilesProducerSettings
from postbus_files.transport import FILES, FilesTransport

if TYPE_CHECKING:
    from postbus_files.containers import FilesContainer

__all__ = [
    "FILES",
    "FilesConsumer",
    "FilesConsumerSettings",
    "FilesContainer",
    "FilesProducer",
    "FilesProducerSettings",
    "FilesTransport",
]


def __getattr__(name: str) -> object:
    """Import the container when it is asked for: only then is dependency_injector needed."""
    if name == "FilesContainer":
        from postbus_files.containers import FilesContainer

        return FilesContainer
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
