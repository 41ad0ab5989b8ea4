"""Publishing with confirms: many on their way at once, and each sender hears of its own.

One thread at a time drives the connection: it writes what all have handed in and reads what the
broker says, until its own messages are done; then another goes on. So the round trips of all
senders are shared, and no thread has to be started.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import attrs

from postbus.errors import ClosedError, RejectedError, TimedOutError, TransportError
from postbus_kombu._amqp import Address, Link, translated
from postbus_kombu._declared import Declared

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from postbus_kombu._amqp import Channel
    from postbus_kombu._topology import Route, Shape

__all__ = ["Outlet", "Posting", "Sender"]

logger = logging.getLogger("postbus.kombu")

# Messages that are on their way at once: enough to hide the round trip.
_WINDOW = 500
# How long the first message for a queue is tried again, and the pause between two tries.
_FIRST_TIMEOUT = 2.0
_PAUSE = 0.02


@attrs.define(eq=False)
class Posting:
    """A message on its way. *error* is final once *is_done*; *due* is a monotonic time.

    *on_error* is told of an error, by the thread that drives the connection. *is_refused* says of
    one that is the first for its queue that it was refused, and may be tried again.
    """

    id: str
    body: bytes
    properties: Mapping[str, Any]
    route: Route
    delay: float | None = None
    mandatory: bool = True
    declare: bool = True
    is_done: bool = False
    error: TransportError | None = None
    due: float = 0.0
    on_error: Callable[[TransportError], object] | None = None
    is_first: bool = False
    is_refused: bool = False

    def settle(self, error: TransportError | None = None) -> None:
        """Say what became of it. The first word counts."""
        if self.is_done:
            return
        self.error = error
        self.is_done = True
        if error is not None and self.on_error is not None:
            self.on_error(error)


class Outlet:
    """A channel with confirms, and what is on its way there. Belongs to its link's thread.

    Args:
        link: whose channel it is.
        declared: over that link.
        confirm_timeout: seconds.

    Raises:
        TransportError: the connection is broken.
    """

    def __init__(self, link: Link, declared: Declared, confirm_timeout: float) -> None:
        self.channel: Channel = link.channel()
        self._link = link
        self._declared = declared
        self._timeout = confirm_timeout
        self._tag = 0
        # In the order of publishing, as the broker counts.
        self._unconfirmed: dict[int, Posting] = {}
        self.channel.events["basic_ack"].add(self._acked)
        self.channel.events["basic_nack"].add(self._nacked)
        self.channel.events["basic_return"].add(self._returned)
        with translated("ask for confirms"):
            self.channel.confirm_select()

    @property
    def room(self) -> int:
        """How many more may be on their way."""
        return _WINDOW - len(self._unconfirmed)

    def post(self, posting: Posting) -> None:
        """Write a message; what the broker then says settles it.

        The first for a queue waits here until the broker has it: a quorum queue that somebody
        else declares at the same moment refuses what comes too early.

        Raises:
            TransportError: the connection is broken.
        """
        try:
            route, is_new = self._way(posting)
        except TransportError as error:
            posting.settle(error)
            if isinstance(error, RejectedError):
                return
            raise
        posting.is_first = is_new
        self._write(posting, route)
        end = time.monotonic() + min(_FIRST_TIMEOUT, self._timeout)
        while is_new and not posting.is_done:
            self.wait()
            if posting.is_refused:
                posting.is_refused = False
                self._link.read(_PAUSE)
                posting.is_first = time.monotonic() < end
                self._write(posting, route)

    def _way(self, posting: Posting) -> tuple[Route, bool]:
        route = posting.route
        is_new = posting.declare and self._declared.ensure(route)
        if not posting.delay:
            return route, is_new
        return self._declared.hold_back(route, posting.delay)

    def _write(self, posting: Posting, route: Route) -> None:
        self._tag += 1
        self._unconfirmed[self._tag] = posting
        posting.due = time.monotonic() + self._timeout
        self._link.publish(
            self.channel,
            posting.body,
            posting.properties,
            exchange=route.exchange,
            routing_key=route.key,
            mandatory=posting.mandatory,
        )

    def wait(self, longest: float | None = None) -> None:
        """Write what was posted; read until the broker speaks, or a confirm is late.

        *longest* is how many seconds to wait when nothing is on its way; None: not at all.

        Raises:
            TimedOutError: it was not confirmed in time.
            TransportError: the connection is broken, or the broker closed the channel.
        """
        oldest = next(iter(self._unconfirmed.values()), None)
        if oldest is None:
            if longest is not None:
                self._link.read(longest)
            return
        self._link.flush()
        self._link.read(oldest.due - time.monotonic())
        if not oldest.is_done and oldest.due <= time.monotonic():
            why = ": it is blocked, by an alarm of its own" if self._link.is_blocked else ""
            raise TimedOutError(f"the broker did not confirm in {self._timeout} s{why}")

    def finish(self, postings: Sequence[Posting]) -> None:
        """Wait until all of *postings*, which have been posted, are done. Raises as `wait`."""
        while not all(posting.is_done for posting in postings):
            self.wait()

    def fail(self, error: TransportError) -> None:
        """Settle everything that is on its way: the broker may have it, or not."""
        for posting in self._unconfirmed.values():
            posting.settle(error)
        self._unconfirmed.clear()

    def _acked(self, tag: int, multiple: bool) -> None:  # noqa: FBT001  py-amqp calls it so
        for posting in self._taken(tag, multiple):
            posting.settle()

    def _nacked(self, tag: int, multiple: bool) -> None:  # noqa: FBT001  py-amqp calls it so
        for posting in self._taken(tag, multiple):
            if posting.is_first:
                posting.is_refused = True
                continue
            key = posting.route.key
            posting.settle(RejectedError(f"the broker refused a message to {key}: it is full"))

    def _taken(self, tag: int, multiple: bool) -> list[Posting]:  # noqa: FBT001  as above
        unconfirmed = self._unconfirmed
        if not multiple:
            posting = unconfirmed.pop(tag, None)
            return [] if posting is None else [posting]
        tags: list[int] = []
        for each in unconfirmed:
            if each > tag:
                break
            tags.append(each)
        return [unconfirmed.pop(each) for each in tags]

    def _returned(self, error: Any, exchange: str, key: str, message: Any) -> None:
        """Settle what no queue takes; its confirm comes after it, and changes nothing."""
        message_id = message.properties.get("message_id")
        for posting in self._unconfirmed.values():
            if posting.id == message_id and not posting.is_done:
                self._declared.forget()
                where = f"{exchange or 'the default exchange'} with the key {key}"
                text = f"no queue takes what goes to {where}: {error.reply_text}"
                posting.settle(RejectedError(text))
                return


class Sender:
    """Sends postings for all threads of a process, over one connection.

    A connection that broke is made anew by the next send. What was on its way then raises.

    Args:
        address: of the broker.
        shape: how queues and exchanges are declared.
        confirm_timeout: seconds.
    """

    def __init__(self, address: Address, shape: Shape, confirm_timeout: float) -> None:
        self._address = address
        self._shape = shape
        self._timeout = confirm_timeout
        self._changed = threading.Condition()
        self._waiting: deque[Posting] = deque()
        self._is_driven = False
        self._is_closed = False
        self._link: Link | None = None
        self._outlet: Outlet | None = None

    def send(self, postings: Sequence[Posting]) -> None:
        """Send *postings* in order; returns when each is done, which its *error* tells.

        Raises:
            ClosedError: after `close()`.
        """
        with self._changed:
            if self._is_closed:
                raise ClosedError("the producer is closed")
            self._waiting.extend(postings)
        while self._take_turn(lambda: all(posting.is_done for posting in postings)):
            try:
                self._drive(postings)
            finally:
                self._end_turn()

    def _take_turn(self, is_done: Callable[[], bool]) -> bool:
        """Return True when it is ours to drive, False when there is nothing left to do."""
        with self._changed:
            while not is_done():
                if not self._is_driven:
                    self._is_driven = True
                    return True
                self._changed.wait()
            return False

    def _end_turn(self) -> None:
        with self._changed:
            self._is_driven = False
            self._changed.notify_all()

    def _drive(self, postings: Sequence[Posting]) -> None:
        left = deque(postings)
        while left:
            try:
                outlet = self._connected()
            except TransportError as error:
                self._give_up(error)
            else:
                self._write_and_read(outlet)
            with self._changed:
                self._changed.notify_all()
            while left and left[0].is_done:
                left.popleft()

    def _write_and_read(self, outlet: Outlet) -> None:
        try:
            for _ in range(min(outlet.room, len(self._waiting))):
                outlet.post(self._waiting.popleft())
            outlet.wait()
        except TimedOutError as error:
            # What waits behind would wait as long again.
            self._give_up(error)
        except TransportError as error:
            self._disconnect(error)

    def _give_up(self, error: TransportError) -> None:
        self._disconnect(error)
        while self._waiting:
            self._waiting.popleft().settle(error)

    def _connected(self) -> Outlet:
        if self._link is not None:
            # A broker that was started anew meanwhile said goodbye, or hung up.
            try:
                self._link.read(0)
            except TransportError as error:
                self._disconnect(error)
        if self._link is None or self._outlet is None:
            if self._is_closed:
                raise ClosedError("the producer is closed")
            self._link = Link(self._address)
            declared = Declared(self._link, self._shape)
            self._outlet = Outlet(self._link, declared, self._timeout)
        return self._outlet

    def _disconnect(self, error: TransportError) -> None:
        link, self._link = self._link, None
        outlet, self._outlet = self._outlet, None
        if outlet is not None:
            outlet.fail(error)
        if link is not None:
            link.close(politely=isinstance(error, ClosedError))

    def close(self) -> None:
        """Let what is being sent end, refuse the rest, disconnect. Idempotent.

        Waits for it as long as a send would.
        """
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
        self._take_turn(lambda: False)
        self._disconnect(ClosedError("the producer was closed"))
        self._end_turn()

    def abandon(self) -> None:
        """Let go of what belongs to the process that forked us."""
        if self._link is not None:
            self._link.abandon()
