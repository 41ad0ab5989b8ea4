"""Promises: every clause of what they are, from threads and from event loops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import threading

import pytest

from postbus.errors import HandlerFailedError, TimedOutError
from postbus.promises import Promise


def settled_by_thread(promise: Promise[int], value: int) -> threading.Thread:
    """Answer in another thread, once somebody waits."""

    def answer() -> None:
        while not promise._callbacks:
            os.sched_yield()
        promise.resolve(value)

    thread = threading.Thread(target=answer)
    thread.start()
    return thread


class TestSettling:
    def test_it_is_pending_until_it_is_resolved(self) -> None:
        """A promise runs from birth and is done once it has an answer."""
        promise: Promise[int] = Promise()

        assert not promise.done()
        assert promise.resolve(5)
        assert promise.done()
        assert promise.result() == 5

    @pytest.mark.parametrize("value", [None, 0, "", False, []])
    def test_a_falsy_answer_is_an_answer(self, value: object) -> None:
        """None, 0 and the like settle it as any value does."""
        assert Promise.resolved(value).result() == value

    def test_whoever_answers_too_late_gets_false(self) -> None:
        """`resolve` and `reject` never raise; the first answer stands."""
        promise = Promise.resolved(1)

        assert not promise.resolve(2)
        assert not promise.reject(ValueError())
        assert promise.result() == 1

    def test_a_rejection_raises_what_it_was_rejected_with(self) -> None:
        """The error arrives as the object that `reject` got."""
        error = HandlerFailedError("shop.closed", "closed")
        promise: Promise[int] = Promise.rejected(error)

        with pytest.raises(HandlerFailedError) as caught:
            promise.result()

        assert caught.value is error
        assert promise.exception() is error
        assert not promise.reject(ValueError())

    def test_exactly_one_of_many_racing_answers_wins(self) -> None:
        """However many threads answer at once, one is told True."""
        promise: Promise[int] = Promise()
        start = threading.Barrier(8)
        won: list[int] = []

        def answer(number: int) -> None:
            start.wait()
            if promise.resolve(number):
                won.append(number)

        threads = [threading.Thread(target=answer, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert [promise.result()] == won

    def test_exception_is_none_where_there_is_an_answer(self) -> None:
        """An answer is no error."""
        assert Promise.resolved(1).exception() is None

    def test_exception_of_a_pending_promise_is_refused(self) -> None:
        """Nobody knows yet: this does not block, so it cannot say."""
        with pytest.raises(RuntimeError, match="still pending"):
            Promise[int]().exception()

    def test_its_repr_shows_the_state_and_no_value(self) -> None:
        """An answer may hold secrets, and a log may hold a repr."""
        rejected: Promise[str] = Promise.rejected(ValueError("hidden"))
        rejected.exception()

        assert repr(Promise[str]()) == "<Promise pending>"
        assert repr(Promise.resolved("hidden")) == "<Promise resolved>"
        assert repr(rejected) == "<Promise rejected>"


class TestResult:
    def test_it_waits_for_another_thread(self) -> None:
        """`result` blocks this thread until somebody answers."""
        promise: Promise[int] = Promise()
        thread = settled_by_thread(promise, 7)

        assert promise.result(timeout=30) == 7
        thread.join()

    def test_a_waiters_timeout_leaves_the_promise_as_it_is(self) -> None:
        """The waiter gets the builtin TimeoutError; the promise can still be answered."""
        promise: Promise[int] = Promise()

        with pytest.raises(TimeoutError) as caught:
            promise.result(timeout=0.001)

        assert not isinstance(caught.value, TimedOutError)
        assert promise.resolve(1)
        assert promise.result() == 1

    def test_a_waiter_that_gave_up_is_forgotten(self) -> None:
        """Waiting in vain a thousand times keeps nothing."""
        promise: Promise[int] = Promise()
        with pytest.raises(TimeoutError):
            promise.result(timeout=0)

        assert not promise._callbacks

    def test_the_deadline_arrives_as_a_timeout_error_too(self) -> None:
        """A `TimedOutError` that rejects it is caught by `except TimeoutError`."""
        promise: Promise[int] = Promise.rejected(TimedOutError("30 seconds are over"))

        with pytest.raises(TimeoutError):
            promise.result()

    def test_on_a_running_loop_it_raises_at_once(self) -> None:
        """Blocking there would stop the loop that has to bring the answer."""

        async def wait() -> None:
            Promise[int]().result()

        with pytest.raises(RuntimeError, match="await"):
            asyncio.run(wait())

    def test_on_a_running_loop_a_settled_promise_answers(self) -> None:
        """Nothing blocks there any more."""

        async def look() -> int:
            return Promise.resolved(3).result()

        assert asyncio.run(look()) == 3

    def test_every_waiter_gets_the_traceback_of_the_failure_alone(self) -> None:
        """Looking a hundred times does not make the traceback a hundred frames longer."""
        promise: Promise[int] = Promise.rejected(ValueError())
        lengths = set()
        for _ in range(5):
            with pytest.raises(ValueError) as caught:  # noqa: PT011  the object itself
                promise.result()
            lengths.add(len(caught.traceback))

        assert len(lengths) == 1


class TestAwait:
    def test_it_waits_without_blocking_the_loop(self) -> None:
        """A thread answers, the loop goes on meanwhile."""

        async def scenario() -> tuple[int, bool]:
            promise: Promise[int] = Promise()
            ticked = asyncio.Event()
            asyncio.get_running_loop().call_soon(ticked.set)
            waiter = asyncio.ensure_future(_wait(promise))
            await ticked.wait()
            pending = not promise.done()
            thread = settled_by_thread(promise, 9)
            answer = await waiter
            thread.join()
            return answer, pending

        assert asyncio.run(scenario()) == (9, True)

    def test_a_settled_promise_answers_without_a_turn_of_the_loop(self) -> None:
        """`await` of what is there already does not suspend."""
        awaiting = Promise.resolved(4).__await__()

        with pytest.raises(StopIteration) as stopped:
            next(awaiting)

        assert stopped.value.value == 4

    def test_cancelling_a_waiter_leaves_the_promise_and_other_waiters(self) -> None:
        """`await` is shielded: the promise stays pending and is answered to the others."""

        async def scenario() -> int:
            promise: Promise[int] = Promise()
            leaver, stayer = (asyncio.ensure_future(_wait(promise)) for _ in range(2))
            await asyncio.sleep(0)
            leaver.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaver
            assert not promise.done()
            promise.resolve(2)
            return await stayer

        assert asyncio.run(scenario()) == 2

    def test_an_answer_after_the_waiter_was_cancelled_is_harmless(self) -> None:
        """Answer and cancellation in the same turn of the loop do not collide."""

        async def scenario() -> None:
            promise: Promise[int] = Promise()
            waiter = asyncio.ensure_future(_wait(promise))
            await asyncio.sleep(0)
            promise.resolve(1)
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
            await asyncio.sleep(0)

        asyncio.run(scenario())

    def test_an_answer_after_the_loop_was_closed_is_harmless(self) -> None:
        """Whoever answers is not told about a waiter's closed loop."""
        promise: Promise[int] = Promise()
        waiter = promise.__await__()

        async def start_waiting() -> None:
            next(waiter)

        asyncio.run(start_waiting())

        assert promise.resolve(1)
        waiter.close()

    def test_two_loops_may_wait_for_one_promise(self) -> None:
        """It belongs to no loop."""
        promise: Promise[int] = Promise()
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda: answers.append(asyncio.run(_wait(promise))))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        promise.resolve(6)
        for thread in threads:
            thread.join()

        assert answers == [6, 6]

    def test_a_rejection_raises_in_the_awaiting_task(self) -> None:
        """As `result` does."""

        async def scenario() -> None:
            await Promise[int].rejected(KeyError("x"))

        with pytest.raises(KeyError):
            asyncio.run(scenario())


async def _wait(promise: Promise[int]) -> int:
    return await promise


class TestCallbacks:
    def test_they_run_in_order_once_it_is_settled(self) -> None:
        """By whoever settles it, each with the promise."""
        promise: Promise[int] = Promise()
        calls: list[tuple[str, int]] = []
        promise.add_done_callback(lambda p: calls.append(("first", p.result())))
        promise.add_done_callback(lambda p: calls.append(("second", p.result())))

        promise.resolve(1)

        assert calls == [("first", 1), ("second", 1)]

    def test_on_a_settled_promise_they_run_at_once(self) -> None:
        """Nobody will settle it again."""
        calls: list[int] = []

        Promise.resolved(8).add_done_callback(lambda p: calls.append(p.result()))

        assert calls == [8]

    def test_what_one_raises_is_logged_and_the_others_run(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One waiter's mistake reaches neither the answerer nor other waiters."""
        promise: Promise[int] = Promise()
        calls: list[int] = []

        def fail(_: Promise[int]) -> None:
            raise ValueError

        promise.add_done_callback(fail)
        promise.add_done_callback(lambda p: calls.append(p.result()))

        assert promise.resolve(1)
        assert calls == [1]
        assert [record.message for record in caplog.records] == ["a promise's callback failed"]


class TestUnseenRejection:
    def test_it_is_logged_once(self, caplog: pytest.LogCaptureFixture) -> None:
        """An error that nobody looked at does not vanish; what it says stays out of the log."""
        Promise[int]().reject(ValueError("hidden"))
        gc.collect()

        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert record.__dict__["error"] == "ValueError"
        assert "hidden" not in record.getMessage()

    @pytest.mark.parametrize("look", ["result", "exception"])
    def test_one_that_somebody_looked_at_is_not(
        self, look: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whoever looked deals with it."""
        promise: Promise[int] = Promise.rejected(ValueError())
        with contextlib.suppress(ValueError):
            getattr(promise, look)()
        del promise
        gc.collect()

        assert caplog.records == []

    def test_neither_pending_nor_resolved_ones_are(self, caplog: pytest.LogCaptureFixture) -> None:
        """There is nothing to say about them."""
        Promise[int]()
        Promise.resolved(1)
        gc.collect()

        assert caplog.records == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_can_use_promises() -> None:
    """No lock stays behind that another thread held at the moment of the fork."""
    child = os.fork()
    if child == 0:  # the exit code is the answer
        promise: Promise[int] = Promise()
        promise.add_done_callback(lambda _: None)
        os._exit(0 if promise.resolve(1) and promise.result() == 1 else 1)

    assert os.waitpid(child, 0)[1] == 0
