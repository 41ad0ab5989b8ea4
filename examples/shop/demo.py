"""Take the same orders four times, with the same code: what differs is one dict.

    python examples/shop/demo.py [--orders N] [--ledgers FOLDER]

The exit code is 1 when a message was dispatched and not handled, or handled twice.
"""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import attrs
from demo_report import (
    PLACE,
    Row,
    count_handled,
    print_summary,
    print_survival,
    print_table,
    read_ledgers,
)
from demo_transports import print_transports
from shop.application import open_shop
from shop.ledgers import Ledgers
from shop.messages import PlaceOrder
from shop.orders import read_orders

from postbus.config import load

HERE = Path(__file__).resolve().parent
START_PATIENCE = 40.0
HANDLE_PATIENCE = 60.0
STOP_PATIENCE = 15.0
BAR_WIDTH = 40

T = TypeVar("T")


@attrs.frozen
class Run:
    """One way of running the shop: what it is called, the file with its dict, who takes part."""

    title: str
    file: str
    has_worker: bool = True
    is_killed: bool = False


RUNS = (
    Run("now: every message is handled in this process", "1-now.toml", has_worker=False),
    Run("later: orders are sent to a worker in another process", "2-later.toml"),
    Run("mail later: orders are handled here, mail is sent", "3-mail-later.toml"),
    Run("later, and the worker is killed in mid-run", "4-durable.toml", is_killed=True),
)


def stop(number: int, _frame: object) -> None:
    """End by way of every `finally`, so that no worker stays behind."""
    sys.exit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="take the same orders four times")
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
    is_complete = print_summary(results)
    for number, (run, rows) in enumerate(zip(RUNS, results, strict=True), 1):
        if run.is_killed:
            print_survival(number, rows)
    print_transports(HERE / "transports")
    return 0 if is_complete else 1


def perform(number: int, run: Run, orders: Sequence[PlaceOrder], folder: Path) -> list[Row]:
    """Dispatch *orders* in the way of *run*, wait until all is handled, read the ledgers."""
    print(f"\n{number}  {run.title}")
    print_change(run)
    ledgers = folder / str(number)
    ledgers.mkdir(parents=True, exist_ok=True)
    for old in ledgers.glob("ledgers.db*"):
        old.unlink()
    shutil.rmtree(ledgers / "queue", ignore_errors=True)
    port = free_port()
    environ = {**os.environ, "SHOP_DSN": f"tcp://127.0.0.1:{port}", "SHOP_LEDGERS": str(ledgers)}
    config = load(HERE / run.file, environ)
    with closing(Ledgers(config["shop"]["ledgers"])) as book:
        if run.is_killed:
            waited = dispatch_all_and_kill(run, environ, config, orders, book)
        else:
            with listening_worker(run, environ, port) if run.has_worker else nullcontext():
                waited = dispatch_all(config, with_progress(orders))
                wait_until_handled(book, orders)
        return read_ledgers(book, waited)


def dispatch_all_and_kill(
    run: Run,
    environ: Mapping[str, str],
    config: Mapping[str, Any],
    orders: Sequence[PlaceOrder],
    book: Ledgers,
) -> list[float]:
    """Dispatch *orders* to a worker that is killed in mid-run, and then start another one."""
    half, few = (len(orders) + 1) // 2, len(orders) // 4
    left = with_progress(orders)
    with worker(run, environ, "killed_worker.py", str(few)) as first:
        waited = dispatch_all(config, islice(left, half))
        wait_for(lambda: first.poll() is not None, HANDLE_PATIENCE, "the worker to be killed")
    if first.returncode != -signal.SIGKILL:
        end_without(first)
    handled = count_handled(book, PLACE)
    queue = Path(config["postbus"]["consumers"]["back_office"]["path"])
    held = len([*(queue / "claimed").iterdir()])
    waited += dispatch_all(config, left)
    print(f"   worker {first.pid} was killed (SIGKILL) at order {handled} of {len(orders)}:")
    print(f"   it was committed and not acknowledged, and {held - 1} more had been taken;")
    print(f"   {len(orders) - half} orders were sent while nobody was there")
    with worker(run, environ) as second:
        wait_until_handled(book, orders)
        wait_for(lambda: is_empty(queue), HANDLE_PATIENCE, "what the killed worker had taken")
    came = count_handled(book, PLACE) - handled
    print(f"   worker {second.pid} took its place and handled {came}")
    return waited


def is_empty(queue: Path) -> bool:
    """Say whether nothing waits in a folder, and nobody holds anything of it."""
    # Messages move between the two, so the first is looked at again.
    return not any(any((queue / part).iterdir()) for part in ("claimed", "ready", "claimed"))


def dispatch_all(config: Mapping[str, Any], orders: Iterable[PlaceOrder]) -> list[float]:
    """Dispatch every order; return how long the caller waited for each, in seconds."""
    waited: list[float] = []
    with open_shop(config) as postbus:
        for order in orders:
            started = time.perf_counter()
            postbus.command_bus.dispatch(order)
            waited.append(time.perf_counter() - started)
    return waited


def print_change(run: Run) -> None:
    """Print the lines in which the dict of *run* differs from the first."""
    first, own = (
        (HERE / file).read_text("utf-8").splitlines() for file in (RUNS[0].file, run.file)
    )
    changed = [line for line in difflib.ndiff(first, own) if line[0] in "+-" and line[2:]]
    print(f"   {run.file}" + (f", against {RUNS[0].file}:" if changed else ""))
    for line in changed:
        print(f"     {line}")


@contextmanager
def worker(
    run: Run, environ: Mapping[str, str], script: str = "worker.py", *arguments: str
) -> Generator[subprocess.Popen[bytes]]:
    """Run the worker's process, which is ended after the block, whatever comes."""
    command = [sys.executable, str(HERE / script), str(HERE / run.file), *arguments]
    process = subprocess.Popen(command, env=dict(environ))
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def listening_worker(run: Run, environ: Mapping[str, str], port: int) -> Generator[None]:
    """Run the worker's process, which listens on *port* when the block begins."""
    with worker(run, environ) as process:
        wait_for(lambda: is_listening(port, process), START_PATIENCE, "the worker to listen")
        print(f"   worker {process.pid} listens on port {port}")
        yield


def end_without(process: subprocess.Popen[bytes]) -> None:
    """End this process too, if the worker has ended."""
    if process.poll() is not None:
        sys.exit(f"the worker ended with code {process.returncode} before it was ready")


def is_listening(port: int, process: subprocess.Popen[bytes]) -> bool:
    end_without(process)
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
    """Say how many rows an order leaves in the ledger: one per handler that it reaches."""
    return 5 if order.customer.company is None else 6


def wait_until_handled(book: Ledgers, orders: Sequence[PlaceOrder]) -> None:
    """Wait until all is handled. What is missing after the deadline shows in the table."""
    expected = sum(map(entries_of, orders))
    deadline = time.monotonic() + HANDLE_PATIENCE
    while count_handled(book) < expected and time.monotonic() < deadline:
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
