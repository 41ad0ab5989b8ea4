"""What is said."""

from __future__ import annotations

import attrs

from postbus import Command, Query


@attrs.frozen
class Reserve(Command, name="warehouse.reserve"):
    article: str


@attrs.frozen
class CountStock(Query[int], name="warehouse.count-stock"):
    article: str
