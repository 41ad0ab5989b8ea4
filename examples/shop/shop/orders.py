"""The orders that customers left, read from a file."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

from shop.messages import Customer, Line, PlaceOrder


def read_orders(path: Path) -> list[PlaceOrder]:
    """Read a file with one order a line."""
    return [read_order(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_order(text: str) -> PlaceOrder:
    order = json.loads(text)
    return PlaceOrder(
        UUID(order["order_id"]),
        Customer(**order["customer"]),
        tuple(
            Line(line["sku"], line["quantity"], Decimal(line["unit_price"]))
            for line in order["lines"]
        ),
        datetime.fromisoformat(order["placed_at"]),
    )
