"""How many messages PUSH and PULL lose when one side is killed, and what the sender sees of it.

A consumer in a process of its own handles messages for a set time each; one side gets SIGKILL in
the middle. Lost is what `send` had accepted and no consumer handled. Figures are the smallest and
the largest of the rounds.

    python benchmarks/loss_window.py [--rounds 5] [--seed 1]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time

from postbus.errors import TransportError
from postbus.transports import WireMessage
from postbus_zeromq import (
    ZeroMQConsumer,
    ZeroMQConsumerSettings,
    ZeroMQProducer,
    ZeroMQProducerSettings,
)

BODY_BYTES = 1000


async def consume(dsn: str, high_water_mark: int, handling: float) -> None:
    """Handle messages; each that was handled is a line on standard output, written at once."""
    settings = ZeroMQConsumerSettings(dsn=dsn, high_water_mark=high_water_mark)
    consumer = ZeroMQConsumer(settings)
    while True:
        for delivery in await consumer.receive(32):
            deadline = time.perf_counter() + handling
            while time.perf_counter() < deadline:
                pass
            os.write(1, delivery.body[:8] + b"\n")


def produce(dsn: str, high_water_mark: int, count: int, rate: float, linger: float) -> None:
    """Send *count* messages, at most *rate* a second; each accepted one is a line."""
    settings = ZeroMQProducerSettings(
        dsn=dsn, high_water_mark=high_water_mark, send_timeout=15.0, linger=linger
    )
    producer = ZeroMQProducer(settings)
    begin = time.perf_counter()
    for number in range(count):
        while rate and time.perf_counter() < begin + number / rate:
            time.sleep(0.0005)
        text = b"%08d" % number
        try:
            producer.send(WireMessage(text + bytes(BODY_BYTES - 8), {}, "id", "loss"))
        except TransportError as error:
            os.write(1, b"raised " + type(error).__name__.encode() + b"\n")
            break
        os.write(1, text + b"\n")
    producer.close()
    os.write(1, b"closed\n")


class Side:
    """One of the two processes, and the file it writes its lines to."""

    def __init__(self, role: str, *arguments: object) -> None:
        self.lines = os.memfd_create(role)
        command = [sys.executable, __file__, "--role", role, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=self.lines)

    def read(self) -> list[str]:
        size = os.fstat(self.lines).st_size
        return os.pread(self.lines, size, 0).decode().split("\n")[:-1]

    def count(self) -> int:
        return os.fstat(self.lines).st_size // 9

    def wait_for(self, count: int) -> None:
        while self.count() < count and self.process.poll() is None:
            time.sleep(0.0005)

    def end(self, by: signal.Signals = signal.SIGKILL) -> list[str]:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(by)
        self.process.wait()
        return self.read()

    def wait_until_quiet(self) -> None:
        before = -1
        while self.count() != before:
            before = self.count()
            time.sleep(0.3)


def free_dsn() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def numbers(lines: list[str]) -> set[str]:
    return {line for line in lines if line.isdigit()}


def kill_consumer(hwm: int, handling: float, rate: float, count: int, at: int) -> tuple[int, str]:
    """Kill the consumer when *at* were handled and start another at once."""
    dsn = free_dsn()
    first = Side("consume", dsn, hwm, handling)
    producer = Side("produce", dsn, hwm, count, rate, 5.0)
    first.wait_for(at)
    handled = numbers(first.end())
    second = Side("consume", dsn, hwm, handling)
    producer.process.wait()
    second.wait_until_quiet()
    handled |= numbers(second.end())
    lines = producer.read()
    raised = next((line for line in lines if line.startswith("raised")), "nothing")
    return len(numbers(lines) - handled), raised


def kill_producer(hwm: int, handling: float, rate: float, count: int, at: int) -> tuple[int, str]:
    """Kill the producer when *at* were handled; the consumer then takes what has reached it."""
    dsn = free_dsn()
    consumer = Side("consume", dsn, hwm, handling)
    producer = Side("produce", dsn, hwm, count, rate, 5.0)
    consumer.wait_for(at)
    accepted = numbers(producer.end())
    consumer.wait_until_quiet()
    return len(accepted - numbers(consumer.end())), "killed"


def close_producer(hwm: int, handling: float, rate: float, count: int, at: int) -> tuple[int, str]:
    """Let the producer close as it should; nothing is to be missing."""
    dsn = free_dsn()
    consumer = Side("consume", dsn, hwm, handling)
    producer = Side("produce", dsn, hwm, count, rate, 5.0)
    producer.process.wait()
    consumer.wait_until_quiet()
    return len(numbers(producer.read()) - numbers(consumer.end())), "nothing"


ROWS = [
    ("consumer killed, 1 ms a message, sent at full speed", kill_consumer, 1000, 0.001, 0, 10_000),
    ("the same with high_water_mark = 1 on both sides", kill_consumer, 1, 0.001, 0, 10_000),
    (
        "consumer killed, 0.1 ms a message, 5,000 a second",
        kill_consumer,
        1000,
        0.0001,
        5000,
        10_000,
    ),
    ("consumer killed, 0.1 ms a message, 100 a second", kill_consumer, 1000, 0.0001, 100, 200),
    ("producer killed, 1 ms a message, sent at full speed", kill_producer, 1000, 0.001, 0, 10_000),
    (
        "producer killed, 0.1 ms a message, 5,000 a second",
        kill_producer,
        1000,
        0.0001,
        5000,
        10_000,
    ),
    ("nobody killed, producer closed", close_producer, 1000, 0.0001, 0, 10_000),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--role")
    options, rest = parser.parse_known_args()
    if options.role == "consume":
        asyncio.run(consume(rest[0], int(rest[1]), float(rest[2])))
    elif options.role == "produce":
        produce(rest[0], int(rest[1]), int(rest[2]), float(rest[3]), float(rest[4]))
    else:
        chance = random.Random(options.seed)
        print(f"{'messages of 1 kB on the loopback':54}{'lost':>16}  send raised")
        for name, test, *setting, count in ROWS:
            results = [
                test(*setting, count, chance.randrange(count // 20, count // 5))
                for _ in range(options.rounds)
            ]
            losses = sorted(lost for lost, _ in results)
            raised = ", ".join(sorted({raised for _, raised in results}))
            print(f"{name:54}{f'{losses[0]} to {losses[-1]}':>16}  {raised}", flush=True)


if __name__ == "__main__":
    main()
