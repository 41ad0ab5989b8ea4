"""What a producer or consumer can do as it is configured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from postbus.transports import Capabilities
from postbus_http.settings import HTTPProducerSettings

if TYPE_CHECKING:
    from postbus_http.settings import HTTPConsumerSettings

__all__ = ["capabilities_of"]


def capabilities_of(
    settings: HTTPProducerSettings | HTTPConsumerSettings,
    max_size_bytes: int,
    guarantee: str | None = None,
) -> Capabilities:
    """Return what HTTP can do: answer, and tell the sender that a message was not handled.

    Whether that comes back is the sender's doing, so a producer says it where it has `resend`.
    A consumer says it of its own part: what it did not acknowledge is never answered with 2xx,
    unless *guarantee* is at-most-once.
    """
    if isinstance(settings, HTTPProducerSettings):
        acknowledge, comes_back = True, settings.resend is not None
    else:
        acknowledge = comes_back = guarantee != "at-most-once"
    return Capabilities(
        acknowledge=acknowledge,
        redeliver_on_crash=comes_back,
        queries=True,
        max_size_bytes=max_size_bytes,
    )
