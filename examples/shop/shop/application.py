"""The shop's container: handlers with what they need, and postbus as a part of it."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from dependency_injector import containers, providers

from postbus import Postbus
from postbus.containers import PostbusContainer
from shop.handlers import (
    Correspondence,
    Fulfilment,
    MailServer,
    PlaceOrderHandler,
    ReserveStockHandler,
    SendConfirmationHandler,
    SendInvoiceHandler,
)
from shop.ledgers import DispatchJournal, Ledgers, Session


class Shop(containers.DeclarativeContainer):
    """The names of these providers are the ids that routes and plugins name."""

    __self__: providers.Self[Any] = providers.Self()
    config = providers.Configuration()

    # Any: type checkers do not see through dependency_injector's Container to what is inside.
    postbus: Any = providers.Container(PostbusContainer, config=config.postbus, services=__self__)

    ledgers = providers.ThreadSafeSingleton(Ledgers, config.shop.ledgers)
    # One for each unit of work, shared by the handlers in it.
    session = providers.ContextLocalSingleton(Session, ledgers)
    journal = providers.Singleton(DispatchJournal, session.provider)
    mail_server = providers.Singleton(MailServer, config.shop.mail_seconds.as_float())

    place_order = providers.Factory(PlaceOrderHandler, session, postbus.event_bus)
    fulfilment = providers.Factory(Fulfilment, session, postbus.command_bus)
    correspondence = providers.Factory(Correspondence, session, postbus.command_bus)
    reserve_stock = providers.Factory(ReserveStockHandler, session)
    send_confirmation = providers.Factory(SendConfirmationHandler, session, mail_server)
    send_invoice = providers.Factory(SendInvoiceHandler, session, mail_server)


@contextmanager
def open_shop(config: Mapping[str, Any]) -> Generator[Postbus]:
    """Give the postbus of a shop that is configured by *config*, and close it at the end."""
    shop = Shop()
    shop.config.from_dict(dict(config))
    try:
        yield shop.postbus.postbus()
    finally:
        shop.shutdown_resources()
        shop.ledgers().close()
