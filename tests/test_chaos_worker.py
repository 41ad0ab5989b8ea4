"""The chaos runs of the worker, small enough for every run of the tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "benchmarks" / "chaos"


def chaos(name: str, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run one; return its exit code, its figures and what it complained of."""
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), *arguments]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=110)
    figures = json.loads(ended.stdout) if ended.stdout else {}
    return ended.returncode, figures, ended.stderr


class TestWorker:
    """`./dev chaos worker`."""

    def test_nothing_is_lost_and_nothing_happens_twice(self) -> None:
        """However the worker is killed, each effect is there once, and failures are kept."""
        code, figures, said = chaos("worker", "--n", "2000", "--kills", "5")

        assert code == 0, (figures, said)
        assert (2380, 20) == (figures["handled"], figures["failed"])
        assert (0, 0, 5) == (figures["lost"], figures["effects_twice"], figures["kills"])

    @pytest.mark.parametrize(
        ("fault", "seen"),
        [
            ("ack-early", "lost"),
            ("drop-nack", "lost"),
            ("no-confirm", "lost"),
            ("no-inbox", "effects_twice"),
        ],
    )
    def test_a_planted_fault_is_found(self, fault: str, seen: str) -> None:
        """A worker, or a sender, with a fault fails the run for the reason that it is."""
        code, figures, said = chaos("worker", "--n", "600", "--kills", "2", "--sabotage", fault)

        assert code == 1, (figures, said)
        assert figures[seen] > 0


class TestFailpoints:
    """`./dev chaos failpoints`."""

    def test_what_was_committed_happens_once_beside_a_joined_inbox(self) -> None:
        """A crash behind the commit shows the difference: apart, it happens twice."""
        points = ("--points", "after commit", "stored")
        code, figures, said = chaos(
            "failpoints", "--n", "20", *points, "--ways", "files", "files-apart"
        )
        twice = {(row["way"], row["point"]): row["twice"] for row in figures["table"]}

        assert code == 0, (figures, said)
        assert 4 == figures["kills"]
        assert twice["files-apart", "after commit"] > 0
        assert 0 == twice["files", "after commit"] == twice["files", "stored"]


class TestSigterm:
    """`./dev chaos sigterm`."""

    def test_a_worker_that_is_asked_to_stop_finishes_what_it_has_begun(self) -> None:
        """It leaves nothing behind, and goes with 0; asked twice it goes at once."""
        _, figures, said = chaos("sigterm", "--n", "300", "--kills", "5", "--slow", "0.5")
        slowest = figures["slowest"]

        assert (0, 0) == (figures["lost"], figures["effects_twice"]), (figures, said)
        assert (0, 0) == (figures["left_behind"], figures["unfinished"]), (figures, said)
        assert (0, []) == (figures["done_again"], figures["wrong_codes"]), (figures, said)
        # A machine that is busy takes its time, but not that much.
        assert max(slowest.values()) < 5.0, slowest


class TestStoreDown:
    """`./dev chaos store-down`."""

    def test_a_worker_without_its_store_waits_and_goes_on_by_itself(self) -> None:
        """Whether somebody holds the store or the disk is full: nothing is lost."""
        code, figures, said = chaos("store-down", "--n", "600", "--down", "4")

        assert code == 0, (figures, said)
        assert (660, 60) == (figures["handled"], figures["failed"])


class TestFuzz:
    """`./dev chaos fuzz`."""

    def test_whatever_arrives_is_handled_or_kept(self) -> None:
        """No handler sees what is invalid; what it does not see is kept, byte for byte."""
        code, figures, said = chaos("fuzz", "--n", "3000")

        assert code == 0, (figures, said)
        assert 3 * 3000 == figures["handled"] + figures["failed"]

    @pytest.mark.parametrize(("fault", "seen"), [("forgive", "effects_twice"), ("forget", "lost")])
    def test_a_planted_fault_is_found(self, fault: str, seen: str) -> None:
        """A worker that takes too much, or drops what it does not take, fails the run."""
        size = ("--n", "500", "--transports", "memory", "--patience", "10")
        code, figures, said = chaos("fuzz", *size, "--sabotage", fault)

        assert code == 1, (figures, said)
        assert figures[seen] > 0
        assert figures["handled"] > 0


class TestPoison:
    """`./dev chaos poison`."""

    def test_bad_messages_are_kept_as_they_were_and_good_ones_are_done(self) -> None:
        """After a fix and a retry nothing is left of them."""
        code, figures, said = chaos("poison", "--n", "400", "--each", "20")

        assert code == 0, (figures, said)
        assert (460, 0) == (figures["handled"], figures["failed"])
