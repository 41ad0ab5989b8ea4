"""Put what cannot be handled among what can, and see that the good ones do not notice.

Among good commands in a folder are others whose handler always fails, that cannot be decoded, and
that have an unknown name. The good ones are to be done, at how many a second is compared with a
run without the others; the others are to be in the failure store, byte for byte, after as many
attempts as the policy has. Then everything is mended (the handler; the catalogue; the bodies, as
`postbus failed edit` does), `postbus failed retry --all` has them handled, and nothing is left.
Prints one JSON line, counted as `_runs.py` says; the exit code is 1 where something is lost or
happened twice, is not in the store as it was sent, or is still there in the end. How fast the
good ones were, `ratio`, is told and not judged.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs
from _runs import Place, Shop, command, is_empty_folder, parser, report, started

from postbus import Command, Envelope, MessageCatalog
from postbus.messages import new_id
from postbus.transports import WireMessage
from postbus.wire import decode, encode

if TYPE_CHECKING:
    from argparse import Namespace
    from pathlib import Path

PATIENCE = 60.0
ATTEMPTS = 3


@attrs.frozen
class Fail(Command, name="chaos.fail"):
    """Fails until it is mended."""

    number: int


@attrs.frozen
class Later(Command, name="chaos.later"):
    """Known to newer workers only."""

    number: int


class PoisonShop(Shop):
    """Handles what is good, and when it is mended the rest."""

    refused_every = sys.maxsize

    def __init__(self, folder: Path, *, is_mended: bool) -> None:
        self._is_mended = is_mended
        self.catalog = MessageCatalog()
        for each in (Place, Fail, *((Later,) if is_mended else ())):
            self.catalog.add(each)
        queue = str(folder / "queue")
        super().__init__(
            folder,
            {"transport": "files", "path": queue, "sync": False},
            {
                "transport": "files",
                "path": queue,
                "retry": {"max_attempts": ATTEMPTS, "initial_delay": 0.05},
            },
        )

    def handlers(self) -> dict[str, Any]:
        return {"fail": self.fail, "later": self.later}

    def config(self) -> dict[str, Any]:
        config = super().config()
        routes = {"chaos.place": "place", "chaos.fail": "fail"}
        if self._is_mended:
            routes["chaos.later"] = "later"
        config["command_bus"]["router"] = {"routes": routes}
        del config["event_bus"]
        return config

    def fail(self, message: Fail) -> None:
        self.effect(message.number)
        if not self._is_mended:
            msg = "not mended yet"
            raise RuntimeError(msg)

    def later(self, message: Later) -> None:
        self.effect(message.number)

    def put(self, bodies: list[bytes]) -> None:
        """Send *bodies* as they are, in an order of chance."""
        random.shuffle(bodies)
        with self.open() as postbus:
            messages = [WireMessage(body, {}, new_id(), "chaos") for body in bodies]
            postbus.producers["shop"].send_many(messages)
            for number in range(len(bodies)):
                self.sent.note(number)

    def rows(self) -> int:
        connection = self.connect()
        ((count,),) = connection.execute("SELECT count(*) FROM effects").fetchall()
        connection.close()
        return int(count)

    def wait_for_rows(self, wanted: int) -> float:
        """Return how many seconds it took from the first message that began to that many rows."""
        self.wait_for_work(0)
        began = since = time.monotonic()
        last = -1
        while (found := self.rows()) < wanted and time.monotonic() - since < PATIENCE:
            if found != last:
                last, since = found, time.monotonic()
            time.sleep(0.02)
        return time.monotonic() - began


def rate(options: Namespace, folder: Path) -> float:
    """Return how many good messages a second are done where there are no others."""
    folder.mkdir()
    shop = PoisonShop(folder, is_mended=False)
    shop.put([encode(Envelope(Place(number))) for number in range(options.n)])
    with started(command(options, folder), folder / "log"):
        seconds = shop.wait_for_rows(options.n)
    return float(options.n / seconds)


def measure(options: Namespace, folder: Path) -> dict[str, Any]:
    clean = rate(options, folder / "clean")
    shop, log, n, each = (
        PoisonShop(folder, is_mended=False),
        folder / "log",
        options.n,
        options.each,
    )
    good = [encode(Envelope(Place(number))) for number in range(n)]
    failing = [encode(Envelope(Fail(number))) for number in range(n, n + each)]
    unknown = [encode(Envelope(Later(number))) for number in range(n + each, n + 2 * each)]
    mended = {
        body[: len(body) // 2]: body
        for body in (encode(Envelope(Place(n + 2 * each + number))) for number in range(each))
    }
    shop.put([*good, *failing, *unknown, *mended])
    with started(command(options, folder), log):
        ratio = n / shop.wait_for_rows(n) / clean
        shop.wait_until_quiet(PATIENCE, lambda: is_empty_folder(folder / "queue"))
    changed = kept_otherwise(shop, failing, unknown, list(mended))
    with shop.open() as postbus:
        store = postbus.stores["main"].failures
        rows = store.list(limit=4 * each)
        kept = Counter(f"{row.reason} after {row.attempts}" for row in rows)
        for row in rows:
            if row.body in mended:
                store.replace(row.key, mended[row.body])
    retry(shop)
    with started(command(options, folder, "--mended"), log):
        shop.wait_for_rows(n + 3 * each)
        shop.wait_until_quiet(1.0)
    done = shop.effects()
    with shop.open() as postbus:
        left = postbus.stores["main"].failures.count()
    return {
        "sent": shop.sent.read().total(),
        "handled": len(done),
        "failed": left,
        "expired": 0,
        "suppressed": shop.started.read().total() - done.total(),
        "lost": len({str(number) for number in range(n + 3 * each)} - done.keys()),
        "effects_twice": done.total() - len(done),
        "kills": 0,
        "bites": 0,
        "kept": dict(sorted(kept.items())),
        "changed": changed,
        "clean": round(clean),
        "ratio": round(ratio, 2),
    }


def kept_otherwise(
    shop: PoisonShop, failing: list[bytes], unknown: list[bytes], undecodable: list[bytes]
) -> int:
    """Count what is not in the failure store exactly as it was sent, and what else is there.

    A message that was tried again has the number of attempts in it: it is compared without.
    """
    with shop.open() as postbus:
        rows = postbus.stores["main"].failures.list(limit=4 * len(failing))
    kept = Counter(
        untried(row.body) if row.reason == "handler_failed" else row.body for row in rows
    )
    sent = Counter([*failing, *unknown, *undecodable])
    return (kept - sent).total() + (sent - kept).total()


def untried(body: bytes) -> bytes:
    envelope = decode(body, CATALOG_OF_ALL)
    headers = {name: value for name, value in envelope.headers.items() if name != "attempt"}
    return encode(envelope.evolve(headers=headers))


def retry(shop: PoisonShop) -> None:
    """Run `postbus failed retry --all`."""
    config = shop.folder / "postbus.json"
    config.write_text(json.dumps(shop.config()))
    words = ("-m", "postbus.cli", "--config", str(config), "failed", "retry", "--all")
    with (shop.folder / "log").open("ab") as log:
        subprocess.run([sys.executable, *words], check=True, stdout=log, stderr=log)


def broken(figures: dict[str, Any], each: int) -> list[str]:
    names = ("lost", "effects_twice", "failed", "changed")
    wanted = {
        f"handler_failed after {ATTEMPTS}": each,
        "unknown_name after 1": each,
        "malformed after 1": each,
    }
    kept = [] if figures["kept"] == wanted else [f"kept is not {wanted}"]
    return [*(f"{name} is {figures[name]}" for name in names if figures[name]), *kept]


def main() -> int:
    arguments = parser(__doc__, n=10_000, kills=0)
    arguments.add_argument(
        "--each", type=int, default=500, help="bad messages of each kind, default %(default)s"
    )
    arguments.add_argument("--mended", action="store_true", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.work:
        PoisonShop(options.work, is_mended=options.mended).work(options)
        return 0
    return report(
        options,
        lambda folder: measure(options, folder),
        lambda figures: broken(figures, options.each),
    )


CATALOG_OF_ALL = MessageCatalog()
for known in (Place, Fail, Later):
    CATALOG_OF_ALL.add(known)

if __name__ == "__main__":
    sys.exit(main())
