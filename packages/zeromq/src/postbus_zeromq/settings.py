"""The keys that a section with `transport = "zeromq"` may have beside postbus's own.

An address is checked when the section is read: libzmq would bind port 99999 as 34463 without a
word, and queue for a peer that nobody has over inproc.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Literal

import attrs

from postbus.settings import setting

__all__ = ["ZeroMQConsumerSettings", "ZeroMQProducerSettings"]

DSN = "tcp://127.0.0.1:5555"
DSN_PATTERN = r"tcp://(\[[^\]/]+\]|[^:/;\[\]\s]+):[0-9]{1,5}|ipc://[^\s]+"
DSN_EXPECTED = "an address: tcp://HOST:PORT or ipc://PATH"
_TCP = re.compile(r"tcp://(?P<host>.+):(?P<port>[0-9]+)").fullmatch
_LAST_PORT = 65_535
_LOOPBACK_NAMES = {"localhost", "lo"}

_DSN_DOC = (
    "where the two sides meet: `tcp://HOST:PORT` or `ipc://PATH`; the default is this machine only"
)
_ASK_DOC = (
    "false sends commands and events over PUSH; true asks queries over DEALER, and nothing else; "
    '"both" does all of it over DEALER, to a consumer that says "both" too'
)
_ANSWER_DOC = (
    "false takes commands and events from PUSH; true answers queries over ROUTER, also those of a "
    'REQ socket; "both" takes commands and events of a producer that says "both" too'
)
_ANY_PEER_DOC = (
    "true lets `bind` take an address that other machines reach, although nothing here says who "
    "they are: whoever connects is a peer"
)
_LINGER = 5.0
_SEND_TIMEOUT = 5.0
# libzmq's own default: a thousand messages hide the round trips of a busy pair, and at the usual
# few hundred bytes they are a few hundred kilobytes.
_HIGH_WATER_MARK = 1000
# libzmq keeps it in a C int, as it does milliseconds.
_LARGEST = 2**31 - 1
_LONGEST = 86_400.0


@attrs.frozen(kw_only=True)
class ZeroMQProducerSettings:
    """The keys of a producer's section. Durations are seconds.

    Raises:
        ValueError: an address that cannot be, or one for other machines without
            `allow_any_peer`.
    """

    dsn: str = setting(DSN, doc=_DSN_DOC, pattern=DSN_PATTERN, expected=DSN_EXPECTED)
    persistent_id: str | None = setting(
        None,
        doc="producers of one process with the same id, `dsn`, `bind` and `high_water_mark` share "
        "one socket; the last close flushes it",
        pattern=r".+",
        expected="a name of at least one character",
    )
    rpc: bool | Literal["both"] = setting(default=False, doc=_ASK_DOC)
    bind: bool = setting(default=False, doc="true to wait for consumers that connect here")
    allow_any_peer: bool = setting(default=False, doc=_ANY_PEER_DOC)
    send_timeout: float = setting(
        _SEND_TIMEOUT,
        doc="how long a send waits for a peer with room before it raises; long enough for a "
        "consumer to start again, short enough to be noticed",
        minimum=0.0,
        maximum=_LONGEST,
    )
    linger: float = setting(
        _LINGER,
        doc="how long a close waits for what was accepted to leave this process",
        minimum=0.0,
        maximum=_LONGEST,
    )
    high_water_mark: int = setting(
        _HIGH_WATER_MARK,
        doc="how many messages may wait in this process for each peer",
        minimum=1,
        maximum=_LARGEST,
    )
    max_message_bytes: int | None = setting(
        None,
        doc="the largest body; left out, postbus's own limit holds",
        minimum=1,
        maximum=_LARGEST // 4,
    )

    def __attrs_post_init__(self) -> None:
        _check_address(self)


@attrs.frozen(kw_only=True)
class ZeroMQConsumerSettings:
    """The keys of a consumer's section.

    Raises:
        ValueError: an address that cannot be, or one for other machines without
            `allow_any_peer`.
    """

    dsn: str = setting(DSN, doc=_DSN_DOC, pattern=DSN_PATTERN, expected=DSN_EXPECTED)
    rpc: bool | Literal["both"] = setting(default=False, doc=_ANSWER_DOC)
    bind: bool = setting(default=True, doc="false to connect to producers that bind")
    allow_any_peer: bool = setting(default=False, doc=_ANY_PEER_DOC)
    high_water_mark: int = setting(
        _HIGH_WATER_MARK,
        doc="how many messages may wait in this process from each peer",
        minimum=1,
        maximum=_LARGEST,
    )
    max_message_bytes: int | None = setting(
        None,
        doc="the largest body; larger ones are dropped and logged. Left out, postbus's own "
        "limit holds",
        minimum=1,
        maximum=_LARGEST // 4,
    )

    def __attrs_post_init__(self) -> None:
        _check_address(self)


def _check_address(settings: ZeroMQProducerSettings | ZeroMQConsumerSettings) -> None:
    """Refuse an address that libzmq would misread, and one that opens this machine to others.

    Raises:
        ValueError: with what is expected, never with the address.
    """
    if re.fullmatch(DSN_PATTERN, settings.dsn) is None:
        msg = f"expected dsn to be {DSN_EXPECTED}"
        raise ValueError(msg)
    address = _TCP(settings.dsn)
    if address is None:
        return
    if not 1 <= int(address["port"]) <= _LAST_PORT:
        msg = f"expected the port of dsn from 1 to {_LAST_PORT}"
        raise ValueError(msg)
    if settings.bind and not settings.allow_any_peer and not _is_loopback(address["host"]):
        msg = (
            "expected a loopback address in dsn, since whoever reaches the address could send: "
            "bind 127.0.0.1, or write allow_any_peer = true"
        )
        raise ValueError(msg)


def _is_loopback(host: str) -> bool:
    """Return whether only this machine reaches *host*; a name or number in doubt is not."""
    if host in _LOOPBACK_NAMES:
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
