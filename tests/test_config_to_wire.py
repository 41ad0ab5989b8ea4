"""From one dict to the wire and back: the same body for every transport that is installed."""

from __future__ import annotations

import asyncio
import socket
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import pytest

from postbus import Command, CommandBus, Event, Query, build
from postbus.containers import PostbusContainer
from postbus.discovery import installed_transports
from postbus.errors import ConfigurationError

# The module whose messages the configuration names: this one.
HERE = __name__


@attrs.frozen
class RegisterUser(Command, name="wire.register-user"):
    """A command."""

    user: str


@attrs.frozen
class UserRegistered(Event, name="wire.user-registered"):
    """An event."""

    user: str


@attrs.frozen
class CountUsers(Query[int], name="wire.count-users"):
    """A query."""

    among: list[str]


def memory_section() -> dict[str, Any]:
    """Return a queue that no other test has."""
    return {"transport": "memory", "address": str(uuid.uuid4())}


def zeromq_section() -> dict[str, Any]:
    """Return an address of this machine that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return {"transport": "zeromq", "dsn": f"tcp://127.0.0.1:{probe.getsockname()[1]}"}


# The keys of a transport for one run; everything else of the configuration is the same for all.
SECTIONS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "memory": memory_section,
    "zeromq": zeromq_section,
}
INSTALLED = [name for name in installed_transports() if name in SECTIONS]


class Shop:
    """The handlers of an application, and what they were given."""

    def __init__(self) -> None:
        self.handled: list[Any] = []
        self.threads: set[int] = set()
        self._changed = threading.Condition()

    def note(self, message: Any) -> None:
        """Handle a command or an event."""
        with self._changed:
            self.handled.append(message)
            self.threads.add(threading.get_ident())
            self._changed.notify_all()

    def count(self, query: CountUsers) -> int:
        """Answer a query."""
        self.threads.add(threading.get_ident())
        return len(query.among)

    def wait_for(self, count: int) -> None:
        """Wait until *count* messages were handled."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.handled) >= count, timeout=20)

    @property
    def services(self) -> dict[str, Any]:
        """The ids that the configuration names."""
        return {"note": self.note, "count": self.count}


def configuration(section: dict[str, Any], *kinds: str) -> dict[str, Any]:
    """Return the dict of an application that sends the messages of *kinds*."""
    names = {
        "command": ("wire.register-user", "note"),
        "event": ("wire.user-registered", "note"),
        "query": ("wire.count-users", "count"),
    }
    config: dict[str, Any] = {
        "messages": [HERE],
        "producers": {"later": dict(section)},
        "consumers": {"later": dict(section)},
    }
    for kind, (name, id_) in names.items():
        router: dict[str, Any] = {"routes": {name: id_}}
        if kind in kinds:
            router["send"] = {name: "producers.later"}
        config[f"{kind}_bus"] = {"router": router}
    return config


def send_three(bus: CommandBus) -> None:
    """Dispatch three commands."""
    for user in "abc":
        bus.dispatch(RegisterUser(user))


def answers(name: str) -> bool:
    """Say whether queries can go over a transport as this module configures it."""
    try:
        build({"producers": {"later": {**SECTIONS[name](), "requires": ["queries"]}}}).close()
    except ConfigurationError:
        return False
    return True


@pytest.mark.parametrize("name", INSTALLED)
class TestEveryTransport:
    """One application, one dict; which transport is a line of it."""

    def test_handled_now_or_later_is_a_line_of_the_dict(self, name: str) -> None:
        """The same dispatches, handled here without `send` and by the worker with it."""
        for kinds in ((), ("command", "event")):
            shop = Shop()
            config = configuration(SECTIONS[name](), *kinds)
            with (
                PostbusContainer(config=config, services=shop.services) as container,
                container.worker().running(),
            ):
                container.command_bus().dispatch(RegisterUser("Ada"))
                container.event_bus().dispatch(UserRegistered("Ada"))
                shop.wait_for(2)

            by_type = sorted(shop.handled, key=lambda message: type(message).__name__)
            assert by_type == [RegisterUser("Ada"), UserRegistered("Ada")]
            is_handled_here = shop.threads == {threading.get_ident()}
            assert is_handled_here is (not kinds)

    def test_what_is_sent_is_not_handled_where_it_is_dispatched(self, name: str) -> None:
        """No consumer runs yet, so nothing is handled; one that starts later takes it all."""
        shop = Shop()
        config = configuration(SECTIONS[name](), "command", "event")
        with build(config, shop.services) as postbus:
            sender = threading.Thread(target=send_three, args=(postbus.command_bus,))
            sender.start()
            assert shop.handled == []
            with postbus.worker().running():
                shop.wait_for(3)
                sender.join(20)

        assert {RegisterUser("a"), RegisterUser("b"), RegisterUser("c")} == set(shop.handled)
        assert threading.get_ident() not in shop.threads

    def test_asyncio_code_sends_in_the_same_way(self, name: str) -> None:
        """`adispatch` over the dict that `dispatch` uses, the worker on the same loop."""
        shop = Shop()

        async def main() -> None:
            config = configuration(SECTIONS[name](), "command", "event")
            async with build(config, shop.services) as postbus, postbus.worker():
                await postbus.command_bus.adispatch(RegisterUser("Ada"))
                await postbus.event_bus.adispatch(UserRegistered("Ada"))
                await asyncio.to_thread(shop.wait_for, 2)

        asyncio.run(main())

        assert {RegisterUser, UserRegistered} == set(map(type, shop.handled))

    def test_a_query_brings_its_answer_back_or_is_refused_while_building(self, name: str) -> None:
        """T11: by what the transport can do as configured, never by waiting for ever."""
        shop = Shop()
        config = configuration(SECTIONS[name](), "query")
        if not answers(name):
            with pytest.raises(ConfigurationError) as caught:
                build(config, shop.services)
            (problem,) = caught.value.problems
            assert problem.path == 'query_bus.router.send."wire.count-users"'
            return
        with build(config, shop.services) as postbus, postbus.worker().running():
            promise = postbus.query_bus.dispatch(CountUsers(["Ada", "Bob"]))

            assert promise.result(20) == 2
            assert threading.get_ident() not in shop.threads


def test_every_transport_of_the_workspace_is_configured_here() -> None:
    """A transport that joins the workspace joins this test."""
    assert {"memory", "zeromq"} <= set(installed_transports())
    assert set(INSTALLED) == set(SECTIONS)
