"""What every transport's container does, as tests that a package inherits."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from postbus.buses import CommandBus, EventBus, QueryBus
from postbus.catalog import MessageCatalog
from postbus.containers import TransportContainer
from postbus.errors import ClosedError, ConfigurationError, Problem
from postbus.messages import Command, Event, Query
from postbus.plugins import MessageProducerPlugin
from postbus.settings import CAPABILITIES, keys_of
from postbus.testing._applications import CLOSED, GIVEN, application_of, open_files
from postbus.testing._producers import RecordingProducer
from postbus.transports import (
    Capabilities,
    MessageConsumer,
    MessageProducer,
    Reply,
    WireMessage,
)
from postbus.wire import decode, encode_result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["ContainerContract"]

# Seconds; nothing here takes one, unless the machine is very busy.
_PATIENCE = 30.0
_SECRET = "hunter2"  # noqa: S105  what must not be seen
_KNOCK = "postbus.testing.knock"
_KNOCKED = "postbus.testing.knocked"
_COUNT = "postbus.testing.count-knocks"
# What a section gives in any case; which buses, is up to the transport as it is configured.
_PARTS = ("settings", "producer", "consumer", "plugin", "router", "event_router")
_ANSWER = 2


@attrs.frozen
class _Knock(Command, name=_KNOCK):
    door: str


@attrs.frozen
class _Knocked(Event, name=_KNOCKED):
    door: str


@attrs.frozen
class _CountKnocks(Query[int], name=_COUNT):
    door: str


def _refused(provider: Any) -> tuple[Problem, ...]:
    """Return why a provider refuses the section."""
    with pytest.raises(ConfigurationError) as caught:
        provider()
    # What a log would show of it is never more than its problems.
    assert _SECRET not in f"{caught.value} {caught.value!r} {caught.value.problems!r}"
    return caught.value.problems


_MESSAGES: Mapping[str, Any] = {
    "command_bus": _Knock("front"),
    "event_bus": _Knocked("front"),
    "query_bus": _CountKnocks("front"),
}


def _buses(container: Any) -> list[str]:
    """Name the buses that the transport has, as it is configured (T11)."""
    can = container.producer().capabilities
    has = {"command_bus": not can.queries_only, "event_bus": not can.queries_only}
    return [name for name in _MESSAGES if has.get(name, can.queries)]


def _dispatch(bus: Any, message: Any) -> Any:
    """Dispatch, and wait for the answer to a query."""
    promise = bus.dispatch(message)
    return None if promise is None else promise.result(_PATIENCE)


def _exchange(container: Any, name: str) -> None:
    """Dispatch on a bus; the section's consumer gets just that, and a query its answer."""
    catalog = MessageCatalog()
    for cls in (_Knock, _Knocked, _CountKnocks):
        catalog.add(cls)
    answer = _ANSWER if name == "query_bus" else None

    async def exchange() -> tuple[Any, Any]:
        consumer = container.consumer()
        receiving = asyncio.ensure_future(consumer.receive(1))
        bus = getattr(container, name)()
        dispatching = asyncio.ensure_future(bus.adispatch(_MESSAGES[name]))
        try:
            await asyncio.wait({receiving, dispatching}, return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():
                # Of a command or event: a dispatch that failed says why nothing will come.
                dispatching.result()
            (delivery,) = await receiving
            if answer is not None:
                delivery.reply(Reply(encode_result(answer)))
            delivery.ack()
            return decode(delivery.body, catalog).message, await dispatching
        finally:
            receiving.cancel()
            await consumer.aclose()

    outcome = asyncio.run(asyncio.wait_for(exchange(), _PATIENCE))
    assert outcome == (_MESSAGES[name], answer)


class ContainerContract:
    """How the container of a transport behaves, whatever the transport. Needs `postbus[testing]`.

    A package derives a test class from it and gives three fixtures: *container_class*;
    *section*, a producer's section with an address that no other test has; *peer_section*, the
    section of the consumer that gets what goes there.
    """

    @pytest.fixture
    def whole_section(
        self, section: dict[str, Any], peer_section: dict[str, Any]
    ) -> dict[str, Any]:
        """Both sides in one section, as a container takes them."""
        return {**section, "consumer": peer_section}

    @pytest.mark.parametrize("way", CLOSED)
    @pytest.mark.parametrize("given", GIVEN)
    def test_it_works_however_it_is_given_and_closed(
        self,
        container_class: type[TransportContainer],
        whole_section: dict[str, Any],
        given: Callable[..., Any],
        way: Callable[[Any], None],
    ) -> None:
        """Four ways to give the section, three to close what was made of it, also twice."""
        container = given(container_class, whole_section)
        name = _buses(container)[0]
        bus, producer = getattr(container, name)(), container.producer()
        _exchange(container, name)

        way(container)
        way(container)

        for each in {"settings", "consumer", *_MESSAGES} - {name}:
            with pytest.raises(ClosedError):
                getattr(container, each)()
        with pytest.raises(ClosedError):
            _dispatch(bus, _MESSAGES[name])
        with pytest.raises(ClosedError):
            producer.send(WireMessage(b"{}", {}, "an-id", _KNOCK))

    def test_each_provider_gives_its_part(
        self, container_class: type[TransportContainer], whole_section: dict[str, Any]
    ) -> None:
        """Settings of the transport, a producer, a consumer, a plugin that is the router."""
        with container_class(config=whole_section) as container:
            assert container.config() == whole_section
            assert isinstance(container.settings(), container_class.transport.producer_settings)
            assert isinstance(container.producer(), MessageProducer)
            assert isinstance(container.consumer(), MessageConsumer)
            assert isinstance(container.plugin(), MessageProducerPlugin)
            # Without routes, all goes to the producer.
            assert container.router() is container.event_router() is container.plugin()

    @pytest.mark.parametrize("name", _MESSAGES)
    def test_each_bus_sends_or_is_refused(
        self, container_class: type[TransportContainer], whole_section: dict[str, Any], name: str
    ) -> None:
        """T11: by what the transport can do as configured, when the provider is called."""
        kinds: dict[str, type] = {
            "command_bus": CommandBus,
            "event_bus": EventBus,
            "query_bus": QueryBus,
        }
        with container_class(config=whole_section) as container:
            if name in _buses(container):
                assert isinstance(getattr(container, name)(), kinds[name])
                _exchange(container, name)
            else:
                (problem,) = _refused(getattr(container, name))
                assert problem.path == f"{container_class.transport.name}_producer.{name}"
                assert problem.suggestion

    def test_threads_get_one_of_each_and_a_consumer_of_their_own(
        self, container_class: type[TransportContainer], whole_section: dict[str, Any]
    ) -> None:
        """Eight threads ask at once; a consumer has one caller, so each gets another."""
        together = threading.Barrier(8)
        with container_class(config=whole_section) as container, ThreadPoolExecutor(8) as pool:
            names = [*_PARTS[1:], *_buses(container_class(config=whole_section))]

            def ask(_: int) -> list[Any]:
                together.wait(_PATIENCE)
                return [getattr(container, name)() for name in names]

            made = list(zip(*pool.map(ask, range(8)), strict=True))

        for name, parts in zip(names, made, strict=True):
            assert len({id(part) for part in parts}) == (8 if name == "consumer" else 1), name

    def test_nothing_connects_when_it_is_built(
        self, container_class: type[TransportContainer], whole_section: dict[str, Any]
    ) -> None:
        """No socket, no file, no thread, although every provider was called and nobody is there.

        A first container is made before: what a library opens once per process is its own
        business.
        """

        def make_all() -> Any:
            container = container_class(config=whole_section)
            made = [getattr(container, name)() for name in (*_PARTS, *_buses(container))]
            return container, made

        first = make_all()
        files, threads = open_files(), threading.active_count()
        second = make_all()

        assert open_files() <= files
        assert threading.active_count() <= threads
        for container, _ in (first, second):
            container.close()

    def test_routes_of_the_section_are_its_router(
        self, container_class: type[TransportContainer], whole_section: dict[str, Any]
    ) -> None:
        """Handlers by the id of a service, the producer by the name of the transport."""
        handled: list[Any] = []
        services = {"note": handled.append}
        routes = dict.fromkeys((_KNOCK, _COUNT), "note")
        send = dict.fromkeys((_KNOCK, _COUNT), f"producers.{container_class.transport.name}")
        here = {**whole_section, "router": {"routes": routes}}
        there = {**whole_section, "router": {"routes": routes, "send": send}}
        with container_class(config=here, services=services) as container:
            name = _buses(container)[0]
            bus = getattr(container, name)()
            _dispatch(bus, _MESSAGES[name])
        assert handled == [_MESSAGES[name]]
        # Closed, it handles nothing any more either.
        with pytest.raises(ClosedError):
            _dispatch(bus, _MESSAGES[name])
        with container_class(config=there, services=services) as container:
            _exchange(container, name)
        assert handled == [_MESSAGES[name]]

    def test_routes_that_lead_nowhere_are_refused(
        self, container_class: type[TransportContainer], section: dict[str, Any]
    ) -> None:
        """By the router, all at once; the producer needs none."""
        name = container_class.transport.name
        router = {"routes": {"a.b": "nobody"}, "send": {"c.d": f"producers.{name}x"}}
        with container_class(config={**section, "router": router}) as container:
            assert container.producer() is not None
            routed, sent = _refused(container.router)

        assert routed.path == f'{name}_producer.router.routes."a.b"'
        assert sent.path == f'{name}_producer.router.send."c.d"'
        assert sent.suggestion == f"did you mean 'producers.{name}'?"

    def test_a_producer_is_replaced_in_a_test(
        self, container_class: type[TransportContainer], section: dict[str, Any]
    ) -> None:
        """An override before the first use takes everything, and stays the test's own."""
        sent = RecordingProducer(answers={_COUNT: _ANSWER})
        with container_class(config=section) as container:
            provider: Any = container.producer
            provider.override(sent)
            answers = [
                _dispatch(getattr(container, name)(), message)
                for name, message in _MESSAGES.items()
            ]

        assert answers == [None, None, _ANSWER]
        assert [message.name for message in sent.messages] == [_KNOCK, _KNOCKED, _COUNT]
        assert not sent.is_closed

    def test_two_stand_side_by_side(
        self, container_class: type[TransportContainer], whole_section: dict[str, Any]
    ) -> None:
        """Each has parts of its own and a life of its own; their application closes both."""
        application = application_of(
            container_class, {"first": whole_section, "second": whole_section}
        )
        first, second = application.first, application.second
        assert first.producer() is not second.producer()
        name = _buses(first)[0]
        first_bus, second_bus = getattr(first, name)(), getattr(second, name)()
        first.close()

        _exchange(second, name)
        with pytest.raises(ClosedError):
            _dispatch(first_bus, _MESSAGES[name])
        application.shutdown_resources()
        with pytest.raises(ClosedError):
            _dispatch(second_bus, _MESSAGES[name])

    def test_an_unknown_key_is_refused_with_the_nearest_name(
        self,
        container_class: type[TransportContainer],
        section: dict[str, Any],
        peer_section: dict[str, Any],
    ) -> None:
        """Of either side, each key of the transport misspelt in turn: path and advice."""
        transport = container_class.transport
        path = f"{transport.name}_producer"
        for key in _keys(transport.producer_settings):
            wrong = f"{key}{key[-1]}"
            container = container_class(config={**section, wrong: None})
            (problem,) = _refused(container.producer)
            assert problem.path == f"{path}.{wrong}"
            assert problem.suggestion == f"did you mean {key!r}?"
        for key in _keys(transport.consumer_settings):
            wrong = f"{key}{key[-1]}"
            consumer = {**peer_section, wrong: None}
            (problem,) = _refused(container_class(config={"consumer": consumer}).consumer)
            assert problem.path == f"{path}.consumer.{wrong}"
            assert problem.suggestion == f"did you mean {key!r}?"

    def test_no_error_shows_a_secret(
        self, container_class: type[TransportContainer], section: dict[str, Any]
    ) -> None:
        """A password in a wrong key, in an address, or as the value of any key is not printed."""
        addresses = (f"acme://user:{_SECRET}@host:-1", f"acme://host?password={_SECRET}#x")
        keys = _keys(container_class.transport.producer_settings)
        wrong: list[dict[str, Any]] = [{"password": _SECRET}, {"requires": [addresses[0]]}]
        wrong += [{f"{key}{key[-1]}": address} for key in keys for address in addresses]
        for each in wrong:
            assert _refused(container_class(config={**section, **each}).producer)
        # Which keys take such a text is up to the transport.
        shown: list[str] = []
        for key in keys:
            try:
                container_class(config={**section, key: addresses[0]}).settings()
            except ConfigurationError as error:
                shown.append(f"{error} {error!r}")
        assert [text for text in shown if _SECRET in text] == []

    def test_what_a_section_lacks_is_refused_when_it_is_needed(
        self, container_class: type[TransportContainer], section: dict[str, Any]
    ) -> None:
        """Without `consumer` it sends, and says what to add where it shall receive."""
        with container_class(config=section) as container:
            assert container.plugin() is container.plugin()
            (problem,) = _refused(container.consumer)

        assert problem.path == f"{container_class.transport.name}_producer.consumer"
        assert problem.suggestion.startswith("add a table")

    def test_what_the_transport_cannot_is_refused_when_it_is_needed(
        self,
        container_class: type[TransportContainer],
        section: dict[str, Any],
        peer_section: dict[str, Any],
    ) -> None:
        """Each capability that is demanded and not there, of producer and consumer."""
        path = f"{container_class.transport.name}_producer"
        demanding = {"requires": list(CAPABILITIES)}
        with container_class(config={**section, "consumer": peer_section}) as container:
            lacked = _lacked(container.producer().capabilities)
            lacked_by_peer = _lacked(container.consumer().capabilities)
        with container_class(
            config={**section, **demanding, "consumer": {**peer_section, **demanding}}
        ) as container:
            for provider, where, expected in (
                (container.producer, path, lacked),
                (container.plugin, path, lacked),
                (container.consumer, f"{path}.consumer", lacked_by_peer),
            ):
                if not expected:
                    assert provider() is not None
                    continue
                found = [problem.path for problem in _refused(provider)]
                assert found == [f"{where}.requires[{index}]" for index in expected]

    def test_the_section_of_another_transport_is_refused(
        self, container_class: type[TransportContainer], section: dict[str, Any]
    ) -> None:
        """A section may name its own transport, as one of `[postbus.producers]` does."""
        name = container_class.transport.name
        with container_class(config={**section, "transport": name}) as container:
            assert container.producer() is not None
        (problem,) = _refused(container_class(config={**section, "transport": "other"}).producer)

        assert problem.path == f"{name}_producer.transport"
        assert repr(name) in problem.expected

    def test_a_section_that_was_not_loaded_is_refused(
        self, container_class: type[TransportContainer]
    ) -> None:
        """An application that forgets its section gets no address that nobody chose."""
        application = application_of(container_class, {"other": {}})
        (problem,) = _refused(application.first.command_bus)

        assert problem.suggestion == "load the configuration before it is used"


def _keys(settings: type) -> list[str]:
    """Return the keys of a transport's section."""
    return [key.name for key in keys_of(settings)]


def _lacked(capabilities: Capabilities) -> list[int]:
    """Return the places in `requires` of what is not there."""
    values = [getattr(capabilities, name) for name in CAPABILITIES]
    return [index for index, value in enumerate(values) if value in {False, None}]
