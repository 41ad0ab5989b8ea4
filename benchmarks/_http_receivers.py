"""The receiving sides of the HTTP benchmark: `python benchmarks/_http_receivers.py ROLE`.

Each role serves a free port under uvicorn with uvloop and httptools, prints the port, and ends
when stdin closes.
"""

from __future__ import annotations

import os
import socket
import sys
import threading

import attrs
import uvicorn

from postbus import Command, MessageCatalog, build
from postbus_http import MessageEndpoint


@attrs.frozen
class Text(Command, name="bench.text"):
    text: str


async def bare(scope, receive, send):
    """Read the body and answer 204, or an array for an array: the least an application does."""
    body = b""
    while True:
        event = await receive()
        body += event["body"]
        if not event["more_body"]:
            break
    if body[:1] == b"[":
        answer = b"[" + b",".join([b'{"status":204}'] * body.count(b'"message_name"')) + b"]"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer})
        return
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def endpoint():
    catalog = MessageCatalog()
    catalog.add(Text)

    async def handle(_):
        return None

    config = {"command_bus": {"router": {"routes": {"bench.text": "handle"}}}}
    postbus = build(config, {"handle": handle}, catalog)
    return MessageEndpoint(postbus, allow_any_peer=True, max_in_flight=1000)


def main() -> None:
    application = bare if sys.argv[1] == "bare" else endpoint()
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listening.getsockname()[1], flush=True)

    def end() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=end, daemon=True).start()
    config = uvicorn.Config(
        application,
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,
        lifespan="off",
    )
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
