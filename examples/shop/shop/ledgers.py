"""Append-only files of what was dispatched and what was handled: one JSON object a line."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from postbus import DispatchContext
from postbus.messages import message_info


class ShopMessage(Protocol):
    """Every message of the shop is about one order."""

    @property
    def order_id(self) -> UUID: ...


class Ledger:
    """Several threads and processes append; a line is one write, so lines never mix."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def append(self, message: ShopMessage, **facts: object) -> None:
        name, id_ = message_info(type(message)).name, str(message.order_id)
        line = json.dumps({"name": name, "id": id_, "pid": os.getpid(), **facts})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


class DispatchJournal:
    """A plugin: notes each message that was dispatched in this process, and how long it took.

    What a worker received was dispatched elsewhere and is noted there.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def attach(self, bus: Any) -> None:
        bus.wrap(self.note)

    @contextmanager
    def note(self, context: DispatchContext) -> Generator[None]:
        started = time.perf_counter()
        yield
        if context.source is None:
            self._ledger.append(context.message, seconds=time.perf_counter() - started)
