"""Identities: random UUIDs as text, made many at a time, and read in any spelling."""

from __future__ import annotations

import os
import re

_POOL_SIZE = 256
_pool: list[str] = []
# After a fork both processes would hand out the same ids: the child starts with an empty pool.
os.register_at_fork(after_in_child=_pool.clear)
DIGITS_AS_ZEROS = bytes.maketrans(b"0123456789abcdef", b"0" * 16)
CANONICAL_ID = b"00000000-0000-0000-0000-000000000000"
# uuid.UUID() alone would also take underscores, blanks and digits of other scripts.
_SPELLED_ID = re.compile(
    r"(?:urn:uuid:)?(\{)?([0-9a-f]{8})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{4})-?"
    r"([0-9a-f]{12})(?(1)\})",
    re.ASCII | re.IGNORECASE,
).fullmatch


# Where the 30 whole digits of noise, the digit of the version and that of the variant stand in the
# text of an id, which ends with a blank here.
_TEMPLATE = b"########-####-4###-v###-############ "
_PLACES = [place for place, byte in enumerate(_TEMPLATE) if byte == ord("#")]
_VARIANT_PLACE = _TEMPLATE.index(b"v")
_VARIANTS = bytes.maketrans(b"0123456789abcdef", b"89ab" * 4)


def new_id() -> str:
    """Return a random UUID as text (version 4 layout, RFC 9562), safe from any thread."""
    while True:
        try:
            return _pool.pop()
        except IndexError:
            _refill()


def _refill() -> None:
    """Make 256 ids at once: a digit of all of them at a time, so that each costs little."""
    digits = os.urandom((len(_PLACES) + 1) * _POOL_SIZE // 2).hex().encode()
    text = bytearray(_TEMPLATE) * _POOL_SIZE
    start = 0
    for place in _PLACES:
        text[place :: len(_TEMPLATE)] = digits[start : start + _POOL_SIZE]
        start += _POOL_SIZE
    text[_VARIANT_PLACE :: len(_TEMPLATE)] = digits[start:].translate(_VARIANTS)
    _pool.extend(text.decode().split())


def is_canonical_id(text: str) -> bool:
    """Return whether *text* is a UUID as `new_id` writes it: with dashes, in lower case."""
    # Half the time of a regular expression, and every message received has an id.
    return text.encode("ascii", "replace").translate(DIGITS_AS_ZEROS) == CANONICAL_ID


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
