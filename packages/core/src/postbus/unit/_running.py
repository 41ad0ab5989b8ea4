"""Running work in a unit: begin, work, commit, and then what waited for the commit."""

from __future__ import annotations

import contextvars
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from postbus.errors import PartiallySentError, TransportError
from postbus.unit._failpoints import armed, reach
from postbus.unit._receipts import HandledError
from postbus.unit._unit import Unit, running, units

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence

    from postbus.unit._receipts import Receipt
    from postbus.unit._unit import Opener

T = TypeVar("T")


def run_in_unit(
    opener: Opener | None, work: Callable[[], T], receipt: Receipt | None = None
) -> tuple[T, list[TransportError]]:
    """Open a unit, run *work* in it, commit, then run what waited for the commit. Blocks.

    Returns what *work* returned, and what went wrong after the commit: the work stands, but
    these could not be sent. Give them to `raise_unsent`. With a *receipt* of a message that was
    handled before, *work* is not run, and what that handling has still to send is sent.

    Raises:
        Exception: what *work* or the commit raised; the unit is rolled back.
    """
    run = contextvars.copy_context().run
    if receipt is None:
        return run(_run, opener, work)
    try:
        return run(_run, opener, work, receipt)
    except HandledError:
        return receipt.again()
    except BaseException:
        receipt.abandon()
        raise


def _run(
    opener: Opener | None, work: Callable[[], T], receipt: Receipt | None = None
) -> tuple[T, list[TransportError]]:
    owner = running()
    outer = units.get(owner)
    try:
        with ExitStack() as stack:
            unit = units[owner] = Unit(stack, transactional=opener is not None)
            if opener is not None:
                unit.handle = opener.enter(stack)
            if receipt is not None:
                unit.outgoing = []
                receipt.join(unit.handle)
                receipt.begin()
            result = work()
            for step in unit._before:  # noqa: SLF001  one package
                step()
            if receipt is not None:
                receipt.finish_within(result, unit.outgoing or ())
            if armed:
                reach("before commit")
    finally:
        _restore(owner, outer)
    if armed:
        reach("after commit")
    if receipt is not None:
        receipt.finish_apart(result, unit.outgoing or ())
    unsent: list[TransportError] = []
    for step in unit._after:  # noqa: SLF001  one package
        try:
            step()
        except Exception as error:  # noqa: BLE001  every send has its turn; all are reported
            unsent.append(_unsent(error))
    if receipt is not None and unit.outgoing and not unsent:
        receipt.sent()
    return result, unsent


def _restore(owner: object, outer: Unit | None) -> None:
    if outer is None:
        units.pop(owner, None)
    else:
        units[owner] = outer


def _unsent(error: Exception) -> TransportError:
    if isinstance(error, TransportError):
        return error
    made = TransportError(f"the work is committed, then failed: {type(error).__name__}: {error}")
    made.__cause__ = error
    return made


def raise_unsent(unsent: Sequence[Exception]) -> None:
    """Raise what could not be sent, if anything: one error as it is, several as one.

    Raises:
        TransportError: the one, with the envelope that was not sent.
        PartiallySentError: there are several; each has its own envelope.
    """
    if not unsent:
        return
    if len(unsent) == 1:
        raise unsent[0]
    failed = {index: _unsent(error) for index, error in enumerate(unsent)}
    msg = f"the work is committed, but {len(unsent)} messages could not be sent"
    raise PartiallySentError(msg, failed, failed[0].envelope) from unsent[0]


class _InContext:
    """Drives a coroutine inside a context of its own, without making a new task."""

    __slots__ = ("_context", "_coroutine")

    def __init__(
        self,
        context: contextvars.Context,
        coroutine: Coroutine[Any, Any, T],
    ) -> None:
        self._context = context
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        run, coroutine = self._context.run, self._coroutine
        step: Callable[..., Any] = coroutine.send
        argument: Any = None
        while True:
            try:
                waiting_for = run(step, argument)
            except StopIteration as stop:
                return stop.value
            try:
                argument = yield waiting_for
                step = coroutine.send
            except BaseException as error:  # noqa: BLE001  the coroutine's to handle: cancellation and closing included
                argument, step = error, coroutine.throw


async def arun_in_unit(
    opener: Opener | None,
    work: Callable[[], Awaitable[T]],
    receipt: Receipt | None = None,
) -> tuple[T, list[TransportError]]:
    """Do what `run_in_unit` does for asyncio: in the running task, in its own context.

    Cancelled before the commit, it rolls back.
    """
    done: tuple[T, list[TransportError]]
    try:
        done = await _InContext(contextvars.copy_context(), _arun(opener, work, receipt))
    except HandledError:
        assert receipt is not None  # noqa: S101  nobody else raises it
        done = await receipt.in_thread(receipt.again)
    except BaseException:
        if receipt is not None:
            # Not awaited: the task may be cancelled, and nobody waits for this.
            _ = receipt.in_thread(receipt.abandon)
        raise
    return done


async def _arun(
    opener: Opener | None,
    work: Callable[[], Awaitable[T]],
    receipt: Receipt | None,
) -> tuple[T, list[TransportError]]:
    owner = running()
    outer = units.get(owner)
    try:
        async with AsyncExitStack() as stack:
            unit = units[owner] = Unit(stack, transactional=opener is not None)
            if opener is not None:
                unit.handle = await opener.aenter(stack)
            if receipt is not None:
                unit.outgoing = []
                receipt.join(unit.handle)
                await receipt.in_thread(receipt.begin)
            result = await work()
            for step in unit._before:  # noqa: SLF001  one package
                done = step()
                if done is not None:
                    await done
            if receipt is not None:
                receipt.finish_within(result, unit.outgoing or ())
            if armed:
                reach("before commit")
    finally:
        _restore(owner, outer)
    if armed:
        reach("after commit")
    if receipt is not None:
        await receipt.in_thread(receipt.finish_apart, result, unit.outgoing or ())
    unsent: list[TransportError] = []
    for step in unit._after:  # noqa: SLF001  one package
        try:
            done = step()
            if done is not None:
                await done
        except Exception as error:  # noqa: BLE001  every send has its turn; all are reported
            unsent.append(_unsent(error))
    if receipt is not None and unit.outgoing and not unsent:
        await receipt.in_thread(receipt.sent)
    return result, unsent
