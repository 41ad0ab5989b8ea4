"""The examples run as they stand, and the shop's dict alone decides where a message is handled."""

from __future__ import annotations

import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import textwrap
from collections import Counter
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

zmq = pytest.importorskip("zmq", reason="the examples send over ZeroMQ")

if TYPE_CHECKING:
    from collections.abc import Generator

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
SHOP = EXAMPLES / "shop"
PATIENCE = 60.0

# What a caller does, whatever the dict says; with a second argument it works as well.
CALLER = """
    import os, sqlite3, sys, time
    from contextlib import closing, nullcontext
    from pathlib import Path
    from postbus.config import load
    from shop.application import open_shop
    from shop.orders import read_orders

    path, embeds_worker = Path(sys.argv[1]), sys.argv[2:] == ["works"]
    config = load(path)
    ledger = sqlite3.connect(config["shop"]["ledgers"])
    orders = read_orders(Path("orders.jsonl"))[:3]
    expected = sum(5 if order.customer.company is None else 6 for order in orders)
    with closing(ledger), open_shop(config) as postbus:
        with postbus.worker().running() if embeds_worker else nullcontext():
            for order in orders:
                postbus.command_bus.dispatch(order)
            deadline = time.monotonic() + 30
            count = "SELECT count(*) FROM handled"
            while ledger.execute(count).fetchone()[0] < expected and time.monotonic() < deadline:
                time.sleep(0.01)
    print(os.getpid())
"""


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a Python program to its end, warnings being errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", *command],
        capture_output=True,
        check=False,
        text=True,
        timeout=PATIENCE,
        **options,
    )


@contextmanager
def started(*command: str, **options: Any) -> Generator[subprocess.Popen[str]]:
    """Run a Python program beside the test, and end it in any case."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", *command], stdout=subprocess.PIPE, text=True, **options
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()


def free_dsn() -> str:
    """Return an address of this machine that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"tcp://127.0.0.1:{server.getsockname()[1]}"


class TestSeed:
    """examples/seed.py and the bare server beside it."""

    def test_a_bare_pull_socket_gets_what_is_dispatched(self) -> None:
        """The page's code sends one frame of JSON that any peer can read (Z01, W01)."""
        with zmq.Context() as context, context.socket(zmq.PULL) as peer:
            port = peer.bind_to_random_port("tcp://127.0.0.1")
            done = run(str(EXAMPLES / "seed.py"), f"tcp://127.0.0.1:{port}")
            assert (0, "") == (done.returncode, done.stderr)
            assert peer.poll(1000 * PATIENCE)
            [body] = [json.loads(frame) for frame in peer.recv_multipart()]

        assert body["message_name"] == "example.echo-text"
        assert body["payload"] == {"text": "It works"}

    def test_the_bare_server_prints_what_it_gets(self) -> None:
        """A newcomer sees the message arrive in the other terminal."""
        dsn = free_dsn()
        with started(str(EXAMPLES / "seed_server.py"), dsn, "1") as server:
            done = run(str(EXAMPLES / "seed.py"), dsn)
            assert (0, "") == (done.returncode, done.stderr)
            printed, _ = server.communicate(timeout=PATIENCE)

        assert server.returncode == 0
        assert "It works" in printed

    def test_without_a_peer_it_says_what_to_start(self) -> None:
        """No traceback, but the command for the other terminal."""
        dsn = free_dsn()
        done = run(str(EXAMPLES / "seed.py"), dsn)

        assert done.returncode == 1
        assert f"python examples/seed_server.py {dsn}" in done.stderr
        assert "Traceback" not in done.stderr


class TestSeedQuery:
    """examples/seed_query.py and the bare server beside it."""

    def test_a_bare_rep_socket_answers_and_the_answer_is_printed(self) -> None:
        """One frame of JSON there, one back: a peer without postbus (Z01, Z03)."""
        dsn = free_dsn()
        with started(str(EXAMPLES / "seed_query_server.py"), dsn) as server:
            done = run(str(EXAMPLES / "seed_query.py"), dsn)
            assert (0, "") == (done.returncode, done.stderr)
            assert server.stdout is not None
            printed = [server.stdout.readline() for _ in range(2)]

        assert done.stdout == f"asked GetText(number=7) at {dsn}: text number 7\n"
        assert printed[0] == f"listening on {dsn}\n"
        assert "example.get-text" in printed[1]

    def test_without_a_peer_it_says_what_to_start(self) -> None:
        """No traceback, but the command for the other terminal."""
        dsn = free_dsn()
        done = run(str(EXAMPLES / "seed_query.py"), dsn)

        assert done.returncode == 1
        assert f"python examples/seed_query_server.py {dsn}" in done.stderr
        assert "Traceback" not in done.stderr


class TestShop:
    """examples/shop: one application, three ways to run it."""

    @pytest.fixture
    def environ(self, tmp_path: Path) -> dict[str, str]:
        """The environment of both processes: where they meet and what they write."""
        (tmp_path / "caller.py").write_text(textwrap.dedent(CALLER), encoding="utf-8")
        path = os.pathsep.join(filter(None, [str(SHOP), os.environ.get("PYTHONPATH")]))
        return {
            **os.environ,
            "PYTHONPATH": path,
            "SHOP_DSN": free_dsn(),
            "SHOP_LEDGERS": str(tmp_path),
        }

    def call(self, folder: Path, environ: dict[str, str], config: Path, *arguments: str) -> int:
        """Dispatch a few orders in a process of their own; return its id."""
        done = run(str(folder / "caller.py"), str(config), *arguments, cwd=str(SHOP), env=environ)
        assert (0, "") == (done.returncode, done.stderr)
        return int(done.stdout)

    def handled(self, folder: Path) -> list[tuple[str, int]]:
        """Read which name was handled where, once it is sure that all that was dispatched is."""
        with closing(sqlite3.connect(folder / "ledgers.db")) as ledgers:
            sent = Counter(ledgers.execute("SELECT name, id FROM dispatched"))
            handled = Counter(ledgers.execute("SELECT name, id FROM handled"))
            where = ledgers.execute("SELECT name, pid FROM handled").fetchall()
        listeners = {"shop.order.placed": 2}

        assert sent.total() > 0
        assert {key: n * listeners.get(key[0], 1) for key, n in sent.items()} == handled
        return where

    def test_without_a_send_the_caller_handles_everything(
        self, tmp_path: Path, environ: dict[str, str]
    ) -> None:
        """Routes alone: the process that dispatches is the one that handles."""
        caller = self.call(tmp_path, environ, SHOP / "1-now.toml")

        assert {caller} == {pid for _, pid in self.handled(tmp_path)}

    def test_over_memory_a_worker_of_the_same_process_handles_it(
        self, tmp_path: Path, environ: dict[str, str]
    ) -> None:
        """Another transport is another line of the dict."""
        text = (SHOP / "2-later.toml").read_text(encoding="utf-8")
        text = text.replace('transport = "zeromq"', 'transport = "memory"')
        text = "\n".join(
            'address = "shop"' if line.startswith("dsn = ") else line for line in text.splitlines()
        )
        config = tmp_path / "memory.toml"
        config.write_text(text, encoding="utf-8")
        caller = self.call(tmp_path, environ, config, "works")

        assert {caller} == {pid for _, pid in self.handled(tmp_path)}

    def test_over_zeromq_another_process_handles_it(
        self, tmp_path: Path, environ: dict[str, str]
    ) -> None:
        """One more line under `send`: every handler runs in the worker (Z01)."""
        config = SHOP / "2-later.toml"
        with started(str(SHOP / "worker.py"), str(config), env=environ) as worker:
            caller = self.call(tmp_path, environ, config)

        assert caller != worker.pid
        assert {worker.pid} == {pid for _, pid in self.handled(tmp_path)}
        assert worker.returncode == 0

    def test_a_regular_expression_sends_a_part_of_the_names(
        self, tmp_path: Path, environ: dict[str, str]
    ) -> None:
        """Mail goes to the worker, all else stays with the caller (P06)."""
        config = SHOP / "3-mail-later.toml"
        with started(str(SHOP / "worker.py"), str(config), env=environ) as worker:
            caller = self.call(tmp_path, environ, config)
        where = self.handled(tmp_path)
        is_mail = {name: name.startswith("shop.mail.") for name, _ in where}

        assert {worker.pid} == {pid for name, pid in where if is_mail[name]}
        assert {caller} == {pid for name, pid in where if not is_mail[name]}

    def test_the_orders_are_what_the_script_writes(self, tmp_path: Path) -> None:
        """The data can be made again, byte by byte."""
        script = tmp_path / "make_orders.py"
        script.write_bytes((SHOP / "make_orders.py").read_bytes())
        done = run(str(script))

        assert (0, "") == (done.returncode, done.stderr)
        expected = (SHOP / "orders.jsonl").read_bytes()
        assert expected == (tmp_path / "orders.jsonl").read_bytes()


class TestQuickstart:
    """docs/quickstart.md, typed step by step."""

    @pytest.fixture
    def steps(self) -> list[dict[str, str]]:
        """The files of each step; what a step does not show stays as it was."""
        page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
        files: dict[str, str] = {}
        steps: list[dict[str, str]] = []
        for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:4]:
            shown = re.findall(
                r"^`([a-z_.]+)`:\n\n(?:<!-- skip: next -->\n)?```\w+\n(.*?)^```$",
                section,
                flags=re.MULTILINE | re.DOTALL,
            )
            files = {**files, **dict(shown)}
            steps.append(files)
        return steps

    def write(self, folder: Path, files: dict[str, str], dsn: str = "") -> None:
        """Put the files of a step where they run."""
        for name, text in files.items():
            own = text.replace("tcp://127.0.0.1:5555", dsn)
            (folder / name).write_text(own, encoding="utf-8")

    def test_now_handles_before_dispatch_returns(
        self, tmp_path: Path, steps: list[dict[str, str]]
    ) -> None:
        """The first step."""
        self.write(tmp_path, steps[0])
        done = run("sign_up.py", cwd=str(tmp_path))

        assert (0, "") == (done.returncode, done.stderr)
        mail, signed_up = done.stdout.splitlines()
        assert mail.startswith("MainThread of process ")
        assert signed_up.endswith(": signed up")

    def test_later_handles_in_a_thread_of_the_worker(
        self, tmp_path: Path, steps: list[dict[str, str]]
    ) -> None:
        """The second step."""
        self.write(tmp_path, steps[1])
        done = run("serve.py", cwd=str(tmp_path))

        assert (0, "") == (done.returncode, done.stderr)
        assert {"process", "postbus_0"} == {line.split()[0] for line in done.stdout.splitlines()}

    def test_in_another_process_the_first_program_is_unchanged(
        self, tmp_path: Path, steps: list[dict[str, str]]
    ) -> None:
        """The third step."""
        self.write(tmp_path, steps[2], free_dsn())
        with started("work.py", cwd=str(tmp_path)) as worker:
            done = run("sign_up.py", cwd=str(tmp_path))
            assert worker.stdout is not None
            mail = worker.stdout.readline()

        assert (0, "") == (done.returncode, done.stderr)
        assert done.stdout.endswith(": signed up\n")
        assert mail == f"postbus_0 of process {worker.pid}: mail to ada@example.com\n"
