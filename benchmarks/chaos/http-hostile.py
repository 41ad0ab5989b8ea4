"""Do to an endpoint what strangers do, all of it one after the other, and watch what it costs.

The endpoint runs under uvicorn as the documentation recommends. Against it: a body of 300 MiB in
chunks, hundreds of slow bodies and slow headers, packed bombs, ten thousand headers, forged and
replayed messages and names that are none. A good message is posted every 50 ms throughout. Prints
one JSON line; the exit code is 1 where anything bad was accepted, a slow connection lived longer
than 15 s, the memory grew by 64 MiB, or a good message was not answered, 99 in 100 within 250 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import http.client
import json
import os
import random
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import attrs
import uvicorn

from postbus import Command, Envelope, MessageCatalog, build
from postbus.wire import encode
from postbus_http import MessageEndpoint, WebhookKeys

KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MEBI = 1024 * 1024
LONGEST, GROWTH_BYTES, QUANTILE_99 = 15.0, 64 * MEBI, 0.25


@attrs.frozen
class Note(Command, name="hostile.note"):
    text: str


def serve(port: int, ledger: Path) -> None:
    """Be the server; each effect is a line."""
    effects = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    catalog = MessageCatalog()
    catalog.add(Note)
    config = {"command_bus": {"router": {"routes": {"hostile.note": "note"}}}}
    services = {"note": lambda message: os.write(effects, f"{message.text}\n".encode())}
    with build(config, services, catalog) as postbus:
        uvicorn.run(
            MessageEndpoint(postbus, signing_keys=[KEY]),
            port=port,
            http="postbus_http.protocol:LimitedHTTPProtocol",
            limit_concurrency=2_000,
            lifespan="off",
            log_level="critical",
            access_log=False,
        )


class Target:
    """The server, seen from outside."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self._pid = pid

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 30.0)

    def memory(self, which: str = "VmRSS") -> int:
        status = Path(f"/proc/{self._pid}/status").read_text()
        return int(status.partition(f"{which}:")[2].split()[0]) * 1024

    def posting(self) -> Poster:
        return Poster(self.port)


class Poster:
    """A client that keeps its connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def post(self, body: bytes, headers: dict[str, str]) -> int:
        for _ in range(2):
            try:
                self._connection.request("POST", "/", body, headers)
                answer = self._connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                self._connection.close()
            else:
                return answer.status
        return 0


def message(text: str, **changes: Any) -> bytes:
    return json.dumps({**json.loads(encode(Envelope(Note(text)))), **changes}).encode()


def signed(body: bytes) -> dict[str, str]:
    made = WebhookKeys([KEY]).sign("msg_1", body)
    return {**made, "Content-Type": "application/json"}


class Good(threading.Thread):
    """Posts good messages throughout, and notes how long each took."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._target = target
        self._is_over = threading.Event()
        self.took: list[float] = []
        self.refused = 0

    def run(self) -> None:
        poster = self._target.posting()
        while not self._is_over.wait(0.05):
            body = message("good")
            began = time.monotonic()
            self.refused += poster.post(body, signed(body)) != 204
            self.took.append(time.monotonic() - began)

    def end(self) -> None:
        self._is_over.set()
        self.join()


def large_body(target: Target, mebibytes: int) -> int:
    """Return how many bytes of a body without a length were taken."""
    taken = 0
    headers = {**signed(b""), "Host": "x", "Transfer-Encoding": "chunked"}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with target.connect() as connection, contextlib.suppress(OSError):
        connection.sendall(f"POST / HTTP/1.1\r\n{head}\r\n".encode())
        for _ in range(mebibytes * 16):
            connection.sendall(b"10000\r\n" + b" " * 65_536 + b"\r\n")
            taken += 65_536
    return taken


def slow(target: Target, begin: bytes, count: int) -> float:
    """Open *count* connections that drip, and return when the last was closed."""
    began, opened = time.monotonic(), [target.connect() for _ in range(count)]
    for connection in opened:
        connection.sendall(begin)
        connection.setblocking(False)
    while opened and time.monotonic() - began < 2 * LONGEST:
        readable, _, _ = select.select(opened, [], [], 0.5)
        for connection in [*readable]:
            with contextlib.suppress(OSError):
                if connection.recv(65_536):
                    continue
            connection.close()
            opened.remove(connection)
        for connection in opened:
            with contextlib.suppress(OSError):
                connection.send(b"y")
    return round(time.monotonic() - began, 1)


def many_headers(target: Target, count: int) -> bytes:
    """Return the beginning of what is said to that many headers."""
    lines = b"".join(b"X-%d: y\r\n" % number for number in range(count))
    with target.connect() as connection, contextlib.suppress(OSError):
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n")
        return connection.recv(65_536)[:12]
    return b""


def forged(number: int) -> tuple[bytes, dict[str, str]]:
    """Return a message that was changed by one bit after it was signed."""
    body = bytearray(message(f"forged {number}"))
    headers = signed(bytes(body))
    if number % 2:
        body[random.randrange(len(body))] ^= 1 << random.randrange(8)
    else:
        name = random.choice(["webhook-id", "webhook-timestamp", "webhook-signature"])
        value = headers[name]
        at = random.randrange(len(value))
        other = random.choice([each for each in "0123456789abcXYZ" if each != value[at]])
        headers[name] = value[:at] + other + value[at + 1 :]
    return bytes(body), headers


def attack(target: Target, options: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    figures["large_body_bytes_taken"] = large_body(target, options.mebibytes)
    head = b"POST / HTTP/1.1\r\nHost: x\r\n"
    content = "".join(f"{k}: {v}\r\n" for k, v in signed(b"").items()).encode()
    begin = head + content + b"Content-Length: 1000000\r\n\r\n"
    figures["slow_bodies_closed_after"] = slow(target, begin, options.connections)
    figures["slow_headers_closed_after"] = slow(target, head + b"X: ", options.connections)
    poster, statuses = target.posting(), Counter[str]()
    bomb = gzip.compress(b" " * 10 * MEBI)
    for _ in range(50):
        headers = {**signed(bomb), "Content-Encoding": "gzip"}
        statuses[f"bomb {poster.post(bomb, headers)}"] += 1
    statuses[f"headers {many_headers(target, options.n).decode()[9:]}"] += 1
    for number in range(options.n):
        statuses[f"forged {poster.post(*forged(number))}"] += 1
    body = message("replayed")
    headers = signed(body)
    for _ in range(options.n):
        statuses[f"replayed {poster.post(body, headers)}"] += 1
    for number in range(200):
        body = message("unknown", message_name=f"os.system{number}")
        statuses[f"unknown {poster.post(body, signed(body))}"] += 1
    return {**figures, "statuses": dict(statuses)}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ledger = folder / "effects"
    command = [sys.executable, __file__, "--serve", str(port), str(ledger)]
    with subprocess.Popen(command) as server:
        try:
            target = Target(port, server.pid)
            end = time.monotonic() + 30.0
            while time.monotonic() < end:
                with contextlib.suppress(OSError), target.connect():
                    break
                time.sleep(0.05)
            poster = target.posting()
            for _ in range(200):
                body = message("warm")
                poster.post(body, signed(body))
            before, good = target.memory(), Good(target)
            good.start()
            figures = attack(target, options)
            good.end()
            growth = target.memory("VmHWM") - before
        finally:
            server.kill()
    effects = Counter(line.split()[0] for line in ledger.read_text().splitlines())
    return {
        **figures,
        "bad_effects": effects["forged"] + effects["unknown"],
        "replay_effects": effects["replayed"],
        "good": len(good.took),
        "good_refused": good.refused,
        "good_p99": round(sorted(good.took)[int(len(good.took) * 0.99)], 3),
        "growth_mebibytes": round(growth / MEBI, 1),
    }


def broken_of(figures: dict[str, Any]) -> list[str]:
    limits = {
        "bad_effects": 0,
        "replay_effects": 1,
        "good_refused": 0,
        "good_p99": QUANTILE_99,
        "growth_mebibytes": GROWTH_BYTES / MEBI,
        "slow_bodies_closed_after": LONGEST,
        "slow_headers_closed_after": LONGEST,
    }
    return [f"{name} is {figures[name]}" for name, most in limits.items() if figures[name] > most]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10_000, help="of each, default %(default)s")
    parser.add_argument("--connections", type=int, default=500, help="default %(default)s")
    parser.add_argument("--mebibytes", type=int, default=300, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=7, help="default %(default)s")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(int(options.serve[0]), Path(options.serve[1]))
        return 0
    random.seed(options.seed)
    with tempfile.TemporaryDirectory(prefix="postbus-hostile-") as folder:
        figures = measure(options, Path(folder))
    print(json.dumps(figures))
    broken = broken_of(figures)
    for each in broken:
        print(f"does not hold: {each}", file=sys.stderr)
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
