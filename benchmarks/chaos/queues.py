"""Kill workers and servers while messages go over beanstalkd and gearman, and count.

The servers are the run's own. Scenarios of each, with a JSON line of its own:

- worker: the worker is killed five times in 2,000 messages.
- restart: the server, which writes its jobs down, is killed twice while the messages are handled,
  and started again.
- memory: the server, which does not, is killed while the messages wait. They are gone, as its
  page says.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from _runs import broken_of, started
from _scenarios import SCHEDULED, Scenario, run
from _servers import Beanstalkd, Gearmand

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Generator
    from pathlib import Path

    from _servers import Server

    Scene = Callable[[Namespace, Path, bool], Any]


@contextmanager
def over_beanstalkd(
    options: Namespace, folder: Path, is_durable: bool
) -> Generator[tuple[Scenario, Server]]:
    with Beanstalkd(folder / "server", is_durable=is_durable) as server:
        both = {"transport": "beanstalkd", "address": server.address, "durable": is_durable}
        producer, consumer = {**both, "tube": "shop"}, {**both, "tubes": ["shop"]}
        yield Scenario(options, folder, producer, consumer), server


@contextmanager
def over_gearman(
    options: Namespace, folder: Path, is_durable: bool
) -> Generator[tuple[Scenario, Server]]:
    with Gearmand(folder / "server", is_durable=is_durable) as server:
        both = {"transport": "gearman", "servers": [server.address], "durable": is_durable}
        producer, consumer = {**both, "function": "shop"}, {**both, "functions": ["shop"]}
        scenario = Scenario(options, folder, producer, consumer)
        scenario.patience += SCHEDULED
        yield scenario, server


def kill_the_worker(over: Scene, options: Namespace, folder: Path) -> dict[str, Any]:
    with over(options, folder, True) as (scenario, server):
        return scenario.kill_the_worker(server, options.n, options.kills)


def kill_the_server(over: Scene, options: Namespace, folder: Path) -> dict[str, Any]:
    bites, kills = 0, 2
    with over(options, folder, True) as (scenario, server):
        scenario.send(options.n)
        with started(scenario.worker, folder / "log"):
            for number in range(kills):
                scenario.wait_for_share(number + 1, kills + 1)
                server.kill()
                bites += scenario.is_unfinished()
                server.start()
            scenario.wait(server)
        return scenario.figures(kills, bites)


def forget(over: Scene, options: Namespace, folder: Path) -> dict[str, Any]:
    with over(options, folder, False) as (scenario, server):
        scenario.send(options.n // 10)
        server.kill()
        server.start()
        with started(scenario.worker, folder / "log"):
            scenario.shop.wait_until_quiet(options.patience / 4)
        return scenario.figures(1, 1)


def holds(figures: dict[str, Any]) -> list[str]:
    if figures["scenario"].endswith("memory"):
        return ["something is still there"] if figures["handled"] else []
    return broken_of(figures)


SCENARIOS = {
    f"{name}-{kind}": partial(measure, over)
    for name, over in (("beanstalkd", over_beanstalkd), ("gearman", over_gearman))
    for kind, measure in (
        ("worker", kill_the_worker),
        ("restart", kill_the_server),
        ("memory", forget),
    )
}

if __name__ == "__main__":
    sys.exit(run(__doc__, SCENARIOS, holds, n=2_000, kills=5))
