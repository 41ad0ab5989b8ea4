"""The seam to the brokers that kombu gives AMQP's shape to: Redis, and its simple ones.

Queues are used by name alone, without exchanges, so that a message costs no look-up of bindings.
"""

from __future__ import annotations

import importlib
import json
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import attrs

from postbus.errors import ConnectionFailedError, RejectedError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from postbus.transports import Capabilities, WireMessage

__all__ = ["Broker", "check", "connection_options", "scheme_of"]

# Its types are partial.
kombu: Any = importlib.import_module("kombu")

_LAST_PRIORITY = 9
# How many abandoned messages one sweep puts back.
_SWEEP = 1000
_SWEEP_SECONDS = 2
# Messages in one round trip to Redis.
_WINDOW = 100


# What kombu does for one message, for several at once: the item goes into the hash of what is held
# together with its exchange and key, and its tag into the index, by the time of taking.
_TAKE = """
local taken = {}
for step = 3, #KEYS do
  while #taken < tonumber(ARGV[2]) do
    local item = redis.call('RPOP', KEYS[step])
    if not item then break end
    local tag = cjson.decode(item)['properties']['delivery_tag']
    redis.call('ZADD', KEYS[1], ARGV[3], tag)
    redis.call('HSET', KEYS[2], tag, '[' .. item .. ', "", ' .. cjson.encode(ARGV[1]) .. ']')
    taken[#taken + 1] = item
  end
end
return taken
"""


def scheme_of(url: str) -> str:
    """Return what stands before the first colon of a URL of kombu's."""
    return url.partition(":")[0]


def connection_options(settings: Any) -> dict[str, Any]:
    """Return the transport options that *settings* come to."""
    options: dict[str, Any] = {**settings.transport_options}
    if scheme_of(settings.url) == "redis":
        options.setdefault("socket_timeout", settings.io_timeout)
        options.setdefault("socket_connect_timeout", settings.io_timeout)
        options["visibility_timeout"] = getattr(settings, "lease", 0.0)
        # kombu's 300 s are what all would wait when somebody is killed while sweeping.
        options.setdefault("unacked_mutex_expire", _SWEEP_SECONDS)
    return options


def check(message: WireMessage, capabilities: Capabilities) -> None:
    """Refuse what a broker with *capabilities* cannot do for *message*.

    Raises:
        RejectedError: the body is too large, or the priority is none.
        UnsupportedError: it has no delays, expiry or priorities.
    """
    about, limit = f"{message.name} {message.id}", capabilities.max_size_bytes
    if limit is not None and len(message.body) > limit:
        raise RejectedError(
            f"{about}: the body has {len(message.body)} bytes, at most {limit} are configured "
            "(`max_size_bytes`)"
        )
    if message.delay or message.expires_at is not None:
        raise UnsupportedError(f"{about}: this broker has neither delays nor expiry")
    if message.priority is not None:
        if not capabilities.priority:
            raise UnsupportedError(f"{about}: this broker has no priorities")
        if not 0 <= message.priority <= _LAST_PRIORITY:
            raise RejectedError(
                f"{about}: priority must be 0 to {_LAST_PRIORITY}, got {message.priority}"
            )


@attrs.define(eq=False)
class Broker:
    """A connection and a channel of it, made when first used. One thread at a time."""

    url: str = attrs.field(repr=False)
    options: Mapping[str, Any] = attrs.field(repr=False)
    _transport: Any = attrs.field(init=False, default=None, repr=False)
    _connection: Any = attrs.field(init=False, default=None, repr=False)
    _channel: Any = attrs.field(init=False, default=None, repr=False)

    @property
    def place(self) -> str:
        """The kind of broker and its host, for people; no user and no password."""
        connection = kombu.Connection(self.url)
        return f"{scheme_of(self.url)}:{connection.hostname or ''}"

    @contextmanager
    def channel(self, doing: str) -> Generator[Any, None, None]:
        """Lend the channel. *doing* completes "could not ...".

        Raises:
            ConnectionFailedError: in the place of what kombu and its clients raise.
        """
        client = kombu.Connection(self.url, transport_options=dict(self.options))
        errors: tuple[type[Exception], ...] = (
            *client.connection_errors,
            *client.channel_errors,
            kombu.exceptions.KombuError,
            OSError,
        )
        try:
            if self._channel is None:
                self._transport = client.transport
                # Not `Connection.connect`: it tries again and waits in between.
                self._connection = self._transport.establish_connection()
                self._channel = self._transport.create_channel(self._connection)
            yield self._channel
        except errors as error:
            self.close()
            text = f"could not {doing} ({self.place}): {type(error).__name__}"
            raise ConnectionFailedError(text) from error

    @property
    def window(self) -> int:
        """How many messages go in one round trip."""
        return _WINDOW if scheme_of(self.url) == "redis" else 1

    def put_many(self, channel: Any, queue: str, messages: Sequence[WireMessage]) -> None:
        """Add *messages*, at most a window of them, to *queue*."""
        if self.window == 1:
            for message in messages:
                channel.basic_publish(_content(channel, message), exchange="", routing_key=queue)
            return
        batch = channel.create_publish_batch(self.window + 1)
        try:
            for message in messages:
                batch.publish(_content(channel, message), exchange="", routing_key=queue)
            batch.flush()
        finally:
            batch.close()

    def take(self, channel: Any, queue: str, count: int) -> list[Any]:
        """Take at most *count* messages of *queue* and hold them, in one step. Redis only.

        Not `basic_get`, which takes a message and notes in a second step that we hold it: a
        process that is killed in between would lose it.
        """
        lists = [channel._q_for_pri(queue, step) for step in channel.priority_steps]  # noqa: SLF001  its names of lists
        keys = [channel.unacked_index_key, channel.unacked_key, *lists]
        with channel.conn_or_acquire() as client:
            items = client.eval(_TAKE, len(keys), *keys, queue, count, repr(time.time()))
        return [channel.Message(json.loads(item), channel=channel) for item in items]

    def sweep(self, channel: Any) -> None:
        """Put back what somebody held longer than its lease. Redis only."""
        channel.qos.restore_visible(num=_SWEEP, interval=1)

    def extend(self, channel: Any, tag: str, seconds: float) -> None:
        """Have *tag* swept not before *seconds* from now. Redis only."""
        until = time.time() + seconds - channel.visibility_timeout
        with channel.conn_or_acquire() as client:
            client.zadd(channel.unacked_index_key, {tag: until}, xx=True)

    def close(self) -> None:
        """Disconnect. Idempotent; raises nothing."""
        transport, connection = self._transport, self._connection
        self._transport = self._connection = self._channel = None
        if transport is not None:
            # It is broken already, whatever kombu says.
            with suppress(Exception):
                transport.close_connection(connection)


def _content(channel: Any, message: WireMessage) -> Any:
    """Return *message* as kombu has it. Smaller priorities are more urgent there."""
    priority = _LAST_PRIORITY - (message.priority or 0)
    properties = {
        "message_id": message.id,
        "type": message.name,
        "delivery_mode": 2,
        "priority": priority,
    }
    return channel.prepare_message(
        message.body,
        priority=priority,
        content_type="application/json",
        content_encoding="binary",
        headers=dict(message.headers),
        properties=properties,
    )
