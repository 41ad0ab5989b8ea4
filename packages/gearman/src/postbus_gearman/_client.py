"""Take jobs from several servers: grab, sleep, end, give back; many at a time."""

from __future__ import annotations

import logging
import socket
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, ClassVar

import attrs

from postbus.errors import ConnectionFailedError, RejectedError, TransportError
from postbus.threaded import Action, BlockingClient, Received, Settlement
from postbus_gearman._jobs import STATUS, answer, complete, submit, unique_ids, waiting
from postbus_gearman._lines import Line, Receipt
from postbus_gearman._protocol import Connection, readable
from postbus_gearman.settings import address_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from postbus.transports import Capabilities, WireMessage
    from postbus_gearman.settings import GearmanConsumerSettings

__all__ = ["FunctionClient"]

logger = logging.getLogger("postbus.gearman")

# How long to leave a server alone that could not be reached, while others work.
_PAUSE = 2.0
_WAKES = 4_096


@attrs.define
class _Server:
    """A server, the connection that takes jobs from it, and when to try again without one."""

    name: str
    line: Line | None = None
    try_at: float = 0.0


class FunctionClient(BlockingClient[Receipt]):
    """The blocking side of a gearman consumer; a `ThreadedConsumer` calls it."""

    can_wake: ClassVar[bool] = True

    def __init__(self, settings: GearmanConsumerSettings, capabilities: Capabilities) -> None:
        self.capabilities: Capabilities = capabilities
        self.source: str = f"gearman:{','.join(settings.servers)}/{','.join(settings.functions)}"
        self.queues: Sequence[str] = settings.functions
        self._addresses = settings.servers
        self._timeout = settings.io_timeout
        self._functions = [each.encode() for each in settings.functions]
        self._servers = [_Server(name) for name in settings.servers]
        # Those that take nothing any more; each ends with the last job that it holds.
        self._leaving: set[Line] = set()
        # Jobs that are handed out again, with another body, without leaving us.
        self._again: deque[Received[Receipt]] = deque()
        self._unique_ids = unique_ids()
        self._waker: tuple[socket.socket, socket.socket] | None = None

    def open(self) -> None:
        """Connect to the servers, to one at least.

        Raises:
            TransportError: none can be reached.
        """
        self.close()  # in a forked child, what the parent has
        self._unique_ids = unique_ids()
        self._waker = socket.socketpair()
        for each in self._waker:
            each.settimeout(0.0)
        self._connect()

    def _connect(self) -> None:
        """Connect to servers that we have no connection to, those that failed now and then."""
        error: TransportError | None = None
        for server in self._servers:
            if server.line is None and server.try_at <= time.monotonic():
                try:
                    server.line = Line(address_of(server.name), self._timeout, self._functions)
                except TransportError as failure:
                    error = failure
                    server.try_at = time.monotonic() + _PAUSE
                    logger.warning("a server is missing", extra={"error": failure.message})
        if not self._taking():
            raise error or ConnectionFailedError(f"{self.source}: no server can be reached")

    def _taking(self) -> list[Line]:
        return [server.line for server in self._servers if server.line is not None]

    def poll(self, max_messages: int, seconds: float) -> Sequence[Received[Receipt]]:
        """Take at most *max_messages*, waiting up to *seconds* for the first.

        Raises:
            TransportError: the last connection broke.
        """
        end = time.monotonic() + seconds
        while True:
            self._connect()
            received = self._retried(max_messages)
            for line in self._taking():
                received += self._take(line, max_messages - len(received))
            # The servers take turns at being asked first.
            self._servers.append(self._servers.pop(0))
            left = end - time.monotonic()
            if received or left <= 0 or self._sleep(left):
                return received

    def _retried(self, most: int) -> list[Received[Receipt]]:
        found: list[Received[Receipt]] = []
        while self._again and len(found) < most:
            received = self._again.popleft()
            if received.receipt in received.receipt.line.held:
                found.append(received)
        return found

    def _take(self, line: Line, most: int) -> list[Received[Receipt]]:
        try:
            taken = line.take(most) if most else []
        except TransportError as error:
            self._lose(line, error)
            return []
        return [
            Received(
                body=receipt.job.body,
                receipt=receipt,
                redelivered=was_lost,
                can_reply=receipt.job.may_be_asked,
                is_awaited=receipt.job.is_asked,
            )
            for receipt, was_lost in taken
        ]

    def _sleep(self, seconds: float) -> bool:
        """Wait for jobs; return whether `wake` ended it."""
        assert self._waker is not None  # noqa: S101  the consumer opens it first
        for line in self._taking():
            try:
                line.sleep()
            except TransportError as error:
                self._lose(line, error)
        connections = [line.connection for line in self._taking()]
        if any(each.has_more for each in connections):
            return False
        end = self._waker[0]
        ready = readable([end.fileno(), *(each.fileno() for each in connections)], seconds)
        is_woken = end.fileno() in ready
        if is_woken:
            end.recv(_WAKES)
        return is_woken

    def wake(self) -> None:
        """End a `poll` that is waiting. Any thread."""
        if self._waker is not None:
            try:
                self._waker[1].send(b"\0")
            except OSError:
                return  # it is being closed, or was woken very often

    def _lose(self, line: Line, error: TransportError) -> None:
        """Give up a connection and what it holds; raise where no other takes jobs."""
        self._leave(line)
        self._leaving.discard(line)
        line.close()
        if not self._taking():
            raise error
        logger.warning("a connection broke", extra={"error": error.message})

    def _leave(self, line: Line) -> None:
        self._leaving.add(line)
        for server in self._servers:
            if server.line is line:
                server.line = None

    def settle(self, settlements: Sequence[Settlement[Receipt]]) -> Mapping[int, TransportError]:
        """Carry out what was asked, in as few round trips as its order allows.

        Raises:
            TransportError: the last connection broke.
        """
        failed: dict[int, TransportError] = {}
        packets: dict[Line, dict[int, bytes]] = {}
        for index, settlement in enumerate(settlements):
            receipt = settlement.receipt
            if receipt.has_ended:
                continue  # whatever else is asked about it
            if receipt not in receipt.line.held:
                failed[index] = ConnectionFailedError(f"{self.source}: the connection is gone")
            elif settlement.action is Action.NACK:
                self._give_back(receipt)
            elif settlement.action is Action.RETRY:
                # What was asked before it is carried out before it.
                failed.update(self._end_jobs(packets))
                packets.clear()
                error = self._retry(receipt, settlement.argument)
                if error is not None:
                    failed[index] = error
            else:
                packets.setdefault(receipt.line, {})[index] = _last_words(settlement)
        failed.update(self._end_jobs(packets))
        for line in [each for each in self._leaving if not each.held]:
            self._leaving.discard(line)
            line.close()
        return failed

    def _end_jobs(self, packets: Mapping[Line, Mapping[int, bytes]]) -> dict[int, TransportError]:
        failed: dict[int, TransportError] = {}
        for line, each in packets.items():
            try:
                error = line.end_jobs(tuple(each.values()))
            except TransportError as broken:
                self._lose(line, broken)
                error = broken
            if error is not None:
                failed.update(dict.fromkeys(each, error))
        return failed

    def _give_back(self, receipt: Receipt) -> None:
        """Have its connection end with the last job it holds; new jobs come over another."""
        receipt.line.held.discard(receipt)
        self._leave(receipt.line)

    def _retry(self, receipt: Receipt, message: WireMessage) -> TransportError | None:
        job, line = receipt.job, receipt.line
        if job.may_be_asked:
            # Somebody may wait for this very job: it stays, and is handed out again from here.
            again = Received(body=message.body, receipt=receipt, can_reply=True)
            self._again.append(again)
            return None
        priority = job.priority if message.priority is None else message.priority
        submission = submit(message, job.function, next(self._unique_ids), priority)
        try:
            error = line.replace(receipt, submission)
        except TransportError as broken:
            self._lose(line, broken)
            return broken
        if error is None:
            receipt.end()
        else:
            self._give_back(receipt)
        return error

    def count(self) -> Mapping[str, int]:
        """Return how many jobs of each function no worker has, on all servers. Any thread.

        Raises:
            TransportError: one of the servers cannot be reached.
        """
        counted = Counter(dict.fromkeys(self.queues, 0))
        for address in self._addresses:
            with Connection(address_of(address), self._timeout) as connection:
                connection.send(STATUS)
                status = connection.text()
            if status is None:
                raise RejectedError(f"{address} does not say how many jobs wait")
            counted.update(waiting(status))
        return {function: counted[function] for function in self.queues}

    def close(self) -> None:
        """Disconnect; the servers queue again what we hold. Idempotent."""
        lines = [*self._taking(), *self._leaving]
        self._leaving.clear()
        self._again.clear()
        for server in self._servers:
            server.line, server.try_at = None, 0.0
        for line in lines:
            line.close()
        waker, self._waker = self._waker, None
        for each in waker or ():
            each.close()


def _last_words(settlement: Settlement[Receipt]) -> bytes:
    """Return the packets that end a job, and note that it has ended."""
    receipt = settlement.receipt
    receipt.end()
    if settlement.action is Action.ACK:
        return complete(receipt.job.handle)
    return answer(receipt.job.handle, settlement.argument)
