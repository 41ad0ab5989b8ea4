"""The container of the transport `files`, for applications that wire with dependency_injector."""

from __future__ import annotations

from typing import ClassVar

from postbus.containers import TransportContainer
from postbus.transports import Transport
from postbus_files.transport import FILES

__all__ = ["FilesContainer"]


class FilesContainer(TransportContainer):
    """Producer, consumer, plugin, router and buses over a folder, from one section."""

    transport: ClassVar[Transport] = FILES
