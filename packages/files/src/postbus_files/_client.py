"""Take messages out of a folder: claim by renaming, hold by a lease, settle by unlinking."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

import attrs

from postbus.errors import TransportError
from postbus.threaded import Action, BlockingClient, Received, Settlement
from postbus.transports import WaitingMessage
from postbus_files._folder import Listing, microseconds, translate, translated
from postbus_files._names import Claim, Entry, delayed_name, due_of
from postbus_files._replies import answer
from postbus_files.producer import entry_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from postbus.transports import Capabilities, WireMessage
    from postbus_files._folder import Folder
    from postbus_files.settings import FilesConsumerSettings

__all__ = ["FolderClient", "Held"]

logger = logging.getLogger("postbus.files")

# How often the claims of others are looked at for having run out: a small part of a lease, and
# no more than a second of the wait after a crash.
_SWEEP_INTERVAL = 1.0
_NO_REPLY = "0"


@attrs.define(eq=False)
class Held:
    """A message that this consumer holds; *claim* changes when its lease is renewed."""

    claim: Claim


class FolderClient(BlockingClient[Held]):
    """The blocking side of a folder's consumer; a `ThreadedConsumer` calls it."""

    can_wake: ClassVar[bool] = True

    def __init__(
        self, folder: Folder, settings: FilesConsumerSettings, capabilities: Capabilities
    ) -> None:
        self.capabilities: Capabilities = capabilities
        self.source: str = f"files:{folder.path}"
        self.queues: Sequence[str] = (settings.path,)
        self._folder = folder
        self._settings = settings
        self._poll_interval = settings.poll_interval
        self._lease = settings.lease
        assert capabilities.max_size_bytes is not None  # noqa: S101  a folder always has a limit
        self._max_size_bytes = capabilities.max_size_bytes
        self._owner = secrets.token_hex(8)
        self._woken = threading.Event()
        self._ready = Listing(folder.ready)
        self._delayed = Listing(folder.delayed, interval=settings.poll_interval)
        self._claimed = Listing(folder.claimed, interval=min(_SWEEP_INTERVAL, settings.lease / 4))

    def open(self) -> None:
        """Make the folder, and remove what dead processes left half written.

        Raises:
            TransportError: the folder cannot be used.
        """
        self._folder.prepare()
        with translated(f"open {self._folder.path}"):
            self._folder.remove_leftovers()

    def poll(self, max_messages: int, seconds: float) -> Sequence[Received[Held]]:
        """Claim at most *max_messages*, waiting up to *seconds* for the first.

        Raises:
            TransportError: the folder cannot be read.
        """
        end = time.monotonic() + seconds
        with translated(f"receive from {self._folder.path}"):
            while True:
                self._put_back()
                taken = self._take(max_messages)
                left = end - time.monotonic()
                if taken or left <= 0 or self._woken.wait(min(self._poll_interval, left)):
                    self._woken.clear()
                    return taken

    def wake(self) -> None:
        """End a `poll` that is waiting. Any thread."""
        self._woken.set()

    def tend(self) -> float:
        """Put back what is due, and what somebody held longer than the lease.

        Raises:
            TransportError: the folder cannot be read.
        """
        with translated(f"look through {self._folder.path}"):
            self._put_back()
        return _SWEEP_INTERVAL

    def close(self) -> None:
        """Do nothing: no descriptor stays open between calls."""

    def count(self) -> Mapping[str, int]:
        """Return how many files wait. Any thread.

        Raises:
            TransportError: the folder cannot be used.
        """
        return dict.fromkeys(self.queues, len(self._waiting()))

    def peek(self, queue: str, offset: int, limit: int) -> Sequence[WaitingMessage]:
        """Return what stands in files that wait, in order; no headers. Any thread.

        What cannot be a message is left out, and what somebody takes meanwhile.

        Raises:
            TransportError: the folder cannot be read.
        """
        found: list[WaitingMessage] = []
        names = self._waiting()[offset:]
        with translated(f"look into {queue}"):
            for name in names:
                if len(found) == limit:
                    break
                with suppress(FileNotFoundError):
                    body = self._folder.read(self._folder.ready / name, self._max_size_bytes)
                    if body is not None:
                        found.append(WaitingMessage(body))
        return found

    def purge(self, queue: str) -> int:
        """Remove the files that wait; return how many that were. Any thread.

        Raises:
            TransportError: the folder cannot be written.
        """
        removed, names = 0, self._waiting()
        with translated(f"purge {queue}"):
            for name in names:
                with suppress(IsADirectoryError):  # what receives will put it aside
                    removed += self._remove(self._folder.ready / name)
        return removed

    def _waiting(self) -> list[str]:
        """Return the names of what could be received now, in order. Any thread."""
        # The listings of this client are its own thread's.
        looking = FolderClient(self._folder, self._settings, self.capabilities)
        looking.open()
        with translated(f"look into {self._folder.path}"):
            looking._put_back()
            looking._ready.refresh()
        now = microseconds()
        return [name for name in looking._ready.names if not _has_expired(name, now)]

    def _put_back(self) -> None:
        now = microseconds()
        self._delayed.refresh()
        while self._delayed.names:
            name = self._delayed.names[0]
            delayed = due_of(name)
            if delayed is not None and delayed[0] > now:
                break  # so are those behind it
            self._delayed.names.popleft()
            entry = Entry.foreign(name, now) if delayed is None else delayed[1]
            self._rename(self._folder.delayed / name, self._folder.ready / entry.name)
        self._claimed.refresh()
        while self._claimed.names:
            name = self._claimed.names[0]
            claim = Claim.parse(name)
            if claim is not None and claim.until > now:
                break
            self._claimed.names.popleft()
            entry = Entry.foreign(name, now) if claim is None else claim.entry
            if self._rename(self._folder.claimed / name, self._folder.ready / entry.name):
                logger.warning("a lease ran out", extra={"source": self.source, "file": name})

    @staticmethod
    def _rename(source: Path, target: Path) -> bool:
        """Return whether we did it: somebody else may have been faster."""
        try:
            source.rename(target)
        except FileNotFoundError:
            return False
        return True

    def _take(self, max_messages: int) -> list[Received[Held]]:
        taken: list[Received[Held]] = []
        self._ready.refresh()
        names, now = self._ready.names, microseconds()
        while names and len(taken) < max_messages:
            try:
                received = self._claim(names.popleft(), now)
            except OSError:
                if not taken:
                    raise
                # What was claimed before is ours all the same; the next look says the rest.
                break
            if received is not None:
                taken.append(received)
        return taken

    def _claim(self, name: str, now: int) -> Received[Held] | None:
        folder = self._folder
        entry = Entry.parse(name) or Entry.foreign(name, now)
        if entry.has_expired(now):
            if self._remove(folder.ready / name):
                logger.info("message expired", extra={"source": self.source, "file": name})
            return None
        claimed = attrs.evolve(entry, deliveries=entry.deliveries + 1)
        claim = Claim(claimed, now + int(self._lease * 1_000_000), self._owner)
        path = folder.claimed / claim.name
        if not self._rename(folder.ready / name, path):
            return None
        try:
            body = folder.read(path, self._max_size_bytes)
        except FileNotFoundError:
            return None
        if body is None:
            self._rename(path, folder.rejected / entry.name)
            logger.error(
                "no message: not a plain file, or too large; kept in the folder rejected",
                extra={"source": self.source, "file": entry.name},
            )
            return None
        if not self.capabilities.acknowledge:
            self._remove(path)
        return Received(
            body=body,
            receipt=Held(claim),
            redelivered=entry.deliveries > 0,
            can_reply=entry.reply != _NO_REPLY,
        )

    @staticmethod
    def _remove(path: Path) -> bool:
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        return True

    def settle(self, settlements: Sequence[Settlement[Held]]) -> Mapping[int, TransportError]:
        """Carry out what was asked; what is no longer ours, or the disk refuses, has failed."""
        failed: dict[int, TransportError] = {}
        for index, settlement in enumerate(settlements):
            try:
                self._settle(settlement)
            except FileNotFoundError:
                text = f"{self.source}: the lease ran out before this was settled"
                failed[index] = TransportError(text)
            except OSError as error:
                failed[index] = translate(error, f"settle in {self._folder.path}")
        return failed

    def _settle(self, settlement: Settlement[Held]) -> None:
        folder, held = self._folder, settlement.receipt
        path = folder.claimed / held.claim.name
        match settlement.action:
            case Action.ACK:
                path.unlink()
            case Action.NACK:
                path.rename(folder.ready / held.claim.entry.name)
            case Action.EXTEND:
                self._renew(held, settlement.argument)
            case Action.REPLY:
                answer(folder, held.claim.entry.reply, settlement.argument)
            case Action.RETRY:
                self._retry(held, settlement.argument)

    def _renew(self, held: Held, seconds: float) -> None:
        until = microseconds() + int(seconds * 1_000_000)
        renewed = attrs.evolve(held.claim, until=until)
        claimed = self._folder.claimed
        (claimed / held.claim.name).rename(claimed / renewed.name)
        held.claim = renewed

    def _retry(self, held: Held, message: WireMessage) -> None:
        """Put a new body in place, then the file into the queue.

        A crash in between leaves one claim, of the old body or the new, which comes back when
        its lease has run out.
        """
        self._renew(held, self._lease)
        folder, old = self._folder, held.claim.entry
        path = folder.claimed / held.claim.name
        folder.write(message.body).rename(path)
        entry = entry_of(message, old.stamp, reply=old.reply)
        if message.priority is None:
            entry = attrs.evolve(entry, rank=old.rank)
        if message.delay:
            due = microseconds() + int(message.delay * 1_000_000)
            target = folder.delayed / delayed_name(due, entry)
        else:
            target = folder.ready / entry.name
        path.rename(target)
        folder.make_durable([target.parent])


def _has_expired(name: str, now: int) -> bool:
    entry = Entry.parse(name)
    return entry is not None and entry.has_expired(now)
