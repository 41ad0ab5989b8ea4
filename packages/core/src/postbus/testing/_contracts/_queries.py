"""What every way for queries does, as tests that a package inherits."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs
import pytest

from postbus.buses import QueryBus
from postbus.catalog import MessageCatalog
from postbus.errors import (
    ClosedError,
    DispatchError,
    HandlerFailedError,
    RejectedError,
    TimedOutError,
    TransportError,
    UnsupportedError,
)
from postbus.messages import MessageKind, Query
from postbus.plugins import MessageProducerPlugin
from postbus.routers import QueryRouter
from postbus.testing._contracts._claims import PRODUCER_CLAIMS, judge
from postbus.testing._contracts._contract import Contract
from postbus.testing._contracts._sides import message, question, text_of
from postbus.transports import AsyncQueryClient, QueryClient, Reply
from postbus.worker import ConsumerRun, Worker

if TYPE_CHECKING:
    from collections.abc import Generator

    from postbus.promises import Promise
    from postbus.testing._contracts._link import Link

__all__ = ["QueryContract"]

_IN_FLIGHT = 100
_SOON = 0.5
# Time enough for a query to reach another process, and short where the deadline is waited for.
_TAKEN = 3.0
_COUNT = "postbus.testing.count-knocks"


@attrs.frozen
class _CountKnocks(Query[int], name=_COUNT):
    door: str


class _NoSuchDoorError(Exception):
    code = "no-such-door"


class _Answers:
    def __call__(self, query: _CountKnocks) -> int:
        if query.door == "cellar":
            raise _NoSuchDoorError
        return len(query.door)


@contextmanager
def _worker(link: Link, *, knows: bool = True) -> Generator[None]:
    """Answer queries with a worker while the block runs."""
    catalog, router = MessageCatalog(), QueryRouter()
    if knows:
        catalog.add(_CountKnocks)
        router.route(_CountKnocks).to(_Answers())
    bus = QueryBus()
    bus.utilize(router)
    run = ConsumerRun(name="contract", consumer=link.make_consumer())
    with Worker({MessageKind.QUERY: bus}, [run], catalog).running():
        yield


def _asking(link: Link, timeout: float) -> QueryBus:
    bus = QueryBus(timeout=timeout)
    bus.utilize(MessageProducerPlugin(link.producer))
    return bus


class QueryContract(Contract):
    """How queries and their answers travel, whatever the transport. Needs `postbus[testing]`.

    For transports with queries only: a `ProducerContract` shows that the others refuse them. A
    package derives a test class from it and gives one fixture, *under_test*.
    """

    def test_both_sides_declare_queries(self, link: Link) -> None:
        """A producer with queries is a `QueryClient`, and its consumers answer."""
        assert link.producer.capabilities.queries
        assert link.consumer.capabilities.queries
        assert isinstance(link.producer, QueryClient)

    def test_other_messages_are_taken_or_refused(self, link: Link) -> None:
        """Where a producer takes only queries it says so, and refuses what wants no answer."""
        judge(link, "producer", "queries_only", PRODUCER_CLAIMS)

    def test_an_answer_comes_back(self, link: Link) -> None:
        """To a thread that waits, and to asyncio code; an error is marked as one."""
        for answer in (Reply(b"42"), Reply(b'{"code":"no"}', is_error=True), Reply(b'""')):
            collecting = link.collecting(1)
            reply = link.ask("?")
            (query,) = link.result(collecting, "a query")
            assert (text_of(query.body), query.can_reply) == ("?", True)
            query.reply(answer)
            query.ack()
            assert answer == link.answer_of(reply)

    def test_asyncio_code_may_ask(self, link: Link) -> None:
        """The promise can be awaited; a client with asyncio calls of its own answers too."""
        client = link.producer
        collecting = link.collecting(1)
        awaiting = link.start(link.ask)
        (query,) = link.result(collecting, "a query")
        query.reply(Reply(b"1"))
        query.ack()
        assert link.run(_awaited(link.result(awaiting))) == Reply(b"1")
        if isinstance(client, AsyncQueryClient):
            collecting = link.collecting(1)
            asking = link.submit(client.arequest(question()))
            (query,) = link.result(collecting, "a query")
            query.reply(Reply(b"2"))
            query.ack()
            assert link.result(asking) == Reply(b"2")

    def test_a_hundred_in_flight_get_their_own_answers(self, link: Link) -> None:
        """Answered out of order, each asker gets what was meant for it."""
        collecting = link.collecting(_IN_FLIGHT)
        replies = {str(number): link.ask(str(number)) for number in range(_IN_FLIGHT)}
        queries = link.result(collecting, "a hundred queries")
        random.Random(7).shuffle(queries)  # noqa: S311  no secret
        for query in queries:
            query.reply(Reply(text_of(query.body).encode()))
            query.ack()
        for text, reply in replies.items():
            assert link.answer_of(reply) == Reply(text.encode())

    def test_any_thread_may_ask_and_answer(self, link: Link) -> None:
        """Eight threads ask at once, and eight answer."""
        collecting = link.collecting(80)
        assert link.producer is not None
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(link.ask, str(number)) for number in range(80)]
            replies = [link.result(each) for each in asked]
            for query in link.result(collecting, "80 queries"):
                pool.submit(query.reply, Reply(text_of(query.body).encode())).add_done_callback(
                    lambda _, query=query: query.ack()  # type: ignore[misc]  # mypy infers no default
                )
        answers = [int(link.answer_of(reply).body) for reply in replies]
        assert answers == list(range(80))

    def test_the_first_answer_counts(self, link: Link) -> None:
        """A second answer to one query changes nothing and disturbs nobody."""
        collecting = link.collecting(1)
        reply = link.ask()
        (query,) = link.result(collecting, "a query")
        query.reply(Reply(b"1"))
        query.reply(Reply(b"2"))
        query.ack()
        assert link.answer_of(reply) == Reply(b"1")
        self.test_an_answer_comes_back(link)

    def test_a_late_answer_is_dropped(self, link: Link) -> None:
        """Who gave up is not disturbed, the answerer neither, nor those who ask after it."""
        collecting = link.collecting(1)
        reply = link.ask()
        (query,) = link.result(collecting, "a query")
        reply.reject(TimedOutError("given up"))
        query.reply(Reply(b"late"))
        query.ack()
        assert isinstance(reply.exception(), TimedOutError)
        self.test_an_answer_comes_back(link)

    def test_a_query_that_came_back_can_be_answered(self, link: Link) -> None:
        """The reply channel belongs to the message, whoever has it; retried too."""
        collecting = link.collecting(1)
        reply = link.ask()
        (query,) = link.result(collecting, "a query")
        can = link.consumer.capabilities
        if not (can.acknowledge and can.retry):
            with pytest.raises(UnsupportedError):
                query.nack() if not can.acknowledge else query.retry(message(b"{}"))
            link.refused()
            return
        query.nack()
        (again,) = link.collect(1)
        again.retry(message(again.body))
        (again,) = link.collect(1)
        assert again.can_reply
        again.reply(Reply(b"1"))
        again.ack()
        assert link.answer_of(reply) == Reply(b"1")

    def test_a_query_too_large_is_rejected(self, link: Link) -> None:
        """What goes wrong when asking shows in the promise, never as an exception."""
        limit = link.producer.capabilities.max_size_bytes
        assert limit is not None
        with pytest.raises(RejectedError):
            link.answer_of(link.ask("x" * limit))

    def test_closing_rejects_what_waits(self, link: Link) -> None:
        """Nobody waits for an answer that cannot come; asked after it, the same."""
        collecting = link.collecting(1)
        reply = link.ask()
        link.result(collecting, "a query")
        link.finish(link.producer.close, "close() to return")
        with pytest.raises(ClosedError):
            link.answer_of(reply)
        with pytest.raises(ClosedError):
            link.answer_of(link.ask())

    def test_a_worker_answers(self, link: Link) -> None:
        """Through buses on both sides: results typed, failures by their code."""
        bus = _asking(link, link.patience)
        with _worker(link):
            assert bus.dispatch(_CountKnocks("front")).result(link.patience) == 5
            failed = bus.dispatch(_CountKnocks("cellar"))
            with pytest.raises(HandlerFailedError) as caught:
                failed.result(link.patience)
            assert caught.value.code == "no-such-door"
            assert bus.dispatch(_CountKnocks("back")).result(link.patience) == 4

    def test_an_unknown_query_is_rejected(self, link: Link) -> None:
        """A worker that does not know the name says so; nobody waits for the deadline."""
        bus = _asking(link, 2 * link.patience)
        with _worker(link, knows=False):
            with pytest.raises((DispatchError, TransportError)) as caught:
                bus.dispatch(_CountKnocks("front")).result(link.patience)
            assert not isinstance(caught.value, TimedOutError)

    def test_an_unanswered_query_ends_at_its_deadline(self, link: Link) -> None:
        """Somebody took it and says nothing: the deadline rejects, later queries work."""
        collecting = link.collecting(1)
        promise = _asking(link, _SOON).dispatch(_CountKnocks("front"))
        with pytest.raises(TimedOutError):
            promise.result(link.patience)
        # Taken in time or expired on the way: either way nobody is disturbed.
        collecting.cancel()
        link.run(link.consumer.aclose())
        with _worker(link):
            bus = _asking(link, link.patience)
            assert bus.dispatch(_CountKnocks("front")).result(link.patience) == 5

    def test_a_killed_answerer_costs_only_its_queries(self, link: Link) -> None:
        """What it held is answered by another or ends at its deadline; later queries work."""
        if link.under_test.is_in_process:
            collecting = link.collecting(1)
            held = _asking(link, link.patience).dispatch(_CountKnocks("front"))
            link.result(collecting, "a query")
            link.run(link.consumer.aclose())
            with _worker(link):
                if link.consumer.capabilities.acknowledge:
                    assert held.result(link.patience) == 5
                bus = _asking(link, link.patience)
                assert bus.dispatch(_CountKnocks("back")).result(link.patience) == 4
            return
        lease = link.make_quick_consumer().capabilities.lease or 0.0
        with link.peer("hold", b"", quick=True) as holder:
            held = _asking(link, lease + _TAKEN).dispatch(_CountKnocks("front"))
            holder.expect("held")
            holder.kill()
        with _worker(link):
            try:
                assert held.result(link.patience) == 5
            except TransportError:
                assert held.done()
            bus = _asking(link, link.patience)
            assert bus.dispatch(_CountKnocks("back")).result(link.patience) == 4


async def _awaited(promise: Promise[Reply]) -> Reply:
    return await promise
