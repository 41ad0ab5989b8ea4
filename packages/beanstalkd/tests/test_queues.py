"""Jobs that are ready can be counted and removed, and nobody's are disturbed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from postbus.errors import ConnectionFailedError, UnsupportedError
from postbus.transports import WireMessage
from postbus_beanstalkd import BeanstalkdConsumer, BeanstalkdProducer

MakeProducer = Callable[..., BeanstalkdProducer]
MakeConsumer = Callable[..., BeanstalkdConsumer]
MakeMessage = Callable[..., WireMessage]
# What conftest.py calls Server.
Server = Any


def test_each_tube_is_counted(
    tube: str, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage
) -> None:
    """One that nobody has used yet is empty."""
    producer().send_many([message(), message()])
    tubes = (tube, f"{tube}-2")

    assert consumer(tubes=tubes).count() == {tube: 2, f"{tube}-2": 0}


def test_jobs_that_are_delayed_or_buried_do_not_wait(
    server: Server,
    tube: str,
    producer: MakeProducer,
    consumer: MakeConsumer,
    message: MakeMessage,
) -> None:
    """The server gives them to nobody; they survive a purge."""
    producer().send_many([message(b"bury"), message(b"1"), message(b"late", delay=600.0)])
    said = server.talk(b"watch " + tube.encode(), b"reserve")
    job_id = said.split(b"RESERVED ")[1].split()[0]
    # The reservation ended with the connection; over one more it is buried.
    said = server.talk(b"watch " + tube.encode(), b"reserve", b"bury " + job_id + b" 0")
    assert b"BURIED" in said
    looker = consumer()

    assert looker.count() == {tube: 1}
    assert looker.purge(tube) == 1
    facts = server.talk(b"stats-tube " + tube.encode())
    assert b"current-jobs-ready: 0" in facts
    assert b"current-jobs-buried: 1" in facts
    assert b"current-jobs-delayed: 1" in facts


def test_more_than_go_into_a_round_trip_are_removed(
    tube: str, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage
) -> None:
    """Of one tube, and of no other."""
    producer().send_many([message(b"%d" % number) for number in range(250)])
    producer(tube=f"{tube}-2").send(message(b"other"))
    looker = consumer(tubes=(tube, f"{tube}-2"))

    assert looker.purge(tube) == 250
    assert looker.count() == {tube: 0, f"{tube}-2": 1}


def test_a_look_into_a_tube_is_refused(tube: str, consumer: MakeConsumer) -> None:
    """The server shows the next job and none behind it."""
    with pytest.raises(UnsupportedError, match="BeanstalkdConsumer cannot peek"):
        consumer().peek(tube)


def test_a_server_that_is_not_there_is_an_error(
    forgetful_server: Server, tube: str, consumer: MakeConsumer
) -> None:
    """And not an empty tube (T13); when it is back, it is asked again."""
    looker = consumer(address=forgetful_server.address)
    forgetful_server.kill()
    for call in (looker.count, lambda: looker.purge(tube)):
        with pytest.raises(ConnectionFailedError):
            call()
    forgetful_server.start()

    assert looker.count() == {tube: 0}
    asyncio.run(looker.aclose())
