"""examples/shop over every transport: one body, and the dict is all that differs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from postbus.config import load
from postbus.discovery import find_transport, installed_transports
from postbus.messages import new_id
from postbus.runtime import examine

ROOT = Path(__file__).resolve().parents[1]
SHOP = ROOT / "examples" / "shop"
TRANSPORTS = sorted(path.stem for path in (SHOP / "transports").glob("*.toml"))
PATIENCE = 60.0
ORDERS = 3

# What has no file there, and why.
ELSEWHERE = {"memory": "stays inside one process: tests/test_examples.py has it there"}

# A caller that knows nothing but its dict, and ends as soon as it has dispatched.
CALLER = f"""
import os, sys
from pathlib import Path
from postbus.config import load
from shop.application import open_shop
from shop.orders import read_orders

with open_shop(load(sys.argv[1])) as postbus:
    for order in read_orders(Path("orders.jsonl"))[:{ORDERS}]:
        postbus.command_bus.dispatch(order)
print(os.getpid())
"""

Environment = dict[str, str]


def unavailable(what: str) -> None:
    """Skip, saying why; where CI is set, fail."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}, and CI may not skip what needs it")
    pytest.skip(what)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what} in vain"
        time.sleep(0.02)


@contextmanager
def running(*command: str, **options: Any) -> Generator[subprocess.Popen[Any]]:
    """Run a program beside the test, and end it in any case."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()


@contextmanager
def own_server(program: str, package: str, *arguments: str, port: int) -> Generator[None]:
    """Run a server of the test's own, which listens on *port* when the block begins."""
    if shutil.which(program) is None:
        unavailable(f"{program} is not installed: apt-get install {package}")
    with running(program, *arguments, "-p", str(port), stderr=subprocess.DEVNULL):
        wait_for(lambda: listens(port), program)
        yield


class Surroundings:
    """What a transport needs around the two processes; each method is that of one transport."""

    def __init__(self, folder: Path, queue: str, stack: ExitStack) -> None:
        self._folder = folder
        self._queue = queue
        self._stack = stack
        #: The port on which the worker listens, where it does.
        self.port: int | None = None
        #: What both sections have beside what a file can say.
        self.options: dict[str, Any] = {}

    def prepared(self, name: str) -> Environment:
        """Return what is set for both processes."""
        prepare: Callable[[], Environment] = getattr(self, f"_{name}", dict[str, str])
        return {"SHOP_LEDGERS": str(self._folder), "SHOP_QUEUE": self._queue, **prepare()}

    def _zeromq(self) -> Environment:
        self.port = free_port()
        return {"SHOP_DSN": f"tcp://127.0.0.1:{self.port}"}

    def _http(self) -> Environment:
        if find_spec("uvicorn") is None:
            unavailable("uvicorn is not installed")
        self.port = free_port()
        return {"SHOP_HTTP": f"127.0.0.1:{self.port}"}

    def _beanstalkd(self) -> Environment:
        port = free_port()
        kept = ("-l", "127.0.0.1", "-b", str(self._folder))
        self._stack.enter_context(own_server("beanstalkd", "beanstalkd", *kept, port=port))
        return {"SHOP_BEANSTALKD": f"127.0.0.1:{port}"}

    def _gearman(self) -> Environment:
        port = free_port()
        own = ("-L", "127.0.0.1", "-P", str(self._folder / "pid"), "-l", "none")
        kept = ("-q", "libsqlite3", "--libsqlite3-db", str(self._folder / "jobs.db"))
        server = own_server("gearmand", "gearman-job-server", *own, *kept, port=port)
        self._stack.enter_context(server)
        return {"SHOP_GEARMAN": f"127.0.0.1:{port}"}

    def _rabbitmq(self) -> Environment:
        # Its types are partial.
        kombu: Any = import_module("kombu")
        url = os.environ.get("POSTBUS_TEST_RABBITMQ", "amqp://guest:guest@127.0.0.1:5672//")
        connection = kombu.Connection(url, connect_timeout=PATIENCE)
        try:
            connection.ensure_connection(max_retries=1, timeout=PATIENCE)
        except Exception as error:
            unavailable(f"RabbitMQ does not answer: {type(error).__name__}")
        self._stack.callback(connection.close)
        self._stack.callback(lambda: connection.default_channel.queue_delete(self._queue))
        return {"SHOP_RABBITMQ": url}

    def _redis(self) -> Environment:
        # As above.
        redis: Any = import_module("redis")
        url = os.environ.get("POSTBUS_TEST_REDIS", "redis://127.0.0.1:6379/0")
        client = redis.Redis.from_url(url)
        self._stack.callback(client.close)
        try:
            client.ping()
        except redis.RedisError as error:
            unavailable(f"Redis does not answer: {type(error).__name__}")

        def clean() -> None:
            for key in client.scan_iter(f"*{self._queue}*"):
                client.delete(key)

        self._stack.callback(clean)
        return {"SHOP_REDIS": url}

    def _sqs(self) -> Environment:
        if find_spec("moto") is None:
            unavailable("moto is not installed")
        # It plays Amazon's server; its types are partial.
        moto: Any = import_module("moto.server")
        server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        self._stack.callback(server.stop)
        _, port = server.get_host_and_port()
        self.options = {"transport_options": {"is_secure": False}}
        url = f"sqs://key:secret@127.0.0.1:{port}"
        return {"SHOP_SQS": url, "AWS_DEFAULT_REGION": "eu-west-1"}

    def _kombu(self) -> Environment:
        # Its filesystem transport puts nothing into folders that are not there.
        (self._folder / "kombu").mkdir()
        return {}


@pytest.fixture
def surroundings(tmp_path: Path) -> Iterator[Surroundings]:
    """What is started and left behind for one transport ends with the test."""
    with ExitStack() as stack:
        yield Surroundings(tmp_path, f"shop-{new_id()}", stack)


def config_over(transport: str, folder: Path, **options: Any) -> Path:
    """Write the shop's dict with the sections of *transport* in the place of its own."""
    config, sections = (
        tomllib.loads((SHOP / file).read_text("utf-8"))
        for file in ("2-later.toml", f"transports/{transport}.toml")
    )
    config["postbus"].update(sections["postbus"])
    for role in ("producers", "consumers"):
        config["postbus"][role]["back_office"].update(options)
    path = folder / "shop.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def rows(folder: Path, statement: str) -> list[Any]:
    with closing(sqlite3.connect(folder / "ledgers.db", 30.0)) as ledgers:
        return ledgers.execute(statement).fetchall()


def handled_orders(folder: Path) -> int:
    [(tables,)] = rows(folder, "SELECT count(*) FROM sqlite_master WHERE name = 'handled'")
    statement = "SELECT count(*) FROM handled WHERE name = 'shop.order.place'"
    return rows(folder, statement)[0][0] if tables else 0


class TestShop:
    """The shop of the examples."""

    @pytest.mark.parametrize("name", TRANSPORTS)
    def test_it_is_handled_once_in_another_process_over(
        self, name: str, tmp_path: Path, surroundings: Surroundings
    ) -> None:
        """The handlers' process is not the caller's, and what was sent was handled, once."""
        if name not in installed_transports():
            pytest.skip(f"{name} is not installed")
        environ = {
            **os.environ,
            **surroundings.prepared(name),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(SHOP), os.environ.get("PYTHONPATH")])),
        }
        config = config_over(name, tmp_path, **surroundings.options)
        python = (sys.executable, "-W", "error")
        with running(*python, str(SHOP / "worker.py"), str(config), env=environ) as worker:
            if (port := surroundings.port) is not None:
                wait_for(lambda: listens(port), "the worker to listen")
            caller = subprocess.run(
                [*python, "-c", CALLER, str(config)],
                cwd=SHOP,
                env=environ,
                stdout=subprocess.PIPE,
                check=True,
                timeout=PATIENCE,
            )
            wait_for(lambda: handled_orders(tmp_path) >= ORDERS, "the worker to handle all")

        assert worker.returncode == 0
        assert int(caller.stdout) != worker.pid
        assert [(worker.pid,)] == rows(tmp_path, "SELECT DISTINCT pid FROM handled")
        sent = Counter(rows(tmp_path, "SELECT name, id FROM dispatched"))
        listeners = {"shop.order.placed": 2}
        assert len(sent) >= 4 * ORDERS
        assert {key: n * listeners.get(key[0], 1) for key, n in sent.items()} == Counter(
            rows(tmp_path, "SELECT name, id FROM handled")
        )

    @pytest.mark.parametrize("name", TRANSPORTS)
    def test_nothing_is_wrong_with_its_dict_over(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`postbus check` finds nothing; what is shown is what should be copied."""
        assert [] == self.found(name, config_over(name, tmp_path), monkeypatch)

    @pytest.mark.parametrize("name", ["beanstalkd", "gearman", "redis"])
    def test_a_server_that_may_forget_is_told_over(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without `durable = true` both sections are found."""
        config = config_over(name, tmp_path)
        config.write_text(config.read_text().replace('"durable": true', '"durable": false'))

        assert 2 * ["volatile-queue"] == self.found(name, config, monkeypatch)

    def found(self, name: str, config: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Return the rules that `postbus check` finds broken."""
        if name not in installed_transports():
            pytest.skip(f"{name} is not installed")
        monkeypatch.syspath_prepend(str(SHOP))
        environ = {"SHOP_LEDGERS": str(config.parent)}
        application = import_module("shop.application")
        with application.open_shop(load(config, environ)) as postbus:
            return [finding.rule for finding in examine(postbus.project())]

    def test_no_transport_is_left_out(self) -> None:
        """Whatever is installed has its sections in the example, under one of its names."""
        shown = {find_transport(name) for name in TRANSPORTS if name in installed_transports()}
        left = {name for name in installed_transports() if find_transport(name) not in shown}

        assert left <= set(ELSEWHERE)
