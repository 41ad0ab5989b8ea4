"""Servers of a run's own, on free ports of the loopback, with their files in a folder of the run.

Each is ended by the process that was started, never by its name.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

PATIENCE = 60.0
RABBITMQ = Path("/usr/lib/rabbitmq/bin")
# RabbitMQ 3.10 writes down what it knows of a new quorum queue some seconds later only.
SYNC = "[dets:sync(Table) || Table <- dets:all()], mnesia:sync_log(), mnesia:dump_log()."


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@attrs.define
class Server:
    """A server that can be killed and started again, on the same port and over the same files."""

    folder: Path
    port: int = attrs.Factory(free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str] | None:
        return None

    def answers(self) -> bool:
        """Say whether it is up, as a client finds out."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def is_empty(self) -> bool:
        """Say whether it has no message any more, held and delayed ones included."""
        raise NotImplementedError

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.process = self.run(self.command())
        wait_for(self.answers, f"{self.command()[0]} to answer")

    def run(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.folder / "output").open("ab") as output:
            return subprocess.Popen(
                command,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @contextmanager
    def ask(self, command: bytes) -> Generator[BinaryIO]:
        """Send a line of its text protocol; lend the answer."""
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as raw:
            raw.sendall(command)
            with raw.makefile("rb") as answer:
                yield answer

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        process, self.process = self.process, None
        assert process is not None
        end(process, how)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.kill()


def end(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGKILL) -> None:
    """End a process and what it has started, which is in a session of its own."""
    # It may have ended by itself, and a shell's child may be there still.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, how)
    process.wait(PATIENCE)


def wait_for(is_so: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Return when *is_so* says True."""
    deadline = time.monotonic() + patience
    pause = threading.Event()
    while not is_so():
        if time.monotonic() > deadline:
            msg = f"waited {patience:g} s in vain for {what}"
            raise TimeoutError(msg)
        pause.wait(0.02)


@attrs.define
class RabbitMQ(Server):
    """A broker with a node name and a port mapper of its own."""

    epmd_port: int = attrs.Factory(free_port)
    _epmd: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{self.address}//"

    def environment(self) -> dict[str, str]:
        folder = str(self.folder)
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": folder,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self.epmd_port),
            "RABBITMQ_NODENAME": f"postbus-chaos-{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/plugins",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/advanced.config",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def command(self) -> Sequence[str]:
        return [str(RABBITMQ / "rabbitmq-server")]

    def answers(self) -> bool:
        import kombu

        if self.process is not None and self.process.poll() is not None:
            msg = f"RabbitMQ ended when it was started: {self.folder}/output"
            raise ConnectionError(msg)
        transport: Any = kombu.Connection(self.url, connect_timeout=2).transport
        try:
            transport.establish_connection().close()
        except Exception:
            return False
        return True

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        if self._epmd is None:
            (self.folder / "rabbitmq.conf").write_text("disk_free_limit.absolute = 1MB\n")
            # Three minutes by default: so late may a delayed message be that was under way when
            # the broker was killed.
            late = "{dead_letter_worker_publisher_confirm_timeout, 5000}"
            (self.folder / "advanced.config").write_text(f"[{{rabbit, [{late}]}}].")
            (self.folder / "plugins").write_text("[].")
            self._epmd = self.run(["epmd", "-port", str(self.epmd_port), "-address", "127.0.0.1"])
        super().start()

    def control(self, *command: str) -> str:
        """Have rabbitmqctl do something; return what it said."""
        done = subprocess.run(
            [str(RABBITMQ / "rabbitmqctl"), "--quiet", *command],
            env=self.environment(),
            check=True,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        return done.stdout

    def sync(self) -> None:
        """Have it write down which queues there are."""
        self.control("eval", SYNC)

    def is_empty(self) -> bool:
        counts = self.control("list_queues", "messages", "--no-table-headers").split()
        return not any(int(count) for count in counts)

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        if self._epmd is not None:
            end(self._epmd)


@attrs.define
class Redis(Server):
    """A server that writes its messages down."""

    @property
    def url(self) -> str:
        return f"redis://{self.address}/0"

    def command(self) -> Sequence[str]:
        where = ("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder))
        return ["redis-server", *where, "--appendonly", "yes", "--save", ""]


@attrs.define
class Beanstalkd(Server):
    """A server that writes its jobs down where *is_durable*."""

    is_durable: bool = True

    def command(self) -> Sequence[str]:
        keeping = ["-b", str(self.folder), "-f0"] if self.is_durable else []
        return ["beanstalkd", "-l", "127.0.0.1", "-p", str(self.port), *keeping]

    def is_empty(self) -> bool:
        with self.ask(b"stats\r\n") as answer:
            size = int(answer.readline().split()[1])
            facts = answer.read(size)
        return not any(map(int, re.findall(rb"-jobs-(?:ready|reserved|delayed): ([0-9]+)", facts)))


@attrs.define
class Gearmand(Server):
    """A server that writes its jobs down where *is_durable*."""

    is_durable: bool = True

    def command(self) -> Sequence[str]:
        files = ("-l", f"{self.folder}/log", "-P", f"{self.folder}/pid")
        database = ("--libsqlite3-db", f"{self.folder}/jobs.db")
        keeping = ["-q", "libsqlite3", *database] if self.is_durable else []
        return ["gearmand", "-L", "127.0.0.1", "-p", str(self.port), *files, *keeping]

    def is_empty(self) -> bool:
        with self.ask(b"status\n") as answer:
            functions = [line.split(b"\t") for line in iter(answer.readline, b".\n")]
        return not any(int(total) for _, total, *_ in functions)
