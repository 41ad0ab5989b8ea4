"""A folder that is a queue: what is where, and how a file gets there whole.

`ready` holds what waits, `delayed` what is not due yet, `claimed` what somebody is handling,
`replies` the answers to queries, `rejected` what cannot be a message. A file is written to `tmp`,
made durable and renamed: nobody ever sees half of one, and a rename has one winner.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

from postbus.errors import ConnectionFailedError, RejectedError, TransportError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path

__all__ = ["Folder", "Listing", "microseconds", "translate", "translated"]

_FOLDERS = ("tmp", "ready", "delayed", "claimed", "replies", "rejected")
_MODE = 0o700
_FILE_MODE = 0o600
_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
# A pipe in the folder must not block whoever opens it.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# A symbolic link, and what somebody else put there for themselves.
_NOT_OURS = {errno.ELOOP, errno.EACCES, errno.EPERM}
_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
# What a process that died left half written is nobody's after this time.
_LEFTOVER_SECONDS = 3600.0


def microseconds() -> int:
    """Return the time as file names have it: microseconds since 1970."""
    return time.time_ns() // 1000


def translate(error: OSError, doing: str) -> TransportError:
    """Return the postbus error for what the system said while *doing*.

    A full disk, or one that may not be written, refuses the message; all else may pass.
    """
    kind = RejectedError if error.errno in _REFUSED else ConnectionFailedError
    return kind(f"{doing}: {error.strerror or error}")


@contextmanager
def translated(doing: str) -> Generator[None]:
    """Raise what the system says in the block as a `TransportError` that says *doing*."""
    try:
        yield
    except OSError as error:
        raise translate(error, doing) from error


class Folder:
    """The folder at *path*. Every method is safe from any thread and any process.

    What the methods raise is the system's `OSError`; the callers know what it means.

    Args:
        path: made, with mode 0700, when `prepare` is called.
        sync: whether a message is on the disk, and not only on its way there, when it is sent.
    """

    def __init__(self, path: Path, *, sync: bool = True) -> None:
        self.path = path
        self.tmp, self.ready, self.delayed, self.claimed, self.replies, self.rejected = (
            path / name for name in _FOLDERS
        )
        self._sync = sync
        self._is_prepared = False

    def prepare(self) -> None:
        """Make what is not there yet. Idempotent.

        Raises:
            TransportError: it cannot be made, or strangers may write to it.
        """
        if self._is_prepared:
            return
        with translated(f"make the folder {self.path}"):
            self.path.mkdir(_MODE, parents=True, exist_ok=True)
            for name in _FOLDERS:
                (self.path / name).mkdir(_MODE, exist_ok=True)
            mode = self.path.stat().st_mode
        if mode & stat.S_IWOTH:
            msg = f"{self.path}: anybody may write to this folder; chmod it to 700"
            raise ConnectionFailedError(msg)
        self._is_prepared = True

    def write(self, body: bytes, *, durable: bool = True) -> Path:
        """Write *body* to a file that nobody else sees; *durable* has a say where `sync` is on."""
        path = self.tmp / secrets.token_hex(16)
        descriptor = os.open(path, _NEW, _FILE_MODE)
        try:
            try:
                left = memoryview(body)
                while left:
                    left = left[os.write(descriptor, left) :]
                if self._sync and durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    def make_durable(self, folders: Iterable[Path]) -> None:
        """Have the names in *folders* survive a crash of the machine, where that is asked for."""
        if not self._sync:
            return
        for folder in folders:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def read(self, path: Path, max_size_bytes: int) -> bytes | None:
        """Return the bytes at *path*; None for what is no plain file of ours, or a larger one."""
        try:
            descriptor = os.open(path, _READ)
        except OSError as error:
            if error.errno in _NOT_OURS:
                return None
            raise
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > max_size_bytes:
            os.close(descriptor)
            return None
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            return file.readall()

    def remove_leftovers(self) -> None:
        """Remove what processes that died had not finished writing, or asking."""
        oldest = time.time() - _LEFTOVER_SECONDS
        for path in self.tmp.iterdir():
            if _changed_at(path) < oldest:
                path.unlink(missing_ok=True)
        for client in self.replies.iterdir():
            if _changed_at(client) < oldest and not any(client.iterdir()):
                client.rmdir()


def _changed_at(path: Path) -> float:
    try:
        return path.stat(follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return time.time()


class Listing:
    """The names in a folder, in order, as they were a moment ago. One thread.

    Listing a folder costs as much as there is in it, so it is not done for each message: only
    when the last listing is used up, or so old that this one takes no more than a twentieth of
    the time.

    Args:
        folder: what to list.
        interval: seconds that a listing counts, used up or not.
    """

    def __init__(self, folder: Path, *, interval: float = 0.0) -> None:
        self._folder = folder
        self._interval = interval
        self.names: deque[str] = deque()
        self._until = 0.0

    def refresh(self) -> None:
        """List the folder anew if it is time to."""
        started = time.monotonic()
        if started < self._until and (self.names or self._interval):
            return
        self.names = deque(sorted(os.listdir(self._folder)))  # noqa: PTH208  a Path for each would cost ten times as much
        now = time.monotonic()
        self._until = now + max(self._interval, _PATIENCE * (now - started))


_PATIENCE = 20
