"""Every type of field, in every family of classes: what goes in comes out, and nothing else."""

from __future__ import annotations

import dataclasses
import enum
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar
from uuid import UUID, uuid4

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import TypeAliasType

from postbus.catalog import MessageCatalog
from postbus.errors import DecodeError, EncodeError
from postbus.messages import Envelope, MessageKind
from postbus.wire import Reason, decode, encode

T = TypeVar("T")
NAME = "test.message"
OrderId = NewType("OrderId", int)
Number = TypeAliasType("Number", int)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"
    CRIMSON = "red"  # noqa: PIE796  an alias of RED


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


@attrs.frozen
class Point:
    x: int
    y: int = 0


@dataclasses.dataclass(frozen=True)
class Circle:
    radius: float
    centre: Point


class Square(msgspec.Struct, frozen=True):
    side: float


class Cat(msgspec.Struct, frozen=True, tag="cat"):
    name: str


class Dog(msgspec.Struct, frozen=True, tag="dog"):
    name: str


@attrs.frozen
class Card:
    number: str
    method: Literal["card"] = "card"


@attrs.frozen
class Cash:
    number: str
    method: Literal["cash"] = "cash"


@attrs.frozen
class Tree:
    value: int
    children: tuple[Tree, ...] = ()


@attrs.frozen
class Box(Generic[T]):
    content: T
    more: list[T] = attrs.field(factory=list)
    count: int = 0


class Model(pydantic.BaseModel, frozen=True):
    number: int
    label: str = pydantic.Field(default="x", alias="theLabel")


offsets = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda m: timezone(timedelta(minutes=m)))
moments = st.datetimes(
    datetime(1, 1, 3),  # noqa: DTZ001  bounds are naive, the strategy adds the zone
    datetime(9999, 12, 29),  # noqa: DTZ001  the same
    timezones=offsets,
)
finite = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(max_size=8)
points = st.builds(Point, st.integers(), st.integers())
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)

TYPES: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "none": (type(None), st.none()),
    "bool": (bool, st.booleans()),
    "int": (int, st.integers() | st.integers(-(10**40), 10**40)),
    "float": (float, finite),
    "str": (str, words),
    "bytes": (bytes, st.binary(max_size=20)),
    "decimal": (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    "uuid": (UUID, st.uuids()),
    "datetime": (datetime, moments),
    "date": (date, st.dates()),
    "time": (time, st.times() | st.times(timezones=offsets)),
    "timedelta": (timedelta, st.timedeltas()),
    "enum": (Colour, st.sampled_from(Colour)),
    "int_enum": (Size, st.sampled_from(Size)),
    "literal": (
        Literal["a", 1, True, None],  # noqa: PYI061  that a Literal may hold it is what is tested
        st.sampled_from(["a", 1, True, None]),
    ),
    "literal_enum": (Literal[Colour.RED], st.just(Colour.RED)),
    "list": (list[int], st.lists(st.integers(), max_size=4)),
    "bare_list": (list, st.lists(json_values, max_size=3)),
    "variadic": (tuple[str, ...], st.lists(words, max_size=4).map(tuple)),
    "bare_tuple": (tuple, st.lists(json_values, max_size=3).map(tuple)),
    "fixed": (tuple[int, str, UUID], st.tuples(st.integers(), words, st.uuids())),
    "no_items": (tuple[()], st.just(())),
    "set": (set[str], st.sets(words, max_size=4)),
    "frozenset": (frozenset[int], st.frozensets(st.integers(), max_size=4)),
    "dict": (dict[str, UUID], st.dictionaries(words, st.uuids(), max_size=3)),
    "int_keys": (dict[int, str], st.dictionaries(st.integers(), words, max_size=3)),
    "uuid_keys": (dict[UUID, int], st.dictionaries(st.uuids(), st.integers(), max_size=3)),
    "enum_keys": (
        dict[Colour, int],
        st.dictionaries(st.sampled_from(Colour), st.integers(), max_size=3),
    ),
    "int_enum_keys": (
        dict[Size, int],
        st.dictionaries(st.sampled_from(Size), st.integers(), max_size=3),
    ),
    "bare_dict": (dict, st.dictionaries(words, json_values, max_size=3)),
    "json": (dict[str, Any], st.dictionaries(words, json_values, max_size=3)),
    "any": (Any, json_values),
    "object": (object, json_values),
    "optional": (UUID | None, st.none() | st.uuids()),
    "optional_any": (Any | None, json_values),
    "scalars": (int | str | bool | None, st.none() | st.integers() | words | st.booleans()),
    "numbers": (int | float, st.integers() | finite),
    "shapes": (
        list[int] | dict[str, int] | Colour,
        st.lists(st.integers(), max_size=2)
        | st.dictionaries(words, st.integers(), max_size=2)
        | st.sampled_from(Colour),
    ),
    "nested": (Point, points),
    "across_families": (Circle, st.builds(Circle, finite, points)),
    "by_required_field": (
        Circle | Square | None,
        st.none() | st.builds(Circle, finite, points) | st.builds(Square, finite),
    ),
    "by_struct_tag": (Cat | Dog, st.builds(Cat, words) | st.builds(Dog, words)),
    "by_literal": (Card | Cash, st.builds(Card, words) | st.builds(Cash, words)),
    "itself": (
        Tree,
        st.recursive(
            st.builds(Tree, st.integers()),
            lambda inner: st.builds(Tree, st.integers(), st.lists(inner, max_size=2).map(tuple)),
            max_leaves=5,
        ),
    ),
    "generic": (Box[UUID], st.builds(Box, st.uuids(), st.lists(st.uuids(), max_size=2))),
    "model": (Model, st.builds(Model, number=st.integers(), theLabel=words)),
    "newtype": (OrderId, st.integers()),
    "annotated": (Annotated[int, "in metres"], st.integers()),
    "constrained": (Annotated[int, msgspec.Meta(gt=0, lt=10)], st.integers(1, 9)),
    "constrained_or_text": (
        Annotated[int, msgspec.Meta(gt=0)] | str,
        st.integers(1, 9) | words,
    ),
    "constrained_union": (
        Annotated[int | None, msgspec.Meta(description="how many")] | str,
        st.none() | st.integers(1, 9) | words,
    ),
}
FAMILIES = ["attrs", "slotted attrs", "dataclass", "slotted dataclass", "Struct", "pydantic"]


def make_class(family: str, tp: Any) -> type:
    """Build a message class with one field of a type."""
    match family:
        case "attrs":
            return attrs.make_class("Message", {"value": attrs.field(type=tp)}, slots=False)
        case "slotted attrs":
            return attrs.make_class("Message", {"value": attrs.field(type=tp)}, frozen=True)
        case "dataclass":
            return dataclasses.make_dataclass("Message", [("value", tp)])
        case "slotted dataclass":
            return dataclasses.make_dataclass("Message", [("value", tp)], slots=True)
        case "Struct":
            return msgspec.defstruct("Message", [("value", tp)])
        case _:
            config = pydantic.ConfigDict(arbitrary_types_allowed=True)
            return pydantic.create_model("Message", __config__=config, value=(tp, ...))


def catalog_of(cls: type) -> MessageCatalog:
    catalog = MessageCatalog()
    catalog.add(cls, name=NAME, kind=MessageKind.COMMAND)
    return catalog


def round_trip(message: Any) -> Any:
    body = encode(Envelope(message, name=NAME))
    return decode(body, catalog_of(type(message))).message


CLASSES = {(f, t): make_class(f, TYPES[t][0]) for f in FAMILIES for t in TYPES}


@pytest.mark.parametrize("field", TYPES)
@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_every_value_comes_back(family: str, field: str, data: st.DataObject) -> None:
    """C15: a message that is encoded and decoded equals itself, type for type."""
    value = data.draw(TYPES[field][1])
    message = CLASSES[family, field](value=value)

    again = round_trip(message)

    assert again == message
    assert type(again.value) is type(value)


def body_with(value: str) -> bytes:
    return (
        f'{{"message_name":"{NAME}","uuid":"0f0e0d0c-0b0a-4908-8706-050403020100",'
        f'"payload":{{"value":{value}}},"metadata":{{}},"created_at":"2024-05-17T12:00:00.000000"}}'
    ).encode()


def read(tp: Any, value: str) -> Any:
    cls = attrs.make_class("Message", {"value": attrs.field(type=tp)})
    return decode(body_with(value), catalog_of(cls)).message.value


REFUSED: list[tuple[Any, str]] = [
    (type(None), "0"),
    (bool, "1"),
    (bool, '"true"'),
    (int, "true"),
    (int, '"5"'),
    (int, "5.0"),
    (int, "null"),
    (float, "true"),
    (float, '"1.5"'),
    (float, "9007199254740993"),
    (float, "1" + "0" * 400),
    (str, "5"),
    (str, "null"),
    (str, "[]"),
    (bytes, '"AAH_"'),
    (bytes, '"AAE"'),
    (bytes, '"AB=="'),
    (bytes, '"AAH/\\n"'),
    (bytes, '"é"'),
    (bytes, "[1]"),
    (Decimal, "1.5"),
    (Decimal, '"NaN"'),
    (Decimal, '"Infinity"'),
    (Decimal, '"1_000"'),
    (Decimal, '" 1"'),
    (Decimal, '"\u0661"'),
    (Decimal, '".5"'),
    (Decimal, '"1E+9999999999999999999999"'),
    (UUID, '"0f0e0d0c"'),
    (UUID, "5"),
    (datetime, '"2024-05-17T12:00:00"'),
    (datetime, '"2024-05-17"'),
    (datetime, '"2024-13-17T12:00:00Z"'),
    (datetime, "0"),
    (date, '"2024-05-17T12:00:00Z"'),
    (date, '"2024-02-30"'),
    (date, "1"),
    (time, '"25:00:00"'),
    (time, "1"),
    (timedelta, '"P1Y"'),
    (timedelta, '"1 day"'),
    (timedelta, "5"),
    (Colour, '"green"'),
    (Colour, '"RED"'),
    (Colour, "[]"),
    (Size, "true"),
    (Size, "1.0"),
    (Size, "3"),
    (Literal["a", 1], "true"),
    (Literal["a", 1], '"1"'),
    (Literal["a", 1], "{}"),
    (list[int], '"12"'),
    (list[int], '{"0":1}'),
    (list[int], '[1,"2"]'),
    (list, "{}"),
    (tuple[int, ...], "1"),
    (tuple[int, str], "[1]"),
    (tuple[int, str], '[1,"a",2]'),
    (tuple[int, str], '"1a"'),
    (set[int], "{}"),
    (frozenset[str], "[1]"),
    (set[list[int]], "[[1]]"),
    (dict[str, int], "[]"),
    (dict[str, int], '{"a":"1"}'),
    (dict, "[]"),
    (dict[int, int], '{"01":1}'),
    (dict[int, int], '{"1.0":1}'),
    (dict[int, int], '{"\u0661":1}'),
    (dict[int, int], '{"1_0":1}'),
    (dict[UUID, int], '{"x":1}'),
    (dict[Colour, int], '{"green":1}'),
    (int | None, '"1"'),
    (int | str, "1.5"),
    (int | str, "[]"),
    (Point, "[1,2]"),
    (Point, '"x"'),
    (Point, "null"),
    (Point, '{"y":1}'),
    (Point, '{"x":"1"}'),
    (Point, '{"x":1,"z":1}'),
    (Circle, '{"radius":1.0,"centre":{"x":1,"q":1}}'),
    (Circle | Square, "{}"),
    (Circle | Square, '{"radius":1.0,"side":1.0}'),
    (Cat | Dog, '{"name":"x"}'),
    (Cat | Dog, '{"type":"cow","name":"x"}'),
    (Cat | Dog, '{"type":["cat"],"name":"x"}'),
    (Cat, '{"type":"dog","name":"x"}'),
    (Card | Cash, '{"number":"x"}'),
    (Model, '{"number":"1"}'),
    (Model, '{"number":1,"label":"y"}'),
    (Annotated[int, msgspec.Meta(gt=0)], "0"),
]


@pytest.mark.parametrize(("tp", "value"), REFUSED, ids=lambda part: str(part)[:40])
def test_nothing_is_converted(tp: Any, value: str) -> None:
    """A5: a value of another type than the field's is refused, never made to fit."""
    with pytest.raises(DecodeError) as caught:
        read(tp, value)

    assert caught.value.reason == Reason.INVALID_PAYLOAD
    assert "value" in caught.value.message


READ: list[tuple[Any, str, Any]] = [
    (float, "5", 5.0),
    (float, "1e3", 1000.0),
    (int, "-0", 0),
    (int, str(2**64), 2**64),
    (UUID, '"0F0E0D0C0B0A49088706050403020100"', UUID("0f0e0d0c-0b0a-4908-8706-050403020100")),
    (datetime, '"2024-05-17 12:00:00z"', datetime(2024, 5, 17, 12, tzinfo=UTC)),
    (timedelta, '"-PT90M"', timedelta(minutes=-90)),
    (Decimal, '"1E+3"', Decimal("1E+3")),
    (dict[str, int], '{"a":1,"a":2}', {"a": 2}),
    (set[int], "[1,1]", {1}),
    (int | float, "5", 5),
    (int | float, "5.0", 5.0),
    (float | None, "5", 5.0),
]


@pytest.mark.parametrize(("tp", "value", "expected"), READ, ids=lambda part: str(part)[:40])
def test_other_spellings_of_a_value_are_read(tp: Any, value: str, expected: object) -> None:
    """Peers in other languages write whole floats as ints, and offsets as they like."""
    result = read(tp, value)

    assert result == expected
    assert type(result) is type(expected)


@attrs.frozen
class Address:
    street: str
    city: str = ""


@attrs.frozen
class LongAddress(Address):
    country: str = ""


@attrs.frozen
class Street:
    street: str
    city: str = ""


class Text(str):
    __slots__ = ()


class Moment(datetime):
    pass


class Key(UUID):
    pass


UNWRITABLE: list[tuple[Any, Any]] = [
    (type(None), 0),
    (bool, 1),
    (int, True),
    (int, "5"),
    (int, 5.0),
    (int, 10**1001),
    (float, "5"),
    (float, True),
    (float, math.nan),
    (float, math.inf),
    (float, 2**53 + 1),
    (float, 10**400),
    (str, 5),
    (str, "\ud800"),
    (bytes, "x"),
    (bytes, bytearray(b"x")),
    (Decimal, 1.5),
    (Decimal, Decimal("NaN")),
    (Decimal, Decimal("-Infinity")),
    (UUID, str(uuid4())),
    (datetime, datetime(2024, 5, 17)),  # noqa: DTZ001  that is the point
    (datetime, date(2024, 5, 17)),
    (datetime, datetime(2024, 5, 17, tzinfo=timezone(timedelta(seconds=30)))),
    (date, datetime(2024, 5, 17, tzinfo=UTC)),
    (time, "12:00"),
    (time, time(12, tzinfo=timezone(timedelta(seconds=30)))),
    (timedelta, 5),
    (Colour, "red"),
    (Size, 1),
    (Literal["a"], "b"),
    (Literal["a"], []),
    (Literal[1], True),
    (list[int], (1,)),
    (list[int], ["1"]),
    (tuple[int, ...], [1]),
    (tuple[int, str], (1,)),
    (set[int], frozenset({1})),
    (dict[str, int], OrderedDict(a=1)),
    (dict[str, int], {1: 1}),
    (dict[int, int], {"1": 1}),
    (dict[int, int], {True: 1}),
    (int | None, "1"),
    (int | str, 1.5),
    (Point, Circle(1.0, Point(1))),
    (Point, {"x": 1}),
    (Point, Point("1")),  # type: ignore[arg-type]  # wrong on purpose
    (Model, Model.model_construct(number="1")),
    (Any, math.nan),
    (Any, {"a": [{"b": math.inf}]}),
    (Any, {1: "a"}),
    (Any, object()),
    (Any, Point(1)),
    (Any, datetime(2024, 5, 17, tzinfo=UTC)),
    (Any, uuid4()),
    (Any, b"x"),
    (Any, msgspec.Raw(b"no json")),
    (Any, "\udc80"),
    (Any, Text("x")),
    (dict[str, Any], OrderedDict(a=1)),
    (dict[str, Any], {"a": {"b": {"c": {"d": {"e": {"f": {"g": {1: 2}}}}}}}}),
    (Annotated[int, msgspec.Meta(gt=0)], 0),
    (Tree, Tree(1, (Tree("2"),))),  # type: ignore[arg-type]  # wrong on purpose
]


@attrs.frozen
class Untyped:
    value: dict[str, Any]


def test_a_number_too_long_is_not_written_in_a_field_of_any_json() -> None:
    """What decode would refuse is refused here, whichever way a payload is checked."""
    with pytest.raises(EncodeError, match="digits"):
        encode(Envelope(Untyped({"n": 10**2000}), name=NAME))


@pytest.mark.parametrize(("tp", "value"), UNWRITABLE, ids=lambda part: ascii(part)[:40])
def test_what_could_not_be_read_is_not_written(tp: Any, value: object) -> None:
    """NaN, naive times and values of another type end in an EncodeError that names the field."""
    cls = attrs.make_class("Message", {"value": attrs.field(type=tp)})

    with pytest.raises(EncodeError) as caught:
        encode(Envelope(cls(value), name=NAME))

    assert NAME in str(caught.value)


@pytest.mark.parametrize(
    ("tp", "value", "expected"),
    [
        (str, Text("x"), "x"),
        (int, Size.LARGE, 2),
        (float, type("Number", (float,), {})(1.5), 1.5),
        (float, 5, 5.0),
        (bytes, type("Bytes", (bytes,), {})(b"x"), b"x"),
        (UUID, Key(int=5), UUID(int=5)),
        (datetime, Moment(2024, 5, 17, tzinfo=UTC), datetime(2024, 5, 17, tzinfo=UTC)),
        (Decimal, type("Money", (Decimal,), {})("1.50"), Decimal("1.50")),
        (float | str, 5, 5.0),
        (list[str] | str, Text("x"), "x"),
    ],
    ids=str,
)
def test_subclasses_of_plain_values_are_written_as_what_they_are(
    tp: Any, value: object, expected: object
) -> None:
    """An enum of text is text; what comes back equals it and has the field's type."""
    cls = attrs.make_class("Message", {"value": attrs.field(type=tp)})

    result = round_trip(cls(value)).value

    assert result == expected == value
    assert type(result) is type(expected)


def test_a_type_without_an_annotation_is_plain_json_with_three_liberties() -> None:
    """Nothing says what a tuple, a set or a Decimal should become again."""
    value = {"a": (1, 2), "b": {3}, "c": Decimal("1.5")}
    message = CLASSES["attrs", "any"](value)
    deep: Any = value
    for _ in range(10):
        deep = [deep]

    assert round_trip(message).value == {"a": [1, 2], "b": [3], "c": "1.5"}
    assert round_trip(CLASSES["attrs", "any"](deep)).value != deep


class Loose(TypedDict):
    x: int


class Pair(NamedTuple):
    x: int


class Odd(enum.Enum):
    PAIR = (1, 2)


class Rows(msgspec.Struct, array_like=True):
    x: int


class Root(pydantic.RootModel[int]):
    pass


class Hidden(pydantic.BaseModel):
    secret: str = pydantic.Field(exclude=True)


class Choices(pydantic.BaseModel):
    x: int = pydantic.Field(validation_alias=pydantic.AliasChoices("a", "b"))


@dataclasses.dataclass
class Temporary:
    x: int
    seed: dataclasses.InitVar[int]


@attrs.frozen
class Unresolved:
    x: NoSuchName  # type: ignore[name-defined]  # noqa: F821  that is the point


@attrs.frozen
class Twin:
    x: int


@attrs.frozen
class Tagged:
    x: int
    kind: Literal["a"] = "a"


@attrs.frozen
class AlsoTagged:
    x: int
    kind: Literal["a", "b"] = "b"


UNSUPPORTED: list[tuple[Any, str]] = [
    (complex, "complex cannot cross the wire"),
    (Sequence[int], "Sequence"),
    (Loose, "Loose"),
    (Pair, "Pair"),
    (Odd, "only str, int, bool and None"),
    (Rows, "array_like"),
    (Root, "RootModel"),
    (Hidden, "excluded"),
    (Choices, "several aliases"),
    (Temporary, "InitVar"),
    (Unresolved, "NoSuchName"),
    (T, "type variable"),
    (Box, "type variable"),
    (list[complex], "complex"),
    (dict[float, int], "key of a dict"),
    (dict[Literal["a", 1], int], "key of a dict"),
    (dict[tuple[int, int], int], "key of a dict"),
    (str | UUID, "look alike"),
    (datetime | date, "look alike"),
    (list[int] | set[int], "look alike"),
    (Point | dict[str, int], "look alike"),
    (Literal[1] | float, "look alike"),
    (Point | Twin, "look alike"),
    (Tagged | AlsoTagged, "look alike"),
    (Annotated[str, msgspec.Meta(gt=0)], "numeric type"),
    (Literal["a", 1.5], "only str, int, bool and None"),
]


@pytest.mark.parametrize(("tp", "words"), UNSUPPORTED, ids=lambda part: str(part)[:40])
class TestUnsupportedTypes:
    def test_writing_says_so(self, tp: Any, words: str) -> None:
        """At the first use of the class, whatever the value is."""
        cls = attrs.make_class("Message", {"value": attrs.field(type=tp)})

        for _ in range(2):
            with pytest.raises(EncodeError, match=words):
                encode(Envelope(cls(None), name=NAME))

    def test_reading_says_so(self, tp: Any, words: str) -> None:
        """With a reason of its own: the sender did nothing wrong."""
        with pytest.raises(DecodeError, match=words) as caught:
            read(tp, "null")

        assert caught.value.reason == Reason.UNSUPPORTED_TYPE


@attrs.frozen
class Order:
    _number: int
    total: Decimal = attrs.field(alias="sum", default=Decimal(0))
    converter: str = "c"
    lines: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    hidden: int = attrs.field(init=False, default=7)


@attrs.frozen
class Checked:
    age: int = attrs.field(validator=attrs.validators.ge(18))


@attrs.define
class Raising:
    value: int

    def __attrs_post_init__(self) -> None:
        raise KeyError("secret")


class TestClasses:
    def test_keys_are_what_the_constructor_takes(self) -> None:
        """Aliases and private names; `init=False` fields are not written."""
        body = encode(Envelope(Order(5, Decimal("1.5")), name=NAME))

        assert b'"payload":{"number":5,"sum":"1.5","converter":"c","lines":[]}' in body
        given: Any = Order
        assert round_trip(given(5, Decimal("1.5"), "d", ["x"])) == given(
            5, Decimal("1.5"), "d", ("x",)
        )

    @pytest.mark.parametrize("payload", ['{"number":1,"hidden":8}', '{"_number":1}'])
    def test_init_false_fields_cannot_be_set_from_outside(self, payload: str) -> None:
        """Nor can a field be reached by its private name."""
        body = body_with("0").replace(b'{"value":0}', payload.encode())

        with pytest.raises(DecodeError, match="invalid_payload"):
            _ = decode(body, catalog_of(Order)).message

    def test_validators_run_and_their_words_stay_out_of_the_error(self) -> None:
        """They may say what they refused, which can be a secret."""
        body = body_with("0").replace(b'{"value":0}', b'{"age":17}')

        with pytest.raises(DecodeError) as caught:
            _ = decode(body, catalog_of(Checked)).message

        assert caught.value.message == "Checked: refused its fields (ValueError)"
        assert caught.value.__suppress_context__

    def test_whatever_a_class_raises_is_a_decode_error(self) -> None:
        """Its own exceptions do not escape."""
        with pytest.raises(DecodeError, match="KeyError") as caught:
            _ = decode(body_with("1"), catalog_of(Raising)).message

        assert "secret" not in str(caught.value)

    def test_a_fault_deep_inside_is_named_by_its_path(self) -> None:
        """The failure store says where to look."""
        cls = attrs.make_class("Message", {"value": attrs.field(type=Circle)})
        body = body_with('{"radius":1,"centre":{"x":"1"}}')

        with pytest.raises(DecodeError) as caught:
            _ = decode(body, catalog_of(cls)).message

        assert caught.value.message == "Message: value.centre.x: expected int, got str"
        with pytest.raises(EncodeError, match=r"value\.centre\.x: expected int, got str"):
            encode(Envelope(cls(Circle(1.0, Point("1"))), name=NAME))  # type: ignore[arg-type]  # wrong on purpose

    def test_finding_the_fault_costs_no_more_than_the_value_is_deep(self) -> None:
        """A fault below sixty levels is found in one pass, not in two to the sixtieth."""
        value = '"wrong"'
        for _ in range(28):
            value = f'{{"value":1,"children":[{value}]}}'

        with pytest.raises(DecodeError, match=r"children\.children"):
            read(Tree, value)

    def test_unknown_fields_are_ignored_where_the_consumer_says_so(self) -> None:
        """At every level; the wrong types are refused all the same."""
        cls = attrs.make_class("Message", {"value": attrs.field(type=Point)})
        body = body_with('{"x":1,"new":2},"newer":3')

        envelope = decode(body, catalog_of(cls), unknown_fields="ignore")

        assert envelope.message == cls(Point(1))
        with pytest.raises(DecodeError, match="no field"):
            _ = decode(body, catalog_of(cls)).message
        for wrong in ("[]", '"x"', "null", '{"y":1}'):
            with pytest.raises(DecodeError):
                _ = decode(body_with(wrong), catalog_of(cls), unknown_fields="ignore").message

    def test_an_object_that_could_be_two_classes_is_refused(self) -> None:
        """Also where unknown fields are ignored: nothing is guessed."""
        either: Any = Circle | Square
        cls = attrs.make_class("Message", {"value": attrs.field(type=either)})
        body = body_with('{"radius":1.0,"centre":{"x":1},"side":1.0}')

        with pytest.raises(DecodeError, match="exactly one"):
            _ = decode(body, catalog_of(cls), unknown_fields="ignore").message

    @pytest.mark.parametrize("family", FAMILIES[:-1])
    @pytest.mark.parametrize(
        "part",
        [LongAddress("a", "b"), Street("a"), {"street": "a"}, Address(Text("a"), 1)],  # type: ignore[arg-type]  # wrong on purpose
        ids=["subclass", "look-alike", "dict", "wrong inside"],
    )
    def test_a_part_of_another_class_is_not_written_as_if_it_were_one(
        self, family: str, part: object
    ) -> None:
        """It would lose what its own class has, or come back as something else."""
        cls = make_class(family, Address)

        with pytest.raises(EncodeError, match="value"):
            encode(Envelope(cls(value=part), name=NAME))

    def test_extra_fields_of_a_model_are_not_dropped_in_silence(self) -> None:
        """Its class does not declare them, so the other side would refuse them."""

        class Open(pydantic.BaseModel, extra="allow"):
            x: int

        with pytest.raises(EncodeError, match="does not declare"):
            encode(Envelope(Open.model_validate({"x": 1, "y": 2}), name=NAME))

    def test_validators_of_models_run(self) -> None:
        """Pydantic's constraints hold for what comes from outside."""

        class Positive(pydantic.BaseModel):
            value: int = pydantic.Field(gt=0)

        assert decode(body_with("1"), catalog_of(Positive)).message == Positive(value=1)
        with pytest.raises(DecodeError, match="invalid_payload"):
            _ = decode(body_with("0"), catalog_of(Positive)).message

    def test_excluded_fields_of_models_stay_at_home(self) -> None:
        """They keep their default on the other side."""

        class Login(pydantic.BaseModel):
            user: str
            password: str = pydantic.Field(default="", exclude=True)

        message = Login(user="a", password="hidden")  # noqa: S106  nobody's password
        body = encode(Envelope(message, name=NAME))

        assert b"hidden" not in body
        assert decode(body, catalog_of(Login)).message == Login(user="a")

    def test_a_renamed_struct_is_written_by_its_other_name(self) -> None:
        """As msgspec itself writes it, so that plain msgspec peers read it."""

        class Renamed(msgspec.Struct, rename="camel", tag=True):
            order_id: int

        body = encode(Envelope(Renamed(1), name=NAME))

        assert b'"payload":{"type":"Renamed","orderId":1}' in body
        assert decode(body, catalog_of(Renamed)).message == Renamed(1)

    def test_a_value_that_was_never_set_is_an_encode_error(self) -> None:
        """A slot may be empty."""
        with pytest.raises(EncodeError):
            encode(Envelope(Point.__new__(Point), name=NAME))

    def test_first_uses_in_many_threads_do_not_meet(self) -> None:
        """A class that holds itself is worked out by one of them, and used by all."""

        @attrs.frozen
        class Node:
            value: int

        Node.__annotations__["value"] = int
        catalog = catalog_of(Tree)
        start = threading.Barrier(8)
        results: list[object] = []

        def use() -> None:
            start.wait()
            message = Tree(1, (Tree(2),))
            results.append(decode(encode(Envelope(message, name=NAME)), catalog).message)

        threads = [threading.Thread(target=use) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert results == [Tree(1, (Tree(2),))] * 8

    def test_one_class_is_no_other_of_the_same_name(self) -> None:
        """What was worked out for one is never used for the other."""
        first, second = make_class("attrs", int), make_class("attrs", str)

        assert round_trip(first(1)) == first(1)
        assert round_trip(second("x")) == second("x")

    def test_type_aliases_mean_what_they_stand_for(self) -> None:
        """`type Id = int` is an int; before Python 3.12 typing_extensions has the same."""
        assert read(Number, "5") == 5
