"""The threads of a bus: what runs there, and how its outcome gets back."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import threading
import weakref
from typing import TYPE_CHECKING

import pytest

from postbus.buses._threads import Threads
from postbus.errors import ClosedError

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 60


@pytest.fixture
def threads() -> Iterator[Threads]:
    """The threads of one bus."""
    made = Threads(4)
    yield made
    made.close()


class BrokenError(Exception):
    """What functions raise here."""


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class TestRun:
    @pytest.mark.usefixtures("restless")
    def test_every_outcome_reaches_who_waits_for_it(self, threads: Threads) -> None:
        """Thousands at a time, of several loops that share the threads: none is mixed up."""

        def square(number: int) -> int:
            if number % 7 == 0:
                raise BrokenError(number)
            return number * number

        async def ask(start: int) -> list[int | BaseException]:
            numbers = range(start, start + 2000)
            running = (threads.run(square, number) for number in numbers)
            async with asyncio.timeout(PATIENCE):
                return list(await asyncio.gather(*running, return_exceptions=True))

        answers: dict[int, list[int | BaseException]] = {}

        def serve(start: int) -> None:
            answers[start] = asyncio.run(ask(start))

        loops = [threading.Thread(target=serve, args=(start,)) for start in (0, 10_000, 20_000)]
        for each in loops:
            each.start()
        for each in loops:
            each.join(PATIENCE)
        for start, found in answers.items():
            for number, answer in enumerate(found, start):
                if number % 7 == 0:
                    assert isinstance(answer, BrokenError)
                    assert (number,) == answer.args
                else:
                    assert number * number == answer
        assert 3 == len(answers)

    def test_what_was_cancelled_before_its_turn_does_not_run(self, threads: Threads) -> None:
        """Cancelled while all threads are busy, it is nobody's work; what runs goes on."""
        go, ran = threading.Event(), list[str]()

        async def main() -> None:
            async with asyncio.timeout(PATIENCE):
                busy = [asyncio.create_task(threads.run(go.wait, PATIENCE)) for _ in range(4)]
                late = asyncio.create_task(threads.run(ran.append, "late"))
                await asyncio.sleep(0)
                late.cancel()
                busy[0].cancel()
                await asyncio.wait({late})
                go.set()
                assert [True] * 3 == await asyncio.gather(*busy[1:])
                await threads.run(ran.append, "next")
                assert late.cancelled()

        asyncio.run(main())
        assert ["next"] == ran

    def test_the_end_of_a_generator_is_an_error_like_others(self, threads: Threads) -> None:
        """`StopIteration`, which no future takes, reaches who waits, and holds up nobody."""

        async def main() -> list[object]:
            async with asyncio.timeout(PATIENCE):
                running = [threads.run(next, iter(())), threads.run(int, "7")]
                return list(await asyncio.gather(*running, return_exceptions=True))

        ended, answer = asyncio.run(main())
        assert isinstance(ended, RuntimeError)
        assert isinstance(ended.__cause__, StopIteration)
        assert 7 == answer

    def test_a_loop_that_ended_is_told_nothing(self, threads: Threads) -> None:
        """What outlives its loop ends quietly, and the next loop is served as ever."""
        go = threading.Event()

        async def leave() -> None:
            task = asyncio.create_task(threads.run(go.wait, PATIENCE))
            await asyncio.sleep(0)
            task.cancel()

        async def main() -> int:
            async with asyncio.timeout(PATIENCE):
                return int(await threads.run(int, "7"))

        asyncio.run(leave())
        go.set()
        assert 7 == asyncio.run(main())
        threads.pool().submit(int).result(PATIENCE)
        assert {} == threads._outcomes

    def test_it_sees_the_callers_context(self, threads: Threads) -> None:
        """Context variables are those of the caller, as they were, and changes stay there."""
        variable = contextvars.ContextVar("variable", default="nobody")

        def swap() -> str:
            seen = variable.get()
            variable.set("the thread")
            return seen

        async def main() -> tuple[str, str]:
            variable.set("the caller")
            return await threads.run(swap), variable.get()

        assert ("the caller", "the caller") == asyncio.run(main())

    def test_an_error_is_gone_when_nobody_has_it(self, threads: Threads) -> None:
        """No frame of a thread keeps what was raised there."""

        def fail() -> None:
            raise BrokenError

        async def main() -> weakref.ref[BrokenError]:
            try:
                await threads.run(fail)
            except BrokenError as error:
                return weakref.ref(error)
            raise AssertionError

        gc.disable()
        try:
            seen = asyncio.run(main())
            # Whoever told the loop may still be on its way out.
            threads.pool().shutdown(wait=True)
            assert seen() is None
        finally:
            gc.enable()

    def test_closed_it_runs_nothing(self, threads: Threads) -> None:
        """After `close` it says so."""
        threads.close()
        with pytest.raises(ClosedError):
            asyncio.run(threads.run(int))
