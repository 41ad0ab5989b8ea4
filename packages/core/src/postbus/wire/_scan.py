"""What is checked about bytes before any parser sees them: size, UTF-8, depth, digits.

Everything here is a linear pass that CPython makes in C; a body of a few hundred bytes costs
well under a microsecond.
"""

from __future__ import annotations

from postbus.errors import DecodeError
from postbus.wire._reasons import Reason

MAX_DEPTH = 64
MAX_DIGITS = 1000
DEFAULT_MAX_SIZE_BYTES = 1024 * 1024

_BOM = b"\xef\xbb\xbf"
_DIGITS = b"0123456789"
_AS_BRACKETS = bytes.maketrans(b"{}", b"[]")
_ALL_BUT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_ALL_BUT_BRACKETS_AND_QUOTES = bytes(byte for byte in range(256) if byte not in b'"[]{}')
_AS_ZEROS = bytes.maketrans(_DIGITS, b"0" * len(_DIGITS))


def check_body(body: bytes, max_size_bytes: int) -> None:
    """Refuse a body that a parser should not be shown.

    Raises:
        DecodeError: too_large, bom, not_utf8, too_deep or too_many_digits.
    """
    check_text(body, max_size_bytes)
    check_nesting(body)


def check_text(body: bytes, max_size_bytes: int) -> None:
    """Refuse a body that is too large, or no UTF-8.

    Raises:
        DecodeError: too_large, bom or not_utf8.
    """
    check_size(body, max_size_bytes)
    if not body.isascii():
        _check_utf8(body)


def check_size(body: bytes, max_size_bytes: int) -> None:
    """Refuse a body that is too large.

    Raises:
        DecodeError: too_large.
    """
    if len(body) > max_size_bytes:
        msg = f"{len(body)} bytes, more than the {max_size_bytes} allowed"
        raise DecodeError(Reason.TOO_LARGE, msg)


def check_nesting(body: bytes) -> None:
    """Refuse what is nested too deeply, and numbers that are too long.

    Raises:
        DecodeError: too_deep or too_many_digits.
    """
    if len(body) > MAX_DIGITS:
        check_digits(body)
        # replace() looks for a byte many times faster than count() does.
        openings = 2 * len(body) - len(body.replace(b"{", b"")) - len(body.replace(b"[", b""))
    else:
        openings = body.count(b"{") + body.count(b"[")
    # Brackets in strings count too here: only a body with many is looked at closely.
    if openings > MAX_DEPTH:
        _check_depth(body)


def _check_utf8(body: bytes) -> None:
    if body.startswith(_BOM):
        msg = "starts with a byte order mark, which JSON on a wire must not have"
        raise DecodeError(Reason.BOM, msg)
    try:
        body.decode()
    except UnicodeDecodeError as error:
        msg = f"not UTF-8 from byte {error.start} on"
        raise DecodeError(Reason.NOT_UTF8, msg) from None


def _check_depth(body: bytes) -> None:
    brackets = body.translate(_AS_BRACKETS, _ALL_BUT_BRACKETS)
    # The deepest point has more than MAX_DEPTH openings before it and as many closings behind.
    # Where no point of the body has both, brackets inside strings need no thought.
    middle = len(brackets) // 2
    if brackets.count(b"[", 0, middle) <= MAX_DEPTH and brackets.count(b"]", middle) <= MAX_DEPTH:
        return
    brackets = _brackets_outside_strings(body)
    # Each pass takes the innermost pairs away, so there are as many passes as levels.
    for _ in range(MAX_DEPTH):
        rest = brackets.replace(b"[]", b"")
        if len(rest) == len(brackets):
            break
        brackets = rest
    # What does not pair up is the parser's to refuse, as long as it is shallow.
    if brackets.count(b"[") > MAX_DEPTH or b"[]" in brackets:
        msg = f"nested more than {MAX_DEPTH} levels deep"
        raise DecodeError(Reason.TOO_DEEP, msg)


def _brackets_outside_strings(body: bytes) -> bytes:
    kept = _without_escapes(body).translate(_AS_BRACKETS, _ALL_BUT_BRACKETS_AND_QUOTES)
    # Only if every string is without brackets does this take all quotes away.
    kept = kept.replace(b'""', b"")
    return b"".join(kept.split(b'"')[::2]) if b'"' in kept else kept


def _without_escapes(body: bytes) -> bytes:
    """Return *body* without escaped backslashes and quotes: what quotes are left delimit."""
    if b"\\" not in body:
        return body
    return body.replace(rb"\\", b"").replace(rb"\"", b"")


def check_digits(body: bytes) -> None:
    """Refuse a body with a number that is too long; one of `MAX_DIGITS` bytes has none.

    Raises:
        DecodeError: too_many_digits.
    """
    # A run that is too long covers one of the bytes that lie MAX_DIGITS + 1 apart.
    samples = body[MAX_DIGITS :: MAX_DIGITS + 1]
    if len(samples.translate(None, _DIGITS)) == len(samples):
        return
    for at in range(MAX_DIGITS, len(body), MAX_DIGITS + 1):
        if body[at] in _DIGITS:
            before, behind = body[at - MAX_DIGITS : at], body[at : at + MAX_DIGITS]
            run = len(before) - len(before.rstrip(_DIGITS))
            run += len(behind) - len(behind.lstrip(_DIGITS))
            if run > MAX_DIGITS:
                break
    else:
        return
    # Inside a string digits are text.
    numbers = b'"'.join(_without_escapes(body).split(b'"')[::2])
    if b"0" * (MAX_DIGITS + 1) in numbers.translate(_AS_ZEROS):
        msg = f"a number of more than {MAX_DIGITS} digits"
        raise DecodeError(Reason.TOO_MANY_DIGITS, msg)
