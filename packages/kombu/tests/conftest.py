"""What the tests share: the RabbitMQ of this machine, and queues that no other test has."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs
import pytest

from postbus.messages import new_id
from postbus.transports import CommonSettings, WireMessage
from postbus_kombu import RABBITMQ, RabbitMQConsumer, RabbitMQProducer

# Its types are partial.
kombu: Any = import_module("kombu")
PATIENCE = 30.0
RABBITMQ_BIN = "/usr/lib/rabbitmq/bin"
URL = os.environ.get("POSTBUS_TEST_RABBITMQ", "amqp://guest:guest@127.0.0.1:5672//")


def unavailable(what: str) -> None:
    """Skip, saying why; where CI is set, fail."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}, and CI may not skip what needs it")
    sys.stderr.write(f"skipped: {what}\n")
    pytest.skip(what)


@pytest.fixture(scope="session")
def broker() -> Any:
    """A connection of kombu's own to the broker, for what tests arrange and look at."""
    connection = kombu.Connection(URL, connect_timeout=PATIENCE)
    try:
        connection.ensure_connection(max_retries=1, timeout=PATIENCE)
    except Exception as error:
        unavailable(f"RabbitMQ does not answer: {type(error).__name__}")
    connection.close()
    return connection


@attrs.define
class OwnBroker:
    """A RabbitMQ that tests may kill and start again, which keeps its data in *folder*."""

    folder: Path
    port: int
    epmd_port: int
    processes: list[subprocess.Popen[bytes]] = attrs.Factory(list[Any])

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    @property
    def environment(self) -> dict[str, str]:
        folder = str(self.folder)
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": folder,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self.epmd_port),
            "RABBITMQ_NODENAME": f"postbus-test-{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/plugins",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def begin(self) -> None:
        """Write what it reads, and start what it is found by."""
        (self.folder / "rabbitmq.conf").write_text("disk_free_limit.absolute = 1MB\n")
        (self.folder / "plugins").write_text("[].")
        epmd = ["epmd", "-port", str(self.epmd_port), "-address", "127.0.0.1"]
        self._run(epmd)
        self.start()

    def _run(self, command: list[str]) -> None:
        self.processes.append(
            subprocess.Popen(
                command,
                env=self.environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    def start(self) -> None:
        self._run([f"{RABBITMQ_BIN}/rabbitmq-server"])
        end = time.monotonic() + 2 * PATIENCE
        while time.monotonic() < end:
            try:
                kombu.Connection(self.url).transport.establish_connection().close()
            except Exception:
                assert self.processes[-1].poll() is None, "RabbitMQ ended when it was started"
                threading.Event().wait(0.05)
            else:
                return
        raise AssertionError("RabbitMQ did not start")

    def kill(self) -> None:
        process = self.processes.pop()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def control(self, *command: str) -> None:
        """Have rabbitmqctl do something."""
        subprocess.run(
            [f"{RABBITMQ_BIN}/rabbitmqctl", *command],
            env=self.environment,
            check=True,
            capture_output=True,
            timeout=2 * PATIENCE,
        )

    def end(self) -> None:
        while self.processes:
            self.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnBroker]:
    """A broker of the tests' own, for those that kill or block it."""
    if not Path(RABBITMQ_BIN).is_dir() or shutil.which("epmd") is None:
        unavailable("RabbitMQ is not installed: apt-get install rabbitmq-server")
    made = OwnBroker(tmp_path_factory.mktemp("rabbitmq"), free_port(), free_port())
    try:
        made.begin()
        yield made
    finally:
        made.end()


@pytest.fixture
def url(broker: Any) -> str:
    """Name the broker, which is there."""
    return URL


@pytest.fixture
def queue(broker: Any) -> Iterator[str]:
    """A queue that no other test uses, deleted at the end with what was held back for it."""
    name = f"postbus-test-{new_id()}"
    yield name
    with kombu.Connection(URL, connect_timeout=PATIENCE) as connection:
        channel = connection.channel()
        channel.queue_delete(name)


@pytest.fixture
def queue_name() -> str:
    """A queue that no other test uses."""
    return f"postbus-test-{new_id()}"


@attrs.define
class OwnRedis:
    """A Redis that tests may kill and start again; *options* say whether it keeps anything."""

    folder: Path
    port: int
    options: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        fixed = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)]
        self.process = subprocess.Popen(
            ["redis-server", *fixed, *self.options], stdout=subprocess.DEVNULL
        )
        redis: Any = import_module("redis")
        client = redis.Redis.from_url(self.url)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                client.ping()
            except redis.RedisError:
                os.sched_yield()
            else:
                client.close()
                return
        raise AssertionError("Redis did not start")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def make_redis(folder: Path, *options: str) -> Iterator[OwnRedis]:
    if shutil.which("redis-server") is None:
        unavailable("Redis is not installed: apt-get install redis-server")
    made = OwnRedis(folder, free_port(), options)
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest.fixture(scope="session")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRedis]:
    """A Redis that keeps nothing."""
    yield from make_redis(tmp_path_factory.mktemp("redis"), "--save", "", "--appendonly", "no")


@pytest.fixture(scope="session")
def own_durable_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRedis]:
    """A Redis that writes each message to the disk before it answers."""
    yield from make_redis(
        tmp_path_factory.mktemp("redis"), "--appendonly", "yes", "--appendfsync", "always"
    )


@pytest.fixture
def producer(url: str, queue: str) -> Iterator[Callable[..., RabbitMQProducer]]:
    """Return a function that makes producers of the queue."""
    made: list[RabbitMQProducer] = []

    def make(*, max_size_bytes: int = 1_000_000, **settings: Any) -> RabbitMQProducer:
        settings = {"url": url, "queue": queue, "confirm_timeout": PATIENCE, **settings}
        common = CommonSettings(name="test", max_size_bytes=max_size_bytes)
        made.append(RABBITMQ.make_producer(RABBITMQ.producer_settings(**settings), common))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def consumer(url: str, queue: str) -> Callable[..., RabbitMQConsumer]:
    """Return a function that makes consumers of the queue."""

    def make(*, guarantee: str | None = None, **settings: Any) -> RabbitMQConsumer:
        settings = {"url": url, "queues": (queue,), "io_timeout": PATIENCE, **settings}
        common = CommonSettings(name="test", guarantee=guarantee, close_timeout=PATIENCE)
        return RABBITMQ.make_consumer(RABBITMQ.consumer_settings(**settings), common)

    return make


@pytest.fixture
def message() -> Callable[..., WireMessage]:
    """Return a function that makes a message of a body."""

    def make(body: bytes = b'{"text":"It works"}', **fields: Any) -> WireMessage:
        return WireMessage(body, {}, new_id(), "shop.echo-text", **fields)

    return make
