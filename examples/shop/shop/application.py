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
from shop.ledgers import DispatchJournal, Ledger


class Shop(containers.DeclarativeContainer):
    """The names of these providers are the ids that routes and plugins name."""

    __self__: providers.Self[Any] = providers.Self()
    config = providers.Configuration()

    # Any: type checkers do not see through dependency_injector's Container to what is inside.
    postbus: Any = providers.Container(PostbusContainer, config=config.postbus, services=__self__)

    dispatched = providers.Singleton(Ledger, config.shop.dispatched)
    handled = providers.Singleton(Ledger, config.shop.handled)
    journal = providers.Singleton(DispatchJournal, dispatched)
    mail_server = providers.Singleton(MailServer, config.shop.mail_seconds.as_float())

    place_order = providers.Factory(PlaceOrderHandler, handled, postbus.event_bus)
    fulfilment = providers.Factory(Fulfilment, handled, postbus.command_bus)
    correspondence = providers.Factory(Correspondence, handled, postbus.command_bus)
    reserve_stock = providers.Factory(ReserveStockHandler, handled)
    send_confirmation = providers.Factory(SendConfirmationHandler, handled, mail_server)
    send_invoice = providers.Factory(SendInvoiceHandler, handled, mail_server)


@contextmanager
def open_shop(config: Mapping[str, Any]) -> Generator[Postbus]:
    """Give the postbus of a shop that is configured by *config*, and close it at the end."""
    shop = Shop()
    shop.config.from_dict(dict(config))
    try:
        yield shop.postbus.postbus()
    finally:
        shop.shutdown_resources()
