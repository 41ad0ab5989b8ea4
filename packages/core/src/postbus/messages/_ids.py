"""Identities: random UUIDs as text, made many at a time, and read in any spelling."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

_POOL_BYTES = 4096
_pool: list[str] = []
# After a fork both processes would hand out the same ids: the child starts with an empty pool.
os.register_at_fork(after_in_child=_pool.clear)
_VARIANTS = bytes(b & 0x3F | 0x80 for b in range(256))
_VERSIONS = bytes(b & 0x0F | 0x40 for b in range(256))
is_canonical_id: Callable[[str], object] = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
).fullmatch
# uuid.UUID() alone would also take underscores, blanks and digits of other scripts.
_SPELLED_ID = re.compile(
    r"(?:urn:uuid:)?(\{)?([0-9a-f]{8})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{4})-?"
    r"([0-9a-f]{12})(?(1)\})",
    re.ASCII | re.IGNORECASE,
).fullmatch


# Where each of the 32 digits stands in the text of an id, which ends with a blank here.
_DASHES_BEFORE = (8, 12, 16, 20)
_PLACES = [i + sum(i >= dash for dash in _DASHES_BEFORE) for i in range(32)]
_TEXT_LENGTH = 37


def new_id() -> str:
    """Return a random UUID as text (version 4 layout, RFC 9562), safe from any thread."""
    while True:
        try:
            return _pool.pop()
        except IndexError:
            _refill()


def _refill() -> None:
    """Make 256 ids at once: a digit of all of them at a time, so that each costs little."""
    noise = bytearray(os.urandom(_POOL_BYTES))
    noise[6::16] = noise[6::16].translate(_VERSIONS)
    noise[8::16] = noise[8::16].translate(_VARIANTS)
    digits = noise.hex().encode()
    text = bytearray(b"-" * (_TEXT_LENGTH - 1) + b" ") * (_POOL_BYTES // 16)
    for index, place in enumerate(_PLACES):
        text[place::_TEXT_LENGTH] = digits[index::32]
    _pool.extend(text.decode().split())


def parse_id(text: str) -> str:
    """Return *text*, any spelling of a UUID, in lower-case canonical form.

    Raises:
        ValueError: it is no UUID.
    """
    if is_canonical_id(text):
        return text
    spelled = _SPELLED_ID(text)
    if spelled is None:
        msg = f"expected a UUID as text, got {text[:64]!r}"
        raise ValueError(msg)
    return "-".join(spelled.groups()[1:]).lower()
