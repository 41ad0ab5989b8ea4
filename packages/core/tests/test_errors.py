"""The error tree: drawn as it is, built complete, and the same after a pickle or a copy."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from typing import Any

import pytest

from postbus import errors
from postbus.errors import (
    ClosedError,
    CommandDispatchError,
    ConfigurationError,
    ConnectionFailedError,
    DecodeError,
    DispatchError,
    EncodeError,
    HandlerFailedError,
    ListenersFailedError,
    MetadataError,
    NoHandlerError,
    PartiallySentError,
    PostbusError,
    Problem,
    RejectedError,
    RoutingError,
    TimedOutError,
    TransportError,
    UnauthorizedError,
    UnsupportedError,
    ValidationFailedError,
    WireError,
)
from postbus.messages import Envelope

ENVELOPE = Envelope("ping")
FAILURE = HandlerFailedError("shop.closed", "the shop is closed", ENVELOPE)
PROBLEM = Problem("postbus.producers.mail.dsn", "'tpc://x'", "a URL", "did you mean tcp?")

EXAMPLES: dict[type[PostbusError], tuple[PostbusError, dict[str, Any]]] = {
    PostbusError: (PostbusError("x"), {}),
    ConfigurationError: (ConfigurationError([PROBLEM]), {"problems": (PROBLEM,)}),
    DispatchError: (DispatchError("x", ENVELOPE), {"message": "x", "envelope": ENVELOPE}),
    NoHandlerError: (NoHandlerError("x", ENVELOPE), {"message": "x", "envelope": ENVELOPE}),
    RoutingError: (RoutingError("x"), {"message": "x", "envelope": None}),
    HandlerFailedError: (
        FAILURE,
        {"code": "shop.closed", "message": "the shop is closed", "envelope": ENVELOPE},
    ),
    CommandDispatchError: (
        CommandDispatchError("c", "m", ENVELOPE, [ENVELOPE]),
        {"code": "c", "message": "m", "envelope": ENVELOPE, "pending": (ENVELOPE,)},
    ),
    ListenersFailedError: (
        ListenersFailedError("x", [FAILURE], ENVELOPE, ["a"], ["b"]),
        {"message": "x", "envelope": ENVELOPE, "failed": ("a",), "done": ("b",)},
    ),
    UnauthorizedError: (UnauthorizedError("x"), {"message": "x", "envelope": None}),
    ValidationFailedError: (
        ValidationFailedError("x", ENVELOPE),
        {"message": "x", "envelope": ENVELOPE},
    ),
    MetadataError: (MetadataError("x"), {}),
    WireError: (WireError("x"), {}),
    EncodeError: (EncodeError("x"), {}),
    DecodeError: (DecodeError("bom", "m"), {"reason": "bom", "message": "m"}),
    TransportError: (TransportError("x", ENVELOPE), {"message": "x", "envelope": ENVELOPE}),
    ConnectionFailedError: (ConnectionFailedError("x"), {"message": "x", "envelope": None}),
    TimedOutError: (TimedOutError("x", ENVELOPE), {"message": "x", "envelope": ENVELOPE}),
    RejectedError: (RejectedError("x"), {"message": "x"}),
    PartiallySentError: (
        PartiallySentError("x", {1: RejectedError("y")}, ENVELOPE),
        {"message": "x", "envelope": ENVELOPE},
    ),
    UnsupportedError: (UnsupportedError("x"), {"message": "x"}),
    ClosedError: (ClosedError("x"), {"message": "x"}),
}
CLASSES = [
    cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, PostbusError)
]


def drawn_tree() -> dict[str, str]:
    """Read child → parent from the drawing in the module's docstring."""
    parents: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        drawn = re.match(r"    ([│ ├└]*)(\w+Error)\b", line)
        if drawn:
            depth = len(drawn[1]) // 2
            above[depth:] = [drawn[2]]
            if depth:
                parents[drawn[2]] = above[depth - 1]
    return parents


class TestTree:
    def test_every_class_has_an_example_here(self) -> None:
        """A new error comes with a test that it can be pickled."""
        assert set(EXAMPLES) == set(CLASSES)

    def test_the_drawing_is_the_tree(self) -> None:
        """Each class stands below its own parent in the docstring, and none is left out."""
        actual = {
            cls.__name__: next(b for b in cls.__bases__ if issubclass(b, PostbusError)).__name__
            for cls in CLASSES
            if cls is not PostbusError
        }

        assert actual == drawn_tree()

    def test_everything_public_is_exported(self) -> None:
        """`__all__` is complete and sorted."""
        assert sorted([*(cls.__name__ for cls in CLASSES), "Problem"]) == errors.__all__

    @pytest.mark.parametrize(
        ("cls", "builtin"),
        [
            (MetadataError, ValueError),
            (TimedOutError, TimeoutError),
            (ListenersFailedError, ExceptionGroup),
        ],
    )
    def test_some_are_builtin_errors_too(
        self, cls: type[Exception], builtin: type[Exception]
    ) -> None:
        """Code that knows nothing of postbus catches them."""
        assert issubclass(cls, builtin)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
class TestCopies:
    @pytest.mark.parametrize(
        "duplicate",
        [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))],  # noqa: S301  our own bytes
        ids=["copy", "deepcopy", "pickle"],
    )
    def test_every_field_survives(self, cls: type[PostbusError], duplicate: Any) -> None:
        """An error crosses processes and comes out as it went in."""
        error, fields = EXAMPLES[cls]

        again = duplicate(error)

        assert type(again) is cls
        assert str(again) == str(error)
        assert {name: getattr(again, name) for name in fields} == fields

    def test_it_is_built_complete(self, cls: type[PostbusError]) -> None:
        """The fields are there from the start."""
        error, fields = EXAMPLES[cls]

        assert {name: getattr(error, name) for name in fields} == fields


class TestTexts:
    def test_a_problem_is_one_line(self) -> None:
        """Path, expectation, value and suggestion; what is empty is left out."""
        assert (
            str(PROBLEM) == "postbus.producers.mail.dsn: a URL, got 'tpc://x'; did you mean tcp?"
        )
        assert str(Problem("a.b", "", "is missing")) == "a.b: is missing"

    def test_a_configuration_error_counts_and_lists(self) -> None:
        """All problems at once, a line each."""
        one = ConfigurationError([PROBLEM])
        two = ConfigurationError([PROBLEM, Problem("a", "", "b")])

        assert str(one) == f"1 problem in the configuration\n  {PROBLEM}"
        assert str(two) == f"2 problems in the configuration\n  {PROBLEM}\n  a: b"

    def test_a_handler_failure_names_message_and_code(self) -> None:
        """With the envelope it says which message."""
        assert str(FAILURE) == "ping failed with 'shop.closed': the shop is closed"
        assert str(HandlerFailedError("c", "m")) == "a message failed with 'c': m"

    def test_a_command_dispatch_error_says_how_many_did_not_run(self) -> None:
        """The pending ones are fields; the text counts them."""
        error = CommandDispatchError("c", "m", None, [ENVELOPE])

        assert str(error) == "a message failed with 'c': m (1 nested commands were not run)"

    def test_a_decode_error_starts_with_its_code(self) -> None:
        """A log line can be found by reason."""
        assert str(DecodeError("bom", "why")) == "bom: why"

    def test_listener_failures_are_listed(self) -> None:
        """Each with its code and words."""
        error = ListenersFailedError("shop.opened: 1 listener failed", [FAILURE])

        assert str(error) == "shop.opened: 1 listener failed\n  'shop.closed': the shop is closed"


class TestListenersFailedError:
    def test_except_star_and_split_keep_the_fields(self) -> None:
        """A part of the group is about the same event."""
        other = HandlerFailedError("other", "o")
        group = ListenersFailedError("x", [FAILURE, other], ENVELOPE, ["a", "b"], ["c"])

        match, rest = group.split(lambda e: getattr(e, "code", "") == "other")

        assert isinstance(match, ListenersFailedError)
        assert isinstance(rest, ListenersFailedError)
        assert match.exceptions == (other,)
        assert (rest.failed, rest.done, rest.envelope) == (("a", "b"), ("c",), ENVELOPE)

    def test_partially_sent_keeps_its_errors_by_index(self) -> None:
        """Through a pickle as well."""
        again = pickle.loads(pickle.dumps(EXAMPLES[PartiallySentError][0]))  # noqa: S301  our own bytes

        assert [1] == list(again.failed)
        assert str(again.failed[1]) == "y"

    def test_an_error_with_an_envelope_that_cannot_be_read_can_be_pickled(self) -> None:
        """The failure store gets the error even where the payload does not fit its class."""
        error = NoHandlerError("x", _unreadable())

        again = pickle.loads(pickle.dumps(error))  # noqa: S301  our own bytes

        assert again.envelope.id == error.envelope.id  # type: ignore[union-attr]  # given above
        assert again.envelope.payload == b"{}"
        with pytest.raises(DecodeError, match="invalid_payload"):
            _ = again.envelope.message


def _unreadable() -> Envelope:
    def load(_: bytes) -> Any:
        raise DecodeError("invalid_payload", "x")

    return Envelope.lazy(
        (b"{}", load, bytes),
        name="shop.order",
        kind=None,
        id=ENVELOPE.id,
        created_at=ENVELOPE.created_at,
        metadata={},
        headers={},
    )
