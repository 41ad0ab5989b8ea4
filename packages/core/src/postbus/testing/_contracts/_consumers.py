"""What every consumer does, as tests that a package inherits."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import attrs
import pytest

from postbus.catalog import MessageCatalog
from postbus.errors import ClosedError, ConfigurationError, TransportError, UnsupportedError
from postbus.messages import Command, Envelope
from postbus.testing._contracts._claims import CONSUMER_CLAIMS, contradict, judge
from postbus.testing._contracts._contract import Contract
from postbus.testing._contracts._link import received
from postbus.testing._contracts._sides import message
from postbus.transports import Reply
from postbus.wire import decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from postbus.testing._contracts._link import Link
    from postbus.testing._contracts._under_test import TransportUnderTest
    from postbus.transports import Delivery

__all__ = ["ConsumerContract"]

_FINAL = ("ack", "nack", "retry")
_DELAY = 0.5
# A small part of what a thread or a network takes to bring a message.
_MOMENT = 0.0001


@attrs.frozen
class _Knock(Command, name="postbus.testing.knock"):
    door: str


class ConsumerContract(Contract):
    """How a consumer behaves, whatever the transport. Needs `postbus[testing]`.

    A package derives a test class from it and gives one fixture, *under_test*.
    """

    @pytest.mark.parametrize("name", CONSUMER_CLAIMS)
    def test_a_consumer_does_what_it_declares_and_refuses_the_rest(
        self, link: Link, name: str
    ) -> None:
        """Each capability is shown by what happens, or by a refusal (T11)."""
        judge(link, "consumer", name, CONSUMER_CLAIMS)

    @pytest.mark.parametrize("name", CONSUMER_CLAIMS)
    def test_a_consumer_that_declared_the_opposite_is_found_out(
        self, under_test: TransportUnderTest, name: str
    ) -> None:
        """The test of each capability fails for a transport that is not as it declares."""
        contradict(under_test, "consumer", name, CONSUMER_CLAIMS)

    @pytest.mark.parametrize("guarantee", ["at-least-once", "at-most-once"])
    def test_a_guarantee_is_kept_or_refused(self, link: Link, guarantee: str) -> None:
        """What a section demands is selected, and a transport that cannot is not built."""
        plain = link.consumer.capabilities
        comes_back = plain.acknowledge and plain.redeliver_on_crash
        consumer = None
        with suppress(ConfigurationError):
            consumer = link.make_consumer(guarantee=guarantee)
        if consumer is None:
            assert comes_back == (guarantee == "at-most-once"), "it refuses what it declares"
            link.refused()
            return
        collecting = link.collecting(1, consumer)
        # It may last until the message is acknowledged, where nothing else keeps it.
        sending = link.start(lambda: link.send(b"1"))
        (delivery,) = link.result(collecting, "a message")
        if guarantee == "at-least-once":
            assert consumer.capabilities.redeliver_on_crash
            delivery.nack()
            (again,) = link.collect(1, consumer)
            assert again.body == b"1"
            again.ack()
            link.result(sending, "a send to return")
        else:
            link.result(sending, "a send to return")
            assert not consumer.capabilities.acknowledge
            with pytest.raises(UnsupportedError):
                delivery.nack()
            if plain.acknowledge:
                # What was on its way to a consumer that nobody acknowledges to may be lost.
                link.run(consumer.aclose())
                consumer = link.consumer
            assert link.rest(consumer) == []

    def test_it_waits_for_the_first_and_never_returns_more_than_asked(self, link: Link) -> None:
        """A receive waits until there is something; the rest comes with the next calls."""
        receiving = link.submit(received(link.consumer, 2))
        bodies = [b"%d" % number for number in range(7)]
        link.send(*bodies)
        first = link.result(receiving, "a message")
        both = first + link.collect(7 - len(first), max_messages=2)
        assert sorted(each.body for each in both) == bodies

    def test_a_cancelled_receive_loses_nothing(self, link: Link) -> None:
        """Whenever a waiting receive is cancelled, what arrives goes to the next one."""
        count = 60
        bodies = [b"%d" % number for number in range(count)]

        async def receive_now_and_then() -> list[bytes]:
            came: list[bytes] = []
            for number, body in enumerate(bodies):
                task = asyncio.ensure_future(received(link.consumer, 5))
                await asyncio.sleep(0)
                await asyncio.to_thread(link.producer.send, message(body))
                # A little later each time: it ends at every point once.
                for _ in range(number % 6):
                    await asyncio.sleep(0)
                if number >= count // 2:
                    await asyncio.sleep(number * _MOMENT)
                task.cancel()
                (outcome,) = await asyncio.gather(task, return_exceptions=True)
                if isinstance(outcome, BaseException):
                    assert isinstance(outcome, asyncio.CancelledError)
                else:
                    came += [each.body for each in outcome]
            while len(came) < count:
                came += [each.body for each in await received(link.consumer, 5)]
            return came

        came = link.run(receive_now_and_then(), f"{count} messages over cancelled calls")
        assert sorted(came) == sorted(bodies)

    def test_a_delivery_says_what_it_is(self, link: Link) -> None:
        """Where it comes from, that it is new and ours, and headers that are text."""
        (delivery,) = link.exchange(b"1")
        assert delivery.source
        assert not delivery.redelivered
        assert not delivery.lost
        assert all(isinstance(each, str) for pair in delivery.headers.items() for each in pair)

    def test_what_was_sent_cannot_be_answered(self, link: Link) -> None:
        """A delivery without a reply channel refuses an answer."""
        (delivery,) = link.exchange(b"1")
        assert not delivery.can_reply
        with pytest.raises(UnsupportedError):
            delivery.reply(Reply(b"1"))

    def test_what_nobody_settled_comes_back(self, link: Link) -> None:
        """A consumer that closes gives back what it holds, and nothing that was settled."""
        acked, held = link.exchange(b"acked", b"held")
        acked.ack()
        link.settled(acked)
        if not link.consumer.capabilities.acknowledge:
            with pytest.raises(UnsupportedError):
                held.nack()
            link.refused()
            return
        link.run(link.consumer.aclose())
        assert (acked.lost, held.lost) == (False, True)
        held.ack()
        with pytest.raises(TransportError):
            link.settled(held)
        consumer = link.make_consumer()
        (again,) = link.collect(1, consumer)
        assert (again.body, again.redelivered) == (b"held", True)
        again.ack()
        assert link.rest(consumer) == []

    @pytest.mark.parametrize("first", _FINAL)
    def test_a_settled_delivery_stays_settled(self, link: Link, first: str) -> None:
        """Of ack, nack and retry the first counts, whatever is asked after it."""
        can = link.consumer.capabilities
        possible = {"ack": True, "nack": can.acknowledge, "retry": can.retry}
        expected = {"ack": [], "nack": [b"1"], "retry": [b"again"]}
        if not possible[first]:
            (delivery,) = link.exchange(b"1")
            with pytest.raises(UnsupportedError):
                _settle(delivery, first)
            link.refused()
            return
        for then in _FINAL:
            if possible[then]:
                (delivery,) = link.exchange(b"1")
                _settle(delivery, first)
                _settle(delivery, then)
                link.settled(delivery)
                again = link.collect(len(expected[first]))
                assert expected[first] == [each.body for each in again]
                for each in again:
                    each.ack()
        assert link.rest() == []

    def test_any_thread_may_settle(self, link: Link) -> None:
        """Of twenty threads that settle one delivery, the first does."""
        (delivery,) = link.exchange(b"1")
        can_give_back = link.consumer.capabilities.acknowledge
        together = threading.Barrier(20)

        def settle() -> None:
            together.wait(link.patience)
            if can_give_back:
                delivery.nack()
            else:
                delivery.ack()

        for each in [link.start(settle) for _ in range(20)]:
            link.result(each, "a settlement to return")
        link.settled(delivery)
        for again in link.collect(int(can_give_back)):
            assert (again.body, again.redelivered) == (b"1", True)
            again.ack()
        assert link.rest() == []

    def test_a_retry_has_new_headers(self, link: Link) -> None:
        """The body of a retry is the truth of the next attempt."""
        catalog = MessageCatalog()
        catalog.add(_Knock)
        envelope = Envelope(_Knock("front"))
        (delivery,) = link.exchange(encode(envelope))
        changed = envelope.evolve(headers={**envelope.headers, "attempt": 2})
        if not link.consumer.capabilities.retry:
            with pytest.raises(UnsupportedError):
                delivery.retry(message(encode(changed)))
            link.refused()
            return
        delivery.retry(message(encode(changed)))
        (again,) = link.collect(1)
        second = decode(again.body, catalog)
        assert (second.id, second.headers["attempt"]) == (envelope.id, 2)

    def test_a_retry_that_cannot_be_sent_gives_the_delivery_back(self, link: Link) -> None:
        """What the capabilities exclude takes no place: the message comes again as it was."""
        (delivery,) = link.exchange(b"1")
        wrong = message(b"2", priority=10)
        if not link.consumer.capabilities.retry:
            with pytest.raises(UnsupportedError):
                delivery.retry(wrong)
            link.refused()
            return
        with pytest.raises(TransportError):
            _carry_out(link, delivery, partial(delivery.retry, wrong))
        assert delivery.lost
        (again,) = link.collect(1)
        assert again.body == b"1"
        again.ack()
        link.settled(again)
        assert link.rest() == []

    def test_a_retry_may_be_delayed(self, link: Link) -> None:
        """The delay of the new message holds; others go first meanwhile."""
        can = link.consumer.capabilities
        (delivery,) = link.exchange(b"1")
        if not can.retry or can.delay is None:
            late = message(b"late", delay=_DELAY)
            with pytest.raises(UnsupportedError):
                _carry_out(link, delivery, partial(delivery.retry, late))
            link.refused()
            return
        delivery.retry(message(b"late", delay=max(_DELAY, 3 * can.delay)))
        link.settled(delivery)
        assert [each.body for each in link.exchange(b"now")] == [b"now"]
        assert [each.body for each in link.collect(1)] == [b"late"]

    def test_a_consumer_takes_no_more_than_it_was_asked_for(self, link: Link) -> None:
        """What one consumer did not ask for another gets, while the first holds its own."""
        if not link.consumer.capabilities.acknowledge:
            # There is one consumer where nothing is given back: what it did not ask for waits.
            collecting = link.collecting(1, max_messages=1)
            link.send(b"1", b"2", b"3")
            all_three = [*link.result(collecting, "a message"), *link.collect(2)]
            assert sorted(each.body for each in all_three) == [b"1", b"2", b"3"]
            return
        link.send(b"1", b"2", b"3")
        first = link.collect(1, max_messages=1)
        others = link.collect(2, link.make_consumer())
        assert sorted(each.body for each in first + others) == [b"1", b"2", b"3"]

    @pytest.mark.parametrize("call", ["peek", "purge"])
    def test_a_queue_that_it_does_not_take_from_is_refused(self, link: Link, call: str) -> None:
        """With the names of those that it does take from (K16)."""
        consumer = link.consumer
        with pytest.raises(UnsupportedError) as caught:
            link.finish(lambda: getattr(consumer, call)("no-queue-of-this-name"))
        if consumer.capabilities.inspect if call == "peek" else consumer.capabilities.purge:
            assert repr(link.queue) in str(caught.value)
        else:
            link.refused()

    @pytest.mark.parametrize("is_used", [True, False])
    def test_closing_deletes_no_queue(self, link: Link, *, is_used: bool) -> None:
        """What waits when a consumer closes, used or not, waits afterwards (K15, T12)."""
        if not link.consumer.capabilities.count:
            with pytest.raises(UnsupportedError):
                link.finish(link.consumer.count)
            link.refused()
            return
        if is_used and link.consumer.capabilities.acknowledge:
            for delivery in link.exchange(b"used"):
                delivery.ack()
                link.settled(delivery)
        link.send(b"1", b"2")
        link.run(link.consumer.aclose())
        consumer = link.make_consumer()
        link.until_counted(2, consumer)
        assert sorted(each.body for each in link.collect(2, consumer)) == [b"1", b"2"]

    @pytest.mark.parametrize("is_used", [True, False])
    def test_a_closed_consumer_says_so(self, link: Link, *, is_used: bool) -> None:
        """After `aclose`, which may come twice and before any use, nothing is done (K14)."""
        if is_used:
            link.exchange(b"1")
        for _ in range(2):
            link.run(link.consumer.aclose(), "aclose() to return")
        with pytest.raises(ClosedError):
            link.receive()
        refusal = ClosedError if link.consumer.capabilities.count else UnsupportedError
        with pytest.raises(refusal):
            link.finish(link.consumer.count)

    def test_closing_ends_a_receive_that_waits(self, link: Link) -> None:
        """That call learns why nothing more will come."""
        for delivery in link.exchange(b"1"):
            delivery.ack()
        receiving = link.submit(link.consumer.receive(1))
        link.run(asyncio.sleep(0))
        link.run(link.consumer.aclose(), "aclose() to return")
        with pytest.raises(ClosedError):
            link.result(receiving, "a receive to end after the close")


def _settle(delivery: Delivery, how: str) -> None:
    if how == "retry":
        delivery.retry(message(b"again"))
    elif how == "nack":
        delivery.nack()
    else:
        delivery.ack()


def _carry_out(link: Link, delivery: Delivery, settle: Callable[[], None]) -> None:
    settle()
    link.settled(delivery)
