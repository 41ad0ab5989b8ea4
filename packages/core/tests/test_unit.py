"""Units of work: what commits or rolls back together, and who owns an open one."""

from __future__ import annotations

import asyncio
import contextvars
import sqlite3
import threading
from collections import deque
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import attrs
import pytest

from postbus.buses import CommandBus, EventBus, QueryBus
from postbus.errors import (
    ConnectionFailedError,
    HandlerFailedError,
    ListenersFailedError,
    PartiallySentError,
    RoutingError,
    TransportError,
)
from postbus.messages import Command, Envelope
from postbus.pipeline import Stage
from postbus.plugins import ServiceLocatorPlugin
from postbus.routers import CommandRouter, EventRouter, QueryRouter
from postbus.transports import AsyncMessageProducer, Capabilities, MessageProducer
from postbus.unit import (
    Lifetime,
    MappingServices,
    Opener,
    Unit,
    arun_in_unit,
    current_unit,
    open_service,
    raise_unsent,
    run_in_unit,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence

    from postbus.pipeline import DispatchContext
    from postbus.transports import WireMessage


@attrs.frozen
class Mail(Command, name="shop.mail"):
    pass


@attrs.frozen
class Lost(Command, name="shop.lost"):
    pass


@attrs.frozen
class Broken(Command, name="shop.broken"):
    pass


class Log(list[str]):
    """What happened, in order, and the context managers that say so."""

    @contextmanager
    def unit(self) -> Generator[str]:
        self.append("begin")
        try:
            yield "handle"
        except BaseException as error:
            self.append(f"rollback {type(error).__name__}")
            raise
        self.append("commit")

    @asynccontextmanager
    async def aunit(self) -> AsyncGenerator[str]:
        await asyncio.sleep(0)
        with self.unit() as handle:
            yield handle

    def opener(self) -> Opener:
        return Opener(self.unit, "log.unit")

    def aopener(self) -> Opener:
        return Opener(self.aunit, "log.aunit")


class Swallowing:
    """A context manager that says every error is dealt with."""

    def __enter__(self) -> None: ...

    def __exit__(self, *outcome: object) -> bool:
        return True

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *outcome: object) -> bool:
        return True


class Failing(MessageProducer):
    """Refuses messages of some names."""

    capabilities = Capabilities()

    def __init__(self, *names: str, error: Exception | None = None) -> None:
        self._names = names
        self._error = error
        self.sent: list[str] = []

    def send_many(self, messages: Sequence[WireMessage]) -> None:
        raise NotImplementedError

    def send(self, message: WireMessage) -> None:
        if message.name in self._names:
            raise self._error or ConnectionFailedError(f"no way for {message.name}")
        self.sent.append(message.name)

    def close(self) -> None: ...


def fail(message: object) -> None:
    raise ValueError("no")


def unit() -> Unit:
    found = current_unit()
    assert found is not None
    return found


class TestRunInUnit:
    def test_everything_happens_in_order(self) -> None:
        """Begin, work, steps before the commit, commit, steps after it; then no unit is open."""
        log = Log()

        def work() -> int:
            log.append(f"work with {unit().handle}")
            unit().after_commit(lambda: log.append(f"after, unit {current_unit()}"))
            unit().before_commit(lambda: log.append("before"))
            return 7

        assert (7, []) == run_in_unit(log.opener(), work)
        assert ["begin", "work with handle", "before", "commit", "after, unit None"] == log
        assert current_unit() is None

    def test_asyncio_does_the_same_and_awaits_steps(self) -> None:
        """In asyncio, steps may be asynchronous, and so may the context manager."""
        log = Log()

        async def step(text: str) -> None:
            await asyncio.sleep(0)
            log.append(text)

        async def work() -> int:
            assert unit().is_async
            unit().after_commit(lambda: step("after"))
            unit().after_commit(lambda: log.append("after, plainly"))
            unit().before_commit(lambda: step("before"))
            unit().before_commit(lambda: log.append("before, plainly"))
            return 7

        assert (7, []) == asyncio.run(arun_in_unit(log.aopener(), work))
        expected = ["begin", "before", "before, plainly", "commit", "after", "after, plainly"]
        assert expected == log

    @pytest.mark.parametrize("where", ["work", "before"])
    def test_an_error_before_the_commit_rolls_back(self, where: str) -> None:
        """What the work or a step before the commit raises rolls back and passes unchanged."""
        log = Log()

        def work() -> None:
            unit().after_commit(lambda: log.append("after"))
            if where == "work":
                raise ValueError("no")
            unit().before_commit(lambda: fail(None))

        async def awork() -> None:
            work()

        with pytest.raises(ValueError, match=r"^no$"):
            run_in_unit(log.opener(), work)
        with pytest.raises(ValueError, match=r"^no$"):
            asyncio.run(arun_in_unit(log.opener(), awork))
        assert ["begin", "rollback ValueError"] * 2 == log
        assert current_unit() is None

    @pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
    def test_a_context_manager_cannot_turn_a_failure_into_a_success(
        self, error: BaseException
    ) -> None:
        """One that swallows errors is not asked: the caller learns of the failure."""
        opener = Opener(Swallowing, "Swallowing")

        def work() -> None:
            raise error

        async def awork() -> None:
            raise error

        with pytest.raises(type(error)):
            run_in_unit(opener, work)

        async def main() -> None:
            with pytest.raises(type(error)):
                await arun_in_unit(opener, awork)

        asyncio.run(main())

    def test_a_unit_that_cannot_begin_leaves_none_open(self) -> None:
        """What entering the context manager raises passes; no unit stays behind."""

        @contextmanager
        def broken() -> Generator[None]:
            if current_unit() is not None:
                raise OSError("database is down")
            yield

        with pytest.raises(OSError, match="down"):
            run_in_unit(Opener(broken, "broken"), lambda: None)
        assert current_unit() is None

    def test_a_unit_inside_a_unit_restores_the_outer_one(self) -> None:
        """Where units are nested, the outer one is open again when the inner one is left."""
        log = Log()

        def outer() -> None:
            before = current_unit()
            run_in_unit(log.opener(), lambda: log.append(str(unit() is before)))
            assert current_unit() is before

        run_in_unit(None, outer)
        assert ["begin", "False", "commit"] == log

    def test_a_unit_runs_in_a_context_of_its_own(self) -> None:
        """A context variable set in a unit is gone after it, in both colours."""
        variable = contextvars.ContextVar("variable", default="outside")

        def work() -> None:
            variable.set("inside")

        async def awork() -> None:
            variable.set("inside")
            await asyncio.sleep(0)
            assert variable.get() == "inside"

        async def main() -> None:
            await arun_in_unit(None, awork)
            assert variable.get() == "outside"

        run_in_unit(None, work)
        assert variable.get() == "outside"
        asyncio.run(main())

    def test_what_fails_after_the_commit_is_reported_and_the_rest_still_runs(self) -> None:
        """Every step after the commit has its turn; failures come back as transport errors."""
        log = Log()
        lost = ConnectionFailedError("lost", Envelope("shop.x"))

        def lose() -> None:
            raise lost

        def work() -> None:
            unit().after_commit(lose)
            unit().after_commit(lambda: fail(None))
            unit().after_commit(lambda: log.append("last"))

        async def awork() -> None:
            work()

        for _, unsent in (
            run_in_unit(log.opener(), work),
            asyncio.run(arun_in_unit(log.opener(), awork)),
        ):
            assert lost is unsent[0]
            assert isinstance(unsent[1], TransportError)
            assert isinstance(unsent[1].__cause__, ValueError)
            with pytest.raises(PartiallySentError) as caught:
                raise_unsent(unsent)
            assert dict(enumerate(unsent)) == caught.value.failed
            assert lost.envelope is caught.value.envelope
        assert ["begin", "commit", "last"] * 2 == log

    def test_one_failed_send_is_raised_as_it_is(self) -> None:
        """One error needs no wrapping, and none is no error."""
        lost = ConnectionFailedError("lost")
        raise_unsent([])
        with pytest.raises(ConnectionFailedError) as caught:
            raise_unsent([lost])
        assert lost is caught.value


class TestOwner:
    def test_child_tasks_and_threads_inherit_no_unit(self) -> None:
        """A unit belongs to the task that opened it: children and threads have none (T02)."""
        seen: dict[str, object] = {}

        async def look(name: str) -> None:
            seen[name] = current_unit()

        async def work() -> None:
            seen["own"] = current_unit() is not None
            await asyncio.create_task(look("create_task"))
            async with asyncio.TaskGroup() as group:
                group.create_task(look("TaskGroup"))
            await asyncio.gather(look("gather"))
            seen["to_thread"] = await asyncio.to_thread(current_unit)
            loop = asyncio.get_running_loop()
            called = loop.create_future()
            loop.call_soon(lambda: called.set_result(current_unit()))
            seen["call_soon"] = await called

        asyncio.run(arun_in_unit(None, work))
        assert seen.pop("own") is True
        assert {None} == set(seen.values())

    def test_a_loop_run_inside_a_unit_has_none(self) -> None:
        """Tasks and callbacks of a loop that a handler runs are not that handler's unit."""
        seen: list[object] = []

        async def main() -> None:
            seen.append(current_unit())
            loop = asyncio.get_running_loop()
            loop.call_soon(lambda: seen.append(current_unit()))
            await asyncio.sleep(0)

        run_in_unit(None, lambda: asyncio.run(main()))
        assert [None, None] == seen

    def test_another_thread_has_a_unit_of_its_own(self) -> None:
        """Two threads hold two units at the same time."""
        together = threading.Barrier(2, timeout=10)
        seen: list[object] = []

        def work() -> None:
            together.wait()
            seen.append(current_unit())
            together.wait()

        threads = [threading.Thread(target=run_in_unit, args=(None, work)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({id(u) for u in seen}) == 2


class TestCancellation:
    def test_a_cancelled_unit_rolls_back(self) -> None:
        """Cancelling the task before the commit rolls back."""
        log = Log()

        async def main() -> None:
            started = asyncio.Event()

            async def work() -> None:
                started.set()
                await asyncio.Event().wait()

            task = asyncio.create_task(arun_in_unit(log.aopener(), work))
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert current_unit() is None

        asyncio.run(main())
        assert ["begin", "rollback CancelledError"] == log

    def test_timeouts_inside_and_around_a_unit_work(self) -> None:
        """`asyncio.timeout` ends what waits inside a unit, and the unit as a whole."""
        log = Log()

        async def inside() -> str:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await asyncio.Event().wait()
            return "went on"

        async def main() -> None:
            assert ("went on", []) == await arun_in_unit(log.opener(), inside)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await arun_in_unit(log.opener(), asyncio.Event().wait)

        asyncio.run(main())
        assert ["begin", "commit", "begin", "rollback CancelledError"] == log

    def test_a_coroutine_that_is_closed_rolls_back(self) -> None:
        """Closing a suspended dispatch leaves the context manager like any other end."""
        log = Log()

        async def main() -> None:
            coroutine = arun_in_unit(log.opener(), asyncio.Event().wait)
            coroutine.send(None)
            coroutine.close()

        asyncio.run(main())
        assert ["begin", "rollback GeneratorExit"] == log


class TestInstances:
    def test_a_unit_makes_an_instance_once_and_leaves_it_with_its_outcome(self) -> None:
        """The same key gives the same object; a context manager is entered and left."""
        log = Log()

        def work(*, ok: bool) -> None:
            assert unit().instance("a", log.unit) == "handle"
            assert unit().instance("a", log.unit) == "handle"
            assert unit().instance("b", lambda: 5) == 5
            if not ok:
                fail(None)

        run_in_unit(None, lambda: work(ok=True))
        with pytest.raises(ValueError, match="no"):
            run_in_unit(None, lambda: work(ok=False))
        assert ["begin", "commit", "begin", "rollback ValueError"] == log

    def test_asyncio_enters_what_it_can_asynchronously(self) -> None:
        """Both kinds of context manager are entered, once, and plain objects stay as they are."""
        log = Log()

        async def work() -> None:
            assert await unit().ainstance("a", log.aunit) == "handle"
            assert await unit().ainstance("a", log.aunit) == "handle"
            assert await unit().ainstance("b", log.unit) == "handle"
            assert await unit().ainstance("c", lambda: 5) == 5

        asyncio.run(arun_in_unit(None, work))
        assert ["begin", "begin", "commit", "commit"] == log

    def test_plain_code_refuses_what_only_asyncio_can_enter(self) -> None:
        """An asynchronous context manager is not passed on unentered."""
        log = Log()
        with pytest.raises(RoutingError, match="use adispatch"):
            run_in_unit(None, lambda: unit().instance("a", log.aunit))


class TestOpener:
    def test_it_refuses_what_is_no_context_manager(self) -> None:
        """The error names the unit, what it gave, and where adispatch would help."""
        aunit = Log().aopener()
        with pytest.raises(RoutingError, match=r"log\.aunit gave a .*: use adispatch"):
            run_in_unit(aunit, lambda: None)

        async def nothing() -> None: ...

        with pytest.raises(RoutingError, match="number gave a int, and adispatch needs"):
            asyncio.run(arun_in_unit(Opener(lambda: 5, "number"), nothing))
        with pytest.raises(RoutingError, match="number gave a int, and dispatch needs"):
            run_in_unit(Opener(lambda: 5, "number"), lambda: None)


class Renewing:
    """Services written by hand: one of each lifetime, made by functions that log it."""

    def __init__(self, makers: Mapping[str, tuple[Lifetime, Callable[[], Any]]]) -> None:
        self._makers = makers
        self._shared: contextvars.ContextVar[dict[str, Any]] = contextvars.ContextVar("shared")
        self._once: dict[str, Any] = {}
        self.lock = threading.Lock()

    def has(self, id_: str, /) -> bool:
        return id_ in self._makers

    def lifetime(self, id_: str, /) -> Lifetime:
        return self._makers[id_][0]

    def get(self, id_: str, /) -> Any:
        lifetime, make = self._makers[id_]
        if lifetime is Lifetime.PER_UNIT:
            return make()
        if lifetime is Lifetime.SHARED_IN_UNIT:
            return self._shared.get()[id_]
        with self.lock:
            if id_ not in self._once:
                self._once[id_] = make()
            return self._once[id_]

    def renew(self, id_: str) -> Any:
        self._shared.set({id_: self._makers[id_][1]()})
        return self.get(id_)


class TestOpenService:
    def test_a_service_opens_a_unit_in_every_shape(self) -> None:
        """A context manager as it is, a callable by calling it, a shared one made anew."""
        log = Log()
        manager = Swallowing()
        services = MappingServices({"manager": manager, "factory": log.unit, "wrong": 5})
        assert manager is open_service(services, "manager")
        with open_service(services, "factory") as handle:
            assert handle == "handle"
        assert open_service(services, "wrong") == 5
        assert services.provides("wrong") is int
        shared = Renewing({"s": (Lifetime.SHARED_IN_UNIT, Swallowing)})
        assert open_service(shared, "s") is not open_service(shared, "s")

    def test_a_bus_takes_the_id_of_a_service(self) -> None:
        """`unit_of_work("session")` looks the session up where ids of routes are looked up."""
        log = Log()
        bus = CommandBus()
        bus.utilize(CommandRouter({"shop.x": lambda m: log.append("handled")}))
        bus.unit_of_work("session")
        with pytest.raises(RoutingError, match="nothing answers to the id 'session'"):
            bus.dispatch("shop.x")
        bus.utilize(ServiceLocatorPlugin({"session": log.unit}))
        bus.dispatch("shop.x")
        assert ["begin", "handled", "commit"] == log


def database() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.execute("CREATE TABLE done (what TEXT)")
    return connection


def rows(connection: sqlite3.Connection) -> list[str]:
    return [what for (what,) in connection.execute("SELECT what FROM done ORDER BY rowid")]


@contextmanager
def transaction(connection: sqlite3.Connection) -> Generator[sqlite3.Connection]:
    connection.execute("BEGIN")
    try:
        yield connection
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


class TestOneUnit:
    @pytest.mark.parametrize("ok", [True, False])
    @pytest.mark.parametrize("nested", ["queue", "inline"])
    def test_handler_nested_command_event_and_outbox_are_one(self, nested: Any, ok: bool) -> None:
        """All of them commit, or all of them roll back; sends wait for the commit."""
        with closing(database()) as connection:
            producer = Failing()
            commands, events, queries = CommandBus(nested=nested), EventBus(), QueryBus()

            def write(what: str) -> None:
                unit().handle.execute("INSERT INTO done VALUES (?)", (what,))

            def place(message: object) -> None:
                write("placed")
                commands.dispatch("shop.reserve")
                events.dispatch("shop.placed")
                unit().before_commit(lambda: write("outbox"))
                commands.dispatch(Mail())
                assert queries.dispatch("shop.count").result() == 2
                assert [] == producer.sent

            def reserve(message: object) -> None:
                write("reserved")
                commands.dispatch("shop.last")

            def last(message: object) -> None:
                write("last")
                if not ok:
                    fail(message)

            routes = {"shop.place": place, "shop.reserve": reserve, "shop.last": last}
            commands.utilize(CommandRouter(routes, {"shop.mail": producer}))
            events.utilize(EventRouter({"shop.placed": lambda m: write("listened")}))
            count = "SELECT count(*) FROM done WHERE what IN ('placed', 'listened')"
            answer = lambda m: unit().handle.execute(count).fetchone()[0]  # noqa: E731
            queries.utilize(QueryRouter({"shop.count": answer}))
            for bus in (commands, events, queries):
                bus.unit_of_work(lambda: transaction(connection))
            if ok:
                commands.dispatch("shop.place")
                assert {"placed", "listened", "reserved", "last", "outbox"} == set(
                    rows(connection)
                )
                assert ["shop.mail"] == producer.sent
            else:
                with pytest.raises(HandlerFailedError):
                    commands.dispatch("shop.place")
                assert [] == rows(connection)
                assert [] == producer.sent
            assert not connection.in_transaction

    @pytest.mark.parametrize("ok", [True, False])
    def test_asyncio_does_the_same(self, ok: bool) -> None:
        """An asynchronous handler, its nested command and its sends are one unit as well."""
        with closing(database()) as connection:
            producer = Failing()
            bus = CommandBus()

            async def place(message: object) -> None:
                unit().handle.execute("INSERT INTO done VALUES ('placed')")
                await asyncio.sleep(0)
                await bus.adispatch(Mail())
                bus.dispatch("shop.reserve")

            async def reserve(message: object) -> None:
                await asyncio.sleep(0)
                assert [] == producer.sent
                unit().handle.execute("INSERT INTO done VALUES ('reserved')")
                if not ok:
                    fail(message)

            routes = {"shop.place": place, "shop.reserve": reserve}
            bus.utilize(CommandRouter(routes, {"shop.mail": producer}))
            bus.unit_of_work(lambda: transaction(connection))
            if ok:
                asyncio.run(bus.adispatch("shop.place"))
                assert ["placed", "reserved"] == rows(connection)
                assert ["shop.mail"] == producer.sent
            else:
                with pytest.raises(HandlerFailedError):
                    asyncio.run(bus.adispatch("shop.place"))
                assert [] == rows(connection)
                assert [] == producer.sent
            bus.close()

    def test_a_query_leaves_at_once(self) -> None:
        """A query is asked before the commit: the handler waits for its answer."""
        log = Log()
        bus, queries = CommandBus(), QueryBus()
        queries.utilize(QueryRouter({"shop.q": lambda m: log.append("asked")}))
        bus.utilize(CommandRouter({"shop.x": lambda m: queries.dispatch("shop.q").result()}))
        bus.unit_of_work(log.unit)
        bus.dispatch("shop.x")
        assert ["begin", "asked", "commit"] == log

    def test_without_a_unit_of_work_sends_go_at_once(self) -> None:
        """There is nothing to wait for, even where a handler is made per unit."""
        producer = Failing()
        bus = CommandBus(nested="inline")

        def handler(message: object) -> None:
            bus.dispatch(Mail())
            assert ["shop.mail"] == producer.sent

        services = Renewing({"h": (Lifetime.PER_UNIT, lambda: handler)})
        bus.utilize(ServiceLocatorPlugin(services))
        bus.utilize(CommandRouter({"shop.x": "h"}, {"shop.mail": producer}))
        bus.dispatch("shop.x")

    def test_nested_commands_share_what_is_made_per_unit_without_a_unit_of_work(self) -> None:
        """One object for a command and those it causes, left after the last of them."""
        log: list[str] = []
        bus = CommandBus()

        class Handler:
            def __enter__(self) -> Self:
                log.append("entered")
                return self

            def __exit__(self, *outcome: object) -> None:
                log.append("left")

            def __call__(self, message: str) -> None:
                log.append(message)
                if message == "shop.first":
                    bus.dispatch("shop.second")

        bus.utilize(ServiceLocatorPlugin(Renewing({"h": (Lifetime.PER_UNIT, Handler)})))
        bus.utilize(CommandRouter({"shop.*": "h"}))
        bus.dispatch("shop.first")
        assert ["entered", "shop.first", "shop.second", "left"] == log

    def test_what_is_only_sent_opens_no_unit(self) -> None:
        """A command that is sent has nothing to commit here."""
        log = Log()
        bus = CommandBus()
        bus.utilize(CommandRouter(send={"shop.mail": Failing()}))
        bus.unit_of_work(log.unit)
        bus.dispatch(Mail())
        assert [] == log

    def test_a_sent_command_that_a_listener_keeps_here_has_a_unit(self) -> None:
        """What listeners make of a message is not known when its plan is compiled."""
        log = Log()
        bus = CommandBus()
        bus.utilize(CommandRouter(send={Mail: Failing("shop.mail")}))
        bus.unit_of_work(log.unit)

        def keep(context: DispatchContext) -> None:
            context.handler = lambda m: log.append("kept")

        bus.attach(Stage.ROUTE, keep)
        bus.dispatch(Mail())
        assert ["begin", "kept", "commit"] == log

    def test_a_plain_dispatch_in_an_asyncio_unit_does_not_block_its_loop(self) -> None:
        """What waits for the commit is sent as asyncio does, whoever dispatched it."""
        sent: list[str] = []

        class Async(AsyncMessageProducer):
            capabilities = Capabilities()

            def send_many(self, messages: Sequence[WireMessage]) -> None:
                raise NotImplementedError

            async def asend_many(self, messages: Sequence[WireMessage]) -> None:
                await asyncio.sleep(0)
                sent.extend(m.name for m in messages)

            def close(self) -> None: ...

            async def aclose(self) -> None: ...

        bus = CommandBus(nested="inline")
        bus.utilize(CommandRouter({"shop.x": lambda m: bus.dispatch(Mail())}, {Mail: Async()}))
        bus.unit_of_work(Log().unit)
        asyncio.run(bus.adispatch("shop.x"))
        assert ["shop.mail"] == sent

    def test_a_command_queued_behind_a_send_has_a_unit(self) -> None:
        """A listener of a sent command may dispatch another one, which is a unit of its own."""
        log = Log()
        bus = CommandBus()
        bus.utilize(
            CommandRouter({"shop.x": lambda m: log.append("handled")}, {"shop.mail": Failing()})
        )
        bus.wrap(
            lambda context, call_next: (
                (context.bus.dispatch("shop.x"), call_next())[1]
                if context.name == "shop.mail"
                else call_next()
            )
        )
        bus.unit_of_work(log.unit)
        bus.dispatch(Mail())
        assert ["begin", "handled", "commit"] == log

    def test_the_unit_set_last_counts_and_each_can_be_taken_back(self) -> None:
        """Taking back an earlier unit of work leaves the later one."""
        first, second = Log(), Log()
        bus = CommandBus()
        bus.utilize(CommandRouter({"shop.x": lambda m: None}))
        handle = bus.unit_of_work(first.unit)
        other = bus.unit_of_work(second.unit)
        assert bus.detach(handle)
        bus.dispatch("shop.x")
        assert ([], ["begin", "commit"]) == (first, second)
        assert bus.detach(other)
        bus.dispatch("shop.x")
        assert ["begin", "commit"] == second

    def test_a_unit_inside_a_service_unit_is_its_own_transaction(self) -> None:
        """A bus with a unit of work opens it inside one that only holds services."""
        log = Log()
        outer, inner = CommandBus(), CommandBus()
        inner.utilize(CommandRouter({"shop.in": lambda m: log.append("inner")}))
        inner.unit_of_work(log.unit)
        services = Renewing(
            {"h": (Lifetime.PER_UNIT, lambda: lambda m: inner.dispatch("shop.in"))}
        )
        outer.utilize(ServiceLocatorPlugin(services))
        outer.utilize(CommandRouter({"shop.out": "h"}))
        outer.dispatch("shop.out")
        assert ["begin", "inner", "commit"] == log


class TestFailures:
    def test_a_commit_that_fails_is_the_handlers_failure(self) -> None:
        """What beginning or committing raises comes back as HandlerFailedError, wrapped once."""

        @contextmanager
        def full() -> Generator[None]:
            yield
            raise sqlite3.OperationalError("disk is full")

        bus = CommandBus()
        bus.utilize(CommandRouter({"shop.x": lambda m: None}))
        bus.unit_of_work(full)
        with pytest.raises(HandlerFailedError) as caught:
            bus.dispatch("shop.x")
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert caught.value.envelope is not None
        assert caught.value.envelope.name == "shop.x"
        with pytest.raises(HandlerFailedError) as caught:
            asyncio.run(bus.adispatch("shop.x"))
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)

    def test_a_handlers_error_is_wrapped_once(self) -> None:
        """The unit passes on what the handler's failure became."""
        log = Log()
        bus = CommandBus()
        bus.utilize(CommandRouter({"shop.x": fail}))
        bus.unit_of_work(log.unit)
        with pytest.raises(HandlerFailedError) as caught:
            bus.dispatch("shop.x")
        assert isinstance(caught.value.__cause__, ValueError)
        with pytest.raises(HandlerFailedError) as caught:
            asyncio.run(bus.adispatch("shop.x"))
        assert isinstance(caught.value.__cause__, ValueError)
        assert ["begin", "rollback HandlerFailedError"] * 2 == log

    def test_a_plugins_error_passes_through_the_unit_as_it_is(self) -> None:
        """A listener's own exception is not taken for the handler's or the commit's."""
        bus = CommandBus()
        bus.utilize(CommandRouter({"shop.x": lambda m: None}))
        bus.unit_of_work(Log().unit)
        bus.attach(Stage.INVOKE, fail)
        with pytest.raises(ValueError, match="no"):
            bus.dispatch("shop.x")
        with pytest.raises(ValueError, match="no"):
            asyncio.run(bus.adispatch("shop.x"))

    def test_a_send_that_fails_after_the_commit_is_a_transport_error(self) -> None:
        """The handler's work stands, and the error has the envelope that was not sent."""
        log = Log()
        producer = Failing("shop.lost")
        bus = CommandBus()

        def handler(message: object) -> None:
            bus.dispatch(Lost())
            bus.dispatch(Mail())

        send = {"shop.lost": producer, "shop.mail": producer}
        bus.utilize(CommandRouter({"shop.x": handler}, send))
        bus.unit_of_work(log.unit)
        with pytest.raises(ConnectionFailedError) as caught:
            bus.dispatch("shop.x")
        assert caught.value.envelope is not None
        assert caught.value.envelope.name == "shop.lost"
        with pytest.raises(ConnectionFailedError):
            asyncio.run(bus.adispatch("shop.x"))
        assert ["begin", "commit"] * 2 == log
        assert ["shop.mail"] * 2 == producer.sent
        bus.close()

    def test_several_failed_sends_are_one_error(self) -> None:
        """Each lost message is in the PartiallySentError, with its own envelope."""
        producer = Failing("shop.lost", "shop.broken", error=RuntimeError("bug"))
        bus = CommandBus()

        def handler(message: object) -> None:
            bus.dispatch(Lost())
            bus.dispatch(Broken())

        bus.utilize(CommandRouter({"shop.x": handler}, {"shop.*": producer, "shop.x": producer}))
        bus.unit_of_work(Log().unit)
        envelope = Envelope("shop.x")
        with pytest.raises(PartiallySentError) as caught:
            bus.receive(envelope, "test")
        names = [e.envelope.name for e in caught.value.failed.values() if e.envelope is not None]
        # Received, the nested ones are still dispatched here, and so are sent.
        assert ["shop.lost", "shop.broken"] == names
        assert all(isinstance(e.__cause__, RuntimeError) for e in caught.value.failed.values())


class TestEvents:
    def test_each_listener_of_an_outermost_event_is_a_unit_of_its_own(self) -> None:
        """It commits or rolls back alone, so `done` is true."""
        log = Log()
        bus = EventBus()
        bus.utilize(
            EventRouter(
                {
                    "shop.e": [
                        lambda m: log.append("first"),
                        fail,
                        lambda m: log.append("third"),
                    ]
                }
            )
        )
        bus.unit_of_work(log.unit)
        expected = ["begin", "first", "commit", "begin", "rollback ValueError"]
        expected += ["begin", "third", "commit"]
        with pytest.raises(ListenersFailedError) as caught:
            bus.dispatch("shop.e")
        assert expected == log
        log.clear()
        assert caught.value.envelope is not None
        with pytest.raises(ListenersFailedError) as caught:
            asyncio.run(bus.adispatch("shop.e"))
        assert expected == log
        assert len(caught.value.done) == 2

    def test_an_event_inside_a_unit_is_part_of_it(self) -> None:
        """A failing listener rolls back the handler that dispatched the event."""
        log = Log()
        commands, events = CommandBus(), EventBus()
        commands.utilize(CommandRouter({"shop.x": lambda m: events.dispatch("shop.e")}))
        events.utilize(EventRouter({"shop.e": [lambda m: log.append("heard"), fail]}))
        commands.unit_of_work(log.unit)
        events.unit_of_work(log.unit)
        with pytest.raises(HandlerFailedError):
            commands.dispatch("shop.x")
        assert ["begin", "heard", "rollback HandlerFailedError"] == log

    def test_a_send_of_a_listener_that_fails_leaves_it_done(self) -> None:
        """Its work is committed: the error is the transport's, and it does not run again."""
        log = Log()
        producer = Failing("shop.mail")
        commands, events = CommandBus(), EventBus()
        commands.utilize(CommandRouter(send={"shop.mail": producer}))

        def mails(message: object) -> None:
            log.append("mails")
            commands.dispatch(Mail())

        events.utilize(EventRouter({"shop.e": [mails], "shop.f": [mails, fail]}))
        events.unit_of_work(log.unit)
        with pytest.raises(ConnectionFailedError):
            events.dispatch("shop.e")
        assert ["begin", "mails", "commit"] == log
        with pytest.raises(ListenersFailedError, match="and 1 sends") as caught:
            events.dispatch("shop.f")
        assert isinstance(caught.value.__cause__, ConnectionFailedError)
        assert [f"{__name__}.fail"] == list(caught.value.failed)
        assert len(caught.value.done) == 1


class TestLifetimes:
    def make(self) -> tuple[Log, Renewing, CommandBus]:
        log = Log()

        class Session:
            def __enter__(self) -> Self:
                log.append("begin")
                return self

            def __exit__(self, kind: object, *outcome: object) -> None:
                log.append("commit" if kind is None else "rollback")

            def __call__(self, message: str) -> None:
                log.append(f"handled {message}")
                if message.endswith("bad"):
                    fail(message)

        def make_once() -> Session:
            log.append("made")
            return Session()

        services = Renewing(
            {
                "once": (Lifetime.ONCE, make_once),
                "unit": (Lifetime.PER_UNIT, Session),
                "shared": (Lifetime.SHARED_IN_UNIT, Session),
            }
        )
        bus = CommandBus()
        bus.utilize(ServiceLocatorPlugin(services))
        return log, services, bus

    def test_a_service_made_once_is_made_on_first_use(self) -> None:
        """Building the bus makes nothing; the route's first message makes its handler (P08)."""
        log, _, bus = self.make()
        bus.utilize(CommandRouter({"shop.*": "once"}))
        assert [] == log
        bus.dispatch("shop.a")
        bus.dispatch("shop.a")
        assert ["made", "handled shop.a", "handled shop.a"] == log

    def test_a_service_per_unit_is_entered_and_left_with_the_outcome(self) -> None:
        """Each outermost message has its own; a failing one rolls back, in both colours."""
        log, _, bus = self.make()
        bus.utilize(CommandRouter({"shop.*": "unit"}))
        expected = ["begin", "handled shop.a", "commit", "begin", "handled shop.bad", "rollback"]
        bus.dispatch("shop.a")
        with pytest.raises(HandlerFailedError):
            bus.dispatch("shop.bad")
        assert expected == log
        log.clear()
        asyncio.run(bus.adispatch("shop.a"))
        with pytest.raises(HandlerFailedError):
            asyncio.run(bus.adispatch("shop.bad"))
        assert expected == log

    def test_what_handlers_share_is_made_anew_for_each_unit(self) -> None:
        """The unit's session is the one that the handler is given."""
        log, _, bus = self.make()
        bus.unit_of_work("shared")
        bus.utilize(CommandRouter({"shop.*": "shared"}))
        bus.dispatch("shop.a")
        asyncio.run(bus.adispatch("shop.a"))
        assert ["begin", "handled shop.a", "commit"] * 2 == log

    def test_two_containers_may_use_one_id(self) -> None:
        """In one unit, the services of two buses are told apart."""
        log = Log()
        first, second = CommandBus(), CommandBus()
        for bus, name in ((first, "first"), (second, "second")):
            made = {"h": (Lifetime.PER_UNIT, partial(partial, self.note, log, name))}
            bus.utilize(ServiceLocatorPlugin(Renewing(made)))
            bus.utilize(CommandRouter({"shop.x": "h", "shop.both": self.both(first, second)}))
        first.unit_of_work(log.unit)
        first.dispatch("shop.both")
        assert ["begin", "second", "first", "commit"] == log

    def note(self, log: Log, text: str, _: object) -> None:
        log.append(text)

    def both(self, first: CommandBus, second: CommandBus) -> Callable[[object], None]:
        def handler(message: object) -> None:
            first.dispatch("shop.x")
            second.dispatch("shop.x")

        return handler

    def test_a_nested_command_per_unit_needs_no_unit_of_work(self) -> None:
        """A handler made per unit has one wherever its command comes from."""
        log, _, bus = self.make()
        bus.utilize(CommandRouter({"shop.a": "unit", "shop.b": lambda m: bus.dispatch("shop.a")}))
        bus.dispatch("shop.b")
        assert ["begin", "handled shop.a", "commit"] == log

    def test_a_listener_may_route_to_a_service_per_unit(self) -> None:
        """A unit is opened for what only a listener knows of, in both colours."""
        log, _, bus = self.make()
        bus.attach(Stage.ROUTE, lambda context: setattr(context, "handler", "unit"))
        bus.dispatch("shop.a")
        asyncio.run(bus.adispatch("shop.a"))
        assert ["begin", "handled shop.a", "commit"] * 2 == log

    def test_eight_threads_have_a_session_per_message(self) -> None:
        """No session serves two messages, and only the failing messages roll back."""
        ended: deque[tuple[str, bool]] = deque()
        together = threading.Barrier(8, timeout=30)

        class Session:
            def __init__(self) -> None:
                self.messages: list[str] = []

            def __enter__(self) -> Self:
                return self

            def __exit__(self, kind: object, *outcome: object) -> None:
                (message,) = self.messages
                ended.append((message, kind is None))

            def __call__(self, message: str) -> None:
                self.messages.append(message)
                if message.endswith("bad"):
                    fail(message)

        bus = CommandBus()
        bus.utilize(ServiceLocatorPlugin(Renewing({"h": (Lifetime.PER_UNIT, Session)})))
        bus.utilize(CommandRouter({"**": "h"}))

        def work(number: int) -> None:
            together.wait()
            for turn in range(25):
                bus.dispatch(f"shop.t{number}.m{turn}")
                with pytest.raises(HandlerFailedError):
                    bus.dispatch(f"shop.t{number}.m{turn}.bad")

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = {
            (f"shop.t{n}.m{t}{end}", end == "")
            for n in range(8)
            for t in range(25)
            for end in ("", ".bad")
        }
        assert expected == set(ended)
        assert len(expected) == len(ended)
