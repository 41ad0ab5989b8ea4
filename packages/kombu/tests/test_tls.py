"""Over TLS the server is always checked, and may want to see a certificate."""

from __future__ import annotations

import asyncio
from typing import Any

import attrs
import pytest

from postbus import build
from postbus.errors import ConfigurationError, ConnectionFailedError
from postbus.messages import new_id
from postbus.transports import CommonSettings, Transport, WireMessage
from postbus_kombu import RABBITMQ, REDIS
from postbus_kombu._amqp import Address, Link

Files = dict[str, str]
Server = tuple[Transport, str, Files]
PATIENCE = 30.0
COUNT = 300


def make_message(body: bytes) -> WireMessage:
    return WireMessage(body, {}, new_id(), "shop.echo-text")


def sides(transport: Transport, url: str, queue: str, **files: str) -> tuple[Any, Any]:
    common = CommonSettings(name="test", prefetch=50, close_timeout=PATIENCE)
    producer = transport.producer_settings(url=url, queue=queue, **files)
    consumer = transport.consumer_settings(url=url, queues=(queue,), **files)
    return transport.make_producer(producer, common), transport.make_consumer(consumer, common)


def carried(
    transport: Transport, url: str, queue: str, bodies: list[bytes], **files: str
) -> set[bytes]:
    """Send *bodies* at once and return those that came."""
    producer, consumer = sides(transport, url, queue, **files)
    producer.send_many([make_message(body) for body in bodies])
    producer.close()

    async def receive() -> set[bytes]:
        received: set[bytes] = set()
        async with asyncio.timeout(PATIENCE):
            while len(received) < len(bodies):
                for delivery in await consumer.receive(50):
                    received.add(delivery.body)
                    delivery.ack()
        await consumer.aclose()
        return received

    return asyncio.run(receive())


def refused(transport: Transport, url: str, queue: str, **files: str) -> str:
    """Return why neither side gets a connection."""
    producer, consumer = sides(transport, url, queue, **files)
    with pytest.raises(ConnectionFailedError) as sent:
        producer.send(make_message(b"1"))
    producer.close()

    async def receive() -> None:
        with pytest.raises(ConnectionFailedError):
            await asyncio.wait_for(consumer.receive(1), PATIENCE)
        await consumer.aclose()

    asyncio.run(receive())
    return str(sent.value)


@pytest.fixture(params=["rabbitmq", "redis"])
def server(request: pytest.FixtureRequest) -> tuple[Transport, str, Files]:
    """A server with TLS that wants to see a certificate, too: transport, URL, what it accepts."""
    if request.param == "redis":
        redis = request.getfixturevalue("own_redis_with_tls")
        return REDIS, redis.url, attrs.asdict(redis.certificates)
    broker = request.getfixturevalue("own_broker")
    url = f"amqps://guest:guest@localhost:{broker.tls_port}//"
    return RABBITMQ, url, attrs.asdict(broker.certificates)


def test_messages_go_both_ways(server: Server, queue_name: str) -> None:
    """Small ones and such as need several records of TLS."""
    transport, url, files = server
    bodies = [b"%d" % number + b"x" * (number % 7 * 1000) for number in range(COUNT)]
    assert carried(transport, url, queue_name, bodies, **files) == set(bodies)


def test_what_came_in_one_record_is_read_at_once(own_broker: Any, queue_name: str) -> None:
    """Several frames may: the socket has nothing more to say then, and nobody waits for it."""
    url = f"amqps://guest:guest@localhost:{own_broker.tls_port}//"
    files = attrs.asdict(own_broker.certificates)
    producer, _ = sides(RABBITMQ, url, queue_name, **files)
    producer.send_many([make_message(b"small") for _ in range(100)])
    producer.close()
    settings = RABBITMQ.consumer_settings(url=url, **files)
    link = Link(Address.of(settings, PATIENCE))
    arrived: list[Any] = []
    link.channel().basic_consume(queue_name, no_ack=True, callback=arrived.append)
    while len(arrived) < 100:
        assert link.read(PATIENCE / 3), "what was decrypted already was not seen"
    link.close()


def test_a_server_of_an_unknown_authority_is_refused(
    server: Server, queue_name: str, strangers: Any
) -> None:
    """Whether the authorities were named or are the system's."""
    transport, url, files = server
    for wrong in ({**files, "ca_file": strangers.ca_file}, {}):
        why = refused(transport, url, queue_name, **wrong)
        assert "CERTIFICATE_VERIFY_FAILED" in why


def test_a_server_of_another_name_is_refused(server: Server, queue_name: str) -> None:
    """A certificate is good for its host alone."""
    transport, url, files = server
    why = refused(transport, url.replace("localhost", "127.0.0.1"), queue_name, **files)
    assert "CERTIFICATE_VERIFY_FAILED" in why


def test_a_client_of_an_unknown_authority_is_refused(
    server: Server, queue_name: str, strangers: Any
) -> None:
    """By the server, which is shown the certificate of the section, or none."""
    transport, url, files = server
    ca_file = files["ca_file"]
    refused(transport, url, queue_name, **{**attrs.asdict(strangers), "ca_file": ca_file})
    refused(transport, url, queue_name, ca_file=ca_file)


@pytest.mark.parametrize("transport", ["rabbitmq", "redis"])
def test_what_would_not_be_checked_is_refused(transport: str) -> None:
    """Files without TLS, a key without its certificate, and options in the URL."""
    scheme = {"rabbitmq": "amqp", "redis": "redis"}[transport]
    for keys, expected in (
        ({"url": f"{scheme}://localhost", "ca_file": "ca.pem"}, "beside ca_file"),
        ({"url": f"{scheme}s://localhost", "key_file": "key.pem"}, "beside key_file"),
        ({"url": f"{scheme}s://localhost?ssl_cert_reqs=none"}, f"{scheme}s://"),
    ):
        for side in ("producers", "consumers"):
            with pytest.raises(ConfigurationError, match=expected):
                build({side: {"main": {"transport": transport, **keys}}}, {})
