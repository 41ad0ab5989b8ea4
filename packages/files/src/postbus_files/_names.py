"""What the name of a file says: everything about a message but its body.

A waiting message is `PRIORITY-STAMP-TOKEN-EXPIRY-DELIVERIES-REPLY.json`, so that names sorted as
text are messages in order. A delayed one has the time it is due before that, a claimed one the
time its lease ends and who holds it. Times are microseconds since 1970 as sixteen hexadecimal
digits, the token is a hash of the message's id: nothing from outside becomes part of a path.
"""

from __future__ import annotations

import re
from hashlib import sha256

import attrs

__all__ = ["Claim", "Entry", "delayed_name", "due_of", "token_of"]

LAST_PRIORITY = 9
_ENTRY = re.compile(
    r"(?P<rank>[0-9])-(?P<stamp>[0-9a-f]{16})-(?P<token>[0-9a-f]{16})"
    r"-(?P<expires>[0-9a-f]{1,16})-(?P<deliveries>[0-9]{1,9})-(?P<reply>0|[0-9a-f]{32}\.[0-9]{1,18})"
    r"\.json"
).fullmatch
_CLAIM = re.compile(r"(?P<until>[0-9a-f]{16})-(?P<owner>[0-9a-f]{16})-(?P<entry>.+)").fullmatch
_DELAYED = re.compile(r"(?P<due>[0-9a-f]{16})-(?P<entry>.+)").fullmatch


def token_of(message_id: str) -> str:
    """Return what stands for an id in a name."""
    return sha256(message_id.encode()).hexdigest()[:16]


@attrs.frozen
class Entry:
    """A message in the folder, but for its body.

    *rank* is 9 less the priority. *stamp* keeps the order of one rank. *expires* is a time, 0 for
    never. *deliveries* counts how often it was claimed. *reply* is where an answer goes: the
    client and the number of its query, or "0".
    """

    rank: int
    stamp: int
    token: str
    expires: int = 0
    deliveries: int = 0
    reply: str = "0"

    @property
    def name(self) -> str:
        """The name of its file among those that wait."""
        return (
            f"{self.rank}-{self.stamp:016x}-{self.token}-{self.expires:x}"
            f"-{self.deliveries}-{self.reply}.json"
        )

    def has_expired(self, now: int) -> bool:
        """Whether nobody is to have it any more."""
        return 0 < self.expires <= now

    @classmethod
    def parse(cls, name: str) -> Entry | None:
        """Return what *name* says, None for a file that somebody else put there."""
        found = _ENTRY(name)
        if found is None:
            return None
        return cls(
            int(found["rank"]),
            int(found["stamp"], 16),
            found["token"],
            int(found["expires"], 16),
            int(found["deliveries"]),
            found["reply"],
        )

    @classmethod
    def foreign(cls, name: str, now: int) -> Entry:
        """Return the entry of a file that says nothing about itself: it came now."""
        return cls(LAST_PRIORITY, now, token_of(name))


@attrs.frozen
class Claim:
    """A message that somebody is handling until *until*."""

    entry: Entry
    until: int
    owner: str

    @property
    def name(self) -> str:
        """The name of its file among those that are claimed."""
        return f"{self.until:016x}-{self.owner}-{self.entry.name}"

    @classmethod
    def parse(cls, name: str) -> Claim | None:
        """Return what *name* says, None where that is nothing of ours."""
        found = _CLAIM(name)
        entry = None if found is None else Entry.parse(found["entry"])
        if found is None or entry is None:
            return None
        return cls(entry, int(found["until"], 16), found["owner"])


def delayed_name(due: int, entry: Entry) -> str:
    """Return the name of a file that waits until *due*."""
    return f"{due:016x}-{entry.name}"


def due_of(name: str) -> tuple[int, Entry] | None:
    """Return when a delayed file is due and its entry, None where that is nothing of ours."""
    found = _DELAYED(name)
    entry = None if found is None else Entry.parse(found["entry"])
    if found is None or entry is None:
        return None
    return int(found["due"], 16), entry
