"""The hotel's container: handlers with what they need, and postbus as a part of it."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from dependency_injector import containers, providers

from hotel.database import Session, open_database
from hotel.handlers import BookRoomHandler, CountBookingsFinder, Mailer
from postbus import CommandBus
from postbus.containers import PostbusContainer


class Hotel(containers.DeclarativeContainer):
    """The names of these providers are the ids that the configuration uses."""

    __self__: providers.Self[Any] = providers.Self()
    config = providers.Configuration(strict=True)
    # Any: type checkers do not see through dependency_injector's Container to what is inside.
    postbus: Any = providers.Container(PostbusContainer, config=config.postbus, services=__self__)

    # Resource: opened once, closed by shutdown_resources().
    database = providers.Resource(open_database, config.hotel.database)
    # ContextLocalSingleton: one for each unit of work, shared by the handlers in it.
    session = providers.ContextLocalSingleton(Session, database)
    # Factory: a new one for each unit of work.
    book_room = providers.Factory(
        BookRoomHandler, session, postbus.command_bus, config.hotel.rooms.as_int()
    )
    overbook = providers.Factory(BookRoomHandler, session, postbus.command_bus, rooms=1_000)
    count_bookings = providers.Factory(CountBookingsFinder, session)
    # Singleton: one for all.
    mailer = providers.ThreadSafeSingleton(Mailer)
    # A bus beside the three main ones, as a provider of its own.
    admin_bus: providers.Provider[CommandBus] = postbus.postbus.provided.bus.call("admin")


@contextmanager
def open_hotel(config: Mapping[str, Any]) -> Generator[Hotel]:
    """Give a hotel that is configured by *config*, and close all of it at the end."""
    hotel = Hotel()
    hotel.config.from_dict(dict(config))
    hotel.init_resources()
    try:
        hotel.postbus().check()
        yield hotel
    finally:
        hotel.shutdown_resources()
