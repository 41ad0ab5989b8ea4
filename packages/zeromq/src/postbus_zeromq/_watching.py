"""Who reads the answers that come to a DEALER socket: an event loop, and a thread."""

from __future__ import annotations

import asyncio
import os
import socket as sockets
import threading
import weakref
from contextlib import suppress
from typing import Protocol

import zmq

from postbus_zeromq._sockets import milliseconds

__all__ = ["LoopWatch", "Read", "WatchThread"]

_POLLIN = int(zmq.POLLIN)


class Read(Protocol):
    """A socket as a thread reads it."""

    @property
    def is_closed(self) -> bool:
        """Whether the thread should end."""
        ...

    @property
    def is_needed(self) -> bool:
        """Whether anything waits that only the thread looks after."""
        ...

    @property
    def poll_seconds(self) -> float | None:
        """How long the thread may wait for a signal, None for any time."""
        ...

    def descriptor(self) -> int | None:
        """Return a new descriptor to watch, None where there is none yet."""
        ...

    def read(self) -> None:
        """Settle whoever has an answer by now."""
        ...

    def send_waiting(self) -> None:
        """Send what found no peer."""
        ...


class LoopWatch:
    """The watch that one loop keeps on a descriptor of its own, which ends with the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
        self._loop = weakref.ref(loop)
        self._descriptor = descriptor
        self._release = weakref.finalize(loop, os.close, descriptor)
        self._release.atexit = False

    def stop(self) -> None:
        """End it, there and then or on the loop's next turn. Any thread."""
        loop = self._loop()
        if loop is None:
            return
        if loop is asyncio._get_running_loop():  # noqa: SLF001  documented as public for libraries in asyncio.events
            self._stop(loop)
            return
        try:
            loop.call_soon_threadsafe(self._stop, loop)
        except RuntimeError:  # it is closed, and so watches nothing
            self._release()

    def _stop(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self._descriptor)
        self._release()


class WatchThread:
    """Reads the answers of promises and sends what found no peer; parked where nobody needs it.

    It ends when its socket is closed.
    """

    def __init__(self, socket: Read) -> None:
        self._socket = socket
        self._inbox, self._outbox = sockets.socketpair()
        self._inbox.settimeout(0)
        self._is_woken = False
        self.is_parked = False

    def start(self) -> None:
        """Begin; the interpreter does not wait for it at its end."""
        threading.Thread(target=self._run, name="postbus-zeromq", daemon=True).start()

    def wake(self) -> None:
        """Have it look at everything, soon. Any thread."""
        if not self._is_woken:
            self._is_woken = True
            with suppress(OSError):  # it has ended meanwhile
                self._outbox.send(b"\0")

    def _run(self) -> None:
        socket, descriptor = self._socket, None
        with self._inbox, self._outbox:
            while not socket.is_closed:
                if descriptor is None:
                    descriptor = socket.descriptor()
                self._wait(descriptor)
                socket.read()
                socket.send_waiting()
        if descriptor is not None:
            os.close(descriptor)

    def _wait(self, descriptor: int | None) -> None:
        socket, woken = self._socket, self._inbox.fileno()
        watched = [(woken, _POLLIN)]
        self.is_parked = True
        # Who needs the thread says so first, and then looks whether it is parked.
        if socket.is_needed and descriptor is not None:
            self.is_parked = False
            watched.append((descriptor, _POLLIN))
        seconds = socket.poll_seconds
        ready = zmq.zmq_poll(watched, -1 if seconds is None else milliseconds(seconds))
        if any(each == woken for each, _ in ready):
            self._inbox.recv(64)
            self._is_woken = False
