"""The sections of producers, consumers, stores and the worker: every key that core reads there.

What a section says beyond that is its transport's business and stands in *options*.
"""

# ruff: noqa: RUF009  a field is made by a call; attrs reads what it returns

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import attrs

from postbus.settings._fields import keys_of, path_field, rest, setting
from postbus.settings._routes import LONGEST_WAIT, NAME, EventRouterSettings, reader_of

__all__ = [
    "CAPABILITIES",
    "RESERVED_CONSUMER_KEYS",
    "RESERVED_PRODUCER_KEYS",
    "RESERVED_STORE_KEYS",
    "ConsumerSection",
    "ProducerSection",
    "RetrySettings",
    "RuleSettings",
    "StoreSection",
    "WorkerSettings",
]

MEBIBYTE = 1024 * 1024
TRANSPORT_NAME = r"[a-z][a-z0-9_+\-]*"

#: What `requires` may ask for: the capabilities that a transport has or has not.
CAPABILITIES = (
    "acknowledge",
    "redeliver_on_crash",
    "durable",
    "queries",
    "retry",
    "delay",
    "priority",
    "expiry",
    "ordering",
    "count",
    "inspect",
    "purge",
)

# Names that mean the same wherever they stand, so no transport may have them for itself.
_OF_PRODUCERS = ("outbox", "router", "timeout")
_OF_CONSUMERS = (
    "concurrency",
    "failure_store",
    "forward",
    "inbox",
    "prefetch",
    "retry",
    "rules",
    "time_limit",
)


def _transport() -> Any:
    return setting(
        pattern=TRANSPORT_NAME,
        expected="the name of a transport",
        doc="Which transport: `memory`, `zeromq`, … Required: there is no obvious one.",
    )


def _guarantee() -> Any:
    return setting(
        None,
        doc="Selects and demands a mode of delivery; refused where the transport cannot. "
        "Unset: what the transport gives as configured.",
    )


def _requires() -> Any:
    return setting(
        attrs.Factory(list),
        choices=CAPABILITIES,
        doc="Capabilities the transport must have as configured. Empty: none is demanded.",
    )


def _codec() -> Any:
    return setting("json", doc="How a body is written: JSON, which every peer can read.")


def _max_size_bytes() -> Any:
    return setting(
        MEBIBYTE,
        minimum=1024,
        doc="The largest body. 1 MiB: what brokers take, and a bound on what a peer can make "
        "this process hold.",
    )


def _store(what_for: str) -> Any:
    return setting(
        None,
        pattern=NAME,
        expected="the name of a store",
        doc=f"The store, a section of `stores`, {what_for}",
    )


@attrs.frozen(kw_only=True)
class ProducerSection:
    """`[postbus.producers.NAME]`: where messages are sent to.

    *options* are the keys of the transport's own settings class; *path* is where the section
    stood.
    """

    _elsewhere: ClassVar[Mapping[str, str]] = dict.fromkeys(
        _OF_CONSUMERS, "it belongs to a consumer"
    )

    transport: str = _transport()
    guarantee: Literal["at-most-once", "at-least-once"] | None = _guarantee()
    requires: list[str] = _requires()
    codec: Literal["json"] = _codec()
    timeout: float | None = setting(
        None,
        above=0,
        maximum=LONGEST_WAIT,
        doc="Seconds until a query through it is given up. Unset: the bus's own.",
    )
    max_size_bytes: int = _max_size_bytes()
    router: EventRouterSettings | None = setting(
        None,
        doc="Routes of the buses that the transport's own container makes. Unset: they send "
        "everything to this producer.",
        read=reader_of(EventRouterSettings),
    )
    schedule: str | None = _store(
        "that keeps messages dispatched with a delay until a worker sends them, where the "
        "transport cannot delay. Unset: such a dispatch is refused."
    )
    outbox: str | None = setting(
        None, available=False, doc="The store that messages are committed to before they leave."
    )
    options: dict[str, Any] = rest(doc="Every other key: the transport's own.")
    path: str = path_field()


@attrs.frozen(kw_only=True)
class RetrySettings:
    """How often and when a failed message is handled again."""

    max_attempts: int = setting(
        5,
        minimum=1,
        maximum=1000,
        doc="Attempts in all, the first included. 5: with the other defaults some seconds, which "
        "outlast a restart of what a handler needs.",
    )
    initial_delay: float = setting(
        0.5, minimum=0, maximum=LONGEST_WAIT, doc="Seconds before the second attempt."
    )
    multiplier: float = setting(
        2.0, minimum=1, maximum=1000, doc="Factor from one delay to the next."
    )
    max_delay: float = setting(
        60.0, minimum=0, maximum=LONGEST_WAIT, doc="The longest delay, in seconds."
    )
    jitter: float = setting(
        0.1,
        minimum=0,
        maximum=1,
        doc="The share of a delay by which chance shortens it, so that what failed together does "
        "not come back together.",
    )


@attrs.frozen(kw_only=True)
class RuleSettings:
    """Another policy for the messages of some names; the first rule that matches counts."""

    match: str = setting(
        pattern=r"\S+",
        expected="the name of a message, or a pattern of such names",
        doc="The name, or a glob over its segments, such as `shop.report.*`.",
    )
    retry: RetrySettings = setting(
        doc="How they are handled again; what it leaves out has the usual default."
    )


@attrs.frozen(kw_only=True)
class ConsumerSection:
    """`[postbus.consumers.NAME]`: where a worker receives messages.

    *options* are the keys of the transport's own settings class; *path* is where the section
    stood.
    """

    _elsewhere: ClassVar[Mapping[str, str]] = dict.fromkeys(
        _OF_PRODUCERS, "it belongs to a producer"
    )

    transport: str = _transport()
    guarantee: Literal["at-most-once", "at-least-once"] | None = _guarantee()
    requires: list[str] = _requires()
    codec: Literal["json"] = _codec()
    concurrency: int = setting(
        16,
        minimum=1,
        maximum=10_000,
        doc="Messages handled at the same time. 16 keeps handlers that wait from blocking each "
        "other and is kind to a database.",
    )
    prefetch: int = setting(
        attrs.Factory(lambda self: 2 * self.concurrency, takes_self=True),
        minimum=1,
        maximum=100_000,
        doc="Messages fetched and not yet settled, at most. Default: twice `concurrency`, so "
        "that no handler waits for the network.",
    )
    unknown_fields: Literal["refuse", "ignore"] = setting(
        "refuse",
        doc="What to do with fields that a message class does not have. Refusing shows a "
        "mistake; ignoring lets newer senders be deployed first.",
    )
    max_size_bytes: int = _max_size_bytes()
    close_timeout: float = setting(
        5.0,
        minimum=0,
        maximum=LONGEST_WAIT,
        doc="Seconds that closing may take to carry out what was settled. 5: enough for a round "
        "trip, and a stop stays short.",
    )
    time_limit: float | None = setting(
        None,
        above=0,
        maximum=LONGEST_WAIT,
        doc="Seconds that handling a message may take. Then an asyncio handler is cancelled; one "
        "in a thread goes on, and has failed all the same. Unset: no limit.",
    )
    inbox: str | None = _store(
        "that knows what was handled already, so that a message that comes again is not handled "
        "again. Unset: none, and a message may be handled twice."
    )
    failure_store: str | None = _store(
        "that keeps what could not be handled. Unset: none; a failed message is given back after "
        "a pause, again and again."
    )
    schedule: str | None = _store(
        "that keeps retries until they are due, where the transport cannot. Unset: that of "
        "`failure_store`."
    )
    retry: RetrySettings | None = setting(
        None, doc="How failed messages are handled again. Unset: not at all."
    )
    rules: list[RuleSettings] = setting(
        attrs.Factory(list),
        doc="Other policies for some names; the first that matches counts. Empty: `retry` is for "
        "all.",
    )
    forward: dict[str, str] = setting(
        attrs.Factory(dict), available=False, doc="Producers that take received names onward."
    )
    options: dict[str, Any] = rest(doc="Every other key: the transport's own.")
    path: str = path_field()


#: Keys of a producer's section that core reads itself.
RESERVED_PRODUCER_KEYS = frozenset(key.name for key in keys_of(ProducerSection))
#: Keys of a consumer's section that core reads itself.
RESERVED_CONSUMER_KEYS = frozenset(key.name for key in keys_of(ConsumerSection))


@attrs.frozen(kw_only=True)
class StoreSection:
    """`[postbus.stores.NAME]`: where messages are kept.

    *options* are the keys of the store's own settings class; *path* is where the section stood.
    """

    store: str = setting(
        pattern=TRANSPORT_NAME,
        expected="the name of a kind of store",
        doc="Which kind: `sqlite`, `memory`, … Required: there is no obvious one.",
    )
    options: dict[str, Any] = rest(doc="Every other key: the store's own.")
    path: str = path_field()


#: Keys of a store's section that core reads itself.
RESERVED_STORE_KEYS = frozenset(key.name for key in keys_of(StoreSection))


@attrs.frozen(kw_only=True)
class WorkerSettings:
    """`[postbus.worker]`."""

    shutdown_grace: float = setting(
        10.0,
        minimum=0,
        maximum=LONGEST_WAIT,
        doc="Seconds that running handlers get to finish when the worker stops; 0 stops at once. "
        "10: well inside the 30 that supervisors give.",
    )
    threads: int = setting(
        attrs.Factory(lambda: min(32, (os.cpu_count() or 1) + 4)),
        minimum=1,
        maximum=1024,
        doc="Threads for plain handlers. Default: the number of processors plus 4, at most 32, "
        "as Python's own pool has it.",
    )
    max_messages: int | None = setting(
        None,
        minimum=0,
        doc="The worker ends when it has handled this many. Unset: never.",
    )
    max_runtime: float | None = setting(
        None,
        minimum=0,
        maximum=LONGEST_WAIT,
        doc="The worker ends after this many seconds. Unset: never.",
    )
    max_memory_bytes: int | None = setting(
        None,
        minimum=0,
        doc="The worker ends when its process holds more. Unset: never.",
    )
    stop_when_empty: bool = setting(
        default=False,
        doc="True: the worker ends when nothing waits any more. False: it waits for more.",
    )
    stop_on_error: bool = setting(
        default=False,
        doc="True: the worker ends with an error when a message fails. False: it goes on.",
    )
    health: str | None = setting(
        None,
        pattern=r"(\[[0-9a-fA-F:.]+\]|[^\s:]+):\d{1,5}",
        expected="HOST:PORT",
        doc="Where `/live` and `/ready` are answered over HTTP, without authentication. Unset: "
        "nowhere.",
    )
