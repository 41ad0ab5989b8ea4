"""Dispatches without options of a class that was dispatched before: the shortest way there is."""

from __future__ import annotations

import asyncio
import threading
import traceback
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import pytest

from postbus.buses import CommandBus, EventBus, QueryBus
from postbus.errors import (
    ClosedError,
    CommandDispatchError,
    HandlerFailedError,
    ListenersFailedError,
    NoHandlerError,
    RoutingError,
    TimedOutError,
)
from postbus.messages import Command, Envelope, Event
from postbus.pipeline import DispatchContext, Stage
from postbus.routers import CommandRouter, EventRouter, QueryRouter

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    Next = Callable[[], Any]

B = TypeVar("B")


@attrs.frozen
class Place(Command, name="shop.place"):
    order: int = 1


@attrs.frozen
class Placed(Event, name="shop.placed"):
    order: int = 1


class BrokenError(Exception):
    """What handlers raise here."""


def commands(handler: Callable[..., Any], **options: Any) -> CommandBus:
    """Return a bus that has dispatched `Place(0)` in both colours, where that is possible."""
    bus = CommandBus(**options)
    bus.utilize(CommandRouter({Place: handler}))
    return warm(bus, Place(0))


def events(*listeners: Callable[..., Any], **options: Any) -> EventBus:
    bus = EventBus(**options)
    router = EventRouter()
    for listener in listeners:
        router.route(Placed).to(listener)
    bus.utilize(router)
    return warm(bus, Placed(0))


def warm(bus: B, message: object) -> B:
    for run in ways(bus):
        with suppress(RoutingError, HandlerFailedError, ListenersFailedError):
            run(message)
    return bus


def ways(bus: Any) -> list[Callable[..., Any]]:
    """Return dispatch in both colours."""
    return [bus.dispatch, lambda message, **o: asyncio.run(bus.adispatch(message, **o))]


def fail(message: Any) -> None:
    if message.order:
        raise BrokenError(message.order)


async def afail(message: Any) -> None:
    fail(message)


def hides(message: Any) -> Any:
    return afail(message)


@pytest.mark.parametrize("nested", ["queue", "inline"])
class TestCommands:
    def test_an_error_is_wrapped_with_an_envelope_of_its_own(self, nested: str) -> None:
        """Each failure has the handler's error as its cause, once, and its own message and id."""
        bus, ids = commands(fail, nested=nested), set[str]()
        for run in ways(bus) * 2:
            message = Place()
            with pytest.raises(HandlerFailedError) as raised:
                run(message)
            assert isinstance(raised.value.__cause__, BrokenError)
            assert raised.value.envelope is not None
            assert raised.value.envelope.message is message
            ids.add(raised.value.envelope.id)
            shown = "".join(traceback.format_exception(raised.value))
            assert 1 == shown.count("raise BrokenError(message.order)")
        assert 4 == len(ids)

    def test_a_coroutine_is_refused_every_time(self, nested: str) -> None:
        """What only asyncio can run is not lost silently: dispatch raises, adispatch awaits."""
        bus = commands(hides, nested=nested)
        for _ in range(2):
            with pytest.raises(RoutingError, match="hides returned a coroutine"):
                bus.dispatch(Place())
            with pytest.raises(HandlerFailedError):
                asyncio.run(bus.adispatch(Place()))

    def test_nothing_is_returned(self, nested: str) -> None:
        """A command has no answer, whatever its handler returns."""
        bus = commands(lambda m: None if m.order else 1, nested=nested)
        bus.dispatch(Place(0))
        assert [None] * 6 == [run(Place()) for run in ways(bus) * 3]

    def test_what_is_no_exception_passes_as_it_is(self, nested: str) -> None:
        """An interrupt is nobody's failure to handle."""

        def interrupt(message: Place) -> None:
            if message.order:
                raise KeyboardInterrupt

        bus = commands(interrupt, nested=nested)
        for run in ways(bus):
            with pytest.raises(KeyboardInterrupt):
                run(Place())

    def test_options_and_envelopes_count(self, nested: str) -> None:
        """A dispatch that says more than the message is not mistaken for a plain one."""
        bus, seen = commands(fail, nested=nested), Envelope(Place(7), name="shop.place")
        for run in ways(bus):
            with pytest.raises(HandlerFailedError) as raised:
                run(Place(), metadata={"by": "me"})
            assert raised.value.envelope is not None
            assert {"by": "me"} == raised.value.envelope.metadata
            with pytest.raises(HandlerFailedError) as raised:
                run(seen)
            assert raised.value.envelope is not None
            assert seen.id == raised.value.envelope.id

    def test_a_change_counts_from_the_next_dispatch_on(self, nested: str) -> None:
        """Middleware, listeners, other routes and closing are seen at once (C12)."""
        log: list[str] = []
        bus = CommandBus(nested=nested)  # type: ignore[arg-type]  # parametrized
        router = CommandRouter({Place: lambda m: log.append("first")})
        bus.utilize(router)
        warm(bus, Place())
        log.clear()

        @contextmanager
        def managed(context: DispatchContext) -> Generator[None]:
            log.append("wrapped")
            yield

        wrapped = bus.wrap(managed)
        for run in ways(bus):
            run(Place())
        assert ["wrapped", "first"] * 2 == log
        bus.detach(wrapped)
        watched = bus.attach(Stage.INVOKE, lambda c: log.append("watched"))
        for run in ways(bus):
            run(Place())
        assert ["watched", "first"] * 2 == log[4:]
        bus.detach(watched)
        bus.deactivate(router)
        for run in ways(bus):
            with pytest.raises(NoHandlerError):
                run(Place())
        bus.close()
        for run in ways(bus):
            with pytest.raises(ClosedError):
                run(Place())
        assert ["watched", "first"] * 2 == log[4:]

    def test_a_handler_that_changes_the_bus_fails_as_ever(self, nested: str) -> None:
        """What was compiled is gone when the handler raises; its error is wrapped all the same."""

        def handler(message: Place) -> None:
            bus.changed()
            fail(message)

        bus = CommandBus(nested=nested)  # type: ignore[arg-type]  # parametrized
        bus.utilize(CommandRouter({Place: handler}))
        for run in ways(bus) * 2:
            warm(bus, Place(0))
            with pytest.raises(HandlerFailedError):
                run(Place())

    def test_the_error_of_a_nested_command_is_wrapped_for_each(self, nested: str) -> None:
        """Inline, a handler's error is a cause of its caller's; queued, of the first command's."""

        def handler(message: Place) -> None:
            if message.order > 1:
                bus.dispatch(Place(message.order - 1))
            elif message.order:
                raise BrokenError(1)

        bus = commands(handler, nested=nested)
        with pytest.raises(HandlerFailedError) as raised:
            bus.dispatch(Place(2))
        error = raised.value
        assert error.envelope is not None
        if nested == "inline":
            assert 2 == error.envelope.message.order
            assert isinstance(error.__cause__, HandlerFailedError)
            error = error.__cause__
        assert error.envelope is not None
        assert 1 == error.envelope.message.order
        assert isinstance(error.__cause__, BrokenError)

    def test_an_async_handler_fails_with_the_envelope_it_was_given(self, nested: str) -> None:
        """Awaited handlers are wrapped as plain ones; what identifies a message is kept."""

        async def handler(message: Place) -> None:
            await afail(message)

        bus, seen = commands(handler, nested=nested), Envelope(Place(7), name="shop.place")
        for message, options in ((Place(), {}), (Place(), {"metadata": {"by": "me"}}), (seen, {})):
            for _ in range(2):
                with pytest.raises(HandlerFailedError) as raised:
                    asyncio.run(bus.adispatch(message, **options))  # type: ignore[arg-type]  # by name
                assert isinstance(raised.value.__cause__, BrokenError)
                assert raised.value.envelope is not None
                assert options.get("metadata", {}) == raised.value.envelope.metadata
                assert (message is seen) == (raised.value.envelope.id == seen.id)
        with pytest.raises(RoutingError, match="handler is asynchronous"):
            bus.dispatch(Place())


class TestQueue:
    def test_what_waited_comes_back_and_the_queue_is_free_again(self) -> None:
        """A failure hands out what waited (B24, T03); the next dispatch starts anew."""

        def handler(message: Place) -> None:
            log.append(message.order)
            if message.order == 10:
                for order in (3, 4):
                    bus.dispatch(Place(order))
                raise BrokenError(10)

        log: list[int] = []
        bus = commands(handler)
        for run in ways(bus) * 2:
            log.clear()
            for first in (Place(10), Envelope(Place(10), name="shop.place")):
                with pytest.raises(CommandDispatchError) as raised:
                    run(first)
                assert [3, 4] == [e.message.order for e in raised.value.pending]
            run(Place(5))
            assert [10, 10, 5] == log

    def test_what_waited_behind_an_async_handler_comes_back(self) -> None:
        """In asyncio too: a failure hands out what waited, success runs it in order."""

        async def handler(message: Place) -> None:
            log.append(message.order)
            if message.order >= 10:
                await bus.adispatch(Place(3))
                await bus.adispatch(Place(4))
                fail(Place(message.order - 10))

        log: list[int] = []
        bus = commands(handler)
        for _ in range(2):
            log.clear()
            asyncio.run(bus.adispatch(Place(10)))
            assert [10, 3, 4] == log
            with pytest.raises(CommandDispatchError) as raised:
                asyncio.run(bus.adispatch(Place(11)))
            assert [3, 4] == [e.message.order for e in raised.value.pending]
            assert isinstance(raised.value.__cause__, BrokenError)
            assert [10, 3, 4, 11] == log

    def test_a_callback_of_a_loop_has_a_queue_of_its_own(self) -> None:
        """What a callback dispatches does not wait behind a task that is suspended (T02)."""
        log: list[str] = []

        async def handler(message: Place) -> None:
            log.append(f"{message.order}")
            if message.order == 1:
                done = asyncio.get_running_loop().create_future()
                asyncio.get_running_loop().call_soon(callback, done)
                await done
                log.append("1 ends")

        def callback(done: asyncio.Future[None]) -> None:
            coroutine = bus.adispatch(Place(2))
            with pytest.raises(StopIteration):
                coroutine.send(None)
            done.set_result(None)

        bus = CommandBus()
        bus.utilize(CommandRouter({Place: handler}))
        for _ in range(2):
            log.clear()
            asyncio.run(bus.adispatch(Place(1)))
            assert ["1", "2", "1 ends"] == log

    def test_outside_of_a_loop_adispatch_says_so(self) -> None:
        """A coroutine that no loop runs belongs to no task: it is refused, not mixed up."""

        async def handler(message: Place) -> None: ...

        coroutine = commands(handler).adispatch(Place())
        with pytest.raises(RuntimeError, match="no running event loop"):
            coroutine.send(None)


class TestEvents:
    @pytest.mark.parametrize("count", [1, 2, 3, 10])
    @pytest.mark.parametrize("stops", [False, True])
    def test_each_position_may_fail(self, count: int, stops: bool) -> None:
        """Who fails is named, who ran before is done, and the others run unless told not to."""
        log: list[int] = []

        class Listener:
            def __init__(self, index: int) -> None:
                self.index = index

            def __call__(self, message: Placed) -> None:
                log.append(self.index)
                if message.order == self.index + 1:
                    raise BrokenError(self.index)

        mode: Any = "stop" if stops else "collect"
        bus = events(*map(Listener, range(count)), on_listener_error=mode)
        ids = [f"{__name__}.{Listener.__qualname__}" + f"#{n + 1}" * (n > 0) for n in range(count)]
        for run in ways(bus) * 2:
            log.clear()
            run(Placed(0))
            assert list(range(count)) == log
            for bad in range(count):
                log.clear()
                with pytest.raises(ListenersFailedError) as raised:
                    run(Placed(bad + 1))
                ran = range(bad + 1 if stops else count)
                assert list(ran) == log
                assert (ids[bad],) == raised.value.failed
                assert tuple(ids[i] for i in ran if i != bad) == raised.value.done
                assert isinstance(raised.value.exceptions[0].__cause__, BrokenError)

    def test_one_listener_may_be_there_twice(self) -> None:
        """The same function in two routes has two ids, and either can fail alone."""
        calls: list[int] = []

        def listener(message: Placed) -> None:
            calls.append(1)
            if len(calls) == message.order:
                raise BrokenError(message.order)

        bus = events(listener, listener, listener)
        for run in ways(bus):
            for bad in (1, 2, 3):
                calls.clear()
                with pytest.raises(ListenersFailedError) as raised:
                    run(Placed(bad))
                (id_,) = raised.value.failed
                assert id_.endswith("listener" if bad == 1 else f"#{bad}")
                assert 3 == len(calls)

    def test_all_failures_are_in_one_group(self) -> None:
        """A failure of the first does not hide that of the last."""
        bus = events(fail, lambda m: None, fail)
        for run in ways(bus) * 2:
            with pytest.raises(ListenersFailedError) as raised:
                run(Placed())
            assert 2 == len(raised.value.exceptions)

    def test_no_listener_is_fine(self) -> None:
        """An event that nobody waits for ends well, again and again (B30)."""
        bus = events()
        assert [None] * 4 == [run(Placed()) for run in ways(bus) * 2]

    def test_options_count(self) -> None:
        """A dispatch that says more than the message is not mistaken for a plain one."""
        bus = events(fail)
        for run in ways(bus):
            with pytest.raises(ListenersFailedError) as raised:
                run(Placed(), metadata={"by": "me"})
            assert raised.value.envelope is not None
            assert {"by": "me"} == raised.value.envelope.metadata

    def test_an_interrupt_passes_at_once(self) -> None:
        """What is no exception ends the dispatch, and the others do not run."""
        log: list[str] = []

        def interrupt(message: Placed) -> None:
            if message.order:
                raise KeyboardInterrupt

        bus = events(interrupt, lambda m: log.append("ran"))
        log.clear()
        for run in ways(bus):
            with pytest.raises(KeyboardInterrupt):
                run(Placed())
        assert not log

    def test_middleware_and_threads_keep_their_say(self) -> None:
        """A middleware's own error is not taken for a listener's."""

        def refuse(context: DispatchContext, call_next: Next) -> None:
            raise BrokenError("mine")

        bus = events(lambda m: None)
        bus.wrap(refuse)
        for run in ways(bus) * 2:
            with pytest.raises(BrokenError, match="mine"):
                run(Placed())


class TestChain:
    @pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
    def test_every_middleware_surrounds_the_next(self, count: int) -> None:
        """However many there are, each runs once, in order, and passes the answer outwards."""
        log: list[int] = []

        def layer(index: int) -> Callable[..., Any]:
            def middleware(context: DispatchContext, call_next: Next) -> Any:
                log.append(index)
                return (index, call_next())

            return middleware

        def alayer(index: int) -> Callable[..., Any]:
            async def middleware(context: DispatchContext, call_next: Next) -> Any:
                log.append(index)
                return (index, await call_next())

            return middleware

        for make, colour in ((layer, 0), (layer, 1), (alayer, 1)):
            bus = QueryBus()
            bus.utilize(QueryRouter({"shop.q": lambda m: "answer"}))
            for index in range(count):
                bus.wrap(make(index))
            expected: Any = "answer"
            for index in reversed(range(count)):
                expected = (index, expected)
            for _ in range(2):
                log.clear()
                answer = bus.adispatch("shop.q") if colour else bus.dispatch("shop.q")
                got = asyncio.run(answer) if colour else answer.result()  # type: ignore[union-attr,arg-type]  # by colour
                assert expected == got
                assert list(range(count)) == log

    @pytest.mark.parametrize("nested", ["queue", "inline"])
    def test_call_next_may_be_called_again(self, nested: str) -> None:
        """A middleware that repeats runs all that is inside it, with what is there by then."""
        log: list[str] = []

        def again(context: DispatchContext, call_next: Next) -> Any:
            try:
                return call_next()
            except BrokenError:
                context.message = Place(0)
                return call_next()

        def inner(context: DispatchContext, call_next: Next) -> Any:
            log.append(f"inner {context.message.order}")
            return call_next()

        bus = commands(fail, nested=nested)
        bus.wrap(again)
        bus.wrap(inner)
        for run in ways(bus) * 2:
            log.clear()
            run(Place(3))
            assert ["inner 3", "inner 0"] == log

    def test_call_next_belongs_to_its_dispatch(self) -> None:
        """One that is called late, or in another thread, runs the message it was made for."""
        kept: list[Next] = []
        handled: list[int] = []

        def keep(context: DispatchContext, call_next: Next) -> Any:
            kept.append(call_next)
            return call_next()

        bus = commands(lambda m: handled.append(m.order))
        for _ in range(3):
            bus.wrap(keep)
        bus.dispatch(Place(1))
        bus.dispatch(Place(2))
        handled.clear()
        # Those that run inside them are kept again.
        for call_next in kept[:]:
            call_next()
        assert [1] * 3 + [2] * 3 == handled
        thread = threading.Thread(target=kept[2])
        thread.start()
        thread.join()
        assert 1 == handled[-1]

    def test_two_calls_of_call_next_may_be_awaited_at_once(self) -> None:
        """A middleware that asks twice at a time gets two answers, from all that is inside."""
        log: list[str] = []

        async def twice(context: DispatchContext, call_next: Next) -> Any:
            return await asyncio.gather(call_next(), call_next())

        async def inner(context: DispatchContext, call_next: Next) -> Any:
            log.append("in")
            await asyncio.sleep(0)
            answer = await call_next()
            log.append("out")
            return answer

        async def find(message: str) -> str:
            await asyncio.sleep(0)
            return message

        bus = QueryBus()
        bus.utilize(QueryRouter({"shop.q": find}))
        bus.wrap(twice)
        bus.wrap(inner)
        for _ in range(2):
            log.clear()
            assert ["shop.q"] * 2 == asyncio.run(bus.adispatch("shop.q"))
            assert ["in", "in", "out", "out"] == log

    def test_dispatches_of_many_tasks_do_not_mix(self) -> None:
        """Each task's middleware sees its own message and answer, however they take turns."""

        async def look(context: DispatchContext, call_next: Next) -> Any:
            message = context.message
            await asyncio.sleep(0)
            answer = await call_next()
            assert message is context.message
            return answer

        async def find(message: Place) -> int:
            await asyncio.sleep(0)
            return message.order

        bus = QueryBus()
        bus.utilize(QueryRouter({"shop.place": find}))
        for _ in range(3):
            bus.wrap(look)

        async def main() -> list[Any]:
            return await asyncio.gather(*(bus.adispatch(Place(i)) for i in range(50)))

        assert list(range(50)) == asyncio.run(main())

    @pytest.mark.parametrize("nested", ["queue", "inline"])
    def test_a_handler_that_could_be_asynchronous_is_refused_inside(self, nested: str) -> None:
        """The coroutine of a plain function is found where it appears, within the middleware."""
        seen: list[str] = []

        def look(context: DispatchContext, call_next: Next) -> Any:
            try:
                return call_next()
            except RoutingError as error:
                seen.append(error.message)
                raise

        bus = commands(hides, nested=nested)
        bus.wrap(look)
        for _ in range(2):
            with pytest.raises(RoutingError, match="hides returned a coroutine"):
                bus.dispatch(Place())
        assert 2 == len(seen)

    @pytest.mark.parametrize("nested", ["queue", "inline"])
    def test_a_failure_inside_is_told_from_one_of_the_chain(self, nested: str) -> None:
        """The handler's is wrapped with the envelope of the context; ours pass as they are."""
        seen: list[Envelope] = []

        def look(context: DispatchContext, call_next: Next) -> Any:
            assert (context.name, context.handler, context.source) == ("shop.place", fail, None)
            seen.append(context.envelope)
            if context.message.order == 2:
                raise RoutingError("in the middleware")
            return call_next()

        bus = commands(fail, nested=nested)
        bus.wrap(look)
        for run in [bus.dispatch] * 2:
            run(Place(0))
            with pytest.raises(HandlerFailedError) as raised:
                run(Place(1))
            assert seen[-1] is raised.value.envelope
            assert isinstance(raised.value.__cause__, BrokenError)
            with pytest.raises(RoutingError, match="in the middleware"):
                run(Place(2))
        bus.wrap(lambda context, call_next: seen.clear())
        bus.dispatch(Place(1))
        assert [] == seen

    @pytest.mark.parametrize("listens", [False, True])
    def test_the_options_of_a_dispatch_reach_its_handler(self, listens: bool) -> None:
        """A time limit counts inside middleware as it does without."""

        async def never(message: Place) -> None:
            await asyncio.Event().wait()

        async def look(context: DispatchContext, call_next: Next) -> Any:
            return await call_next()

        bus = CommandBus()
        bus.utilize(CommandRouter({Place: never}))
        bus.wrap(look)
        if listens:
            bus.attach(Stage.INVOKE, lambda c: None)
        for _ in range(2):
            with pytest.raises(HandlerFailedError, match="did not finish within") as raised:
                asyncio.run(asyncio.wait_for(bus.adispatch(Place(), timeout=0.01), 30))
            assert isinstance(raised.value.__cause__, TimedOutError)

    @pytest.mark.parametrize("is_plain", [False, True])
    def test_our_own_errors_are_a_handlers_failure_if_it_raised_them(self, is_plain: bool) -> None:
        """A routing error in a handler is its failure, in asyncio too; a middleware's is not."""

        def handler(message: Place) -> None:
            raise RoutingError("in the handler")

        async def ahandler(message: Place) -> None:
            raise RoutingError("in the handler")

        def look(context: DispatchContext, call_next: Next) -> Any:
            return call_next()

        async def alook(context: DispatchContext, call_next: Next) -> Any:
            return await call_next()

        async def refuse(context: DispatchContext, call_next: Next) -> Any:
            raise RoutingError("in the middleware")

        bus = CommandBus()
        bus.utilize(CommandRouter({Place: handler if is_plain else ahandler}))
        bus.wrap(look if is_plain else alook)
        for _ in range(2):
            with pytest.raises(HandlerFailedError, match="in the handler"):
                asyncio.run(bus.adispatch(Place()))
        if not is_plain:
            bus.wrap(refuse)
            with pytest.raises(RoutingError, match="in the middleware"):
                asyncio.run(bus.adispatch(Place()))

    @pytest.mark.parametrize("nested", ["queue", "inline"])
    @pytest.mark.parametrize("listens", [False, True])
    def test_a_middleware_that_could_be_asynchronous_is_refused(
        self, nested: str, listens: bool
    ) -> None:
        """The coroutine that the outermost returns is not lost silently, but named."""

        def look(context: DispatchContext, call_next: Next) -> Any:
            return afail(context.message)

        bus = commands(lambda m: None, nested=nested)
        bus.wrap(look)
        if listens:
            bus.attach(Stage.INVOKE, lambda c: None)
        for _ in range(2):
            with pytest.raises(RoutingError, match="look returned a coroutine"):
                bus.dispatch(Place())


class TestContext:
    def test_it_takes_notes_and_keeps_secrets(self) -> None:
        """Plugins may keep things in a context or beside it; its text shows no message."""
        found: list[str] = []
        beside: weakref.WeakKeyDictionary[DispatchContext, int] = weakref.WeakKeyDictionary()

        def first(context: Any, call_next: Next) -> None:
            context.started, beside[context] = 1, 2
            call_next()

        def second(context: Any, call_next: Next) -> None:
            found.append(f"{context!r} {context.started} {beside[context]}")

        bus = commands(lambda m: None)
        bus.wrap(first)
        bus.wrap(second)
        bus.dispatch(Place(4711))
        assert ["<DispatchContext of shop.place> 1 2"] == found
        assert isinstance(DispatchContext(bus, None, ""), DispatchContext)
        assert "<DispatchContext of a message>" == repr(DispatchContext(bus, "secret", ""))

    def test_a_context_ends_with_its_dispatch(self) -> None:
        """Nothing holds a context, or what a middleware put there, when all went well."""
        seen: list[weakref.ref[DispatchContext]] = []

        def look(context: DispatchContext, call_next: Next) -> None:
            seen.append(weakref.ref(context))
            call_next()

        bus = commands(lambda m: None)
        for _ in range(3):
            bus.wrap(look)
        bus.dispatch(Place())
        assert [None] * 3 == [ref() for ref in seen]

    def test_listeners_at_invoke_see_who_will_run(self) -> None:
        """Where nobody could have rerouted, the route's own handler or listeners are shown."""
        seen: list[object] = []

        def handler(message: object) -> None: ...

        bus, event_bus = commands(handler), events(handler, handler)
        bus.attach(Stage.INVOKE, lambda c: seen.append(c.handler))
        event_bus.attach(Stage.INVOKE, lambda c: seen.append(c.listeners))
        for run in ways(bus):
            run(Place())
        for run in ways(event_bus):
            run(Placed())
        assert [handler, handler, (handler, handler), (handler, handler)] == seen
