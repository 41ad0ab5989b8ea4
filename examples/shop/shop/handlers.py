"""What the shop does. Nothing here knows where it runs, or what is sent and what is not."""

from __future__ import annotations

import time
from decimal import Decimal

from postbus import CommandBus, EventBus
from shop.ledgers import Ledger
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
    def __init__(self, ledger: Ledger, events: EventBus) -> None:
        self._ledger = ledger
        self._events = events

    def __call__(self, command: PlaceOrder) -> None:
        total = sum((line.quantity * line.unit_price for line in command.lines), Decimal(0))
        self._ledger.append(command, handler="place_order", total=str(total))
        self._events.dispatch(
            OrderPlaced(
                command.order_id, command.customer, command.lines, total, command.placed_at
            )
        )


class Fulfilment:
    def __init__(self, ledger: Ledger, commands: CommandBus) -> None:
        self._ledger = ledger
        self._commands = commands

    def __call__(self, event: OrderPlaced) -> None:
        self._ledger.append(event, handler="fulfilment")
        self._commands.dispatch(ReserveStock(event.order_id, event.lines))


class Correspondence:
    def __init__(self, ledger: Ledger, commands: CommandBus) -> None:
        self._ledger = ledger
        self._commands = commands

    def __call__(self, event: OrderPlaced) -> None:
        self._ledger.append(event, handler="correspondence")
        customer = event.customer
        self._commands.dispatch(SendConfirmation(event.order_id, customer.email, event.total))
        if customer.company is not None:
            self._commands.dispatch(
                SendInvoice(event.order_id, customer.email, customer.company, event.total)
            )


class ReserveStockHandler:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __call__(self, command: ReserveStock) -> None:
        quantity = sum(line.quantity for line in command.lines)
        self._ledger.append(command, handler="reserve_stock", quantity=quantity)


class SendConfirmationHandler:
    def __init__(self, ledger: Ledger, mail_server: MailServer) -> None:
        self._ledger = ledger
        self._mail_server = mail_server

    def __call__(self, command: SendConfirmation) -> None:
        self._mail_server.send(command.to, f"Your order: {command.total} EUR")
        self._ledger.append(command, handler="send_confirmation")


class SendInvoiceHandler:
    def __init__(self, ledger: Ledger, mail_server: MailServer) -> None:
        self._ledger = ledger
        self._mail_server = mail_server

    def __call__(self, command: SendInvoice) -> None:
        self._mail_server.send(command.to, f"Invoice to {command.company}")
        self._ledger.append(command, handler="send_invoice")
