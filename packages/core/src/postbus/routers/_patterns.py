"""A table from names and patterns to targets."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any

from postbus.errors import RoutingError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from postbus.pipeline import Target

    # Targets with the order in which they were added, over all keys of a table.
    Ordered = tuple[tuple[int, Target], ...]

# Long enough for any sane pattern or name, short enough to bound what one match can cost.
MAX_PATTERN_CHARACTERS = 256


def glob(pattern: str) -> re.Pattern[str]:
    """Return *pattern*, a glob over dot segments, compiled.

    `*` stands for a segment or a part of one, `**` for one or more whole segments.

    Raises:
        RoutingError: it is too long, or a `**` is only a part of a segment.
    """
    _refuse_long(pattern)
    return re.compile(r"\.".join(_segment(part, pattern) for part in pattern.split(".")))


def _segment(part: str, pattern: str) -> str:
    if part == "**":
        return r"[^.]+(?:\.[^.]+)*"
    if "**" in part:
        msg = f"{pattern!r}: ** stands for whole segments, so nothing else may be in its segment"
        raise RoutingError(msg)
    # A segment is never empty, a part of one may be.
    return r"[^.]+" if part == "*" else r"[^.]*".join(map(re.escape, part.split("*")))


def regular(pattern: str) -> re.Pattern[str]:
    """Return *pattern*, a regular expression, compiled.

    Raises:
        RoutingError: it is too long or no regular expression.
    """
    _refuse_long(pattern)
    try:
        return re.compile(pattern)
    except re.error as error:
        msg = f"{pattern!r} is no regular expression: {error}"
        raise RoutingError(msg) from error


def _refuse_long(pattern: str) -> None:
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        msg = (
            f"the pattern {pattern[:40]!r}… has {len(pattern)} characters, at most "
            f"{MAX_PATTERN_CHARACTERS} are allowed: split it into several routes"
        )
        raise RoutingError(msg)


class Table:
    """Targets by exact name and by pattern; *many* lets one name have several. Any thread."""

    def __init__(
        self,
        *,
        many: bool,
        compile_pattern: Callable[[str], re.Pattern[str]],
        is_exact: Callable[[str], bool],
    ) -> None:
        self._many = many
        self._compile = compile_pattern
        self._is_exact = is_exact
        self._lock = threading.Lock()
        self._count = 0
        self._exact: dict[str, Ordered] = {}
        self._patterns: dict[str, tuple[Callable[[str], Any], Ordered]] = {}

    def add(self, key: str, target: Target, *, exact: bool = False) -> None:
        """Add *target* for *key*, a name or a pattern; *exact* says that it is a name.

        Raises:
            RoutingError: the key has a target already and may have only one (T04).
        """
        with self._lock:
            if exact or self._is_exact(key):
                self._exact[key] = self._with(key, self._exact.get(key, ()), target)
            else:
                match, before = self._patterns.get(key) or (self._compile(key).fullmatch, ())
                self._patterns[key] = match, self._with(key, before, target)

    def _with(self, key: str, before: Ordered, target: Target) -> Ordered:
        if before and not self._many:
            msg = (
                f"{key} is routed twice, and may have one handler: first {before[0][1].to!r}, "
                f"then {target.to!r}"
            )
            raise RoutingError(msg)
        self._count += 1
        return (*before, (self._count, target))

    def find(self, name: str) -> list[Target]:
        """Return the targets of *name*, in the order added where a name may have many.

        Where it may have one, exact beats pattern.

        Raises:
            RoutingError: two patterns match a name that may have one target (P05).
        """
        exact = self._exact.get(name, ())
        found = list(exact)
        if len(name) <= MAX_PATTERN_CHARACTERS and (self._many or not exact):
            with self._lock:
                patterns = tuple(self._patterns.items())
            matching = [(k, t) for k, (match, t) in patterns if match(name)]
            if len(matching) > 1 and not self._many:
                both = " and ".join(repr(k) for k, _ in matching)
                msg = f"{name} matches more than one pattern, and may match one: {both}"
                raise RoutingError(msg)
            found += [ordered for _, targets in matching for ordered in targets]
        return [target for _, target in sorted(found, key=lambda ordered: ordered[0])]


def glob_table(*, many: bool) -> Table:
    """Return a table whose keys with a `*` are globs."""
    return Table(many=many, compile_pattern=glob, is_exact=lambda key: "*" not in key)


def regex_table(names: Collection[str], *, many: bool) -> Table:
    """Return a table whose keys are regular expressions, except those among *names*."""
    return Table(many=many, compile_pattern=regular, is_exact=lambda key: key in names)
