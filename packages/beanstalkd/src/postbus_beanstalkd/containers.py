"""The container of `beanstalkd`, for applications that wire with dependency_injector."""

from __future__ import annotations

from typing import ClassVar

from postbus.containers import TransportContainer
from postbus.transports import Transport
from postbus_beanstalkd.transport import BEANSTALKD

__all__ = ["BeanstalkdContainer"]


class BeanstalkdContainer(TransportContainer):
    """Producer, consumer, plugin, router and buses over beanstalkd, from one section."""

    transport: ClassVar[Transport] = BEANSTALKD
