"""A worker that is killed at the worst moment: a commit is done, and not yet acknowledged.

python examples/shop/killed_worker.py examples/shop/4-durable.toml ORDERS
"""

from __future__ import annotations

import os
import signal
import sys

from worker import main

from postbus.testing import failpoint


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    path, orders = sys.argv[1:]
    with failpoint("after commit", die, after=int(orders)):
        main(path)
