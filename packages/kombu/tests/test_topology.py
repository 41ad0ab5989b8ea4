"""What is declared at the broker, what says so without changing it, and delays of any length."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from postbus import build
from postbus.cli._program import program
from postbus.errors import ConfigurationError, RejectedError
from postbus.transports import Topology, TopologyPart, WireMessage
from postbus_kombu import RabbitMQConsumer, RabbitMQProducer
from postbus_kombu._amqp import Address, Link
from postbus_kombu._delays import ladder, landing, on_ladder, waiting_room
from postbus_kombu._topology import Part, Route, declare, named

MakeProducer = Callable[..., RabbitMQProducer]
MakeConsumer = Callable[..., RabbitMQConsumer]
MakeMessage = Callable[..., WireMessage]
PATIENCE = 30.0


@pytest.fixture
def link(url: str) -> Iterator[Link]:
    made = Link(Address(url=url, connect_timeout=PATIENCE, io_timeout=PATIENCE))
    yield made
    made.close()


def states(parts: Any) -> list[tuple[str, str]]:
    return [(part.kind, part.state) for part in parts]


class TestDelays:
    """Short ones by a queue each, long ones by a ladder."""

    @pytest.mark.parametrize(
        ("delay", "milliseconds"),
        [(0.001, 100), (0.1, 100), (0.11, 200), (0.5, 500), (9.9, 9_900), (9.91, 10_000)],
    )
    def test_a_short_delay_is_never_shorter(self, delay: float, milliseconds: int) -> None:
        """It is rounded up to a tenth of a second, so that delays share queues."""
        room = waiting_room(Route("", "mail"), delay)
        assert room.arguments["x-message-ttl"] == milliseconds
        assert room.name == f"postbus.delay.{milliseconds}..mail"

    def test_no_queue_that_holds_messages_back_goes_away_by_itself(self) -> None:
        """What it held then would be lost: declaring it again keeps no quorum queue alive."""
        parts = [waiting_room(Route("", "mail"), 1.0), *ladder(), *landing(Route("", "mail"))]
        assert [part.name for part in parts if "x-expires" in part.arguments] == []

    @pytest.mark.parametrize("delay", [1.0, 12.34, 3_600.0, 86_399.95, 30 * 86_400.0])
    def test_the_rungs_of_a_long_delay_come_to_it(self, delay: float) -> None:
        """To a tenth of a second, up to a month."""
        bits = on_ladder(Route("", "mail"), delay).key.split(".")[:-1]
        parts = {part.name: part for part in ladder() if part.kind == "queue"}
        waits = [
            parts[f"postbus.ladder.{rung:02}"].arguments["x-message-ttl"] / 1000
            for rung, bit in enumerate(reversed(bits))
            if bit == "1"
        ]
        assert delay <= sum(waits) + 1e-6 < delay + 0.1 + 1e-5

    def test_names_too_long_for_a_queue_stay_different(self) -> None:
        """They are shortened to what no other has."""
        routes = [Route("", "x" * 230 + end) for end in ("a", "b")]
        names = {waiting_room(route, 1.0).name for route in routes}
        assert len(names) == 2
        assert max(map(len, names)) < 256

    def test_a_deleted_queue_for_a_delay_is_declared_again(
        self, broker: Any, queue: str, producer: MakeProducer, message: MakeMessage
    ) -> None:
        """The send that finds it missing raises, and the next one makes it."""
        sender = producer(queue=queue)
        sender.send(message(delay=0.9))
        with broker.clone() as connection:
            connection.channel().queue_delete(f"postbus.delay.900..{queue}")
        with pytest.raises(RejectedError, match="NO_ROUTE"):
            sender.send(message(delay=0.9))
        sender.send(message(delay=0.9))

    def test_a_long_delay_is_kept_and_reaches_no_other_queue(
        self,
        queue: str,
        producer: MakeProducer,
        consumer: MakeConsumer,
        message: MakeMessage,
        link: Link,
    ) -> None:
        """Over several rungs; whatever words the names of the queues share."""
        last_word = f"{queue}.{queue}"
        other = producer(queue=last_word)

        async def scenario() -> tuple[list[bytes], float]:
            receiver = consumer()
            start = time.monotonic()
            await asyncio.to_thread(other.send, message(b"other", delay=1.1))
            await asyncio.to_thread(producer().send, message(b"late", delay=1.3))
            await asyncio.to_thread(producer().send, message(b"now"))
            bodies: list[bytes] = []
            while len(bodies) < 2:
                for delivery in await receiver.receive(2):
                    bodies.append(delivery.body)
                    delivery.ack()
            await receiver.aclose()
            return bodies, time.monotonic() - start

        bodies, seconds = asyncio.run(asyncio.wait_for(scenario(), 2 * PATIENCE))
        assert bodies == [b"now", b"late"]
        assert 1.3 <= seconds < PATIENCE
        channel: Any = link.channel()
        for name in (last_word, f"postbus.delayed..{last_word}"):
            channel.queue_delete(name)


class TestShowing:
    """`show_topology` and `apply_topology` of either side."""

    def test_what_is_missing_is_made_and_what_is_there_stays(
        self, queue: str, producer: MakeProducer, consumer: MakeConsumer
    ) -> None:
        """Showing makes nothing, and applying twice makes nothing the second time."""
        sides: list[Topology] = [
            producer(queue_type="classic", dead_letter_queue=f"{queue}-dead"),
            consumer(queue_type="classic", dead_letter_queue=f"{queue}-dead"),
        ]
        assert states(sides[0].show_topology()) == [("queue", "missing")] * 2
        assert states(sides[1].show_topology()) == [("queue", "missing")] * 2
        assert states(sides[0].apply_topology()) == [("queue", "made")] * 2
        assert states(sides[1].apply_topology()) == [("queue", "there")] * 2
        assert states(sides[0].show_topology()) == [("queue", "there")] * 2

    def test_the_command_line_makes_it(self, url: str, queue: str, tmp_path: Path) -> None:
        """For producers and consumers of a configuration, and says what differs."""
        file = tmp_path / "postbus.toml"
        section = f'transport = "rabbitmq"\nurl = "{url}"'
        producer = f'[postbus.producers.mail]\n{section}\nqueue = "{queue}"\nmax_length = 7\n'
        consumer = f'[postbus.consumers.mail]\n{section}\nqueues = ["{queue}"]\n'
        file.write_text(producer + consumer)
        command = ["--config", str(file), "--json", "topology"]
        codes = [CliRunner().invoke(program, [*command, call]) for call in ("show", "apply")]
        shown, applied = (json.loads(result.stdout) for result in codes)
        assert [(row["section"], row["state"]) for row in shown] == [
            ("producers.mail", "missing"),
            ("consumers.mail", "missing"),
        ]
        # The consumer asks for another one than what the producer's section has just made.
        assert [row["state"] for row in applied] == ["made", "differs"]
        assert "x-max-length" in applied[1]["difference"]
        assert [result.exit_code for result in codes] == [0, 1]

    def test_what_differs_is_said_and_left(
        self, queue: str, producer: MakeProducer, link: Link
    ) -> None:
        """With the argument, the one that is wanted and the one that is there."""
        declare(link, Part("queue", queue, {"x-queue-type": "classic", "x-max-length": 5}))
        for make in (False, True):
            sender = producer(queue_type="classic", max_length=7)
            (part,) = sender.apply_topology() if make else sender.show_topology()
            assert (part.name, part.state) == (queue, "differs")
            assert all(word in part.difference for word in ("x-max-length", "'7'", "'5'"))
        with pytest.raises(RejectedError, match="x-max-length"):
            producer(queue_type="classic", max_length=7).send(
                WireMessage(b"1", {}, "id", "shop.echo")
            )

    def test_exchanges_and_bindings_belong_to_it(
        self, queue: str, producer: MakeProducer, consumer: MakeConsumer
    ) -> None:
        """What AMQP does not tell is said to be unknown; a queue named by messages is left out."""
        keys = {"exchange": f"{queue}-exchange", "dead_letter_exchange": f"{queue}-letters"}
        receiver = consumer(bindings=("shop.*",), dead_letter_queue=f"{queue}-dead", **keys)
        found = list(receiver.show_topology())
        assert found == [
            TopologyPart("exchange", f"{queue}-letters", "missing"),
            TopologyPart("queue", f"{queue}-dead", "missing"),
            TopologyPart("binding", f"{queue}-dead to {queue}-letters by #", "unknown"),
            TopologyPart("queue", queue, "missing"),
            TopologyPart("exchange", f"{queue}-exchange", "missing"),
            TopologyPart("binding", f"{queue} to {queue}-exchange by shop.*", "unknown"),
        ]
        applied = states(receiver.apply_topology())
        assert applied == [(part.kind, _after(part.state)) for part in found]
        assert states(producer(exchange=f"{queue}-exchange").show_topology()) == [
            ("exchange", "there")
        ]
        assert producer(queue="{name}").show_topology() == []


def _after(state: str) -> str:
    return {"missing": "made", "unknown": "there"}[state]


class TestLimits:
    """Keys for what a queue holds, and where the rest goes."""

    @pytest.mark.parametrize("queue_type", ["quorum", "classic"])
    @pytest.mark.parametrize("has_exchange", [False, True])
    def test_what_is_dropped_goes_to_the_dead_letters(
        self,
        queue: str,
        queue_type: str,
        has_exchange: bool,
        producer: MakeProducer,
        consumer: MakeConsumer,
        message: MakeMessage,
    ) -> None:
        """The oldest, where a full queue lets it go."""
        letters = {"dead_letter_exchange": f"{queue}-letters"} if has_exchange else {}
        sender = producer(
            queue_type=queue_type,
            max_length=1,
            overflow="drop-head",
            dead_letter_queue=f"{queue}-dead",
            **letters,
        )
        for body in (b"1", b"2"):
            sender.send(message(body))
        receiver = consumer(queues=(f"{queue}-dead",), queue_type=queue_type)

        async def scenario() -> bytes:
            (delivery,) = await receiver.receive(1)
            delivery.ack()
            await receiver.aclose()
            return delivery.body

        assert asyncio.run(asyncio.wait_for(scenario(), PATIENCE)) == b"1"

    def test_one_thing_said_twice_is_refused(self) -> None:
        """By a key and by the argument that it is to RabbitMQ."""
        section = {"transport": "rabbitmq", "max_length": 7}
        twice = {**section, "queue_arguments": {"x-max-length": 5}}
        for side in ("producers", "consumers"):
            build({side: {"main": section}}, {}).close()
            with pytest.raises(ConfigurationError, match="no x-max-length in queue_arguments"):
                build({side: {"main": twice}}, {})

    def test_dead_letters_of_a_quorum_queue_that_rejects_are_safe(
        self, queue: str, producer: MakeProducer
    ) -> None:
        """They stay where they are until the next queue has them."""
        sender = producer(overflow="reject-publish", dead_letter_queue=f"{queue}-dead")
        made = sender._sender._shape.arguments
        assert made["x-dead-letter-strategy"] == "at-least-once"
        assert states(sender.apply_topology()) == [("queue", "made")] * 2


@pytest.mark.parametrize(
    ("template", "name", "expected"),
    [
        ("mail", "shop.x", "mail"),
        ("{name}", "shop.x", "shop.x"),
        ("{kebab}", "shop.SendNewsletter", "send-newsletter"),
        ("{kebab}", "send_newsletter", "send-newsletter"),
        ("a.{kebab}", "Echo", "a.echo"),
    ],
)
def test_a_template_is_filled(template: str, name: str, expected: str) -> None:
    """With the whole name, or with its last part as Bernard guessed queues (K04)."""
    assert named(template, name) == expected
