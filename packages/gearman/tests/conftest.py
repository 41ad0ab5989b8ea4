"""What the tests share: a gearmand of their own, on a free port, ended by its pid."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import attrs
import pytest

from postbus.messages import new_id
from postbus.transports import CommonSettings, WireMessage
from postbus_gearman import GEARMAN, GearmanConsumer, GearmanProducer

PATIENCE = 30.0


@attrs.define
class Server:
    """A gearmand that tests may kill and start again. *database*: where it keeps jobs."""

    port: int
    folder: Path
    database: Path | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        database = str(self.database)
        kept = [] if self.database is None else ["-q", "libsqlite3", "--libsqlite3-db", database]
        own = ["-P", str(self.folder / "pid"), "-l", "none"]
        self.process = subprocess.Popen(
            ["gearmand", "-L", "127.0.0.1", "-p", str(self.port), *own, *kept],
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            os.sched_yield()
        raise AssertionError("gearmand did not start")

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


class Raw:
    """The bare protocol over a socket: what any client or worker may say."""

    def __init__(self, server: Server) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), PATIENCE)
        self._reader = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def say(self, kind: int, *arguments: bytes) -> None:
        data = b"\0".join(arguments)
        self._socket.sendall(b"\0REQ" + struct.pack(">II", kind, len(data)) + data)

    def hear(self) -> tuple[int, list[bytes]]:
        kind, size = struct.unpack(">4xII", self._reader.read(12))
        return kind, self._reader.read(size).split(b"\0")

    def status(self, function: str) -> tuple[int, int]:
        """Return how many jobs of a function there are, and how many of them are being worked."""
        self._socket.sendall(b"status\n")
        lines = list(iter(self._reader.readline, b".\n"))
        (found,) = [line for line in lines if line.startswith(function.encode() + b"\t")]
        return int(found.split(b"\t")[1]), int(found.split(b"\t")[2])

    def bound(self, function: str, jobs: int) -> None:
        """Have the server take no more than so many jobs of a function."""
        self._socket.sendall(b"maxqueue %b %d\n" % (function.encode(), jobs))
        assert self._reader.readline() == b"OK\r\n"

    def close(self) -> None:
        self._reader.close()
        self._socket.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_server(folder: Path, *, is_durable: bool) -> Iterator[Server]:
    if shutil.which("gearmand") is None:
        if os.environ.get("CI"):
            pytest.fail("gearmand is not installed, and CI may not skip what needs it")
        pytest.skip("gearmand is not installed: apt-get install gearman-job-server")
    made = Server(free_port(), folder, folder / "jobs.db" if is_durable else None)
    made.start()
    yield made
    made.kill()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for all tests that do not end it; each uses a function of its own."""
    yield from make_server(tmp_path_factory.mktemp("gearmand"), is_durable=False)


@pytest.fixture
def memory_server(tmp_path: Path) -> Iterator[Server]:
    """A server that forgets its jobs when it ends, for one test to kill."""
    yield from make_server(tmp_path, is_durable=False)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server that keeps its jobs on the disk, for one test to kill."""
    yield from make_server(tmp_path, is_durable=True)


@pytest.fixture
def second_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Another server, for one test to kill."""
    yield from make_server(tmp_path_factory.mktemp("second"), is_durable=False)


@pytest.fixture
def function() -> str:
    """A function that no other test uses."""
    return f"test-{new_id()}"


@pytest.fixture
def raw(server: Server) -> Iterator[Callable[..., Raw]]:
    """Return a function that connects to the server, by hand."""
    made: list[Raw] = []

    def connect(to: Server = server) -> Raw:
        made.append(Raw(to))
        return made[-1]

    yield connect
    for each in made:
        each.close()


@pytest.fixture
def producer(server: Server, function: str) -> Iterator[Callable[..., GearmanProducer]]:
    """Return a function that makes producers of the function."""
    made: list[GearmanProducer] = []

    def make(*, max_size_bytes: int = 1_000_000, **settings: Any) -> GearmanProducer:
        settings = {"servers": (server.address,), "function": function, **settings}
        common = CommonSettings(name="test", max_size_bytes=max_size_bytes)
        made.append(GEARMAN.make_producer(GEARMAN.producer_settings(**settings), common))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def consumer(server: Server, function: str) -> Callable[..., GearmanConsumer]:
    """Return a function that makes consumers of the function."""

    def make(**settings: Any) -> GearmanConsumer:
        settings = {"servers": (server.address,), "functions": (function,), **settings}
        common = CommonSettings(name="test", close_timeout=PATIENCE)
        return GEARMAN.make_consumer(GEARMAN.consumer_settings(**settings), common)

    return make


@pytest.fixture
def message() -> Callable[..., WireMessage]:
    """Return a function that makes a message of a body."""

    def make(body: bytes = b'{"text":"It works"}', **fields: Any) -> WireMessage:
        return WireMessage(body, {}, new_id(), "shop.echo-text", **fields)

    return make
