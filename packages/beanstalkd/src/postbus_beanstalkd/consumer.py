"""Receive the jobs of one or several tubes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from postbus.threaded import ThreadedConsumer
from postbus_beanstalkd._capabilities import capabilities_of
from postbus_beanstalkd._client import Reserved, TubeClient

if TYPE_CHECKING:
    from postbus.transports import CommonSettings
    from postbus_beanstalkd.settings import BeanstalkdConsumerSettings

__all__ = ["BeanstalkdConsumer"]


class BeanstalkdConsumer(ThreadedConsumer[Reserved]):
    """Takes jobs from tubes over one connection of its own.

    A job is held for its time to run, which its sender says (`ttr`) and `extend` begins anew.
    When the consumer dies, the server gives what it held to others at once. Whoever built it
    closes it.
    """

    def __init__(self, settings: BeanstalkdConsumerSettings, common: CommonSettings) -> None:
        client = TubeClient(settings, capabilities_of(settings, common))
        super().__init__(client, close_timeout=common.close_timeout)
