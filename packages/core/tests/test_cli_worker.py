"""`postbus worker` as real processes: signals, exit codes, supervision, `send` and `query`."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from postbus.cli._processes import Processes, backoff
from postbus.cli._worker import _given, _limits
from postbus.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

# For what a machine under heavy load needs.
PATIENCE = 60.0
pytest.importorskip("postbus_files")

APPLICATION = """
import os
import sys
import attrs
from postbus import Command, Query, build

@attrs.frozen
class Note(Command, name="proc.note"):
    text: str

@attrs.frozen
class Whoami(Query[int], name="proc.whoami"):
    pass

def note(command):
    print("handled", command.text, os.getpid(), flush=True)
    if command.text == "fail":
        raise RuntimeError("it failed")

def whoami(query):
    return os.getpid()

def make(config):
    return build(config, {"note": note, "whoami": whoami})
"""


@attrs.define
class Project:
    """An application in a folder of its own, and the processes that were started for it."""

    folder: Path
    started: list[subprocess.Popen[str]] = attrs.field(factory=list)

    def write(self, **more: Any) -> None:
        """Write its configuration."""
        queue = {"transport": "files", "path": str(self.folder / "queue")}
        queries = {"transport": "files", "path": str(self.folder / "queries")}
        config = {
            "messages": ["proc_app"],
            "producers": {"notes": queue, "queries": queries},
            "consumers": {
                "notes": {**queue, "failure_store": "main"},
                "queries": {**queries, "failure_store": "main"},
            },
            "stores": {"main": {"store": "sqlite", "path": str(self.folder / "main.db")}},
            "command_bus": {
                "router": {
                    "routes": {"proc.note": "note"},
                    "send": {"proc.note": "producers.notes"},
                }
            },
            "query_bus": {
                "router": {
                    "routes": {"proc.whoami": "whoami"},
                    "send": {"proc.whoami": "producers.queries"},
                }
            },
            **more,
        }
        (self.folder / "postbus.json").write_text(json.dumps(config))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `postbus` in the folder."""
        command = [sys.executable, "-m", "postbus.cli", "--app", "proc_app:make"]
        process = subprocess.Popen(
            [*command, "--config", "postbus.json", *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run `postbus` to its end; return its exit code, output and errors."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A project; whatever it started is ended."""
    (tmp_path / "proc_app.py").write_text(APPLICATION)
    made = Project(tmp_path)
    made.write()
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=PATIENCE)


def read_until(stream: Any, pattern: str) -> re.Match[str]:
    """Return the first line of *stream* that *pattern* is found in."""
    for line in stream:
        if (found := re.search(pattern, line)) is not None:
            return found
    raise AssertionError(f"the process ended without {pattern!r}")


def read_all(stream: Any, *patterns: str, times: int) -> dict[str, list[re.Match[str]]]:
    """Return what is found of each pattern, in any order, as soon as each was so many times."""
    found: dict[str, list[re.Match[str]]] = {pattern: [] for pattern in patterns}
    while any(len(each) < times for each in found.values()):
        line = next(stream)
        for pattern, matches in found.items():
            matches.extend(re.finditer(pattern, line))
    return found


class TestWorker:
    """One process."""

    def test_a_signal_ends_it_in_order(self, project: Project) -> None:
        """It handles what was sent from another process, and SIGTERM is exit code 0 (K09)."""
        worker = project.start("worker", "notes")
        read_until(worker.stderr, "info worker started consumers=")
        assert 0 == project.run("send", "proc.note", '{"text": "one"}')[0]
        assert read_until(worker.stdout, r"handled one (\d+)")[1] == str(worker.pid)
        worker.send_signal(signal.SIGTERM)
        assert 0 == worker.wait(PATIENCE)

    def test_a_query_is_answered_by_another_process(self, project: Project) -> None:
        """And the answer is printed as JSON."""
        worker = project.start("worker", "queries", "--json")
        read_until(worker.stderr, '"event": "worker started"')
        code, out, _ = project.run("query", "proc.whoami", "{}", "--timeout", "50")
        assert (0, f"{worker.pid}\n") == (code, out)
        worker.send_signal(signal.SIGINT)
        assert 0 == worker.wait(PATIENCE)

    def test_its_exit_code_says_why_it_ended(self, project: Project) -> None:
        """0 at a limit, 1 after a failure with `--stop-on-error`, 3 without an application."""
        assert 0 == project.run("send", "proc.note", '{"text": "fail"}')[0]
        code, out, err = project.run("worker", "notes", "--stop-on-error")
        assert 1 == code
        assert "handled fail" in out
        assert "it failed" in err
        assert 0 == project.run("worker", "notes", "--max-runtime", "0")[0]
        project.write(consumers={})
        code, _, err = project.run("worker")
        assert 3 == code
        assert "a worker needs at least one consumer" in err

    def test_a_query_that_nobody_answers_fails(self, project: Project) -> None:
        """Its deadline is exit code 4."""
        code, _, err = project.run("query", "proc.whoami", "{}", "--timeout", "0.2")
        assert 4 == code
        assert err.startswith("postbus: ")


class TestProcesses:
    """`--processes`."""

    def test_they_share_the_work_and_end_together(self, project: Project) -> None:
        """A killed one is started again; SIGTERM ends all of them, with exit code 0."""
        supervisor = project.start("worker", "notes", "--processes", "2")
        started = r"worker process started .*pid=(\d+)"
        found = read_all(supervisor.stderr, started, "info worker started", times=2)
        pids = [int(each[1]) for each in found[started]]
        os.kill(pids[0], signal.SIGKILL)
        read_until(supervisor.stderr, "error worker process was killed .*signal=9 pause=0.5")
        again = int(read_until(supervisor.stderr, started)[1])
        assert again not in pids
        read_until(supervisor.stderr, "worker started")
        project.run("send", "proc.note", '{"text": "two"}')
        assert int(read_until(supervisor.stdout, r"handled two (\d+)")[1]) in {pids[1], again}
        supervisor.send_signal(signal.SIGTERM)
        assert 0 == supervisor.wait(PATIENCE)
        assert not any(map(is_alive, (*pids, again)))

    def test_one_that_ends_by_itself_has_meant_it(self, project: Project) -> None:
        """With 0 it is done, with anything else the others stop and the code is passed on."""
        assert 0 == project.run("worker", "notes", "--processes", "2", "--max-messages", "0")[0]
        project.write(comand_bus={})
        code, _, err = project.run("worker", "--processes", "2")
        assert 3 == code
        assert "comand_bus: not a known key" in err

    def test_they_do_not_outlive_their_supervisor(self, project: Project) -> None:
        """However it ends: they hear it, finish and end."""
        supervisor = project.start("worker", "notes", "--processes", "2")
        started = r"worker process started .*pid=(\d+)"
        found = read_all(supervisor.stderr, started, "info worker started", times=2)
        pids = [int(each[1]) for each in found[started]]
        supervisor.kill()
        try:
            assert not any(map(is_alive, pids))
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def test_signals_are_handed_on_and_a_second_stop_kills(self, project: Project) -> None:
        """SIGUSR2 and SIGCONT reach each; two SIGTERMs end even what ignores one."""
        (project.folder / "stubborn.py").write_text(
            textwrap.dedent("""
                import signal, sys
                def say(number, frame):
                    print(signal.Signals(number).name, flush=True)
                for number in (signal.SIGUSR2, signal.SIGCONT, signal.SIGTERM):
                    signal.signal(number, say)
                signal.alarm(300)  # so that nothing is left of a test that failed
                print("ready", flush=True)
                while True:
                    signal.pause()
            """)
        )
        (project.folder / "supervise.py").write_text(
            textwrap.dedent("""
                import sys
                from postbus.cli._processes import Processes
                sys.exit(Processes([sys.executable, "stubborn.py"], 1).run())
            """)
        )
        supervisor = subprocess.Popen(
            [sys.executable, "supervise.py"],
            cwd=project.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        project.started.append(supervisor)
        read_until(supervisor.stdout, "ready")
        for number in (signal.SIGUSR2, signal.SIGCONT, signal.SIGTERM):
            supervisor.send_signal(number)
            read_until(supervisor.stdout, number.name)
        supervisor.send_signal(signal.SIGTERM)
        assert 128 + signal.SIGTERM == supervisor.wait(PATIENCE)

    def test_a_stop_ends_the_pause_after_a_death(self, project: Project) -> None:
        """What is about to be started again is not."""
        (project.folder / "supervise.py").write_text(
            textwrap.dedent("""
                import sys
                from postbus.cli._processes import Processes
                import logging
                logging.basicConfig()
                code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
                command = [sys.executable, "-c", code]
                sys.exit(Processes(command, 1, pause=lambda failures: 3600.0).run())
            """)
        )
        supervisor = subprocess.Popen(
            [sys.executable, "supervise.py"],
            cwd=project.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        project.started.append(supervisor)
        read_until(supervisor.stderr, "worker process was killed")
        supervisor.send_signal(signal.SIGTERM)
        assert 0 == supervisor.wait(PATIENCE)

    def test_a_stop_is_not_lost_while_a_process_is_started(self) -> None:
        """It reaches that one too, as soon as it is there."""
        processes = Processes([sys.executable, "-c", "import time; time.sleep(600)"], 1)
        processes._stopping.set()
        assert -signal.SIGTERM == asyncio.run(processes._run_once(0))

    def test_pauses_grow_to_half_a_minute(self) -> None:
        """So that what dies at once does not keep the machine busy."""
        assert [0.5, 1.0, 2.0, 30.0, 30.0] == [backoff(n) for n in (1, 2, 3, 8, 1000)]

    def test_they_are_given_what_the_supervisor_was_given(self) -> None:
        """Every limit, also one that is false or 0, and nothing that was left out."""
        limits = {
            "max_messages": 0,
            "max_runtime": 1.5,
            "max_memory_bytes": 1024,
            "stop_when_empty": True,
            "stop_on_error": False,
        }
        assert [
            *("--log-level", "info", "--max-messages", "0", "--max-runtime", "1.5"),
            *("--max-memory", "1024", "--stop-when-empty", "--go-on", "mail"),
        ] == _given(("mail",), "info", limits)
        assert ["--log-level", "info"] == _given((), "info", dict.fromkeys(limits))
        settings = WorkerSettings(max_messages=5, stop_on_error=True)
        assert (0, False) == attrs.astuple(_limits(settings, limits))[0::4]
        assert (5, True) == attrs.astuple(_limits(settings, dict.fromkeys(limits)))[0::4]


def is_alive(pid: int) -> bool:
    """Tell whether a process is there still; a moment is given to one that is just ending."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.01)
    return True
