"""What is done, by Django's own means."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from django.db import connection, transaction

from stock.models import Reservation

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Generator

    from stock.messages import CountStock, Reserve

PIECES = 2


class OutOfStockError(Exception):
    """Nothing of it is left."""


@contextmanager
def unit_of_work() -> Generator[sqlite3.Connection]:
    """Be one transaction; what it gives is what the inbox writes its row with."""
    with transaction.atomic():
        yield connection.connection


def count_stock(query: CountStock) -> int:
    return PIECES - Reservation.objects.filter(article=query.article).count()


def reserve(command: Reserve) -> None:
    if Reservation.objects.filter(article=command.article).count() == PIECES:
        raise OutOfStockError(command.article)
    Reservation.objects.create(article=command.article)
