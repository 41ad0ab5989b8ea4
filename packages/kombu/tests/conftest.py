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
import trustme

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


@attrs.frozen
class Certificates:
    """An authority, and what it has vouched for: both sides of a connection to `localhost`."""

    ca_file: str
    certificate_file: str
    key_file: str

    @classmethod
    def made(cls, folder: Path) -> Certificates:
        """Write files for an authority and one certificate of it."""
        authority = trustme.CA()
        issued = authority.issue_cert("localhost")
        files = [str(folder / name) for name in ("ca.pem", "certificate.pem", "key.pem")]
        authority.cert_pem.write_to_path(files[0])
        issued.cert_chain_pems[0].write_to_path(files[1])
        issued.private_key_pem.write_to_path(files[2])
        return cls(*files)


@attrs.define
class OwnBroker:
    """A RabbitMQ that tests may kill and start again, which keeps its data in *folder*.

    Over TLS it wants to see a certificate of its own authority.
    """

    folder: Path
    port: int
    tls_port: int
    epmd_port: int
    certificates: Certificates
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
        files = self.certificates
        lines = (
            "disk_free_limit.absolute = 1MB",
            f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}",
            f"ssl_options.cacertfile = {files.ca_file}",
            f"ssl_options.certfile = {files.certificate_file}",
            f"ssl_options.keyfile = {files.key_file}",
            "ssl_options.verify = verify_peer",
            "ssl_options.fail_if_no_peer_cert = true",
        )
        (self.folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
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
    folder = tmp_path_factory.mktemp("rabbitmq")
    certificates = Certificates.made(folder)
    made = OwnBroker(folder, free_port(), free_port(), free_port(), certificates)
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
    """A queue that no other test uses, deleted at the end with what belongs to it."""
    name = f"postbus-test-{new_id()}"
    yield name
    with kombu.Connection(URL, connect_timeout=PATIENCE) as connection:
        channel = connection.channel()
        for each in (name, f"{name}-dead", f"postbus.delayed..{name}"):
            channel.queue_delete(each)
        channel.exchange_delete(f"{name}-exchange")
        channel.exchange_delete(f"{name}-letters")


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
    certificates: Certificates | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        if self.certificates is not None:
            return f"rediss://localhost:{self.port}/0"
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        fixed = ["--bind", "127.0.0.1", "--dir", str(self.folder)]
        files = self.certificates
        reading: dict[str, str] = {}
        if files is None:
            fixed += ["--port", str(self.port)]
        else:
            fixed += ["--port", "0", "--tls-port", str(self.port)]
            fixed += ["--tls-ca-cert-file", files.ca_file, "--tls-key-file", files.key_file]
            fixed += ["--tls-cert-file", files.certificate_file]
            reading = {
                "ssl_ca_certs": files.ca_file,
                "ssl_certfile": files.certificate_file,
                "ssl_keyfile": files.key_file,
            }
        self.process = subprocess.Popen(
            ["redis-server", *fixed, *self.options], stdout=subprocess.DEVNULL
        )
        redis: Any = import_module("redis")
        client = redis.Redis.from_url(self.url, **reading)
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


def make_redis(
    folder: Path, *options: str, certificates: Certificates | None = None
) -> Iterator[OwnRedis]:
    if shutil.which("redis-server") is None:
        unavailable("Redis is not installed: apt-get install redis-server")
    made = OwnRedis(folder, free_port(), options, certificates)
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


@pytest.fixture(scope="session")
def own_redis_with_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRedis]:
    """A Redis that speaks TLS only, and wants to see a certificate of its own authority."""
    folder = tmp_path_factory.mktemp("redis")
    made = Certificates.made(folder)
    yield from make_redis(folder, "--save", "", "--appendonly", "no", certificates=made)


@pytest.fixture(scope="session")
def sqs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What a section says to reach moto's server, which speaks as SQS does."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (tmp_path_factory.mktemp("sqs") / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(log.name).parent)
    try:
        end = time.monotonic() + 2 * PATIENCE
        while time.monotonic() < end:
            assert server.poll() is None, "moto's server ended when it was started"
            try:
                socket.create_connection(("127.0.0.1", port), PATIENCE).close()
            except OSError:
                threading.Event().wait(0.05)
            else:
                break
        yield {
            "url": f"sqs://key:hunter2@127.0.0.1:{port}",
            "region": "eu-west-1",
            "transport_options": {"is_secure": False},
        }
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates of an authority that no server here knows."""
    return Certificates.made(tmp_path_factory.mktemp("strangers"))


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
