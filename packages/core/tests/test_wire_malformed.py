"""Bytes that are no message: each kind of fault by name, and hundreds of thousands by chance.

`POSTBUS_FUZZ=200000` sets how many mutated bodies are tried; by default it is a tenth.
"""

from __future__ import annotations

import os
import random
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbus.catalog import MessageCatalog
from postbus.errors import DecodeError, EncodeError
from postbus.messages import Command, Envelope, Event
from postbus.wire import MAX_DEPTH, MAX_DIGITS, Reason, decode, encode

MUTATIONS = int(os.environ.get("POSTBUS_FUZZ", "20000"))
ID = "0f0e0d0c-0b0a-4908-8706-050403020100"


@attrs.frozen
class Line:
    sku: str
    quantity: int


@attrs.frozen
class PlaceOrder(Command, name="shop.place-order"):
    number: int
    lines: tuple[Line, ...] = ()
    note: str | None = None


@attrs.frozen
class Noted(Event, name="shop.noted", aliases=("shop.note",)):
    data: dict[str, Any]
    id: UUID
    when: datetime
    price: float


CATALOG = MessageCatalog()
for _cls in (PlaceOrder, Noted):
    CATALOG.add(_cls)

NAME = b'"message_name":"shop.place-order"'
UUID_ = b'"uuid":"0f0e0d0c-0b0a-4908-8706-050403020100"'
PAYLOAD = b'"payload":{"number":1}'
METADATA = b'"metadata":{}'
CREATED_AT = b'"created_at":"2024-05-17T12:00:00.000000"'
PARTS = (NAME, UUID_, PAYLOAD, METADATA, CREATED_AT)


def body(*parts: bytes) -> bytes:
    return b"{" + b",".join(parts or PARTS) + b"}"


def replaced(old: bytes, new: bytes) -> bytes:
    """Write a good body with one part replaced."""
    assert old in body()
    return body().replace(old, new)


def payload(written: bytes) -> bytes:
    return replaced(PAYLOAD, b'"payload":' + written)


def number(written: bytes) -> bytes:
    return payload(b'{"number":' + written + b"}")


def headers(written: bytes) -> bytes:
    return body(*PARTS, b'"headers":' + written)


DEEP = MAX_DEPTH + 1
MALFORMED: dict[str, tuple[Reason, bytes]] = {
    "empty": (Reason.MALFORMED, b""),
    "blank": (Reason.MALFORMED, b" \n\t"),
    "nul bytes": (Reason.MALFORMED, b"\0" * 20),
    "cut short": (Reason.MALFORMED, body()[:-1]),
    "cut in a string": (Reason.MALFORMED, body()[:-4]),
    "trailing text": (Reason.MALFORMED, body() + b"x"),
    "two objects": (Reason.MALFORMED, body() * 2),
    "trailing comma": (Reason.MALFORMED, body()[:-1] + b",}"),
    "single quotes": (Reason.MALFORMED, body().replace(b'"', b"'")),
    "comment": (Reason.MALFORMED, b"/**/" + body()),
    "python literals": (Reason.MALFORMED, number(b"None")),
    "control character in a string": (Reason.MALFORMED, replaced(b"shop.", b"shop\n")),
    "unknown escape": (Reason.MALFORMED, replaced(b"shop.", b"shop\\x")),
    "half a surrogate in the name": (Reason.MALFORMED, replaced(b"shop.", b"\\ud800")),
    "half a surrogate in the payload": (
        Reason.MALFORMED,
        payload(b'{"number":1,"note":"\\udc00"}'),
    ),
    "swapped surrogates": (Reason.MALFORMED, payload(b'{"number":1,"note":"\\udc00\\ud800"}')),
    "NaN": (Reason.MALFORMED, number(b"NaN")),
    "Infinity": (Reason.MALFORMED, number(b"-Infinity")),
    "1e400": (Reason.MALFORMED, number(b"1e400")),
    "hexadecimal": (Reason.MALFORMED, number(b"0x10")),
    "leading zero": (Reason.MALFORMED, number(b"01")),
    "leading plus": (Reason.MALFORMED, number(b"+1")),
    "NaN in metadata": (Reason.MALFORMED, replaced(METADATA, b'"metadata":{"a":NaN}')),
    "1e400 in metadata": (
        Reason.INVALID_METADATA,
        replaced(METADATA, b'"metadata":{"a":1e400}'),
    ),
    "NaN in headers": (Reason.MALFORMED, headers(b'{"v":1,"x":NaN}')),
    "1e400 in headers": (Reason.INVALID_HEADERS, headers(b'{"v":1,"x":1e400}')),
    "not UTF-8 in the payload": (
        Reason.NOT_UTF8,
        payload(b'{"number":1,"note":"\xff"}'),
    ),
    "not UTF-8 in a key": (Reason.NOT_UTF8, payload(b'{"number":1,"\xc3":1}')),
    "overlong UTF-8": (Reason.NOT_UTF8, replaced(b"shop.", b"\xc0\xaf")),
    "surrogate in UTF-8": (Reason.NOT_UTF8, payload(b'{"number":1,"note":"\xed\xa0\x80"}')),
    "beyond Unicode": (Reason.NOT_UTF8, payload(b'{"number":1,"note":"\xf4\x90\x80\x80"}')),
    "Latin-1": (Reason.NOT_UTF8, payload('{"number":1,"note":"Zoë"}'.encode("latin-1"))),
    "UTF-16": (Reason.NOT_UTF8, body().decode().encode("utf-16")),
    "UTF-16 without a mark": (Reason.MALFORMED, body().decode().encode("utf-16-le")),
    "byte order mark": (Reason.BOM, b"\xef\xbb\xbf" + body()),
    "null": (Reason.NOT_AN_OBJECT, b"null"),
    "a number": (Reason.NOT_AN_OBJECT, b"5"),
    "a text": (Reason.NOT_AN_OBJECT, b'"shop.place-order"'),
    "an array": (Reason.NOT_AN_OBJECT, b"[]"),
    "an array of messages": (Reason.NOT_AN_OBJECT, b"[" + body() + b"]"),
    "a Celery body": (Reason.NOT_AN_OBJECT, b'[["a"],{}]'),
    "an empty object": (Reason.MISSING_FIELD, b"{}"),
    "no name": (Reason.MISSING_FIELD, body(*PARTS[1:])),
    "no uuid": (Reason.MISSING_FIELD, body(NAME, *PARTS[2:])),
    "no payload": (Reason.MISSING_FIELD, body(NAME, UUID_, METADATA, CREATED_AT)),
    "no metadata": (Reason.MISSING_FIELD, body(NAME, UUID_, PAYLOAD, CREATED_AT)),
    "no created_at": (Reason.MISSING_FIELD, body(*PARTS[:-1])),
    "unknown key": (Reason.UNKNOWN_FIELD, body(*PARTS, b'"options":[]')),
    "a kind": (Reason.UNKNOWN_FIELD, body(*PARTS, b'"kind":"event"')),
    "key in capitals": (Reason.UNKNOWN_FIELD, body(*PARTS, b'"UUID":1')),
    "name is null": (Reason.INVALID_NAME, replaced(NAME, b'"message_name":null')),
    "name is a number": (Reason.INVALID_NAME, replaced(NAME, b'"message_name":5')),
    "name is an array": (Reason.INVALID_NAME, replaced(NAME, b'"message_name":["shop"]')),
    "name is empty": (Reason.INVALID_NAME, replaced(NAME, b'"message_name":""')),
    "name is short": (Reason.INVALID_NAME, replaced(NAME, b'"message_name":"ab"')),
    "uuid is null": (Reason.INVALID_UUID, replaced(UUID_, b'"uuid":null')),
    "uuid is a number": (Reason.INVALID_UUID, replaced(UUID_, b'"uuid":1')),
    "uuid is short": (Reason.INVALID_UUID, replaced(UUID_, b'"uuid":"0f0e"')),
    "uuid with a line break": (Reason.INVALID_UUID, replaced(b'0100"', b'0100\\n"')),
    "uuid with underscores": (Reason.INVALID_UUID, replaced(b"0f0e0d0c-", b"0f0e0d0c_")),
    "payload is null": (Reason.INVALID_PAYLOAD, payload(b"null")),
    "payload is a text": (Reason.INVALID_PAYLOAD, payload(b'"x"')),
    "payload is a number": (Reason.INVALID_PAYLOAD, payload(b"1")),
    "payload is a list": (Reason.INVALID_PAYLOAD, payload(b"[1]")),
    "payload is a list of objects": (Reason.INVALID_PAYLOAD, payload(b'[{"number":1}]')),
    "payload lacks a field": (Reason.INVALID_PAYLOAD, payload(b"{}")),
    "payload has a field too many": (
        Reason.INVALID_PAYLOAD,
        payload(b'{"number":1,"admin":true}'),
    ),
    "text for an int": (Reason.INVALID_PAYLOAD, number(b'"1"')),
    "bool for an int": (Reason.INVALID_PAYLOAD, number(b"true")),
    "float for an int": (Reason.INVALID_PAYLOAD, number(b"1.0")),
    "object for a list": (
        Reason.INVALID_PAYLOAD,
        payload(b'{"number":1,"lines":{"sku":"a","quantity":1}}'),
    ),
    "list for an object": (
        Reason.INVALID_PAYLOAD,
        payload(b'{"number":1,"lines":[["a",1]]}'),
    ),
    "wrong type deep inside": (
        Reason.INVALID_PAYLOAD,
        payload(b'{"number":1,"lines":[{"sku":"a","quantity":null}]}'),
    ),
    "metadata is null": (Reason.INVALID_METADATA, replaced(METADATA, b'"metadata":null')),
    "metadata is a list": (Reason.INVALID_METADATA, replaced(METADATA, b'"metadata":[1]')),
    "metadata is a text": (Reason.INVALID_METADATA, replaced(METADATA, b'"metadata":"a"')),
    "null in metadata": (Reason.INVALID_METADATA, replaced(METADATA, b'"metadata":{"a":null}')),
    "array in metadata": (Reason.INVALID_METADATA, replaced(METADATA, b'"metadata":{"a":[]}')),
    "object in metadata": (Reason.INVALID_METADATA, replaced(METADATA, b'"metadata":{"a":{}}')),
    "empty key in metadata": (Reason.INVALID_METADATA, replaced(METADATA, b'"metadata":{"":1}')),
    "created_at is null": (Reason.INVALID_CREATED_AT, replaced(CREATED_AT, b'"created_at":null')),
    "created_at is a number": (
        Reason.INVALID_CREATED_AT,
        replaced(CREATED_AT, b'"created_at":1715947200'),
    ),
    "created_at is a date": (
        Reason.INVALID_CREATED_AT,
        replaced(CREATED_AT, b'"created_at":"2024-05-17"'),
    ),
    "created_at is nonsense": (
        Reason.INVALID_CREATED_AT,
        replaced(CREATED_AT, b'"created_at":"yesterday"'),
    ),
    "created_at has a 30th of February": (Reason.INVALID_CREATED_AT, replaced(b"05-17", b"02-30")),
    "created_at is before the year 1": (
        Reason.INVALID_CREATED_AT,
        replaced(b"2024-05-17T12:00:00.000000", b"0001-01-01T00:00:00+14:00"),
    ),
    "headers are null": (Reason.INVALID_HEADERS, headers(b"null")),
    "headers are a list": (Reason.INVALID_HEADERS, headers(b"[]")),
    "headers are a text": (Reason.INVALID_HEADERS, headers(b'"v"')),
    "another version": (Reason.UNSUPPORTED_VERSION, headers(b'{"v":2}')),
    "version is a text": (Reason.UNSUPPORTED_VERSION, headers(b'{"v":"1"}')),
    "version is a bool": (Reason.UNSUPPORTED_VERSION, headers(b'{"v":true}')),
    "version is a float": (Reason.UNSUPPORTED_VERSION, headers(b'{"v":1.0}')),
    "version is null": (Reason.UNSUPPORTED_VERSION, headers(b'{"v":null}')),
    "correlation_id is a number": (Reason.INVALID_HEADERS, headers(b'{"v":1,"correlation_id":1}')),
    "causation_id is null": (Reason.INVALID_HEADERS, headers(b'{"v":1,"causation_id":null}')),
    "traceparent is an array": (Reason.INVALID_HEADERS, headers(b'{"v":1,"traceparent":[]}')),
    "deadline is a number": (Reason.INVALID_HEADERS, headers(b'{"v":1,"deadline":5}')),
    "deadline is nonsense": (Reason.INVALID_HEADERS, headers(b'{"v":1,"deadline":"soon"}')),
    "deadline has no offset": (
        Reason.INVALID_HEADERS,
        headers(b'{"v":1,"deadline":"2024-05-17T12:00:00"}'),
    ),
    "attempt is a bool": (Reason.INVALID_HEADERS, headers(b'{"v":1,"attempt":true}')),
    "attempt is negative": (Reason.INVALID_HEADERS, headers(b'{"v":1,"attempt":-1}')),
    "attempt is a float": (Reason.INVALID_HEADERS, headers(b'{"v":1,"attempt":1.0}')),
    "attempt is a text": (Reason.INVALID_HEADERS, headers(b'{"v":1,"attempt":"1"}')),
    "done is a text": (Reason.INVALID_HEADERS, headers(b'{"v":1,"done":"a"}')),
    "done holds a number": (Reason.INVALID_HEADERS, headers(b'{"v":1,"done":["a",1]}')),
    "schema is zero": (Reason.INVALID_HEADERS, headers(b'{"v":1,"schema":0}')),
    "schema is a text": (Reason.INVALID_HEADERS, headers(b'{"v":1,"schema":"2"}')),
    "schema is newer": (Reason.NEWER_SCHEMA, headers(b'{"v":1,"schema":2}')),
    "reply_to is a URL": (
        Reason.INVALID_HEADERS,
        headers(b'{"v":1,"reply_to":"http://127.0.0.1/"}'),
    ),
    "reply_to is another queue": (Reason.INVALID_HEADERS, headers(b'{"v":1,"reply_to":"orders"}')),
    "reply_to has a line break": (
        Reason.INVALID_HEADERS,
        headers(b'{"v":1,"reply_to":"postbus.reply.a\\n"}'),
    ),
    "reply_to is in capitals": (
        Reason.INVALID_HEADERS,
        headers(b'{"v":1,"reply_to":"postbus.reply.A"}'),
    ),
    "unknown name": (Reason.UNKNOWN_NAME, replaced(b"shop.place-order", b"shop.other")),
    "a class path as name": (Reason.UNKNOWN_NAME, replaced(b"shop.place-order", b"os.system")),
    "name in capitals": (Reason.UNKNOWN_NAME, replaced(b"shop.", b"Shop.")),
    "nested too deep": (Reason.TOO_DEEP, payload(b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}")),
    "nested too deep in metadata": (
        Reason.TOO_DEEP,
        replaced(METADATA, b'"metadata":{"a":' + b"[" * DEEP + b"]" * DEEP + b"}"),
    ),
    "nested too deep in objects": (
        Reason.TOO_DEEP,
        payload(b'{"a":' * DEEP + b"1" + b"}" * DEEP),
    ),
    "a hundred thousand brackets": (Reason.TOO_DEEP, b"[" * 100_000),
    "brackets behind a text of brackets": (
        Reason.TOO_DEEP,
        b'{"a":"' + b"]" * 100_000 + b'","b":' + b"[" * 100_000,
    ),
    "a number too long": (Reason.TOO_MANY_DIGITS, number(b"1" * (MAX_DIGITS + 1))),
    "a fraction too long": (Reason.TOO_MANY_DIGITS, number(b"0." + b"1" * (MAX_DIGITS + 1))),
    "an exponent too long": (Reason.TOO_MANY_DIGITS, number(b"1e" + b"0" * (MAX_DIGITS + 1))),
    "a number too long in headers": (
        Reason.TOO_MANY_DIGITS,
        headers(b'{"v":1,"x":' + b"9" * 5_000 + b"}"),
    ),
    "too large": (Reason.TOO_LARGE, payload(b'{"number":1,"note":"' + b"x" * 2**20 + b'"}')),
    "too large and nothing else": (Reason.TOO_LARGE, b"\xff" * (2**20 + 1)),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_each_fault_has_its_reason(name: str) -> None:
    """A1 to A6, C18: refused on the way in, or at the latest when the message is asked for."""
    reason, written = MALFORMED[name]

    with pytest.raises(DecodeError) as caught:
        _ = decode(written, CATALOG).message

    assert caught.value.reason == reason


def test_the_body_that_the_faults_are_made_of_is_good() -> None:
    """So that each case above is about its fault and nothing else."""
    assert decode(body(), CATALOG).message == PlaceOrder(1)
    assert decode(headers(b'{"v":1}'), CATALOG).message == PlaceOrder(1)


def test_every_reason_that_bytes_can_have_is_here() -> None:
    """A new code comes with a case."""
    of_other_things = {Reason.INVALID_RESULT, Reason.UNSUPPORTED_TYPE}

    assert {reason for reason, _ in MALFORMED.values()} == set(Reason) - of_other_things


def test_a_smaller_limit_holds() -> None:
    """The consumer's section says how large a body may be."""
    assert decode(body(), CATALOG, max_size_bytes=len(body())).message == PlaceOrder(1)
    with pytest.raises(DecodeError, match="too_large"):
        decode(body(), CATALOG, max_size_bytes=len(body()) - 1)


@given(st.binary(max_size=300), st.sampled_from(["refuse", "ignore"]))
def test_any_bytes_at_all_raise_a_decode_error(noise: bytes, unknown_fields: Any) -> None:
    """And nothing else."""
    with pytest.raises(DecodeError) as caught:
        decode(noise, CATALOG, unknown_fields=unknown_fields)

    assert caught.value.reason in set(Reason)


SEEDS = [
    body(),
    headers(
        b'{"v":1,"correlation_id":"a","deadline":"2024-05-17T12:00:00Z","attempt":1,'
        b'"done":["a"],"schema":1,"reply_to":"postbus.reply.a-1","x":{"y":[1,2.5,null]}}'
    ),
    encode(
        Envelope(
            PlaceOrder(2**70, (Line("Zoë", 1), Line('"\\', -1)), "n"),
            metadata={"a": 1, "b": True, "c": 1.5, "é": "☃"},
        )
    ),
    encode(
        Envelope(
            Noted({"a": [1, {"b": None}]}, UUID(ID), datetime(2024, 5, 17, tzinfo=UTC), 1e300)
        )
    ),
    payload(b"[]").replace(METADATA, b'"metadata":[]'),
]
PIECES = [
    b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"null", b"true", b"-", b"1e999", b"NaN",
    b"\\ud800", b"\\u0000", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\0", b"\n", b" ",
    b"1.5", b'""', b"[]", b"{}", b'"v":2', b'"attempt":-1', b'"payload":{}', b'"uuid":1',
    b"shop.note", b"[" * 70, b"9" * 30, b"9" * 1_100, b'{"a":' * 70,
]  # fmt: skip


def mutate(rng: random.Random) -> bytes:
    """Change a good body in one to four places, as accidents and attackers do."""
    written = bytearray(rng.choice(SEEDS))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(written) + 1)
        match rng.randrange(6):
            case 0:
                written[at : at + rng.randint(1, 8)] = b""
            case 1:
                written[at:at] = rng.choice(PIECES)
            case 2:
                written[at : at + rng.randint(1, 8)] = rng.choice(PIECES)
            case 3:
                written[at : at + 1] = bytes([rng.randrange(256)])
            case 4:
                end = at + rng.randint(1, 40)
                written[at:at] = written[at:end]
            case _:
                other = rng.choice(SEEDS)
                start = rng.randrange(len(other))
                written[at : at + rng.randint(1, 40)] = other[start : start + rng.randint(1, 40)]
    return bytes(written)


def outcome(written: bytes, unknown_fields: Any) -> tuple[str, Any]:
    """Decode and read; anything but a DecodeError fails the test."""
    try:
        envelope = decode(written, CATALOG, unknown_fields=unknown_fields)
        read = envelope, envelope.message
    except DecodeError as error:
        return error.reason, None
    return "read", read


def test_mutated_bodies_are_read_or_refused_and_forwarded_as_they_are() -> None:
    """Decoding raises DecodeError only; forwarding raises WireErrors only, and changes nothing.

    A body that was accepted is encoded again without its message being looked at: what comes
    out decodes to the same envelope, and its message is the same or fails in the same way.
    """
    rng = random.Random(20240517)
    counts: dict[str, int] = {}
    for _ in range(MUTATIONS):
        written = mutate(rng)
        unknown_fields: Any = rng.choice(["refuse", "ignore"])
        reason, read = outcome(written, unknown_fields)
        counts[reason] = counts.get(reason, 0) + 1
        if reason != Reason.BOM:
            # What is read in one pass is what is read in parts: a blank leaves only that way.
            assert outcome(b" " + written, unknown_fields) == (reason, read), written
        try:
            forwarded = encode(decode(written, CATALOG, unknown_fields=unknown_fields))
        except DecodeError:
            continue
        except EncodeError:
            counts["not forwarded"] = counts.get("not forwarded", 0) + 1
            continue
        again = outcome(forwarded, unknown_fields)
        assert reason == again[0], written
        if read is not None:
            assert read == again[1], written
            # The message, written anew, is still what was accepted.
            anew = outcome(encode(read[0].evolve(message=read[1])), unknown_fields)
            assert anew[0] == "read", written
            assert read[1] == anew[1][1], written

    assert counts["read"] > MUTATIONS // 100
    assert len(counts) > 12
