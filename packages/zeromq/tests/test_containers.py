"""The container of the transport: the seed's example, and an application around it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import zmq
from dependency_injector import containers, providers

import postbus_zeromq
from postbus import Command, CommandBus, Event, MessageProducerPlugin, Query
from postbus.containers import TransportContainer
from postbus.errors import ClosedError, ConfigurationError
from postbus.testing import RecordingProducer
from postbus_zeromq import ZEROMQ, ZeroMQContainer, ZeroMQProducerSettings

Peer = Callable[..., "zmq.Socket[bytes]"]


@attrs.frozen
class EchoText(Command, name="zeromq.echo-text"):
    """A command."""

    text: str


@attrs.frozen
class TextEchoed(Event, name="zeromq.text-echoed"):
    """An event."""

    text: str


@attrs.frozen
class AskText(Query[str], name="zeromq.ask-text"):
    """A query."""


def received(pull: zmq.Socket[bytes]) -> tuple[str, Any]:
    """Return name and payload of the next message."""
    (frame,) = pull.recv_multipart()
    body = json.loads(frame)
    return body["message_name"], body["payload"]


class Application(containers.DeclarativeContainer):
    """An application with two of them side by side."""

    config = providers.Configuration()
    mail: Any = providers.Container(ZeroMQContainer, config=config.mail)
    reports: Any = providers.Container(ZeroMQContainer, config=config.reports)


def by_constructor(section: dict[str, Any], folder: Path) -> Any:
    """Give the section to the constructor."""
    return ZeroMQContainer(config=section)


def by_from_dict(section: dict[str, Any], folder: Path) -> Any:
    """Fill the configuration from a dict."""
    container: Any = ZeroMQContainer()
    container.config.from_dict(section)
    return container


def by_from_yaml(section: dict[str, Any], folder: Path) -> Any:
    """Fill the configuration from a file; JSON is YAML."""
    (folder / "zeromq.yaml").write_text(json.dumps(section), encoding="utf-8")
    container: Any = ZeroMQContainer()
    container.config.from_yaml(folder / "zeromq.yaml")
    return container


def nested(section: dict[str, Any], folder: Path) -> Any:
    """Stand in an application's container."""
    application: Any = Application()
    application.config.from_dict({"mail": section})
    return application.mail


def close(container: Any) -> None:
    """Close it by its method."""
    container.close()


def with_block(container: Any) -> None:
    """Close it as a context manager."""
    with container.container if isinstance(container, providers.Container) else container:
        pass


def shut_down(container: Any) -> None:
    """Close it as an application closes its resources."""
    container.shutdown_resources()


class TestSeedExample:
    """What the page of the PHP system shows."""

    def test_a_producer_from_three_keys_on_a_bus_by_the_plugin(self, dsn: str, peer: Peer) -> None:
        """Z01, P12: dsn, persistent_id and rpc; everything of the bus goes out."""
        pull = peer(zmq.PULL, bind=dsn)
        zeromq = ZeroMQContainer(config={"dsn": dsn, "persistent_id": "example", "rpc": False})
        bus = CommandBus()
        bus.utilize(MessageProducerPlugin(zeromq.producer()))
        bus.dispatch(EchoText("It works"))

        assert received(pull) == ("zeromq.echo-text", {"text": "It works"})
        zeromq.close()

    def test_the_same_in_one_line(self, dsn: str, peer: Peer) -> None:
        """The container has a bus of its own for each kind that the transport carries."""
        pull = peer(zmq.PULL, bind=dsn)
        with ZeroMQContainer(config={"dsn": dsn}) as zeromq:
            zeromq.command_bus().dispatch(EchoText("It works"))
            zeromq.event_bus().dispatch(TextEchoed("It works"))

            assert received(pull) == ("zeromq.echo-text", {"text": "It works"})
            assert received(pull) == ("zeromq.text-echoed", {"text": "It works"})

    def test_without_a_section_it_has_the_seed_s_address(self) -> None:
        """Z01: the configuration is optional, and nothing is connected by building."""
        with ZeroMQContainer() as zeromq:
            assert zeromq.producer().capabilities.ordering
            assert zeromq.settings() == ZeroMQProducerSettings(dsn="tcp://127.0.0.1:5555")


class TestZeroMQContainer:
    """The container, beyond what core proves of every transport's."""

    def test_is_the_transport_s_container(self) -> None:
        """It is a `TransportContainer` over the record of this package."""
        assert issubclass(ZeroMQContainer, TransportContainer)
        assert ZeroMQContainer.transport is ZEROMQ

    @pytest.mark.parametrize("way", [close, with_block, shut_down])
    @pytest.mark.parametrize("given", [by_constructor, by_from_dict, by_from_yaml, nested])
    def test_works_however_it_is_given_and_closed(
        self,
        given: Any,
        way: Callable[[Any], None],
        tmp_path: Path,
        dsn: str,
        peer: Peer,
    ) -> None:
        """Four ways to give the section, three to close what was made of it."""
        pull = peer(zmq.PULL, bind=dsn)
        container = given({"dsn": dsn}, tmp_path)
        bus, producer = container.command_bus(), container.producer()
        bus.dispatch(EchoText("It works"))
        assert received(pull) == ("zeromq.echo-text", {"text": "It works"})

        way(container)
        way(container)

        with pytest.raises(ClosedError):
            bus.dispatch(EchoText("too late"))
        with pytest.raises(ClosedError):
            producer.send_many([])
        with pytest.raises(ClosedError):
            container.event_bus()

    def test_several_stand_side_by_side(self, free_dsn: Callable[[], str], peer: Peer) -> None:
        """Each sends to its own address; one shutdown closes both."""
        mail, reports = free_dsn(), free_dsn()
        first, second = peer(zmq.PULL, bind=mail), peer(zmq.PULL, bind=reports)
        application: Any = Application()
        application.config.from_dict({"mail": {"dsn": mail}, "reports": {"dsn": reports}})
        application.mail.command_bus().dispatch(EchoText("mail"))
        application.reports.command_bus().dispatch(EchoText("reports"))

        assert received(first)[1] == {"text": "mail"}
        assert received(second)[1] == {"text": "reports"}
        application.shutdown_resources()
        for container in (application.mail, application.reports):
            with pytest.raises(ClosedError):
                container.settings()

    def test_the_consumer_of_the_section_receives(self, dsn: str) -> None:
        """Both sides of one section, in one process."""
        section = {"dsn": dsn, "consumer": {"dsn": dsn, "bind": True}}

        async def main(zeromq: Any) -> bytes:
            consumer = zeromq.consumer()
            waiting = asyncio.create_task(consumer.receive(1))
            await zeromq.command_bus().adispatch(EchoText("It works"))
            (delivery,) = await waiting
            await consumer.aclose()
            return bytes(delivery.body)

        with ZeroMQContainer(config=section) as zeromq:
            body = asyncio.run(asyncio.wait_for(main(zeromq), 20))

        assert json.loads(body)["payload"] == {"text": "It works"}

    def test_routes_stay_here_and_the_rest_of_them_goes_out(self, dsn: str, peer: Peer) -> None:
        """`router` of the section: handlers by id, the producer by the transport's name."""
        pull = peer(zmq.PULL, bind=dsn)
        heard: list[Any] = []
        router = {
            "routes": {"zeromq.text-echoed": "note"},
            "send": {"zeromq.echo-text": "producers.zeromq"},
        }
        with ZeroMQContainer(
            config={"dsn": dsn, "router": router}, services={"note": heard.append}
        ) as zeromq:
            zeromq.event_bus().dispatch(TextEchoed("here"))
            zeromq.command_bus().dispatch(EchoText("there"))

            assert heard == [TextEchoed("here")]
            assert received(pull) == ("zeromq.echo-text", {"text": "there"})

    def test_push_has_no_query_bus(self) -> None:
        """Z02, T11: refused when it is asked for, with what to do."""
        with ZeroMQContainer() as zeromq, pytest.raises(ConfigurationError) as caught:
            zeromq.query_bus()

        (problem,) = caught.value.problems
        assert problem.path == "zeromq_producer.query_bus"
        assert problem.expected == "zeromq as configured brings no answers back"
        assert problem.suggestion.startswith("set rpc")

    @pytest.mark.parametrize(
        ("section", "provider", "path", "advice"),
        [
            ({"dns": "x"}, "producer", "zeromq_producer.dns", "did you mean 'dsn'?"),
            ({"dsn": 5}, "command_bus", "zeromq_producer.dsn", "leave it out"),
            ({"rpc": "all"}, "producer", "zeromq_producer.rpc", "leave it out"),
            ({"rpc": True}, "command_bus", "zeromq_producer.command_bus", "leave rpc out"),
            ({"rpc": True}, "event_bus", "zeromq_producer.event_bus", "leave rpc out"),
            ({}, "consumer", "zeromq_producer.consumer", "add a table"),
            (
                {"guarantee": "at-least-once"},
                "producer",
                "zeromq_producer.guarantee",
                "leave guarantee out",
            ),
            (
                {"consumer": {"guarantee": "at-least-once"}},
                "consumer",
                "zeromq_producer.consumer.guarantee",
                "leave guarantee out",
            ),
            (
                {"requires": ["durable"]},
                "plugin",
                "zeromq_producer.requires[0]",
                "choose a transport",
            ),
        ],
    )
    def test_what_a_section_lacks_is_refused_with_a_remedy(
        self, section: dict[str, Any], provider: str, path: str, advice: str
    ) -> None:
        """By the provider that needs it, as one problem."""
        with (
            ZeroMQContainer(config=section) as zeromq,
            pytest.raises(ConfigurationError) as caught,
        ):
            getattr(zeromq, provider)()

        (problem,) = caught.value.problems
        assert problem.path == path
        assert problem.suggestion.startswith(advice)

    def test_an_overridden_producer_counts(self, dsn: str) -> None:
        """In a test of the application, before the bus is first asked for."""
        with ZeroMQContainer(config={"dsn": dsn}) as zeromq:
            zeromq.producer.override(sent := RecordingProducer())
            zeromq.command_bus().dispatch(EchoText("here"))

        assert [message.name for message in sent.messages] == ["zeromq.echo-text"]
        assert not sent.is_closed

    def test_threads_share_one_producer(self, dsn: str, peer: Peer) -> None:
        """Eight threads ask and send at once; everything arrives, each thread's in order."""
        pull = peer(zmq.PULL, bind=dsn)
        together = threading.Barrier(8)
        with ZeroMQContainer(config={"dsn": dsn}) as zeromq:

            def send(number: int) -> None:
                together.wait(10)
                for index in range(10):
                    zeromq.command_bus().dispatch(EchoText(f"{number} {index}"))

            threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            texts = [received(pull)[1]["text"] for _ in range(80)]
            for thread in threads:
                thread.join(20)

        for number in range(8):
            own = [text for text in texts if text.startswith(f"{number} ")]
            assert own == [f"{number} {index}" for index in range(10)]


class TestLaziness:
    """dependency_injector is for those who use containers."""

    def test_the_package_loads_it_with_the_container_only(self) -> None:
        """`ZeroMQContainer` is imported when it is asked for."""
        code = (
            "import sys, postbus_zeromq\n"
            "assert 'dependency_injector' not in sys.modules\n"
            "postbus_zeromq.ZeroMQContainer\n"
            "assert 'dependency_injector' in sys.modules\n"
        )
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

        assert (done.returncode, done.stderr) == (0, "")

    def test_any_other_name_is_missing_as_usual(self) -> None:
        """An AttributeError that names it."""
        with pytest.raises(AttributeError, match="ZeroMQContainr"):
            getattr(postbus_zeromq, "ZeroMQContainr")  # noqa: B009  a name that is not there
