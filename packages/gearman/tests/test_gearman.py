"""Against real servers, with the `gearman` tool or the bare protocol on the other side."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
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
from postbus.messages import new_id
from postbus.promises import Promise
from postbus.transports import CommonSettings, Delivery, Reply, WireMessage
from postbus_gearman import GEARMAN, GearmanConsumer, GearmanContainer, GearmanProducer
from postbus_gearman._lines import Line
from postbus_gearman._protocol import Connection
from postbus_gearman.settings import address_of

T = TypeVar("T")
MakeProducer = Callable[..., GearmanProducer]
MakeConsumer = Callable[..., GearmanConsumer]
MakeMessage = Callable[..., WireMessage]
# What conftest.py calls Server and Raw.
Server = Any
Raw = Any
PATIENCE = 30.0
# Numbers of the protocol.
CAN_DO, PRE_SLEEP, NOOP, SUBMIT_JOB, JOB_CREATED, GRAB_JOB = 1, 4, 6, 7, 8, 9
NO_JOB, JOB_ASSIGN, WORK_COMPLETE, WORK_FAIL, SUBMIT_JOB_BG, ERROR = 10, 11, 13, 14, 18, 19
WORK_STATUS, WORK_DATA, WORK_WARNING, ECHO_RES, JOB_ASSIGN_UNIQ = 12, 28, 29, 17, 31
# How a request ends that wants an answer: grabbing, `show jobs`, an echo, a message's body.
WANTING = (b"\0\0\0\x1e\0\0\0\0", b"show jobs\n", b"settled", b"}")


@attrs.frozen
class Note(Command, name="gearman.note"):
    text: str


@attrs.frozen
class Double(Query[int], name="gearman.double"):
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


def take(consumer: GearmanConsumer, count: int) -> list[bytes]:
    """Receive *count* messages, acknowledge each, and close the consumer."""

    async def scenario() -> list[bytes]:
        bodies: list[bytes] = []
        while len(bodies) < count:
            for delivery in await consumer.receive(count - len(bodies)):
                delivery.ack()
                await delivery.settled()
                bodies.append(delivery.body)
        await consumer.aclose()
        return bodies

    return run(scenario)


def failure_of(promise: Promise[Reply]) -> TransportError:
    """Wait until a query has failed, and return why."""
    with pytest.raises(TransportError) as caught:
        promise.result(PATIENCE)
    return caught.value


def tool(server: Server, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the `gearman` tool to its end."""
    if shutil.which("gearman") is None:
        if os.environ.get("CI"):
            pytest.fail("the gearman tool is not installed, and CI may not skip what needs it")
        pytest.skip("the gearman tool is not installed: apt-get install gearman-tools")
    address = ["-h", "127.0.0.1", "-p", str(server.port)]
    return subprocess.run(
        ["gearman", *address, *arguments],
        check=False,
        capture_output=True,
        timeout=PATIENCE,
        **options,
    )


def doubling(server: Server, function: str) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Return what an application that answers `Double` is built of."""
    catalog = MessageCatalog()
    catalog.add(Double)
    catalog.add(Note)
    section = {"transport": "gearman", "servers": [server.address]}
    config = {
        "producers": {"jobs": {**section, "function": function}},
        "consumers": {"jobs": {**section, "functions": [function]}},
        "query_bus": {
            "router": {
                "routes": {"gearman.double": "double"},
                "send": {"gearman.*": "producers.jobs"},
            }
        },
        "command_bus": {"router": {"routes": {"gearman.note": "note"}}},
    }
    return config, {"double": double, "note": lambda _: None}, catalog


def wire(name: str, **payload: Any) -> bytes:
    """Return a message as another system would write it."""
    return json.dumps(
        {
            "message_name": name,
            "uuid": "2aa1c0c8-7d0f-4f29-bd36-6a2ea5ff4ca0",
            "payload": payload,
            "metadata": {},
            "created_at": "2024-05-17T09:30:12.250000",
        }
    ).encode()


class TestTool:
    """The `gearman` tool, which we did not write, as worker and as client."""

    def test_it_works_jobs_that_we_send(self, server: Server, function: str) -> None:
        """Commands, and their bodies are the JSON of the message."""
        section = {"servers": [server.address], "function": function}
        with GearmanContainer(config=section) as container:
            for number in range(3):
                container.command_bus().dispatch(Note(f"It works {number}"))

        done = tool(server, "-w", "-c", "3", "-f", function)

        texts = [each["payload"]["text"] for each in _documents(done.stdout)]
        assert texts == ["It works 0", "It works 1", "It works 2"]

    def test_it_answers_queries_that_we_ask(self, server: Server, function: str) -> None:
        """What its command prints is the answer: JSON, as any worker may write it."""
        section = {"servers": [server.address], "function": function}
        with GearmanContainer(config=section) as container:
            promise = container.query_bus().dispatch(Double(21))
            tool(server, "-w", "-c", "1", "-f", function, "--", "echo", "42")

            assert promise.result(PATIENCE) == 42

    def test_it_sends_jobs_that_our_worker_handles(self, server: Server, function: str) -> None:
        """In the background nobody waits; in the foreground it gets an empty answer."""
        config, services, catalog = doubling(server, function)
        handled: list[str] = []
        services = {**services, "note": lambda note: handled.append(note.text)}

        with build(config, services, catalog) as app, app.worker().running():
            sent = tool(server, "-b", "-f", function, input=wire("gearman.note", text="sent"))
            asked = tool(server, "-f", function, input=wire("gearman.note", text="asked"))

        assert (sent.returncode, asked.returncode, asked.stdout) == (0, 0, b"")
        assert sorted(handled) == ["asked", "sent"]

    def test_it_asks_and_is_answered(self, server: Server, function: str) -> None:
        """The result is the JSON and nothing else; a problem is printed, and the job failed."""
        config, services, catalog = doubling(server, function)

        with build(config, services, catalog) as app, app.worker().running():
            answered = tool(server, "-f", function, input=wire("gearman.double", number=21))
            failed = tool(server, "-f", function, input=wire("gearman.double", number=-1))

        assert (answered.returncode, answered.stdout) == (0, b"42")
        assert failed.returncode == 1
        assert b'"type":"urn:postbus:problem:handler-failed"' in failed.stdout + failed.stderr

    def test_what_cannot_be_read_is_kept_and_answered(self, server: Server, function: str) -> None:
        """Nobody can tell whether somebody waits: so the bytes are kept, and the job fails."""
        config, services, catalog = doubling(server, function)
        config["consumers"]["jobs"]["failure_store"] = "main"
        config["stores"] = {"main": {"store": "memory"}}
        sent, asked = b"\xff in the background", b"\xff in the foreground"

        with build(config, services, catalog) as app:
            failures = app.stores["main"].failures
            with app.worker().running():
                tool(server, "-b", "-f", function, input=sent)
                answered = tool(server, "-f", function, input=asked)
                reply: Promise[Reply] = Promise()
                ours = WireMessage(b"\xff asked by us", {}, new_id(), "gearman.double")
                settings = GEARMAN.producer_settings(servers=(server.address,), function=function)
                sender = GEARMAN.make_producer(settings, CommonSettings(name="test"))
                sender.request(ours, reply)
                assert reply.result(PATIENCE).is_error
                sender.close()

            # Who asks by our client waits, and has the bytes.
            assert {each.body for each in failures.list()} == {sent, asked}
        assert answered.returncode == 1
        assert b"not_utf8" in answered.stdout + answered.stderr


def _documents(text: bytes) -> Iterator[dict[str, Any]]:
    rest = text.decode()
    while rest:
        document, end = json.JSONDecoder().raw_decode(rest)
        yield document
        rest = rest[end:].lstrip()


class TestBareProtocol:
    """Packets typed by hand, as a client in any language sends them."""

    def test_a_job_that_we_send_is_the_message_at_its_level(
        self, raw: Callable[..., Raw], function: str, producer: MakeProducer, message: MakeMessage
    ) -> None:
        """0 to 2 are low, 3 to 6 normal, 7 to 9 high; without a priority it is 0 (T11)."""
        for priority in (None, 0, 2, 3, 6, 7, 9):
            producer().send(message(b"%a" % priority, priority=priority))

        worker = raw()
        worker.say(CAN_DO, function.encode())
        bodies = []
        for _ in range(7):
            worker.say(GRAB_JOB)
            kind, (_, _, body) = worker.hear()
            assert kind == JOB_ASSIGN
            bodies.append(body)

        assert bodies == [b"7", b"9", b"3", b"6", b"None", b"0", b"2"]

    def test_any_bytes_by_hand_are_handled(
        self, raw: Callable[..., Raw], function: str, consumer: MakeConsumer
    ) -> None:
        """Whatever they are: the worker looks at them. An acknowledgement ends the job."""
        client = raw()
        client.say(SUBMIT_JOB, function.encode(), b"", b"\x00hello\x00")
        assert client.hear()[0] == JOB_CREATED

        assert take(consumer(), 1) == [b"\x00hello\x00"]

        kind, (_, data) = client.hear()
        assert (kind, data) == (WORK_COMPLETE, b"")

    def test_an_answer_of_several_packets_is_put_together(
        self, raw: Callable[..., Raw], function: str, producer: MakeProducer, message: MakeMessage
    ) -> None:
        """Data, then completion; what a worker says of its progress is passed over."""
        promise = Promise[Reply]()
        worker = raw()
        worker.say(CAN_DO, function.encode())
        producer().request(message(), promise)
        handle = _grab(worker)
        worker.say(WORK_WARNING, handle, b"careful")
        worker.say(WORK_STATUS, handle, b"1", b"2")
        worker.say(WORK_DATA, handle, b'{"a":')
        worker.say(WORK_COMPLETE, handle, b"1}")

        assert promise.result(PATIENCE) == Reply(b'{"a":1}')

    def test_a_failure_without_a_word_is_an_error(
        self, raw: Callable[..., Raw], function: str, producer: MakeProducer, message: MakeMessage
    ) -> None:
        """As workers that know nothing of postbus fail."""
        promise = Promise[Reply]()
        worker = raw()
        worker.say(CAN_DO, function.encode())
        producer().request(message(), promise)
        worker.say(WORK_FAIL, _grab(worker))

        assert promise.result(PATIENCE) == Reply(b"", is_error=True)

    def test_two_sends_of_one_message_are_two_jobs(
        self, function: str, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage
    ) -> None:
        """Unique ids are off: the server would drop the second (X08)."""
        sender = producer()
        twice = message()
        sender.send(twice)
        sender.send(WireMessage(b"other", {}, twice.id, twice.name))

        assert take(consumer(), 2) == [twice.body, b"other"]

    def test_with_unique_ids_the_second_is_dropped(
        self, raw: Callable[..., Raw], function: str, producer: MakeProducer, message: MakeMessage
    ) -> None:
        """Where a section asks for it (X08)."""
        sender = producer(unique=True)
        twice = message()
        sender.send(twice)
        sender.send(WireMessage(b"other", {}, twice.id, twice.name))

        assert raw().status(function) == (1, 0)


def _grab(worker: Raw) -> bytes:
    """Take the next job, as a worker without any patience."""
    while True:
        worker.say(GRAB_JOB)
        kind, arguments = worker.hear()
        if kind == JOB_ASSIGN:
            handle: bytes = arguments[0]
            return handle
        assert kind in {NO_JOB, NOOP}


@contextmanager
def other_server(*clients: Sequence[bytes]) -> Generator[str]:
    """Listen, and for each of *clients* accept one: read, say the next of its answers, again."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"

    def talk() -> None:
        with listener:
            accepted = (listener.accept()[0] for _ in clients)
            for answers, connection in zip(clients, accepted, strict=True):
                with connection:
                    for answer in answers:
                        _read(connection)
                        connection.sendall(answer)

    thread = threading.Thread(target=talk)
    thread.start()
    yield address
    thread.join(PATIENCE)
    assert not thread.is_alive()


def _read(connection: socket.socket) -> None:
    """Read what a client says, up to something that wants an answer."""
    heard = b""
    while not heard.endswith(WANTING):
        heard += connection.recv(65_536)


def said(kind: int, *arguments: bytes) -> bytes:
    """Return a packet as a server sends it."""
    data = b"\0".join(arguments)
    return b"\0RES" + struct.pack(">II", kind, len(data)) + data


class TestProducer:
    def test_jobs_of_one_batch_keep_their_order(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage
    ) -> None:
        """More than go into one round trip, by number and by size."""
        sender = producer()
        sender.send_many([message(b"%d" % number) for number in range(250)])
        sender.send_many([message(b"x" * 40_000 + b"%d" % number) for number in range(3)])

        bodies = take(consumer(), 253)
        assert [body.strip(b"x") for body in bodies] == [
            b"%d" % n for n in [*range(250), *range(3)]
        ]

    def test_a_full_queue_refuses(
        self,
        raw: Callable[..., Raw],
        function: str,
        producer: MakeProducer,
        message: MakeMessage,
    ) -> None:
        """`maxqueue` bounds a function; each message that was refused is named."""
        sender, promise = producer(), Promise[Reply]()
        sender.send(message(b"1"))
        raw().bound(function, 1)

        with pytest.raises(PartiallySentError) as caught:
            sender.send_many([message(b"2"), message(b"3")])
        sender.request(message(b"?"), promise)

        assert list(caught.value.failed) == [0, 1]
        for error in (*caught.value.failed.values(), failure_of(promise)):
            assert "QUEUE_ERROR" in str(error)
            assert isinstance(error, RejectedError)

    def test_it_survives_a_restart_of_the_server(
        self, own_server: Server, message: MakeMessage
    ) -> None:
        """A send meanwhile raises; later ones arrive, and earlier ones are there (sqlite)."""
        settings: dict[str, Any] = {"servers": (own_server.address,)}
        common = CommonSettings(name="test")
        sender = GEARMAN.make_producer(GEARMAN.producer_settings(**settings), common)
        sender.send_many([message(b"1"), message(b"2")])
        own_server.kill()
        with pytest.raises(ConnectionFailedError):
            sender.send(message(b"lost, and said so"))
        own_server.start()
        sender.send(message(b"3"))
        sender.close()

        receiver = GEARMAN.make_consumer(GEARMAN.consumer_settings(**settings), common)
        assert take(receiver, 3) == [b"1", b"2", b"3"]

    def test_a_connection_that_ended_while_idle_is_noticed(
        self, own_server: Server, message: MakeMessage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After a second the next send looks first, and so loses nothing."""
        settings = GEARMAN.producer_settings(servers=(own_server.address,))
        sender = GEARMAN.make_producer(settings, CommonSettings(name="test"))
        sender.send(message(b"1"))
        sender.send(message(b"2"))
        own_server.kill()
        own_server.start()
        monkeypatch.setattr("postbus_gearman._protocol._IDLE", 0.0)
        sender.send(message(b"3"))
        sender.send(message(b"4"))
        sender.close()

    def test_the_next_server_takes_over(
        self,
        server: Server,
        second_server: Server,
        function: str,
        message: MakeMessage,
        producer: MakeProducer,
        consumer: MakeConsumer,
    ) -> None:
        """The first of the list that can be reached; what it had is where it is."""
        sender = producer(servers=(second_server.address, server.address))
        sender.send(message(b"1"))
        second_server.kill()
        with pytest.raises(ConnectionFailedError):
            sender.send(message(b"lost, and said so"))
        sender.send(message(b"2"))

        assert take(consumer(), 1) == [b"2"]

    def test_a_server_that_does_not_answer_is_given_up(self, message: MakeMessage) -> None:
        """After `io_timeout`, with what nobody can know: whether it has the job."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            settings = GEARMAN.producer_settings(servers=(address,), io_timeout=0.05)
            sender = GEARMAN.make_producer(settings, CommonSettings(name="test"))
            promise = Promise[Reply]()

            with pytest.raises(TimedOutError, match=r"0\.05"):
                sender.send(message())
            sender.request(message(), promise)
            with pytest.raises(TimedOutError, match="not accepted"):
                promise.result(PATIENCE)
            sender.close()

    @pytest.mark.parametrize(
        "answer",
        [
            b"",
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            said(NO_JOB),
            said(WORK_COMPLETE, b"H:1"),
            said(ERROR, b"NO") + said(ERROR, b"NO"),
            b"\0RES" + struct.pack(">II", JOB_CREATED, 2**31),
        ],
    )
    def test_a_server_that_is_no_gearmand_is_refused(
        self, answer: bytes, message: MakeMessage
    ) -> None:
        """Whatever it says, a TransportError comes of it, for sends and for queries."""
        with other_server((answer,), (answer,)) as address:
            settings = GEARMAN.producer_settings(servers=(address,))
            sender = GEARMAN.make_producer(settings, CommonSettings(name="test"))
            promise = Promise[Reply]()

            with pytest.raises(TransportError):
                sender.send(message())
            sender.request(message(), promise)

            failure_of(promise)
            sender.close()


class TestConsumer:
    def test_several_servers_are_worked_at_once(
        self,
        server: Server,
        second_server: Server,
        function: str,
        producer: MakeProducer,
        consumer: MakeConsumer,
        message: MakeMessage,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """One that goes away is no error while another works, and is found again."""
        monkeypatch.setattr("postbus_gearman._client._PAUSE", 0.05)
        receiver = consumer(servers=(second_server.address, server.address))
        there = (second_server.address,)

        async def scenario() -> None:
            producer().send(message(b"1"))
            producer(servers=there).send(message(b"2"))
            held = [*await receiver.receive(1), *await receiver.receive(1)]
            assert sorted(each.body for each in held) == [b"1", b"2"]
            second_server.kill()
            producer().send(message(b"3"))
            (third,) = await receiver.receive(1)
            for each in (*held, third):
                each.ack()
            with pytest.raises(ConnectionFailedError):
                for each in (*held, third):
                    await each.settled()
            assert [each.body for each in (*held, third) if each.lost] == [b"2"]
            producer().send(message(b"while it is away"))
            (meanwhile,) = await receiver.receive(1)
            meanwhile.ack()
            second_server.start()
            producer(servers=there).send(message(b"4"))
            (fourth,) = await receiver.receive(1)
            fourth.ack()
            await fourth.settled()
            await receiver.aclose()

        run(scenario)

    def test_a_job_that_was_given_back_waits_for_its_connection(
        self,
        memory_server: Server,
        producer: MakeProducer,
        consumer: MakeConsumer,
        message: MakeMessage,
    ) -> None:
        """It comes back when the others that were taken with it are settled; new ones before."""
        servers = (memory_server.address,)
        sender = producer(servers=servers)
        sender.send_many([message(b"1"), message(b"2")])

        async def scenario() -> list[tuple[bytes, bool]]:
            receiver = consumer(servers=servers)
            held: list[Delivery] = []
            while len(held) < 2:
                held += await receiver.receive(2 - len(held))
            held[0].nack()
            await held[0].settled()
            sender.send(message(b"3"))
            (third,) = await receiver.receive(2)
            held[1].ack()
            await held[1].settled()
            (again,) = await receiver.receive(2)
            again.ack()
            await again.settled()
            await receiver.aclose()
            return [(each.body, each.redelivered) for each in (third, again)]

        assert run(scenario) == [(b"3", False), (b"1", True)]

    def test_a_retry_keeps_function_and_priority(
        self,
        raw: Callable[..., Raw],
        function: str,
        producer: MakeProducer,
        consumer: MakeConsumer,
        message: MakeMessage,
    ) -> None:
        """Of several functions, and before what is less urgent; the old job is gone."""
        sender = producer(function=f"{function}-2")
        sender.send(message(b"urgent", priority=9))
        receiver = consumer(functions=(function, f"{function}-2"))

        async def scenario() -> list[bytes]:
            (delivery,) = await receiver.receive(1)
            sender.send(message(b"usual", priority=5))
            delivery.retry(message(b"again"))
            await delivery.settled()
            bodies: list[bytes] = []
            for _ in range(2):
                (each,) = await receiver.receive(1)
                bodies.append(each.body)
                each.ack()
                await each.settled()
            await receiver.aclose()
            return bodies

        assert run(scenario) == [b"again", b"usual"]
        assert raw().status(f"{function}-2") == (0, 0)

    def test_a_retry_that_the_server_refuses_gives_the_job_back(
        self,
        raw: Callable[..., Raw],
        function: str,
        producer: MakeProducer,
        consumer: MakeConsumer,
        message: MakeMessage,
    ) -> None:
        """Its holder is told, and nothing is lost."""
        producer().send(message(b"1"))
        raw().bound(function, 1)

        async def scenario() -> list[tuple[bytes, bool]]:
            receiver = consumer()
            (delivery,) = await receiver.receive(1)
            delivery.retry(message(b"2"))
            with pytest.raises(RejectedError, match="QUEUE_ERROR"):
                await delivery.settled()
            (again,) = await receiver.receive(1)
            again.ack()
            await again.settled()
            await receiver.aclose()
            return [(delivery.body, delivery.lost), (again.body, again.redelivered)]

        assert run(scenario) == [(b"1", True), (b"1", True)]

    def test_a_job_that_somebody_waits_for_is_retried_here(
        self,
        raw: Callable[..., Raw],
        function: str,
        consumer: MakeConsumer,
        message: MakeMessage,
    ) -> None:
        """The asker goes on waiting, and whoever gives up the connection gives back the first."""
        client = raw()
        client.say(SUBMIT_JOB, function.encode(), b"", b"1")
        assert client.hear()[0] == JOB_CREATED

        async def scenario() -> None:
            receiver = consumer()
            (delivery,) = await receiver.receive(1)
            delivery.retry(message(b"2"))
            await delivery.settled()
            await receiver.aclose()
            receiver = consumer()
            (delivery,) = await receiver.receive(1)
            assert (delivery.body, delivery.redelivered) == (b"1", True)
            delivery.retry(message(b"2"))
            (again,) = await receiver.receive(1)
            again.reply(Reply(again.body * 2))
            again.ack()
            await again.settled()
            await receiver.aclose()

        run(scenario)
        assert client.hear()[1][1] == b"22"

    def test_another_server_than_gearmand_is_worked_too(self, message: MakeMessage) -> None:
        """It may not list jobs; and what it no longer knows is lost to whoever settles it."""
        job = said(JOB_ASSIGN_UNIQ, b"H:1", b"postbus", b"", b"1")
        answers = (
            job + b"ERR UNKNOWN_COMMAND\r\n",
            said(ERROR, b"JOB_NOT_FOUND", b"gone") + said(ECHO_RES, b"settled"),
            job,
        )
        with other_server(answers) as address:
            settings = GEARMAN.consumer_settings(servers=(address,))
            receiver = GEARMAN.make_consumer(settings, CommonSettings(name="test"))

            async def scenario() -> None:
                (delivery,) = await receiver.receive(1)
                assert not delivery.redelivered
                delivery.ack()
                with pytest.raises(RejectedError, match="JOB_NOT_FOUND"):
                    await delivery.settled()
                assert delivery.lost
                (again,) = await receiver.receive(1)
                assert not again.redelivered
                await receiver.aclose()

            run(scenario)

    @pytest.mark.parametrize(
        "answer",
        [
            said(JOB_CREATED, b"H:1") + b".\n",
            said(JOB_ASSIGN_UNIQ, b"H:1") + b".\n",
            said(NO_JOB) + b"H:1\t0\t0\t0\n",
        ],
    )
    def test_a_server_that_is_no_gearmand_is_refused(self, answer: bytes) -> None:
        """Whatever it says, a TransportError comes of it."""
        with other_server((answer,)) as address:
            settings = GEARMAN.consumer_settings(servers=(address,))
            receiver = GEARMAN.make_consumer(settings, CommonSettings(name="test"))

            async def scenario() -> None:
                with pytest.raises(TransportError):
                    await receiver.receive(1)
                await receiver.aclose()

            run(scenario)

    def test_a_long_queue_is_not_listed_at_every_turn(
        self,
        memory_server: Server,
        function: str,
        producer: MakeProducer,
        message: MakeMessage,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A short one is; after a look at many jobs the next waits, by how many they are."""
        looks: list[bytes | None] = []
        text = Connection.text

        def look(connection: Connection) -> bytes | None:
            looks.append(text(connection))
            return looks[-1]

        monkeypatch.setattr(Connection, "text", look)
        monkeypatch.setattr("postbus_gearman._lines._PAUSE_PER_JOB", PATIENCE)
        sender = producer(servers=(memory_server.address,))
        line = Line(address_of(memory_server.address), PATIENCE, [function.encode()])
        sender.send_many([message()] * 100)
        line.take(1)
        line.take(1)
        assert len(looks) == 2
        sender.send(message())
        for _ in range(3):
            line.take(1)

        assert len(looks) == 3
        line.close()

    def test_a_server_that_went_away_is_told_and_found_again(
        self, own_server: Server, message: MakeMessage
    ) -> None:
        """What was held is lost to its holder and delivered again."""
        settings: dict[str, Any] = {"servers": (own_server.address,)}
        common = CommonSettings(name="test")
        sender = GEARMAN.make_producer(GEARMAN.producer_settings(**settings), common)
        sender.send(message(b"1"))
        sender.close()

        async def scenario() -> tuple[bytes, bool]:
            receiver = GEARMAN.make_consumer(GEARMAN.consumer_settings(**settings), common)
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
    def test_a_caller_that_gave_up_poisons_nothing(
        self,
        raw: Callable[..., Raw],
        function: str,
        producer: MakeProducer,
        message: MakeMessage,
    ) -> None:
        """Its answer comes late and is dropped, over the connection that others use on."""
        asker, worker = producer(), raw()
        worker.say(CAN_DO, function.encode())
        late, good = Promise[Reply](), Promise[Reply]()
        asker.request(message(b"late"), late)
        handle = _grab(worker)
        late.reject(TimedOutError("given up"))
        asker.request(message(b"good"), good)
        worker.say(WORK_COMPLETE, handle, b"1")
        worker.say(WORK_COMPLETE, _grab(worker), b"2")

        assert good.result(PATIENCE) == Reply(b"2")
        assert isinstance(late.exception(), TimedOutError)

    def test_a_question_survives_a_restart_of_the_server(
        self, own_server: Server, function: str
    ) -> None:
        """Those that waited fail at once; the next goes over a new connection."""
        config, services, catalog = doubling(own_server, function)

        with build(config, services, catalog) as app:
            with app.worker().running():
                assert app.query_bus.dispatch(Double(1)).result(PATIENCE) == 2
            waiting = app.query_bus.dispatch(Double(2))
            own_server.kill()
            with pytest.raises(ConnectionFailedError):
                waiting.result(PATIENCE)
            with pytest.raises(ConnectionFailedError):
                app.query_bus.dispatch(Double(3)).result(PATIENCE)
            own_server.start()
            with app.worker().running():
                assert app.query_bus.dispatch(Double(21)).result(PATIENCE) == 42
                with pytest.raises(HandlerFailedError):
                    app.query_bus.dispatch(Double(-1)).result(PATIENCE)

    def test_closing_rejects_what_waits(
        self, producer: MakeProducer, message: MakeMessage
    ) -> None:
        """And refuses what comes."""
        sender = producer()
        waiting, late = Promise[Reply](), Promise[Reply]()
        sender.request(message(), waiting)
        sender.close()
        sender.request(message(), late)

        assert isinstance(failure_of(waiting), ClosedError)
        assert isinstance(failure_of(late), ClosedError)


class TestRecord:
    def test_core_finds_it_by_its_entry_point(self) -> None:
        """Installed is enough."""
        (found,) = entry_points(group="postbus.transports", name="gearman")

        assert found.load() is GEARMAN

    @pytest.mark.parametrize(
        ("kind", "section"),
        [
            ("producers", {"servers": []}),
            ("producers", {"servers": ["nowhere"]}),
            ("producers", {"servers": ["127.0.0.1:99999"]}),
            ("producers", {"function": "a b"}),
            ("producers", {"function": "x" * 201}),
            ("consumers", {"functions": []}),
            ("consumers", {"functions": ["a b"]}),
            ("consumers", {"function": "x"}),
            ("consumers", {"guarantee": "at-most-once"}),
        ],
    )
    def test_a_broken_section_is_refused(self, kind: str, section: dict[str, Any]) -> None:
        """When the application is built."""
        with pytest.raises(ConfigurationError) as caught:
            build({kind: {"jobs": {"transport": "gearman", **section}}})

        (problem,) = caught.value.problems
        assert problem.path.startswith(f"{kind}.jobs")

    def test_several_servers_keep_no_order(self) -> None:
        """And a section that demands one is refused."""
        servers = ["127.0.0.1:4730", "127.0.0.1:4731"]
        section = {"transport": "gearman", "servers": servers, "requires": ["ordering"]}

        with pytest.raises(ConfigurationError, match="ordering"):
            build({"producers": {"jobs": section}})

    def test_an_address_has_a_host_and_a_port(self) -> None:
        """IPv6 ones in brackets."""
        assert address_of("[::1]:4730") == ("::1", 4730)

    def test_the_container_is_loaded_when_asked_for_only(self) -> None:
        """And other names are refused as usual."""
        import postbus_gearman

        with pytest.raises(AttributeError, match="nothing"):
            postbus_gearman.nothing  # noqa: B018  the access raises
