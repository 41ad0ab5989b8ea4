"""Take the same orders three times, with the same code: what differs is one dict.

    python examples/shop/demo.py [--orders N] [--ledgers FOLDER]

The exit code is 1 when a message was dispatched and not handled, or handled twice.
"""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import attrs
from demo_report import Row, print_summary, print_table, read_ledgers
from shop.application import open_shop
from shop.messages import PlaceOrder
from shop.orders import read_orders

from postbus.config import load

HERE = Path(__file__).resolve().parent
START_PATIENCE = 20.0
HANDLE_PATIENCE = 30.0
STOP_PATIENCE = 15.0
BAR_WIDTH = 40

T = TypeVar("T")


@attrs.frozen
class Run:
    """One way of running the shop: what it is called, the file with its dict, who takes part."""

    title: str
    file: str
    has_worker: bool = True


RUNS = (
    Run("now: every message is handled in this process", "1-now.toml", has_worker=False),
    Run("later: orders are sent to a worker in another process", "2-later.toml"),
    Run("mail later: orders are handled here, mail is sent", "3-mail-later.toml"),
)


def stop(number: int, _frame: object) -> None:
    """End by way of every `finally`, so that no worker stays behind."""
    sys.exit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="take the same orders three times")
    parser.add_argument("--orders", type=int, metavar="N", help="how many orders (default: all)")
    parser.add_argument("--ledgers", type=Path, metavar="FOLDER", help="keep the ledgers there")
    options = parser.parse_args(arguments)
    if options.orders is not None and options.orders < 1:
        parser.error("--orders: at least one is needed")
    orders = read_orders(HERE / "orders.jsonl")[: options.orders]
    with TemporaryDirectory(prefix="shop-") as temporary:
        folder: Path = options.ledgers or Path(temporary)
        results = [perform(number, run, orders, folder) for number, run in enumerate(RUNS, 1)]
    print("\nFrom the ledgers, where every handler writes what it handled:")
    for number, rows in enumerate(results, 1):
        print_table(number, rows)
    return 0 if print_summary(results) else 1


def perform(number: int, run: Run, orders: Sequence[PlaceOrder], folder: Path) -> list[Row]:
    """Dispatch *orders* in the way of *run*, wait until all is handled, read the ledgers."""
    print(f"\n{number}  {run.title}")
    print_change(run)
    ledgers = folder / str(number)
    ledgers.mkdir(parents=True, exist_ok=True)
    for name in ("dispatched.jsonl", "handled.jsonl"):
        (ledgers / name).write_text("", encoding="utf-8")
    port = free_port()
    environ = {**os.environ, "SHOP_DSN": f"tcp://127.0.0.1:{port}", "SHOP_LEDGERS": str(ledgers)}
    config = load(HERE / run.file, environ)

    with worker(run, environ, port) if run.has_worker else nullcontext():
        waited = dispatch_all(config, orders)
        wait_until_handled(ledgers / "handled.jsonl", sum(map(entries_of, orders)))
    return read_ledgers(ledgers, waited)


def dispatch_all(config: Mapping[str, Any], orders: Sequence[PlaceOrder]) -> list[float]:
    """Dispatch every order; return how long the caller waited for each, in seconds."""
    waited: list[float] = []
    with open_shop(config) as postbus:
        for order in with_progress(orders):
            started = time.perf_counter()
            postbus.command_bus.dispatch(order)
            waited.append(time.perf_counter() - started)
    return waited


def print_change(run: Run) -> None:
    """Print the lines in which the dict of *run* differs from the first."""
    first, own = (
        (HERE / file).read_text("utf-8").splitlines() for file in (RUNS[0].file, run.file)
    )
    changed = [line for line in difflib.ndiff(first, own) if line[0] in "+-"]
    print(f"   {run.file}" + (f", against {RUNS[0].file}:" if changed else ""))
    for line in changed:
        print(f"     {line}")


@contextmanager
def worker(run: Run, environ: Mapping[str, str], port: int) -> Generator[None]:
    """Run the worker's process, ready when the block begins and ended after it, whatever comes."""
    command = [sys.executable, str(HERE / "worker.py"), str(HERE / run.file)]
    process = subprocess.Popen(command, env=dict(environ))
    try:
        wait_for(lambda: is_listening(port, process), START_PATIENCE, "the worker to listen")
        print(f"   worker {process.pid} listens on port {port}")
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_listening(port: int, process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        sys.exit(f"the worker ended with code {process.returncode} before it was ready")
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"waited {seconds:.0f} seconds for {what} in vain")
        time.sleep(0.02)


def entries_of(order: PlaceOrder) -> int:
    """Say how many lines an order leaves in the ledger: one per handler that it reaches."""
    return 5 if order.customer.company is None else 6


def wait_until_handled(ledger: Path, expected: int) -> None:
    """Wait for *expected* lines. What is missing after the deadline shows in the table."""
    deadline = time.monotonic() + HANDLE_PATIENCE
    while ledger.read_bytes().count(b"\n") < expected and time.monotonic() < deadline:
        time.sleep(0.02)


def with_progress(items: Sequence[T]) -> Iterator[T]:
    """Yield *items* with a bar on a terminal, or with a line for each quarter elsewhere."""
    total, is_terminal = len(items), sys.stderr.isatty()
    # What was printed before belongs above the progress, also where the two end in one file.
    sys.stdout.flush()
    for done, item in enumerate(items, 1):
        yield item
        if is_terminal:
            bar = "#" * (BAR_WIDTH * done // total)
            end = "\n" if done == total else ""
            print(f"\r   [{bar:.<{BAR_WIDTH}}] {done}/{total} orders", end=end, file=sys.stderr)
        elif 4 * done // total > 4 * (done - 1) // total:
            print(f"   {done}/{total} orders", file=sys.stderr)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    sys.exit(main())
