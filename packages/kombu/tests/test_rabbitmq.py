"""What RabbitMQ does beyond the contract, with pika as the client on the other side."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

import attrs
import pytest

from postbus import Command, MessageCatalog, Query, build
from postbus.errors import (
    ClosedError,
    ConfigurationError,
    ConnectionFailedError,
    PartiallySentError,
    RejectedError,
    TimedOutError,
    UnsupportedError,
)
from postbus.promises import Promise
from postbus.transports import CommonSettings, Delivery, Reply, WireMessage
from postbus_kombu import RABBITMQ, RabbitMQConsumer, RabbitMQContainer, RabbitMQProducer

# It has no types.
pika: Any = import_module("pika")
T = TypeVar("T")
MakeProducer = Callable[..., RabbitMQProducer]
MakeConsumer = Callable[..., RabbitMQConsumer]
MakeMessage = Callable[..., WireMessage]
PATIENCE = 30.0


@attrs.frozen
class Note(Command, name="rabbitmq.note"):
    text: str


@attrs.frozen
class Double(Query[int], name="rabbitmq.double"):
    number: int


def double(query: Double) -> int:
    return 2 * query.number


def run(test: Callable[[], Awaitable[T]]) -> T:
    async def limited() -> T:
        async with asyncio.timeout(2 * PATIENCE):
            return await test()

    return asyncio.run(limited())


async def collect(receiver: RabbitMQConsumer, count: int, most: int = 10) -> list[Delivery]:
    deliveries: list[Delivery] = []
    while len(deliveries) < count:
        deliveries += await receiver.receive(min(most, count - len(deliveries)))
    return deliveries


async def bodies(receiver: RabbitMQConsumer, count: int) -> list[bytes]:
    received = await collect(receiver, count)
    for each in received:
        each.ack()
    await receiver.aclose()
    return [each.body for each in received]


@pytest.fixture
def channel(url: str) -> Iterator[Any]:
    """A channel of pika's."""
    with pika.BlockingConnection(pika.URLParameters(url.rstrip("/") + "/%2f")) as connection:
        yield connection.channel()


class TestOtherClients:
    """What pika reads and writes."""

    def test_a_message_is_its_json_and_standard_properties(
        self, url: str, queue: str, channel: Any
    ) -> None:
        """Any client knows what it is without knowing us (D08)."""
        with RabbitMQContainer(config={"url": url, "queue": queue}) as container:
            container.command_bus().dispatch(Note("It works"))
        _, properties, body = channel.basic_get(queue, auto_ack=True)
        written = json.loads(body)
        assert written["payload"] == {"text": "It works"}
        assert properties.content_type == "application/json"
        assert properties.delivery_mode == 2
        assert (properties.message_id, properties.type) == (written["uuid"], "rabbitmq.note")
        assert abs(properties.timestamp - time.time()) < PATIENCE

    def test_a_message_of_another_client_is_received(
        self, queue: str, channel: Any, consumer: MakeConsumer, producer: MakeProducer
    ) -> None:
        """Whatever its bytes and properties are, text of its headers beside it."""
        receiver = consumer()
        channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
        properties = pika.BasicProperties(
            content_encoding="utf-8", headers={"a": "b", "n": 1}, reply_to="somebody-elses"
        )
        channel.basic_publish("", queue, b"\xff", properties)

        async def scenario() -> tuple[bytes, Any, bool]:
            (delivery,) = await receiver.receive(1)
            await receiver.aclose()
            return delivery.body, delivery.headers, delivery.can_reply

        assert run(scenario) == (b"\xff", {"a": "b"}, False)

    def test_a_query_of_another_client_is_answered(
        self, url: str, queue: str, channel: Any
    ) -> None:
        """To its exclusive queue, with its own correlation id."""
        answers = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
        body = {
            "message_name": "rabbitmq.double",
            "uuid": "2aa1c0c8-7d0f-4f29-bd36-6a2ea5ff4ca0",
            "payload": {"number": 21},
            "metadata": {},
            "created_at": "2024-05-17T09:30:12.250000",
        }
        properties = pika.BasicProperties(reply_to=answers, correlation_id="mine")
        channel.basic_publish("", queue, json.dumps(body).encode(), properties)
        catalog = MessageCatalog()
        catalog.add(Double)
        config = {
            "consumers": {"main": {"transport": "rabbitmq", "url": url, "queues": [queue]}},
            "query_bus": {"router": {"routes": {"rabbitmq.double": "double"}}},
        }
        with build(config, {"double": double}, catalog=catalog) as app, app.worker().running():
            _, found, answer = next(channel.consume(answers, inactivity_timeout=PATIENCE))
        assert answer == b"42"
        assert (found.correlation_id, found.type) == ("mine", "postbus.result")


class TestSending:
    """Refusals reach their own sender; the rest arrives."""

    def test_what_no_queue_takes_is_an_error_of_its_own_message(
        self, queue: str, channel: Any, producer: MakeProducer, message: MakeMessage
    ) -> None:
        """The broker returns it; others of the batch arrive (X04)."""
        exchange = f"{queue}-exchange"
        sender = producer(exchange=exchange, exchange_type="direct", routing_key="{name}")
        with pytest.raises(RejectedError, match="NO_ROUTE"):
            sender.send(message())
        channel.queue_declare(queue)
        channel.queue_bind(queue, exchange, "known.name")
        batch = [message(b"%d" % number) for number in range(4)]
        batch[1].name = batch[3].name = "known.name"
        with pytest.raises(PartiallySentError) as caught:
            sender.send_many(batch)
        assert {i: type(e) for i, e in caught.value.failed.items()} == {
            0: RejectedError,
            2: RejectedError,
        }
        assert [channel.basic_get(queue, auto_ack=True)[2] for _ in range(2)] == [b"1", b"3"]
        channel.exchange_delete(exchange)

    def test_a_full_queue_refuses(self, producer: MakeProducer, message: MakeMessage) -> None:
        """What does not fit raises, and what fits does not."""
        limits = {"x-max-length": 2, "x-overflow": "reject-publish"}
        sender = producer(queue_type="classic", queue_arguments=limits)
        sender.send_many([message(), message()])
        with pytest.raises(PartiallySentError) as caught:
            sender.send_many([message() for _ in range(50)])
        assert all("full" in str(error) for error in caught.value.failed.values())
        assert len(caught.value.failed) >= 48
        again = producer(queue_type="classic", queue_arguments=limits)
        with pytest.raises(RejectedError, match="full"):
            again.send(message())

    def test_a_queue_that_differs_is_named_with_the_difference(
        self, queue: str, channel: Any, producer: MakeProducer, consumer: MakeConsumer
    ) -> None:
        """Both sides say which argument is not as the broker has it."""
        channel.queue_declare(queue, durable=True)
        with pytest.raises(RejectedError, match="x-queue-type") as caught:
            producer().send(WireMessage(b"{}", {}, "1", "a.name"))
        assert queue in str(caught.value)

        async def scenario() -> None:
            receiver = consumer()
            with pytest.raises(RejectedError, match="x-queue-type"):
                await receiver.receive(1)
            await receiver.aclose()

        run(scenario)

    def test_a_queue_can_be_guessed_from_the_name(
        self, queue: str, channel: Any, producer: MakeProducer, message: MakeMessage
    ) -> None:
        """As Bernard did, of the last part of the name with hyphens (K04, R01)."""
        sender = producer(queue=f"{queue}-{{kebab}}", queue_type="classic")
        letter = message()
        letter.name = "shop.mail.SendNewsletter"
        sender.send_many([letter, message()])
        for guessed in (f"{queue}-send-newsletter", f"{queue}-echo-text"):
            assert channel.basic_get(guessed, auto_ack=True)[2] == letter.body
            channel.queue_delete(guessed)
        sender = producer(queue="{name}")
        letter.name = "x" * 300
        with pytest.raises(RejectedError, match="255 bytes"):
            sender.send(letter)

    def test_a_name_too_long_for_a_property_is_left_out(
        self, queue: str, channel: Any, producer: MakeProducer, message: MakeMessage
    ) -> None:
        """The body says it anyway; a header that is too long goes too."""
        long = message()
        long.name = "x" * 300
        long.headers = {"y" * 300: "1", "kept": "2"}
        producer().send(long)
        _, properties, _ = channel.basic_get(queue, auto_ack=True)
        assert properties.type is None
        assert properties.headers.keys() - {"x-delivery-count"} == {"kept"}

    def test_a_deleted_queue_is_declared_again(
        self, queue: str, channel: Any, producer: MakeProducer, message: MakeMessage
    ) -> None:
        """The message that finds it gone raises; the next one goes into a new queue."""
        sender = producer()
        sender.send(message())
        channel.queue_delete(queue)
        with pytest.raises(RejectedError, match="NO_ROUTE"):
            sender.send(message())
        sender.send(message(b"new"))
        assert channel.basic_get(queue, auto_ack=True)[2] == b"new"

    def test_a_delay_of_half_a_second_is_kept(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage
    ) -> None:
        """Short delays count in tenths; several of one length keep their order."""
        sender, receiver = producer(), consumer()

        async def scenario() -> tuple[list[bytes], float]:
            start = time.monotonic()
            late = [message(b"%d" % number, delay=0.5) for number in range(3)]
            await asyncio.to_thread(sender.send_many, late)
            received = await bodies(receiver, 3)
            return received, time.monotonic() - start

        received, seconds = run(scenario)
        assert received == [b"0", b"1", b"2"]
        assert 0.5 <= seconds < PATIENCE

    def test_what_no_delay_can_do_is_refused(
        self, producer: MakeProducer, message: MakeMessage
    ) -> None:
        """More than a month, and an expiry that would be forgotten meanwhile."""
        sender = producer()
        with pytest.raises(UnsupportedError, match="longest delay"):
            sender.send(message(delay=31 * 86_400.0))
        with pytest.raises(UnsupportedError, match="expiry"):
            sender.send(message(delay=1.0, expires_at=datetime.now(UTC) + timedelta(hours=1)))

    def test_a_broker_that_is_not_there_is_an_error(
        self, producer: MakeProducer, message: MakeMessage
    ) -> None:
        """At once where nobody listens, and within the time-out where nobody speaks."""
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            address = f"amqp://guest:guest@127.0.0.1:{silent.getsockname()[1]}//"
            sender = producer(url=address, connect_timeout=0.2)
            with pytest.raises(ConnectionFailedError, match="refused") as caught:
                sender.send(message())
            assert "guest:guest" not in str(caught.value)
            silent.listen()
            with pytest.raises(TimedOutError):
                sender.send(message())
            reply: Promise[Reply] = Promise()
            sender.request(message(), reply)
            with pytest.raises(TimedOutError):
                reply.result(PATIENCE)

    def test_threads_that_send_at_once_hear_of_their_own(
        self, producer: MakeProducer, message: MakeMessage
    ) -> None:
        """Of two hundred sends from eight threads those too large raise, and no others."""
        sender = producer(max_size_bytes=10)
        wrong: list[str] = []

        def send(thread: int) -> None:
            for number in range(25):
                is_large = (thread + number) % 5 == 0
                try:
                    sender.send(message(b"x" * (20 if is_large else 5)))
                except RejectedError:
                    outcome = True
                else:
                    outcome = False
                if outcome is not is_large:
                    wrong.append(f"{thread} {number}")

        threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert wrong == []

    def test_what_a_closed_sender_is_given_is_refused(
        self, url: str, queue: str, producer: MakeProducer, message: MakeMessage
    ) -> None:
        """Also by a thread that was past the producer's own check, and by its queries."""
        maker: Any = producer()
        maker.send(message())
        posting = maker._posting(message())
        maker.close()
        with pytest.raises(ClosedError):
            maker._sender.send([posting])
        with pytest.raises(ClosedError):
            maker._replies.ask(posting, Promise[Reply]())

    def test_a_declaration_that_breaks_off_is_an_error(
        self, producer: MakeProducer, message: MakeMessage
    ) -> None:
        """The next send makes a connection, and declares again."""
        sender: Any = producer(queue="{name}", queue_type="classic")
        one, two = message(), message()
        one.name, two.name = f"postbus-test-{one.id}", f"postbus-test-{two.id}"
        sender.send(one)
        ensure = sender._sender._outlet._declared.ensure

        def broken(route: Any) -> bool:
            sender._sender._link._socket.shutdown(socket.SHUT_RDWR)
            return bool(ensure(route))

        sender._sender._outlet._declared.ensure = broken
        with pytest.raises(ConnectionFailedError):
            sender.send(two)
        sender.send(two)
        for name in (one.name, two.name):
            channel: Any = sender._sender._link.channel()
            channel.queue_delete(name)

    def test_a_connection_that_breaks_is_made_anew(
        self, producer: MakeProducer, message: MakeMessage
    ) -> None:
        """Broken while idle, the next send does not even notice."""
        sender = producer()
        sender.send(message())
        link: Any = sender._sender._link
        link._socket.shutdown(socket.SHUT_RDWR)
        sender.send(message())
        assert sender._sender._link is not link


class TestQueries:
    """Direct reply-to, on a connection of its own."""

    def test_a_query_that_no_queue_takes_is_rejected(
        self, queue: str, channel: Any, producer: MakeProducer, message: MakeMessage
    ) -> None:
        """Nobody waits for a deadline that need not be waited for."""
        exchange = f"{queue}-nobody"
        sender = producer(exchange=exchange)
        reply: Promise[Reply] = Promise()
        sender.request(message(), reply)
        with pytest.raises(RejectedError, match="NO_ROUTE"):
            reply.result(PATIENCE)
        channel.exchange_delete(exchange)

    def test_who_gets_an_answer_may_close(
        self, producer: MakeProducer, message: MakeMessage, queue: str
    ) -> None:
        """On the thread that brings it, which ends by itself then."""
        sender = producer(exchange=f"{queue}-nobody")
        reply: Promise[Reply] = Promise()
        closed = threading.Event()

        def close(_: Promise[Reply]) -> None:
            sender.close()
            closed.set()

        reply.add_done_callback(close)
        sender.request(message(), reply)

        assert closed.wait(PATIENCE)
        assert isinstance(reply.exception(), RejectedError)

    def test_a_broken_connection_rejects_what_waits_and_the_next_query_goes_on(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage
    ) -> None:
        """The answer was meant for a channel that is gone; nobody waits for it."""
        sender, receiver = producer(), consumer()

        async def scenario() -> bytes:
            lost: Promise[Reply] = Promise()
            sender.request(message(), lost)
            (query,) = await receiver.receive(1)
            link: Any = sender._replies._link
            link._socket.shutdown(socket.SHUT_RDWR)
            with pytest.raises(ConnectionFailedError):
                await lost
            query.reply(Reply(b"late"))
            query.ack()
            reply: Promise[Reply] = Promise()
            sender.request(message(), reply)
            (query,) = await receiver.receive(1)
            query.reply(Reply(b"1"))
            query.ack()
            answer = await reply
            await receiver.aclose()
            return answer.body

        assert run(scenario) == b"1"


class TestConfiguration:
    """What is refused while building."""

    @pytest.mark.parametrize(
        ("keys", "expected"),
        [
            ({"max_priority": 9}, 'queue_type = "classic"'),
            ({"url": "http://127.0.0.1"}, "amqp://"),
            ({"queue": "amq.mine"}, "amq."),
            ({"queue": "{id}"}, "{name}"),
            ({"requires": ["priority"]}, "priority"),
        ],
    )
    def test_what_cannot_be_is_refused(self, keys: dict[str, Any], expected: str) -> None:
        """With the path and what was expected, and without a password."""
        section = {"transport": "rabbitmq", **keys}
        with pytest.raises(ConfigurationError) as caught:
            build({"producers": {"main": section}}, {})
        assert expected in str(caught.value)

    def test_a_consumer_wants_queues(self) -> None:
        """None, or one with a name that is the broker's, is refused."""
        for queues in ([], ["amq.mine"]):
            section = {"transport": "amqp", "queues": queues}
            with pytest.raises(ConfigurationError, match="at least one queue"):
                build({"consumers": {"main": section}}, {})

    def test_the_transport_has_two_names(self) -> None:
        """`rabbitmq` and `amqp` are one record."""
        names = {
            entry.name: entry.load()
            for entry in entry_points(group="postbus.transports")
            if entry.value.endswith(":RABBITMQ")
        }
        assert names == {"amqp": RABBITMQ, "rabbitmq": RABBITMQ}

    def test_the_package_has_no_other_names(self) -> None:
        """A name that is not there is an AttributeError, as everywhere."""
        import postbus_kombu

        assert postbus_kombu.RabbitMQContainer is RabbitMQContainer
        with pytest.raises(AttributeError, match="Nothing"):
            _ = postbus_kombu.Nothing

    def test_a_closed_producer_rejects_queries(self, message: MakeMessage) -> None:
        """Also one that was never used."""
        sender = RABBITMQ.make_producer(RABBITMQ.producer_settings(), CommonSettings(name="test"))
        sender.close()
        reply: Promise[Reply] = Promise()
        sender.request(message(), reply)
        with pytest.raises(ClosedError):
            reply.result(PATIENCE)
