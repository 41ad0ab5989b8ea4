"""The short ways of writing and reading say what the long ways say."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from typing import Any
from uuid import UUID

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbus.catalog import MessageCatalog
from postbus.errors import DecodeError, EncodeError
from postbus.messages import Command, Envelope, Event
from postbus.wire import MAX_DIGITS, Reason, decode, encode, new_encoder

ID = "0f0e0d0c-0b0a-4908-8706-050403020100"
NOON = datetime(2024, 5, 17, 12, tzinfo=UTC)
MICROSECONDS = 1_715_947_200_000_000
made: list[int] = []


class Text(str):
    __slots__ = ()


@attrs.frozen
class Line:
    sku: str
    price: float


@attrs.frozen
class PlaceOrder(Command, name="shop.place-order", version=2, aliases=("shop.order",)):
    id: UUID
    lines: tuple[Line, ...]
    placed: datetime
    note: str | None
    labels: list[str]
    data: dict[str, Any]


@attrs.frozen
class Ping(Event, name="shop.ping"):
    number: int

    def __attrs_post_init__(self) -> None:
        made.append(self.number)


@attrs.frozen
class Pong(Event, name="shop.pong"):
    pass


class Colour(Enum):
    RED = "red"


@attrs.frozen
class Coloured(Event, name="shop.coloured"):
    colour: Colour


@attrs.frozen
class Note(Event, name="shop.note"):
    data: dict[str, Any]


def catalog_of(*classes: type) -> MessageCatalog:
    catalog = MessageCatalog()
    for cls in classes:
        catalog.add(cls)
    return catalog


CATALOG = catalog_of(PlaceOrder, Ping, Pong, Coloured, Note)


def order(**changes: Any) -> PlaceOrder:
    fields: dict[str, Any] = {
        "id": UUID(ID),
        "lines": (Line("a", 1.5), Line("b", 2.0)),
        "placed": NOON,
        "note": None,
        "labels": ["x"],
        "data": {"a": [1, {"b": None}]},
    }
    return PlaceOrder(**{**fields, **changes})


def ping(written: str = '{"number":1}', **changes: str) -> bytes:
    """Write the body of a ping, its fields as JSON, as our encoder writes it."""
    fields = {
        "message_name": '"shop.ping"',
        "uuid": f'"{ID}"',
        "payload": written,
        "metadata": "{}",
        "created_at": '"2024-05-17T12:00:00.000000"',
        "headers": '{"v":1}',
        **changes,
    }
    return ("{" + ",".join(f'"{key}":{value}' for key, value in fields.items()) + "}").encode()


def outcome(body: bytes, catalog: MessageCatalog = CATALOG, **options: Any) -> Any:
    """Decode and read; what is refused gives its reason and whether decode() said it already."""
    try:
        envelope = decode(body, catalog, **options)
    except DecodeError as error:
        return "decode", error.reason
    try:
        return envelope, envelope.message
    except DecodeError as error:
        return "message", error.reason


def in_parts(body: bytes, **options: Any) -> Any:
    """Return the outcome where no body came before: the first of each name takes the long way."""
    return outcome(body, catalog_of(PlaceOrder, Ping, Pong, Coloured), **options)


class TestReading:
    @pytest.mark.parametrize(
        "body",
        [
            ping(),
            ping(metadata="[]"),
            ping(metadata="[1]"),
            ping(metadata='{"":1}'),
            ping(metadata='{"a":1.5,"b":true}'),
            ping(metadata='{"a":null}'),
            ping(headers='{"v":true}'),
            ping(headers='{"v":1.0}'),
            ping(headers='{"v":2}'),
            ping(headers='{"attempt":-1}'),
            ping(headers='{"v":1,"schema":2}'),
            ping(headers='{"v":1,"x":[[[[[[[[1]]]]]]]]}'),
            ping(headers='{"v":1,"x":[1,2.5,null,{"y":"z"}]}'),
            ping(uuid=f'"{ID.upper()}"'),
            ping(uuid='"0f0e"'),
            ping(uuid='"\\u0660f0e0d0c-0b0a-4908-8706-050403020100"'),
            ping(created_at='"2024-05-17T14:00:00+02:00"'),
            ping(created_at='"0001-01-01T00:00:00+14:00"'),
            ping(created_at="1"),
            ping('{"number":1,"more":2}'),
            ping('{"number":"1"}'),
            ping('{"number":1.0}'),
            ping('{"number":9223372036854775808}'),
            ping('{"number":1e400}'),
            ping("[]"),
            ping("null"),
            ping('{"number":' + "9" * (MAX_DIGITS + 1) + "}"),
            ping('{"number":1}', metadata='{"a":' + "9" * (MAX_DIGITS + 1) + "}"),
            ping()[:-1] + b',"more":{"a":' + b"[" * 70 + b"]" * 70 + b"}}",
            ping()[:-1] + b',"message_name":"shop.pong"}',
            ping()[:-1] + b',"message_name":"shop.order"}',
            ping()[:-1] + b',"message_name":1}',
            ping().replace(b'"message_name"', b'"_essage_name"'),
            ping()[:-1] + b',"payload":{"number":2}}',
            ping('{"number":' + "[" * 70 + "]" * 70 + "}"),
            b" " + ping(),
            b"{" + b",".join(reversed(ping()[1:-1].split(b","))) + b"}",
            ping()[:-1] + b',"message_name":""}',
            b'{"message_name":""}',
            b"{}",
        ],
        ids=str,
    )
    @pytest.mark.parametrize("unknown_fields", ["refuse", "ignore"])
    def test_both_ways_agree(self, body: bytes, unknown_fields: str) -> None:
        """A2 to A6: what is accepted does not depend on what came before."""
        outcome(ping(), unknown_fields=unknown_fields)  # Now bodies of that name are read at once.
        direct = outcome(body, unknown_fields=unknown_fields)

        assert direct == in_parts(body, unknown_fields=unknown_fields)
        if isinstance(direct[0], Envelope):
            envelope = decode(body, CATALOG, unknown_fields=unknown_fields)  # type: ignore[arg-type]  # a parameter
            assert encode(envelope) == encode(direct[0])

    @pytest.mark.parametrize(
        "written",
        [
            '{"colour":"red"}',
            '{"colour":"blue"}',
            '{"colour":"red","more":1}',
            "[]",
            "[1]",
            "1",
            '{"colour":' + "[" * 70 + "]" * 70 + "}",
            '{"colour":' + "9" * (MAX_DIGITS + 1) + "}",
        ],
        ids=str,
    )
    @pytest.mark.parametrize("unknown_fields", ["refuse", "ignore"])
    def test_payloads_that_are_cut_out_are_read_like_the_first(
        self, written: str, unknown_fields: str
    ) -> None:
        """A class that is not simple has its payload left for later, again and again."""
        body = ping(written, message_name='"shop.coloured"')
        first = ping('{"colour":"red"}', message_name='"shop.coloured"')
        assert outcome(first, unknown_fields=unknown_fields)[1] == Coloured(Colour.RED)

        again = outcome(body, unknown_fields=unknown_fields)
        assert again == in_parts(body, unknown_fields=unknown_fields)

    def test_an_entry_described_anew_counts_from_the_next_message_on(self) -> None:
        """What was worked out for the old one is forgotten, aliases and versions included."""
        catalog = catalog_of(Ping, Pong)
        newer = ping(headers='{"v":1,"schema":2}')
        renamed = ping(message_name='"shop.bell"')
        assert outcome(ping(), catalog)[1] == Ping(1)
        assert outcome(newer, catalog) == ("decode", Reason.NEWER_SCHEMA)
        assert outcome(renamed, catalog) == ("decode", Reason.UNKNOWN_NAME)

        catalog.add(Ping, version=2, aliases=("shop.bell",))

        for _ in range(2):
            assert outcome(newer, catalog)[1] == Ping(1)
            assert outcome(renamed, catalog)[0].name == "shop.ping"

    def test_names_that_come_first_in_several_threads_are_all_read(self) -> None:
        """What one thread has worked out is never in another's way."""
        classes = [
            attrs.make_class(f"Event{number}", {"number": attrs.field(type=int)})
            for number in range(24)
        ]
        catalog = MessageCatalog()
        for number, cls in enumerate(classes):
            catalog.add(cls, name=f"shop.event-{number}", kind="event")

        def read(number: int) -> bool:
            body = ping(message_name=f'"shop.event-{number}"')
            return bool(decode(body, catalog).message == classes[number](1))

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            with ThreadPoolExecutor(8) as pool:
                assert all(pool.map(read, [n for n in range(24) for _ in range(20)]))
        finally:
            sys.setswitchinterval(interval)

    def test_a_payload_is_refused_when_the_message_is_asked_for(self) -> None:
        """Laziness is the same both ways."""
        outcome(ping())

        assert outcome(ping('{"number":"1"}')) == ("message", Reason.INVALID_PAYLOAD)

    def test_the_object_is_made_when_first_asked_for(self) -> None:
        """What a class does when it is built happens for messages that somebody looks at."""
        outcome(ping())
        made.clear()

        envelope = decode(ping('{"number":7}'), CATALOG)
        assert made == []
        assert envelope.payload == b'{"number":7}'
        assert envelope.message == Ping(7)

    def test_a_class_that_refuses_its_values_says_so_each_time(self) -> None:
        """Its own validators run on this way too."""

        def positive(_: Any, __: Any, value: int) -> None:
            if value < 0:
                raise ValueError

        cls = attrs.make_class("Level", {"height": attrs.field(type=int, validator=positive)})
        catalog = MessageCatalog()
        catalog.add(cls, name="shop.level", kind="event")
        body = encode(Envelope(cls(1), name="shop.level"))

        assert outcome(body, catalog)[1] == cls(1)
        envelope = decode(body.replace(b":1}", b":-1}", 1), catalog)
        for _ in range(2):
            with pytest.raises(DecodeError, match="invalid_payload"):
                _ = envelope.message

    @pytest.mark.parametrize("kind", ["keywords", "order", "defaults"])
    def test_constructors_of_every_kind_are_called_as_they_want(self, kind: str) -> None:
        """By position only where all fields are taken in their order."""

        def in_another_order(self: Any, b: int, a: int) -> None:
            self.a, self.b = a, b

        fields = {"a": attrs.field(type=int), "b": attrs.field(type=int, default=2)}
        cls = {
            "keywords": lambda: attrs.make_class("C", fields, kw_only=True),
            "order": lambda: attrs.make_class(
                "C", {**fields, "b": attrs.field(type=int)}, (), {"__init__": in_another_order}
            ),
            "defaults": lambda: attrs.make_class("C", fields),
        }[kind]()
        catalog = MessageCatalog()
        catalog.add(cls, name="shop.pair", kind="event")
        body = encode(Envelope(cls(a=1, b=2), name="shop.pair"))

        for _ in range(2):
            assert outcome(body, catalog)[1] == cls(a=1, b=2)
        if kind != "order":
            assert outcome(body.replace(b',"b":2', b""), catalog)[1] == cls(a=1, b=2)

    def test_a_name_means_what_the_catalogue_at_hand_says(self) -> None:
        """What was read before with another catalogue does not count."""

        @attrs.frozen
        class OtherPing(Event, name="shop.ping"):
            number: float

        other = catalog_of(OtherPing)
        for _ in range(2):
            assert outcome(ping())[1] == Ping(1)
            assert outcome(ping(), other)[1] == OtherPing(1.0)
        assert outcome(ping(), catalog_of(Pong)) == ("decode", Reason.UNKNOWN_NAME)

    def test_an_alias_is_read_at_once_as_well(self) -> None:
        """The envelope has the name of today."""
        body = encode(Envelope(order())).replace(b"shop.place-order", b"shop.order")

        for _ in range(2):
            envelope = decode(body, CATALOG)
            assert (envelope.name, envelope.message) == ("shop.place-order", order())

    def test_names_beyond_ascii_are_read(self) -> None:
        """A body is UTF-8, and cut at any byte it may be none."""

        @attrs.frozen
        class Strasse(Event, name="shop.straße"):
            nummer: int

        catalog = catalog_of(Strasse)
        body = encode(Envelope(Strasse(1)))

        for _ in range(2):
            assert decode(body, catalog).message == Strasse(1)
        for cut in range(30):
            assert outcome(b'{"' + "é".encode() * cut + b'":1}') == (
                "decode",
                Reason.MISSING_FIELD,
            )

    def test_copies_made_before_the_message_was_read_have_one_too(self) -> None:
        """A retry with other headers is read like the first attempt."""
        outcome(ping())
        envelope = decode(ping(), CATALOG)

        again = envelope.evolve(headers={"attempt": 1})

        assert again.message == envelope.message == Ping(1)
        assert again.payload == envelope.payload == b'{"number":1}'


class TestWriting:
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"note": "x"},
            {"note": Text("x")},
            {"labels": [Text("x"), "y"]},
            {"lines": (Line(Text("a"), 1),)},
            {"placed": NOON.astimezone(timezone(timedelta(hours=2)))},
            {"data": {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": 1}}}}}}}}},
            {"data": {"a": (1, 2)}},
            {"lines": ()},
        ],
        ids=str,
    )
    def test_what_is_not_exactly_as_declared_is_written_the_long_way(
        self, changes: dict[str, Any]
    ) -> None:
        """And comes back as what it stands for."""
        message = order(**changes)
        expected = order(**changes)
        if changes.get("data") == {"a": (1, 2)}:
            expected = order(data={"a": [1, 2]})

        assert decode(encode(Envelope(message)), CATALOG).message == expected

    @pytest.mark.parametrize(
        "changes",
        [
            {"note": 1},
            {"labels": ["x", 1]},
            {"labels": ("x",)},
            {"lines": [Line("a", 1.0)]},
            {"lines": (Line("a", float("nan")),)},
            {"lines": (Line("a", float("inf")),)},
            {"lines": (Ping(1),)},
            {"placed": datetime(2024, 5, 17)},  # noqa: DTZ001  naive on purpose
            {"data": {"a": float("nan")}},
            {"data": {"a": object()}},
            {"data": {"a": NOON}},
            {"data": {1: 2}},
            {"data": [1]},
            {"id": ID},
        ],
        ids=str,
    )
    def test_what_could_not_be_read_is_not_written(self, changes: dict[str, Any]) -> None:
        """Whether others of the class were written before or not."""
        encode(Envelope(order()))

        with pytest.raises(EncodeError, match="place-order"):
            encode(Envelope(order(**changes)))

    @pytest.mark.parametrize(
        "data", [[1], None, "x", ({},), {"a": float("nan")}, {1: 2}, {"a": NOON}], ids=str
    )
    def test_a_class_of_one_dict_is_checked_as_well(self, data: Any) -> None:
        """The most common class of all has a way of its own."""
        assert decode(encode(Envelope(Note({"a": [1]}))), CATALOG).message == Note({"a": [1]})

        with pytest.raises(EncodeError, match="note"):
            encode(Envelope(Note(data)))

    def test_a_received_envelope_is_written_as_it_came_after_it_was_read(self) -> None:
        """Not from the message: who forwards changes nothing."""
        encode(Envelope(Ping(1)))
        envelope = decode(ping('{ "number": 1 }'), CATALOG)

        assert envelope.message == Ping(1)
        assert b'"payload":{ "number": 1 }' in encode(envelope)

    def test_many_combinations_of_types_are_all_written(self) -> None:
        """Fields that may be None come in more combinations than are remembered."""
        optional: Any = int | None
        cls = attrs.make_class(
            "Many", {f"f{i}": attrs.field(type=optional, default=None) for i in range(8)}
        )
        catalog = MessageCatalog()
        catalog.add(cls, name="shop.many", kind="event")

        for bits in range(2**8):
            message = cls(**{f"f{i}": i for i in range(8) if bits >> i & 1})
            body = encode(Envelope(message, name="shop.many"))
            assert decode(body, catalog).message == message


class TestWithoutAnEnvelope:
    @pytest.mark.parametrize("message", [order(), Ping(1), Pong()], ids=lambda m: type(m).__name__)
    def test_it_is_what_encode_writes(self, message: Any) -> None:
        """Nobody can tell whether there was an envelope."""
        envelope = Envelope(message, id=ID, created_at=NOON.replace(microsecond=1_002))
        write = new_encoder(envelope.name, type(message))

        assert write(message, ID, MICROSECONDS + 1_002) == encode(envelope)

    @pytest.mark.parametrize("name", ["", "ab", "__main__.Ping", "\ud800abc"], ids=ascii)
    def test_impossible_names_are_refused_for_each_message(self, name: str) -> None:
        """Making it raises nothing: that happens while plans are compiled."""
        write = new_encoder(name, Ping)

        for _ in range(2):
            with pytest.raises(EncodeError):
                write(Ping(1), ID, MICROSECONDS)

    @pytest.mark.parametrize(
        "message",
        [
            object(),
            order(data={"a": float("nan")}),
            order(note="\ud800"),
            order(note="x" * 2**20),
            order(data={"a": 10**MAX_DIGITS}),
        ],
        ids=["class", "value", "text", "size", "digits"],
    )
    def test_what_encode_refuses_is_refused(self, message: Any) -> None:
        """With the same words."""
        with pytest.raises(EncodeError) as expected:
            encode(Envelope(message, name="shop.place-order"))

        with pytest.raises(EncodeError) as caught:
            new_encoder("shop.place-order", type(message))(message, ID, MICROSECONDS)
        assert str(caught.value) == str(expected.value)

    def test_two_names_of_one_class_do_not_meet(self) -> None:
        """What is remembered of the last message is its name too."""
        for name in ("shop.ping", "shop.other", "shop.ping"):
            assert json.loads(encode(Envelope(Ping(1), name=name)))["message_name"] == name

    @given(st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999))
    def test_every_time_is_written_with_six_digits(self, microseconds: int) -> None:
        """T09, W01: also before 1970, and whichever second came before."""
        body = new_encoder("shop.ping", Ping)(Ping(1), ID, microseconds)

        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
        written = json.loads(body)["created_at"]
        assert written == moment.replace(tzinfo=None).isoformat(timespec="microseconds")
