"""A worker in the test of an application: it works until there is nothing left."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from postbus import Command, Postbus, build
from postbus.catalog import MessageCatalog
from postbus.errors import HandlerFailedError, TimedOutError
from postbus.messages import new_id
from postbus.testing import reset_memory, run_worker_until_idle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@attrs.frozen
class CountDown(Command, name="shop.count-down"):
    left: int


class Application:
    """Sends every command to a queue of its own, whose worker calls *handler*."""

    def __init__(self) -> None:
        self.address = new_id()
        self.handler: Callable[[CountDown], Any] = lambda _: None
        catalog = MessageCatalog()
        catalog.add(CountDown)
        section = {"transport": "memory", "address": self.address}
        router = {
            "routes": {"shop.count-down": "handler"},
            "send": {"shop.count-down": "producers.queue"},
        }
        config = {
            "producers": {"queue": section},
            "consumers": {"queue": section},
            "command_bus": {"router": router},
        }
        services = {"handler": self.handle}
        self.postbus: Postbus = build(config, services, catalog=catalog)

    def handle(self, message: CountDown) -> None:
        self.handler(message)

    def dispatch(self, left: int) -> None:
        self.postbus.command_bus.dispatch(CountDown(left))


@pytest.fixture
def application() -> Iterator[Application]:
    """An application on a queue that no other test has."""
    made = Application()
    with made.postbus:
        yield made
    reset_memory(made.address)


def test_it_handles_what_waits_and_what_that_sends(application: Application) -> None:
    """It returns when nothing is left, however long the chain; another one goes on."""
    handled: list[int] = []

    def handle(message: CountDown) -> None:
        handled.append(message.left)
        if message.left:
            application.dispatch(message.left - 1)

    application.handler = handle
    application.dispatch(2)
    run_worker_until_idle(application.postbus.worker())
    assert handled == [2, 1, 0]

    application.dispatch(0)
    run_worker_until_idle(application.postbus.worker())
    assert handled == [2, 1, 0, 0]


def test_it_raises_what_a_message_failed_with(application: Application) -> None:
    """A test sees the failure of a handler, where a worker would go on and try again."""

    def handle(message: CountDown) -> None:
        raise LookupError("no such order")

    application.handler = handle
    application.dispatch(0)
    with pytest.raises(HandlerFailedError, match="no such order"):
        run_worker_until_idle(application.postbus.worker())


def test_it_gives_up_on_a_worker_that_never_rests(application: Application) -> None:
    """An application that sends for ever fails its test in time."""
    rounds = threading.Semaphore(0)

    def handle(message: CountDown) -> None:
        rounds.release()
        application.dispatch(0)

    application.handler = handle
    application.dispatch(0)
    with pytest.raises(TimedOutError, match=r"not idle after 0\.2 seconds"):
        run_worker_until_idle(application.postbus.worker(), patience=0.2)
    assert rounds.acquire(blocking=False)
