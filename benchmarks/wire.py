"""What a message costs on its way to bytes and back, against msgspec with Structs.

Every row encodes an envelope (id, name, payload, metadata, time) built beforehand, decodes the
bytes and reaches for the message. A dict payload is the one field of a message class here and
the payload itself in the rivals: the bytes differ by the name of that field and our headers.
"""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import attrs
import msgspec
from _harness import Table, peer, run, timed

from postbus import Command, Envelope, MessageCatalog
from postbus.wire import decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

METADATA = {"tenant": "north", "attempt": 1, "trial": False}
PLACED = datetime(2024, 5, 17, 9, 30, 12, 250_000, tzinfo=UTC)
LIMIT = "msgspec Struct"
CATTRS = "cattrs + orjson"
PYDANTIC = "pydantic"


def payload(lines: int) -> dict[str, Any]:
    """Return about 120 bytes of JSON, and 80 for each line."""
    entries = [
        {"article": f"A-{i:05}", "quantity": i % 9 + 1, "price": i * 0.25, "text": "t" * 20}
        for i in range(lines)
    ]
    note = "please ring twice, the bell is faint"
    return {"customer": 4711, "currency": "EUR", "express": True, "note": note, "lines": entries}


PAYLOADS = {"200 B": payload(1), "10 kB": payload(116)}


@attrs.frozen
class Record(Command, name="bench.record"):
    data: dict[str, Any]


@attrs.frozen
class Address:
    street: str
    city: str
    code: str


@attrs.frozen
class Payment:
    method: str
    amount: float


@attrs.frozen
class PlaceOrder(Command, name="bench.place-order"):
    order_id: UUID
    customer: str
    quantity: int
    total: float
    placed: datetime
    address: Address
    payment: Payment


class AddressStruct(msgspec.Struct):
    street: str
    city: str
    code: str


class PaymentStruct(msgspec.Struct):
    method: str
    amount: float


class PlaceOrderStruct(msgspec.Struct):
    order_id: UUID
    customer: str
    quantity: int
    total: float
    placed: datetime
    address: AddressStruct
    payment: PaymentStruct


class DictStruct(msgspec.Struct):
    id: UUID
    name: str
    payload: dict[str, Any]
    metadata: dict[str, Any]
    created_at: datetime


class OrderStruct(msgspec.Struct):
    id: UUID
    name: str
    payload: PlaceOrderStruct
    metadata: dict[str, Any]
    created_at: datetime


@attrs.define
class DictAttrs:
    id: UUID
    name: str
    payload: dict[str, Any]
    metadata: dict[str, Any]
    created_at: datetime


@attrs.define
class OrderAttrs:
    id: UUID
    name: str
    payload: PlaceOrder
    metadata: dict[str, Any]
    created_at: datetime


@dataclasses.dataclass(slots=True)
class Stamped:
    id: UUID
    name: str
    payload: object
    metadata: dict[str, Any]
    created_at: datetime


def order(cls: Callable[..., Any], address: type, payment: type) -> Any:
    return cls(
        order_id=uuid4(),
        customer="c-000981",
        quantity=3,
        total=129.95,
        placed=PLACED,
        address=address("12 Mill Lane", "Leeds", "LS1 4AP"),
        payment=payment("card", 129.95),
    )


def stamped(cls: Callable[..., Any], body: object) -> Any:
    """Build a rival's envelope the way everybody does."""
    return cls(
        id=uuid4(),
        name="bench.record",
        payload=body,
        metadata=METADATA,
        created_at=datetime.now(UTC),
    )


def through_postbus(message: Command) -> Callable[[int], float]:
    catalog = MessageCatalog()
    catalog.add(type(message))
    envelope = Envelope(message, metadata=METADATA)

    def round_trip(envelope: Envelope) -> Any:
        return decode(encode(envelope), catalog).message

    assert round_trip(envelope) == message
    return timed(round_trip, envelope)


def through_msgspec(cls: type, body: object) -> Callable[[int], float]:
    write = msgspec.json.Encoder().encode
    read: Callable[[bytes], Any] = msgspec.json.Decoder(cls).decode
    return timed(lambda envelope: read(write(envelope)), stamped(cls, body))


def through_cattrs(format_: str, cls: type, body: object) -> Callable[[int], float]:
    converter = peer(f"cattrs.preconf.{format_}").make_converter()
    # The preconfigured converters write a UUID as text and leave reading it to the user.
    converter.register_structure_hook(UUID, lambda value, _: UUID(value))
    dumps, loads = converter.dumps, converter.loads
    return timed(lambda envelope: loads(dumps(envelope), cls), stamped(cls, body))


def through_pydantic(body: object) -> Callable[[int], float]:
    model = peer("pydantic").create_model(
        "Model",
        id=UUID,
        name=str,
        payload=dict[str, Any],
        metadata=dict[str, Any],
        created_at=datetime,
    )
    read = model.model_validate_json
    return timed(lambda envelope: read(envelope.model_dump_json()), stamped(model, body))


def dict_payload(size: str) -> Table:
    body = PAYLOADS[size]
    row = "encode + decode"
    table = Table(f"dict payload of {size}")
    table.limit(LIMIT, lambda: through_msgspec(DictStruct, body))
    table.row(row, lambda: through_postbus(Record(body)), against=LIMIT, at_most=1.3)
    table.limit(CATTRS, lambda: through_cattrs("orjson", DictAttrs, body))
    table.faster(row, than=CATTRS, at_least=3.5)
    table.limit(PYDANTIC, lambda: through_pydantic(body))
    table.faster(row, than=PYDANTIC, at_least=2)
    return table


def typed_payload() -> Table:
    """Compare an attrs class of five fields and two nested classes with Structs of that shape."""
    message = order(PlaceOrder, Address, Payment)
    structs = order(PlaceOrderStruct, AddressStruct, PaymentStruct)
    row = "encode + decode"
    table = Table("typed payload")
    table.limit(LIMIT, lambda: through_msgspec(OrderStruct, structs))
    table.row(row, lambda: through_postbus(message), against=LIMIT, at_most=3)
    table.row(
        "cattrs + msgspec",
        lambda: through_cattrs("msgspec", OrderAttrs, message),
        against=LIMIT,
    )
    table.row(CATTRS, lambda: through_cattrs("orjson", OrderAttrs, message), against=LIMIT)
    return table


def identified(message: object) -> tuple[str, datetime]:
    """Make the envelope and ask for both, which are not made before."""
    envelope = Envelope(message)
    return envelope.id, envelope.created_at


def identity() -> Table:
    table = Table("id and time of a message")
    usual = "dataclass + uuid4 + now"
    message = Record({})
    table.limit(usual, lambda: timed(lambda body: stamped(Stamped, body), message))
    row = "Envelope(message), id and time read"
    table.row(row, lambda: timed(identified, message), against=usual, at_most=0.3)
    table.row("Envelope(message), nothing read", lambda: timed(Envelope, message), against=usual)
    return table


def tables() -> Iterator[Table]:
    for size in PAYLOADS:
        yield dict_payload(size)
    yield typed_payload()
    yield identity()


if __name__ == "__main__":
    run(__doc__, tables, rounds=15)
