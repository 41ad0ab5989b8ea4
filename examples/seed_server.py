"""Print what arrives on a bare PULL socket: pyzmq and nothing of postbus.

    python examples/seed_server.py [DSN [COUNT]]

It ends after COUNT messages, or with Ctrl-C.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from itertools import count

import zmq


def main(dsn: str = "tcp://127.0.0.1:5555", at_most: str = "") -> None:
    with zmq.Context() as context, context.socket(zmq.PULL) as socket, suppress(KeyboardInterrupt):
        socket.bind(dsn)
        print(f"listening on {dsn}", flush=True)
        for _ in range(int(at_most)) if at_most else count():
            print(socket.recv().decode(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
