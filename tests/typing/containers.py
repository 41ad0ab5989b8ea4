"""Type-checked and never run: what type checkers see of containers in an application's own.

Each `type: ignore` must stay needed: mypy refuses one that is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_type

import pytest
from dependency_injector import containers, providers

from postbus import (
    CommandBus,
    EventBus,
    MessageConsumer,
    MessageProducer,
    MessageProducerPlugin,
    Plugin,
    Postbus,
    QueryBus,
    Worker,
)
from postbus.containers import (
    ContainerServices,
    MemoryContainer,
    PostbusContainer,
    TransportContainer,
)
from postbus.memory import MEMORY
from postbus.pipeline import Router
from postbus.testing import ContainerContract, RecordingProducer
from postbus_zeromq import ZeroMQContainer


class Mailer:
    """Sends what it is given with the bus."""

    def __init__(self, bus: CommandBus) -> None:
        self.bus = bus


class Application(containers.DeclarativeContainer):
    """An application with one configuration, postbus, and two transports by themselves."""

    __self__: providers.Self[Any] = providers.Self()
    config = providers.Configuration()
    postbus = providers.Container(PostbusContainer, config=config.postbus, services=__self__)
    zeromq = providers.Container(ZeroMQContainer, config=config.zeromq)
    memory = providers.Container(MemoryContainer, config=config.memory)
    # What stands in a child is reached by name here; type checkers see it as any provider.
    mailer = providers.Factory(Mailer, postbus.command_bus)


class AcmeContainer(TransportContainer):
    """The container of somebody else's transport."""

    transport = MEMORY


def of_an_application(application: Application) -> None:
    """Check that calling a child gives its container, whose providers are typed."""
    assert_type(application.mailer(), Mailer)
    postbus = application.postbus()
    assert_type(postbus, PostbusContainer)
    assert_type(postbus.postbus(), Postbus)
    assert_type(postbus.command_bus(), CommandBus)
    assert_type(postbus.event_bus(), EventBus)
    assert_type(postbus.query_bus(), QueryBus)
    assert_type(postbus.routers(), Mapping[str, Router])
    assert_type(postbus.plugins(), Mapping[str, tuple[Plugin, ...]])
    assert_type(postbus.worker(), Worker)
    postbus.command_bus().dispatch(5, delay="soon")  # type: ignore[arg-type]  # a number


def of_transports(application: Application, acme: AcmeContainer) -> None:
    """Check that every transport's container has the same providers with the same types."""
    for container in (application.zeromq(), application.memory(), acme):
        assert_type(container.producer(), MessageProducer)
        assert_type(container.consumer(), MessageConsumer)
        assert_type(container.plugin(), MessageProducerPlugin)
        assert_type(container.router(), Router)
        assert_type(container.event_router(), Router)
        assert_type(container.command_bus(), CommandBus)
        assert_type(container.event_bus(), EventBus)
        assert_type(container.query_bus(), QueryBus)
        container.close()
    container.producer().sned(b"")  # type: ignore[attr-defined]  # a misspelt call


def of_tests(application: Application) -> None:
    """Check what tests of an application write."""
    sent = RecordingProducer()
    with application.zeromq().producer.override(providers.Object(sent)):
        pass
    with application.postbus().postbus().replacing("mail", sent) as same:
        assert_type(same, RecordingProducer)
    assert_type(ContainerServices(application).has("mailer"), bool)


class TestAcmeContainer(ContainerContract):
    """A contract in the words of a package's tests."""

    @pytest.fixture
    def container_class(self) -> type[TransportContainer]:
        """The container under test."""
        return AcmeContainer
