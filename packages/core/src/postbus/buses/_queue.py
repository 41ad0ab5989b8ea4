"""Which commands wait behind the handler that dispatched them, per running thread or task."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from postbus.unit import running_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from postbus.messages import Envelope
    from postbus.pipeline import Bare, SendOptions

    Body = Callable[..., Any]
    ABody = Callable[..., Coroutine[Any, Any, Any]]
    Bodies = tuple[Body, ABody]
    Item = tuple[Body, ABody, Any, Envelope | None, SendOptions | None]
    Waiting = deque[Item]
    Pending = Callable[[Exception, Waiting, Any, Envelope | None], Exception]

# In Python 3.11 the function is one of Python around this table, at five times the cost.
_current_task: Callable[[Any], object] = (
    asyncio.current_task
    if sys.version_info >= (3, 12)
    else vars(asyncio.tasks)["_current_tasks"].get
)
# What waits behind most commands: a queue is made for the first that does.
_NONE_YET: Waiting | tuple[()] = ()


class _Slot:
    """The queue of one running dispatch; *waiting* is None until the first command waits."""

    # Defaults of the class: one is made for every command that a task dispatches.
    is_open: bool = False
    waiting: Waiting | None = None

    def append(self, item: Item) -> None:
        """Have *item* wait."""
        if self.waiting is None:
            self.waiting = deque()
        self.waiting.append(item)


class _ThisThread(threading.local):
    def __init__(self) -> None:
        self.slot = _Slot()


class NestedQueues:
    """The queues of one command bus: at most one for each running thread or task.

    A queue belongs to what runs and is never inherited: a child task or another thread finds
    none, and is an outermost dispatch of its own (T02).
    """

    def __init__(self, with_pending: Pending) -> None:
        self._with_pending = with_pending
        # Of threads without a loop, and of what runs in one: tasks, or the loop for its callbacks.
        self._this_thread = _ThisThread()
        self._slots: dict[object, _Slot] = {}

    def _slot(self) -> _Slot:
        """Return the slot of what runs; a new one where a loop runs and has none for it."""
        loop = running_loop()
        if loop is None:
            return self._this_thread.slot
        return self._slots.get(_current_task(loop) or loop) or _Slot()

    def is_nested(self) -> bool:
        """Return whether a dispatch from here would wait behind another."""
        return self._slot().is_open

    def enclose(self, first: Bodies, nested: Bodies, bare: Bare | None = None) -> Bodies:
        """Return what runs an outermost command and then its queue, or queues a nested one.

        *first* is run for an outermost command, *nested* when its turn in a queue comes. *bare*
        is all that *first* does, in one of the colours, where that is so little.
        """
        run = self._sync(first[0], nested)
        if bare is not None and not bare.is_async:
            run, bare = self._quick(bare, run, nested), None
        return run, self._async(first[1], nested, bare)

    def _quick(self, bare: Bare, otherwise: Body, nested: Bodies) -> Body:
        """Do what `_sync` does, for the common case: no envelope, and a thread without a loop.

        It is written out for this case since a queue costs a bare handler more than its dispatch.
        """
        this_thread, drain, (function,) = self._this_thread, self._drain, bare.functions

        def run(message: Any, envelope: Any = None, options: Any = None) -> None:
            if envelope is not None or running_loop() is not None:
                otherwise(message, envelope, options)
                return
            slot = this_thread.slot
            if slot.is_open:
                slot.append((*nested, message, envelope, options))
                return
            slot.is_open = True
            try:
                try:
                    result = function(message)
                except Exception as error:  # noqa: BLE001  raised again, wrapped
                    bare.fail(message, error, 0)
                if result is not None:
                    bare.check(result)
                if slot.waiting:
                    drain(slot)
            except Exception as error:
                if not slot.waiting:
                    raise
                raise self._with_pending(error, slot.waiting, message, envelope)  # noqa: B904  its cause is set
            finally:
                slot.is_open, slot.waiting = False, None

        return run

    def _sync(self, body: Body, nested: Bodies) -> Body:
        this_thread, slots, drain = self._this_thread, self._slots, self._drain

        def run(message: Any, envelope: Any = None, options: Any = None) -> None:
            # _slot(), written out: this is the way of every command.
            loop, owner = running_loop(), None
            if loop is None:
                slot = this_thread.slot
            else:
                owner = _current_task(loop) or loop
                slot = slots.get(owner) or _Slot()
            if slot.is_open:
                slot.append((*nested, message, envelope, options))
                return
            slot.is_open = True
            if owner is not None:
                slots[owner] = slot
            try:
                body(message, envelope, options)
                if slot.waiting:
                    drain(slot)
            except Exception as error:
                if not slot.waiting:
                    raise
                raise self._with_pending(error, slot.waiting, message, envelope)  # noqa: B904  its cause is set
            finally:
                slot.is_open, slot.waiting = False, None
                if owner is not None:
                    del slots[owner]

        return run

    def _async(self, body: ABody, nested: Bodies, bare: Bare | None) -> ABody:
        slots, drain = self._slots, self._adrain
        function = None if bare is None else bare.functions[0]

        async def arun(message: Any, envelope: Any = None, options: Any = None) -> None:
            loop = asyncio.get_running_loop()
            owner = _current_task(loop) or loop
            slot = slots.get(owner)
            if slot is not None:
                slot.append((*nested, message, envelope, options))
                return
            slots[owner] = slot = _Slot()
            slot.is_open = True
            try:
                if bare is None or function is None or envelope is not None or options is not None:
                    await body(message, envelope, options)
                else:
                    try:
                        await function(message)
                    except Exception as error:  # noqa: BLE001  raised again, wrapped
                        bare.fail(message, error, 0)
                if slot.waiting:
                    await drain(slot)
            except Exception as error:
                if not slot.waiting:
                    raise
                raise self._with_pending(error, slot.waiting, message, envelope)  # noqa: B904  its cause is set
            finally:
                del slots[owner]

        return arun

    def then_drain(self, bodies: Bodies) -> Bodies:
        """Return *bodies* so that they run the queue as well, inside whatever is put around."""
        body, abody = bodies

        def run(message: Any, envelope: Any = None, options: Any = None) -> None:
            body(message, envelope, options)
            self._drain(self._slot())

        async def arun(message: Any, envelope: Any = None, options: Any = None) -> None:
            await abody(message, envelope, options)
            await self._adrain(self._slot())

        return run, arun

    def _drain(self, slot: _Slot) -> None:
        """Run what was dispatched meanwhile, in order, and what that dispatches."""
        while slot.waiting:
            body, _, message, envelope, options = slot.waiting.popleft()
            body(message, envelope, options)

    async def _adrain(self, slot: _Slot) -> None:
        while slot.waiting:
            _, abody, message, envelope, options = slot.waiting.popleft()
            await abody(message, envelope, options)
