"""Answers on the wire: results as plain JSON, failures as RFC 9457 problem objects."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Generic, TypeVar
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbus.errors import (
    ClosedError,
    CommandDispatchError,
    DecodeError,
    EncodeError,
    HandlerFailedError,
    NoHandlerError,
    PostbusError,
    RejectedError,
    TimedOutError,
    UnauthorizedError,
    ValidationFailedError,
)
from postbus.messages import Command, Envelope, Query
from postbus.wire import (
    Reason,
    answer_type,
    decode_problem,
    decode_result,
    encode_problem,
    encode_result,
)

T = TypeVar("T")
U = TypeVar("U")
ID = UUID("0f0e0d0c-0b0a-4908-8706-050403020100")
ENVELOPE = Envelope("ping")


class Colour(Enum):
    RED = "red"


@attrs.frozen
class Price:
    amount: Decimal
    currency: str = "EUR"


@dataclasses.dataclass
class Stock:
    sku: str
    price: Price


class Reading(msgspec.Struct):
    value: float


class Model(pydantic.BaseModel):
    number: int


class TestResults:
    @pytest.mark.parametrize(
        ("value", "tp"),
        [
            (None, None),
            (True, bool),
            (5, int),
            (0.5, float),
            ("é☃", str),
            (b"\x00", bytes),
            (Decimal("1.50"), Decimal),
            (ID, UUID),
            (datetime(2024, 5, 17, tzinfo=UTC), datetime),
            (date(2024, 5, 17), date),
            (Colour.RED, Colour),
            (Price(Decimal(1)), Price),
            (Stock("a", Price(Decimal(1))), Stock),
            (Reading(1.5), Reading),
            (Model(number=1), Model),
            ([Price(Decimal(1))], list[Price]),
            ((1, "a"), tuple[int, str]),
            ({1, 2}, set[int]),
            (frozenset({"a"}), frozenset[str]),
            ({"a": [Price(Decimal(1))]}, dict[str, list[Price]]),
            ({ID: {Colour.RED: 1}}, dict[UUID, dict[Colour, int]]),
            ({1: None}, dict[int, Price | None]),
            ({"a": [1, 2.5, None, True]}, Any),
        ],
        ids=lambda part: str(part)[:40],
    )
    def test_an_answer_comes_back_as_its_type(self, value: object, tp: Any) -> None:
        """Strictly structured into R of `Query[R]`."""
        result = decode_result(encode_result(value), tp)

        assert result == value
        assert type(result) is type(value)

    def test_the_body_is_the_json_of_the_result_and_nothing_else(self) -> None:
        """Z03: a REP socket in C or any web server can answer."""
        assert encode_result({"a": Price(Decimal("1.5"))}) == (
            b'{"a":{"amount":"1.5","currency":"EUR"}}'
        )
        assert encode_result(None) == b"null"
        assert decode_result(b' {"amount" : "1.5"} ', Price) == Price(Decimal("1.5"))

    def test_without_a_type_plain_json_comes_back(self) -> None:
        """Nothing says what the text was."""
        assert decode_result(encode_result({"id": ID, "when": [date(2024, 5, 17)]}), Any) == {
            "id": str(ID),
            "when": ["2024-05-17"],
        }

    @pytest.mark.parametrize(
        "value",
        [
            math.nan,
            [math.inf],
            object(),
            {"a": {"b": object()}},
            datetime(2024, 5, 17),  # noqa: DTZ001  that is the point
            "\ud800",
            {1.5: 1},
            {None: 1},
            Price(1.5),  # type: ignore[arg-type]  # wrong on purpose
            "x" * 2**20,
            msgspec.Raw(b"no json"),
        ],
        ids=lambda part: ascii(part)[:40],
    )
    def test_what_could_not_be_read_is_not_written(self, value: object) -> None:
        """NaN, naive times and objects without fields end in an EncodeError."""
        with pytest.raises(EncodeError, match="the result"):
            encode_result(value)

    def test_an_answer_that_holds_itself_is_refused(self) -> None:
        """There is no end to write; nor to what is nested too deeply."""
        endless: list[Any] = []
        endless.append(endless)
        deep: list[Any] = []
        for _ in range(64):
            deep = [deep]

        for value in (endless, deep):
            with pytest.raises(EncodeError):
                encode_result(value)

    @pytest.mark.parametrize(
        ("body", "tp", "reason"),
        [
            (b"", int, Reason.MALFORMED),
            (b"NaN", float, Reason.MALFORMED),
            (b"\xff", str, Reason.NOT_UTF8),
            (b"\xef\xbb\xbf1", int, Reason.BOM),
            (b"[" * 100 + b"]" * 100, Any, Reason.TOO_DEEP),
            (b'"1"', int, Reason.INVALID_RESULT),
            (b"true", int, Reason.INVALID_RESULT),
            (b'{"amount":"1","tax":1}', Price, Reason.INVALID_RESULT),
            (b"[1]", Price, Reason.INVALID_RESULT),
            (b"[[1]]", set[list[int]], Reason.INVALID_RESULT),
            (b"1", complex, Reason.UNSUPPORTED_TYPE),
            (b"1", "NoSuchName", Reason.UNSUPPORTED_TYPE),
        ],
    )
    def test_a_body_that_does_not_fit_is_refused(
        self, body: bytes, tp: Any, reason: Reason
    ) -> None:
        """With the reason codes of messages."""
        with pytest.raises(DecodeError) as caught:
            decode_result(body, tp)

        assert caught.value.reason == reason

    def test_a_body_is_as_large_as_allowed(self) -> None:
        """On both sides."""
        assert decode_result(encode_result("x", max_size_bytes=3), str, max_size_bytes=3) == "x"
        with pytest.raises(EncodeError, match="3 bytes"):
            encode_result("x", max_size_bytes=2)
        with pytest.raises(DecodeError, match="too_large"):
            decode_result(b'"x"', str, max_size_bytes=2)

    @given(st.binary(max_size=60))
    def test_any_bytes_at_all_raise_a_decode_error_or_are_an_answer(self, body: bytes) -> None:
        """A peer may answer with anything."""
        with contextlib.suppress(DecodeError):
            decode_result(body, Any)


class FindPrice(Query[Price]):
    pass


class Anything(Query):  # type: ignore[type-arg]  # the bare class is what is tested
    pass


class Quoted(Query["Price | None"]):
    pass


class Unknown(Query["NoSuchName"]):  # type: ignore[name-defined]
    pass


class Page(Query[list[T]], Generic[T]):
    pass


class PriceOf(Query[U], Generic[T, U]):
    pass


class Prices(Page[Price]):
    pass


class Special(PriceOf[int, Price]):
    pass


class VerySpecial(Special):
    pass


@attrs.frozen
class Slotted(Query[dict[str, int]]):
    number: int


class Mixed(Command, FindPrice):  # a class may have other parents before the query
    pass


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (FindPrice, Price),
        (Anything, Any),
        (Query, Any),
        (int, Any),
        (Quoted, Price | None),
        (PriceOf, Any),
        (Prices, list[Price]),
        (Special, Price),
        (VerySpecial, Price),
        (Slotted, dict[str, int]),
        (Mixed, Price),
    ],
    ids=lambda part: getattr(part, "__name__", str(part)),
)
def test_the_type_of_the_answer_is_r_of_query_r(cls: type, expected: Any) -> None:
    """Through parents, slots, quotes and type variables; Any where none is given."""
    assert answer_type(cls) == expected


def test_an_answer_type_that_cannot_be_resolved_says_so_when_used() -> None:
    """A query about it fails with the name; asking for the type does not."""
    with pytest.raises(DecodeError, match="NoSuchName"):
        decode_result(b"1", answer_type(Unknown))


def registered(code: str, message: str) -> HandlerFailedError:
    error = HandlerFailedError(code, message)
    error.is_registered = True
    return error


def problem(**members: Any) -> bytes:
    return json.dumps(members).encode()


class TestProblems:
    @pytest.mark.parametrize(
        "error",
        [
            registered("shop.closed", "the shop is closed"),
            NoHandlerError("nothing handles shop.ask"),
            UnauthorizedError("no"),
            ValidationFailedError("a validator refused this message"),
            TimedOutError("30 seconds are over"),
            RejectedError("too large"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_ours_come_back_as_they_were(self, error: Any) -> None:
        """The class, the code and the words; the envelope is the asker's."""
        again = decode_problem(encode_problem(error), ENVELOPE)

        assert type(again) is type(error)
        assert (again.message, again.envelope) == (error.message, ENVELOPE)  # type: ignore[attr-defined]  # all five have them
        assert getattr(again, "code", None) == getattr(error, "code", None)
        assert again.__cause__ is None

    def test_it_is_an_rfc_9457_object(self) -> None:
        """`type`, `title` and `detail` as the RFC has them, and our `code`."""
        assert json.loads(encode_problem(registered("shop.closed", "we are closed"))) == {
            "type": "urn:postbus:problem:handler-failed",
            "title": "the handler failed",
            "code": "shop.closed",
            "detail": "we are closed",
        }

    @pytest.mark.parametrize(
        "error",
        [
            HandlerFailedError("error", "password=hidden"),
            HandlerFailedError("a-code-of-its-own", "password=hidden"),
            ValueError("password=hidden"),
            KeyboardInterrupt("password=hidden"),
            ClosedError("password=hidden"),
            PostbusError("password=hidden"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_what_an_unregistered_error_says_stays_here(self, error: BaseException) -> None:
        """A18: it may hold anything. The asker learns that the handler failed."""
        body = encode_problem(error)

        assert b"hidden" not in body
        again = decode_problem(body, None)
        assert isinstance(again, HandlerFailedError)
        assert again.code == getattr(error, "code", "error")

    def test_what_a_validator_says_stays_here(self) -> None:
        """It may quote the message it refuses; that it was refused crosses."""
        body = encode_problem(ValidationFailedError("password=hidden"))

        assert b"hidden" not in body
        assert json.loads(body)["code"] == "validation-failed"

    def test_a_query_that_could_not_be_read_is_rejected(self) -> None:
        """With the reason, so that the asker can tell what was wrong with it."""
        body = encode_problem(DecodeError(Reason.UNKNOWN_NAME, "shop.ask is in no catalogue here"))

        assert json.loads(body)["code"] == "unknown_name"
        again = decode_problem(body, ENVELOPE)
        assert type(again) is RejectedError
        assert "shop.ask" in str(again)

    def test_a_failure_with_pending_commands_is_a_handler_failure(self) -> None:
        """The commands are the handler's side's business."""
        error = CommandDispatchError("c", "m", None, [ENVELOPE])
        error.is_registered = True

        again = decode_problem(encode_problem(error), None)

        assert type(again) is HandlerFailedError
        assert (again.code, again.message) == ("c", "m")

    def test_long_words_are_cut_and_text_that_utf8_lacks_is_replaced(self) -> None:
        """An error never becomes another error, and a peer cannot fill a log."""
        body = encode_problem(registered("c\ud800" + "c" * 500, "m\udc80" + "m" * 5_000))
        there = json.loads(body)

        assert (there["code"][:3], there["detail"][:3]) == ("c?c", "m?m")
        assert (len(there["code"]), len(there["detail"])) == (128, 1024)
        again = decode_problem(
            problem(type="urn:postbus:problem:handler-failed", code="c" * 500, detail="d" * 5_000),
            None,
        )
        assert isinstance(again, HandlerFailedError)
        assert (len(again.code), len(again.message)) == (128, 1024)

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            (problem(title="Bad Gateway", status=502), "Bad Gateway"),
            (problem(type="https://example.com/probs/out-of-credit", detail="no"), "no"),
            (problem(type="urn:postbus:problem:of-tomorrow"), "failed"),
            (b"<html>Bad Gateway</html>", "did not say how"),
            (b"", "did not say how"),
            (b"[]", "did not say how"),
            (b'{"code":5}', "did not say how"),
            (b"\xff", "did not say how"),
            (b"[" * 100_000, "did not say how"),
            (b"x" * 2**21, "did not say how"),
        ],
        ids=lambda part: str(part)[:30],
    )
    def test_problems_of_others_are_rejections(self, body: bytes, text: str) -> None:
        """A proxy's, a later version's, or no problem at all: never an exception."""
        error = decode_problem(body, ENVELOPE)

        assert type(error) is RejectedError
        assert text in str(error)
        assert error.envelope is ENVELOPE

    def test_a_handler_failure_without_words_has_the_title(self) -> None:
        """Somebody will read it at three in the morning."""
        error = decode_problem(
            problem(type="urn:postbus:problem:handler-failed", title="the handler failed"), None
        )

        assert isinstance(error, HandlerFailedError)
        assert (error.code, error.message) == ("error", "the handler failed")

    @given(st.binary(max_size=80))
    def test_it_never_raises(self, body: bytes) -> None:
        """Whatever the other side answered with."""
        assert isinstance(decode_problem(body, None), PostbusError)
