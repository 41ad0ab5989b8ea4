"""What is remembered of messages that came."""

from __future__ import annotations

import time

import pytest

from postbus_http._seen import Known, Seen, digest_of

ONE, OTHER = digest_of("shop.note", b"one"), digest_of("shop.note", b"other")


class TestSeen:
    def test_tells_new_running_and_done(self) -> None:
        """By id and bytes."""
        seen = Seen(100.0)
        assert seen.begin("a", ONE) is Known.NEW
        assert seen.begin("a", ONE) is Known.RUNNING
        assert seen.begin("a", OTHER) is Known.CONFLICT
        seen.finish("a")
        assert seen.begin("a", ONE) is Known.DONE
        assert seen.begin("a", OTHER) is Known.CONFLICT
        assert seen.begin("b", ONE) is Known.NEW

    def test_forgets_what_was_not_handled(self) -> None:
        """It may come again, and may be changed."""
        seen = Seen(100.0)
        seen.begin("a", ONE)
        seen.abandon("a")
        assert seen.begin("a", OTHER) is Known.NEW

    def test_forgets_what_is_old(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """After its seconds, and not before; what runs is never old."""
        now = time.monotonic()
        monkeypatch.setattr("time.monotonic", lambda: now)
        seen = Seen(10.0)
        for key in ("old", "running"):
            seen.begin(key, ONE)
        seen.finish("old")
        monkeypatch.setattr("time.monotonic", lambda: now + 9.9)
        seen.begin("new", ONE)
        seen.finish("new")
        assert seen.begin("old", ONE) is Known.DONE
        monkeypatch.setattr("time.monotonic", lambda: now + 10.1)
        assert seen.begin("old", ONE) is Known.NEW
        assert seen.begin("new", ONE) is Known.DONE
        assert seen.begin("running", ONE) is Known.RUNNING

    def test_holds_no_more_than_its_capacity(self) -> None:
        """The oldest that is done makes room."""
        seen = Seen(100.0, capacity=2)
        for key in "abc":
            seen.begin(key, ONE)
            seen.finish(key)
        assert seen.begin("c", ONE) is Known.DONE
        assert seen.begin("b", ONE) is Known.DONE
        assert seen.begin("a", ONE) is Known.NEW
