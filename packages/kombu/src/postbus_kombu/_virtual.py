"""The seam to the brokers that kombu gives AMQP's shape to.

Queues are used by name alone, without exchanges, so that a message costs no look-up of bindings.
"""

from __future__ import annotations

import base64
import importlib
import json
import ssl
from abc import ABC, abstractmethod
from contextlib import contextmanager, suppress
from enum import StrEnum
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, ClassVar, Self
from urllib.parse import urlsplit
from uuid import uuid4

import attrs

from postbus.errors import ConnectionFailedError
from postbus_kombu._properties import reply_type

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from postbus.transports import Capabilities, Reply, WireMessage

__all__ = [
    "Broker",
    "Change",
    "LeasingBroker",
    "Taken",
    "is_tried",
    "kombu_content",
    "kombu_item",
    "kombu_priority",
    "opened",
    "scheme_of",
]

# Its types are partial.
kombu: Any = importlib.import_module("kombu")

_LAST_PRIORITY = 9
# Of queues that are made at SQS.
_VISIBILITY_SECONDS = 30
_TRIED = frozenset({"filesystem", "memory", "sqla", "sqlalchemy"})


@attrs.frozen
class Taken:
    """A message that was taken: of its properties those that matter beside its body.

    The *tag* is what the broker knows it by while it is held.
    """

    body: bytes
    headers: Mapping[str, str]
    properties: Mapping[str, Any]
    tag: str = ""
    redelivered: bool = False


def scheme_of(url: str) -> str:
    """Return what stands before the first colon of a URL of kombu's."""
    return url.partition(":")[0]


def _tls(settings: Any) -> dict[str, Any] | None:
    """Return what redis-py makes a context of that checks the certificate and its name."""
    if scheme_of(settings.url) != "rediss":
        return None
    return {
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
        "ssl_ca_certs": settings.ca_file,
        "ssl_certfile": settings.certificate_file,
        "ssl_keyfile": settings.key_file,
        "ssl_min_version": ssl.TLSVersion.TLSv1_2,
    }


def _options(settings: Any) -> dict[str, Any]:
    options: dict[str, Any] = {**settings.transport_options}
    scheme = scheme_of(settings.url)
    if scheme in {"redis", "rediss"}:
        options.setdefault("socket_timeout", settings.io_timeout)
        options.setdefault("socket_connect_timeout", settings.io_timeout)
    elif scheme == "sqs":
        limits = {"connect_timeout": settings.io_timeout, "read_timeout": settings.io_timeout}
        options.setdefault("client-config", {**limits, "retries": {"total_max_attempts": 1}})
        # Of a host in the URL; else kombu would speak to it without TLS.
        options.setdefault("is_secure", True)
        options.setdefault("region", settings.region)
        # Equal for all, whoever makes a queue: a consumer says for each message how long it holds.
        options.setdefault("visibility_timeout", _VISIBILITY_SECONDS)
    return options


def is_tried(url: str) -> bool:
    """Return whether the broker of *url* was tried, so that more can be said of it."""
    return scheme_of(url).partition("+")[0] in _TRIED


class Change(StrEnum):
    """What can be done about a message that is held."""

    REMOVE = "remove"
    PUT_BACK = "put-back"
    REPLACE = "replace"
    EXTEND = "extend"


@attrs.define(eq=False)
class Broker:
    """A connection and a channel of it, made when first used. One thread at a time."""

    url: str = attrs.field(repr=False)
    options: Mapping[str, Any] = attrs.field(repr=False)
    tls: Mapping[str, Any] | None = None
    #: How many messages go in one round trip.
    window: ClassVar[int] = 1
    #: Whether errors of its client say why, and no password: the reason is all where TLS fails.
    tells_why: ClassVar[bool] = False
    _transport: Any = attrs.field(init=False, default=None, repr=False)
    _connection: Any = attrs.field(init=False, default=None, repr=False)
    _channel: Any = attrs.field(init=False, default=None, repr=False)

    @classmethod
    def of(cls, settings: Any) -> Self:
        """Return the broker that a producer's or consumer's settings name."""
        return cls(settings.url, _options(settings), _tls(settings))

    def _client(self) -> Any:
        tls = False if self.tls is None else dict(self.tls)
        return kombu.Connection(self.url, ssl=tls, transport_options=dict(self.options))

    @property
    def place(self) -> str:
        """The kind of broker and its host, for people; no user and no password."""
        host = self._client().hostname or ""
        if "://" in host:
            # Where kombu hands on a whole URL, which may have a password in it.
            parts = urlsplit(host)
            host = parts.hostname or parts.path
        return f"{scheme_of(self.url)}:{host}"

    def errors(self, client: Any) -> tuple[type[Exception], ...]:
        """Return what a connection of *client*, one of kombu's, may raise."""
        known = (*client.connection_errors, *client.channel_errors)
        if scheme_of(self.url).startswith("sql"):
            # kombu names but one of them.
            known += (importlib.import_module("sqlalchemy.exc").SQLAlchemyError,)
        return (*known, kombu.exceptions.KombuError, OSError)

    def check(self, message: WireMessage, capabilities: Capabilities) -> None:
        """Refuse what a broker with *capabilities* cannot do for *message*.

        Raises:
            RejectedError: the body is too large, or the priority is none.
            UnsupportedError: it lacks what *message* asks for.
        """
        refusal = capabilities.refusal(message, "this broker")
        if refusal is not None:
            raise refusal

    @contextmanager
    def channel(self, doing: str) -> Generator[Any, None, None]:
        """Lend the channel. *doing* completes "could not ...".

        Raises:
            ConnectionFailedError: in the place of what kombu and its clients raise.
        """
        client = self._client()
        try:
            if self._channel is None:
                self._transport = client.transport
                # Not `Connection.connect`: it tries again and waits in between.
                self._connection = self._transport.establish_connection()
                self._channel = self._transport.create_channel(self._connection)
            yield self._channel
        except ImportError as error:
            # What an extra of this package brings, or the driver of a database.
            raise ConnectionFailedError(f"could not {doing} ({self.place}): {error}") from error
        except self.errors(client) as error:
            self.close()
            text = f"could not {doing} ({self.place}): {type(error).__name__}"
            if self.tells_why:
                text += f": {error}"
            raise ConnectionFailedError(text) from error

    def put_many(
        self,
        channel: Any,
        queue: str,
        messages: Sequence[WireMessage],
        replies: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Add *messages*, at most a window of them, to *queue*.

        *replies* has the queue and the id of each one's answer, where they are queries.
        """
        for message, reply in zip_longest(messages, replies):
            content = _content(channel, message, reply)
            channel.basic_publish(content, exchange="", routing_key=queue)

    def take(self, channel: Any, queue: str, count: int) -> list[Taken]:
        """Take at most *count* messages of *queue*."""
        message = channel.basic_get(queue, no_ack=True)
        if message is None:
            return []
        body: Any = message.body
        headers: dict[str, Any] = message.headers or {}
        return [
            Taken(
                body if isinstance(body, bytes) else str(body).encode(),
                {key: value for key, value in headers.items() if isinstance(value, str)},
                message.properties,
            )
        ]

    def answer(self, channel: Any, to: tuple[str, str], reply: Reply) -> None:
        """Add an answer to the queue of who asked. Nobody may be there any more."""
        queue, correlation_id = to
        properties = {"correlation_id": correlation_id, "type": reply_type(reply)}
        content = channel.prepare_message(
            reply.body,
            content_type="application/json",
            content_encoding="binary",
            properties=properties,
        )
        channel.basic_publish(content, exchange="", routing_key=queue)

    def answers(self, channel: Any, queue: str) -> list[Taken]:
        """Take some of the answers in *queue*; it may wait a moment for the first."""
        return self.take(channel, queue, 1)

    def interrupt(self, channel: Any, queue: str) -> None:
        """End such a wait."""

    def count(self, channel: Any, queue: str) -> int:
        """Return how many messages wait in *queue*."""
        return int(channel._size(queue))  # noqa: SLF001  its public one wants the queue declared

    def purge(self, channel: Any, queue: str) -> int:
        """Remove what waits in *queue*; return how many messages that were."""
        return int(channel._purge(queue))  # noqa: SLF001  as above

    def close(self) -> None:
        """Disconnect. Idempotent; raises nothing."""
        transport, connection = self._transport, self._connection
        self._transport = self._connection = self._channel = None
        if transport is not None:
            # It is broken already, whatever kombu says.
            with suppress(Exception):
                transport.close_connection(connection)


class LeasingBroker(Broker, ABC):
    """One that keeps what a consumer holds, until it is settled or its lease runs out."""

    @abstractmethod
    def hold(self, channel: Any, queue: str, count: int, seconds: float) -> list[Taken]:
        """Take at most *count* messages of *queue* and hold them for *seconds*, in one step."""

    @abstractmethod
    def change(
        self, channel: Any, queue: str, changes: Sequence[tuple[Change, str, Any]]
    ) -> list[bool]:
        """Carry out *changes*, in order: what, the tag, and its argument.

        The argument is the new message and where its answer goes, or the seconds from now in
        which the lease shall end. Returns for each whether the message was still held: if not,
        nothing was done.
        """

    def sweep(self, channel: Any, queue: str) -> None:
        """Put back what somebody held longer than its lease, where the broker does not."""


def kombu_priority(message: WireMessage) -> int:
    """Return the priority as kombu has it: smaller is more urgent there."""
    return _LAST_PRIORITY - (message.priority or 0)


def _properties(message: WireMessage, reply: tuple[str, str] | None) -> dict[str, Any]:
    properties = {
        "message_id": message.id,
        "type": message.name,
        "delivery_mode": 2,
        "priority": kombu_priority(message),
    }
    if reply is not None:
        properties["reply_to"], properties["correlation_id"] = reply
    return properties


def _content(channel: Any, message: WireMessage, reply: tuple[str, str] | None) -> Any:
    """Return *message* as kombu has it."""
    return channel.prepare_message(
        message.body,
        priority=kombu_priority(message),
        content_type="application/json",
        content_encoding="binary",
        headers=dict(message.headers),
        properties=_properties(message, reply),
    )


def kombu_content(
    queue: str, message: WireMessage, reply: tuple[str, str] | None = None
) -> dict[str, Any]:
    """Return *message* as kombu writes it, without kombu: many at once."""
    return kombu_item(queue, message.body, message.headers, _properties(message, reply))


def kombu_item(
    queue: str, body: bytes, headers: Mapping[str, str], properties: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a body, and what stands beside it, as kombu writes them."""
    return {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "binary",
        "content-type": "application/json",
        "headers": dict(headers),
        "properties": {
            **properties,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "delivery_tag": str(uuid4()),
            "body_encoding": "base64",
        },
    }


def opened(item: bytes) -> tuple[bytes, Mapping[str, str], Mapping[str, Any]]:
    """Return body, headers and properties of an item of kombu's; any other is a body by itself."""
    try:
        content = json.loads(item)
        body, properties = content["body"], content["properties"]
        headers: dict[str, Any] = content["headers"] or {}
        if properties.get("body_encoding") == "base64":
            inner: bytes = base64.b64decode(body, validate=True)
        else:
            inner = body.encode()
        texts = {key: value for key, value in headers.items() if isinstance(value, str)}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return item, {}, {}
    else:
        return inner, texts, properties
