"""examples/fastapi_rabbitmq: pages and a worker, each a process, with a real broker in between."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest

from postbus.messages import new_id

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "fastapi_rabbitmq"
PATIENCE = 60.0
URL = os.environ.get("POSTBUS_TEST_RABBITMQ", "amqp://guest:guest@127.0.0.1:5672//")
kombu: Any = pytest.importorskip("kombu", reason="kombu is not installed")


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """What pages and worker are told: a broker, queues and a database that nobody else uses."""
    queue = f"postbus-test-{new_id()}"
    connection = kombu.Connection(URL, connect_timeout=PATIENCE)
    try:
        connection.ensure_connection(max_retries=1, timeout=PATIENCE)
    except Exception as error:
        reason = f"RabbitMQ does not answer: {type(error).__name__}"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}, and CI may not skip what needs it")
        pytest.skip(reason)
    yield {
        **os.environ,
        "OFFICE_URL": URL,
        "OFFICE_QUEUE": queue,
        "OFFICE_DATABASE": str(tmp_path / "office.db"),
    }
    channel = connection.channel()
    for kind in ("letters", "questions"):
        channel.queue_delete(f"{queue}-{kind}")
    connection.close()


@contextmanager
def started(
    environ: dict[str, str], *command: str, stop: int = signal.SIGTERM
) -> Generator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", *command], cwd=FOLDER, env=environ)
    try:
        yield process
    finally:
        process.send_signal(stop)
        assert process.wait(PATIENCE) in {0, -stop}


def until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def answers(client: httpx.Client) -> bool:
    try:
        client.get("/openapi.json")
    except httpx.TransportError:
        return False
    return True


def test_letters_are_taken_without_a_worker_and_typed_by_one(environ: dict[str, str]) -> None:
    """The page answers when the broker has the letter, and asks the worker for their number."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    pages = ("uvicorn", "office:application", "--port", str(port), "--log-level", "warning")
    worker = ("postbus.cli", "worker", "--app", "office:open_postbus")
    with (
        started(environ, *pages),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client,
    ):
        until(lambda: answers(client), "no page was served")
        for _ in range(3):
            assert client.post("/letters/ada").json() == {"letter": "taken"}
        # Somebody dies over it; nothing is lost, and nothing is typed twice.
        with started(environ, *worker, stop=signal.SIGKILL):
            until(lambda: client.get("/letters/ada").json() == {"typed": 3}, "nobody typed")
        assert client.post("/letters/ada").status_code == 202
        with started(environ, *worker):
            until(lambda: client.get("/letters/ada").json() == {"typed": 4}, "nobody typed it")
            assert client.get("/letters/bob").json() == {"typed": 0}


def test_a_broker_that_is_not_there_is_a_page_of_its_own(environ: dict[str, str]) -> None:
    """503, and no letter that is lost in silence."""
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        server.close()
        patch.setenv("OFFICE_URL", f"amqp://guest:guest@127.0.0.1:{port}//")
        patch.setenv("OFFICE_DATABASE", environ["OFFICE_DATABASE"])
        patch.syspath_prepend(str(FOLDER))
        office: Any = import_module("office")

        async def post() -> int:
            application = httpx.ASGITransport(app=office.application)
            async with (
                office.lifespan(office.application),
                httpx.AsyncClient(transport=application, base_url="http://office") as client,
            ):
                return (await client.post("/letters/ada")).status_code

        try:
            assert asyncio.run(post()) == 503
        finally:
            del sys.modules["office"]
