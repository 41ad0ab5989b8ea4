"""The life of a socket: options, opening, sharing by id, forking, flushing.

Every socket has a context of its own, so that closing one waits for what it still has to send and
for nothing else. Milliseconds exist in this module only.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar, cast

import attrs
import zmq

from postbus.errors import ClosedError
from postbus_zeromq._errors import translate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "BareSocket",
    "Endpoint",
    "OpenSocket",
    "PushSocket",
    "give_back",
    "open_socket",
    "start_afresh_after_fork",
    "take",
]

logger = logging.getLogger("postbus.zeromq")

# A peer that connects and then says nothing holds a descriptor no longer than this.
_HANDSHAKE = 5.0
# A frame between the limit and this many times the limit is dropped by itself and logged; beyond
# that libzmq cuts the connection before it takes memory, whatever else was on the way.
_CUT_OFF = 4
# The frames of a handshake count as well.
_SMALLEST_CUT_OFF = 65_536
# libzmq counts whole milliseconds, and may be one early.
_TICK = 0.002
_NOTHING: Mapping[zmq.SocketOption, int] = MappingProxyType({})


def milliseconds(seconds: float) -> int:
    """Return *seconds* as libzmq counts them, rounded up: a little is never nothing."""
    return -int(-seconds * 1000 // 1)


@attrs.frozen
class Endpoint:
    """Everything that makes two sockets the same one. *linger* is in seconds."""

    dsn: str
    bind: bool
    high_water_mark: int
    linger: float
    max_size_bytes: int


class BareSocket(Protocol):
    """The calls of a socket without what pyzmq puts round them, which costs as much again."""

    def send(self, data: bytes, flags: int) -> object:
        """Send one frame."""
        ...

    def recv(self, flags: int) -> bytes:
        """Return the next frame."""
        ...

    def get(self, option: int) -> int:
        """Return the value of an option that is a number."""
        ...


@attrs.frozen
class OpenSocket:
    """A zmq socket and the context that is only for it."""

    context: zmq.Context[zmq.Socket[bytes]]
    socket: zmq.Socket[bytes]
    linger: float

    @property
    def bare(self) -> BareSocket:
        """The socket's own calls; what is round them serves draft sockets and copies only."""
        return cast("BareSocket", super(zmq.Socket, self.socket))

    def is_ready(self, for_: int) -> bool:
        """Return whether a read (`zmq.POLLIN`) or a write (`zmq.POLLOUT`) would succeed now."""
        return bool(int(self.socket.get(zmq.EVENTS)) & for_)

    def close(self) -> None:
        """Close both; blocks up to `linger` seconds for what is still to be sent."""
        self.socket.close(linger=milliseconds(self.linger))
        self.context.term()


def open_socket(
    kind: zmq.SocketType, endpoint: Endpoint, options: Mapping[zmq.SocketOption, int] = _NOTHING
) -> OpenSocket:
    """Open a socket and bind or connect it; a connection is then made in the background.

    *options* are set after those that every socket here has, and before it is bound.

    Raises:
        ConnectionFailedError: the address is in use, or is none of this machine's.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(kind)
    largest = max(endpoint.max_size_bytes * _CUT_OFF, _SMALLEST_CUT_OFF)
    try:
        socket.set(zmq.HANDSHAKE_IVL, milliseconds(_HANDSHAKE))
        socket.set(zmq.MAXMSGSIZE, largest)
        socket.set(zmq.SNDHWM, endpoint.high_water_mark)
        socket.set(zmq.RCVHWM, endpoint.high_water_mark)
        # Without it a message for nobody would wait in memory and look sent.
        socket.set(zmq.IMMEDIATE, 1)
        socket.set(zmq.IPV6, int("[" in endpoint.dsn))
        for option, value in options.items():
            socket.set(option, value)
        if endpoint.bind:
            socket.bind(endpoint.dsn)
        else:
            socket.connect(endpoint.dsn)
    except zmq.ZMQError as error:
        OpenSocket(context, socket, linger=0.0).close()
        verb = "bind" if endpoint.bind else "connect to"
        raise translate(error, f"{verb} {endpoint.dsn}") from error
    logger.debug("socket opened", extra={"dsn": endpoint.dsn, "type": kind.name})
    return OpenSocket(context, socket, endpoint.linger)


class PushSocket:
    """One PUSH socket of this process, for any number of producers and threads.

    libzmq sockets are not thread-safe but may move between threads with a memory fence: the lock
    is that fence. It is held for single non-blocking calls only, so nobody waits inside it.
    """

    kind: ClassVar[zmq.SocketType] = zmq.PUSH

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.users = 0
        self._closed = False
        self._start_afresh()
        start_afresh_after_fork(self)
        _pushing.add(self)

    def _start_afresh(self) -> None:
        self._lock = threading.Lock()
        self._open: OpenSocket | None = None
        self._send: Callable[[bytes, int], object] | None = None
        self._fd = -1
        self.has_sent = False

    def offer(self, body: bytes) -> bool:
        """Send *body* if some peer has room for it now; never blocks.

        Raises:
            ClosedError: it is closed.
            TransportError: the socket cannot be opened.
        """
        lock = self._lock
        lock.acquire()  # `with` costs twice as much, once per message
        try:
            if self._send is None:
                # Nobody can be there yet, so the first message takes the way that waits for a
                # peer, and notes that there was one.
                self._connect()
                return False
            self._send(body, _NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            raise translate(error, f"send to {self.endpoint.dsn}") from error
        finally:
            lock.release()
        return True

    def _connect(self) -> None:
        if self._closed:
            msg = f"the producer for {self.endpoint.dsn} is closed"
            raise ClosedError(msg)
        self._open = open_socket(self.kind, self.endpoint)
        self._fd = self._open.socket.FD
        self._send = self._open.bare.send

    def has_room(self) -> bool:
        """Return whether a send may succeed now; never blocks."""
        with self._lock:
            if self._open is None:
                return True  # the next offer opens it, or says that it is closed
            return self._open.is_ready(zmq.POLLOUT)

    def wait(self, seconds: float) -> None:
        """Block until something happens on the socket, at most *seconds*."""
        # The descriptor, unlike the socket, may be watched from any thread.
        zmq.zmq_poll([(self._fd, zmq.POLLIN)], milliseconds(seconds))

    def close(self) -> None:
        """Close it for good; blocks up to `linger` seconds for what is still to be sent."""
        with self._lock:
            self._closed = True
            opened, self._open, self._send = self._open, None, None
        if opened is None:
            return
        started = time.monotonic()
        opened.close()
        if 0.0 < opened.linger <= time.monotonic() - started + _TICK:
            logger.warning(
                "messages discarded at close",
                extra={"dsn": self.endpoint.dsn, "linger": opened.linger},
            )

    def leave_to_parent(self) -> object:
        """Forget the parent's socket without touching it; the next send opens one anew."""
        opened = self._open
        self._start_afresh()
        return opened


_NOBLOCK = int(zmq.NOBLOCK)
_pushing: weakref.WeakSet[PushSocket] = weakref.WeakSet()
_shared: dict[tuple[type[PushSocket], str, Endpoint], PushSocket] = {}
_shared_lock = threading.Lock()


S = TypeVar("S", bound=PushSocket)


def take(cls: type[S], endpoint: Endpoint, persistent_id: str | None) -> S:
    """Return the process's socket for *persistent_id*, or one for the caller alone.

    Whoever takes it gives it back.
    """
    if persistent_id is None:
        return cls(endpoint)
    key = cls, persistent_id, endpoint
    with _shared_lock:
        if key not in _shared:
            _shared[key] = cls(endpoint)
        socket = _shared[key]
        socket.users += 1
    return cast("S", socket)


def give_back(socket: PushSocket, persistent_id: str | None) -> None:
    """Close *socket* if nobody else has it, which blocks up to `linger` seconds."""
    if persistent_id is not None:
        with _shared_lock:
            socket.users -= 1
            if socket.users > 0:
                return
            del _shared[type(socket), persistent_id, socket.endpoint]
    socket.close()


@atexit.register
def _flush_at_exit() -> None:
    """Give what was sent its time to leave where nobody closed the producer."""
    for socket in tuple(_pushing):
        socket.close()


class ForkAware(Protocol):
    """Something that has a socket, and can go on without it."""

    def leave_to_parent(self) -> object:
        """Forget the socket, in a child, and return it for somebody to keep."""
        ...


_fork_aware: weakref.WeakSet[ForkAware] = weakref.WeakSet()
# Sockets of a parent process. Nothing in a child may close one, or collect it.
_inherited: list[object] = []


def start_afresh_after_fork(owner: ForkAware) -> None:
    """Call `owner.leave_to_parent()` in every forked child, as long as *owner* lives."""
    _fork_aware.add(owner)


def _after_fork_in_child() -> None:
    global _shared_lock  # noqa: PLW0603  another thread of the parent may hold the old one
    _shared_lock = threading.Lock()
    _inherited.extend(owner.leave_to_parent() for owner in _fork_aware)


os.register_at_fork(after_in_child=_after_fork_in_child)
