"""Messages and envelopes: names that survive, kinds, identity, and what may be in them."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import threading
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from enum import IntEnum, StrEnum
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbus.errors import DecodeError, MetadataError
from postbus.messages import (
    AsyncMessage,
    Command,
    Envelope,
    Event,
    MessageInfo,
    MessageKind,
    Query,
    check_metadata,
    message_info,
    new_id,
    parse_id,
)

ID = "0f0e0d0c-0b0a-4908-8706-050403020100"
NOON = datetime(2024, 5, 17, 12, tzinfo=UTC)


@attrs.frozen
class PlaceOrder(
    Command, name="shop.place-order", key="order_id", version=3, aliases=("shop.order",)
):
    order_id: int


@attrs.frozen
class OrderPlaced(Event):
    order_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class FindOrder(Query[str], name="shop.find-order"):
    order_id: int


class Plain:
    pass


class TestDeclarations:
    def test_what_the_class_statement_says_survives_slots_of_attrs(self) -> None:
        """Attrs builds the class a second time, without keywords: the name stays (C22)."""
        assert message_info(PlaceOrder) == MessageInfo(
            "shop.place-order", MessageKind.COMMAND, "order_id", 3, ("shop.order",)
        )

    def test_it_survives_slots_of_dataclasses(self) -> None:
        """So do they."""
        assert message_info(FindOrder).name == "shop.find-order"

    def test_the_name_defaults_to_the_dotted_path(self) -> None:
        """C14: the class path, where nothing else is said."""
        assert message_info(OrderPlaced).name == f"{__name__}.OrderPlaced"

    @pytest.mark.parametrize(
        ("cls", "kind"), [(PlaceOrder, "command"), (OrderPlaced, "event"), (FindOrder, "query")]
    )
    def test_the_kind_comes_from_the_base_class(self, cls: type, kind: str) -> None:
        """C13: command, event, query."""
        assert kind == message_info(cls).kind

    def test_a_subclass_declares_for_itself(self) -> None:
        """It inherits neither name nor aliases: two classes for one name would be one too many."""

        @attrs.frozen
        class PlaceBigOrder(PlaceOrder):
            size: int

        info = message_info(PlaceBigOrder)
        assert info.name.endswith(".PlaceBigOrder")
        assert (info.key, info.version, info.aliases) == (None, 1, ())
        assert info.kind is MessageKind.COMMAND

    def test_any_other_class_has_its_path_and_no_kind(self) -> None:
        """B04, B06: any object is a message in process."""
        assert message_info(Plain) == MessageInfo(f"{__name__}.Plain")
        assert message_info(list) == MessageInfo("list")

    def test_aliases_as_one_text_are_refused(self) -> None:
        """A text is a sequence too, of letters."""
        with pytest.raises(TypeError, match="list of names"):
            type("X", (Command,), {}, aliases="shop.x")

    def test_keywords_for_other_bases_go_on(self) -> None:
        """A mixin with keywords of its own gets them."""
        seen: dict[str, Any] = {}

        class Mixin:
            def __init_subclass__(cls, *, colour: str, **keywords: Any) -> None:
                super().__init_subclass__(**keywords)
                seen["colour"] = colour

        class Paint(Command, Mixin, name="shop.paint", colour="red"):
            pass

        assert seen == {"colour": "red"}
        assert message_info(Paint).name == "shop.paint"

    def test_the_bases_add_no_dict_to_slotted_classes(self) -> None:
        """They carry no data."""
        assert not hasattr(PlaceOrder(1), "__dict__")
        assert AsyncMessage.__slots__ == ()


class TestIds:
    def test_a_new_id_is_a_version_4_uuid_in_canonical_form(self) -> None:
        """C14, RFC 9562."""
        text = new_id()

        assert str(uuid.UUID(text)) == text
        assert uuid.UUID(text).version == 4
        assert uuid.UUID(text).variant == uuid.RFC_4122

    def test_they_differ_across_threads(self) -> None:
        """Threads share the pool and never an id."""
        drawn: list[str] = []

        def draw() -> None:
            drawn.extend([new_id() for _ in range(2_000)])

        threads = [threading.Thread(target=draw) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert max(Counter(drawn).values()) == 1
        assert len(drawn) == 8_000

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
    def test_they_differ_after_a_fork(self) -> None:
        """The child throws the pool away that it inherited."""
        new_id()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writing, " ".join(new_id() for _ in range(50)).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            drawn = pipe.read().split()
        os.waitpid(child, 0)

        assert len(drawn) == 50
        assert set(drawn).isdisjoint({new_id() for _ in range(300)})

    @pytest.mark.parametrize(
        "text",
        [ID, ID.upper(), ID.replace("-", ""), f"{{{ID}}}", f"urn:uuid:{ID}", f"URN:UUID:{ID}"],
    )
    def test_any_spelling_is_read(self, text: str) -> None:
        """Lower-case canonical comes out."""
        assert parse_id(text) == ID

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "x",
            ID[:-1],
            f"{ID}0",
            f"{ID}\n",
            f" {ID}",
            ID.replace("-", "_"),
            f"{{{ID}",
            f"{ID}}}",
            ID.replace("0", "\u0660"),
            "g" + ID[1:],
        ],
    )
    def test_what_is_no_uuid_is_refused(self, text: str) -> None:
        """Blanks, underscores and digits of other scripts, which int() would take, included."""
        with pytest.raises(ValueError, match="UUID"):
            parse_id(text)

    @given(st.uuids())
    def test_every_uuid_is_its_own_canonical_form(self, value: uuid.UUID) -> None:
        """Whatever version it has."""
        assert parse_id(value.hex) == str(value)


class Colour(StrEnum):
    RED = "red"


class Size(IntEnum):
    BIG = 3


class TestMetadata:
    def test_scalars_pass_as_they_are(self) -> None:
        """str, int, bool and finite floats."""
        metadata = {"a": "x", "b": 1, "c": True, "d": 1.5, "e": -(2**63), "f": 2**64 - 1}

        assert check_metadata(metadata) == metadata

    def test_subclasses_become_what_json_has(self) -> None:
        """An enum of text is text on the wire, so it is from the start."""
        checked = check_metadata({Colour.RED: Colour.RED, "size": Size.BIG})

        assert checked == {"red": "red", "size": 3}
        assert [type(value) for value in (*checked, *checked.values())] == [str, str, str, int]

    def test_a_float_of_a_subclass_becomes_a_float(self) -> None:
        """As numbers of other libraries are."""
        number = type("Number", (float,), {})(1.5)

        assert type(check_metadata({"a": number})["a"]) is float

    @pytest.mark.parametrize(
        "value",
        [
            None,
            [1],
            {"a": 1},
            (1,),
            b"x",
            NOON,
            float("nan"),
            float("inf"),
            2**64,
            -(2**63) - 1,
            "\ud800",
        ],
        ids=repr,
    )
    def test_anything_else_is_refused_when_the_message_is_made(self, value: object) -> None:
        """T08, C18, C19: not only when a producer sends it; null is refused too."""
        with pytest.raises(MetadataError, match=r"metadata\['key'\]"):
            Envelope("ping", metadata={"key": value})

    @pytest.mark.parametrize("key", ["", 1, None, b"a"])
    def test_keys_are_text_and_not_empty(self, key: Any) -> None:
        """C16: an empty key is refused."""
        with pytest.raises(MetadataError, match="non-empty text"):
            check_metadata({key: 1})

    def test_half_a_surrogate_pair_in_a_key_is_refused(self) -> None:
        """UTF-8 cannot write it."""
        with pytest.raises(MetadataError, match="surrogate"):
            check_metadata({"\udc80": 1})

    def test_other_scripts_are_fine(self) -> None:
        """They are text."""
        assert check_metadata({"größe": "大"}) == {"größe": "大"}


class TestEnvelope:
    def test_it_has_defaults_for_everything(self) -> None:
        """C14: an id, the declared name and kind, now in UTC, no metadata."""
        before = datetime.now(UTC)
        envelope = Envelope(PlaceOrder(1))

        assert envelope.name == "shop.place-order"
        assert envelope.kind is MessageKind.COMMAND
        assert parse_id(envelope.id) == envelope.id
        assert before <= envelope.created_at <= datetime.now(UTC)
        assert (envelope.metadata, envelope.headers) == ({}, {})
        assert (envelope.received_from, envelope.payload) == (None, None)

    def test_what_is_given_is_kept(self) -> None:
        """C14, C15: the name may differ from the class's."""
        envelope = Envelope(
            PlaceOrder(1),
            name="shop.other",
            kind=MessageKind.EVENT,
            id=ID.upper(),
            created_at=NOON,
            metadata={"a": 1},
            headers={"attempt": 1},
            received_from="mail",
        )

        assert (envelope.name, envelope.kind) == ("shop.other", "event")
        assert (envelope.id, envelope.created_at) == (ID, NOON)
        assert (envelope.metadata, envelope.headers) == ({"a": 1}, {"attempt": 1})
        assert envelope.received_from == "mail"

    def test_another_name_keeps_the_declared_kind(self) -> None:
        """Each of the two has its own default."""
        assert Envelope(PlaceOrder(1), name="shop.other").kind is MessageKind.COMMAND
        assert Envelope(PlaceOrder(1), kind=MessageKind.EVENT).name == "shop.place-order"

    def test_a_text_is_its_own_name(self) -> None:
        """B04."""
        assert Envelope("ping").name == "ping"
        assert Envelope([1]).name == "list"

    def test_id_and_time_are_the_same_whenever_they_are_read(self) -> None:
        """They are formatted when first asked for and drawn when the envelope is made."""
        envelope = Envelope("ping")

        assert envelope.id is envelope.id
        assert envelope.created_at is envelope.created_at

    def test_a_naive_time_is_refused(self) -> None:
        """Nobody could say when that was."""
        naive = NOON.replace(tzinfo=None)

        with pytest.raises(ValueError, match="offset"):
            Envelope("ping", created_at=naive)
        with pytest.raises(ValueError, match="offset"):
            Envelope("ping").evolve(created_at=naive)

    def test_it_cannot_be_changed(self) -> None:
        """Neither its fields nor what they hold."""
        given = {"a": 1}
        envelope = Envelope("ping", metadata=given, headers=given)
        given["a"] = 2

        with pytest.raises(AttributeError):
            envelope.name = "pong"  # type: ignore[misc]  # refused on purpose
        for view in (envelope.metadata, envelope.headers):
            assert view == {"a": 1}
            with pytest.raises(TypeError):
                view["a"] = 3  # type: ignore[index]  # refused on purpose

    def test_evolve_returns_a_copy(self) -> None:
        """C16: the original stays as it was; one identity for both."""
        envelope = Envelope("ping", metadata={"a": 1})

        other = envelope.evolve(metadata={"b": 2}, headers={"attempt": 1}, received_from="mail")

        assert (envelope.metadata, other.metadata) == ({"a": 1}, {"b": 2})
        assert other.headers == {"attempt": 1}
        assert other.received_from == "mail"
        assert (other.id, other.created_at) == (envelope.id, envelope.created_at)

    def test_evolve_checks_as_the_constructor_does(self) -> None:
        """Metadata, id and the names of fields."""
        envelope = Envelope("ping")

        with pytest.raises(MetadataError):
            envelope.evolve(metadata={"a": None})
        with pytest.raises(ValueError, match="UUID"):
            envelope.evolve(id="x")
        for name in ("payload", "load", "colour"):
            with pytest.raises(TypeError, match=name):
                envelope.evolve(**{name: 1})

    def test_equal_means_every_field(self) -> None:
        """The message included; and equal ones hash alike."""
        envelope = Envelope(PlaceOrder(1), id=ID, created_at=NOON)

        assert envelope == Envelope(PlaceOrder(1), id=ID.upper(), created_at=NOON)
        assert hash(envelope) == hash(envelope.evolve(name="shop.other"))
        assert envelope != envelope.evolve(message=PlaceOrder(2))
        assert envelope != "envelope"

    def test_its_repr_shows_no_payload(self) -> None:
        """A payload may hold secrets, and a log may hold a repr."""
        assert repr(Envelope("ping", id=ID)) == f"<Envelope ping message {ID}>"
        assert repr(Envelope(PlaceOrder(1), id=ID)) == f"<Envelope shop.place-order command {ID}>"

    @pytest.mark.parametrize(
        "duplicate",
        [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))],  # noqa: S301  our own bytes
        ids=["copy", "deepcopy", "pickle"],
    )
    def test_it_survives_copies(self, duplicate: Any) -> None:
        """Every field arrives."""
        envelope = Envelope(PlaceOrder(1), metadata={"a": 1}, headers={"attempt": 2})

        assert duplicate(envelope) == envelope

    @given(st.datetimes(timezones=st.just(timezone(timedelta(hours=5)))))
    def test_any_aware_time_will_do(self, moment: datetime) -> None:
        """It is kept as it was given."""
        assert Envelope("ping", created_at=moment).created_at == moment


def read_number(payload: bytes) -> Any:
    data = msgspec.json.decode(payload)
    if not isinstance(data, int):
        raise DecodeError("invalid_payload", "no number")
    return data


def lazy(payload: bytes, load: Any = read_number) -> Envelope:
    return Envelope.lazy(
        (payload, load, bytes),
        name="shop.number",
        kind=MessageKind.EVENT,
        id=ID,
        created_at=NOON,
        metadata={},
        headers={},
    )


class TestLazyEnvelope:
    def test_the_message_is_made_once_when_first_asked_for(self) -> None:
        """Forwarding never makes one."""
        calls: list[bytes] = []

        def load(payload: bytes) -> object:
            calls.append(payload)
            return object()

        envelope = lazy(b"5", load)
        assert calls == []

        assert envelope.message is envelope.message
        assert calls == [b"5"]
        assert envelope.payload == b"5"

    def test_a_payload_that_does_not_fit_raises_at_each_access(self) -> None:
        """The envelope stays usable otherwise."""
        envelope = lazy(b"[]")

        for _ in range(2):
            with pytest.raises(DecodeError):
                _ = envelope.message
        assert envelope.name == "shop.number"

    def test_evolving_the_message_drops_the_payload(self) -> None:
        """The bytes would say something else; other changes keep them."""
        assert lazy(b"5").evolve(message=6).payload is None
        assert lazy(b"5").evolve(headers={"attempt": 1}).payload == b"5"

    def test_a_pickle_has_the_message_made(self) -> None:
        """What made it stays behind."""
        again = pickle.loads(pickle.dumps(lazy(b"5")))  # noqa: S301  our own bytes

        assert again == lazy(b"5")
        assert again.payload is None
