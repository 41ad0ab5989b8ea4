"""examples/containers: an application's own container, over two transports and in its tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("zmq", reason="the example sends over ZeroMQ as well")

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "containers"
PATIENCE = 60.0
PRINTED = """\
Edsger: no-room-left
3 rooms are taken
mail to Ada, Barbara, Grace
"""


def run(*command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program in the folder of the example, warnings being errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", *command],
        capture_output=True,
        check=False,
        cwd=FOLDER,
        env={**os.environ, **environ},
        text=True,
        timeout=PATIENCE,
    )


def free_dsn() -> str:
    """Return an address of this machine that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"tcp://127.0.0.1:{server.getsockname()[1]}"


def without_transport(file: str) -> dict[str, Any]:
    """Return a configuration without what its transport needs."""
    config = tomllib.loads((FOLDER / file).read_text(encoding="utf-8"))
    for side in ("producers", "consumers"):
        assert config["postbus"][side].keys() == {"mail"}
        config["postbus"][side] = None
    return config


class TestHotel:
    """The program and its tests."""

    @pytest.mark.parametrize("file", ["memory.toml", "zeromq.toml"])
    def test_it_prints_the_same_over_either_transport(self, file: str, tmp_path: Path) -> None:
        """Two buses of a kind (F07), units of work, and mail that waits for the commit."""
        database = str(tmp_path / "hotel.db")
        done = run("reception.py", file, HOTEL_DATABASE=database, HOTEL_DSN=free_dsn())

        assert (0, "") == (done.returncode, done.stderr)
        assert PRINTED == done.stdout

    def test_the_dict_alone_says_which_transport(self) -> None:
        """Without the sections of the producer and the consumer the two files are equal."""
        assert without_transport("memory.toml") == without_transport("zeromq.toml")

    def test_its_own_tests_pass(self) -> None:
        """A producer replaced, a handler replaced: what an application writes."""
        # Not with this repository's configuration: the example must stand by itself.
        options = ("-q", "-c", os.devnull, "-p", "no:cacheprovider")
        done = run("-m", "pytest", *options, "hotel_tests.py")

        assert 0 == done.returncode, done.stdout
        assert "3 passed" in done.stdout
