"""Send messages by putting files into a folder."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from postbus.errors import ClosedError, PartiallySentError, TransportError
from postbus.transports import MessageProducer
from postbus_files._capabilities import capabilities_of
from postbus_files._folder import Folder, microseconds, translate
from postbus_files._names import LAST_PRIORITY, Entry, delayed_name, token_of
from postbus_files._replies import Replies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from postbus.promises import Promise
    from postbus.transports import Capabilities, Reply, WireMessage
    from postbus_files.settings import FilesProducerSettings

__all__ = ["FilesProducer", "entry_of"]


class FilesProducer(MessageProducer):
    """Puts one file per message into a folder, whole and durable before `send` returns.

    Any thread and, after a fork, any process; several hosts where the file system renames
    atomically, as local ones and NFS do. Blocks for the disk: 0.1 to 10 milliseconds a message
    where `sync` is on. Whoever built it closes it.
    """

    def __init__(self, settings: FilesProducerSettings, *, max_size_bytes: int) -> None:
        self.capabilities: Capabilities = capabilities_of(settings, max_size_bytes)
        self._settings = settings
        self._max_size_bytes = max_size_bytes
        self._folder = Folder(Path(settings.path), sync=settings.sync)
        self._is_closed = False
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._last_stamp = 0
        self._replies = Replies(self._folder, self._settings.poll_interval, self._max_size_bytes)

    def send_many(self, messages: Sequence[WireMessage]) -> None:
        """Hand over *messages*, in order; returns when all of them are files, and durable.

        Raises:
            PartiallySentError: some were too large, or the disk refused them.
            ClosedError: after `close()`.
        """
        self._put([(message, "0") for message in messages])

    def request(self, message: WireMessage, reply: Promise[Reply]) -> None:
        """Send a query; the file that answers it settles *reply*. Raises nothing."""
        try:
            self._refuse_closed()
            self._folder.prepare()
            address = self._replies.expect(reply)
            self._put([(message, address)])
        except PartiallySentError as error:
            reply.reject(error.failed[0])
        except TransportError as error:
            reply.reject(error)
        except OSError as error:
            reply.reject(translate(error, f"ask under {self._folder.path}"))

    def _put(self, messages: Sequence[tuple[WireMessage, str]]) -> None:
        self._refuse_closed()
        folder = self._folder
        folder.prepare()
        failed: dict[int, TransportError] = {}
        renamed: dict[Path, list[int]] = {}
        for index, (message, reply) in enumerate(messages):
            try:
                refusal = self.capabilities.refusal(message, "a folder")
                if refusal is not None:
                    raise refusal
                written = folder.write(message.body)
                entry = entry_of(message, self._next_stamp(), reply=reply)
                target = _place(folder, message, entry)
                written.rename(target)
                renamed.setdefault(target.parent, []).append(index)
            except TransportError as error:
                failed[index] = error
            except OSError as error:
                failed[index] = translate(error, f"send to {folder.path}")
        for parent, indexes in renamed.items():
            try:
                folder.make_durable([parent])
            except OSError as error:
                failure = translate(error, f"send to {folder.path}")
                failed.update(dict.fromkeys(indexes, failure))
        if failed:
            raise PartiallySentError(
                f"{folder.path} did not take {len(failed)} of {len(messages)} messages",
                dict(sorted(failed.items())),
            )

    def _next_stamp(self) -> int:
        # Two messages of one microsecond keep their order.
        with self._lock:
            self._last_stamp = max(microseconds(), self._last_stamp + 1)
            return self._last_stamp

    def _refuse_closed(self) -> None:
        if self._process != os.getpid():
            # In a forked child: the parent's thread is not here, and its answers are not ours.
            self._start_afresh()
        if self._is_closed:
            raise ClosedError(f"{self._folder.path}: the producer is closed")

    def close(self) -> None:
        """Refuse further messages and reject the queries that wait. Idempotent.

        What was sent stays for the consumers.
        """
        self._is_closed = True
        if self._process == os.getpid():
            self._replies.close()


def entry_of(message: WireMessage, stamp: int, *, reply: str = "0") -> Entry:
    """Return what the file of *message* is called."""
    expires = message.expires_at
    return Entry(
        LAST_PRIORITY - (message.priority or 0),
        stamp,
        token_of(message.id),
        0 if expires is None else int(expires.timestamp() * 1_000_000),
        reply=reply,
    )


def _place(folder: Folder, message: WireMessage, entry: Entry) -> Path:
    if not message.delay:
        return folder.ready / entry.name
    due = microseconds() + int(message.delay * 1_000_000)
    return folder.delayed / delayed_name(due, entry)
