"""The gearman protocol over one connection: packets, the server's text command, time-outs.

Packets are written many at a time and their answers read in order: a batch costs one round trip.
Every wait has an end. One thread writes and one reads.

Source: PROTOCOL of gearmand 1.1.20.
"""

from __future__ import annotations

import math
import select
import socket
import struct
import time
from enum import IntEnum
from typing import TYPE_CHECKING, Self

import attrs

from postbus.errors import ConnectionFailedError, RejectedError, TimedOutError, TransportError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Connection", "Kind", "Packet", "packet", "readable", "refusal"]

_HEADER = struct.Struct(">4sII")
_REQUEST, _RESPONSE = b"\0REQ", b"\0RES"
_BLOCK = 65_536
# What no server of ours may say: more is not waited for.
_LARGEST = 1 << 30
# Shorter pauses than this are a busy connection's, and looking costs as much as sending.
_IDLE = 1.0
_LONGEST_TEXT = 200


class Kind(IntEnum):
    """The kinds of packets that we send or read, by the protocol's numbers."""

    CAN_DO = 1
    PRE_SLEEP = 4
    NOOP = 6
    SUBMIT_JOB = 7
    JOB_CREATED = 8
    NO_JOB = 10
    WORK_COMPLETE = 13
    WORK_FAIL = 14
    ECHO_REQ = 16
    ECHO_RES = 17
    SUBMIT_JOB_BG = 18
    ERROR = 19
    SUBMIT_JOB_HIGH = 21
    WORK_DATA = 28
    WORK_WARNING = 29
    GRAB_JOB_UNIQ = 30
    JOB_ASSIGN_UNIQ = 31
    SUBMIT_JOB_HIGH_BG = 32
    SUBMIT_JOB_LOW = 33
    SUBMIT_JOB_LOW_BG = 34


@attrs.frozen
class Packet:
    """One packet that the server sent; a *kind* that `Kind` does not have is possible."""

    kind: int
    data: bytes

    def arguments(self, count: int) -> list[bytes]:
        """Return the data as *count* arguments, of which the last may hold anything.

        Raises:
            ConnectionFailedError: there are fewer.
        """
        found = self.data.split(b"\0", count - 1)
        if len(found) != count:
            text = f"packet {self.kind} of the server has {len(found)} arguments, not {count}"
            raise ConnectionFailedError(text)
        return found


def packet(kind: Kind, *arguments: bytes) -> bytes:
    """Return a request as it travels."""
    data = b"\0".join(arguments)
    return _HEADER.pack(_REQUEST, kind, len(data)) + data


def refusal(answer: Packet, doing: str) -> TransportError:
    """Return the error for an *answer* that is not what *doing* something hoped for."""
    if answer.kind != Kind.ERROR:
        return RejectedError(f"{doing}: the server said what nobody expects ({answer.kind})")
    code, _, text = answer.data[:_LONGEST_TEXT].decode("ascii", "replace").partition("\0")
    return RejectedError(f"{doing}: {text} ({code})")


def readable(numbers: Iterable[int], seconds: float) -> set[int]:
    """Wait until one of the file descriptors *numbers* has something; return those that have."""
    poll = select.poll()
    for number in numbers:
        poll.register(number, select.POLLIN)
    # Rounded up: a wait that ends early would be begun again and again.
    return {number for number, _ in poll.poll(math.ceil(max(0.0, seconds) * 1000))}


class Connection:
    """A connection to a gearman server.

    Args:
        address: host and port.
        timeout: seconds to connect, and to wait for each answer.

    Raises:
        ConnectionFailedError: nobody is there.
    """

    def __init__(self, address: tuple[str, int], timeout: float) -> None:
        self._where = f"gearmand at {address[0]}:{address[1]}"
        self._timeout = timeout
        try:
            self._socket = socket.create_connection(address, timeout)
        except OSError as error:
            text = f"{self._where} cannot be reached: {error.strerror or error}"
            raise ConnectionFailedError(text) from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._buffer = bytearray()
        self._used = time.monotonic()

    def fileno(self) -> int:
        """Return what `readable` takes."""
        return self._socket.fileno()

    @property
    def has_more(self) -> bool:
        """Whether something that came is not read yet, which `readable` does not see."""
        return bool(self._buffer)

    @property
    def has_hung_up(self) -> bool:
        """Whether the server ended the connection while it was idle; looked at after a second.

        An idle connection has nothing to read but its end.
        """
        if time.monotonic() - self._used < _IDLE:
            return False
        return bool(readable([self.fileno()], 0.0))

    def send(self, data: bytes) -> None:
        """Write *data*, one or many packets.

        Raises:
            TimedOutError: the server did not take it in time; close the connection.
            ConnectionFailedError: the connection broke; close it.
        """
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise self._failed(error) from error

    def receive(self) -> Packet:
        """Wait for a packet.

        Raises:
            TimedOutError: none came in time; close the connection.
            ConnectionFailedError: the connection broke, or this is no gearman server; close it.
        """
        self._fill(_HEADER.size)
        magic, kind, size = _HEADER.unpack_from(self._buffer)
        if magic != _RESPONSE or size > _LARGEST:
            raise ConnectionFailedError(f"{self._where} does not speak gearman's protocol")
        end = _HEADER.size + size
        self._fill(end)
        data = bytes(self._buffer[_HEADER.size : end])
        del self._buffer[:end]
        return Packet(kind, data)

    def answer(self) -> Packet:
        """Wait for a packet that is no NOOP: those come at any time, and only wake who sleeps.

        Raises:
            TransportError: as `receive` does.
        """
        while True:
            found = self.receive()
            if found.kind != Kind.NOOP:
                self._used = time.monotonic()
                return found

    def text(self) -> bytes | None:
        """Wait for the answer to a text command: lines up to a full stop; None for a refusal.

        Raises:
            TransportError: as `receive` does.
        """
        buffer, searched = self._buffer, 0
        while True:
            if buffer.startswith(b"ERR") and b"\n" in buffer:
                del buffer[: buffer.index(b"\n") + 1]
                return None
            end = 0 if buffer.startswith(b".\n") else buffer.find(b"\n.\n", searched) + 1
            if end or buffer.startswith(b".\n"):
                lines = bytes(buffer[:end])
                del buffer[: end + 2]
                return lines
            searched = max(0, len(buffer) - 2)
            self._fill(len(buffer) + 1)

    def _fill(self, size: int) -> None:
        """Read until *size* bytes are there."""
        while len(self._buffer) < size:
            try:
                piece = self._socket.recv(_BLOCK)
            except OSError as error:
                raise self._failed(error) from error
            if not piece or len(self._buffer) > _LARGEST:
                raise ConnectionFailedError(f"{self._where} ended the connection")
            self._buffer += piece

    def _failed(self, error: OSError) -> TransportError:
        if isinstance(error, TimeoutError):
            return TimedOutError(f"{self._where} did not answer within {self._timeout} seconds")
        return ConnectionFailedError(f"{self._where}: {error.strerror or error}")

    def end(self) -> None:
        """Have a thread that reads see the end, which then closes. Any thread; idempotent."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the server was faster

    def __enter__(self) -> Self:
        """Return itself; leaving closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close it; jobs that were taken over it go back to the server's queue. Idempotent."""
        self._socket.close()
