"""The keys that sections with the transports of this package may have beside postbus's own."""

from __future__ import annotations

import re
from typing import Any, Literal

import attrs

from postbus.settings import setting

__all__ = [
    "KombuConsumerSettings",
    "KombuProducerSettings",
    "RabbitMQConsumerSettings",
    "RabbitMQProducerSettings",
    "RedisConsumerSettings",
    "RedisProducerSettings",
]

URL = "amqp://guest:guest@127.0.0.1:5672//"
QUEUE = "postbus"
_NAME = r"(?!amq\.)[^\0\n{}]{1,200}"
_NAME_EXPECTED = "1 to 200 characters, not beginning with amq."
_TEMPLATE = r"(?!amq\.)([^\0\n{}]|\{name\}|\{kebab\}){1,200}"
_TEMPLATE_EXPECTED = f"{_NAME_EXPECTED} {{name}} or {{kebab}} may stand in it"
_LONGEST = 86_400.0
_TIMEOUT = 5.0
_HEARTBEAT = 30
_LONGEST_HEARTBEAT = 3600
_URL_DOC = "the broker, with user, password and virtual host: amqp://USER:PASSWORD@HOST:PORT/VHOST"
_TYPE_DOC = (
    "quorum keeps what it has when the broker is killed while it is busy; classic is faster to "
    "make, and has priorities"
)
_PRIORITY_DOC = (
    "of a classic queue: the number of priorities it is declared with, 9 at least, since messages "
    "have 0 to 9; larger is more urgent"
)
_ARGUMENTS_DOC = (
    "further arguments of the queue, as RabbitMQ calls them: x-max-length, x-overflow, "
    "x-dead-letter-exchange, ..."
)
_EXCHANGE_TYPE_DOC = "topic, direct or fanout"
_URL_PATTERN = r"amqp://[^\s]+"
_URL_EXPECTED = "amqp://USER:PASSWORD@HOST:PORT/VHOST"
_ARGUMENT = r"x-[a-z-]+"
_NO_NAME = rf"|{_NAME}"
REDIS_URL = "redis://127.0.0.1:6379/0"
_REDIS_URL_DOC = "the server, with password and database: redis://:PASSWORD@HOST:PORT/DATABASE"
_ANY_URL = r"(?!(amqps?|pyamqp|librabbitmq|rediss?|sentinel)(:|$))[a-zA-Z0-9+]+:[^\s]*"
_ANY_URL_EXPECTED = (
    "a URL of kombu's, such as memory:// or filesystem://; RabbitMQ and Redis have transports of "
    "their own, rabbitmq and redis"
)
_ANY_URL_DOC = "the broker, as kombu names it"
_OPTIONS_DOC = "handed to kombu as they are: see its page about the broker"
_DURABLE_DOC = (
    "true where the server keeps messages through a restart (appendonly yes); it is not asked"
)
_IO_DOC = "how long to wait for a connection and for each answer of the server"
_POLL_DOC = (
    "how long an idle consumer sleeps before it looks again; it is the longest wait of a message "
    "for an idle consumer"
)
_POLL_INTERVAL = 0.02
# Long against a handler, short against a person who waits for a killed worker's messages; the
# worker renews it for handlers that take longer.
_LEASE = 30.0
_CONNECT_DOC = "how long to wait for a connection"


@attrs.frozen(kw_only=True)
class RabbitMQProducerSettings:
    """The keys of a producer's section. Durations are seconds.

    Raises:
        ValueError: priorities on a quorum queue, which has none.
    """

    url: str = setting(
        URL, doc=_URL_DOC, pattern=_URL_PATTERN, expected=_URL_EXPECTED, secret=True
    )
    queue: str = setting(
        QUEUE,
        doc="the queue to send to; {name} in it is the name of the message, {kebab} its last part "
        "with hyphens, as Bernard guessed it. Declared on first use",
        pattern=_TEMPLATE,
        expected=_TEMPLATE_EXPECTED,
    )
    queue_type: Literal["quorum", "classic"] = setting("quorum", doc=_TYPE_DOC)
    max_priority: int | None = setting(None, doc=_PRIORITY_DOC, minimum=9, maximum=255)
    queue_arguments: dict[str, Any] = setting(  # noqa: RUF009  it makes a field
        attrs.Factory(dict), doc=_ARGUMENTS_DOC, names=_ARGUMENT
    )
    exchange: str = setting(
        "",
        doc="an exchange to send to in the place of a queue; declared on first use, while its "
        "queues are the consumers' business",
        pattern=_NO_NAME,
        expected=_NAME_EXPECTED,
    )
    exchange_type: Literal["topic", "direct", "fanout"] = setting("topic", doc=_EXCHANGE_TYPE_DOC)
    routing_key: str = setting(
        "{name}",
        doc="of messages to an exchange; {name} and {kebab} as above",
        pattern=_TEMPLATE,
        expected=_TEMPLATE_EXPECTED,
    )
    confirm_timeout: float = setting(
        _TIMEOUT,
        doc="how long to wait until the broker has a message, a broker that is blocked included",
        above=0.0,
        maximum=_LONGEST,
    )
    connect_timeout: float = setting(_TIMEOUT, doc=_CONNECT_DOC, above=0.0, maximum=_LONGEST)

    def __attrs_post_init__(self) -> None:
        _check_priorities(self.queue_type, self.max_priority)


@attrs.frozen(kw_only=True)
class RabbitMQConsumerSettings:
    """The keys of a consumer's section. Durations are seconds.

    Raises:
        ValueError: priorities on a quorum queue, or a queue that may not be called so.
    """

    url: str = setting(
        URL, doc=_URL_DOC, pattern=_URL_PATTERN, expected=_URL_EXPECTED, secret=True
    )
    queues: tuple[str, ...] = setting(
        (QUEUE,), doc="the queues to take from, in turn; declared when the consumer connects"
    )
    queue_type: Literal["quorum", "classic"] = setting("quorum", doc=_TYPE_DOC)
    max_priority: int | None = setting(None, doc=_PRIORITY_DOC, minimum=9, maximum=255)
    queue_arguments: dict[str, Any] = setting(  # noqa: RUF009  it makes a field
        attrs.Factory(dict), doc=_ARGUMENTS_DOC, names=_ARGUMENT
    )
    exchange: str = setting(
        "", doc="an exchange to bind the queues to", pattern=_NO_NAME, expected=_NAME_EXPECTED
    )
    exchange_type: Literal["topic", "direct", "fanout"] = setting("topic", doc=_EXCHANGE_TYPE_DOC)
    bindings: tuple[str, ...] = setting(
        ("#",), doc="the routing keys that the queues want of the exchange"
    )
    heartbeat: int = setting(
        _HEARTBEAT,
        doc="whole seconds; a broker that says nothing for twice as long is given up. 0: never",
        minimum=0,
        maximum=_LONGEST_HEARTBEAT,
    )
    io_timeout: float = setting(
        _TIMEOUT,
        doc="how long to wait for each answer of the broker",
        above=0.0,
        maximum=_LONGEST,
    )
    connect_timeout: float = setting(_TIMEOUT, doc=_CONNECT_DOC, above=0.0, maximum=_LONGEST)

    def __attrs_post_init__(self) -> None:
        _check_priorities(self.queue_type, self.max_priority)
        _check_queues(self.queues)


def _check_priorities(queue_type: str, max_priority: int | None) -> None:
    if max_priority is not None and queue_type != "classic":
        msg = 'expected queue_type = "classic" beside max_priority: quorum queues have none'
        raise ValueError(msg)


@attrs.frozen(kw_only=True)
class KombuProducerSettings:
    """The keys of a producer's section with the transport `kombu`. Durations are seconds."""

    url: str = setting(doc=_ANY_URL_DOC, pattern=_ANY_URL, expected=_ANY_URL_EXPECTED, secret=True)
    queue: str = setting(QUEUE, doc="the queue to send to", pattern=_NAME, expected=_NAME_EXPECTED)
    transport_options: dict[str, Any] = setting(attrs.Factory(dict), doc=_OPTIONS_DOC)  # noqa: RUF009  it makes a field


@attrs.frozen(kw_only=True)
class KombuConsumerSettings:
    """The keys of a consumer's section with the transport `kombu`. Durations are seconds.

    Raises:
        ValueError: a queue that may not be called so.
    """

    url: str = setting(doc=_ANY_URL_DOC, pattern=_ANY_URL, expected=_ANY_URL_EXPECTED, secret=True)
    queues: tuple[str, ...] = setting((QUEUE,), doc="the queues to take from, in turn")
    transport_options: dict[str, Any] = setting(attrs.Factory(dict), doc=_OPTIONS_DOC)  # noqa: RUF009  it makes a field
    poll_interval: float = setting(_POLL_INTERVAL, doc=_POLL_DOC, above=0.0, maximum=60.0)

    def __attrs_post_init__(self) -> None:
        _check_queues(self.queues)


@attrs.frozen(kw_only=True)
class RedisProducerSettings:
    """The keys of a producer's section with the transport `redis`. Durations are seconds."""

    url: str = setting(
        REDIS_URL,
        doc=_REDIS_URL_DOC,
        pattern=r"redis://[^\s]*",
        expected="redis://...",
        secret=True,
    )
    queue: str = setting(QUEUE, doc="the queue to send to", pattern=_NAME, expected=_NAME_EXPECTED)
    durable: bool = setting(default=False, doc=_DURABLE_DOC)
    io_timeout: float = setting(_TIMEOUT, doc=_IO_DOC, above=0.0, maximum=_LONGEST)
    transport_options: dict[str, Any] = setting(attrs.Factory(dict), doc=_OPTIONS_DOC)  # noqa: RUF009  it makes a field


@attrs.frozen(kw_only=True)
class RedisConsumerSettings:
    """The keys of a consumer's section with the transport `redis`. Durations are seconds.

    Raises:
        ValueError: a queue that may not be called so.
    """

    url: str = setting(
        REDIS_URL,
        doc=_REDIS_URL_DOC,
        pattern=r"redis://[^\s]*",
        expected="redis://...",
        secret=True,
    )
    queues: tuple[str, ...] = setting((QUEUE,), doc="the queues to take from, in turn")
    lease: float = setting(
        _LEASE,
        doc="how long a consumer may hold a message before others get it: the wait after a "
        "crash; equal for all consumers of a database, since each puts back what others left",
        above=0.0,
        maximum=_LONGEST,
    )
    durable: bool = setting(default=False, doc=_DURABLE_DOC)
    io_timeout: float = setting(_TIMEOUT, doc=_IO_DOC, above=0.0, maximum=_LONGEST)
    poll_interval: float = setting(_POLL_INTERVAL, doc=_POLL_DOC, above=0.0, maximum=60.0)
    transport_options: dict[str, Any] = setting(attrs.Factory(dict), doc=_OPTIONS_DOC)  # noqa: RUF009  it makes a field

    def __attrs_post_init__(self) -> None:
        _check_queues(self.queues)


def _check_queues(queues: tuple[str, ...]) -> None:
    if not queues or not all(re.fullmatch(_NAME, queue) for queue in queues):
        msg = f"expected at least one queue, each {_NAME_EXPECTED}"
        raise ValueError(msg)
