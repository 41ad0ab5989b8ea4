"""The beanstalkd protocol over one connection, many commands at a time.

Commands are written in one go and their answers read in order: a batch costs one round trip.
Every wait has an end. One thread at a time.

Source: protocol.txt of beanstalkd 1.13.
"""

from __future__ import annotations

import select
import socket
import time
from typing import TYPE_CHECKING, Self

import attrs

from postbus.errors import ConnectionFailedError, RejectedError, TimedOutError, TransportError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Answer", "Connection", "Job", "refusal"]

# What a server may say and no more: the longest lines carry a tube's name of 200 characters.
_LONGEST_LINE = 512
# Shorter pauses than this are a busy connection's, and looking costs as much as sending.
_IDLE = 1.0
_EXPLAINED = {
    b"JOB_TOO_BIG": "the message is larger than the server's -z allows",
    b"DRAINING": "the server takes no more jobs: it is being drained",
    b"OUT_OF_MEMORY": "the server has no memory left",
    b"BURIED": "the server had no memory to queue it, and buried it",
    b"INTERNAL_ERROR": "the server has an internal error",
    b"EXPECTED_CRLF": "the server expected the end of a job",
    b"BAD_FORMAT": "the server does not understand the command",
    b"UNKNOWN_COMMAND": "the server does not know the command",
    b"NOT_FOUND": "the job is not there, or no longer ours",
}


@attrs.frozen
class Answer:
    """One answer: its first word, the rest of the line, and what came after the line."""

    word: bytes
    values: tuple[bytes, ...] = ()
    data: bytes = b""


@attrs.frozen
class Job:
    """A reserved job."""

    id: int
    body: bytes


def refusal(answer: Answer, doing: str) -> TransportError:
    """Return the error for an *answer* that is not what *doing* something hoped for."""
    said = answer.word.decode("ascii", "replace")
    text = _EXPLAINED.get(answer.word, "the server said what nobody expects")
    return RejectedError(f"{doing}: {text} ({said})")


class Connection:
    """A connection to a beanstalkd server.

    Args:
        address: host and port.
        timeout: seconds to connect, and to wait for each answer.

    Raises:
        ConnectionFailedError: nobody is there.
    """

    def __init__(self, address: tuple[str, int], timeout: float) -> None:
        self._where = f"beanstalkd at {address[0]}:{address[1]}"
        self._timeout = timeout
        try:
            self._socket = socket.create_connection(address, timeout)
        except OSError as error:
            text = f"{self._where} cannot be reached: {error.strerror or error}"
            raise ConnectionFailedError(text) from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._reader = self._socket.makefile("rb")
        self._used = time.monotonic()

    @property
    def has_hung_up(self) -> bool:
        """Whether the server ended the connection while it was idle; looked at after a second.

        An idle connection has nothing to read but its end.
        """
        if time.monotonic() - self._used < _IDLE:
            return False
        return bool(select.select([self._socket], [], [], 0)[0])

    def run(self, commands: Sequence[bytes], *, patience: float = 0.0) -> list[Answer]:
        """Send *commands* and return their answers, in order.

        *patience*: seconds that the server was asked to wait, beside the usual time-out.

        Raises:
            TimedOutError: an answer did not come in time; close the connection.
            ConnectionFailedError: the connection broke; close it.
        """
        try:
            self._socket.settimeout(self._timeout + patience)
            self._socket.sendall(b"".join(commands))
            answers = [self._answer() for _ in commands]
        except TimeoutError as error:
            text = f"{self._where} did not answer within {self._timeout} seconds"
            raise TimedOutError(text) from error
        except (OSError, ValueError) as error:
            raise ConnectionFailedError(f"{self._where}: {error}") from error
        self._used = time.monotonic()
        return answers

    def _answer(self) -> Answer:
        line = self._reader.readline(_LONGEST_LINE)
        if not line.endswith(b"\r\n"):
            raise ConnectionResetError("the connection was closed")
        word, *values = line.split()
        data = b""
        if word in {b"RESERVED", b"OK", b"FOUND"}:
            size = int(values[-1])
            data = self._reader.read(size + 2)
            if len(data) != size + 2:
                raise ConnectionResetError("the connection was closed")
            data = data[:-2]
        return Answer(word, tuple(values), data)

    def __enter__(self) -> Self:
        """Return itself; leaving closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close it; what was reserved over it goes back to the server's queue. Idempotent."""
        self._reader.close()
        self._socket.close()
