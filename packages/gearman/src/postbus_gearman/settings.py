"""The keys that a section with `transport = "gearman"` may have beside postbus's own."""

from __future__ import annotations

import re

import attrs

from postbus.settings import setting

__all__ = ["GearmanConsumerSettings", "GearmanProducerSettings", "address_of"]

_SERVERS = ("127.0.0.1:4730",)
_SERVER = re.compile(r"(\[[^\]]+\]|[^:\s\[\]]+):[0-9]{1,5}").fullmatch
# No space and no control character: the server's text commands end a name there.
_FUNCTION = r"[!-~]{1,200}"
_FUNCTION_EXPECTED = "1 to 200 printable ASCII characters without a space"
_DEFAULT = "postbus"
_TIMEOUT_DOC = "how long to wait for a connection and for each answer of a server"
_DURABLE_DOC = (
    "true where the server was started with a persistent queue, such as -q libsqlite3, and so "
    "keeps sent messages through a restart; the server cannot be asked"
)
_TIMEOUT = 5.0
_LONGEST = 86_400.0
_LAST_PORT = 65_535


@attrs.frozen(kw_only=True)
class GearmanProducerSettings:
    """The keys of a producer's section. Durations are seconds.

    Raises:
        ValueError: no server, or one that there cannot be.
    """

    servers: tuple[str, ...] = setting(
        _SERVERS,
        doc="the servers, HOST:PORT each; the first that can be reached gets everything, until "
        "it is gone",
    )
    function: str = setting(
        _DEFAULT,
        doc="the function whose workers get the jobs",
        pattern=_FUNCTION,
        expected=_FUNCTION_EXPECTED,
    )
    io_timeout: float = setting(_TIMEOUT, doc=_TIMEOUT_DOC, above=0.0, maximum=_LONGEST)
    unique: bool = setting(
        default=False,
        doc="true makes the message's id the job's unique id: while a job with it waits or runs, "
        "the server takes another for the same one and drops what that carries",
    )
    durable: bool = setting(default=False, doc=_DURABLE_DOC)

    def __attrs_post_init__(self) -> None:
        _check_servers(self.servers)


@attrs.frozen(kw_only=True)
class GearmanConsumerSettings:
    """The keys of a consumer's section. Durations are seconds.

    Raises:
        ValueError: no server, or one that there cannot be; a function that may not be called so.
    """

    servers: tuple[str, ...] = setting(
        _SERVERS,
        doc="the servers, HOST:PORT each, to take jobs from; those that cannot be reached are "
        "tried again while others work",
    )
    functions: tuple[str, ...] = setting(
        (_DEFAULT,),
        doc="the functions to work; of all that wait the most urgent come first, then those of "
        "the function named first",
    )
    io_timeout: float = setting(_TIMEOUT, doc=_TIMEOUT_DOC, above=0.0, maximum=_LONGEST)
    durable: bool = setting(default=False, doc=_DURABLE_DOC)

    def __attrs_post_init__(self) -> None:
        _check_servers(self.servers)
        if not self.functions or not all(re.fullmatch(_FUNCTION, each) for each in self.functions):
            msg = f"expected at least one function, each {_FUNCTION_EXPECTED}"
            raise ValueError(msg)


def address_of(server: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT."""
    host, _, port = server.rpartition(":")
    return host.strip("[]"), int(port)


def _check_servers(servers: tuple[str, ...]) -> None:
    if not servers or not all(
        _SERVER(each) and 1 <= address_of(each)[1] <= _LAST_PORT for each in servers
    ):
        msg = f"expected at least one server, each HOST:PORT with a port from 1 to {_LAST_PORT}"
        raise ValueError(msg)
