"""Jobs that no worker has can be counted."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from postbus.errors import ConnectionFailedError, RejectedError, UnsupportedError
from postbus.promises import Promise
from postbus.transports import Reply, WireMessage
from postbus_gearman import GearmanConsumer, GearmanProducer
from postbus_gearman._jobs import waiting

MakeProducer = Callable[..., GearmanProducer]
MakeConsumer = Callable[..., GearmanConsumer]
MakeMessage = Callable[..., WireMessage]
# What conftest.py calls Server.
Server = Any


def test_running_jobs_do_not_wait() -> None:
    """`status` counts them among all jobs of a function."""
    status = b"shop\t5\t2\t3\nshop.mail\t1\t1\t1\nidle\t0\t0\t0\n"

    assert waiting(status) == {"shop": 3, "shop.mail": 0, "idle": 0}


def test_the_jobs_of_all_servers_are_counted(
    server: Server,
    second_server: Server,
    function: str,
    producer: MakeProducer,
    consumer: MakeConsumer,
    message: MakeMessage,
) -> None:
    """Of each function, those that somebody asked for included."""
    producer().send_many([message(), message()])
    sender = producer(servers=(second_server.address,))
    sender.send(message())
    sender.request(message(), Promise[Reply]())
    both = (server.address, second_server.address)
    looker = consumer(servers=both, functions=(function, f"{function}-2"))

    while looker.count()[function] < 4:  # the query leaves from a thread of its own
        assert looker.count()[f"{function}-2"] == 0
    assert looker.count() == {function: 4, f"{function}-2": 0}


def test_one_server_that_is_not_there_is_an_error(
    server: Server, second_server: Server, consumer: MakeConsumer
) -> None:
    """Half of a number is none (T13)."""
    looker = consumer(servers=(server.address, second_server.address))
    second_server.kill()

    with pytest.raises(ConnectionFailedError):
        looker.count()


def test_a_server_that_cannot_count_says_so(consumer: MakeConsumer) -> None:
    """Where it is another than gearmand."""
    with socket.create_server(("127.0.0.1", 0)) as other:

        def talk() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"ERR unknown_command no\n")
                connection.recv(100)

        thread = threading.Thread(target=talk)
        thread.start()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(RejectedError, match=f"{address} does not say how many"):
            consumer(servers=(address,)).count()
        thread.join()


def test_looking_and_removing_are_refused(function: str, consumer: MakeConsumer) -> None:
    """The protocol has no words for them."""
    looker = consumer()
    for call in (looker.peek, looker.purge):
        with pytest.raises(UnsupportedError, match="GearmanConsumer cannot"):
            call(function)
    asyncio.run(looker.aclose())
