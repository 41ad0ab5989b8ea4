"""What the hotel does. Nothing here knows a container, a configuration, or what is sent."""

from __future__ import annotations

import threading

from hotel.database import Session
from hotel.messages import BookRoom, CountBookings, SendConfirmation
from postbus import CommandBus


class NoRoomLeftError(Exception):
    code = "no-room-left"


class BookRoomHandler:
    """A new one for each unit of work, with that unit's session."""

    def __init__(self, session: Session, commands: CommandBus, rooms: int) -> None:
        self._session = session
        self._commands = commands
        self._rooms = rooms

    def __call__(self, command: BookRoom) -> None:
        self._session.add(command.guest, command.nights)
        self._commands.dispatch(SendConfirmation(command.guest, command.nights))
        if self._session.count() > self._rooms:
            # The booking is rolled back, and the confirmation with it, which waits for the commit.
            raise NoRoomLeftError(command.guest)


class CountBookingsFinder:
    def __init__(self, session: Session) -> None:
        self._session = session

    def __call__(self, query: CountBookings) -> int:
        return self._session.count()


class Mailer:
    """One for the whole application, whichever thread handles a message."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._guests: list[str] = []

    def __call__(self, command: SendConfirmation) -> None:
        with self._changed:
            self._guests.append(command.guest)
            self._changed.notify_all()

    def wait_for(self, count: int) -> list[str]:
        """Return who got mail, as soon as *count* guests have."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._guests) >= count, timeout=30)
            return list(self._guests)
