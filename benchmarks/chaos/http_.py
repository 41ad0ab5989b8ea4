"""Kill a web server again and again while messages are posted to it, and lose its answers.

Commands and events are posted by many threads, which send again what failed, to an endpoint under
uvicorn (or, with `--receiver worker`, to a worker) whose handlers write rows beside a joined
inbox. In front of it every twentieth reply is dropped after its message was handled, every tenth
request put off with 429 or 503 and `Retry-After`, and every hundredth sent elsewhere with 302,
where somebody counts who comes. Prints one JSON line; the exit code is 1 where something is lost
or happened twice, a redirect was followed, or a sender came back too early or too late.
"""

from __future__ import annotations

import itertools
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import _runs
import attrs
import uvicorn

from postbus.testing import failpoint
from postbus_http import HTTPConsumer, MessageEndpoint, StatusError

if TYPE_CHECKING:
    import argparse
    from collections import Counter
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from postbus import Postbus

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
THREADS = 32
# Those that an endpoint passes.
POINTS = ("after commit", "before commit", "before handler")
DROPPED, PUT_OFF, SENT_ELSEWHERE = 0.05, 0.10, 0.01
# A handler takes up to so many seconds, so that kills find work.
LONGEST = 0.02
# How exactly `Retry-After` is kept to, in seconds; a date has no parts of a second.
TOLERANCE, RESOLUTION = 1.0, 0.05


class Shop(_runs.Shop):
    """The shop, whose handlers take a moment before they lock, and whose senders are many."""

    def effect(self, effect: object) -> None:
        self.started.note(effect)
        time.sleep(random.uniform(0.0, LONGEST))
        self.current.connection.execute("INSERT INTO effects VALUES (?)", (str(effect),))

    def unfinished(self, begun: Counter[str]) -> set[str]:
        # A message is sent when it was answered: what is being handled is not.
        left = begun.keys() - self.effects().keys()
        return {each for each in left if not each.endswith("/second")}

    def is_refused(self, number: int) -> bool:
        # What fails for good would be its sender's for ever: an endpoint has no failure store.
        return False

    def send(self, numbers: Sequence[int], *, sabotage: str = "") -> None:
        with self.open() as postbus:
            producer = postbus.producers["shop"]
            if sabotage == "no-confirm":
                producer = _runs._Unconfirmed(producer)
            with postbus.replacing("shop", producer), ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(lambda number: self._send_one(postbus, number), numbers))

    def _send_one(self, postbus: Postbus, number: int) -> None:
        """Send one message; what was sent elsewhere is sent here again."""
        bus = postbus.command_bus if number % 10 else postbus.event_bus
        message: Any = _runs.Place(number) if number % 10 else _runs.Placed(number)
        while True:
            try:
                bus.dispatch(message)
            except StatusError as error:
                if error.status != 302:
                    raise
                message = error.envelope
            else:
                self.sent.note(number)
                return


class Faults:
    """What stands before an ASGI application, and what it did to whom.

    Ledger: `came ID PID TIME`, `asked ID PID TIME SECONDS`, and `dropped` and `elsewhere`.
    """

    def __init__(self, application: Any, ledger: Path, elsewhere: int, sabotage: str) -> None:
        self._application = application
        self._ledger = _runs.Ledger(ledger)
        self._elsewhere = elsewhere
        self._sabotage = sabotage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        message_id = headers.get(b"postbus-message-id", b"-").decode()
        self._note("came", message_id)
        fault = random.random()
        if fault < PUT_OFF:
            await self._put_off(message_id, send)
        elif fault < PUT_OFF + SENT_ELSEWHERE:
            self._note("elsewhere", message_id)
            location = f"http://127.0.0.1:{self._elsewhere}/".encode()
            await _answer(send, 302, (b"location", location))
        elif fault < PUT_OFF + SENT_ELSEWHERE + DROPPED:
            await self._application(scope, receive, _nobody)
            self._note("dropped", message_id)
            # ASGI has no word for a server that goes away; the cycle of uvicorn has the socket.
            cycle: Any = send.__self__  # type: ignore[attr-defined]  # a bound method there
            cycle.transport.abort()
        else:
            await self._handle(scope, receive, send)

    async def _put_off(self, message_id: str, send: Send) -> None:
        now = time.time()
        if random.random() < 0.5:
            seconds = float(random.choice([1, 2]))
            text = f"{seconds:.0f}"
        else:
            moment = int(now) + 2
            seconds, text = moment - now, formatdate(moment, usegmt=True)
        self._note("asked", message_id, seconds)
        await _answer(send, random.choice([429, 503]), (b"retry-after", text.encode()))

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_well(event: MutableMapping[str, Any]) -> None:
            if event["type"] == "http.response.start" and event["status"] >= 400:
                event = {**event, "status": 204, "headers": []}
            elif event.get("body"):
                event = {**event, "body": b""}
            await send(event)

        if self._sabotage == "ack-early":
            await _answer(send, 202)
            await self._application(scope, receive, _nobody)
        else:
            spoilt = self._sabotage == "drop-nack"
            await self._application(scope, receive, send_well if spoilt else send)

    def _note(self, what: str, message_id: str, seconds: float = 0.0) -> None:
        self._ledger.note(f"{what} {message_id} {os.getpid()} {time.time():.3f} {seconds:.3f}")


async def _nobody(_: MutableMapping[str, Any]) -> None:
    pass


async def _answer(send: Send, status: int, *headers: tuple[bytes, bytes]) -> None:
    given = [(b"content-length", b"0"), *headers]
    await send({"type": "http.response.start", "status": status, "headers": given})
    await send({"type": "http.response.body", "body": b""})


@attrs.frozen
class Faulty:
    """What the ledger of faults says in the end."""

    put_off: int
    dropped: int
    elsewhere: int
    early: int
    late: int


def read_faults(ledger: Path) -> Faulty:
    counts = dict.fromkeys(("came", "asked", "dropped", "elsewhere"), 0)
    asked: dict[str, tuple[str, float]] = {}
    early = late = 0
    for line in ledger.read_text().splitlines():
        what, message_id, pid, at, seconds = line.split()
        counts[what] += 1
        if what == "asked":
            asked[message_id] = pid, float(at) + float(seconds)
        elif what == "came" and message_id in asked:
            asker, due = asked.pop(message_id)
            early += float(at) < due - RESOLUTION
            # Behind a kill it comes late for other reasons.
            late += asker == pid and float(at) > due + TOLERANCE
    return Faulty(counts["asked"], counts["dropped"], counts["elsewhere"], early, late)


# -- the server -------------------------------------------------------------------------------


def serve(options: argparse.Namespace) -> None:
    """Be the server process, until it is killed."""
    random.seed()
    shop = make_shop(options, options.work, options.port)
    ledger = options.work / "faults"
    if options.receiver == "worker":
        inner = HTTPConsumer._serve_request

        async def serve_request(consumer: Any, scope: Any, receive: Any, send: Any) -> None:
            bound = inner.__get__(consumer)
            await Faults(bound, ledger, options.elsewhere, "")(scope, receive, send)

        HTTPConsumer._serve_request = serve_request  # type: ignore[assignment]  # the faults
        shop.work(options)
        return
    inbox = None if options.sabotage == "no-inbox" else "main"
    die = failpoint(options.point, _runs._die, after=options.after) if options.point else None
    with die or nullcontext(), shop.open() as postbus:
        endpoint = MessageEndpoint(postbus, signing_keys=[KEY], inbox=inbox)
        faults = Faults(endpoint, ledger, options.elsewhere, options.sabotage)
        uvicorn.run(
            faults, port=options.port, log_level="warning", lifespan="off", access_log=False
        )


def make_shop(options: argparse.Namespace, folder: Path, port: int) -> Shop:
    producer = {
        "transport": "http",
        "url": f"http://127.0.0.1:{port}/",
        "signing_keys": [KEY],
        "max_connections": THREADS,
        "total_timeout": 300.0,
        "idle_timeout": 20.0,
        "resend": {"max_attempts": 1000, "initial_delay": 0.05, "max_delay": 0.5},
    }
    consumer = {"transport": "http", "bind": f"127.0.0.1:{port}", "signing_keys": [KEY]}
    inbox = "" if options.sabotage == "no-inbox" else "joined"
    return Shop(folder, producer, consumer, inbox=inbox)


# -- the sender -------------------------------------------------------------------------------


class Elsewhere:
    """An address that nobody should come to."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.connections = 0
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            self.connections += 1
            connection.close()


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shop, elsewhere = make_shop(options, folder, port), Elsewhere()
    more = ["--port", str(port), "--elsewhere", str(elsewhere.port), "--receiver"]
    command = _runs.command(options, folder, *more, options.receiver)
    killer = _runs.Killer(shop, command, options.kills, options.n)
    if options.receiver == "endpoint":
        killer._kinds = itertools.cycle([each for point in POINTS for each in (None, point)])
    with killer:
        shop.send(range(options.n), sabotage=options.sabotage)
        killer.is_done.wait()
        # A worker tries again what failed, and what a dead one had claimed half a minute later.
        shop.wait_until_quiet(8.0 if options.receiver == "endpoint" else 60.0)
    faults = read_faults(folder / "faults")
    return {
        **shop.figures(),
        "kills": killer.kills,
        "bites": killer.bites,
        **attrs.asdict(faults),
        "followed": elsewhere.connections,
    }


def holds(figures: dict[str, Any]) -> Collection[str]:
    own = ("early", "late", "followed")
    broken = [f"{name} is {figures[name]}" for name in own if figures[name]]
    return [*_runs.broken_of(figures), *broken]


def main() -> int:
    parser = _runs.parser(__doc__, n=5_000, kills=20)
    parser.add_argument("--receiver", choices=("endpoint", "worker"), default="endpoint")
    parser.add_argument("--port", type=int, help="of the server")
    parser.add_argument("--elsewhere", type=int, help="the port that a redirect names")
    options = parser.parse_args()
    if options.work:
        serve(options)
        return 0
    return _runs.report(options, lambda folder: measure(options, folder), holds)


if __name__ == "__main__":
    sys.exit(main())
