"""Threads and tasks: nothing is mixed, nothing is lost."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from postbus.buses import CommandBus, EventBus
from postbus.errors import (
    CommandDispatchError,
    HandlerFailedError,
    ListenersFailedError,
    NoHandlerError,
)
from postbus.pipeline import Stage
from postbus.routers import CommandRouter, EventRouter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

THREADS = 8
TASKS = 200


@pytest.fixture(autouse=True)
def often_switching() -> Iterator[None]:
    """Let threads take turns a hundred times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 100)
    yield
    sys.setswitchinterval(before)


def in_threads(work: Callable[[int], None], count: int = THREADS) -> None:
    """Run *work* in *count* threads that start together; raise what any of them raised."""
    together = threading.Barrier(count, timeout=60)

    def run(number: int) -> None:
        together.wait()
        work(number)

    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(run, number) for number in range(count)]:
            done.result()


class Tree:
    """Commands that dispatch others: `name` handles itself, then each of its children."""

    def __init__(self) -> None:
        self.bus = CommandBus()
        self.events = EventBus()
        self.log: dict[str, list[str]] = {}
        router = CommandRouter({"a.*.**": self.ahandle, "t.*.**": self.handle})
        self.bus.utilize(router)
        self.events.utilize(EventRouter({"**": [self.heard, self.failing, self.heard]}))

    def handle(self, message: str) -> None:
        self.note(message)
        for child in self.children(message):
            self.bus.dispatch(child)
        self.event(message)
        if message.endswith("bad"):
            raise ValueError(message)

    async def ahandle(self, message: str) -> None:
        self.note(message)
        for child in self.children(message):
            await asyncio.sleep(0)
            await self.bus.adispatch(child)
        await asyncio.sleep(0)
        self.event(message)
        if message.endswith("bad"):
            raise ValueError(message)

    def children(self, message: str) -> list[str]:
        _, _, *rest = message.split(".")
        return [f"{message}.{n}" for n in "xyz"] if len(rest) < 3 else []

    def event(self, message: str) -> None:
        """Dispatch an event whose second listener fails, and see only its own failure."""
        try:
            self.events.dispatch(message)
        except ListenersFailedError as error:
            assert [message] == [each.message for each in error.exceptions]  # noqa: PT017
            assert 2 == len(error.done)  # noqa: PT017

    def note(self, message: str) -> None:
        self.log.setdefault(".".join(message.split(".")[:2]), []).append(message)

    def heard(self, message: str) -> None: ...

    def failing(self, message: str) -> None:
        raise ValueError(message)

    def expected(self, root: str) -> list[str]:
        """Return the order of one queue: breadth first."""
        order, waiting = [], [root]
        while waiting:
            message = waiting.pop(0)
            order.append(message)
            waiting += self.children(message)
        return order


class TestOrder:
    def test_eight_threads_keep_their_commands_in_order(self) -> None:
        """Each thread has its own queue and its own failures on one bus (T02)."""
        tree = Tree()

        def work(number: int) -> None:
            for turn in range(5):
                root = f"t.{number}-{turn}.r"
                tree.bus.dispatch(root)
                with pytest.raises(CommandDispatchError) as caught:
                    tree.bus.dispatch(f"t.{number}-{turn}b.bad")
                names = [e.name for e in caught.value.pending]
                assert [f"t.{number}-{turn}b.bad.{n}" for n in "xyz"] == names

        in_threads(work)
        for number in range(THREADS):
            for turn in range(5):
                key = f"t.{number}-{turn}"
                assert tree.expected(f"{key}.r") == tree.log[key]
                assert [f"{key}b.bad"] == tree.log[f"{key}b"]

    def test_two_hundred_tasks_keep_their_commands_in_order(self) -> None:
        """Each task has its own queue, however they take turns (T02)."""
        tree = Tree()

        async def work(number: int) -> None:
            await tree.bus.adispatch(f"a.{number}.r")
            with pytest.raises(CommandDispatchError) as caught:
                await tree.bus.adispatch(f"a.{number}b.bad")
            assert [f"a.{number}b.bad.{n}" for n in "xyz"] == [
                e.name for e in caught.value.pending
            ]

        async def main() -> None:
            async with asyncio.TaskGroup() as group:
                for number in range(TASKS):
                    group.create_task(work(number))

        asyncio.run(main())
        for number in range(TASKS):
            assert tree.expected(f"a.{number}.r") == tree.log[f"a.{number}"]
            assert [f"a.{number}b.bad"] == tree.log[f"a.{number}b"]

    def test_loops_in_eight_threads_and_plain_code_share_a_bus(self) -> None:
        """Sync and asyncio on one object, at the same time."""
        tree = Tree()

        def work(number: int) -> None:
            async def main() -> None:
                roots = [f"a.{number}-{n}.r" for n in range(10)]
                await asyncio.gather(*(tree.bus.adispatch(root) for root in roots))
                tree.bus.dispatch(f"t.{number}-in.r")

            tree.bus.dispatch(f"t.{number}-before.r")
            asyncio.run(main())
            tree.bus.dispatch(f"t.{number}-after.r")

        in_threads(work)
        for number in range(THREADS):
            keys = [f"a.{number}-{n}" for n in range(10)]
            keys += [f"t.{number}-{n}" for n in ("before", "in", "after")]
            for key in keys:
                assert tree.expected(f"{key}.r") == tree.log[key]
        assert {} == tree.bus._queues._slots  # type: ignore[union-attr]


class TestInheritance:
    def test_children_of_a_handler_lose_nothing(self) -> None:
        """create_task, TaskGroup, gather, to_thread and an executor dispatch on their own."""
        log: list[str] = []
        left: list[asyncio.Task[None]] = []
        bus = CommandBus()
        pool = ThreadPoolExecutor(1)

        async def parent(message: str) -> None:
            await bus.adispatch("shop.queued")
            await asyncio.create_task(bus.adispatch("shop.created"))
            async with asyncio.TaskGroup() as group:
                group.create_task(bus.adispatch("shop.grouped"))
            await asyncio.gather(bus.adispatch("shop.gathered"))
            await asyncio.wait_for(bus.adispatch("shop.timed"), 10)
            await asyncio.to_thread(bus.dispatch, "shop.threaded")
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(pool, bus.dispatch, "shop.executed")
            called = loop.create_future()
            loop.call_soon(bus.dispatch, "shop.called")
            loop.call_soon(called.set_result, None)
            await called
            left.append(asyncio.create_task(bus.adispatch("shop.left")))
            log.append(message)

        async def main() -> None:
            await bus.adispatch("parent")
            await left[0]

        bus.utilize(CommandRouter({"parent": parent, "shop.*": log.append}))
        asyncio.run(main())
        pool.shutdown()
        at_once = ["created", "grouped", "gathered", "threaded", "executed", "called"]
        own = [n for n in log if n not in {"shop.timed", "shop.queued", "shop.left"}]
        assert [*(f"shop.{n}" for n in at_once), "parent"] == own
        assert {"shop.timed", "shop.queued", "shop.left"} <= set(log)
        assert log.index("shop.queued") > log.index("parent")
        assert 10 == len(log)

    def test_a_sync_handler_loses_nothing_either(self) -> None:
        """Threads, executors and loops that it runs, of which only its own dispatch waits."""
        log: list[str] = []
        bus = CommandBus()

        def parent(message: str) -> None:
            bus.dispatch("shop.queued")
            thread = threading.Thread(target=bus.dispatch, args=("shop.thread",))
            thread.start()
            thread.join()
            with ThreadPoolExecutor(1) as pool:
                pool.submit(bus.dispatch, "shop.pool").result()

            async def main() -> None:
                bus.dispatch("shop.loop")
                await bus.adispatch("shop.awaited")
                asyncio.get_running_loop().call_soon(bus.dispatch, "shop.called")
                await asyncio.sleep(0)

            asyncio.run(main())
            log.append(message)

        bus.utilize(CommandRouter({"parent": parent, "shop.*": log.append}))
        bus.dispatch("parent")
        names = ["thread", "pool", "loop", "awaited", "called"]
        assert [*(f"shop.{n}" for n in names), "parent", "shop.queued"] == log

    def test_an_orphan_task_may_outlive_the_dispatch(self) -> None:
        """A task that a handler left behind dispatches after the queue is gone."""
        log: list[str] = []
        bus = CommandBus()
        tasks: list[asyncio.Task[None]] = []

        async def later() -> None:
            await asyncio.sleep(0.001)
            await bus.adispatch("shop.later")

        async def parent(message: str) -> None:
            tasks.append(asyncio.create_task(later()))

        async def main() -> None:
            await bus.adispatch("parent")
            await tasks[0]

        bus.utilize(CommandRouter({"parent": parent, "shop.*": log.append}))
        asyncio.run(main())
        assert ["shop.later"] == log


class TestCancellation:
    def test_a_cancelled_dispatch_leaves_no_queue(self) -> None:
        """Its nested commands are not run by the next dispatch of the same task."""
        log: list[str] = []
        bus = CommandBus()

        async def parent(message: str) -> None:
            await bus.adispatch("shop.never")
            await asyncio.Event().wait()

        async def main() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await bus.adispatch("parent")
            await bus.adispatch("shop.after")

        bus.utilize(CommandRouter({"parent": parent, "shop.*": log.append}))
        asyncio.run(main())
        assert ["shop.after"] == log


class TestChanges:
    def test_attaching_while_others_dispatch_is_seen_by_all(self) -> None:
        """A listener attached during a storm is called by every later dispatch of any thread."""
        bus = EventBus()
        bus.utilize(EventRouter({"**": lambda m: None}))
        attached: list[int] = []
        wrong: list[str] = []

        def work(number: int) -> None:
            for turn in range(50):
                name = f"shop.{random.randrange(20)}"
                called: list[int] = []
                handle = bus.attach(Stage.ROUTE, lambda c, called=called: called.append(1))  # type: ignore[misc]
                bus.dispatch(name)
                if not called:
                    wrong.append(f"{number} {turn}")
                attached.append(1)
                assert bus.detach(handle)
                seen = len(called)
                bus.dispatch(name, metadata={"turn": turn})
                # Others may still be in a dispatch that began before.
                if len(called) > seen + THREADS:
                    wrong.append("called after detach")

        in_threads(work)
        assert [] == wrong
        assert THREADS * 50 == len(attached)
        assert {} == {s: e for s, e in bus._listeners.items() if e}

    def test_routes_added_by_one_thread_are_used_by_the_others(self) -> None:
        """No thread remembers that a name had no handler."""
        router = CommandRouter()
        bus = CommandBus()
        bus.utilize(router)
        got: list[str] = []

        def work(number: int) -> None:
            for turn in range(50):
                name = f"shop.n{number}.t{turn}"
                with pytest.raises(NoHandlerError):
                    bus.dispatch(name)
                router.handles(name)(got.append)
                bus.dispatch(name)

        in_threads(work)
        assert THREADS * 50 == len(got)

    def test_utilizing_in_many_threads_keeps_plugins_apart(self) -> None:
        """Each thread's plugin takes back what it attached, and the bus is as before."""
        bus = CommandBus()
        bus.utilize(CommandRouter({"shop.*": lambda m: None}))

        class Plugin:
            def attach(self, bus: Any) -> None:
                bus.attach(Stage.ROUTE, lambda c: None)
                bus.wrap(lambda context, call_next: call_next())

        def work(number: int) -> None:
            for _ in range(50):
                plugin = Plugin()
                bus.utilize(plugin)
                bus.dispatch(f"shop.{number}")
                assert bus.deactivate(plugin)

        in_threads(work)
        assert () == bus._middlewares
        assert 1 == len(bus._plugins)


class TestFailures:
    def test_errors_of_tasks_and_threads_do_not_mix(self) -> None:
        """Every caller gets the failure of its own message."""
        bus = CommandBus()

        async def handler(message: str) -> None:
            await asyncio.sleep(0)
            raise ValueError(message)

        bus.utilize(CommandRouter({"**": handler}))

        async def one(name: str) -> None:
            with pytest.raises(HandlerFailedError) as caught:
                await bus.adispatch(name)
            assert caught.value.envelope is not None
            assert (name, name) == (caught.value.message, caught.value.envelope.name)

        def work(number: int) -> None:
            async def main() -> None:
                await asyncio.gather(*(one(f"shop.{number}.{n}") for n in range(25)))

            asyncio.run(main())

        in_threads(work)
