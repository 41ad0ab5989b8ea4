"""What is said in the shop. Every name is fixed here, so a class may move or be renamed."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from uuid import UUID

import attrs

from postbus import Command, Event


@attrs.frozen
class Customer:
    name: str
    email: str
    company: str | None = None


@attrs.frozen
class Line:
    sku: str
    quantity: int
    unit_price: Decimal


@attrs.frozen
class PlaceOrder(Command, name="shop.order.place", key="order_id"):
    order_id: UUID
    customer: Customer
    lines: tuple[Line, ...]
    placed_at: datetime


@attrs.frozen
class OrderPlaced(Event, name="shop.order.placed", key="order_id"):
    order_id: UUID
    customer: Customer
    lines: tuple[Line, ...]
    total: Decimal
    placed_at: datetime


@attrs.frozen
class ReserveStock(Command, name="shop.stock.reserve", key="order_id"):
    order_id: UUID
    lines: tuple[Line, ...]


@attrs.frozen
class SendConfirmation(Command, name="shop.mail.send-confirmation", key="order_id"):
    order_id: UUID
    to: str
    total: Decimal


@attrs.frozen
class SendInvoice(Command, name="shop.mail.send-invoice", key="order_id"):
    order_id: UUID
    to: str
    company: str
    total: Decimal
