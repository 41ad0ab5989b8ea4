"""Against a real server, with clients that speak the bare protocol on the other side."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from collections.abc import Awaitable, Callable
from importlib.metadata import entry_points
from typing import Any, TypeVar

import attrs
import pytest

from postbus import Command, MessageCatalog, Query, build
from postbus.errors import (
    ClosedError,
    ConfigurationError,
    ConnectionFailedError,
    HandlerFailedError,
    PartiallySentError,
    RejectedError,
    TimedOutError,
    TransportError,
)
from postbus.promises import Promise
from postbus.transports import CommonSettings, Delivery, Reply, WireMessage
from postbus_beanstalkd import (
    BEANSTALKD,
    BeanstalkdConsumer,
    BeanstalkdContainer,
    BeanstalkdProducer,
)
from postbus_beanstalkd.settings import address_of

T = TypeVar("T")
MakeProducer = Callable[..., BeanstalkdProducer]
MakeConsumer = Callable[..., BeanstalkdConsumer]
MakeMessage = Callable[..., WireMessage]
# What conftest.py calls Server.
Server = Any
PATIENCE = 30.0


@attrs.frozen
class Note(Command, name="beanstalkd.note"):
    text: str


@attrs.frozen
class Double(Query[int], name="beanstalkd.double"):
    number: int


def double(query: Double) -> int:
    if query.number < 0:
        raise ValueError
    return 2 * query.number


def run(test: Callable[[], Awaitable[T]]) -> T:
    async def limited() -> T:
        async with asyncio.timeout(2 * PATIENCE):
            return await test()

    return asyncio.run(limited())


def job_ids(answers: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"INSERTED ([0-9]+)", answers)]


class TestOtherClients:
    """What telnet can do: commands typed by hand."""

    def test_a_job_that_we_put_is_the_json_of_the_message(self, server: Server, tube: str) -> None:
        """Anybody can reserve and read it."""
        with BeanstalkdContainer(config={"address": server.address, "tube": tube}) as container:
            container.command_bus().dispatch(Note("It works"))

        said = server.talk(b"watch " + tube.encode(), b"reserve-with-timeout 5")

        body = said.split(b"\r\n")[2]
        assert json.loads(body)["message_name"] == "beanstalkd.note"
        assert json.loads(body)["payload"] == {"text": "It works"}

    def test_a_job_put_by_hand_is_handled(
        self, server: Server, tube: str, consumer: MakeConsumer
    ) -> None:
        """Whatever its bytes are: the worker looks at them."""
        server.talk(b"use " + tube.encode(), b"put 0 0 60 5\r\nhello")

        async def scenario() -> tuple[bytes, bool]:
            receiver = consumer()
            (delivery,) = await receiver.receive(1)
            delivery.ack()
            await delivery.settled()
            await receiver.aclose()
            return delivery.body, delivery.can_reply

        assert run(scenario) == (b"hello", False)
        # A tube with nothing in it is forgotten.
        assert server.talk(b"stats-tube " + tube.encode()) == b"NOT_FOUND\r\n"

    def test_a_query_asked_by_hand_is_answered_to_its_tube(
        self, server: Server, tube: str
    ) -> None:
        """The id of the question and the kind of the answer stand on a line before the JSON."""
        body = json.dumps(
            {
                "message_name": "beanstalkd.double",
                "uuid": "2aa1c0c8-7d0f-4f29-bd36-6a2ea5ff4ca0",
                "payload": {"number": 21},
                "metadata": {},
                "created_at": "2024-05-17T09:30:12.250000",
                "headers": {"reply_to": f"postbus.reply.{tube}"},
            }
        ).encode()
        catalog = MessageCatalog()
        catalog.add(Double)
        config = {
            "consumers": {
                "jobs": {"transport": "beanstalkd", "address": server.address, "tubes": [tube]}
            },
            "query_bus": {"router": {"routes": {"beanstalkd.double": "double"}}},
        }

        with build(config, {"double": double}, catalog) as app, app.worker().running():
            server.talk(b"use " + tube.encode(), b"put 0 0 60 %d\r\n%b" % (len(body), body))
            said = server.talk(b"watch postbus.reply." + tube.encode(), b"reserve-with-timeout 20")

        assert said.split(b"\r\n")[2] == b"2aa1c0c8-7d0f-4f29-bd36-6a2ea5ff4ca0 result\n42"


class TestProducer:
    def test_jobs_of_one_batch_keep_their_order(
        self, server: Server, tube: str, producer: MakeProducer, message: MakeMessage
    ) -> None:
        """More than go into one round trip."""
        producer().send_many([message(b"%d" % number) for number in range(250)])

        said = server.talk(b"watch " + tube.encode(), *[b"reserve-with-timeout 0"] * 250).split(
            b"\r\n"
        )
        assert [line for line in said if line.isdigit()] == [b"%d" % n for n in range(250)]

    def test_a_job_larger_than_the_server_takes_is_refused_by_it(
        self, producer: MakeProducer, message: MakeMessage
    ) -> None:
        """Where the configuration says more than the server's -z allows (X07)."""
        sender = producer(max_job_bytes=1_000_000)

        with pytest.raises(PartiallySentError) as caught:
            sender.send_many([message(b"x"), message(b"x" * 70_000), message(b"y")])

        assert list(caught.value.failed) == [1]
        assert "-z" in str(caught.value.failed[1])

    def test_our_limit_is_the_servers_own(
        self, producer: MakeProducer, message: MakeMessage
    ) -> None:
        """65,535 bytes, refused before anything is sent."""
        sender = producer()
        sender.send(message(b"x" * 65_535))

        with pytest.raises(RejectedError, match="65535"):
            sender.send(message(b"x" * 65_536))

    def test_a_server_that_is_being_drained_refuses(
        self, own_server: Server, message: MakeMessage
    ) -> None:
        """And the error says so."""
        settings = BEANSTALKD.producer_settings(address=own_server.address)
        sender = BEANSTALKD.make_producer(settings, CommonSettings(name="test"))
        sender.send(message())
        assert own_server.process is not None
        own_server.process.send_signal(10)  # SIGUSR1

        def refused() -> bool:
            try:
                sender.send(message())
            except RejectedError as error:
                return "drained" in str(error)
            return False

        assert any(refused() for _ in range(10_000))
        sender.close()

    def test_it_survives_a_restart_of_the_server(
        self, own_server: Server, message: MakeMessage
    ) -> None:
        """A send meanwhile raises; later ones arrive, and earlier ones are there (-b)."""
        settings = BEANSTALKD.producer_settings(address=own_server.address)
        sender = BEANSTALKD.make_producer(settings, CommonSettings(name="test"))
        sender.send(message(b"1"))
        own_server.kill()
        with pytest.raises(ConnectionFailedError):
            sender.send(message(b"lost, and said so"))
        own_server.start()
        sender.send(message(b"2"))
        sender.close()

        said = own_server.talk(b"reserve-with-timeout 0", b"reserve-with-timeout 0")
        assert said.split(b"\r\n")[1::2][:2] == [b"1", b"2"]

    def test_a_connection_that_ended_while_idle_is_noticed(
        self, own_server: Server, message: MakeMessage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After a second the next send looks first, and so loses nothing."""
        settings = BEANSTALKD.producer_settings(address=own_server.address)
        sender = BEANSTALKD.make_producer(settings, CommonSettings(name="test"))
        sender.send(message(b"1"))
        own_server.kill()
        own_server.start()
        monkeypatch.setattr("postbus_beanstalkd._protocol._IDLE", 0.0)
        sender.send(message(b"2"))
        sender.close()

        assert b"\r\n2\r\n" in own_server.talk(*[b"reserve-with-timeout 0"] * 2)

    def test_a_send_that_waited_behind_the_close_is_refused(
        self, producer: MakeProducer, message: MakeMessage
    ) -> None:
        """It must not open a connection that nobody closes."""
        sender = producer()
        sender.send(message())
        errors: list[Exception] = []

        def send() -> None:
            try:
                sender.send(message())
            except TransportError as error:
                errors.append(error)

        with sender._lock:
            thread = threading.Thread(target=send)
            thread.start()
            sender._is_closed = True
            sender._disconnect()
        thread.join()

        assert [ClosedError] == [type(error) for error in errors]
        assert sender._connection is None

    def test_a_server_that_does_not_answer_is_given_up(self, message: MakeMessage) -> None:
        """After `io_timeout`, with what nobody can know: whether it has the job."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            settings = BEANSTALKD.producer_settings(address=address, io_timeout=0.05)
            sender = BEANSTALKD.make_producer(settings, CommonSettings(name="test"))

            with pytest.raises(TimedOutError, match=r"0\.05"):
                sender.send(message())
            sender.close()

    @pytest.mark.parametrize("answer", [b"", b"WHAT\r\n", b"x" * 600, b"RESERVED 1 x\r\n"])
    def test_a_server_that_is_no_beanstalkd_is_refused(
        self, answer: bytes, message: MakeMessage
    ) -> None:
        """Whatever it says, a TransportError comes of it."""
        with socket.create_server(("127.0.0.1", 0)) as other:

            def talk() -> None:
                connection, _ = other.accept()
                with connection:
                    connection.recv(100)
                    connection.sendall(answer)

            thread = threading.Thread(target=talk)
            thread.start()
            address = f"127.0.0.1:{other.getsockname()[1]}"
            settings = BEANSTALKD.producer_settings(address=address)
            sender = BEANSTALKD.make_producer(settings, CommonSettings(name="test"))

            with pytest.raises(TransportError):
                sender.send(message())
            sender.close()
            thread.join()


class TestConsumer:
    def test_several_tubes_are_taken_in_the_order_of_putting(
        self,
        tube: str,
        producer: MakeProducer,
        consumer: MakeConsumer,
        message: MakeMessage,
    ) -> None:
        """None of them starves (K16)."""
        first, second = producer(), producer(tube=f"{tube}-2")
        for number in range(3):
            first.send(message(b"first %d" % number))
            second.send(message(b"second %d" % number))

        async def scenario() -> list[bytes]:
            receiver = consumer(tubes=(tube, f"{tube}-2"))
            deliveries = await receiver.receive(10)
            for delivery in deliveries:
                delivery.ack()
            await deliveries[-1].settled()
            await receiver.aclose()
            return [delivery.body for delivery in deliveries]

        assert run(scenario) == [
            b"%b %d" % (name, number) for number in range(3) for name in (b"first", b"second")
        ]

    def test_a_retry_goes_to_the_tube_it_came_from(
        self,
        server: Server,
        tube: str,
        producer: MakeProducer,
        consumer: MakeConsumer,
        message: MakeMessage,
    ) -> None:
        """With its urgency and its time to run; the old job is gone."""
        producer(ttr=77).send(message(b"1", priority=4))

        async def scenario() -> None:
            receiver = consumer(tubes=(f"{tube}-other", tube))
            (delivery,) = await receiver.receive(1)
            delivery.retry(message(b"again"))
            await delivery.settled()
            await receiver.aclose()

        run(scenario)

        said = server.talk(b"use " + tube.encode(), b"peek-ready")
        (job_id,) = re.findall(rb"FOUND ([0-9]+)", said)
        facts = server.talk(b"stats-job " + job_id)
        assert b"again" in said
        assert b"pri: 49152" in facts
        assert b"ttr: 77" in facts
        assert b"current-jobs-ready: 1" in server.talk(b"stats-tube " + tube.encode())

    def test_a_retry_that_the_server_refuses_gives_the_job_back(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage
    ) -> None:
        """At once, and not when its time to run is over."""
        producer(ttr=600).send(message(b"1"))

        async def scenario() -> tuple[bytes, bool]:
            receiver = consumer(max_job_bytes=1_000_000, lease=600.0)
            (delivery,) = await receiver.receive(1)
            delivery.retry(message(b"x" * 70_000))
            with pytest.raises(RejectedError, match="-z"):
                await delivery.settled()
            (again,) = await receiver.receive(1)
            again.ack()
            await again.settled()
            await receiver.aclose()
            return again.body, again.redelivered

        assert run(scenario) == (b"1", True)

    def test_a_job_whose_time_ran_out_is_lost(
        self, server: Server, tube: str, consumer: MakeConsumer
    ) -> None:
        """Each way of settling says so, once another consumer has it."""
        ids = job_ids(server.talk(b"use " + tube.encode(), *[b"put 0 0 2 1\r\nx"] * 3))

        async def scenario() -> None:
            receiver, other = consumer(lease=0.5), consumer()
            deliveries = await receiver.receive(3)
            assert len(deliveries) == len(ids) == 3
            taken: list[Delivery] = []
            while len(taken) < len(ids):
                taken += await other.receive(3)
            deliveries[0].ack()
            deliveries[1].nack()
            deliveries[2].retry(WireMessage(b"y", {}, "an-id", "shop.echo"))
            for delivery in deliveries:
                with pytest.raises(RejectedError, match="no longer ours"):
                    await delivery.settled()
                assert delivery.lost
            assert all(each.redelivered for each in taken)
            await receiver.aclose()
            await other.aclose()

        run(scenario)

    def test_a_server_that_went_away_is_told_and_found_again(
        self, own_server: Server, message: MakeMessage
    ) -> None:
        """What was held is lost to its holder and delivered again."""
        settings = BEANSTALKD.producer_settings(address=own_server.address)
        sender = BEANSTALKD.make_producer(settings, CommonSettings(name="test"))
        sender.send(message(b"1"))
        sender.close()

        async def scenario() -> tuple[bytes, bool]:
            receiver = BEANSTALKD.make_consumer(
                BEANSTALKD.consumer_settings(address=own_server.address),
                CommonSettings(name="test"),
            )
            (held,) = await receiver.receive(1)
            own_server.kill()
            for _ in range(2):  # the second: there is nobody to connect to
                with pytest.raises(ConnectionFailedError):
                    await receiver.receive(1)
            assert held.lost
            own_server.start()
            (again,) = await receiver.receive(1)
            again.ack()
            await again.settled()
            await receiver.aclose()
            return again.body, held.lost

        assert run(scenario) == (b"1", True)


class TestQueries:
    def test_a_question_survives_a_restart_of_the_server(
        self, own_server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its answer is fetched by the connection that was made anew."""
        # The restart may take less than the second after which a producer looks.
        monkeypatch.setattr("postbus_beanstalkd._protocol._IDLE", 0.0)
        catalog = MessageCatalog()
        catalog.add(Double)
        section = {"transport": "beanstalkd", "address": own_server.address}
        config = {
            "producers": {"jobs": section},
            "consumers": {"jobs": section},
            "query_bus": {
                "router": {
                    "routes": {"beanstalkd.double": "double"},
                    "send": {"beanstalkd.*": "producers.jobs"},
                }
            },
        }

        with build(config, {"double": double}, catalog) as app:
            assert_answers = app.query_bus.dispatch
            with app.worker().running():
                assert assert_answers(Double(1)).result(PATIENCE) == 2
            own_server.kill()
            own_server.start()
            with app.worker().running():
                assert assert_answers(Double(21)).result(PATIENCE) == 42
                with pytest.raises(HandlerFailedError):
                    assert_answers(Double(-1)).result(PATIENCE)

    def test_closing_rejects_what_waits(
        self, producer: MakeProducer, message: MakeMessage
    ) -> None:
        """And refuses what comes."""
        sender = producer()
        waiting, late = Promise[Reply](), Promise[Reply]()
        body = b'{"uuid":"an-id"}'
        sender.request(message(body), waiting)
        sender.close()
        sender.request(message(body), late)

        assert isinstance(waiting.exception(), ClosedError)
        assert isinstance(late.exception(), ClosedError)


class TestRecord:
    def test_core_finds_it_by_its_entry_point(self) -> None:
        """Installed is enough."""
        (found,) = entry_points(group="postbus.transports", name="beanstalkd")

        assert found.load() is BEANSTALKD

    @pytest.mark.parametrize(
        ("kind", "section"),
        [
            ("producers", {"address": "nowhere"}),
            ("producers", {"address": "127.0.0.1:99999"}),
            ("producers", {"tube": "-x"}),
            ("producers", {"tube": "x" * 201}),
            ("producers", {"ttr": 0}),
            ("consumers", {"tubes": []}),
            ("consumers", {"tubes": ["a b"]}),
            ("consumers", {"tube": "x"}),
        ],
    )
    def test_a_broken_section_is_refused(self, kind: str, section: dict[str, Any]) -> None:
        """When the application is built."""
        with pytest.raises(ConfigurationError) as caught:
            build({kind: {"jobs": {"transport": "beanstalkd", **section}}})

        (problem,) = caught.value.problems
        assert problem.path.startswith(f"{kind}.jobs")

    def test_an_address_has_a_host_and_a_port(self) -> None:
        """IPv6 ones in brackets."""
        assert address_of("[::1]:11300") == ("::1", 11300)

    def test_the_container_is_loaded_when_asked_for_only(self) -> None:
        """And other names are refused as usual."""
        import postbus_beanstalkd

        with pytest.raises(AttributeError, match="nothing"):
            postbus_beanstalkd.nothing  # noqa: B018  the access raises
