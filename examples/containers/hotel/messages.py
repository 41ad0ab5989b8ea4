"""What can be asked of the hotel."""

from __future__ import annotations

import attrs

from postbus import Command, Query


@attrs.frozen
class BookRoom(Command, name="hotel.book-room"):
    guest: str
    nights: int


@attrs.frozen
class SendConfirmation(Command, name="hotel.mail.send-confirmation"):
    guest: str
    nights: int


@attrs.frozen
class CountBookings(Query[int], name="hotel.count-bookings"):
    """How many rooms are taken."""
