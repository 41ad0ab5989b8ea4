"""What the shop does. Nothing here knows where it runs, or what is sent and what is not."""

from __future__ import annotations

import time
from decimal import Decimal

from postbus import CommandBus, EventBus
from shop.ledgers import Session
from shop.messages import OrderPlaced, PlaceOrder, ReserveStock, SendConfirmation, SendInvoice


class MailServer:
    """Stands for the conversation with a mail server, which takes its time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def send(self, to: str, subject: str) -> None:
        assert "@" in to
        assert subject
        time.sleep(self._seconds)


class PlaceOrderHandler:
    def __init__(self, session: Session, events: EventBus) -> None:
        self._session = session
        self._events = events

    def __call__(self, command: PlaceOrder) -> None:
        total = sum((line.quantity * line.unit_price for line in command.lines), Decimal(0))
        self._session.handled(command, "place_order", f"{total} EUR")
        self._events.dispatch(
            OrderPlaced(
                command.order_id, command.customer, command.lines, total, command.placed_at
            )
        )


class Fulfilment:
    def __init__(self, session: Session, commands: CommandBus) -> None:
        self._session = session
        self._commands = commands

    def __call__(self, event: OrderPlaced) -> None:
        self._session.handled(event, "fulfilment")
        self._commands.dispatch(ReserveStock(event.order_id, event.lines))


class Correspondence:
    def __init__(self, session: Session, commands: CommandBus) -> None:
        self._session = session
        self._commands = commands

    def __call__(self, event: OrderPlaced) -> None:
        self._session.handled(event, "correspondence")
        customer = event.customer
        self._commands.dispatch(SendConfirmation(event.order_id, customer.email, event.total))
        if customer.company is not None:
            self._commands.dispatch(
                SendInvoice(event.order_id, customer.email, customer.company, event.total)
            )


class ReserveStockHandler:
    def __init__(self, session: Session) -> None:
        self._session = session

    def __call__(self, command: ReserveStock) -> None:
        quantity = sum(line.quantity for line in command.lines)
        self._session.handled(command, "reserve_stock", f"{quantity} pieces")


class SendConfirmationHandler:
    def __init__(self, session: Session, mail_server: MailServer) -> None:
        self._session = session
        self._mail_server = mail_server

    def __call__(self, command: SendConfirmation) -> None:
        self._mail_server.send(command.to, f"Your order: {command.total} EUR")
        self._session.handled(command, "send_confirmation")


class SendInvoiceHandler:
    def __init__(self, session: Session, mail_server: MailServer) -> None:
        self._session = session
        self._mail_server = mail_server

    def __call__(self, command: SendInvoice) -> None:
        self._mail_server.send(command.to, f"Invoice to {command.company}")
        self._session.handled(command, "send_invoice")
