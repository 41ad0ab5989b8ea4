"""The record of the transport, its errors, and what importing it does."""

from __future__ import annotations

import inspect
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import httpcore
import pytest

import postbus_http
from postbus.discovery import find_transport
from postbus.errors import RejectedError
from postbus.settings import keys_of
from postbus.transports import CommonSettings
from postbus_http import (
    HTTP,
    HTTPConsumer,
    HTTPConsumerSettings,
    HTTPProducer,
    HTTPProducerSettings,
    StatusError,
)
from postbus_http._client import BY_CLASS, translate
from postbus_http._streams import AsyncStream, Clock, Stream

COMMON = CommonSettings(name="remote", max_size_bytes=2000)
RAISED_BY_HTTPCORE = [
    each
    for _, each in inspect.getmembers(httpcore, inspect.isclass)
    if issubclass(each, Exception)
]


class TestTransport:
    def test_is_found_by_its_name(self) -> None:
        """The entry point leads to it."""
        assert find_transport("http", "producers.remote.transport") is HTTP

    def test_builds_a_producer_and_a_consumer(self) -> None:
        """With capabilities that are those it tells of before."""
        sending, receiving = (
            HTTPProducerSettings(url="https://example.org/"),
            HTTPConsumerSettings(),
        )
        producer = HTTP.make_producer(sending, COMMON)
        consumer = HTTP.make_consumer(receiving, COMMON)
        assert isinstance(producer, HTTPProducer)
        assert isinstance(consumer, HTTPConsumer)
        assert HTTP.capabilities(sending, COMMON) == producer.capabilities
        assert HTTP.capabilities(receiving, COMMON) == consumer.capabilities
        producer.close()

    @pytest.mark.parametrize("cls", [HTTPProducerSettings, HTTPConsumerSettings])
    def test_every_key_says_what_it_does(self, cls: type) -> None:
        """The reference page is made of that."""
        assert all(len(key.rule.doc) > 20 for key in keys_of(cls))
        assert len(keys_of(cls)) == len(attrs.fields(cls))


class TestErrors:
    @pytest.mark.parametrize("kind", RAISED_BY_HTTPCORE)
    def test_knows_every_error_of_httpcore(self, kind: type[Exception]) -> None:
        """Nothing that it raises leaves this package as it is: each class has its own entry."""
        assert kind in BY_CLASS

    def test_says_what_was_tried_and_why_it_failed(self) -> None:
        """Also where the library says nothing."""
        error = translate(httpcore.ConnectError("refused"), "post to https://example.org")
        assert str(error) == "cannot post to https://example.org: refused"
        assert "ReadTimeout" in str(translate(httpcore.ReadTimeout(), "post"))

    def test_a_status_error_can_be_pickled(self) -> None:
        """As every error of postbus; with all that it says."""
        assert issubclass(StatusError, RejectedError)
        error = pickle.loads(pickle.dumps(StatusError("text", None, 503, "closed")))  # noqa: S301  made here
        assert isinstance(error, StatusError)
        assert (str(error), error.status, error.excerpt) == ("text", 503, "closed")


class TestStream:
    def test_does_nothing_once_the_time_is_over(self) -> None:
        """Not even what would be done at once."""
        clock = Clock()
        clock.deadline = time.monotonic()
        stream = Stream(httpcore.MockStream([b"here"]), clock)
        with pytest.raises(httpcore.ReadTimeout):
            stream.read(10)
        clock.deadline += 60
        assert stream.read(10) == b"here"

    def test_knows_that_the_other_side_has_said_all(self) -> None:
        """Whatever the socket looks like: with TLS it may still be open."""
        clock = Clock()
        clock.deadline = time.monotonic() + 60
        stream = Stream(httpcore.MockStream([b"last"]), clock)
        seen = [(stream.read(10), bool(stream.get_extra_info("is_readable"))) for _ in range(2)]
        assert seen == [(b"last", False), (b"", True)]

    def test_reads_what_is_said_before_the_end(self, run: Callable[[Awaitable[Any]], Any]) -> None:
        """A server may refuse and be gone while we still write; both ways."""

        class Broken(httpcore.MockStream):
            def write(self, buffer: bytes, timeout: float | None = None) -> None:
                raise httpcore.WriteError

        clock = Clock()
        clock.deadline = time.monotonic() + 60
        stream = Stream(Broken([b"refused"]), clock)
        stream.write(b"request")
        assert stream.read(10) == b"refused"

        async def read() -> bytes:
            ours, theirs = socket.socketpair()
            ours.settimeout(0)
            theirs.sendall(b"refused")
            theirs.close()
            made = AsyncStream(ours)
            await made.write(b"request")
            found = await made.read(10)
            await made.aclose()
            return found

        assert run(read()) == b"refused"


class TestImport:
    def test_leaves_dependency_injector_and_the_server_alone(self) -> None:
        """Containers and uvicorn are imported when somebody asks for them, not before."""
        code = (
            "import sys, postbus_http; assert 'dependency_injector' not in sys.modules; "
            "assert 'uvicorn' not in sys.modules; "
            "assert 'HTTPContainer' in postbus_http.__all__"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

    def test_has_the_container_and_no_other_name(self) -> None:
        """By a lazy attribute of the module."""
        assert postbus_http.HTTPContainer.transport is HTTP
        with pytest.raises(AttributeError, match="has no attribute 'other'"):
            postbus_http.other  # noqa: B018  the access is the test
