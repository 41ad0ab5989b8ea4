"""Each capability: what shows that a transport has it, and what shows that it has not."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import attrs
import pytest

from postbus.errors import (
    ConfigurationError,
    RejectedError,
    TransportError,
    UnsupportedError,
)
from postbus.settings import CAPABILITIES
from postbus.testing._contracts._link import Link
from postbus.testing._contracts._sides import message, text_of
from postbus.testing._contracts._under_test import declaring
from postbus.transports import QueryClient, Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from postbus.testing._contracts._under_test import TransportUnderTest
    from postbus.transports import Capabilities, MessageConsumer

__all__ = ["CONSUMER_CLAIMS", "PRODUCER_CLAIMS", "Claim", "contradict", "judge"]

Side: TypeAlias = Literal["producer", "consumer"]

# A test of a lie waits in vain where the truth would come: long against a delivery, short against
# the run.
_LIE_PATIENCE = 3.0
# Longer than any machine stands still, so that what is sent after it is received before it.
_DELAY = 1.0
_UNLIMITED = 4 * 1024 * 1024


@attrs.frozen(kw_only=True)
class Claim:
    """One capability.

    *holds* fails where the transport has not what it declares. *is_refused* fails where it does
    what it denies; None where there is no call that it could refuse. *lie* turns what is declared
    into what is not true.
    """

    holds: Callable[[Link], None]
    is_refused: Callable[[Link], None] | None = None
    lie: Callable[[Any], Any] = lambda declared: not declared


def judge(link: Link, side: Side, name: str, claims: Mapping[str, Claim]) -> None:
    """Fail where the capability *name* of one side is not as it is declared."""
    claim = claims[name]
    declared = getattr(_capabilities(link, side), name)
    can_be_required = name in CAPABILITIES
    if declared not in {False, None}:
        if can_be_required:
            _make(link, side, requires=[name])
        claim.holds(link)
    else:
        if can_be_required:
            _refused_at_build(link, side, name)
        if claim.is_refused is not None:
            claim.is_refused(link)
        link.refused()


def contradict(
    under_test: TransportUnderTest, side: Side, name: str, claims: Mapping[str, Claim]
) -> None:
    """Fail where *under_test* could declare the opposite of *name* and nobody would see it."""
    claim = claims[name]
    with Link(under_test) as link:
        declared = getattr(_capabilities(link, side), name)
    lie = attrs.evolve(
        under_test,
        transport=declaring(under_test.transport, **{name: claim.lie(declared)}),
        patience=min(under_test.patience, _LIE_PATIENCE),
    )
    with Link(lie) as link:
        if declared is True and claim.is_refused is None:
            # What cannot be asked for by a call can still be required, and that is refused then.
            _refused_at_build(link, side, name)
            return
        with pytest.raises((AssertionError, pytest.fail.Exception, TransportError)):
            judge(link, side, name, claims)


def _capabilities(link: Link, side: Side) -> Capabilities:
    return (link.producer if side == "producer" else link.consumer).capabilities


def _make(link: Link, side: Side, **keys: Any) -> None:
    if side == "producer":
        link.make_producer(**keys)
    else:
        link.make_consumer(**keys)


def _refused_at_build(link: Link, side: Side, name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        _make(link, side, requires=[name])
    assert [problem.path.rpartition(".")[2] for problem in caught.value.problems] == [
        "requires[0]"
    ]


# Of producers.


def _answers_queries(link: Link) -> None:
    collecting = link.collecting(1)
    reply = link.ask("?")
    (delivery,) = link.result(collecting, "a query")
    assert (text_of(delivery.body), delivery.can_reply) == ("?", True)
    delivery.reply(Reply(b"42"))
    delivery.ack()
    assert link.answer_of(reply) == Reply(b"42")


def _refuses_queries(link: Link) -> None:
    if isinstance(link.producer, QueryClient):
        with pytest.raises(UnsupportedError):
            link.answer_of(link.ask())


def _takes_only_queries(link: Link) -> None:
    _answers_queries(link)
    with pytest.raises(UnsupportedError):
        link.finish(lambda: link.producer.send(message(b"{}")), "a refusal")


def _delays(link: Link) -> None:
    resolution = link.producer.capabilities.delay
    assert resolution is not None
    delay = max(_DELAY, 3 * resolution)
    start = time.monotonic()
    link.send(b"late", delay=delay)
    link.send(b"now")
    assert [each.body for each in link.collect(1)] == [b"now"]
    assert [each.body for each in link.collect(1)] == [b"late"]
    assert time.monotonic() - start >= delay - resolution, "it came before it was due"


def _honours_priority(link: Link) -> None:
    link.send(b"3", priority=3)
    link.send(b"none")
    link.send(b"9", priority=9)
    received = link.collect(3, max_messages=1)
    assert [each.body for each in received] == [b"9", b"3", b"none"]
    for wrong in (-1, 10):
        with pytest.raises(RejectedError):
            link.producer.send(message(b"{}", priority=wrong))


def _expires(link: Link) -> None:
    now = datetime.now(UTC)
    link.send(b"old", expires_at=now - timedelta(seconds=1))
    link.send(b"new", expires_at=now + timedelta(hours=1))
    assert [each.body for each in link.collect(1)] == [b"new"]
    assert link.rest() == []


def _refuses_field(link: Link, **fields: Any) -> None:
    with pytest.raises(UnsupportedError):
        link.finish(lambda: link.producer.send(message(b"{}", **fields)), "a refusal")


def _refuses_expiry(link: Link) -> None:
    _refuses_field(link, expires_at=datetime.now(UTC) + timedelta(hours=1))


def _keeps_order(link: Link) -> None:
    numbers = [b"%d" % number for number in range(200)]
    collecting = link.collecting(len(numbers), max_messages=7)
    link.send(*numbers[:100])
    for number in numbers[100:]:
        link.finish(lambda body=number: link.producer.send(message(body)))  # type: ignore[misc]  # mypy infers no default
    assert [each.body for each in link.result(collecting, "200 messages")] == numbers


def _survives(link: Link) -> None:
    with link.peer("send", b"kept") as sender:
        sender.expect("sent")
        sender.kill()
    system = link.under_test.system
    if system is not None:
        system.kill()
        system.start()
    assert [each.body for each in link.collect(1)] == [b"kept"]


def _keeps_size(link: Link) -> None:
    limit = link.producer.capabilities.max_size_bytes
    assert limit is not None
    _carries(link, limit)
    with pytest.raises(RejectedError):
        link.finish(lambda: link.producer.send(message(b"x" * (limit + 1))), "a refusal")


def _carries(link: Link, size: int) -> None:
    body = b"x" * size
    (delivery,) = link.exchange(body)
    assert len(delivery.body) == size
    assert delivery.body == body


PRODUCER_CLAIMS: Mapping[str, Claim] = {
    "queries": Claim(holds=_answers_queries, is_refused=_refuses_queries),
    "queries_only": Claim(holds=_takes_only_queries, is_refused=partial(_carries, size=1)),
    "delay": Claim(
        holds=_delays,
        is_refused=partial(_refuses_field, delay=1.0),
        lie=lambda declared: 0.01 if declared is None else None,
    ),
    "priority": Claim(holds=_honours_priority, is_refused=partial(_refuses_field, priority=1)),
    "expiry": Claim(holds=_expires, is_refused=_refuses_expiry),
    "ordering": Claim(holds=_keeps_order),
    "durable": Claim(holds=_survives),
    "max_size_bytes": Claim(
        holds=_keeps_size,
        is_refused=partial(_carries, size=_UNLIMITED),
        lie=lambda declared: 1024 if declared is None else 2 * declared,
    ),
}


# Of consumers.


def _takes_back(link: Link) -> None:
    (delivery,) = link.exchange(b"1")
    assert not delivery.redelivered
    delivery.nack()
    link.settled(delivery)
    (again,) = link.collect(1)
    assert (again.body, again.redelivered, again.lost) == (b"1", True, False)
    again.ack()
    link.settled(again)
    assert link.rest() == []


def _takes_nothing_back(link: Link) -> None:
    (delivery,) = link.exchange(b"1")
    with pytest.raises(UnsupportedError):
        delivery.nack()
    delivery.ack()
    link.settled(delivery)


def _redelivers(link: Link) -> None:
    with link.peer("hold", b"held", quick=True) as holder:
        link.send(b"held")
        holder.expect("held")
        holder.kill()
    (delivery,) = link.collect(1, link.make_quick_consumer())
    assert (delivery.body, delivery.redelivered) == (b"held", True)


def _retries(link: Link) -> None:
    (delivery,) = link.exchange(b"first")
    delivery.retry(message(b"second"))
    link.settled(delivery)
    assert not delivery.lost
    (again,) = link.collect(1)
    assert again.body == b"second"
    again.ack()
    link.settled(again)
    assert link.rest() == []


def _retries_nothing(link: Link) -> None:
    (delivery,) = link.exchange(b"1")
    with pytest.raises(UnsupportedError):
        delivery.retry(message(b"2"))


def _leases(link: Link) -> None:
    consumer = link.make_quick_consumer()
    lease = consumer.capabilities.lease
    assert lease is not None
    collecting = link.collecting(1, consumer)
    link.send(b"1")
    (delivery,) = link.result(collecting, "a message")
    delivery.extend(100 * lease)
    link.settled(delivery)
    waiting = link.submit(_nothing_for(link.make_quick_consumer(), 2 * lease))
    assert link.result(waiting) is None, "a delivery that was extended came to somebody else"
    delivery.extend(lease)
    link.settled(delivery)
    (again,) = link.collect(1, link.make_quick_consumer())
    assert (again.body, again.redelivered) == (b"1", True)
    delivery.ack()
    with pytest.raises(TransportError):
        link.settled(delivery)
    assert delivery.lost


async def _nothing_for(consumer: MessageConsumer, seconds: float) -> object:
    try:
        async with asyncio.timeout(seconds):
            return await consumer.receive(1)
    except TimeoutError:
        return None


def _has_no_lease(link: Link) -> None:
    (delivery,) = link.exchange(b"1")
    with pytest.raises(UnsupportedError):
        delivery.extend(1.0)


def _counts(link: Link) -> None:
    assert set(link.finish(link.consumer.count).values()) == {0}
    receiving = link.collecting(1, max_messages=1)
    looker = link.make_consumer()
    assert set(link.finish(looker.count).values()) == {0}, "a receive that waits is in the way"
    link.send(b"1")
    (held,) = link.result(receiving, "a message, while somebody counts")
    link.send(b"2", b"3")
    counted = link.until_counted(2, looker)
    assert counted == link.finish(link.consumer.count)
    assert not held.lost
    if link.consumer.capabilities.acknowledge:
        # Not by `nack`: a consumer that has room may have it again at once.
        link.run(link.consumer.aclose())
        link.until_counted(3, looker)


def _counts_nothing(link: Link) -> None:
    with pytest.raises(UnsupportedError):
        link.finish(link.consumer.count)


def _can_be_looked_into(link: Link) -> None:
    link.send(b"0")
    (held,) = link.collect(1, max_messages=1)
    bodies = [b"1", b"2", b"3", b"4", b"5"]
    link.send(*bodies)
    queue = link.queue
    link.until_counted(len(bodies))
    looker = link.make_consumer()
    peek = partial(link.finish, partial(looker.peek, queue))
    seen = [each.body for each in peek()]
    assert sorted(seen) == bodies, "what waits, and nothing else"
    if link.consumer.capabilities.ordering:
        assert seen == bodies
    part = link.finish(lambda: looker.peek(queue, offset=1, limit=2))
    assert [each.body for each in part] == seen[1:3]
    assert link.finish(lambda: looker.peek(queue, offset=5)) == []
    received = link.collect(5)
    assert sorted(each.body for each in received) == bodies
    assert not any(each.redelivered for each in received), "a peek is no delivery"
    assert not held.lost
    assert peek() == []


def _cannot_be_looked_into(link: Link) -> None:
    with pytest.raises(UnsupportedError):
        link.finish(lambda: link.consumer.peek(link.queue))


def _purges(link: Link) -> None:
    link.send(b"held")
    (held,) = link.collect(1, max_messages=1)
    link.send(b"1", b"2", b"3")
    link.until_counted(3)
    queue, purger = link.queue, link.make_consumer()
    assert link.finish(lambda: purger.purge(queue)) == 3
    link.until_counted(0)
    assert link.finish(lambda: purger.purge(queue)) == 0
    assert not held.lost
    held.ack()
    link.settled(held)
    assert link.rest() == []


def _purges_nothing(link: Link) -> None:
    with pytest.raises(UnsupportedError):
        link.finish(lambda: link.consumer.purge(link.queue))


CONSUMER_CLAIMS: Mapping[str, Claim] = {
    "acknowledge": Claim(holds=_takes_back, is_refused=_takes_nothing_back),
    "redeliver_on_crash": Claim(holds=_redelivers),
    "retry": Claim(holds=_retries, is_refused=_retries_nothing),
    "lease": Claim(
        holds=_leases,
        is_refused=_has_no_lease,
        lie=lambda declared: 1.0 if declared is None else None,
    ),
    "count": Claim(holds=_counts, is_refused=_counts_nothing),
    "inspect": Claim(holds=_can_be_looked_into, is_refused=_cannot_be_looked_into),
    "purge": Claim(holds=_purges, is_refused=_purges_nothing),
}
