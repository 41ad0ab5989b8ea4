"""What the tests share: a beanstalkd of their own, on a free port, ended by its pid."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from postbus.messages import new_id
from postbus.transports import CommonSettings, WireMessage
from postbus_beanstalkd import BEANSTALKD, BeanstalkdConsumer, BeanstalkdProducer

PATIENCE = 30.0


@attrs.define
class Server:
    """A beanstalkd that tests may kill and start again. *binlog*: where it keeps jobs."""

    port: int
    binlog: Path | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        kept = [] if self.binlog is None else ["-b", str(self.binlog), "-f", "0"]
        self.process = subprocess.Popen(
            ["beanstalkd", "-l", "127.0.0.1", "-p", str(self.port), *kept],
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            os.sched_yield()
        raise AssertionError("beanstalkd did not start")

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def talk(self, *commands: bytes) -> bytes:
        """Say something to the server as telnet would, and return all that it answers."""
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as raw:
            raw.sendall(b"".join(command + b"\r\n" for command in (*commands, b"quit")))
            return b"".join(iter(lambda: raw.recv(65_536), b""))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_server(binlog: Path | None = None) -> Iterator[Server]:
    if shutil.which("beanstalkd") is None:
        if os.environ.get("CI"):
            pytest.fail("beanstalkd is not installed, and CI may not skip what needs it")
        pytest.skip("beanstalkd is not installed: apt-get install beanstalkd")
    made = Server(free_port(), binlog)
    made.start()
    yield made
    made.kill()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server for all tests that do not end it; each uses a tube of its own."""
    yield from make_server()


@pytest.fixture
def forgetful_server() -> Iterator[Server]:
    """A server that keeps its jobs in memory, for one test to kill."""
    yield from make_server()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server that keeps its jobs on the disk, for one test to kill."""
    yield from make_server(tmp_path)


@pytest.fixture
def tube() -> str:
    """A tube that no other test uses."""
    return f"test-{new_id()}"


@pytest.fixture
def producer(server: Server, tube: str) -> Iterator[Callable[..., BeanstalkdProducer]]:
    """Return a function that makes producers of the tube."""
    made: list[BeanstalkdProducer] = []

    def make(*, max_size_bytes: int = 1_000_000, **settings: Any) -> BeanstalkdProducer:
        settings = {"address": server.address, "tube": tube, **settings}
        common = CommonSettings(name="test", max_size_bytes=max_size_bytes)
        made.append(BEANSTALKD.make_producer(BEANSTALKD.producer_settings(**settings), common))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def consumer(server: Server, tube: str) -> Callable[..., BeanstalkdConsumer]:
    """Return a function that makes consumers of the tube."""

    def make(*, guarantee: str | None = None, **settings: Any) -> BeanstalkdConsumer:
        settings = {"address": server.address, "tubes": (tube,), **settings}
        common = CommonSettings(name="test", guarantee=guarantee, close_timeout=PATIENCE)
        return BEANSTALKD.make_consumer(BEANSTALKD.consumer_settings(**settings), common)

    return make


@pytest.fixture
def message() -> Callable[..., WireMessage]:
    """Return a function that makes a message of a body."""

    def make(body: bytes = b'{"text":"It works"}', **fields: Any) -> WireMessage:
        return WireMessage(body, {}, new_id(), "shop.echo-text", **fields)

    return make
