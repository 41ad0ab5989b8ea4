"""Standard Webhooks signatures: HMAC-SHA256 over id, time and body, made and checked on bytes.

Source: github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import time
from typing import TYPE_CHECKING

from postbus.errors import UnauthorizedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ID_HEADER", "SIGNATURE_HEADER", "TIMESTAMP_HEADER", "WebhookKeys"]

ID_HEADER = "webhook-id"
TIMESTAMP_HEADER = "webhook-timestamp"
SIGNATURE_HEADER = "webhook-signature"

_PREFIX = "whsec_"
_SHORTEST, _LONGEST = 24, 64
# As ids go into a signature before a full stop, they have none.
_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}").fullmatch
_SECONDS = re.compile(rb"[0-9]{1,12}").fullmatch
# Versions and keys beside ours; more are no key rotation.
_MOST_SIGNATURES = 32
# One text for all that can be wrong: a stranger learns nothing from it.
_REFUSAL = "the request is not signed as it must be"


class WebhookKeys:
    """The keys of one end; the first is no better than the others.

    Args:
        keys: each `whsec_` and the base64 of 24 to 64 random bytes. While keys change, senders
            and receivers have the old and the new one.

    >>> keys = WebhookKeys(["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])
    >>> headers = keys.sign("msg_1", b"{}", now=1_700_000_000)
    >>> headers["webhook-signature"][:3]
    'v1,'
    >>> sent = {name.encode(): value.encode() for name, value in headers.items()}
    >>> keys.verify(sent, b"{}", tolerance=300, now=1_700_000_060)

    Raises:
        ValueError: one of them is no key; the text does not say which it is.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = tuple(_key_of(key) for key in keys)

    def __bool__(self) -> bool:
        """Whether there is a key."""
        return bool(self._keys)

    def sign(self, message_id: str, body: bytes, *, now: float | None = None) -> dict[str, str]:
        """Return the three headers for *body*, with a signature of each key. Any thread.

        *now* is seconds since the epoch, and the clock's if left out.

        Raises:
            ValueError: the id is not of 1 to 64 letters, digits, hyphens and underscores.
        """
        if _ID(message_id.encode(errors="replace")) is None:
            msg = f"{message_id!r} cannot be signed: an id has 1 to 64 of A-Z a-z 0-9 _ -"
            raise ValueError(msg)
        seconds = str(int(time.time() if now is None else now))
        signed = b".".join((message_id.encode(), seconds.encode(), body))
        made = (_signature(key, signed).decode() for key in self._keys)
        return {
            ID_HEADER: message_id,
            TIMESTAMP_HEADER: seconds,
            SIGNATURE_HEADER: " ".join(made),
        }

    def check_time(
        self, headers: Mapping[bytes, bytes], *, tolerance: float, now: float | None = None
    ) -> None:
        """Check what needs no body: the headers are there, and the time is *tolerance* or nearer.

        Raises:
            UnauthorizedError: they are not; the error never says why.
        """
        message_id = headers.get(ID_HEADER.encode(), b"")
        seconds = headers.get(TIMESTAMP_HEADER.encode(), b"")
        if _ID(message_id) is None or _SECONDS(seconds) is None:
            raise UnauthorizedError(_REFUSAL)
        if abs(int(seconds) - (time.time() if now is None else now)) > tolerance:
            raise UnauthorizedError(_REFUSAL)

    def verify(
        self,
        headers: Mapping[bytes, bytes],
        body: bytes,
        *,
        tolerance: float,
        now: float | None = None,
    ) -> None:
        """Check that one of the keys signed *body* within *tolerance* seconds of *now*.

        *headers* have names in lower case. Takes equally long for any wrong signature. Any thread.

        Raises:
            UnauthorizedError: none did; the error never says why.
        """
        self.check_time(headers, tolerance=tolerance, now=now)
        signed = b".".join((headers[ID_HEADER.encode()], headers[TIMESTAMP_HEADER.encode()], body))
        given = headers.get(SIGNATURE_HEADER.encode(), b"")
        signatures = given.split(b" ", _MOST_SIGNATURES)[:_MOST_SIGNATURES]
        is_good = False
        for key in self._keys:
            # As text: several spellings of one base64 are several signatures.
            expected = _signature(key, signed)
            for each in signatures:
                is_good |= hmac.compare_digest(expected, each)
        if not is_good:
            raise UnauthorizedError(_REFUSAL)


def _key_of(text: str) -> bytes:
    try:
        key = base64.b64decode(text.removeprefix(_PREFIX).encode(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not (text.startswith(_PREFIX) and _SHORTEST <= len(key) <= _LONGEST):
        msg = f"expected signing keys of whsec_ and the base64 of {_SHORTEST} to {_LONGEST} bytes"
        raise ValueError(msg)
    return key


def _signature(key: bytes, signed: bytes) -> bytes:
    return b"v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256))
