"""A machine without a server still tests the rest, and the run says what it could not reach."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEEDS_A_SERVER = "packages/beanstalkd/tests/test_beanstalkd.py::TestQueries"


def run_without_servers(**environ: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("postbus_beanstalkd")
    kept = {name: value for name, value in os.environ.items() if name != "CI"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", NEEDS_A_SERVER],
        cwd=ROOT,
        env={**kept, "PATH": "", **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_is_not_there_is_named() -> None:
    """With what would bring it; the run passes."""
    run = run_without_servers()

    assert run.returncode == 0, run.stdout
    assert "not run here" in run.stdout
    assert "apt-get install beanstalkd (2 tests)" in run.stdout


def test_in_ci_it_is_a_failure() -> None:
    """Nothing is skipped in silence where it counts."""
    run = run_without_servers(CI="true")

    assert run.returncode == 1, run.stdout
    assert "CI may not skip" in run.stdout
