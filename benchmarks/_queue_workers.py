"""A worker that answers the jobs of one gearman function: `python … postbus|pygearman PORT NAME`.

It prints the port when it is ready, and ends when its stdin closes.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading

from _harness import peer

ANSWER = b"42"
PREFETCH = 32


def work_with_pygearman(address: str, function: str) -> None:
    gearman = peer("gearman")
    worker = gearman.GearmanWorker([address])
    worker.register_task(function.encode(), lambda _worker, _job: ANSWER)
    say_ready(address)
    worker.work(poll_timeout=1.0)


def work_with_postbus(address: str, function: str) -> None:
    from postbus.transports import CommonSettings, Reply
    from postbus_gearman import GEARMAN

    settings = GEARMAN.consumer_settings(servers=(address,), functions=(function,))
    consumer = GEARMAN.make_consumer(settings, CommonSettings(name="bench"))

    async def work() -> None:
        while True:
            for delivery in await consumer.receive(PREFETCH):
                delivery.reply(Reply(ANSWER))
                delivery.ack()

    say_ready(address)
    asyncio.run(work())


def say_ready(address: str) -> None:
    print(address.rpartition(":")[2], flush=True)


def end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


WORKERS = {"postbus": work_with_postbus, "pygearman": work_with_pygearman}

if __name__ == "__main__":
    _, kind, port, name = sys.argv
    threading.Thread(target=end_with_stdin, daemon=True).start()
    WORKERS[kind](f"127.0.0.1:{port}", name)
