"""The keys that a section with `transport = "beanstalkd"` may have beside postbus's own."""

from __future__ import annotations

import re

import attrs

from postbus.settings import setting

__all__ = ["BeanstalkdConsumerSettings", "BeanstalkdProducerSettings", "address_of"]

ADDRESS = "127.0.0.1:11300"
ADDRESS_PATTERN = r"(\[[^\]]+\]|[^:\s\[\]]+):[0-9]{1,5}"
# Source: protocol.txt, "tube names".
TUBE = r"[A-Za-z0-9+/;.$_()][A-Za-z0-9+/;.$_()-]{0,199}"
_TUBE_EXPECTED = "1 to 200 letters, digits or -+/;.$_(), not beginning with -"
_ADDRESS_DOC = "the server: HOST:PORT"
_TIMEOUT_DOC = "how long to wait for a connection and for each answer of the server"
_DURABLE_DOC = (
    "true where the server was started with -b and so keeps jobs through a restart; the server "
    "cannot be asked"
)
_SIZE_DOC = "the largest body; the server refuses larger ones unless it was started with -z"
_TIMEOUT = 5.0
_LONGEST = 86_400.0
# The server's own limit: 65,535 bytes.
_MAX_JOB_BYTES = 65_535
_LARGEST_JOB_BYTES = 1_073_741_824
# Long against a handler, short against a person who waits; the worker renews it for longer ones.
_TTR = 60
_LEASE = 30.0
# In the last second of a job the server gives its holder no other job.
_SHORTEST_TTR = 2
_LAST_PORT = 65_535


@attrs.frozen(kw_only=True)
class BeanstalkdProducerSettings:
    """The keys of a producer's section. Durations are seconds.

    Raises:
        ValueError: a port that there cannot be.
    """

    address: str = setting(
        ADDRESS, doc=_ADDRESS_DOC, pattern=ADDRESS_PATTERN, expected="HOST:PORT"
    )
    tube: str = setting(
        "default", doc="the tube to put into", pattern=TUBE, expected=_TUBE_EXPECTED
    )
    ttr: int = setting(
        _TTR,
        doc="whole seconds after which others get a job whose consumer hangs; consumers tell the "
        "server about longer leases of theirs",
        minimum=_SHORTEST_TTR,
        maximum=int(_LONGEST),
    )
    io_timeout: float = setting(_TIMEOUT, doc=_TIMEOUT_DOC, above=0.0, maximum=_LONGEST)
    max_job_bytes: int = setting(
        _MAX_JOB_BYTES, doc=_SIZE_DOC, minimum=1, maximum=_LARGEST_JOB_BYTES
    )
    durable: bool = setting(default=False, doc=_DURABLE_DOC)

    def __attrs_post_init__(self) -> None:
        _check_port(self.address)


@attrs.frozen(kw_only=True)
class BeanstalkdConsumerSettings:
    """The keys of a consumer's section. Durations are seconds.

    Raises:
        ValueError: a port that there cannot be, or a tube that may not be called so.
    """

    address: str = setting(
        ADDRESS, doc=_ADDRESS_DOC, pattern=ADDRESS_PATTERN, expected="HOST:PORT"
    )
    tubes: tuple[str, ...] = setting(
        ("default",),
        doc="the tubes to take from; of all that wait there the most urgent and then the oldest "
        "comes first, so none starves",
    )
    lease: float = setting(
        _LEASE,
        doc="how long a job is held before others may get it, at least: the server is told for "
        "as long, and then the job's time to run must end; the worker renews it",
        above=0.0,
        maximum=_LONGEST,
    )
    io_timeout: float = setting(_TIMEOUT, doc=_TIMEOUT_DOC, above=0.0, maximum=_LONGEST)
    max_job_bytes: int = setting(
        _MAX_JOB_BYTES, doc=_SIZE_DOC, minimum=1, maximum=_LARGEST_JOB_BYTES
    )
    durable: bool = setting(default=False, doc=_DURABLE_DOC)

    def __attrs_post_init__(self) -> None:
        _check_port(self.address)
        if not self.tubes or not all(re.fullmatch(TUBE, tube) for tube in self.tubes):
            msg = f"expected at least one tube, each {_TUBE_EXPECTED}"
            raise ValueError(msg)


def address_of(address: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _check_port(address: str) -> None:
    if not 1 <= address_of(address)[1] <= _LAST_PORT:
        msg = f"expected the port of address from 1 to {_LAST_PORT}"
        raise ValueError(msg)
