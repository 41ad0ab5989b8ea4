"""Take jobs from tubes: reserve, touch, delete, release, many at a time."""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING, ClassVar

import attrs

from postbus.errors import TransportError
from postbus.threaded import Action, BlockingClient, Received, Settlement
from postbus_beanstalkd._jobs import (
    delete,
    mark_reply,
    put,
    release,
    reply_channel,
    stats_job,
    stats_tube,
    touch,
    urgency,
    watch_only,
)
from postbus_beanstalkd._protocol import Answer, Connection, Job, refusal
from postbus_beanstalkd.settings import address_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from postbus.transports import Capabilities, Reply, WireMessage
    from postbus_beanstalkd.settings import BeanstalkdConsumerSettings

__all__ = ["Reserved", "TubeClient"]

_NOW = b"reserve-with-timeout 0\r\n"
_SOON = b"reserve-with-timeout 1\r\n"
_SOON_SECONDS = 1.0
# While something is held the connection must stay free for its settlement: we look, and sleep.
_PAUSE = 0.02
# An answer nobody fetched is worth keeping for as long as a query may take, no longer.
_REPLY_TTR = 60
_PURGED_AT_ONCE = 100


@attrs.frozen
class Reserved:
    """A job that we hold.

    *ttr* is how many seconds the server lets us, *reply* the tube and the id of its answer.
    """

    id: int
    ttr: int
    reply: tuple[str, str] | None


@attrs.define
class _Extension:
    """A job that is held until *until*, whose next touch is at *touch_at*: monotonic times."""

    until: float
    interval: float
    touch_at: float

    @classmethod
    def of(cls, reserved: Reserved, seconds: float) -> _Extension:
        # The server's time to run began anew just now; a third of it is early enough.
        now, interval = time.monotonic(), reserved.ttr / 3
        return cls(now + seconds, interval, now + interval)

    def touch_again(self, now: float) -> None:
        self.touch_at = now + self.interval


class TubeClient(BlockingClient[Reserved]):
    """The blocking side of a beanstalkd consumer; a `ThreadedConsumer` calls it."""

    can_wake: ClassVar[bool] = True

    def __init__(self, settings: BeanstalkdConsumerSettings, capabilities: Capabilities) -> None:
        self.capabilities: Capabilities = capabilities
        self.source: str = f"beanstalkd:{settings.address}/{','.join(settings.tubes)}"
        self.queues: Sequence[str] = settings.tubes
        self._settings = settings
        self._connection: Connection | None = None
        self._using = b"default"
        self._held: set[int] = set()
        # Until when jobs are held, and when to tell the server so again.
        self._extended: dict[int, _Extension] = {}
        self._woken = threading.Event()

    def open(self) -> None:
        """Connect and watch the tubes.

        Raises:
            TransportError: the server cannot be reached.
        """
        self._connection = self._connect()
        self._using = b"default"
        self._watch(self._connection, self.queues)

    def _connect(self) -> Connection:
        return Connection(address_of(self._settings.address), self._settings.io_timeout)

    def _watch(self, connection: Connection, tubes: Sequence[str]) -> None:
        for answer in connection.run(watch_only(tubes)):
            if answer.word != b"WATCHING":
                raise refusal(answer, f"watch the tubes of {self.source}")

    def _open_connection(self) -> Connection:
        assert self._connection is not None  # noqa: S101  the consumer opens it first
        return self._connection

    def poll(self, max_messages: int, seconds: float) -> Sequence[Received[Reserved]]:
        """Reserve at most *max_messages*, waiting up to *seconds* for the first.

        Raises:
            TransportError: the connection is broken.
        """
        end = time.monotonic() + seconds
        while True:
            answers = self._open_connection().run([_NOW] * max_messages)
            if not any(answer.word == b"RESERVED" for answer in answers) and not self._held:
                answers = self._open_connection().run([_SOON], patience=_SOON_SECONDS)
            jobs = [_job(answer) for answer in answers if answer.word == b"RESERVED"]
            left = end - time.monotonic()
            if jobs or left <= 0 or self._woken.wait(min(_PAUSE, left)):
                self._woken.clear()
                return self._received(jobs)

    def _received(self, jobs: Sequence[Job]) -> list[Received[Reserved]]:
        if not jobs:
            return []
        connection = self._open_connection()
        facts = connection.run([stats_job(job.id) for job in jobs])
        self._held.update(job.id for job in jobs)
        received = [_received(job, answer) for job, answer in zip(jobs, facts, strict=True)]
        for each in received:
            self._extended[each.receipt.id] = _Extension.of(each.receipt, self._settings.lease)
        if not self.capabilities.acknowledge:
            connection.run([delete(job.id) for job in jobs])
            self._held.clear()
            self._extended.clear()
        return received

    def wake(self) -> None:
        """End a `poll` that is waiting. Any thread."""
        self._woken.set()

    def settle(self, settlements: Sequence[Settlement[Reserved]]) -> Mapping[int, TransportError]:
        """Carry out what was asked, in as few round trips as their order allows.

        Raises:
            TransportError: the connection is broken.
        """
        failed: dict[int, TransportError] = {}
        commands = [_command(settlement) for settlement in settlements]
        if all(command is not None for command in commands):
            answers = self._open_connection().run([command or b"" for command in commands])
            for index, (settlement, answer) in enumerate(zip(settlements, answers, strict=True)):
                self._note(index, settlement, answer, failed)
        else:
            for index, settlement in enumerate(settlements):
                self._note(index, settlement, self._settle(settlement), failed)
        return failed

    def tend(self) -> float | None:
        """Let the time to run of held jobs begin anew, and give back those held long enough.

        Raises:
            TransportError: the connection is broken.
        """
        now = time.monotonic()
        for job_id in [id_ for id_, each in self._extended.items() if each.until <= now]:
            del self._extended[job_id]
            self._held.discard(job_id)
            # The server cannot be left to it: a job that was touched it may keep for as long as
            # the connection is open and silent, whatever its time to run (seen with 1.12).
            self._release(job_id)
        due = [id_ for id_, each in self._extended.items() if each.touch_at <= now]
        for job_id, answer in zip(due, self._run([touch(id_) for id_ in due]), strict=True):
            if answer.word == b"TOUCHED":
                self._extended[job_id].touch_again(now)
            else:
                del self._extended[job_id]
        if not self._extended:
            return None
        return max(0.0, min(each.touch_at for each in self._extended.values()) - now)

    def _run(self, commands: Sequence[bytes]) -> list[Answer]:
        return self._open_connection().run(commands) if commands else []

    def _note(
        self,
        index: int,
        settlement: Settlement[Reserved],
        answer: Answer,
        failed: dict[int, TransportError],
    ) -> None:
        reserved = settlement.receipt
        if settlement.action is Action.REPLY:
            return
        is_done = answer.word in _DONE
        if settlement.action is Action.EXTEND and is_done:
            self._extended[reserved.id] = _Extension.of(reserved, settlement.argument)
            return
        self._held.discard(reserved.id)
        self._extended.pop(reserved.id, None)
        if not is_done:
            failed[index] = refusal(answer, f"{settlement.action.value} in {self.source}")

    def _settle(self, settlement: Settlement[Reserved]) -> Answer:
        """Carry out one, which may take several commands."""
        command = _command(settlement)
        if command is not None:
            return self._open_connection().run([command])[0]
        reserved = settlement.receipt
        if settlement.action is Action.REPLY:
            return self._reply(reserved, settlement.argument)
        if settlement.action is Action.NACK:
            return self._release(reserved.id)
        answer = self._run([stats_job(reserved.id)])[0]
        if answer.word != b"OK":
            return answer
        return self._retry(reserved, settlement.argument, _stats(answer))

    def _release(self, job_id: int) -> Answer:
        answer = self._run([stats_job(job_id)])[0]
        if answer.word != b"OK":
            return answer
        return self._run([release(job_id, int(_stats(answer)["pri"]))])[0]

    def _reply(self, reserved: Reserved, reply: Reply) -> Answer:
        assert reserved.reply is not None  # noqa: S101  else it is refused before
        tube, message_id = reserved.reply
        body = mark_reply(message_id, reply)
        return self._put(tube, put(body, urgency(None), None, _REPLY_TTR))

    def _retry(self, reserved: Reserved, message: WireMessage, facts: Mapping[str, str]) -> Answer:
        """Put the new job, and delete the old one when the server has it; else give it back.

        A crash in between leaves both: the message comes twice, with one id.
        """
        pri = int(facts["pri"]) if message.priority is None else urgency(message.priority)
        command = put(message.body, pri, message.delay, int(facts["ttr"]))
        answer = self._put(facts["tube"], command)
        if answer.word != b"INSERTED":
            self._run([release(reserved.id, int(facts["pri"]))])
            return answer
        return self._open_connection().run([delete(reserved.id)])[0]

    def _put(self, tube: str, command: bytes) -> Answer:
        commands = [command]
        if self._using != tube.encode():
            self._using = tube.encode()
            commands.insert(0, b"use %b\r\n" % self._using)
        return self._open_connection().run(commands)[-1]

    def count(self) -> Mapping[str, int]:
        """Return how many jobs of each tube are ready. Any thread.

        Raises:
            TransportError: the server cannot be reached.
        """
        with self._connect() as connection:
            answers = connection.run([stats_tube(tube) for tube in self.queues])
        return {
            tube: int(_stats(answer)["current-jobs-ready"]) if answer.word == b"OK" else 0
            for tube, answer in zip(self.queues, answers, strict=True)
        }

    def purge(self, queue: str) -> int:
        """Take all jobs of a tube that are ready, and delete them. Any thread.

        Raises:
            TransportError: the server cannot be reached.
        """
        removed = 0
        with self._connect() as connection:
            self._watch(connection, [queue])
            while ids := _reserved(connection.run([_NOW] * _PURGED_AT_ONCE)):
                answers = connection.run([delete(job_id) for job_id in ids])
                removed += sum(answer.word == b"DELETED" for answer in answers)
        return removed

    def close(self) -> None:
        """Disconnect; the server queues again what we hold."""
        self._held.clear()
        self._extended.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


_DONE = {b"DELETED", b"RELEASED", b"TOUCHED", b"INSERTED"}


def _command(settlement: Settlement[Reserved]) -> bytes | None:
    """Return the one command that *settlement* takes, None where it takes more."""
    job_id = settlement.receipt.id
    match settlement.action:
        case Action.ACK:
            return delete(job_id)
        case Action.EXTEND:
            return touch(job_id)
        case _:
            return None


def _reserved(answers: Sequence[Answer]) -> list[int]:
    return [int(answer.values[0]) for answer in answers if answer.word == b"RESERVED"]


def _job(answer: Answer) -> Job:
    return Job(int(answer.values[0]), answer.data)


def _received(job: Job, facts: Answer) -> Received[Reserved]:
    reply = reply_channel(job.body)
    # The server writes the facts in this order.
    found = _FACTS(facts.data)
    ttr, reserves = (int(found[1]), int(found[2])) if found else (_SHORTEST_TTR, 1)
    return Received(
        body=job.body,
        receipt=Reserved(job.id, ttr, reply),
        redelivered=reserves > 1,
        can_reply=reply is not None,
    )


_SHORTEST_TTR = 1
_FACTS = re.compile(rb"\nttr: ([0-9]+)\n.*\nreserves: ([0-9]+)\n", re.DOTALL).search


def _stats(answer: Answer) -> dict[str, str]:
    """Read the YAML of one flat mapping that the server writes."""
    lines = answer.data.decode("ascii", "replace").splitlines()
    pairs = (line.partition(": ") for line in lines)
    return {key: value.strip('"') for key, _, value in pairs}
