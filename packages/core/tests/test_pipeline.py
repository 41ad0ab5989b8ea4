"""Stages, contexts and middleware: what surrounds a handler, in both colours."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from postbus.buses import CommandBus, EventBus, QueryBus
from postbus.errors import (
    DispatchError,
    HandlerFailedError,
    NoHandlerError,
    RoutingError,
    UnauthorizedError,
    UnsupportedError,
)
from postbus.messages import Command, Envelope
from postbus.pipeline import DispatchContext, Stage, label_of
from postbus.plugins import ServiceLocatorPlugin
from postbus.routers import CommandRouter, EventRouter, QueryRouter
from postbus.testing import RecordingProducer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator

    Next = Callable[[], Any]

BEFORE = [Stage.INITIALIZE, Stage.DETECT_NAME, Stage.ROUTE, Stage.LOCATE, Stage.INVOKE]


@attrs.frozen
class Place(Command, name="shop.place"):
    order: int = 1


@attrs.frozen
class Other(Command, name="shop.other"):
    pass


def make(routes: dict[Any, Any], send: dict[Any, Any] | None = None) -> CommandBus:
    bus = CommandBus()
    bus.utilize(CommandRouter(routes, send))
    return bus


def ways(bus: Any) -> list[Callable[..., None]]:
    """Return dispatch in both colours."""
    return [bus.dispatch, lambda message, **o: asyncio.run(bus.adispatch(message, **o))]


def nothing(message: object) -> None: ...


async def anothing(message: object) -> None: ...


def fail(message: object) -> None:
    raise ValueError("no")


class TestStages:
    def test_listeners_run_by_stage_and_priority(self) -> None:
        """Higher priority first, negatives allowed, ties in attach order (C05, T01)."""
        log: list[str] = []
        bus = make({Place: lambda m: log.append("handled")})
        for stage in reversed(Stage):
            for text, priority in (("late", -1), ("tie 1", 0), ("tie 2", 0), ("early", 1)):
                note = partial(self.note, log, f"{stage} {text}")
                bus.attach(stage, note, priority)
        texts = ["early", "tie 1", "tie 2", "late"]
        expected = [f"{stage} {text}" for stage in BEFORE for text in texts]
        expected += ["handled", *(f"finalize {text}" for text in texts)]
        for run in ways(bus):
            log.clear()
            run(Place())
            assert expected == log

    def note(self, log: list[str], text: str, _: object) -> None:
        log.append(text)

    def test_async_listeners_are_awaited(self) -> None:
        """Under adispatch; dispatch refuses them by name, seen or not."""
        log: list[str] = []

        async def listener(context: DispatchContext) -> None:
            await asyncio.sleep(0)
            log.append(context.name)

        for stage in (Stage.ROUTE, Stage.FINALIZE):
            bus = make({Place: nothing})
            handle = bus.attach(stage, listener)
            asyncio.run(bus.adispatch(Place()))
            with pytest.raises(RoutingError, match="listener is asynchronous"):
                bus.dispatch(Place())
            bus.detach(handle)
            bus.attach(stage, lambda c: (c, listener(c))[1])
            with pytest.raises(RoutingError, match="returned a coroutine"):
                bus.dispatch(Place())
            asyncio.run(bus.adispatch(Place()))
        assert ["shop.place"] * 4 == log

    def test_the_buss_own_step_comes_after_the_listeners(self) -> None:
        """A plugin that supplies a handler may do so at ROUTE or LOCATE (B11)."""
        for stage in (Stage.ROUTE, Stage.LOCATE):
            got: list[object] = []
            bus = make({})
            bus.attach(stage, partial(self.supply, got.append))
            for run in ways(bus):
                run(Place())
            assert [Place(), Place()] == got

    def supply(self, handler: object, context: DispatchContext) -> None:
        context.handler = handler

    def test_what_a_listener_supplies_may_be_anything_routable(self) -> None:
        """An id, a producer, an async handler; and nothing that is not."""
        producer = RecordingProducer()
        bus = make({Place: nothing})
        bus.utilize(ServiceLocatorPlugin({"producer": producer}))
        handle = bus.attach(Stage.ROUTE, partial(self.supply, "producer"))
        for run in ways(bus):
            run(Place())
        assert 2 == len(producer.messages)
        bus.detach(handle)
        handle = bus.attach(Stage.ROUTE, partial(self.supply, anothing))
        asyncio.run(bus.adispatch(Place()))
        with pytest.raises(RoutingError, match="anothing is asynchronous"):
            bus.dispatch(Place())
        bus.detach(handle)
        bus.attach(Stage.ROUTE, partial(self.supply, "nobody"))
        with pytest.raises(RoutingError, match="nothing answers to the id 'nobody'"):
            bus.dispatch(Place())
        bus.close()

    def test_a_handler_that_is_falsy_is_a_handler(self) -> None:
        """What a listener supplied is not replaced for being empty."""

        class Empty(list[object]):
            def __call__(self, message: object) -> None:
                self.append(message)

        empty = Empty()
        bus = make({Place: fail})
        bus.attach(Stage.ROUTE, partial(self.supply, empty))
        bus.dispatch(Place())
        assert [Place()] == empty

    def test_an_async_handler_behind_a_listener_is_refused_by_dispatch(self) -> None:
        """It is not lost either where listeners may change the name of a message."""
        bus = make({Place: anothing})
        bus.attach(Stage.INITIALIZE, lambda c: None)
        with pytest.raises(RoutingError, match="anothing is asynchronous"):
            bus.dispatch(Place())
        asyncio.run(bus.adispatch(Place()))
        asyncio.run(bus.areceive(Envelope(Place()), "memory", threads=True))
        with pytest.raises(RoutingError, match="anothing is asynchronous"):
            bus.receive(Envelope(Place()), "memory")

    def test_a_delay_of_what_turns_out_to_be_handled_here_is_refused(self) -> None:
        """Also where that is only known when the message is located."""
        bus = make({Place: nothing}, {Other: RecordingProducer()})
        bus.attach(Stage.ROUTE, lambda c: None)
        bus.dispatch(Other(), delay=1.0)
        for run in ways(bus):
            with pytest.raises(UnsupportedError, match=r"shop\.place: a delay needs a send"):
                run(Place(), delay=1.0)
        bus.close()

    def test_a_listener_attached_during_a_dispatch_counts_from_the_next(self) -> None:
        """A dispatch sees the listeners that were there when it began (C12)."""
        log: list[str] = []
        bus = make({Place: nothing})

        def attach_another(context: DispatchContext) -> None:
            if not log:
                bus.attach(Stage.INVOKE, lambda c: log.append("new"))
            log.append("first")

        bus.attach(Stage.ROUTE, attach_another)
        bus.dispatch(Place())
        assert ["first"] == log
        bus.dispatch(Place())
        assert ["first", "first", "new"] == log

    def test_a_listener_attached_while_a_plan_is_compiled_is_not_lost(self) -> None:
        """It is called from the next dispatch on, though the plan was being made meanwhile."""
        log: list[str] = []
        bus = make({})

        class Meddling(CommandRouter):
            def handlers(self, name: str) -> Any:
                if not log:
                    log.append("compiling")
                    bus.attach(Stage.ROUTE, lambda c: log.append("listened"))
                return super().handlers(name)

        bus.utilize(Meddling({Place: lambda m: log.append("handled")}))
        bus.dispatch(Place())
        assert ["compiling", "handled"] == log
        bus.dispatch(Place())
        assert ["compiling", "handled", "listened", "handled"] == log


class TestNaming:
    def test_a_listener_may_name_and_replace_the_message(self) -> None:
        """Before the bus does; what is sent and reported has that name and message (B05, P13)."""
        got: list[object] = []
        producer = RecordingProducer()
        bus = make({"shop.named": got.append, Place: got.append, "shop.bad": fail})

        def name(context: DispatchContext) -> None:
            if isinstance(context.message, dict):
                context.name = context.message["name"]
            if context.message == "make":
                context.message = Place(7)

        bus.attach(Stage.DETECT_NAME, name)
        for run in ways(bus):
            run({"name": "shop.named"})
            run("make")
            run("make", metadata={"user": 7})
            with pytest.raises(HandlerFailedError) as caught:
                run({"name": "shop.bad"})
            assert caught.value.envelope is not None
            assert "shop.bad" == caught.value.envelope.name
        assert [{"name": "shop.named"}, Place(7), Place(7)] * 2 == got
        sending = make({}, {"shop.renamed": producer, "shop.place": producer})
        sending.attach(Stage.INITIALIZE, name)
        sending.attach(Stage.DETECT_NAME, self.rename)
        sending.dispatch(Other())
        sending.dispatch(Other(), id=Envelope("x").id)
        sending.dispatch("make", metadata={"user": 7})
        assert ["shop.renamed", "shop.renamed", "shop.place"] == [
            m.name for m in producer.messages
        ]
        assert b'"order":7' in producer.bodies[2].replace(b" ", b"")

    def rename(self, context: DispatchContext) -> None:
        if context.message == Other():
            context.name = "shop.renamed"

    def test_an_envelope_that_was_asked_for_follows_the_name(self) -> None:
        """A listener may have looked at the identity before another one named the message."""
        producer = RecordingProducer()
        names: list[str] = []
        bus = make({}, {"shop.renamed": producer})
        bus.attach(Stage.INITIALIZE, lambda c: names.append(c.envelope.name))
        bus.attach(Stage.DETECT_NAME, self.rename)
        bus.attach(Stage.INVOKE, lambda c: names.append(c.envelope.name))
        bus.dispatch(Other())
        assert ["shop.other", "shop.renamed"] == names
        assert "shop.renamed" == producer.messages[0].name

    def test_the_envelope_is_one_and_made_when_asked_for(self) -> None:
        """Listeners, middleware and the producer see the same identity."""
        ids: list[str] = []
        producer = RecordingProducer()
        bus = make({}, {Place: producer})
        for stage in Stage:
            bus.attach(stage, lambda c: ids.append(c.envelope.id))
        bus.dispatch(Place())
        assert 1 == len({*ids, producer.messages[0].id})
        assert 6 == len(ids)

    def test_a_listener_may_give_the_message_another_envelope(self) -> None:
        """To add metadata, say; message and name follow it."""
        producer = RecordingProducer()
        bus = make({}, {Place: producer})

        def stamp(context: DispatchContext) -> None:
            context.envelope = context.envelope.evolve(metadata={"stamped": True})

        bus.attach(Stage.INITIALIZE, stamp)
        bus.dispatch(Place())
        assert b'"stamped":true' in producer.bodies[0].replace(b" ", b"")

    def test_a_context_tells_where_a_message_came_from(self) -> None:
        """The source of a received one, nothing for a local one."""
        seen: list[object] = []
        bus = make({Place: nothing})
        bus.attach(Stage.ROUTE, lambda c: seen.append((c.source, c.name, c.bus is bus)))
        bus.dispatch(Place())
        bus.dispatch(Envelope(Place()))
        bus.receive(Envelope(Place()), "mail")
        asyncio.run(bus.areceive(Envelope(Place()), "mail"))
        name = "shop.place"
        assert [(None, name, True)] * 2 + [("mail", name, True)] * 2 == seen


class TestFinalize:
    def test_it_sees_every_outcome_whatever_its_priority(self) -> None:
        """Success, the handler's own error, a listener's, a stop (B07, B10, E05)."""
        seen: list[tuple[str, object, object]] = []
        bus = make({Place: nothing, "shop.bad": fail})
        for priority in (-5, 0, 5):
            bus.attach(
                Stage.FINALIZE,
                lambda c: seen.append((c.name, type(c.error), c.stopped)),
                priority,
            )
        bus.attach(Stage.ROUTE, lambda c: c.stop() if c.message == "shop.stop" else None)
        bus.attach(Stage.INVOKE, lambda c: fail(c) if c.message == Other() else None)
        bus.attach(Stage.ROUTE, self.supply_for_other)
        expected = [
            ("shop.place", type(None), False),
            ("shop.bad", ValueError, False),
            ("shop.stop", DispatchError, True),
            ("shop.other", ValueError, False),
            ("shop.nobody", NoHandlerError, False),
        ]
        for run in ways(bus):
            seen.clear()
            run(Place())
            for message, error in (
                ("shop.bad", HandlerFailedError),
                ("shop.stop", DispatchError),
                (Other(), ValueError),
                ("shop.nobody", NoHandlerError),
            ):
                with pytest.raises(error):
                    run(message)
            assert [outcome for outcome in expected for _ in range(3)] == seen

    def supply_for_other(self, context: DispatchContext) -> None:
        if context.message == Other():
            context.handler = nothing

    def test_recover_ends_the_dispatch_well(self) -> None:
        """Later monitors see no error, and the next dispatch fails again (B09)."""
        seen: list[object] = []
        bus = make({Place: fail})
        handle = bus.attach(Stage.FINALIZE, lambda c: c.recover(), 1)
        bus.attach(Stage.FINALIZE, lambda c: seen.append(c.error))
        for run in ways(bus):
            run(Place())
        assert [None, None] == seen
        bus.detach(handle)
        with pytest.raises(HandlerFailedError):
            bus.dispatch(Place())

    def test_a_monitor_that_raises_does_not_keep_the_others_from_running(self) -> None:
        """All of them see the original error; the first monitor's is raised, in its context."""
        seen: list[object] = []

        def broken(context: DispatchContext) -> None:
            raise UnauthorizedError("not you")

        def broken_too(context: DispatchContext) -> None:
            raise KeyError("me too")

        for routes, original in (({Place: fail}, ValueError), ({Place: nothing}, type(None))):
            bus = make(routes)
            bus.attach(Stage.FINALIZE, broken)
            bus.attach(Stage.FINALIZE, broken_too)
            bus.attach(Stage.FINALIZE, lambda c: seen.append(type(c.error)))
            for run in ways(bus):
                seen.clear()
                with pytest.raises(UnauthorizedError) as caught:
                    run(Place())
                assert [original] == seen
                assert original is type(caught.value.__context__)
                assert "me too" in caught.value.__notes__[0]

    def test_a_monitors_own_context_is_kept(self) -> None:
        """What it was handling when it raised says more than the dispatch's error."""

        def broken(context: DispatchContext) -> None:
            try:
                fail(context)
            except ValueError:
                raise UnauthorizedError("not you")  # noqa: B904  on purpose

        bus = make({Place: nothing})
        bus.attach(Stage.FINALIZE, broken)
        with pytest.raises(UnauthorizedError) as caught:
            bus.dispatch(Place())
        assert isinstance(caught.value.__context__, ValueError)

    def test_an_error_of_its_own_may_take_the_originals_place(self) -> None:
        """A monitor that sets another error has it raised as it is."""
        bus = make({Place: fail})
        bus.attach(Stage.FINALIZE, lambda c: setattr(c, "error", KeyError("instead")))
        for run in ways(bus):
            with pytest.raises(KeyError, match="instead"):
                run(Place())

    def test_what_is_no_exception_is_seen_but_not_stopped(self) -> None:
        """A monitor cannot swallow cancellation or KeyboardInterrupt."""
        seen: list[object] = []

        def interrupt(message: object) -> None:
            raise KeyboardInterrupt

        async def wait(message: object) -> None:
            await asyncio.Event().wait()

        bus = make({Place: interrupt, Other: wait})
        bus.attach(Stage.FINALIZE, lambda c: seen.append(type(c.error)))
        bus.attach(Stage.FINALIZE, lambda c: c.recover())
        with pytest.raises(KeyboardInterrupt):
            bus.dispatch(Place())

        async def main() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await bus.adispatch(Other())
            closed = bus.adispatch(Other())
            closed.send(None)
            closed.close()

        asyncio.run(main())
        assert [KeyboardInterrupt, asyncio.CancelledError] == seen

    def test_a_result_is_there_to_see(self) -> None:
        """Monitors of a query bus see the answer."""
        seen: list[object] = []
        bus = QueryBus()
        bus.utilize(QueryRouter({"shop.q": lambda q: 5}))
        bus.attach(Stage.FINALIZE, lambda c: seen.append(c.result))
        assert 5 == bus.dispatch("shop.q").result()
        assert [5] == seen

    def test_stop_fails_a_command_at_every_stage(self) -> None:
        """Nothing handles it, and the stage is named."""
        for stage in BEFORE:
            got: list[object] = []
            bus = make({Place: got.append})
            bus.attach(stage, lambda c: c.stop(), 1)
            bus.attach(stage, got.append)
            for run in ways(bus):
                with pytest.raises(DispatchError, match=f"was stopped at {stage}"):
                    run(Place())
            assert [] == got


class TestMiddleware:
    def middlewares(self, log: list[str]) -> dict[str, Callable[..., Any]]:
        def plain(context: DispatchContext, call_next: Next) -> Any:
            log.append("plain")
            try:
                return call_next()
            finally:
                log.append("plain end")

        async def asynchronous(context: DispatchContext, call_next: Next) -> Any:
            log.append("async")
            result = await call_next()
            log.append("async end")
            return result

        @contextmanager
        def managed(context: DispatchContext) -> Generator[None]:
            log.append("managed")
            yield
            log.append("managed end")

        @asynccontextmanager
        async def amanaged(context: DispatchContext) -> AsyncGenerator[None]:
            log.append("amanaged")
            yield
            log.append("amanaged end")

        return {
            "plain": plain,
            "async": asynchronous,
            "managed": managed,
            "amanaged": amanaged,
        }

    @pytest.mark.parametrize(
        ("names", "handler", "sync_fails", "async_fails"),
        [
            (["plain", "managed"], "sync", None, "plain.* cannot surround .*managed"),
            (["managed", "plain"], "sync", None, None),
            (["managed"], "async", "handler is asynchronous", None),
            (["plain"], "async", "handler is asynchronous", r"plain.* cannot surround .*handler"),
            (["async", "plain"], "sync", "asynchronous is asynchronous", None),
            (["async", "managed", "plain"], "sync", "asynchronous is asynchronous", None),
            (["plain", "async"], "sync", "is asynchronous", "plain.* cannot surround .*asynchron"),
            (["async", "amanaged"], "async", "is asynchronous", None),
            (["amanaged"], "sync", "use adispatch", None),
            (["async", "async", "managed"], "sync", "is asynchronous", None),
        ],
    )
    @pytest.mark.parametrize("listens", [False, True])
    def test_middleware_of_every_colour(
        self,
        names: list[str],
        handler: str,
        sync_fails: str | None,
        async_fails: str | None,
        listens: bool,
    ) -> None:
        """The first wrapped is the outermost; what cannot be is refused, naming both."""
        log: list[str] = []

        def sync_handler(message: object) -> None:
            log.append("handled")

        async def async_handler(message: object) -> None:
            await asyncio.sleep(0)
            log.append("handled")

        bus = make({Place: sync_handler if handler == "sync" else async_handler})
        for name in names:
            bus.wrap(self.middlewares(log)[name])
        if listens:
            bus.attach(Stage.FINALIZE, lambda c: None)
        expected = [*names, "handled", *(f"{n} end" for n in reversed(names))]
        for run, fails in zip(ways(bus), (sync_fails, async_fails), strict=True):
            log.clear()
            if fails is None:
                run(Place())
                assert expected == log
            else:
                with pytest.raises(RoutingError, match=fails):
                    run(Place())
                assert "handled" not in log

    def test_the_context_is_there_to_see_and_change(self) -> None:
        """Name, handler, envelope; the message may be replaced; the result returned."""
        seen: list[object] = []
        bus = QueryBus()

        def find(query: str) -> str:
            return query.upper()

        bus.utilize(QueryRouter({"shop.q": find, "shop.bad": fail}))

        def look(context: DispatchContext, call_next: Next) -> Any:
            seen.extend([context.name, label_of(context.handler), context.envelope.name])
            context.message = "other"
            return f"<{call_next()}>"

        bus.wrap(look)
        assert "<OTHER>" == bus.dispatch("shop.q").result()
        assert "<OTHER>" == asyncio.run(bus.adispatch("shop.q"))
        assert ["shop.q", label_of(find), "shop.q"] * 2 == seen

    def test_handlers_errors_are_seen_as_raised_and_wrapped_outside(self) -> None:
        """A middleware can catch what the handler raises; what gets out is wrapped."""
        seen: list[type] = []

        def look(context: DispatchContext, call_next: Next) -> None:
            try:
                call_next()
            except ValueError as error:
                seen.append(type(error))
                if context.message == "shop.other":
                    raise KeyError("mine") from error
                raise

        bus = make({"shop.*": fail})
        bus.wrap(look)
        for run in ways(bus):
            with pytest.raises(HandlerFailedError) as caught:
                run("shop.bad")
            assert isinstance(caught.value.__cause__, ValueError)
            with pytest.raises(HandlerFailedError) as caught:
                run("shop.other")
            assert isinstance(caught.value.__cause__, KeyError)
        assert [ValueError] * 4 == seen

    def test_a_refusal_of_a_middleware_is_not_the_handlers_failure(self) -> None:
        """Errors of postbus that a middleware raises pass as they are; the handler's do not."""

        def deny(context: DispatchContext, call_next: Next) -> None:
            if context.message == Place():
                raise UnauthorizedError("not you")
            call_next()

        def inner(message: object) -> None:
            raise UnauthorizedError("from inside")

        bus = make({Place: inner, Other: inner})
        bus.wrap(deny)
        for run in ways(bus):
            with pytest.raises(UnauthorizedError):
                run(Place())
            with pytest.raises(HandlerFailedError):
                run(Other())
        bus.attach(Stage.FINALIZE, lambda c: None)
        for run in ways(bus):
            with pytest.raises(UnauthorizedError):
                run(Place())
            with pytest.raises(HandlerFailedError):
                run(Other())

    def test_an_async_middleware_may_catch_too(self) -> None:
        """An asynchronous handler's error is seen as raised and wrapped outside."""

        async def handler(message: object) -> None:
            fail(message)

        async def look(context: DispatchContext, call_next: Callable[[], Awaitable[Any]]) -> None:
            with suppress(KeyError):
                await call_next()

        bus = make({Place: handler})
        bus.wrap(look)
        with pytest.raises(HandlerFailedError):
            asyncio.run(bus.adispatch(Place()))

    def test_a_coroutine_nobody_saw_coming_is_refused(self) -> None:
        """Behind middleware the handler is named, and so is a middleware that gives one."""

        def handler(message: object) -> Any:
            return anothing(message)

        bus = make({Place: handler})
        bus.wrap(lambda context, call_next: call_next())
        with pytest.raises(RoutingError, match="handler returned a coroutine"):
            bus.dispatch(Place())
        asyncio.run(bus.adispatch(Place()))
        bus = make({Place: nothing})
        bus.wrap(lambda context, call_next: anothing(call_next()))
        with pytest.raises(RoutingError, match="<lambda> returned a coroutine"):
            bus.dispatch(Place())

    def test_middleware_surrounds_a_send(self) -> None:
        """In asyncio a plain one has the send made inline, an asynchronous one awaits it."""
        log: list[str] = []
        producer = RecordingProducer()
        for name in ("plain", "async", "managed"):
            bus = make({}, {Place: producer})
            bus.wrap(self.middlewares(log)[name])
            asyncio.run(bus.adispatch(Place()))
            bus.close()
        assert 3 == len(producer.messages)
        assert ["plain", "plain end", "async", "async end", "managed", "managed end"] == log

    def test_middleware_surrounds_all_listeners_of_an_event(self) -> None:
        """Once for the event; its own errors pass as they are."""
        log: list[str] = []
        bus = EventBus()
        bus.utilize(EventRouter({"shop.e": [lambda m: log.append("one"), nothing]}))
        bus.wrap(self.middlewares(log)["managed"])
        for run in ways(bus):
            log.clear()
            run("shop.e")
            assert ["managed", "one", "managed end"] == log
        bus.wrap(lambda context, call_next: fail(context))
        with pytest.raises(ValueError, match="no"):
            bus.dispatch("shop.e")
        with pytest.raises(ValueError, match="no"):
            bus.attach(Stage.FINALIZE, lambda c: None)
            bus.dispatch("shop.e")

    @pytest.mark.parametrize("what", ["nothing", "three", "async one"])
    def test_what_is_no_middleware_is_refused(self, what: str) -> None:
        """It takes (context, call_next), or (context) and returns a context manager."""

        async def one(context: object) -> None: ...

        made: dict[str, Callable[..., Any]] = {
            "nothing": lambda: None,
            "three": lambda a, b, c: None,
            "async one": one,
        }
        with pytest.raises(RoutingError, match=r"is no middleware|must return a context manager"):
            CommandBus().wrap(made[what])

    def test_a_manager_that_is_none_is_refused(self) -> None:
        """A middleware of (context) must return a context manager."""
        bus = make({Place: nothing})
        bus.wrap(lambda context: 5)
        for run in ways(bus):
            with pytest.raises(
                RoutingError, match="must return a context manager, but gave a int"
            ):
                run(Place())

    def test_a_wrapped_middleware_can_be_taken_off(self) -> None:
        """Its handle undoes it."""
        log: list[str] = []
        bus = make({Place: nothing})
        handle = bus.wrap(self.middlewares(log)["plain"])
        bus.dispatch(Place())
        bus.detach(handle)
        bus.dispatch(Place())
        assert ["plain", "plain end"] == log


class TestLabels:
    def test_a_label_is_where_something_is_defined(self) -> None:
        """Functions, methods, objects, partials of them; an id as it stands."""
        assert "some.id" == label_of("some.id")
        assert f"{__name__}.fail" == label_of(fail)
        assert f"{__name__}.fail" == label_of(partial(partial(fail)))
        assert f"{__name__}.TestLabels" == label_of(self)
        assert f"{__name__}.TestLabels" == label_of(TestLabels)
