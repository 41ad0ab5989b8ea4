"""The event bus."""

from __future__ import annotations

from operator import length_hint
from typing import TYPE_CHECKING, Any, Literal

import attrs

from postbus.buses._bus import MessageBus
from postbus.errors import RoutingError
from postbus.messages import MessageKind
from postbus.pipeline import Call, Listeners, Target, label_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
    from typing import Unpack

    from postbus.buses._bus import Bodies
    from postbus.buses._targets import Targets
    from postbus.catalog import MessageCatalog
    from postbus.pipeline import Bare, DispatchContext, DispatchOptions, Invocation, Plan

    Listener = Callable[[Any], Any]


class EventBus(MessageBus):
    """Dispatches events: any number of listeners, each of them runs.

    Args:
        on_listener_error: "collect" runs every listener and raises one group of all failures;
            "stop" ends at the first failure.
        catalog: as for every bus.
        errors: as for every bus.
        threads: as for every bus.
    """

    kind = MessageKind.EVENT

    def __init__(
        self,
        *,
        on_listener_error: Literal["collect", "stop"] = "collect",
        catalog: MessageCatalog | None = None,
        errors: Mapping[type[BaseException], str] | None = None,
        threads: int | None = None,
    ) -> None:
        self._stops = on_listener_error == "stop"
        super().__init__(catalog=catalog, errors=errors, threads=threads)

    def dispatch(self, message: Any, **options: Unpack[DispatchOptions]) -> None:
        """Call every listener of *message*, in route order, or send it. Blocks until done.

        Raises:
            ListenersFailedError: at least one listener raised; the others ran.
            DispatchError: its routes cannot be used.
            TransportError: it was to be sent, and a system does not have it.
            ClosedError: after `close()`.
        """
        if not options:
            try:
                call, others, bare = self._fast[message.__class__]
            except KeyError:
                pass  # The first of its class, or one whose name is its own.
            else:
                try:
                    call(message)
                    if others:
                        # Counting would cost every dispatch; the iterator knows where it is.
                        others = iter(others)
                        for call in others:
                            call(message)
                except Exception as error:
                    if bare is None:
                        raise
                    bare.fail(message, error, length_hint(others))
                return
        self._dispatch(message, options)

    def adispatch(
        self, message: Any, **options: Unpack[DispatchOptions]
    ) -> Coroutine[Any, Any, None]:
        """Do what `dispatch` does in asyncio. Raises as `dispatch` does."""
        if not options:
            try:
                run = self._afast[message.__class__]
            except KeyError:
                pass
            else:
                return run(message)
        return self._adispatch(message, options)

    def _forget(self) -> None:
        super()._forget()
        # The first listener, the others, and what to do with their errors.
        self._fast: dict[type, tuple[Listener, Iterable[Listener], Bare | None]] = {}

    def _remember(self, cls: type, plan: Plan) -> None:
        super()._remember(cls, plan)
        first, *others = (plan.run,) if plan.bare is None else plan.bare.functions
        self._fast[cls] = first, tuple(others), plan.bare

    def _in_unit(
        self, bodies: Bodies, invocation: Invocation, *, reroutes: bool, kept: bool
    ) -> Bodies:
        """Each listener of an outermost event is a unit of its own, which `Listeners` sees to."""
        return bodies

    def _resolve(self, context: DispatchContext, *, received: bool) -> Invocation:
        invocation = self._invocation(context.name, context.message.__class__, received)
        shown = context.listeners
        if not shown or shown is invocation.shown or shown is invocation.located:
            return invocation
        ids = _ids([label_of(to) for to in shown])
        routes = [(id_, Target(to)) for id_, to in zip(ids, shown, strict=True)]
        return self._combined(self._targets(), context.name, context.message.__class__, [], routes)

    def _build(
        self,
        targets: Targets,
        name: str,
        message_type: type,
        *,
        received: bool,
    ) -> Invocation:
        sends, handlers = targets.of(name, message_type)
        # Counted over all of them: an id is the same here and where the event is received.
        routes = list(zip(_ids([label_of(t.to) for t in handlers]), handlers, strict=True))
        if received:
            sends, routes = [], [(i, t) for i, t in routes if t.when == "handled"]
        elif sends:
            routes = [(i, t) for i, t in routes if t.when == "dispatched"]
        return self._combined(targets, name, message_type, sends, routes)

    def _combined(
        self,
        targets: Targets,
        name: str,
        message_type: type,
        sends: list[Target],
        routes: list[tuple[str, Target]],
    ) -> Invocation:
        calls: dict[str, Call] = {}
        for id_, route in routes:
            bound = targets.bind(route, name)
            if not isinstance(bound, Call):
                msg = (
                    f"{route.route or name}: {label_of(route.to)} is a message producer among "
                    "listeners: route the event to it with send"
                )
                raise RoutingError(msg)
            if bound.threads and bound.is_async:
                msg = f"{route.route or name}: threads = true, but {bound.label} is asynchronous"
                raise RoutingError(msg)
            calls[id_] = bound
        shown = (*(t.to for _, t in routes), *(t.to for t in sends))
        sending = None
        if sends:
            producers = targets.producers(sends, name)
            sending = self._sending(sends, producers, name, message_type)
            if not calls:
                return attrs.evolve(sending, shown=shown, located=tuple(producers))
        listeners = Listeners(
            name,
            tuple(calls.values()),
            tuple(calls),
            self._opener(),
            self._stops,
            self._failures,
            self._naming.envelope_of,
            self._threads.run,
            sending,
        )
        return listeners.invocation(shown)


def _ids(labels: Sequence[str]) -> tuple[str, ...]:
    """Return stable listener ids: the second occurrence of a label is `label#2`."""
    seen: dict[str, int] = {}
    ids: list[str] = []
    for label in labels:
        seen[label] = count = seen.get(label, 0) + 1
        ids.append(label if count == 1 else f"{label}#{count}")
    return tuple(ids)
