"""Receive the jobs of one or several functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from postbus.threaded import ThreadedConsumer
from postbus_gearman._capabilities import capabilities_of
from postbus_gearman._client import FunctionClient
from postbus_gearman._lines import Receipt

if TYPE_CHECKING:
    from postbus.transports import CommonSettings
    from postbus_gearman.settings import GearmanConsumerSettings

__all__ = ["GearmanConsumer"]


class GearmanConsumer(ThreadedConsumer[Receipt]):
    """Works the jobs of its functions, from all of its servers at once.

    A job is held for as long as the connection that took it lives: a server that loses it queues
    the job again at once, and a handler that hangs keeps it. Whoever built it closes it.
    """

    def __init__(self, settings: GearmanConsumerSettings, common: CommonSettings) -> None:
        client = FunctionClient(settings, capabilities_of(settings, common))
        super().__init__(client, close_timeout=common.close_timeout)
