"""beanstalkd for postbus: a small, fast work queue, with priorities, delays and leases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from postbus_beanstalkd.consumer import BeanstalkdConsumer
from postbus_beanstalkd.producer import BeanstalkdProducer
from postbus_beanstalkd.settings import BeanstalkdConsumerSettings, BeanstalkdProducerSettings
from postbus_beanstalkd.transport import BEANSTALKD, BeanstalkdTransport

if TYPE_CHECKING:
    from postbus_beanstalkd.containers import BeanstalkdContainer

__all__ = [
    "BEANSTALKD",
    "BeanstalkdConsumer",
    "BeanstalkdConsumerSettings",
    "BeanstalkdContainer",
    "BeanstalkdProducer",
    "BeanstalkdProducerSettings",
    "BeanstalkdTransport",
]


def __getattr__(name: str) -> object:
    """Import the container when it is asked for: only then is dependency_injector needed."""
    if name == "BeanstalkdContainer":
        from postbus_beanstalkd.containers import BeanstalkdContainer

        return BeanstalkdContainer
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
