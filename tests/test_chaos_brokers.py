"""The chaos runs over servers, small enough for every run of the tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "benchmarks" / "chaos"
RABBITMQ = "/usr/lib/rabbitmq/bin"
PATIENCE = "8"
TIMEOUT = 100.0


def needs(*programs: str) -> None:
    """Skip where one of *programs* is missing, saying which; where CI is set, fail."""
    path = os.pathsep.join((os.environ["PATH"], "/usr/sbin", RABBITMQ))
    for program in programs:
        if shutil.which(program, path=path) is None:
            if os.environ.get("CI"):
                pytest.fail(f"{program} is not installed, and CI may not skip what needs it")
            sys.stderr.write(f"skipped: {program} is not installed\n")
            pytest.skip(f"{program} is not installed")


def chaos(name: str, *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    """Run one; return its exit code, the figures of its scenarios and what it complained of."""
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), "--patience", PATIENCE, *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            said, complained = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            # Not killed: it has servers to end.
            process.terminate()
            raise
    return process.returncode, [json.loads(line) for line in said.splitlines()], complained


class TestKombu:
    """`./dev chaos kombu`."""

    def test_neither_a_killed_worker_nor_a_killed_broker_loses_anything(self) -> None:
        """Each effect is there once; each send raised or arrived, and refusals come in time."""
        needs("rabbitmq-server", "epmd")
        scenarios = ("worker", "sends", "refused")
        code, figures, said = chaos("kombu_", "--n", "500", "--kills", "3", "--only", *scenarios)

        assert code == 0, (figures, said)
        assert [*scenarios] == [each["scenario"] for each in figures]
        worker, sends, refused = figures
        assert (3, 0, 0) == (worker["kills"], worker["lost"], worker["effects_twice"])
        assert (2, 0, 0) == (sends["kills"], sends["lost"], sends["effects_twice"])
        assert refused["sent"] == refused["failed"] > 0


class TestQueues:
    """`./dev chaos queues`."""

    @pytest.mark.parametrize(
        ("name", "program"), [("beanstalkd", "beanstalkd"), ("gearman", "gearmand")]
    )
    def test_neither_a_killed_worker_nor_a_killed_server_loses_anything(
        self, name: str, program: str
    ) -> None:
        """Each effect is there once; only a server that writes nothing down forgets, and all."""
        needs(program)
        scenarios = [f"{name}-{kind}" for kind in ("worker", "restart", "memory")]
        code, figures, said = chaos("queues", "--n", "200", "--kills", "2", "--only", *scenarios)

        assert code == 0, (figures, said)
        worker, restart, memory = figures
        assert (2, 0, 0) == (worker["kills"], worker["lost"], worker["effects_twice"])
        assert (2, 0, 0) == (restart["kills"], restart["lost"], restart["effects_twice"])
        assert memory["handled"] == 0 < memory["lost"]

    def test_a_worker_that_acknowledges_too_early_is_found(self) -> None:
        """What it held when it was killed is lost, and the run fails for that."""
        needs("beanstalkd")
        arguments = ("--n", "300", "--kills", "2", "--only", "beanstalkd-worker")
        code, figures, said = chaos("queues", *arguments, "--sabotage", "ack-early")

        assert code == 1, (figures, said)
        assert figures[0]["lost"] > 0
