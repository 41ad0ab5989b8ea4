"""The chaos run of HTTP, small enough for every run of the tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "chaos" / "http_.py"


def chaos(*arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run it; return its exit code, its figures and what it complained of."""
    command = [sys.executable, str(SCRIPT), *arguments]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=110)
    figures = json.loads(ended.stdout) if ended.stdout else {}
    return ended.returncode, figures, ended.stderr


class TestHTTP:
    """`./dev chaos http`."""

    def test_nothing_is_lost_and_nothing_happens_twice(self) -> None:
        """Servers die, replies are dropped, senders put off and sent elsewhere."""
        code, figures, said = chaos("--n", "300", "--kills", "3")

        assert code == 0, (figures, said)
        # Every tenth is an event with three listeners.
        assert figures["handled"] == 300 + 2 * 30
        assert (0, 0, 3) == (figures["lost"], figures["effects_twice"], figures["kills"])
        assert (0, 0) == (figures["followed"], figures["early"])
        assert all(figures[fault] for fault in ("put_off", "dropped"))

    @pytest.mark.parametrize(
        ("fault", "seen"), [("ack-early", "lost"), ("no-inbox", "effects_twice")]
    )
    def test_a_planted_fault_is_found(self, fault: str, seen: str) -> None:
        """A receiver with a fault fails the run for the reason that it is."""
        code, figures, said = chaos("--n", "80", "--kills", "1", "--sabotage", fault)

        assert code == 1, (figures, said)
        assert figures[seen] > 0
