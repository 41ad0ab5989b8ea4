"""A worker's connection to one server, and the jobs that were taken over it."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import attrs

from postbus.errors import TransportError
from postbus_gearman._jobs import Job, complete, redelivered
from postbus_gearman._protocol import Connection, Kind, packet, refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Line", "Receipt"]

_GRAB = packet(Kind.GRAB_JOB_UNIQ)
_SLEEP = packet(Kind.PRE_SLEEP)
_ECHO = packet(Kind.ECHO_REQ, b"settled")
_SHOW = b"show jobs\n"
# The server lists all of its jobs, about a microsecond each: as many as here cost nothing that
# anybody sees, and for each more we pause, so that looking takes a twentieth of the time at most.
_FEW_JOBS = 100
_PAUSE_PER_JOB = 20e-6
_NOTHING: frozenset[bytes] = frozenset()


@attrs.define(eq=False)
class Receipt:
    """A job that was taken; *line* is the connection that holds it.

    *has_ended*: the server was told so, or given its answer, which is the same.
    """

    line: Line
    job: Job
    has_ended: bool = False

    def end(self) -> None:
        """Note that it has ended."""
        self.has_ended = True
        self.line.held.discard(self)


class Line:
    """One connection of a worker.

    A server queues a job again only when the connection that took it ends.

    Args:
        address: host and port of the server.
        timeout: seconds to connect, and to wait for each answer.
        functions: the names of what to work.

    Raises:
        TransportError: the server cannot be reached.
    """

    def __init__(
        self, address: tuple[str, int], timeout: float, functions: Sequence[bytes]
    ) -> None:
        self.connection = Connection(address, timeout)
        self.held: set[Receipt] = set()
        self._burst = 1
        self._look_at = 0.0
        # What the server is told comes with the first `take`, whose failure closes everything.
        self._first_words = b"".join(packet(Kind.CAN_DO, each) for each in functions)

    def take(self, most: int) -> list[tuple[Receipt, bool]]:
        """Take at most *most* jobs that wait now; each with whether a worker lost it before.

        Raises:
            TransportError: the connection broke.
        """
        count = min(most, self._burst)
        looks = time.monotonic() >= self._look_at
        said, self._first_words = self._first_words, b""
        self.connection.send(said + _GRAB * count + (_SHOW if looks else b""))
        answers = [self.connection.answer() for _ in range(count)]
        lost = self._lost() if looks else _NOTHING
        found: list[tuple[Receipt, bool]] = []
        for each in answers:
            if each.kind == Kind.JOB_ASSIGN_UNIQ:
                receipt = Receipt(self, Job.of(each))
                self.held.add(receipt)
                found.append((receipt, receipt.job.handle in lost))
            elif each.kind != Kind.NO_JOB:
                raise refusal(each, "take a job")
        # As many as there were, and more while there are always enough.
        self._burst = 4 * count if len(found) == count else max(1, len(found))
        return found

    def _lost(self) -> frozenset[bytes]:
        jobs = self.connection.text()
        if jobs is None:
            self._look_at = math.inf  # another server than gearmand, without this command
            return _NOTHING
        more = max(0, jobs.count(b"\n") - _FEW_JOBS)
        self._look_at = time.monotonic() + more * _PAUSE_PER_JOB
        return redelivered(jobs)

    def sleep(self) -> None:
        """Have the server say when there are jobs; at once if there are some.

        Raises:
            TransportError: the connection broke.
        """
        self.connection.send(_SLEEP)

    def end_jobs(self, packets: Sequence[bytes]) -> TransportError | None:
        """Send settlements; return what is wrong, None when the server has carried out all.

        The server says nothing to a settlement that it takes, so an echo is asked for after them;
        and to one that it does not take it does not say which: all of them count as lost then.

        Raises:
            TransportError: the connection broke.
        """
        self.connection.send(b"".join(packets) + _ECHO)
        wrong = None
        while (answer := self.connection.answer()).kind != Kind.ECHO_RES:
            wrong = refusal(answer, "end a job")
        return wrong

    def replace(self, receipt: Receipt, submission: bytes) -> TransportError | None:
        """Send a job in the place of another, which ends when the server has the new one.

        A crash in between leaves both: the message comes twice, with one id.

        Raises:
            TransportError: the connection broke.
        """
        self.connection.send(submission)
        answer = self.connection.answer()
        if answer.kind != Kind.JOB_CREATED:
            return refusal(answer, "put a job in the place of another")
        return self.end_jobs([complete(receipt.job.handle)])

    def close(self) -> None:
        """End it; the server queues again what it holds. Idempotent."""
        self.held.clear()
        self.connection.close()
