"""examples/fastapi and examples/django: an endpoint in a real application, served for real."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PATIENCE = 60.0
SERVERS = {"fastapi": "application:application", "django": "asgi:application"}


def ask(port: int, method: str, path: str) -> tuple[int, Any]:
    """Call a page; return its status and what it says."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with closing(connection):
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


@contextmanager
def served(name: str, port: int, environ: dict[str, str]) -> Generator[None]:
    """Run uvicorn in the folder of an example until the block ends."""
    command = [sys.executable, "-m", "uvicorn", SERVERS[name], "--port", str(port)]
    command += ["--http", "postbus_http.protocol:LimitedHTTPProtocol", "--log-level", "warning"]
    with subprocess.Popen(command, cwd=EXAMPLES / name, env=environ) as server:
        try:
            end = time.monotonic() + PATIENCE
            while True:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                assert server.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
            yield
        finally:
            server.terminate()
            server.wait(PATIENCE)


@pytest.mark.parametrize("name", SERVERS)
def test_pages_dispatch_over_the_endpoint_of_their_own_application(
    name: str, tmp_path: Path
) -> None:
    """A page posts to the endpoint, whose handler writes beside the inbox; errors come back."""
    pytest.importorskip(name)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    database = tmp_path / "warehouse.db"
    environ = {
        **os.environ,
        "WAREHOUSE_KEY": KEY,
        "WAREHOUSE_URL": f"http://127.0.0.1:{port}/messages/",
        "WAREHOUSE_DATABASE": str(database),
        "DJANGO_SETTINGS_MODULE": "settings",
        "DJANGO_SECRET_KEY": "x" * 50,
    }
    if name == "django":
        migrate = ["-m", "django", "migrate", "--run-syncdb", "--pythonpath", ".", "-v", "0"]
        subprocess.run([sys.executable, *migrate], check=True, cwd=EXAMPLES / name, env=environ)
    with served(name, port, environ):
        assert ask(port, "GET", "/stock/lamp") == (200, {"left": 2})
        assert ask(port, "POST", "/reservations/lamp") == (201, {"left": 1})
        assert ask(port, "POST", "/reservations/lamp") == (201, {"left": 0})
        assert ask(port, "POST", "/reservations/lamp") == (409, {"detail": "lamp: out of stock"})
        assert ask(port, "GET", "/stock/chair") == (200, {"left": 2})
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT count(*) FROM postbus_inbox WHERE done_at IS NOT NULL")
        # Two reservations and five answers; what failed left no row.
        assert rows.fetchall() == [(2 + 4,)]
