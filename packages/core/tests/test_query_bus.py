"""The query bus: answers, rejections, deadlines, and queries that are sent."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from postbus.buses import QueryBus
from postbus.errors import (
    ClosedError,
    ConnectionFailedError,
    DispatchError,
    HandlerFailedError,
    MetadataError,
    NoHandlerError,
    RejectedError,
    RoutingError,
    TimedOutError,
    UnauthorizedError,
    UnsupportedError,
)
from postbus.messages import Command, Envelope, Query
from postbus.pipeline import Stage, Target, deadlines
from postbus.promises import Promise
from postbus.routers import QueryRouter
from postbus.testing import RecordingProducer
from postbus.transports import Capabilities, MessageProducer, Reply
from postbus.wire import encode_problem, encode_result

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from postbus.transports import WireMessage

# Long enough for a loaded machine, and never waited for where all is well.
PATIENCE = 10.0


@attrs.frozen
class Count(Query[int], name="shop.count"):
    of: str = "orders"


@attrs.frozen
class NoQuery(Command, name="shop.command"):
    pass


class SoldOutError(Exception):
    code = "sold-out"


class MemoryClient(MessageProducer):
    """Keeps the questions until somebody answers them."""

    def __init__(self, *, expiry: bool = False) -> None:
        self.capabilities = Capabilities(queries=True, expiry=expiry)
        self.asked: list[tuple[WireMessage, Promise[Reply]]] = []

    def send_many(self, messages: Sequence[WireMessage]) -> None:
        raise NotImplementedError

    def request(self, message: WireMessage, reply: Promise[Reply]) -> None:
        self.asked.append((message, reply))

    def close(self) -> None: ...

    def answer(self, result: object) -> bool:
        _, reply = self.asked.pop(0)
        return reply.resolve(Reply(encode_result(result)))


class AsyncClient(MemoryClient):
    """Answers by itself, awaited."""

    def __init__(self, reply: Reply | Exception | None) -> None:
        super().__init__()
        self.reply = reply

    async def arequest(self, message: WireMessage) -> Reply:
        await asyncio.sleep(0)
        if self.reply is None:
            await asyncio.Event().wait()
        if isinstance(self.reply, Exception):
            raise self.reply
        assert self.reply is not None
        return self.reply


def make(routes: dict[Any, Any], send: dict[Any, Any] | None = None, **options: Any) -> QueryBus:
    bus = QueryBus(**options)
    bus.utilize(QueryRouter(routes, send))
    return bus


def fail(message: object) -> None:
    raise SoldOutError("none left")


def ask(bus: QueryBus, message: object, **options: Any) -> list[Callable[[], Any]]:
    """Return both ways to ask."""
    return [
        lambda: bus.dispatch(message, **options).result(PATIENCE),
        lambda: asyncio.run(bus.adispatch(message, **options)),
    ]


class TestAnswer:
    def test_a_finder_returns_the_answer(self) -> None:
        """A promise of it from dispatch, the answer itself from adispatch (B34, T15)."""

        async def afind(message: Count) -> int:
            await asyncio.sleep(0)
            return len(message.of)

        bus = make({Count: lambda q: 5, "shop.none": lambda q: None, "shop.async": afind})
        promise = bus.dispatch(Count())
        assert promise.done()
        assert [5, 5] == [way() for way in ask(bus, Count())]
        assert [None, None] == [way() for way in ask(bus, "shop.none")]

        async def main() -> None:
            assert 5 == await bus.dispatch(Count())

        asyncio.run(main())
        bus = make({Count: afind})
        assert 6 == asyncio.run(bus.adispatch(Count()))

    def test_a_promise_of_the_finder_is_the_answer(self) -> None:
        """A finder may pass on what another bus promised."""
        inner = make({"shop.inner": lambda q: 7})
        bus = make({Count: lambda q: inner.dispatch("shop.inner")})
        assert [7, 7] == [way() for way in ask(bus, Count())]
        assert 7 == bus.receive(Envelope(Count()), "memory")
        assert 7 == asyncio.run(bus.areceive(Envelope(Count()), "memory"))
        assert 7 == asyncio.run(bus.areceive(Envelope(Count()), "memory", threads=True))
        bus.close()
        bus = make({Count: Target(lambda q: inner.dispatch("shop.inner"), threads=True)})
        assert 7 == asyncio.run(bus.adispatch(Count()))
        bus.close()

    def test_a_received_query_is_answered(self) -> None:
        """`receive` returns the answer for the worker, or raises."""
        bus = make({Count: lambda q: 5, "shop.bad": fail})
        assert 5 == bus.receive(Envelope(Count()), "memory")
        assert 5 == asyncio.run(bus.areceive(Envelope(Count()), "memory"))
        with pytest.raises(HandlerFailedError):
            bus.receive(Envelope("shop.bad"), "memory")


class TestRejection:
    @pytest.mark.parametrize(
        ("message", "options", "error"),
        [
            ("shop.bad", {}, HandlerFailedError),
            ("shop.nobody", {}, NoHandlerError),
            ("shop.async", {}, RoutingError),
            ("shop.one-way", {}, UnsupportedError),
            ("shop.two", {}, RoutingError),
            (Count(), {"metadata": {"x": None}}, MetadataError),
            (Count(), {"id": "no id"}, ValueError),
            (Count(), {"delay": 1.0}, UnsupportedError),
        ],
    )
    def test_dispatch_never_raises(
        self, message: object, options: dict[str, Any], error: type[Exception]
    ) -> None:
        """Any failure rejects the promise, programming errors included (B35, T11)."""

        async def afind(query: object) -> None: ...

        one_way = RecordingProducer(capabilities=Capabilities())
        bus = QueryBus()
        router = QueryRouter(
            {"shop.bad": fail, "shop.async": afind, Count: lambda q: 5},
            {"shop.one-way": one_way, "shop.two": RecordingProducer()},
        )
        bus.utilize(router)
        bus.utilize(QueryRouter(send={"shop.two": RecordingProducer()}))
        promise = bus.dispatch(message, **options)
        assert promise.done()
        with pytest.raises(error):
            promise.result()
        if message != "shop.async":
            with pytest.raises(error):
                asyncio.run(bus.adispatch(message, **options))
        assert [] == one_way.messages

    def test_the_original_is_the_cause(self) -> None:
        """A finder's exception is wrapped like any handler's."""
        for way in ask(make({Count: fail}), Count()):
            with pytest.raises(HandlerFailedError) as caught:
                way()
            assert "sold-out" == caught.value.code
            assert isinstance(caught.value.__cause__, SoldOutError)

    def test_a_plugins_error_rejects_as_it_is(self) -> None:
        """A guard's refusal reaches whoever looks at the promise."""
        bus = make({Count: lambda q: 5})

        def deny(context: object) -> None:
            raise UnauthorizedError("not you")

        bus.attach(Stage.ROUTE, deny)
        for way in ask(bus, Count()):
            with pytest.raises(UnauthorizedError):
                way()

    def test_a_stopped_query_is_rejected(self) -> None:
        """No answer can come, and that is said."""
        bus = make({Count: lambda q: 5})
        bus.attach(Stage.ROUTE, lambda c: c.stop())
        for way in ask(bus, Count()):
            with pytest.raises(DispatchError, match=r"shop\.count was stopped at route"):
                way()

    def test_recovering_supplies_the_answer(self) -> None:
        """Clearing a query's error at FINALIZE needs a result, which is the answer (B36, T05)."""
        bus = make({Count: fail})
        bus.attach(Stage.FINALIZE, lambda c: c.recover(0))
        assert [0, 0] == [way() for way in ask(bus, Count())]

    def test_what_is_no_exception_passes(self) -> None:
        """KeyboardInterrupt is nobody's answer."""

        def interrupt(message: object) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make({Count: interrupt}).dispatch(Count())

    def test_a_closed_bus_rejects(self) -> None:
        """After `close` there are no answers, local ones neither."""
        bus = make({Count: lambda q: 5})
        bus.close()
        for way in ask(bus, Count()):
            with pytest.raises(ClosedError):
                way()

    def test_a_rejection_nobody_looked_at_is_logged(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Also that of a query that was sent and not answered in time."""
        client = MemoryClient()
        bus = make({}, {Count: client})
        promise = bus.dispatch(Count(), timeout=0.01)
        client.asked[0][1].add_done_callback(lambda _: settled.set())
        settled = threading.Event()
        if not client.asked[0][1].done():
            assert settled.wait(PATIENCE)
        client.asked.clear()
        while not promise.done():
            time.sleep(0.001)
        del promise
        deadline = time.monotonic() + PATIENCE
        while not caplog.records and time.monotonic() < deadline:
            gc.collect()
        assert ["a query failed and nobody looked at the answer"] == caplog.messages


class TestDeadline:
    def test_a_slow_finder_is_cancelled(self) -> None:
        """The deadline of the bus, the route or the dispatch, the nearest of them."""
        ended: list[str] = []

        async def slow(message: object) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("ended")

        cases: list[tuple[QueryBus, dict[str, Any]]] = [
            (make({Count: slow}, timeout=0.01), {}),
            (make({Count: Target(slow, timeout=0.01)}), {}),
            (make({Count: slow}), {"timeout": 0.01}),
            (make({Count: slow}), {"timeout": 0.01, "id": Envelope("x").id}),
        ]
        for bus, options in cases:
            with pytest.raises(TimedOutError, match=r"did not finish within 0\.01 seconds"):
                asyncio.run(bus.adispatch(Count(), **options))
        assert ["ended"] * 4 == ended

    def test_a_promise_that_a_finder_never_settles_is_rejected(self) -> None:
        """No promise stays pending past its deadline (T05)."""
        bus = make({Count: lambda q: Promise()}, timeout=0.01)
        for way in ask(bus, Count()):
            with pytest.raises(TimedOutError):
                way()

    def test_a_thread_is_not_waited_for_past_the_deadline(self) -> None:
        """A finder in a thread goes on; whoever asked does not wait for it."""
        go_on = threading.Event()
        bus = make({Count: Target(lambda q: go_on.wait(PATIENCE), threads=True, timeout=0.01)})

        async def main() -> None:
            with pytest.raises(TimedOutError):
                await bus.adispatch(Count())
            go_on.set()

        asyncio.run(main())
        bus.close()

    def test_one_thread_serves_all_deadlines(self) -> None:
        """However many queries wait, of however many buses."""
        client = MemoryClient()
        promises = [make({}, {Count: client}).dispatch(Count()) for _ in range(20)]
        threads = [t for t in threading.enumerate() if t.name == "postbus-deadlines"]
        assert 1 == len(threads)
        while client.asked:
            client.answer(1)
        assert [1] * 20 == [p.result() for p in promises]

    def test_deadlines_come_in_their_order(self) -> None:
        """A nearer deadline is served first, though it was added last; answered ones vanish."""
        served: list[str] = []
        late, soon, answered = (Promise[int]() for _ in range(3))
        late.add_done_callback(lambda _: served.append("late"))
        soon.add_done_callback(lambda _: served.append("soon"))
        deadlines.add(late, 0.2)
        deadlines.add(answered, 0.01)
        deadlines.add(soon, 0.01)
        answered.resolve(5)
        for promise in (soon, late):
            with pytest.raises(TimedOutError):
                promise.result(PATIENCE)
        assert ["soon", "late"] == served
        assert 5 == answered.result()

    def test_a_forked_child_has_deadlines_of_its_own(self) -> None:
        """A fork copies no threads: the child starts one, and forgets what the parent asked."""
        script = textwrap.dedent(
            """
            import os
            from postbus.errors import TimedOutError
            from postbus.pipeline import deadlines
            from postbus.promises import Promise

            parents = Promise()
            deadlines.add(parents, 60.0)
            child = os.fork()
            if child == 0:
                own = Promise()
                deadlines.add(own, 0.01)
                try:
                    own.result(10.0)
                except TimedOutError:
                    os._exit(7)
                os._exit(1)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 7, status
            assert not parents.done()
            """
        )
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]
        assert 0 == subprocess.run(command, check=False, timeout=60).returncode


class TestSent:
    def test_the_answer_comes_back(self) -> None:
        """The query leaves at once with its deadline, the answer is structured."""
        client = MemoryClient(expiry=True)
        bus = make({Count: fail}, {Count: client})
        promise = bus.dispatch(Count("users"), timeout=60.0, priority=None, metadata={"user": 7})
        assert not promise.done()
        message, _ = client.asked[0]
        body = json.loads(message.body)
        assert {"of": "users"} == body["payload"]
        assert {"user": 7} == body["metadata"]
        assert message.expires_at is not None
        assert body["headers"]["deadline"] == message.expires_at.isoformat()
        assert client.answer(5)
        assert 5 == promise.result()

    def test_a_plain_client_serves_asyncio_too(self) -> None:
        """The promise is awaited without blocking the loop."""
        client = MemoryClient()
        bus = make({}, {Count: client})

        async def main() -> int:
            asking = asyncio.create_task(bus.adispatch(Count()))
            await asyncio.sleep(0)
            client.answer(5)
            return await asking

        assert 5 == asyncio.run(main())

    def test_an_answer_of_the_wrong_type_rejects(self) -> None:
        """R of `Query[R]` is what comes, or an error."""
        client = MemoryClient()
        promise = make({}, {Count: client}).dispatch(Count())
        client.answer("five")
        assert promise.exception() is not None

    def test_a_problem_rejects_with_what_it_says(self) -> None:
        """A finder that failed elsewhere is a HandlerFailedError here, without a cause."""
        client = MemoryClient()
        promise = make({}, {Count: client}).dispatch(Count())
        problem = encode_problem(HandlerFailedError("sold-out", "none left"))
        client.asked[0][1].resolve(Reply(problem, is_error=True))
        with pytest.raises(HandlerFailedError) as caught:
            promise.result()
        assert "sold-out" == caught.value.code
        assert caught.value.envelope is not None

    def test_a_transport_that_fails_rejects(self) -> None:
        """With its own error, which has the envelope."""
        client = MemoryClient()
        promise = make({}, {Count: client}).dispatch(Count())
        client.asked[0][1].reject(ConnectionFailedError("no peer"))
        with pytest.raises(ConnectionFailedError) as caught:
            promise.result()
        assert caught.value.envelope is not None
        promise = make({}, {Count: client}).dispatch(Count())
        client.asked[1][1].reject(RuntimeError("a bug"))
        with pytest.raises(RuntimeError):
            promise.result()

    def test_the_deadline_rejects_and_late_answers_are_dropped(self) -> None:
        """The transport that still waits learns of it, and its answer comes to nothing."""
        client = MemoryClient()
        promise = make({}, {Count: client}).dispatch(Count(), timeout=0.01)
        _, reply = client.asked[0]
        with pytest.raises(TimedOutError):
            promise.result(PATIENCE)
        with pytest.raises(TimedOutError, match="deadline has passed"):
            reply.result(PATIENCE)
        assert not client.answer(5)
        with pytest.raises(TimedOutError):
            promise.result()

    def test_an_asyncio_client_is_awaited(self) -> None:
        """Its answer and its errors, the deadline and a TimeoutError of its own."""
        good = AsyncClient(Reply(b"5"))
        assert 5 == asyncio.run(make({}, {Count: good}).adispatch(Count()))
        for raised, error in (
            (ConnectionFailedError("no peer"), ConnectionFailedError),
            (TimedOutError("theirs"), TimedOutError),
            (TimeoutError("builtin"), TimeoutError),
        ):
            with pytest.raises(error) as caught:
                asyncio.run(make({}, {Count: AsyncClient(raised)}).adispatch(Count()))
            assert raised is caught.value
        with pytest.raises(TimedOutError, match=r"no answer came within 0\.01 seconds") as timed:
            asyncio.run(make({}, {Count: AsyncClient(None)}).adispatch(Count(), timeout=0.01))
        assert timed.value.envelope is not None

    def test_middleware_surrounds_a_sent_query(self) -> None:
        """In plain code it sees the promise, in asyncio the answer, whatever its colour."""
        seen: list[object] = []
        client = AsyncClient(Reply(b"5"))

        def plain(context: object, call_next: Callable[[], Any]) -> Any:
            seen.append(result := call_next())
            return result

        async def asynchronous(context: object, call_next: Callable[[], Any]) -> Any:
            seen.append(result := await call_next())
            return result

        async def answered(bus: QueryBus) -> int:
            asking = asyncio.create_task(bus.adispatch(Count()))
            while not asking.done():
                await asyncio.sleep(0)
                if client.asked:
                    client.answer(5)
            return await asking

        def wrapped(*middlewares: Callable[..., Any]) -> QueryBus:
            bus = make({}, {Count: client})
            for middleware in middlewares:
                bus.wrap(middleware)
            return bus

        promise = wrapped(plain).dispatch(Count())
        assert [promise] == seen
        client.answer(5)
        assert 5 == promise.result()
        assert 5 == asyncio.run(answered(wrapped(plain)))
        seen.clear()
        assert 5 == asyncio.run(answered(wrapped(asynchronous)))
        assert 5 == asyncio.run(answered(wrapped(asynchronous, plain)))
        assert [5, 5] == [seen[0], seen[-1]]

    def test_a_producer_of_one_way_only_is_refused(self) -> None:
        """A query never falls through to something that cannot answer (Z02, T11)."""
        for way in ask(make({}, {Count: RecordingProducer(capabilities=Capabilities())}), Count()):
            with pytest.raises(UnsupportedError, match="only sends and cannot bring an answer"):
                way()

    def test_a_query_goes_to_one_producer(self) -> None:
        """It has one answer."""
        bus = make({}, {Count: MemoryClient()})
        bus.utilize(QueryRouter(send={Count: MemoryClient()}))
        with pytest.raises(RoutingError, match="more than one route"):
            bus.dispatch(Count()).result()

    def test_a_message_of_another_kind_is_not_sent(self) -> None:
        """A command cannot be answered elsewhere."""
        with pytest.raises(RoutingError, match=r"shop\.command is a command"):
            make({}, {NoQuery: MemoryClient()}).dispatch(NoQuery()).result()

    def test_a_producer_that_refuses_rejects(self) -> None:
        """What the recording producer has no answer for, say."""
        with pytest.raises(RejectedError):
            make({}, {Count: RecordingProducer()}).dispatch(Count()).result(PATIENCE)
