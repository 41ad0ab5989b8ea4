"""Answer queries on a bare REP socket: pyzmq and nothing of postbus.

    python examples/seed_query_server.py [DSN]

It ends with Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress

import zmq


def main(dsn: str = "tcp://127.0.0.1:5555") -> None:
    with zmq.Context() as context, context.socket(zmq.REP) as socket, suppress(KeyboardInterrupt):
        socket.bind(dsn)
        print(f"listening on {dsn}", flush=True)
        while True:
            query = json.loads(socket.recv())
            print(query, flush=True)
            socket.send_json(f"text number {query['payload']['number']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
