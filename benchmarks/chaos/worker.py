"""Kill a worker again and again, at random and between any two steps, and count the effects.

Commands and events go through a folder (`transport = "files"`) to a worker process whose handlers
write rows in their own SQLite transaction, beside an inbox: joined (in the same database) or
apart. Every tenth message is an event with three listeners, of which one fails twice. The worker
is killed at random moments, at each failpoint in turn, and now and then asked to stop instead.
Prints one JSON line, counted from append-only files and from the rows; the exit code is 1 where
something is lost, where a joined inbox let an effect happen twice, or where too few kills bit.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from _runs import Killer, Shop, broken_of, command, is_empty_folder, parser, report

if TYPE_CHECKING:
    from argparse import Namespace
    from pathlib import Path

LEASE = 2.0
# How long nothing may happen before what is missing counts as lost: many leases, and longer than
# the one of a row in an inbox that is apart.
PATIENCE = 45.0


def shop_of(options: Namespace, folder: Path) -> Shop:
    queue = str(folder / "queue")
    return Shop(
        folder,
        # A crash of the machine is not what is tried here.
        {"transport": "files", "path": queue, "sync": False},
        {"transport": "files", "path": queue, "lease": LEASE},
        inbox="" if options.sabotage == "no-inbox" else options.inbox,
    )


def measure(options: Namespace, folder: Path) -> dict[str, Any]:
    shop = shop_of(options, folder)
    worker = command(options, folder, "--inbox", options.inbox)
    half = options.n // 2
    # So that the first kills find something, and the later ones a sender at work.
    shop.send(range(half), sabotage=options.sabotage)
    with Killer(shop, worker, options.kills, options.n) as killer:
        shop.send(range(half, options.n), sabotage=options.sabotage)
        killer.is_done.wait()
        shop.wait_until_quiet(PATIENCE, lambda: is_empty_folder(folder / "queue"))
    return {**shop.figures(), "kills": killer.kills, "bites": killer.bites}


def main() -> int:
    arguments = parser(__doc__, n=20_000, kills=20)
    arguments.add_argument("--inbox", choices=("joined", "apart"), default="joined")
    options = arguments.parse_args()
    if options.work:
        shop_of(options, options.work).work(options)
        return 0

    def holds(figures: dict[str, Any]) -> list[str]:
        allowed = {"effects_twice": 0} if options.inbox == "apart" else {}
        return broken_of({**figures, **allowed})

    return report(options, lambda folder: measure(options, folder), holds)


if __name__ == "__main__":
    sys.exit(main())
