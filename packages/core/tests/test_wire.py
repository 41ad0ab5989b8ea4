"""Envelopes on the wire: the shape of the object, what is read and written, and what is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import postbus
from postbus.catalog import MessageCatalog
from postbus.errors import DecodeError, EncodeError
from postbus.messages import Command, Envelope, Event, MessageKind
from postbus.wire import MAX_DEPTH, MAX_DIGITS, Reason, decode, encode

ID = "0f0e0d0c-0b0a-4908-8706-050403020100"
NOON = datetime(2024, 5, 17, 12, tzinfo=UTC)


@attrs.frozen
class PlaceOrder(Command, name="shop.place-order", version=2, aliases=("shop.order",)):
    number: int
    note: str = ""


@attrs.frozen
class Note(Event, name="shop.note"):
    data: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class Ring:
    inner: Ring | None = None


@attrs.frozen
class Rings(Command, name="shop.rings"):
    first: Ring | None = None


@pytest.fixture(scope="module")
def catalog() -> MessageCatalog:
    catalog = MessageCatalog()
    for cls in (PlaceOrder, Note, Rings):
        catalog.add(cls)
    return catalog


def make_body(**changes: Any) -> bytes:
    """Write the body of a note, with fields changed, or left out by `...`."""
    fields: dict[str, Any] = {
        "message_name": "shop.note",
        "uuid": ID,
        "payload": {"data": {}},
        "metadata": {},
        "created_at": "2024-05-17T12:00:00.000000",
        **changes,
    }
    return json.dumps({k: v for k, v in fields.items() if v is not ...}).encode()


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


class TestEncode:
    def test_the_keys_come_in_the_order_of_the_format(self) -> None:
        """W01, and our headers behind."""
        fields = json.loads(encode(Envelope(Note())))

        assert list(fields) == [
            "message_name",
            "uuid",
            "payload",
            "metadata",
            "created_at",
            "headers",
        ]

    @pytest.mark.parametrize(
        ("moment", "expected"),
        [
            (NOON, "2024-05-17T12:00:00.000000"),
            (NOON.replace(microsecond=250_000), "2024-05-17T12:00:00.250000"),
            (NOON.astimezone(timezone(timedelta(hours=2))), "2024-05-17T12:00:00.000000"),
            (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00.000000"),
            (datetime.max.replace(tzinfo=UTC), "9999-12-31T23:59:59.999999"),
        ],
        ids=str,
    )
    def test_created_at_is_utc_with_six_digits_and_no_zone(
        self, moment: datetime, expected: str
    ) -> None:
        """T09, W01: exactly as the PHP system writes it."""
        body = encode(Envelope(Note(), created_at=moment))

        assert json.loads(body)["created_at"] == expected

    def test_a_time_that_utc_does_not_have_is_refused(self) -> None:
        """The first hours of the year 1 east of Greenwich were in the year 0."""
        early = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))

        with pytest.raises(EncodeError):
            encode(Envelope(Note(), created_at=early))

    def test_schema_is_written_where_the_version_is_not_one(self) -> None:
        """It is one for most, and then says nothing."""
        assert json.loads(encode(Envelope(PlaceOrder(1))))["headers"] == {"v": 1, "schema": 2}
        assert json.loads(encode(Envelope(Note())))["headers"] == {"v": 1}

    def test_headers_of_the_envelope_are_written_and_v_is_ours(self) -> None:
        """Nobody can claim another version of the format."""
        envelope = Envelope(Note(), headers={"v": 9, "attempt": 1, "x-mine": [1]})

        assert json.loads(encode(envelope))["headers"] == {"v": 1, "attempt": 1, "x-mine": [1]}

    @pytest.mark.parametrize(
        "headers",
        [{"attempt": -1}, {"done": "a"}, {"reply_to": "x"}, {"x": float("nan")}, {"x": object()}],
        ids=str,
    )
    def test_headers_that_could_not_be_read_are_refused(self, headers: dict[str, Any]) -> None:
        """The other side would answer with a DecodeError."""
        with pytest.raises(EncodeError, match="shop"):
            encode(Envelope(Note(), headers=headers))

    @pytest.mark.parametrize("message", [object(), {"a": 1}, [1], "ping", 5, None], ids=repr)
    def test_what_is_no_message_class_is_refused(self, message: object) -> None:
        """B06 holds in process; over the wire the other side could make nothing of it."""
        with pytest.raises(EncodeError, match="attrs class"):
            encode(Envelope(message, name="shop.thing"))

    def test_an_undecorated_command_is_refused(self) -> None:
        """Without fields that are declared there is no saying what it holds."""

        class Bare(Command, name="shop.bare"):
            pass

        with pytest.raises(EncodeError, match="make it an attrs class"):
            encode(Envelope(Bare()))

    @pytest.mark.parametrize("name", ["__main__.PlaceOrder", "__main__"])
    def test_a_name_from_the_running_script_is_refused(self, name: str) -> None:
        """C22: it is called something else everywhere else; the error says what to do."""
        with pytest.raises(EncodeError, match="name="):
            encode(Envelope(Note(), name=name))

    @pytest.mark.parametrize("name", ["", "ab", "\ud800abc"], ids=ascii)
    def test_other_impossible_names_are_refused(self, name: str) -> None:
        """C18: three characters at least, and UTF-8."""
        with pytest.raises(EncodeError):
            encode(Envelope(Note(), name=name))

    def test_a_body_is_at_most_as_large_as_allowed(self) -> None:
        """1 MiB unless configured; exactly the limit passes."""
        envelope = Envelope(Note({"text": "x" * 100}))
        size = len(encode(envelope))

        assert encode(envelope, max_size_bytes=size)
        with pytest.raises(EncodeError, match=f"{size} bytes"):
            encode(envelope, max_size_bytes=size - 1)
        with pytest.raises(EncodeError, match="1048576"):
            encode(Envelope(Note({"text": "x" * 2**20})))

    @pytest.mark.parametrize("name", ["object", "array"])
    def test_it_is_nested_as_deep_as_decode_takes_it(
        self, name: str, catalog: MessageCatalog
    ) -> None:
        """A2: one level more is refused on this side already."""
        value: Any = 0
        for _ in range(MAX_DEPTH - 3):
            value = {"a": value} if name == "object" else [value]

        body = encode(Envelope(Note({"a": value})))

        assert decode(body, catalog).message.data == {"a": value}
        with pytest.raises(EncodeError, match="64 levels"):
            encode(Envelope(Note({"a": [value]})))

    def test_a_class_that_holds_itself_is_no_way_around(self) -> None:
        """The depth of a typed payload is checked as well."""
        ring: Ring | None = None
        for _ in range(MAX_DEPTH):
            ring = Ring(ring)

        with pytest.raises(EncodeError, match="64 levels"):
            encode(Envelope(Rings(ring)))

    def test_a_value_that_holds_itself_is_refused(self) -> None:
        """There is no end to write."""
        endless: list[Any] = []
        endless.append(endless)

        with pytest.raises(EncodeError):
            encode(Envelope(Note({"a": endless})))

    def test_what_is_no_envelope_is_refused(self) -> None:
        """With the error of this module."""
        with pytest.raises(EncodeError, match="PlaceOrder"):
            encode(PlaceOrder(1))  # type: ignore[arg-type]  # wrong on purpose


class TestDecode:
    def test_an_envelope_comes_back_as_it_was(self, catalog: MessageCatalog) -> None:
        """C15: every field; the kind is the catalogue's."""
        envelope = Envelope(
            Note({"a": 1}), metadata={"b": True}, headers={"attempt": 2, "x-other": {"c": None}}
        )

        again = decode(encode(envelope), catalog)

        assert again == envelope
        assert again.kind is MessageKind.EVENT
        assert again.received_from is None

    def test_the_message_is_made_when_first_asked_for(self, catalog: MessageCatalog) -> None:
        """A payload that does not fit harms nobody who does not look."""
        envelope = decode(make_body(payload={"nonsense": 1}), catalog)

        assert envelope.name == "shop.note"
        assert envelope.payload == b'{"nonsense": 1}'
        for _ in range(2):
            with pytest.raises(DecodeError, match="invalid_payload"):
                _ = envelope.message

    @pytest.mark.parametrize(
        "written",
        [
            "2024-05-17T12:00:00.000000",
            "2024-05-17T12:00:00",
            "2024-05-17T12:00:00Z",
            "2024-05-17T12:00:00.0+00:00",
            "2024-05-17T14:00:00+02:00",
            "2024-05-17T06:30:00-05:30",
        ],
    )
    def test_created_at_is_read_with_an_offset_and_without(
        self, written: str, catalog: MessageCatalog
    ) -> None:
        """T09: without one it is UTC."""
        created_at = decode(make_body(created_at=written), catalog).created_at

        assert created_at == NOON
        assert created_at.tzinfo is UTC

    @pytest.mark.parametrize("field", ["payload", "metadata"])
    @pytest.mark.parametrize("written", ["[]", "[ \n\t]", "{}"])
    def test_an_empty_array_is_an_empty_object(
        self, field: str, written: str, catalog: MessageCatalog
    ) -> None:
        """PHP cannot tell them apart; we write an object."""
        body = make_body(**{field: "HERE"}).replace(b'"HERE"', written.encode())

        envelope = decode(body, catalog)

        assert (envelope.message, envelope.metadata) == (Note(), {})
        assert b'"payload":{' in encode(envelope)
        assert b'"metadata":{}' in encode(envelope)

    @pytest.mark.parametrize("spelling", [ID.upper(), ID.replace("-", ""), f"urn:uuid:{ID}"])
    def test_any_spelling_of_a_uuid_is_read(self, spelling: str, catalog: MessageCatalog) -> None:
        """Lower-case canonical is written."""
        envelope = decode(make_body(uuid=spelling), catalog)

        assert envelope.id == ID
        assert ID.encode() in encode(envelope)

    def test_of_duplicate_keys_the_last_wins(self, catalog: MessageCatalog) -> None:
        """At the top, in the payload and in what is inside that."""
        body = make_body().replace(
            b'"payload": {"data": {}}',
            b'"payload":{"data":{"a":0}},"payload":{"data":{"b":1},"data":{"a":1,"a":2}}',
        )

        assert decode(body, catalog).message == Note({"a": 2})

    def test_escapes_in_keys_are_read(self, catalog: MessageCatalog) -> None:
        """JSON has many spellings of one text."""
        body = make_body().replace(b'"payload"', b'"\\u0070ayload"')

        assert decode(body, catalog).message == Note()

    @pytest.mark.parametrize("headers", [..., {}, {"v": 1}])
    def test_messages_without_headers_are_read(
        self, headers: Any, catalog: MessageCatalog
    ) -> None:
        """The PHP system writes none."""
        assert decode(make_body(headers=headers), catalog).headers == {}

    def test_an_alias_means_the_class_and_its_name_of_today(self, catalog: MessageCatalog) -> None:
        """Routes know one name; what was queued before the rename finds them."""
        body = make_body(message_name="shop.order", payload={"number": 1})

        envelope = decode(body, catalog)

        assert envelope.name == "shop.place-order"
        assert envelope.message == PlaceOrder(1)

    @pytest.mark.parametrize("schema", [..., 1, 2])
    def test_older_schemas_are_read(self, schema: Any, catalog: MessageCatalog) -> None:
        """Only a newer one than the class is refused."""
        headers = {"v": 1, **({} if schema is ... else {"schema": schema})}
        body = make_body(message_name="shop.place-order", payload={"number": 1}, headers=headers)

        assert decode(body, catalog).message == PlaceOrder(1)

    def test_metadata_says_nothing_to_postbus(self, catalog: MessageCatalog) -> None:
        """T06: neither the mark of the async switch nor a name of a transport is read from it."""
        metadata = {"handled-async": True, "received_from": "mail", "v": 9}

        envelope = decode(make_body(metadata=metadata), catalog)

        assert envelope.received_from is None
        assert envelope.metadata == metadata

    def test_an_unknown_name_is_shown_escaped_and_short(self, catalog: MessageCatalog) -> None:
        """A4, A17: nobody writes into our logs by sending a name."""
        name = "shop\n\x1b[31m\u202e" + "x" * 10_000

        with pytest.raises(DecodeError) as caught:
            decode(make_body(message_name=name), catalog)

        shown = caught.value.message
        assert caught.value.reason == Reason.UNKNOWN_NAME
        assert shown.startswith("shop\\n\\x1b[31m\\u202ex")
        assert shown.isascii()
        assert shown.isprintable()
        assert len(shown) <= 128 + len(" is in no catalogue here")

    @pytest.mark.parametrize(
        "name",
        ["os.system", "builtins.eval", "postbus.wire", "../x", "__class__", "shop.note\x00"],
    )
    def test_a_name_imports_nothing(self, name: str, catalog: MessageCatalog) -> None:
        """A6: it is looked up in the catalogue and nowhere else."""
        before = set(sys.modules)

        with pytest.raises(DecodeError, match="unknown_name"):
            decode(make_body(message_name=name), catalog)
        assert set(sys.modules) == before

    def test_unknown_top_level_keys_are_refused_or_ignored(self, catalog: MessageCatalog) -> None:
        """As the consumer says."""
        body = make_body(kind="command", priority=9)

        with pytest.raises(DecodeError, match="unknown_field: kind"):
            decode(body, catalog)
        assert decode(body, catalog, unknown_fields="ignore").message == Note()

    def test_a_long_body_with_shallow_lists_is_read(self, catalog: MessageCatalog) -> None:
        """Thousands of brackets are no depth, in strings or out of them."""
        rows = [{"a": [i], "b": "]}{[" * 3, "c": '\\" [{'} for i in range(500)]
        envelope = Envelope(Note({"rows": rows, "tail": "[" * 200}))

        assert decode(encode(envelope), catalog).message == envelope.message

    @pytest.mark.parametrize(
        "text",
        ["1" * 3_000, '1" ' + "1" * 3_000, "\\" + "1" * 3_000, "1" * 3_000 + "\\"],
        ids=["digits", "quoted", "backslash", "tail"],
    )
    def test_digits_in_a_text_are_text(self, text: str, catalog: MessageCatalog) -> None:
        """Only numbers have a limit."""
        envelope = Envelope(Note({"text": text}))

        assert decode(encode(envelope), catalog).message == envelope.message

    @pytest.mark.parametrize("lead", range(0, 1_001, 91))
    def test_a_number_has_at_most_so_many_digits(self, lead: int, catalog: MessageCatalog) -> None:
        """A2: wherever it stands in the body."""

        def body(digits: int) -> bytes:
            number = "7" * digits
            return make_body(payload="HERE").replace(
                b'"HERE"', f'{{"data":{{"{"x" * lead}":{number}}}}}'.encode()
            )

        value = decode(body(MAX_DIGITS), catalog).message.data["x" * lead]
        assert value == int("7" * MAX_DIGITS)
        with pytest.raises(DecodeError, match="too_many_digits"):
            decode(body(MAX_DIGITS + 1), catalog)

    @given(levels=st.integers(1, 200), text=st.text('[]{}"\\ax', max_size=40))
    def test_depth_is_counted_exactly_whatever_strings_hold(self, levels: int, text: str) -> None:
        """Brackets, quotes and backslashes inside strings neither hide nor add levels."""
        catalog = MessageCatalog()
        catalog.add(Note)
        written = json.dumps(text)
        inner = "[" + f"{written},[" * (levels - 1) + written + f"],{written}" * (levels - 1) + "]"
        body = make_body(payload="HERE").replace(b'"HERE"', f'{{"data":{{"a":{inner}}}}}'.encode())
        too_deep = levels + 3 > MAX_DEPTH

        if too_deep:
            with pytest.raises(DecodeError, match="too_deep"):
                decode(body, catalog)
        else:
            assert decode(body, catalog).name == "shop.note"


class TestForwarding:
    def test_an_envelope_goes_on_as_it_came(self, catalog: MessageCatalog) -> None:
        """The payload byte for byte, headers that are unknown here as they were."""
        body = make_body(
            payload={"data": {"b": 1.50, "é": "☃"}}, headers={"v": 1, "x": {"y": [1]}}
        )

        again = decode(encode(decode(body, catalog)), catalog)

        assert again.payload == decode(body, catalog).payload
        assert again.headers == {"x": {"y": [1]}}

    def test_reading_the_message_does_not_change_what_goes_on(
        self, catalog: MessageCatalog
    ) -> None:
        """A retry sends what came, whatever a handler did to the message."""
        envelope = decode(make_body(payload={"data": {"a": 1}}), catalog)
        envelope.message.data["a"] = 2

        assert decode(encode(envelope), catalog).message == Note({"a": 1})

    def test_an_older_schema_stays_what_it_is(self, catalog: MessageCatalog) -> None:
        """The payload is that of version 1, whatever the class is here."""
        body = make_body(message_name="shop.place-order", payload={"number": 1})

        assert json.loads(encode(decode(body, catalog)))["headers"] == {"v": 1}

    def test_a_payload_that_nobody_here_could_read_goes_on(self, catalog: MessageCatalog) -> None:
        """Whoever reads it finds what is wrong with it."""
        body = make_body(payload="HERE").replace(b'"HERE"', b'{"data":{"a":1e400}}')
        envelope = decode(body, catalog)

        again = decode(encode(envelope), catalog)

        assert again.payload == envelope.payload
        with pytest.raises(DecodeError, match="malformed"):
            _ = again.message

    def test_changed_headers_go_with_the_same_payload(self, catalog: MessageCatalog) -> None:
        """As a worker does for a retry."""
        envelope = decode(make_body(payload={"data": {"a": 1}}), catalog)

        again = decode(encode(envelope.evolve(headers={"attempt": 3})), catalog)

        assert again.headers == {"attempt": 3}
        assert (again.message, again.id) == (envelope.message, envelope.id)


def run_python(source: str) -> str:
    """Run a script in a fresh interpreter that finds postbus where this one does."""
    folder = os.path.dirname(os.path.dirname(postbus.__file__))  # noqa: PTH120  a path for PYTHONPATH
    path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestWhatIsLoaded:
    def test_cattrs_comes_with_the_first_decode(self) -> None:
        """Importing and encoding go without it."""
        source = """
            import sys, attrs
            from postbus.catalog import MessageCatalog
            from postbus.messages import Command, Envelope
            from postbus.wire import decode, encode

            class Ping(Command, name="net.ping"):
                __annotations__ = {"n": int}

            Ping = attrs.frozen(Ping)
            catalog = MessageCatalog()
            catalog.add(Ping)
            body = encode(Envelope(Ping(1)))
            print("cattrs" in sys.modules)
            print(decode(body, catalog).message.n, "cattrs" in sys.modules)
            print("pydantic" in sys.modules)
            """

        assert run_python(source).split() == ["False", "1", "True", "False"]

    def test_everything_but_models_works_without_pydantic(self) -> None:
        """What is accepted does not depend on what else is installed."""
        source = """
            import sys
            sys.modules["pydantic"] = None

            import attrs, dataclasses, msgspec
            from postbus.catalog import MessageCatalog
            from postbus.errors import DecodeError, EncodeError
            from postbus.messages import Envelope
            from postbus.wire import decode, encode

            Attrs = attrs.make_class("Attrs", {"n": attrs.field(type=int)})
            Data = dataclasses.make_dataclass("Data", [("n", int)])
            Struct = msgspec.defstruct("Struct", [("n", int)])
            for cls in (Attrs, Data, Struct):
                catalog = MessageCatalog()
                catalog.add(cls, name="net.ping", kind="command")
                body = encode(Envelope(cls(1), name="net.ping"))
                assert decode(body, catalog).message == cls(1)
                for wrong in (b'"1"', b"true", b"1.0"):
                    try:
                        decode(body.replace(b'"n":1', b'"n":' + wrong), catalog).message
                    except DecodeError as error:
                        assert error.reason == "invalid_payload", error
                    else:
                        raise AssertionError(cls)
            try:
                encode(Envelope(object(), name="net.ping"))
            except EncodeError:
                print("fine")
            """

        assert run_python(source).split() == ["fine"]


def test_what_msgspec_reads_is_what_a_plain_peer_reads() -> None:
    """A body is plain JSON: any parser makes the same of it."""
    body = encode(Envelope(Note({"a": [1, 2.5, None, "é\u2028"]}), metadata={"b": "☃"}))

    assert json.loads(body) == msgspec.json.decode(body)
