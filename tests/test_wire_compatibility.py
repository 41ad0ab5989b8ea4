"""What other systems and earlier releases wrote is read, and what we write stays as it is.

The files in `wire/` were written by hand from the format's description: `php-*` as the PHP system
writes, `v1-*` as postbus does. They are never made from the code's output.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import attrs
import pytest

from postbus import Command, Envelope, Event, MessageCatalog, MessageKind
from postbus.wire import decode, encode

FOLDER = Path(__file__).parent / "wire"
RATIO = 0.1


@attrs.frozen
class RegisterUser(Command, name="shop.register-user"):
    name: str
    home: str
    age: int
    newsletter: bool


@attrs.frozen
class NightlyReport(Command, name="shop.nightly-report"):
    pass


@attrs.frozen
class UserRegistered(Event, name="shop.user-registered"):
    name: str


class Colour(Enum):
    RED = "red"


class Size(IntEnum):
    LARGE = 2


@attrs.frozen
class Line:
    sku: str
    quantity: int


@attrs.frozen
class Everything(Event, name="shop.everything", version=3):
    nothing: None
    yes: bool
    count: int
    huge: int
    ratio: float
    text: str
    raw: bytes
    price: Decimal
    id: UUID
    moment: datetime
    elsewhere: datetime
    day: date
    hour: time
    lasts: timedelta
    colour: Colour
    size: Size
    mode: Literal["fast", "slow"]
    pair: tuple[str, int]
    many: tuple[int, ...]
    names: list[str]
    by_number: dict[int, str]
    only: set[str]
    maybe: int | None
    either: int | str
    line: Line
    anything: dict[str, Any]


USER = UUID("9d1f5a3e-7f1c-4d56-8a5b-2f9a1f0c7e11")
HEADERS: dict[str, Any] = {
    "correlation_id": str(USER),
    "causation_id": str(USER),
    "deadline": "2017-03-13T12:55:10Z",
    "attempt": 2,
    "done": ["shop.project_view", "shop.mail#2"],
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "reply_to": "postbus.reply.7f3a-1",
    "x-later": {"kept": [1, 2.5, None]},
}
COMMAND = Envelope(
    RegisterUser("Zoë O'Neil", "https://example.com/zoe", age=33, newsletter=False),
    id=str(USER),
    created_at=datetime(2017, 3, 13, 12, 54, 40, 123456, tzinfo=UTC),
    metadata={"tenant": "north", "attempt": 1, "trial": False, "weight": 0.5},
)
EMPTY = Envelope(
    NightlyReport(),
    id="0b0a9080-7060-4504-9030-201000ffeedd",
    created_at=datetime(2017, 3, 13, 12, 54, 40, tzinfo=UTC),
)
SWITCHED = Envelope(
    UserRegistered("Zoë"),
    id="3c4ad5d2-46a5-4a51-9d4b-0a2dbd6b25fa",
    created_at=datetime(2017, 3, 13, 12, 54, 40, 1, tzinfo=UTC),
    metadata={"handled-async": True},
)
FIELDS = Envelope(
    Everything(
        nothing=None,
        yes=True,
        count=-7,
        huge=2**65,
        ratio=RATIO,
        text='snow ☃ "quoted" \\ \n',
        raw=b"\x00\x01\xff",
        price=Decimal("19.90"),
        id=USER,
        moment=datetime(2024, 5, 17, 9, 30, 12, 250000, tzinfo=UTC),
        elsewhere=datetime(
            2024, 5, 17, 15, 0, 12, tzinfo=timezone(timedelta(hours=5, minutes=30))
        ),
        day=date(2024, 5, 17),
        hour=time(9, 30, 12),
        lasts=timedelta(days=1, seconds=2, milliseconds=500),
        colour=Colour.RED,
        size=Size.LARGE,
        mode="fast",
        pair=("a", 1),
        many=(1, 2, 3),
        names=["a", "b"],
        by_number={1: "one", -2: "minus two"},
        only={"x"},
        maybe=None,
        either="text",
        line=Line("A-1", 2),
        anything={"a": [1, None, {"b": False}]},
    ),
    id="5e1c39d5-8a4b-4a64-b2f3-93e0c6f4b3aa",
    created_at=datetime(2024, 5, 17, 9, 30, 12, 250000, tzinfo=UTC),
    headers={"schema": 3},
)
PHP = {"php-command": COMMAND, "php-empty-arrays": EMPTY, "php-async-switch": SWITCHED}
OURS = {
    "v1-command": COMMAND,
    "v1-empty": EMPTY,
    "v1-headers": SWITCHED.evolve(headers=HEADERS),
    "v1-fields": FIELDS,
}


@pytest.fixture(scope="module")
def catalog() -> MessageCatalog:
    catalog = MessageCatalog()
    for cls in (RegisterUser, NightlyReport, UserRegistered, Everything):
        catalog.add(cls)
    return catalog


def golden(name: str) -> bytes:
    return (FOLDER / f"{name}.json").read_bytes().rstrip(b"\n")


def test_every_file_is_looked_at() -> None:
    """A golden file that no test reads guards nothing."""
    assert {path.stem for path in FOLDER.iterdir()} == {*PHP, *OURS}


@pytest.mark.parametrize(("name", "expected"), [*PHP.items(), *OURS.items()])
def test_it_is_read(name: str, expected: Envelope, catalog: MessageCatalog) -> None:
    """W01, C18, T09: every field as it was meant."""
    assert decode(golden(name), catalog) == expected


@pytest.mark.parametrize(("name", "envelope"), OURS.items())
def test_it_is_written_byte_for_byte(name: str, envelope: Envelope) -> None:
    """W01: keys in this order, no blanks, UTC with six digits and no zone."""
    assert encode(envelope) == golden(name)


@pytest.mark.parametrize("name", OURS)
def test_it_is_forwarded_byte_for_byte(name: str, catalog: MessageCatalog) -> None:
    """What was read and not touched goes on as it came, headers of later versions included."""
    assert encode(decode(golden(name), catalog)) == golden(name)


def test_the_kind_is_the_catalogues(catalog: MessageCatalog) -> None:
    """No file says it, and no file could (T06, A6)."""
    assert decode(golden("php-command"), catalog).kind is MessageKind.COMMAND
    assert decode(golden("php-async-switch"), catalog).kind is MessageKind.EVENT
