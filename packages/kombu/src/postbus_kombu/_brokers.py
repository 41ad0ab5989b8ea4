"""Which broker serves which URL."""

from __future__ import annotations

from typing import Any

from postbus_kombu._redis import RedisBroker
from postbus_kombu._sqs import SQSBroker
from postbus_kombu._virtual import Broker, LeasingBroker, scheme_of

__all__ = ["broker_of", "leasing_broker_of"]

_LEASING: dict[str, type[LeasingBroker]] = {
    "redis": RedisBroker,
    "rediss": RedisBroker,
    "sqs": SQSBroker,
}


def broker_of(settings: Any) -> Broker:
    """Return the broker that a producer's or consumer's settings name."""
    return _LEASING.get(scheme_of(settings.url), Broker).of(settings)


def leasing_broker_of(settings: Any) -> LeasingBroker:
    """Return the same for one that keeps what a consumer holds."""
    return _LEASING[scheme_of(settings.url)].of(settings)
