"""The other process of the shop: receives messages and hands them to the same handlers.

    python examples/shop/worker.py examples/shop/2-later.toml

It runs until it gets SIGTERM or Ctrl-C; then it finishes what it has begun.
"""

from __future__ import annotations

import logging
import sys

from shop.application import open_shop

from postbus.config import load


def main(path: str) -> None:
    logging.basicConfig(level=logging.WARNING, format="worker: %(levelname)s %(message)s")
    with open_shop(load(path)) as postbus:
        postbus.worker().run()


if __name__ == "__main__":
    main(*sys.argv[1:])
