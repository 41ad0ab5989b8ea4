"""The container keeps what every transport's promises; the seed's section in a configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import zmq

from postbus import Command
from postbus.containers import PostbusContainer, TransportContainer
from postbus.errors import ConfigurationError
from postbus.testing import ContainerContract
from postbus_zeromq import ZeroMQContainer


class TestZeroMQContainer(ContainerContract):
    """PUSH and PULL."""

    @pytest.fixture
    def container_class(self) -> type[TransportContainer]:
        """The container under test."""
        return ZeroMQContainer

    @pytest.fixture
    def section(self, dsn: str) -> dict[str, Any]:
        """Connect to an address of the test's own."""
        return {"dsn": dsn}

    @pytest.fixture
    def peer_section(self, dsn: str) -> dict[str, Any]:
        """Bind it."""
        return {"dsn": dsn}


class TestSharedSocket(TestZeroMQContainer):
    """Two containers that name one `persistent_id` share a socket, and nothing else (Z04)."""

    @pytest.fixture
    def section(self, dsn: str) -> dict[str, Any]:
        """Use the three keys of the seed's page."""
        return {"dsn": dsn, "persistent_id": "example", "rpc": False}


class TestQueries(TestZeroMQContainer):
    """A DEALER that takes queries only, and a ROUTER that answers (Z02)."""

    @pytest.fixture
    def section(self, dsn: str) -> dict[str, Any]:
        """Connect to an address of the test's own."""
        return {"dsn": dsn, "rpc": True}

    @pytest.fixture
    def peer_section(self, dsn: str) -> dict[str, Any]:
        """Bind it."""
        return {"dsn": dsn, "rpc": True}


class TestEveryKind(TestZeroMQContainer):
    """One DEALER for commands, events and queries, and a ROUTER that takes them."""

    @pytest.fixture
    def section(self, dsn: str) -> dict[str, Any]:
        """Connect to an address of the test's own."""
        return {"dsn": dsn, "rpc": "both"}

    @pytest.fixture
    def peer_section(self, dsn: str) -> dict[str, Any]:
        """Bind it."""
        return {"dsn": dsn, "rpc": "both"}


@attrs.frozen
class EchoText(Command, name="zeromq.contract.echo-text"):
    """A command."""

    text: str


class TestSeedSection:
    """`[postbus.zeromq_producer]`, the section of the seed's page, in a whole configuration."""

    @staticmethod
    def config(section: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Return a configuration that sends everything over it."""
        send = {"zeromq.contract.*": "producers.zeromq"}
        return {
            "messages": [__name__],
            "zeromq_producer": section,
            "command_bus": {"router": {"send": send}},
            **more,
        }

    def test_its_three_keys_make_a_producer_called_zeromq(
        self, dsn: str, peer: Callable[..., zmq.Socket[bytes]]
    ) -> None:
        """Z01: dsn, persistent_id and rpc; routes name it `producers.zeromq`."""
        pull = peer(zmq.PULL, bind=dsn)
        section = {"dsn": dsn, "persistent_id": "example", "rpc": False}
        with PostbusContainer(config=self.config(section)) as container:
            assert list(container.producers()) == ["zeromq"]
            container.command_bus().dispatch(EchoText("It works"))

        assert json.loads(pull.recv())["payload"] == {"text": "It works"}

    def test_others_of_the_transport_stand_beside_it(
        self, free_dsn: Callable[[], str], peer: Callable[..., zmq.Socket[bytes]]
    ) -> None:
        """A section by the transport's name, and another by one of its own."""
        own, mail = free_dsn(), free_dsn()
        pull = peer(zmq.PULL, bind=mail)
        config = self.config(
            {"dsn": own},
            producers={"mail": {"transport": "zeromq", "dsn": mail}},
            command_bus={"router": {"send": {"zeromq.contract.*": "producers.mail"}}},
        )
        with PostbusContainer(config=config) as container:
            assert sorted(container.producers()) == ["mail", "zeromq"]
            container.command_bus().dispatch(EchoText("by mail"))

        assert json.loads(pull.recv())["payload"] == {"text": "by mail"}

    def test_a_mistake_in_it_has_its_path(self, dsn: str) -> None:
        """As the section is written, not as the long form that it stands for."""
        with pytest.raises(ConfigurationError) as caught:
            PostbusContainer(config=self.config({"dsn": dsn, "persistentid": "example"}))

        (problem,) = caught.value.problems
        assert problem.path == "zeromq_producer.persistentid"
        assert problem.suggestion == "did you mean 'persistent_id'?"
