"""Bodies that no worker should stumble over: mutated messages, noise, and known tricks.

All of them differ, and so do their ids, so that each can be found again.
"""

from __future__ import annotations

import json
import random
import uuid
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import attrs

from postbus import Command, Envelope, MessageCatalog
from postbus.wire import encode

if TYPE_CHECKING:
    from collections.abc import Iterator

VALID_EVERY = 1_000
MUTATED, NOISE = 0.6, 0.3
# Stands for a new id each time.
_ID = b"00000000-0000-4000-8000-000000000000"
_WHEN = datetime(2026, 2, 28, 23, 59, 59, tzinfo=UTC)


@attrs.frozen
class Inner:
    """A message within a message."""

    word: str
    count: int = 0


@attrs.frozen
class Fuzzed(Command, name="chaos.fuzzed"):
    """Has a field of each kind that a peer can get wrong."""

    number: int
    text: str = "Zoë 📮"
    tags: tuple[str, ...] = ("a", "b")
    price: Decimal = Decimal("12.50")
    at: datetime = _WHEN
    mode: Literal["now", "later"] = "now"
    inner: Inner | None = Inner("inner", 3)
    facts: dict[str, float] = attrs.field(factory=lambda: {"weight": 1.5})
    data: bytes = b"\x00\xff"


CATALOG = MessageCatalog()
CATALOG.add(Fuzzed)

# Written into every field of a message, one at a time.
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**63, 10**30, 1.5, 1e308, "", "\x00", "a" * 5_000, "\ud800"),
    *([], {}, [[[[]]]], {"__class__": "os.system"}, ["x"] * 100, "2026-02-30T00:00:00Z"),
)
NAMES = (
    *("os.system", "builtins.eval", "__main__.Fuzzed", "../chaos.fuzzed", "chaos..fuzzed"),
    *("Chaos.Fuzzed", "chaos.fuzzed ", "chaos.fuzzed\n", "chaos.fuzzed\x00", "x", "😀😀😀"),
    *("postbus.errors.PostbusError", "_benchmarks.Fuzzed", "a." * 200 + "b", "%s%s%s", "${HOME}"),
)
RAW = (
    *(b"", b" ", b"null", b"true", b"0", b'""', b"[]", b"{}", b"[", b"{", b'{"', b"\x00", b"\xff"),
    *(
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
        b"{}{}",
        b"{},",
        b"NaN",
        b"Infinity",
        b"-",
        b"1e999",
    ),
    *(b"[" * 100_000, b'{"a":' * 50_000, b"1" * 100_000, b'"' + b"\\u0000" * 10_000 + b'"'),
    *(
        b"\x80\x04\x95cos\nsystem\n",
        b"!!python/object/apply:os.system []",
        b"<?xml version='1.0'?>",
    ),
    *(b'{"message_name":"chaos.fuzzed"}', b'[["a"],{}]', b'{"id":"1","task":"x","args":[]}'),
    *(
        b"GET / HTTP/1.1\r\n\r\n",
        b"message_name=chaos.fuzzed",
        b'{"\xed\xa0\x80":1}',
        b"\r\n" * 1_000,
    ),
)


def bodies(n: int, seed: int) -> Iterator[bytes]:
    """Yield *n* different bodies, of which every thousandth is valid for sure."""
    chance = random.Random(seed)
    curated = tuple(_curated())
    seen: set[int] = set()
    for number in range(n):
        body = _body(number, chance, curated)
        while hash(body) in seen:
            body += b" "
        seen.add(hash(body))
        yield body


def _body(number: int, chance: random.Random, curated: tuple[bytes, ...]) -> bytes:
    kind = chance.random()
    if number % VALID_EVERY == 0:
        return _valid(number, chance)
    if kind < MUTATED:
        return _mutated(_valid(number, chance), chance)
    if kind < MUTATED + NOISE:
        return chance.randbytes(chance.randrange(8, 400))
    return chance.choice(curated).replace(_ID, str(_id(chance)).encode())


def _id(chance: random.Random) -> uuid.UUID:
    return uuid.UUID(int=chance.getrandbits(128), version=4)


def _valid(number: int, chance: random.Random) -> bytes:
    id_ = _id(chance)
    headers = {"correlation_id": str(id_)} if number % 2 else {}
    message = Fuzzed(number)
    return encode(Envelope(message, id=str(id_), created_at=_WHEN, headers=headers))


def _mutated(body: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.5:
        return _rewritten(json.loads(body), chance)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(body))
        end = min(len(body), at + chance.randrange(1, 20))
        match chance.randrange(6):
            case 0:
                body = body[:at] + bytes([body[at] ^ 1 << chance.randrange(8)]) + body[at + 1 :]
            case 1:
                body = body[:at] + body[end:] or b"{}"
            case 2:
                body = body[:end] + body[at:end] + body[end:]
            case 3:
                body = body[:at] + chance.randbytes(end - at) + body[at:]
            case 4:
                body = body[: at + 1]
            case _:
                body = (
                    body[:at] + chance.choice((b"9" * 40, b'"', b"\\u", b"{", b"],")) + body[at:]
                )
    return body


def _rewritten(message: dict[str, Any], chance: random.Random) -> bytes:
    """Return *message* with a value somewhere in it replaced, dropped or added."""
    table = message
    while True:
        inner = [value for value in table.values() if isinstance(value, dict) and value]
        if not inner or chance.random() < 0.4:
            break
        table = chance.choice(inner)
    key, value = chance.choice(list(table)), chance.choice(VALUES)
    match chance.randrange(5):
        case 0:
            del table[key]
        case 1:
            table[chance.choice(("unknown", "", "__proto__", "number", "name"))] = value
        case 2:
            table[key] = [table[key]]
        case _:
            table[key] = value
    return json.dumps(message).encode()


def _curated() -> Iterator[bytes]:
    yield from RAW
    whole = json.loads(_valid(1, random.Random(1)))
    whole["uuid"] = _ID.decode()
    for name in NAMES:
        yield json.dumps({**whole, "message_name": name}).encode()
    for value in VALUES:
        for key in whole:
            yield json.dumps({**whole, key: value}).encode()
        for key in whole["payload"]:
            payload = {**whole["payload"], key: value}
            yield json.dumps({**whole, "payload": payload}).encode()
