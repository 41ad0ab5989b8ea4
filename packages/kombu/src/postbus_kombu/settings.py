"""The keys that sections with the transports of this package may have beside postbus's own."""

# ruff: noqa: RUF009  a field is made by a call; attrs reads what it returns

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
    "RabbitMQSettings",
    "RedisConsumerSettings",
    "RedisProducerSettings",
    "SQSConsumerSettings",
    "SQSProducerSettings",
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
_URL_DOC = (
    "the broker, with user, password and virtual host: amqp://USER:PASSWORD@HOST:PORT/VHOST; "
    "amqps for TLS, which always checks the certificate and the host's name in it"
)
_TYPE_DOC = (
    "quorum keeps what it has when the broker is killed while it is busy; classic is faster to "
    "make, and has priorities"
)
_PRIORITY_DOC = (
    "of a classic queue: the number of priorities it is declared with, 9 at least, since messages "
    "have 0 to 9; larger is more urgent"
)
_ARGUMENTS_DOC = (
    "further arguments of the queue, as RabbitMQ calls them: x-delivery-limit, "
    "x-single-active-consumer, ..."
)
_OVERFLOW_DOC = (
    "what a full queue does: reject-publish has the send raise; drop-head, which is RabbitMQ's "
    "choice where nothing is said, lets the oldest message go"
)
# What keys of the section are to RabbitMQ.
_KEY_ARGUMENTS = {
    "queue_type": "x-queue-type",
    "max_priority": "x-max-priority",
    "max_length": "x-max-length",
    "max_length_bytes": "x-max-length-bytes",
    "overflow": "x-overflow",
    "dead_letter_exchange": "x-dead-letter-exchange",
    "dead_letter_queue": "x-dead-letter-routing-key",
}
_EXCHANGE_TYPE_DOC = "topic, direct or fanout"
_URL_PATTERN = r"amqps?://[^\s?]+"
_URL_EXPECTED = "amqp:// or amqps://USER:PASSWORD@HOST:PORT/VHOST"
_ARGUMENT = r"x-[a-z-]+"
_NO_NAME = rf"|{_NAME}"
REDIS_URL = "redis://127.0.0.1:6379/0"
_REDIS_URL_DOC = (
    "the server, with password and database: redis://:PASSWORD@HOST:PORT/DATABASE; rediss for "
    "TLS, which always checks the certificate and the host's name in it"
)
_REDIS_URL_PATTERN = r"rediss?://[^\s?]*"
_REDIS_URL_EXPECTED = "redis:// or rediss://:PASSWORD@HOST:PORT/DATABASE"
_ANY_URL = r"(?!(amqps?|pyamqp|librabbitmq|rediss?|sentinel|sqs)(:|$))[a-zA-Z0-9+]+:[^\s]*"
_ANY_URL_EXPECTED = (
    "a URL of kombu's, such as memory:// or filesystem://; RabbitMQ, Redis and SQS have "
    "transports of their own, rabbitmq, redis and sqs"
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
_SQS_NAME = r"[A-Za-z0-9_-]{1,80}"
_SQS_NAME_EXPECTED = "1 to 80 letters, digits, - and _"
_CONNECT_DOC = "how long to wait for a connection"


def _ca_file() -> Any:
    doc = "the authorities that may vouch for the server, as PEM, in place of the system's"
    return setting(None, doc=doc)


def _certificate_file() -> Any:
    doc = "the certificate to show to the server, as PEM, with its key or `key_file`"
    return setting(None, doc=doc)


def _sqs_url() -> Any:
    return setting(
        "sqs://",
        doc="sqs://KEY:SECRET@, or without them where the usual places of AWS have them; with "
        "@HOST:PORT another server that speaks as SQS does",
        pattern=r"sqs://[^\s?]*",
        expected="sqs:// or sqs://KEY:SECRET@HOST:PORT",
        secret=True,
    )


def _region() -> Any:
    return setting(None, doc="of AWS, such as eu-west-1; left out: from where AWS is configured")


def _key_file() -> Any:
    return setting(None, doc="the key of `certificate_file`")


@attrs.frozen(kw_only=True)
class RabbitMQSettings:
    """What the sections of both sides have, and for one queue have to agree about.

    Raises:
        ValueError: keys that contradict each other.
    """

    url: str = setting(
        URL, doc=_URL_DOC, pattern=_URL_PATTERN, expected=_URL_EXPECTED, secret=True
    )
    queue_type: Literal["quorum", "classic"] = setting("quorum", doc=_TYPE_DOC)
    max_priority: int | None = setting(None, doc=_PRIORITY_DOC, minimum=9, maximum=255)
    max_length: int | None = setting(None, doc="how many messages a queue holds", minimum=1)
    max_length_bytes: int | None = setting(
        None, doc="how many bytes of bodies a queue holds", minimum=1
    )
    overflow: Literal["reject-publish", "drop-head"] | None = setting(None, doc=_OVERFLOW_DOC)
    dead_letter_exchange: str = setting(
        "",
        doc="a topic exchange, declared with the queue, for what runs out, is dropped or was "
        "given back too often",
        pattern=_NO_NAME,
        expected=_NAME_EXPECTED,
    )
    dead_letter_queue: str = setting(
        "",
        doc="the queue for such messages, declared with the queue; bound to "
        "dead_letter_exchange where there is one",
        pattern=_NO_NAME,
        expected=_NAME_EXPECTED,
    )
    queue_arguments: dict[str, Any] = setting(
        attrs.Factory(dict), doc=_ARGUMENTS_DOC, names=_ARGUMENT
    )
    exchange_type: Literal["topic", "direct", "fanout"] = setting("topic", doc=_EXCHANGE_TYPE_DOC)
    connect_timeout: float = setting(_TIMEOUT, doc=_CONNECT_DOC, above=0.0, maximum=_LONGEST)
    ca_file: str | None = _ca_file()
    certificate_file: str | None = _certificate_file()
    key_file: str | None = _key_file()

    def __attrs_post_init__(self) -> None:
        _check_tls(self)
        if self.max_priority is not None and self.queue_type != "classic":
            msg = 'expected queue_type = "classic" beside max_priority: quorum queues have none'
            raise ValueError(msg)
        for key, argument in _KEY_ARGUMENTS.items():
            if getattr(self, key) and argument in self.queue_arguments:
                msg = f"expected no {argument} in queue_arguments beside {key}"
                raise ValueError(msg)


@attrs.frozen(kw_only=True)
class RabbitMQProducerSettings(RabbitMQSettings):
    """The keys of a producer's section. Durations are seconds.

    Raises:
        ValueError: keys that contradict each other.
    """

    queue: str = setting(
        QUEUE,
        doc="the queue to send to; {name} in it is the name of the message, {kebab} its last part "
        "with hyphens, as Bernard guessed it. Declared on first use",
        pattern=_TEMPLATE,
        expected=_TEMPLATE_EXPECTED,
    )
    exchange: str = setting(
        "",
        doc="an exchange to send to in the place of a queue; declared on first use, while its "
        "queues are the consumers' business",
        pattern=_NO_NAME,
        expected=_NAME_EXPECTED,
    )
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


@attrs.frozen(kw_only=True)
class RabbitMQConsumerSettings(RabbitMQSettings):
    """The keys of a consumer's section. Durations are seconds.

    Raises:
        ValueError: keys that contradict each other, or a queue that may not be called so.
    """

    queues: tuple[str, ...] = setting(
        (QUEUE,), doc="the queues to take from, in turn; declared when the consumer connects"
    )
    exchange: str = setting(
        "", doc="an exchange to bind the queues to", pattern=_NO_NAME, expected=_NAME_EXPECTED
    )
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

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        _check_queues(self.queues)


def _check_tls(settings: Any) -> None:
    files = (settings.ca_file, settings.certificate_file, settings.key_file)
    if any(files) and not settings.url.startswith(("amqps:", "rediss:")):
        msg = "expected a url of amqps or rediss beside ca_file, certificate_file and key_file"
        raise ValueError(msg)
    if settings.key_file is not None and settings.certificate_file is None:
        msg = "expected certificate_file beside key_file"
        raise ValueError(msg)


@attrs.frozen(kw_only=True)
class KombuProducerSettings:
    """The keys of a producer's section with the transport `kombu`. Durations are seconds."""

    url: str = setting(doc=_ANY_URL_DOC, pattern=_ANY_URL, expected=_ANY_URL_EXPECTED, secret=True)
    queue: str = setting(QUEUE, doc="the queue to send to", pattern=_NAME, expected=_NAME_EXPECTED)
    transport_options: dict[str, Any] = setting(attrs.Factory(dict), doc=_OPTIONS_DOC)


@attrs.frozen(kw_only=True)
class KombuConsumerSettings:
    """The keys of a consumer's section with the transport `kombu`. Durations are seconds.

    Raises:
        ValueError: a queue that may not be called so.
    """

    url: str = setting(doc=_ANY_URL_DOC, pattern=_ANY_URL, expected=_ANY_URL_EXPECTED, secret=True)
    queues: tuple[str, ...] = setting((QUEUE,), doc="the queues to take from, in turn")
    transport_options: dict[str, Any] = setting(attrs.Factory(dict), doc=_OPTIONS_DOC)
    poll_interval: float = setting(_POLL_INTERVAL, doc=_POLL_DOC, above=0.0, maximum=60.0)

    def __attrs_post_init__(self) -> None:
        _check_queues(self.queues)


@attrs.frozen(kw_only=True)
class RedisProducerSettings:
    """The keys of a producer's section with the transport `redis`. Durations are seconds.

    Raises:
        ValueError: files for TLS without it.
    """

    url: str = setting(
        REDIS_URL,
        doc=_REDIS_URL_DOC,
        pattern=_REDIS_URL_PATTERN,
        expected=_REDIS_URL_EXPECTED,
        secret=True,
    )
    queue: str = setting(QUEUE, doc="the queue to send to", pattern=_NAME, expected=_NAME_EXPECTED)
    durable: bool = setting(default=False, doc=_DURABLE_DOC)
    io_timeout: float = setting(_TIMEOUT, doc=_IO_DOC, above=0.0, maximum=_LONGEST)
    transport_options: dict[str, Any] = setting(attrs.Factory(dict), doc=_OPTIONS_DOC)
    ca_file: str | None = _ca_file()
    certificate_file: str | None = _certificate_file()
    key_file: str | None = _key_file()

    def __attrs_post_init__(self) -> None:
        _check_tls(self)


@attrs.frozen(kw_only=True)
class RedisConsumerSettings:
    """The keys of a consumer's section with the transport `redis`. Durations are seconds.

    Raises:
        ValueError: a queue that may not be called so, or files for TLS without it.
    """

    url: str = setting(
        REDIS_URL,
        doc=_REDIS_URL_DOC,
        pattern=_REDIS_URL_PATTERN,
        expected=_REDIS_URL_EXPECTED,
        secret=True,
    )
    queues: tuple[str, ...] = setting((QUEUE,), doc="the queues to take from, in turn")
    lease: float = setting(
        _LEASE,
        doc="how long a consumer may hold a message before others get it: the wait after a crash",
        above=0.0,
        maximum=_LONGEST,
    )
    durable: bool = setting(default=False, doc=_DURABLE_DOC)
    io_timeout: float = setting(_TIMEOUT, doc=_IO_DOC, above=0.0, maximum=_LONGEST)
    poll_interval: float = setting(_POLL_INTERVAL, doc=_POLL_DOC, above=0.0, maximum=60.0)
    transport_options: dict[str, Any] = setting(attrs.Factory(dict), doc=_OPTIONS_DOC)
    ca_file: str | None = _ca_file()
    certificate_file: str | None = _certificate_file()
    key_file: str | None = _key_file()

    def __attrs_post_init__(self) -> None:
        _check_queues(self.queues)
        _check_tls(self)


@attrs.frozen(kw_only=True)
class SQSProducerSettings:
    """The keys of a producer's section with the transport `sqs`. Durations are seconds."""

    url: str = _sqs_url()
    region: str | None = _region()
    queue: str = setting(
        QUEUE, doc="the queue to send to", pattern=_SQS_NAME, expected=_SQS_NAME_EXPECTED
    )
    io_timeout: float = setting(_TIMEOUT, doc=_IO_DOC, above=0.0, maximum=_LONGEST)
    transport_options: dict[str, Any] = setting(attrs.Factory(dict), doc=_OPTIONS_DOC)


@attrs.frozen(kw_only=True)
class SQSConsumerSettings:
    """The keys of a consumer's section with the transport `sqs`. Durations are seconds.

    Raises:
        ValueError: a queue that may not be called so.
    """

    url: str = _sqs_url()
    region: str | None = _region()
    queues: tuple[str, ...] = setting((QUEUE,), doc="the queues to take from, in turn")
    lease: float = setting(
        _LEASE,
        doc="how long a consumer may hold a message before others get it: the wait after a "
        "crash; whole seconds, rounded up",
        above=0.0,
        maximum=43_200.0,
    )
    io_timeout: float = setting(_TIMEOUT, doc=_IO_DOC, above=0.0, maximum=_LONGEST)
    poll_interval: float = setting(1.0, doc=_POLL_DOC, above=0.0, maximum=60.0)
    transport_options: dict[str, Any] = setting(attrs.Factory(dict), doc=_OPTIONS_DOC)

    def __attrs_post_init__(self) -> None:
        if not self.queues or not all(re.fullmatch(_SQS_NAME, queue) for queue in self.queues):
            msg = f"expected at least one queue, each {_SQS_NAME_EXPECTED}"
            raise ValueError(msg)


def _check_queues(queues: tuple[str, ...]) -> None:
    if not queues or not all(re.fullmatch(_NAME, queue) for queue in queues):
        msg = f"expected at least one queue, each {_NAME_EXPECTED}"
        raise ValueError(msg)
