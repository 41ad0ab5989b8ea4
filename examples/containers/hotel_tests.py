"""Tests of an application: a producer replaced, a service replaced, a new container for each.

cd examples/containers && python -m pytest hotel_tests.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dependency_injector import providers
from hotel.application import Hotel, open_hotel
from hotel.messages import BookRoom, SendConfirmation

from postbus.config import load
from postbus.errors import HandlerFailedError
from postbus.testing import RecordingProducer

CONFIG = Path(__file__).with_name("memory.toml")


@pytest.fixture
def hotel(tmp_path: Path) -> Iterator[Hotel]:
    config: dict[str, Any] = load(CONFIG, {"HOTEL_DATABASE": str(tmp_path / "hotel.db")})
    with open_hotel(config) as opened:
        yield opened


def test_a_booking_sends_a_confirmation(hotel: Hotel) -> None:
    """A producer of the configuration is replaced, also on buses that exist already."""
    postbus = hotel.postbus().postbus()
    with postbus.replacing("mail", RecordingProducer()) as mail:
        postbus.command_bus.dispatch(BookRoom("Ada", nights=3))

    [sent] = mail.decoded(postbus.catalog)
    assert sent.message == SendConfirmation("Ada", nights=3)


def test_a_full_hotel_sends_none(hotel: Hotel) -> None:
    postbus = hotel.postbus().postbus()
    with postbus.replacing("mail", RecordingProducer()) as mail:
        for guest in ("Ada", "Grace"):
            postbus.command_bus.dispatch(BookRoom(guest, nights=3))
        with pytest.raises(HandlerFailedError) as caught:
            postbus.command_bus.dispatch(BookRoom("Edsger", nights=3))

    assert caught.value.code == "no-room-left"
    assert len(mail.messages) == 2


def test_a_handler_may_be_replaced(hotel: Hotel) -> None:
    """A provider is overridden before its route is first used."""
    booked: list[Any] = []
    replaced: Any = hotel.book_room
    replaced.override(providers.Object(booked.append))
    hotel.postbus().command_bus().dispatch(BookRoom("Ada", nights=3))

    assert booked == [BookRoom("Ada", nights=3)]
