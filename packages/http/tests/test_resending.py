"""When a request is sent again."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from postbus.errors import (
    ClosedError,
    ConnectionFailedError,
    RejectedError,
    TimedOutError,
    TransportError,
)
from postbus_http import ResendSettings
from postbus_http._exchange import Answer
from postbus_http._resending import Attempts, retry_after


def answer(status: int, **headers: str) -> Answer:
    """Return an answer with headers."""
    given = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return Answer(status, given, b"")


def later(seconds: float = 3600.0) -> float:
    """Return a deadline that is far away."""
    return time.monotonic() + seconds


class TestAttempts:
    @pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
    def test_comes_again_after_what_may_pass(self, status: int) -> None:
        """Time-outs, limits and faults of the server."""
        assert Attempts(ResendSettings(), later()).pause_after(answer(status)) is not None

    @pytest.mark.parametrize("status", [200, 204, 301, 302, 400, 401, 404, 409, 413, 422])
    def test_does_not_after_what_is_final(self, status: int) -> None:
        """Nor after success."""
        assert Attempts(ResendSettings(), later()).pause_after(answer(status)) is None

    def test_comes_again_where_the_first_attempt_is_still_at_work(self) -> None:
        """409 with a time to come again is no refusal."""
        running = answer(409, retry_after="1")
        assert Attempts(ResendSettings(), later()).pause_after(running) is not None

    def test_a_problem_is_the_answer_to_a_query(self) -> None:
        """A handler that failed is not asked again; a server that is busy is."""
        problem = {"content_type": "application/problem+json"}
        for headers, expected in ((problem, False), ({**problem, "retry_after": "1"}, True)):
            attempts = Attempts(ResendSettings(), later(), is_query=True)
            assert (attempts.pause_after(answer(500, **headers)) is not None) is expected
        assert Attempts(ResendSettings(), later()).pause_after(answer(500, **problem)) is not None
        plain = Attempts(ResendSettings(), later(), is_query=True)
        assert plain.pause_after(answer(502)) is not None

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (ConnectionFailedError("gone"), True),
            (TimedOutError("late"), True),
            (RejectedError("too large"), False),
            (ClosedError("closed"), False),
            (TransportError("unknown"), False),
        ],
    )
    def test_comes_again_after_a_lost_connection(
        self, error: TransportError, expected: bool
    ) -> None:
        """The receiver knows the id, should the message have arrived."""
        pause = Attempts(ResendSettings(), later()).pause_after(error)
        assert (pause is not None) is expected

    def test_without_settings_nothing_is_sent_twice(self) -> None:
        """That is the default."""
        assert Attempts(None, later()).pause_after(answer(503)) is None

    def test_ends_with_the_last_attempt(self) -> None:
        """The first request counts."""
        attempts = Attempts(ResendSettings(max_attempts=3), later())
        assert [attempts.pause_after(answer(503)) is None for _ in range(3)] == [
            False,
            False,
            True,
        ]

    def test_pauses_are_drawn_below_a_bound_that_grows(self) -> None:
        """Full jitter: from 0 to the bound, which doubles up to its own bound."""
        settings = ResendSettings(
            max_attempts=1000, initial_delay=1.0, multiplier=2.0, max_delay=4.0
        )
        seen: list[list[float]] = [[], [], [], []]
        for _ in range(200):
            attempts = Attempts(settings, later())
            for index in range(4):
                seen[index].append(attempts.pause_after(answer(503)) or 0.0)
        assert [max(each) <= bound for each, bound in zip(seen, [1, 2, 4, 4], strict=True)] == (
            [True] * 4
        )
        assert [max(each) > 0.8 * bound for each, bound in zip(seen, [1, 2, 4, 4], strict=True)]
        assert min(seen[3]) < 0.5

    def test_a_pause_that_the_deadline_does_not_allow_is_none(self) -> None:
        """Better an error now than the same one later."""
        asked = answer(503, retry_after="10")
        assert Attempts(ResendSettings(), later(5)).pause_after(asked) is None
        assert Attempts(ResendSettings(), later(20)).pause_after(asked) is not None

    def test_waits_as_long_as_the_server_asks(self) -> None:
        """Never less, and little more."""
        for _ in range(50):
            pause = Attempts(ResendSettings(), later()).pause_after(answer(429, retry_after="7"))
            assert pause is not None
            assert 7.0 <= pause <= 7.25


class TestRetryAfter:
    def test_is_a_number_of_seconds(self) -> None:
        """The common form."""
        assert retry_after(answer(503, retry_after=" 120 ")) == 120.0

    def test_or_a_date(self) -> None:
        """Of the past: now."""
        moment = datetime.now(UTC) + timedelta(seconds=100)
        found = retry_after(answer(503, retry_after=format_datetime(moment, usegmt=True)))
        assert found is not None
        assert 90 < found <= 100
        assert retry_after(answer(503, retry_after="Wed, 21 Oct 2015 07:28:00 GMT")) == 0.0
        assert retry_after(answer(503, retry_after="Wed, 21 Oct 2015 07:28:00 -0000")) == 0.0

    @pytest.mark.parametrize(
        "text", ["", "soon", "-1", "1.5", "Wed, 99 Oct 2015 07:28:00 GMT", "9" * 400]
    )
    def test_or_nothing(self, text: str) -> None:
        """What cannot be read is not there."""
        assert retry_after(answer(503, retry_after=text)) is None
        assert retry_after(answer(503)) is None
