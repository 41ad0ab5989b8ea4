"""`./dev demo` as a newcomer runs it, with a handful of orders."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tomllib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from postbus.discovery import installed_transports

pytest.importorskip("postbus_zeromq", reason="the demo sends over ZeroMQ")
pytest.importorskip("postbus_files", reason="the demo sends through a folder")

SHOP = Path(__file__).resolve().parent.parent / "examples" / "shop"
PATIENCE = 110.0


def run_demo(*arguments: str, shop: Path = SHOP) -> subprocess.CompletedProcess[str]:
    """Run the demo to its end, warnings being errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", str(shop / "demo.py"), *arguments],
        capture_output=True,
        check=False,
        text=True,
        timeout=PATIENCE,
    )


def pids(ledgers: Path, number: int, prefix: str = "shop.") -> set[int]:
    """Say which processes handled the messages of one run whose names begin with *prefix*."""
    statement = "SELECT DISTINCT pid FROM handled WHERE name GLOB ?"
    with closing(sqlite3.connect(ledgers / str(number) / "ledgers.db")) as connection:
        return {pid for (pid,) in connection.execute(statement, (f"{prefix}*",))}


def is_running(pid: int) -> bool:
    """Say whether a process is still there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def changed(file: str) -> dict[str, Any]:
    """Return what the command router of *file* has and that of the first file has not."""
    first, own = (tomllib.loads((SHOP / f).read_text("utf-8")) for f in ("1-now.toml", file))
    before = first["postbus"]["command_bus"]["router"]
    after = own["postbus"]["command_bus"].pop("router")
    del first["postbus"]["command_bus"]["router"]

    assert first == own
    assert before == {key: after[key] for key in before}
    return {key: value for key, value in after.items() if key not in before}


@pytest.fixture(scope="module")
def ledgers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the ledgers of the run below stand."""
    return tmp_path_factory.mktemp("ledgers")


@pytest.fixture(scope="module")
def done(ledgers: Path) -> subprocess.CompletedProcess[str]:
    """A run with twelve orders, the first of them with an invoice."""
    return run_demo("--orders", "12", "--ledgers", str(ledgers))


class TestDemo:
    """examples/shop/demo.py."""

    def test_it_succeeds_when_all_that_was_sent_was_handled(
        self, done: subprocess.CompletedProcess[str]
    ) -> None:
        """Exit code 0, and the table says the same."""
        rows = [line.split() for line in done.stdout.splitlines() if line.startswith("   shop.")]

        assert (0, 24) == (done.returncode, len(rows)), done.stderr
        assert [row for row in rows if row[-1] != row[-2]] == []
        assert "Everything that was sent was handled, once." in done.stdout

    def test_each_run_is_handled_where_its_dict_says(
        self, done: subprocess.CompletedProcess[str], ledgers: Path
    ) -> None:
        """Here, in the worker, and mail alone in the worker."""
        assert done.returncode == 0
        [here] = pids(ledgers, 1)
        [worker] = pids(ledgers, 2)
        [mailer] = pids(ledgers, 3, "shop.mail.")

        assert len({here, worker, mailer}) == 3
        assert {here, mailer} == pids(ledgers, 3)
        assert {here} == pids(ledgers, 3, "shop.order.")

    def test_a_killed_worker_loses_nothing_and_repeats_nothing(
        self, done: subprocess.CompletedProcess[str], ledgers: Path
    ) -> None:
        """Two workers share the work, and every order is in the ledger once."""
        assert done.returncode == 0, done.stderr
        killed = re.search(r"worker (\d+) was killed \(SIGKILL\) at order (\d+)", done.stdout)
        second = re.search(r"worker (\d+) took its place", done.stdout)
        assert killed
        assert second
        with closing(sqlite3.connect(ledgers / "4" / "ledgers.db")) as connection:
            once = "SELECT count(*) = 1 FROM handled GROUP BY name, handler, id"
            rows = connection.execute(once).fetchall()

        assert 4 <= int(killed[2]) <= 5
        assert {int(killed[1]), int(second[1])} == pids(ledgers, 4)
        assert rows == [(1,)] * len(rows)
        assert f"12 orders, {len(rows)} rows of handlers, 0 lost, 0 twice." in done.stdout

    def test_it_names_every_transport_with_what_it_takes(
        self, done: subprocess.CompletedProcess[str]
    ) -> None:
        """The last table: one line of configuration each."""
        lines = [line for line in done.stdout.splitlines() if ' transport = "' in line]
        named = [line.split()[0] for line in lines if not line.startswith("     ")]

        assert list(installed_transports()) == named
        assert any('transport = "files", path = "./queue"' in line for line in lines)

    def test_it_leaves_no_process_behind(
        self, done: subprocess.CompletedProcess[str], ledgers: Path
    ) -> None:
        """All workers have ended."""
        assert done.returncode == 0
        everyone = set().union(*(pids(ledgers, number) for number in (1, 2, 3, 4)))

        assert [pid for pid in everyone if is_running(pid)] == []

    def test_it_shows_which_lines_of_the_dict_changed(
        self, done: subprocess.CompletedProcess[str]
    ) -> None:
        """The difference is what the reader is here for."""
        runs = done.stdout.split("\n4  ")[0]
        shown = [line.strip() for line in runs.splitlines() if line.startswith("     + ")]

        assert shown == [
            '+ router.send."shop.order.place" = "producers.back_office"',
            '+ router.type = "regex"',
            "+ router.send.'^shop\\.mail\\..*' = \"producers.back_office\"",
        ]

    def test_progress_is_lines_where_nobody_watches(
        self, done: subprocess.CompletedProcess[str]
    ) -> None:
        """A log gets a line for each quarter."""
        lines = [f"   {n}/12 orders" for n in (3, 6, 9, 12)]
        said = [line for line in done.stderr.splitlines() if not line.startswith("worker: ")]

        assert 4 * lines == said

    def test_progress_is_a_bar_on_a_terminal(self) -> None:
        """A terminal gets one line that grows."""
        ours, theirs = pty.openpty()
        try:
            subprocess.run(
                [sys.executable, "-W", "error", str(SHOP / "demo.py"), "--orders", "1"],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=theirs,
                timeout=PATIENCE,
            )
            shown = os.read(ours, 10_000).decode()
        finally:
            os.close(ours)
            os.close(theirs)

        assert shown.count(f"\r   [{40 * '#'}] 1/1 orders") == 4

    def test_it_fails_when_a_message_is_handled_twice(self, tmp_path: Path) -> None:
        """Exit code 1, naming the message and the handler."""
        shop = Path(shutil.copytree(SHOP, tmp_path / "shop"))
        handlers = shop / "shop" / "handlers.py"
        line = '        self._session.handled(command, "send_confirmation")\n'
        text = handlers.read_text(encoding="utf-8")
        assert line in text
        handlers.write_text(text.replace(line, 2 * line), encoding="utf-8")
        done = run_demo("--orders", "1", shop=shop)

        assert done.returncode == 1
        assert (
            "shop.mail.send-confirmation, send_confirmation: 0 not handled, 1 too many"
            in done.stderr
        )

    def test_it_fails_when_a_killed_worker_repeats_something(self, tmp_path: Path) -> None:
        """The inbox is what keeps the order that was committed from being handled again."""
        shop = Path(shutil.copytree(SHOP, tmp_path / "shop"))
        config = shop / "4-durable.toml"
        text = config.read_text(encoding="utf-8")
        config.write_text(text.replace('inbox = "main"\n', ""), encoding="utf-8")
        done = run_demo("--orders", "4", shop=shop)

        assert done.returncode == 1
        assert re.search(
            "shop.order.place, place_order: 0 not handled, [12] too many", done.stderr
        )

    def test_it_ends_when_the_worker_does_not_start(self, tmp_path: Path) -> None:
        """A worker that dies is noticed at once, not after the deadline."""
        shop = Path(shutil.copytree(SHOP, tmp_path / "shop"))
        (shop / "worker.py").write_text("raise SystemExit(3)", encoding="utf-8")
        done = run_demo("--orders", "1", shop=shop)

        assert done.returncode == 1
        assert "the worker ended with code 3 before it was ready" in done.stderr

    def test_it_takes_the_worker_along_when_it_is_stopped(self) -> None:
        """SIGTERM ends both processes."""
        command = [sys.executable, "-W", "error", str(SHOP / "demo.py"), "--orders", "100"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as demo:
            assert demo.stdout is not None
            said = next(line for line in demo.stdout if line.startswith("   worker "))
            demo.terminate()
            demo.communicate(timeout=PATIENCE)

        assert 128 + signal.SIGTERM == demo.returncode
        assert not is_running(int(said.split()[1]))

    def test_it_refuses_to_run_without_orders(self) -> None:
        """Nothing sent and nothing handled would look like success."""
        done = run_demo("--orders", "0")

        assert done.returncode == 2
        assert "--orders" in done.stderr


class TestConfigurations:
    """The four dicts of the demo."""

    def test_later_adds_one_send(self) -> None:
        """From now to later is one line."""
        assert changed("2-later.toml") == {"send": {"shop.order.place": "producers.back_office"}}

    def test_mail_later_adds_a_regular_expression(self) -> None:
        """And a part of the names is two."""
        assert changed("3-mail-later.toml") == {
            "type": "regex",
            "send": {r"^shop\.mail\..*": "producers.back_office"},
        }

    def test_the_last_is_the_second_over_the_sections_of_files(self) -> None:
        """What survives a kill is a matter of the transport's sections, and of no code."""
        last, second, files = (
            tomllib.loads((SHOP / file).read_text("utf-8"))
            for file in ("4-durable.toml", "2-later.toml", "transports/files.toml")
        )
        consumer = last["postbus"]["consumers"]["back_office"]
        # So that a run is short, and the worker is in the middle of it for a while.
        assert (consumer.pop("lease"), consumer.pop("concurrency")) == (2.0, 2)
        second["postbus"].update(files["postbus"])

        assert second == last
