"""What is attached to a bus: listeners, middleware, routers, services, and by which plugin."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from postbus.errors import RoutingError
from postbus.pipeline import Middleware, Stage, label_of
from postbus.unit import Opener, open_service

if TYPE_CHECKING:
    from collections.abc import Callable

    from postbus.messages import Envelope
    from postbus.pipeline import DispatchContext, Router
    from postbus.unit import Services

T = TypeVar("T")


class Plugin(Protocol):
    """Something that attaches listeners, middleware, routers or services to a bus."""

    def attach(self, bus: Any, /) -> None:
        """Attach to *bus*; the bus records what, so that `deactivate` undoes exactly that."""


class Handle:
    """What `attach` and its like return: the one thing to give to `detach` of the same bus."""

    __slots__ = ("_bus", "_undo")

    def __init__(self, bus: Attachments, undo: Callable[[], None]) -> None:
        self._bus = bus
        self._undo: Callable[[], None] | None = undo


class Attachments(ABC):
    """The part of a bus that plugins see. Safe from any thread.

    Every change makes the bus compile its plans anew, and counts from the next dispatch on.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._listeners: dict[Stage, tuple[tuple[int, Any], ...]] = dict.fromkeys(Stage, ())
        self._middlewares: tuple[Middleware, ...] = ()
        self._routers: tuple[Router, ...] = ()
        self._locators: tuple[Services, ...] = ()
        self._openers: tuple[Opener, ...] = ()
        self._strategies: tuple[str, ...] = ()
        self._interceptors: tuple[Callable[[Envelope], Envelope], ...] = ()
        self._plugins: tuple[tuple[Any, Handle], ...] = ()
        self._recording: list[Handle] | None = None

    def attach(
        self,
        stage: Stage,
        listener: Callable[[DispatchContext], Any],
        priority: int = 0,
    ) -> Handle:
        """Call *listener* with the context at *stage* of every dispatch from the next one on.

        Higher *priority* first, ties in attach order; the bus's own step comes after them.
        """
        stage = Stage(stage)
        entry = (priority, listener)

        def undo() -> None:
            self._listeners[stage] = _without(self._listeners[stage], entry)

        with self._lock:
            # Sorting is stable, so ties stay in attach order.
            entries = sorted((*self._listeners[stage], entry), key=lambda e: -e[0])
            self._listeners[stage] = tuple(entries)
            return self._changed_by(undo)

    def detach(self, handle: Handle) -> bool:
        """Take back what *handle* stands for; False when that was done before, or elsewhere."""
        with self._lock:
            undo = handle._undo  # noqa: SLF001  one object in two parts
            if undo is None or handle._bus is not self:  # noqa: SLF001  two classes of one module
                return False
            handle._undo = None  # noqa: SLF001  two classes of one module
            undo()
            self._forget()
        return True

    def wrap(self, middleware: Callable[..., Any]) -> Handle:
        """Surround INVOKE with *middleware*; the first one wrapped is the outermost.

        Raises:
            RoutingError: it takes neither (context, call_next) nor (context).
        """
        made = Middleware.of(middleware)

        def undo() -> None:
            self._middlewares = _without(self._middlewares, made)

        with self._lock:
            self._middlewares = (*self._middlewares, made)
            return self._changed_by(undo)

    def intercept(self, interceptor: Callable[[Envelope], Envelope]) -> Handle:
        """Pass each message through *interceptor* when it is dispatched, before any queueing.

        It runs in the code that dispatches, where a nested command still has to wait, and
        returns the envelope to go on with; what it raises ends the dispatch there. Received
        messages were dispatched elsewhere and do not pass. In the order they were attached.
        """

        def undo() -> None:
            self._interceptors = _without(self._interceptors, interceptor)

        with self._lock:
            self._interceptors = (*self._interceptors, interceptor)
            return self._changed_by(undo)

    def attach_router(self, router: Router) -> Handle:
        """Ask *router* where names go, when plans are compiled."""
        with self._lock:
            unwatch = router.watch(self.changed)

            def undo() -> None:
                unwatch()
                self._routers = _without(self._routers, router)

            self._routers = (*self._routers, router)
            return self._changed_by(undo)

    def attach_services(self, services: Services) -> Handle:
        """Look ids that routes name up in *services*."""

        def undo() -> None:
            self._locators = _without(self._locators, services)

        with self._lock:
            self._locators = (*self._locators, services)
            return self._changed_by(undo)

    def attach_strategy(self, method: str) -> Handle:
        """Call *method* of handlers that are not callable themselves and have one of that name."""

        def undo() -> None:
            self._strategies = _without(self._strategies, method)

        with self._lock:
            self._strategies = (*self._strategies, method)
            return self._changed_by(undo)

    def unit_of_work(self, factory: Callable[[], Any] | str) -> Handle:
        """Run every outermost dispatch inside the context manager that *factory* makes.

        Sync or async; left without an error it should commit, with one roll back. *factory* is
        called without arguments, or is the id of a service. The one set last counts.
        """
        if isinstance(factory, str):
            id_ = factory
            opener = Opener(lambda: open_service(self._answering(id_), id_), id_)
        else:
            opener = Opener(factory, label_of(factory))

        def undo() -> None:
            self._openers = _without(self._openers, opener)

        with self._lock:
            self._openers = (*self._openers, opener)
            return self._changed_by(undo)

    def utilize(self, plugin: Plugin) -> None:
        """Attach *plugin* and remember what it attached; nothing stays if it raises."""
        with self._lock:
            outer, self._recording = self._recording, []
            attached = self._recording

            def undo() -> None:
                for handle in reversed(attached):
                    self.detach(handle)
                self._plugins = tuple(e for e in self._plugins if e[1] is not whole)

            whole = Handle(self, undo)
            try:
                plugin.attach(self)
            except BaseException:
                self.detach(whole)
                raise
            finally:
                self._recording = outer
            self._plugins = (*self._plugins, (plugin, whole))
            if outer is not None:
                outer.append(whole)

    def deactivate(self, plugin: Plugin) -> bool:
        """Undo exactly what *plugin* attached to this bus; False where it is not utilized."""
        with self._lock:
            whole = next((h for known, h in self._plugins if known is plugin), None)
            return whole is not None and self.detach(whole)

    def changed(self) -> None:
        """Compile every plan anew from the next dispatch on: something a plan rests on changed."""
        with self._lock:
            self._forget()

    def _changed_by(self, undo: Callable[[], None]) -> Handle:
        handle = Handle(self, undo)
        if self._recording is not None:
            self._recording.append(handle)
        self._forget()
        return handle

    def _answering(self, id_: str) -> Services:
        services = next((s for s in self._locators if s.has(id_)), None)
        if services is None:
            raise RoutingError(f"unit_of_work: nothing answers to the id {id_!r}")
        return services

    @abstractmethod
    def _forget(self) -> None:
        """Drop what was compiled."""


def _without(entries: tuple[T, ...], entry: T) -> tuple[T, ...]:
    """Return *entries* without *entry* itself, once; others may be equal to it."""
    index = next(i for i, known in enumerate(entries) if known is entry)
    return entries[:index] + entries[index + 1 :]
