"""The keys that a section with `transport = "http"` may have beside postbus's own.

What can be told from a section alone is refused when it is read: an address that is none,
credentials in it, a plain connection to another machine, a key that is no key.
"""

# ruff: noqa: RUF009  a field is made by a call; attrs reads what it returns

from __future__ import annotations

import re
from typing import Any
from urllib.parse import SplitResult, urlsplit

import attrs

from postbus.settings import setting
from postbus_http._targets import is_allowed, is_loopback
from postbus_http.signatures import WebhookKeys

__all__ = ["HTTPConsumerSettings", "HTTPProducerSettings", "ResendSettings"]

_LONGEST = 86_400.0
_LAST_PORT = 65_535
_KEYS_DOC = "keys of the Standard Webhooks specification, `whsec_` and base64 of 24 to 64 bytes"
_ALLOW_ANY_PEER_DOC = (
    "true takes messages from whoever reaches the address; without it, and on any address but a "
    "loopback one, there must be `signing_keys` or `bearer`"
)
# What a token may consist of. Source: RFC 6750, section 2.1.
_TOKEN = r"[A-Za-z0-9._~+/-]+=*"  # noqa: S105  a pattern
_TOKEN_EXPECTED = "a token of letters, digits and -._~+/"  # noqa: S105  what is expected of one
_BIND = re.compile(r"(?P<host>\[[^\]/\s]+\]|[^:/;\[\]\s]+):(?P<port>[0-9]{1,5})")


@attrs.frozen(kw_only=True)
class ResendSettings:
    """When a request that failed is sent again, always with the same id. Durations are seconds.

    That is after a failed connection, a time-out and the statuses 408, 425, 429 and 5xx.
    """

    max_attempts: int = setting(
        5,
        doc="requests in all, the first included; 5 outlast a restart of the other side",
        minimum=1,
        maximum=1000,
    )
    initial_delay: float = setting(
        0.5,
        doc="the longest pause before the second request; a pause is a random share of the "
        "longest, so that many senders do not come back at one moment",
        minimum=0.0,
        maximum=_LONGEST,
    )
    multiplier: float = setting(
        2.0, doc="factor from one longest pause to the next", minimum=1.0, maximum=100.0
    )
    max_delay: float = setting(
        10.0, doc="bound of the longest pause", minimum=0.0, maximum=_LONGEST
    )


def _timeout(default: float, doc: str) -> Any:
    return setting(default, doc=doc, above=0.0, maximum=_LONGEST)


@attrs.frozen(kw_only=True)
class HTTPProducerSettings:
    """The keys of a producer's section. Durations are seconds.

    Raises:
        ValueError: keys that contradict each other, or an address that must not be used.
    """

    url: str = setting(
        doc="where messages are posted to: absolute, https, without user, password and fragment; "
        "never shown, for with some services the path is a secret",
        pattern=r"https?://[^\s#]+",
        expected="an address: https://HOST[:PORT]/PATH",
        secret=True,
    )
    allow_http: bool = setting(
        default=False,
        doc="true lets `url` be plain http to another machine, which anybody between the two can "
        "read and change",
    )
    allowed_hosts: list[str] = setting(
        attrs.Factory(list[str]),
        doc="hosts that `url` may name, `*.example.org` for all below one; empty allows any. For "
        "an address that comes from somewhere else than the rest of the configuration",
    )
    public_only: bool = setting(
        default=False,
        doc="true refuses hosts that have an address which is private, loopback, link-local or "
        "else not public; what was checked is what is connected to",
    )
    http2: bool = setting(
        default=False, doc="true offers HTTP/2 to servers with https; needs `postbus-http[http2]`"
    )
    max_connections: int = setting(
        16,
        doc="requests in flight at once, each on a connection of its own, for all threads "
        "together and for each event loop; others wait their turn",
        minimum=1,
        maximum=1000,
    )
    keepalive_timeout: float = setting(
        4.0,
        doc="how long an idle connection is kept; below the 5 seconds after which common servers "
        "close theirs, so that none is used the moment it goes away",
        minimum=0.0,
        maximum=_LONGEST,
    )
    connect_timeout: float = _timeout(5.0, "how long a connection may take, TLS included")
    idle_timeout: float = _timeout(
        30.0, "how long the other side may neither take nor give a byte"
    )
    total_timeout: float = _timeout(
        30.0,
        "how long one message may take in all: waiting for a connection, every request, every "
        "pause between them, and the answer to its last byte",
    )
    max_response_bytes: int | None = setting(
        None,
        doc="the largest answer; left out, postbus's own limit of a body holds",
        minimum=1,
    )
    batch: int = setting(
        1,
        doc="how many messages of one `send_many` travel in one request, as a JSON array; above 1 "
        "only for a receiver that is postbus too",
        minimum=1,
        maximum=10_000,
    )
    resend: ResendSettings | None = setting(
        None, doc="send again what failed; left out, each message is sent once"
    )
    signing_keys: list[str] = setting(
        attrs.Factory(list[str]),
        doc=f"{_KEYS_DOC}; requests are signed with each",
        secret=True,
    )
    bearer: str | None = setting(
        None,
        doc="the token of `Authorization: Bearer`",
        pattern=_TOKEN,
        expected=_TOKEN_EXPECTED,
        secret=True,
    )
    username: str | None = setting(
        None,
        doc="of `Authorization: Basic`, with `password`",
        pattern=r"[^:\x00-\x1f\x7f]+",
        expected="a name without colons and control characters",
    )
    password: str | None = setting(
        None,
        doc="of `Authorization: Basic`",
        pattern=r"[^\x00-\x1f\x7f]*",
        expected="text without control characters",
        secret=True,
    )
    auth: Any = setting(
        None, doc="any other authentication: an `httpx.Auth`, given in Python", secret=True
    )
    ca_file: str | None = setting(
        None, doc="the authorities that may vouch for the server, as PEM, in place of the usual"
    )
    certificate_file: str | None = setting(
        None, doc="the certificate to show to the server, as PEM, with its key or `key_file`"
    )
    key_file: str | None = setting(None, doc="the key of `certificate_file`")

    def __attrs_post_init__(self) -> None:
        parts = urlsplit(self.url)
        if not (problem := _problem_of_url(parts)):
            host = parts.hostname or ""
            is_open = parts.scheme == "http" and not (self.allow_http or is_loopback(host))
            if is_open:
                problem = "expected https in url, or allow_http = true"
            elif not is_allowed(host, self.allowed_hosts):
                problem = "expected a host in url that allowed_hosts allows"
        if (self.username is None) != (self.password is None):
            problem = "expected username and password together"
        if sum(each is not None for each in (self.bearer, self.username, self.auth)) > 1:
            problem = "expected one of bearer, username, auth"
        if self.key_file is not None and self.certificate_file is None:
            problem = "expected certificate_file beside key_file"
        if self.auth is not None and not hasattr(self.auth, "sync_auth_flow"):
            problem = "expected auth to be an httpx.Auth"
        if problem:
            raise ValueError(problem)
        WebhookKeys(self.signing_keys)


@attrs.frozen(kw_only=True)
class HTTPConsumerSettings:
    """The keys of a consumer's section. Durations are seconds.

    Raises:
        ValueError: an address that cannot be, or one for other machines without authentication.
    """

    bind: str = setting(
        "127.0.0.1:8000",
        doc="the address to listen at: HOST:PORT; the default is for this machine only",
        pattern=_BIND.pattern,
        expected="an address: HOST:PORT",
    )
    path: str = setting(
        "/",
        doc="the path to take messages at; others do not exist",
        pattern=r"/[^?#\s]*",
        expected="a path that begins with a slash",
    )
    signing_keys: list[str] = setting(
        attrs.Factory(list[str]),
        doc=f"{_KEYS_DOC}; a request must be signed with one of them",
        secret=True,
    )
    bearer: str | None = setting(
        None,
        doc="the token that a request must have in `Authorization: Bearer`",
        pattern=_TOKEN,
        expected=_TOKEN_EXPECTED,
        secret=True,
    )
    allow_any_peer: bool = setting(default=False, doc=_ALLOW_ANY_PEER_DOC)
    tolerance: float = _timeout(
        300.0,
        "how old, or how far ahead, a signature may be; within twice that time, a message that "
        "was handled is not handled again",
    )
    max_batch: int = setting(
        100, doc="messages in one request, as a JSON array", minimum=1, maximum=10_000
    )
    max_in_flight: int = setting(
        100,
        doc="requests that are read or wait for their answer at once; more are answered 503",
        minimum=1,
        maximum=100_000,
    )
    header_timeout: float = _timeout(10.0, "how long the headers of a request may take")
    read_timeout: float = _timeout(10.0, "how long the body of a request may take")
    answer_timeout: float = _timeout(
        60.0,
        "how long a sender waits for its message to be handled; then it is answered 503, may "
        "send again, and learns what became of it",
    )
    certificate_file: str | None = setting(
        None, doc="the certificate to serve https with, as PEM, with its key or `key_file`"
    )
    key_file: str | None = setting(None, doc="the key of `certificate_file`")

    @property
    def host(self) -> str:
        """The part of *bind* before the port, without brackets."""
        return self.bind.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The part of *bind* behind the host; 0 takes any free port."""
        return int(self.bind.rpartition(":")[2])

    def __attrs_post_init__(self) -> None:
        problem = ""
        if _BIND.fullmatch(self.bind) is None or self.port > _LAST_PORT:
            problem = f"expected bind to be an address: HOST:PORT, the port at most {_LAST_PORT}"
        elif not (self.signing_keys or self.bearer or self.allow_any_peer) and not is_loopback(
            self.host
        ):
            problem = (
                "expected signing_keys or bearer, since other machines reach the address in "
                "bind: add one, bind 127.0.0.1, or write allow_any_peer = true"
            )
        if self.key_file is not None and self.certificate_file is None:
            problem = "expected certificate_file beside key_file"
        if problem:
            raise ValueError(problem)
        WebhookKeys(self.signing_keys)


def _problem_of_url(parts: SplitResult) -> str:
    """Say what is wrong with an address, never with the address itself."""
    try:
        port = parts.port
    except ValueError:
        port = 0
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        return "expected url to be an address: https://HOST[:PORT]/PATH"
    if parts.username is not None or parts.password is not None or parts.fragment:
        return "expected url without user, password and fragment: write username and password"
    return ""
