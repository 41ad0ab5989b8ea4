"""The blocking side of a consumer, and its connections, where one of them breaks."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from postbus.errors import ClosedError, ConnectionFailedError, TransportError
from postbus.promises import Promise
from postbus.threaded import Action, Received, Settlement
from postbus.transports import CommonSettings, Reply, WireMessage
from postbus_gearman import GEARMAN, GearmanProducer
from postbus_gearman._client import FunctionClient
from postbus_gearman._jobs import redelivered
from postbus_gearman._lines import Line, Receipt
from postbus_gearman._protocol import Connection, Kind, packet
from postbus_gearman._queries import Queries, _Channel
from postbus_gearman.settings import address_of

MakeMessage = Callable[..., WireMessage]
MakeProducer = Callable[..., GearmanProducer]
# What conftest.py calls Server.
Server = Any
PATIENCE = 30.0


@pytest.fixture
def client(server: Server, second_server: Server, function: str) -> Iterator[FunctionClient]:
    """A client of two servers, open."""
    settings = GEARMAN.consumer_settings(
        servers=(second_server.address, server.address), functions=(function,)
    )
    capabilities = GEARMAN.capabilities(settings, CommonSettings(name="test"))
    made = FunctionClient(settings, capabilities)
    made.open()
    yield made
    made.close()


def taken(client: FunctionClient, count: int) -> list[Received[Receipt]]:
    """Take exactly so many."""
    found: list[Received[Receipt]] = []
    end = time.monotonic() + PATIENCE
    while len(found) < count:
        assert time.monotonic() < end
        found += client.poll(count - len(found), PATIENCE)
    return found


class TestFunctionClient:
    @pytest.mark.parametrize("action", [Action.ACK, Action.RETRY])
    def test_a_connection_that_breaks_costs_what_it_held(
        self,
        client: FunctionClient,
        server: Server,
        second_server: Server,
        producer: MakeProducer,
        message: MakeMessage,
        action: Action,
    ) -> None:
        """Settled over it, it failed; over the other it is carried out, and polls go on."""
        for address in (server.address, second_server.address):
            producer(servers=(address,)).send(message(address.encode()))
        jobs = {each.body.decode(): each.receipt for each in taken(client, 2)}
        jobs[second_server.address].line.connection.end()
        settlements = [Settlement(action, receipt, message(b"again")) for receipt in jobs.values()]

        failed = client.settle(settlements)

        (index,) = failed
        assert settlements[index].receipt is jobs[second_server.address]
        assert isinstance(failed[index], ConnectionFailedError)

    def test_the_last_connection_that_breaks_is_an_error(
        self,
        client: FunctionClient,
        second_server: Server,
        producer: MakeProducer,
        message: MakeMessage,
    ) -> None:
        """The consumer is told, and opens it anew."""
        second_server.kill()
        producer().send(message(b"1"))
        (job,) = taken(client, 1)
        job.receipt.line.connection.end()

        with pytest.raises(ConnectionFailedError):
            client.settle([Settlement(Action.ACK, job.receipt)])
        client.open()
        (again,) = taken(client, 1)
        assert again.redelivered

    def test_a_server_that_hangs_up_on_a_sleeper_is_noticed(
        self, client: FunctionClient, second_server: Server, function: str
    ) -> None:
        """Whatever a wait was begun with: the next turn goes over what is left."""
        second_server.kill()
        assert client.poll(1, 0.0) == []
        assert client.poll(1, 0.0) == []

        client.wake()
        assert client.poll(1, PATIENCE) == []

    def test_a_broken_connection_cannot_sleep(
        self, client: FunctionClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is given up before the wait, which the others go on with."""
        sleep = Line.sleep
        slept: list[Line] = []

        def break_first(line: Line) -> None:
            slept.append(line)
            if len(slept) == 1:
                line.connection.end()
                line.connection.close()
            sleep(line)

        monkeypatch.setattr(Line, "sleep", break_first)
        client.wake()
        assert client.poll(1, PATIENCE) == []
        assert len(slept) == 2

    def test_what_came_before_the_wait_ends_it(
        self, client: FunctionClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A packet that was read along with another is not waited for once more."""
        monkeypatch.setattr(Connection, "has_more", property(lambda _: True))

        assert client.poll(1, 0.01) == []

    def test_a_retried_job_whose_connection_is_gone_is_not_handed_out(
        self,
        client: FunctionClient,
        function: str,
        producer: MakeProducer,
        message: MakeMessage,
        raw: Callable[..., Any],
    ) -> None:
        """Its server gives it to somebody, as it was."""
        asker = raw()
        asker.say(7, function.encode(), b"", b"1")
        asker.hear()
        producer().send(message(b"other"))
        asked, other = sorted(taken(client, 2), key=lambda each: each.body)
        assert client.settle([Settlement(Action.RETRY, asked.receipt, message(b"2"))]) == {}
        asked.receipt.line.connection.end()
        assert client.settle([Settlement(Action.ACK, other.receipt)]).keys() == {0}

        again = sorted((each.body, each.can_reply) for each in taken(client, 2))

        assert again == [(b"1", True), (b"other", False)]

    def test_it_may_be_woken_and_closed_at_any_time(self, client: FunctionClient) -> None:
        """Before it is open, after it is closed, and as often as anybody likes."""
        for _ in range(100_000):
            client.wake()
        client.close()
        client.wake()
        client.close()


class TestLine:
    def test_redelivered_jobs_are_those_with_retries(self) -> None:
        """The second column counts how often a worker lost a job."""
        lines = b"H:a:1\t0\t0\t1\nH:a:2\t1\t0\t1\nH:a:3\t12\t0\t0\n"

        assert redelivered(lines) == {b"H:a:2", b"H:a:3"}


class TestQueries:
    def test_a_connection_that_breaks_while_asking_rejects_all(
        self, server: Server, function: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever asked then is told, those that waited too; the next query connects anew."""
        made: list[Connection] = []

        def connect() -> Connection:
            made.append(Connection(address_of(server.address), PATIENCE))
            return made[-1]

        def ask(promise: Promise[Reply]) -> None:
            queries.ask(packet(Kind.SUBMIT_JOB, function.encode(), b"", b""), promise)

        queries = Queries(connect, PATIENCE)
        first, second, third = Promise[Reply](), Promise[Reply](), Promise[Reply]()
        ask(first)
        monkeypatch.setattr(made[0], "send", _broken)
        with pytest.raises(ConnectionFailedError):
            ask(second)
        for promise in (first, second):
            with pytest.raises(ConnectionFailedError):
                promise.result(PATIENCE)
        ask(third)
        queries.close()

        assert len(made) == 2
        with pytest.raises(ClosedError):
            third.result(PATIENCE)
        with pytest.raises(ClosedError):
            ask(Promise[Reply]())

    def test_a_connection_that_has_ended_takes_no_query(self, server: Server) -> None:
        """Whoever asks in that very moment is told, and does not wait for ever."""
        channel = _Channel(Connection(address_of(server.address), PATIENCE), PATIENCE)
        channel.end(ConnectionFailedError("over"))
        end = time.monotonic() + PATIENCE
        while not channel.has_ended:
            assert time.monotonic() < end
            os.sched_yield()

        with pytest.raises(ConnectionFailedError, match="before the query"):
            channel.ask(b"", Promise[Reply]())

    def test_an_answer_may_take_longer_than_a_server(
        self, producer: MakeProducer, message: MakeMessage, function: str, raw: Callable[..., Any]
    ) -> None:
        """`io_timeout` is for the server; how long the worker may take is the caller's matter."""
        promise = Promise[Reply]()
        producer(io_timeout=0.02).request(message(), promise)
        with pytest.raises(TimeoutError):
            promise.result(0.2)
        worker = raw()
        worker.say(Kind.CAN_DO, function.encode())
        worker.say(9)
        handle = worker.hear()[1][0]
        worker.say(Kind.WORK_COMPLETE, handle, b"1")

        assert promise.result(PATIENCE) == Reply(b"1")


def _broken(_: bytes) -> None:
    raise ConnectionFailedError("broken")


class TestConnection:
    def test_what_cannot_be_written_is_an_error(self, server: Server) -> None:
        """And ending or closing it twice is none."""
        connection = Connection(address_of(server.address), PATIENCE)
        connection.end()
        connection.end()
        connection.close()
        connection.end()

        with pytest.raises(TransportError):
            connection.send(b"x")
        with pytest.raises(TransportError):
            connection.receive()


class TestFork:
    def test_a_child_closes_its_own_only(
        self, producer: MakeProducer, message: MakeMessage
    ) -> None:
        """What the parent has stays open when a child closes the producer unused."""
        sender = producer()
        sender.send(message(b"1"))
        child = os.fork()
        if child == 0:
            try:
                sender.close()
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

        sender.send(message(b"2"))


def test_nobody_there_is_an_error() -> None:
    """With the address, of every server that was tried."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        settings = GEARMAN.producer_settings(servers=(address, address))
        sender = GEARMAN.make_producer(settings, CommonSettings(name="test"))

        with pytest.raises(ConnectionFailedError, match=rf"{address}.*; .*{address}"):
            sender.send(WireMessage(b"", {}, "an-id", "shop.echo-text"))
        sender.close()
