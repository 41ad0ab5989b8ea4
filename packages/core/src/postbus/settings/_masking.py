"""Show a configured value to a person: short, on one line, and never with a secret in it."""

from __future__ import annotations

import re
from typing import Any

from postbus.settings._shapes import article_of

__all__ = ["join", "looks_secret", "mask", "show"]

LONGEST = 80
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+").fullmatch
_SECRET_NAME = re.compile(r"pass(wor[dt]|wd|phrase)|secret|token|credential|(api|private)_?key")
_USERINFO = re.compile(r"^(['\"]?(?:\w[\w+.-]*://)?).*@", re.DOTALL)
_QUERY = re.compile(r"(?<=.://)([^?#]*[?#]).*", re.DOTALL)
_ASSIGNMENT = re.compile(r"((?:pass|pwd|secret|token|key)\w*\s*[=:]\s*)[^\s;&,]+", re.IGNORECASE)


def mask(text: str) -> str:
    """Replace what may be a secret in a text: user and password, query, `password=…`."""
    if "@" in text:
        text = _USERINFO.sub(r"\1***@", text)
    if "://" in text:
        text = _QUERY.sub(r"\1***", text)
    if "=" in text or ":" in text:
        text = _ASSIGNMENT.sub(r"\1***", text)
    return text


def looks_secret(name: str) -> bool:
    """Say whether a key by its name alone holds a secret, whatever its settings class says."""
    return _SECRET_NAME.search(name.lower()) is not None


def show(value: Any, *, secret: bool = False) -> str:
    """Return a value as a problem shows it; of tables, arrays and objects only what they are."""
    if secret:
        return "***"
    template = getattr(value, "template", None)
    if isinstance(value, str) and template is not None:
        return f"{_shorten(repr(mask(template)))} from the environment"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _shorten(repr(mask(value)))
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 64):
        return repr(value)
    return article_of(value)


def join(path: str, key: object) -> str:
    """Return the path of *key* below *path*; a key that is no bare name stands in quotes."""
    text = str(key)
    if not _BARE_KEY(text):
        text = f'"{_shorten(repr(mask(text))[1:-1])}"'
    return f"{path}.{text}" if path else text


def _shorten(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
