"""The buses: `postbus.toml` says where each message is handled."""

from __future__ import annotations

from pathlib import Path

from postbus import build
from postbus.config import load
from stock.handlers import count_stock, reserve, unit_of_work

postbus = build(
    load(Path(__file__).parent.with_name("postbus.toml")),
    {"transaction": unit_of_work, "reserve": reserve, "count_stock": count_stock},
)
