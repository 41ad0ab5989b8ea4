"""What a web server answered when it did not take a message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from postbus.errors import RejectedError

if TYPE_CHECKING:
    from postbus.messages import Envelope

__all__ = ["StatusError"]


class StatusError(RejectedError):
    """Raised when the other side answered with a status that is no 2xx.

    *status* is that number. *excerpt* is the beginning of the body, at most 200 printable
    characters, with what looks like a secret replaced.
    """

    def __init__(
        self, message: str, envelope: Envelope | None = None, status: int = 0, excerpt: str = ""
    ) -> None:
        super().__init__(message, envelope)
        self.status = status
        self.excerpt = excerpt
        self.args: tuple[Any, ...] = (message, envelope, status, excerpt)
