"""Receive the messages that are files in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from postbus.threaded import ThreadedConsumer
from postbus_files._capabilities import capabilities_of
from postbus_files._client import FolderClient, Held
from postbus_files._folder import Folder

if TYPE_CHECKING:
    from postbus.transports import CommonSettings
    from postbus_files.settings import FilesConsumerSettings

__all__ = ["FilesConsumer"]


class FilesConsumer(ThreadedConsumer[Held]):
    """Takes messages from a folder; any number of consumers and hosts may share it.

    A message is held by a lease: what its holder has not settled, and not extended, when the
    lease runs out is found by the timer of any consumer and delivered again. Whoever built it
    closes it.
    """

    def __init__(self, settings: FilesConsumerSettings, common: CommonSettings) -> None:
        capabilities = capabilities_of(settings, common.max_size_bytes, common.guarantee)
        folder = Folder(Path(settings.path), sync=settings.sync)
        client = FolderClient(folder, settings, capabilities)
        super().__init__(client, close_timeout=common.close_timeout)
