"""`./dev demo` as a newcomer runs it, with a handful of orders."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("zmq", reason="the demo sends over ZeroMQ")

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
    lines = (ledgers / str(number) / "handled.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    return {entry["pid"] for entry in entries if entry["name"].startswith(prefix)}


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
    """A run with four orders, the first of them with an invoice."""
    return run_demo("--orders", "4", "--ledgers", str(ledgers))


class TestDemo:
    """examples/shop/demo.py."""

    def test_it_succeeds_when_all_that_was_sent_was_handled(
        self, done: subprocess.CompletedProcess[str]
    ) -> None:
        """Exit code 0, and the table says the same."""
        rows = [line.split() for line in done.stdout.splitlines() if line.startswith("   shop.")]

        assert (0, 18) == (done.returncode, len(rows))
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

    def test_it_leaves_no_process_behind(
        self, done: subprocess.CompletedProcess[str], ledgers: Path
    ) -> None:
        """Both workers have ended."""
        assert done.returncode == 0
        everyone = pids(ledgers, 1) | pids(ledgers, 2) | pids(ledgers, 3)

        assert [pid for pid in everyone if is_running(pid)] == []

    def test_it_shows_which_lines_of_the_dict_changed(
        self, done: subprocess.CompletedProcess[str]
    ) -> None:
        """The difference is what the reader is here for."""
        shown = [line.strip() for line in done.stdout.splitlines() if line.startswith("     + ")]

        assert shown == [
            '+ router.send."shop.order.place" = "producers.back_office"',
            '+ router.type = "regex"',
            "+ router.send.'^shop\\.mail\\..*' = \"producers.back_office\"",
        ]

    def test_progress_is_lines_where_nobody_watches(
        self, done: subprocess.CompletedProcess[str]
    ) -> None:
        """A log gets a line for each quarter."""
        lines = [f"   {n}/4 orders" for n in (1, 2, 3, 4)]

        assert 3 * lines == done.stderr.splitlines()

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

        assert shown.count(f"\r   [{40 * '#'}] 1/1 orders") == 3

    def test_it_fails_when_a_message_is_handled_twice(self, tmp_path: Path) -> None:
        """Exit code 1, naming the message and the handler."""
        shop = Path(shutil.copytree(SHOP, tmp_path / "shop"))
        handlers = shop / "shop" / "handlers.py"
        line = '        self._ledger.append(command, handler="send_confirmation")\n'
        text = handlers.read_text(encoding="utf-8")
        handlers.write_text(text.replace(line, 2 * line), encoding="utf-8")
        done = run_demo("--orders", "1", shop=shop)

        assert done.returncode == 1
        assert (
            "shop.mail.send-confirmation, send_confirmation: 0 not handled, 1 too many"
            in done.stderr
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
    """The three dicts of the demo."""

    def test_later_adds_one_send(self) -> None:
        """From now to later is one line."""
        assert changed("2-later.toml") == {"send": {"shop.order.place": "producers.back_office"}}

    def test_mail_later_adds_a_regular_expression(self) -> None:
        """And a part of the names is two."""
        assert changed("3-mail-later.toml") == {
            "type": "regex",
            "send": {r"^shop\.mail\..*": "producers.back_office"},
        }
