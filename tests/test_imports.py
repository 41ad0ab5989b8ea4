"""Importing is free: no client library, no environment, no effect, in any order."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "packages" / "core" / "src"
HEAVY = [
    "cattrs",
    "click",
    "dependency_injector",
    "httpx",
    "kombu",
    "pytest",
    "rich",
    "yaml",
    "zmq",
]

# Reading the environment through `os.environ` goes through one of these methods.
WATCH = """
import json, os, sys, threading
read = []
class Watched(dict):
    def __getitem__(self, key):
        read.append(key)
        return super().__getitem__(key)
    def get(self, key, default=None):
        read.append(key)
        return super().get(key, default)
plain = dict(os.environ)
modules = sys.argv[1].split(",")
for name in modules[1:]:
    __import__(name)
os.environ = Watched(plain)
os.getenv = os.environ.get
__import__(modules[0])
print(json.dumps({
    "loaded": sorted(sys.modules),
    "read": sorted(set(read)),
    "threads": threading.active_count(),
    "changed": dict(os.environ) != plain,
}))
"""


def watched_import(name: str, *before: str) -> dict[str, object]:
    """Import a module in a fresh process, others before it, and say what that did."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WATCH, ",".join([name, *before])],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    seen: dict[str, object] = json.loads(done.stdout)
    return seen


def core_modules() -> list[str]:
    """Name every module of core."""
    return sorted(
        ".".join(path.relative_to(CORE).with_suffix("").parts).removesuffix(".__init__")
        for path in CORE.rglob("*.py")
    )


def heavy_among(loaded: object) -> list[str]:
    """Pick the libraries that `import postbus` must not load."""
    assert isinstance(loaded, list)
    return [name for name in HEAVY if name in loaded]


class TestPostbus:
    """`import postbus`."""

    def test_it_loads_no_client_library_and_no_container(self) -> None:
        """Who dispatches in process pays for nothing else."""
        assert heavy_among(watched_import("postbus")["loaded"]) == []

    def test_it_reads_no_environment_and_starts_nothing(self) -> None:
        """What the libraries below it read is theirs, so those are imported before."""
        seen = watched_import("postbus", "attrs", "msgspec", "logging", "asyncio", "sqlite3")

        assert seen["read"] == []
        assert seen["changed"] is False
        assert seen["threads"] == 1


class TestModules:
    """Each module of core."""

    @pytest.mark.parametrize("name", core_modules())
    def test_it_can_be_imported_first(self, name: str) -> None:
        """No module needs another to be imported before it; none loads a client library."""
        loaded = watched_import(name)["loaded"]

        assert isinstance(loaded, list)
        assert [each for each in ("httpx", "kombu", "zmq") if each in loaded] == []
