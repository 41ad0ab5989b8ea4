"""What the three buses share: from a message to its plan."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from postbus.buses._attachments import Attachments
from postbus.buses._naming import Naming
from postbus.buses._targets import Targets
from postbus.buses._threads import Threads
from postbus.buses._units import in_unit
from postbus.errors import ClosedError, NoHandlerError, RoutingError, UnsupportedError
from postbus.messages import Envelope, MessageKind
from postbus.pipeline import (
    Failures,
    Plan,
    Sender,
    Surroundings,
    broken,
    is_awaitable,
    refuse_queries_only,
    send,
    send_options,
)
from postbus.unit import current_unit

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from postbus.catalog import MessageCatalog
    from postbus.pipeline import (
        Bare,
        DispatchContext,
        DispatchOptions,
        Invocation,
        SendOptions,
        Target,
    )
    from postbus.transports import MessageProducer
    from postbus.unit import Receipt

    Body = Callable[..., Any]
    ABody = Callable[..., Coroutine[Any, Any, Any]]
    Bodies = tuple[Body, ABody]
    Key = tuple[str, type, bool]

# Plans are kept for this many names; names can come from outside, so there must be an end.
MAX_PLANS = 10_000


def _nothing(_: object) -> None:
    return None


class MessageBus(Attachments):
    """What the three buses share: plugins, stages, plans. Safe to use from threads and tasks.

    Args:
        catalog: names for classes that declare none, and the check of what is sent.
        errors: exception class → code, for `HandlerFailedError.code`.
        threads: how many threads a route with `threads = true` may use; made on first use.
    """

    kind: ClassVar[MessageKind]

    def __init__(
        self,
        *,
        catalog: MessageCatalog | None = None,
        errors: Mapping[type[BaseException], str] | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__()
        self._naming = Naming(self.kind, catalog)
        self._failures = Failures(dict(errors or {}))
        self._threads = Threads(threads)
        self._is_closed = False
        self._version = 0
        self._delayed: Callable[[MessageProducer], MessageProducer | None] = _nothing
        self._forget()

    def delay_with(self, delayed: Callable[[MessageProducer], MessageProducer | None]) -> None:
        """Have what *delayed* gives for a producer take the messages that are to be delayed.

        None leaves them to the producer. Any thread; counts from the next dispatch on.
        """
        with self._lock:
            self._delayed = delayed
            self._forget()

    def close(self) -> None:
        """Refuse every dispatch from now on and let go of the threads. Idempotent.

        Waits for nothing: what runs in a thread finishes there. Producers are closed by whoever
        made them.
        """
        with self._lock:
            self._is_closed = True
            self._forget()
        self._threads.close()

    def make_envelope(self, message: Any, name: str = "") -> Envelope:
        """Return a new identity for *message*, called *name* where that is given."""
        return self._naming.make_envelope(message, name)

    def receive(self, envelope: Envelope, source: str) -> Any:
        """Dispatch *envelope* as received from *source*: every `send` is skipped. Blocks.

        Returns None, or the answer of a query.

        Raises:
            DecodeError: the payload does not fit the class.
            DispatchError: as `dispatch`.
            TransportError: the work stands, and something it sends could not be sent.
        """
        message = envelope.message
        # The first look of _plan(), written out: this is the way of every message of a worker.
        plan = self._plans.get((envelope.name, message.__class__, True))
        if plan is None:
            plan = self._plan(message, envelope, received=True)
        return plan.run(message, envelope.received_by(source))

    async def areceive(
        self,
        envelope: Envelope,
        source: str,
        *,
        threads: bool = False,
        receipt: Receipt | None = None,
    ) -> Any:
        """Do what `receive` does in asyncio.

        With *threads* a plan without asynchronous steps runs as a whole in the bus's pool,
        unless its route says `threads = false`. With a *receipt* every unit of work of the
        message looks into an inbox first, and leaves a row there.
        """
        message = envelope.message
        plan = self._plan(message, envelope, received=True, kept=receipt is not None)
        envelope = envelope.received_by(source)
        if threads and plan.threads is None and plan.blocker is None:
            return await self._threads.run(plan.run, message, envelope, receipt)
        return await plan.arun(message, envelope, receipt)

    def _dispatch(self, message: Any, options: DispatchOptions) -> Any:
        message, envelope, sending, plan = self._prepare(message, options)
        return plan.run(message, envelope, sending)

    async def _adispatch(self, message: Any, options: DispatchOptions) -> Any:
        message, envelope, sending, plan = self._prepare(message, options)
        return await plan.arun(message, envelope, sending)

    def _prepare(
        self,
        message: Any,
        options: DispatchOptions,
    ) -> tuple[Any, Envelope | None, SendOptions | None, Plan]:
        envelope, sending = None, None
        if isinstance(message, Envelope):
            # Dispatched here, whatever it came from: `send` applies.
            envelope = message.evolve(received_from=None)
            message = envelope.message
        if options:
            sending = send_options(options)
            envelope = self._identify(message, envelope, options)
        if self._interceptors:
            # Where there are any, nothing is dispatched the fast way: an envelope is always given.
            envelope = self._naming.envelope_of(message, envelope)
            for interceptor in self._interceptors:
                envelope = interceptor(envelope)
            message = envelope.message
        plan = self._plan(message, envelope, received=False)
        if sending is not None and sending.delay and not plan.may_delay:
            name = self._naming.envelope_of(message, envelope).name
            msg = f"{name}: a delay needs a send, and this message is handled here at once"
            raise UnsupportedError(msg, envelope)
        return message, envelope, sending, plan

    def _identify(
        self,
        message: Any,
        envelope: Envelope | None,
        options: DispatchOptions,
    ) -> Envelope | None:
        id_, metadata = options.get("id"), options.get("metadata")
        if id_ is None and metadata is None:
            return envelope
        if envelope is None:
            name, kind = self._naming.name_and_kind(message)
            return Envelope(message, name=name, kind=kind, id=id_, metadata=metadata)
        changes: dict[str, Any] = {"id": id_, "metadata": metadata}
        return envelope.evolve(**{k: v for k, v in changes.items() if v is not None})

    def _forget(self) -> None:
        self._version += 1
        self._around: Surroundings | None = None
        self._afast: dict[type, ABody] = {}
        self._plans: dict[Key, Plan] = {}
        self._kept: dict[Key, Plan] = {}
        self._invocations: dict[Key, Invocation] = {}

    def _plan(
        self, message: Any, envelope: Envelope | None, *, received: bool, kept: bool = False
    ) -> Plan:
        name = envelope.name if envelope is not None else self._naming.detect(message)
        key = (name, message.__class__, received)
        plan = (self._kept if kept else self._plans).get(key)
        if plan is not None:
            return plan
        with self._lock:
            if self._is_closed:
                raise ClosedError(f"this {self.kind} bus is closed")
            version, around = self._version, self._surroundings()
        plan = self._compile(around, key, kept=kept)
        with self._lock:
            # What changed meanwhile counts from the next dispatch on.
            if self._version == version:
                plans = self._kept if kept else self._plans
                if len(plans) >= MAX_PLANS:
                    self._forget()
                    plans = self._kept if kept else self._plans
                plans[key] = plan
                plain = envelope is None and not received
                if plain and self._naming.is_of_its_class(message):
                    self._remember(message.__class__, plan)
        return plan

    def _remember(self, cls: type, plan: Plan) -> None:
        """Have plain dispatches of *cls* find *plan* by that alone."""
        self._afast[cls] = plan.arun

    def _surroundings(self) -> Surroundings:
        if self._around is None:
            self._around = Surroundings(
                self,
                {
                    stage: tuple(e[1] for e in entries)
                    for stage, entries in self._listeners.items()
                },
                self._middlewares,
                self._failures,
                self._naming.envelope_of,
                self._naming.detect,
                shows_listeners=self.kind is MessageKind.EVENT,
            )
        return self._around

    def _compile(self, around: Surroundings, key: Key, *, kept: bool) -> Plan:
        name, _, received = key
        invocation = self._invocation(*key)
        bodies = around.bodies(name, invocation, partial(self._resolve, received=received))
        blocker = around.blocker(invocation)
        if blocker is not None:
            msg = f"{blocker} is asynchronous and dispatch cannot run it: use adispatch"
            bodies = broken(name, RoutingError(msg)).call, bodies[1]
        bare, wrapped = around.bare(invocation), around.wrapped(name, invocation)
        reroutes = around.may_reroute
        run, arun = self._enclose(bodies, invocation, bare, reroutes=reroutes, kept=kept)
        if run is not bodies[0] or blocker is not None:
            bare = wrapped = None
        # What listeners may make of it is not known yet: for a worker, what its route says is.
        blocker = blocker or invocation.blocker
        if invocation.threads:
            if blocker is not None:
                msg = f"threads = true runs a whole dispatch in a thread, but {blocker} is async"
                refusing = broken(name, RoutingError(msg))
                run, arun = refusing.call, refusing.acall
            else:
                arun = self._threaded(run, arun)
        may_delay = invocation.sends or around.may_reroute
        return Plan(
            run,
            self._limited(arun, invocation),
            blocker,
            invocation.threads,
            may_delay,
            bare,
            wrapped,
        )

    def _limited(self, arun: ABody, invocation: Invocation) -> ABody:
        """Put a deadline round everything, where this kind of message has one."""
        return arun

    def _threaded(self, run: Body, inline: ABody) -> ABody:
        """Run the whole unit in one thread; what joins an open one stays with it."""

        async def arun(message: Any, envelope: Any = None, options: Any = None) -> Any:
            if self._is_nested() or current_unit() is not None:
                return await inline(message, envelope, options)
            result = await self._threads.run(run, message, envelope, options)
            return await result if is_awaitable(result) else result

        return arun

    def _is_nested(self) -> bool:
        return False

    def _enclose(
        self,
        bodies: Bodies,
        invocation: Invocation,
        bare: Bare | None,
        *,
        reroutes: bool,
        kept: bool,
    ) -> Bodies:
        """Return what surrounds the bodies on an outermost dispatch: a unit of work, a queue."""
        return self._in_unit(bodies, invocation, reroutes=reroutes, kept=kept)

    def _in_unit(
        self, bodies: Bodies, invocation: Invocation, *, reroutes: bool, kept: bool
    ) -> Bodies:
        """Return the bodies with a unit of work around them, where the plan may need one."""
        opener = self._opener()
        if kept:
            return in_unit(bodies, opener, self._failures, self._naming.envelope_of, kept=True)
        if opener is None and not invocation.in_unit:
            return bodies
        # What is only sent has nothing to commit.
        if invocation.sends and not reroutes:
            return bodies
        return in_unit(bodies, opener, self._failures, self._naming.envelope_of)

    def _opener(self) -> Any:
        return self._openers[-1] if self._openers else None

    @abstractmethod
    def _resolve(self, context: DispatchContext, *, received: bool) -> Invocation:
        """Return the invocation of a message as listeners left it."""

    def _invocation(self, name: str, message_type: type, received: bool) -> Invocation:  # noqa: FBT001  a part of the key
        key = (name, message_type, received)
        found = self._invocations.get(key)
        if found is not None:
            return found
        version = self._version
        try:
            invocation = self._build(self._targets(), name, message_type, received=received)
        except (RoutingError, NoHandlerError, UnsupportedError) as error:
            invocation = broken(name, error)
        with self._lock:
            if self._version == version:
                if len(self._invocations) >= MAX_PLANS:
                    self._invocations = {}
                self._invocations[key] = invocation
        return invocation

    def _targets(self) -> Targets:
        return Targets(self._routers, self._locators, self._failures, self._strategies)

    @abstractmethod
    def _build(
        self,
        targets: Targets,
        name: str,
        message_type: type,
        *,
        received: bool,
    ) -> Invocation:
        """Return the invocation of a name, as its routes say."""

    def _sending(
        self,
        targets: Sequence[Target],
        producers: Sequence[MessageProducer],
        name: str,
        message_type: type,
    ) -> Invocation:
        refuse_queries_only(name, producers)
        sender = self._sender(producers, name, message_type)
        is_marked = any(target.mark for target in targets)
        is_plain = not is_marked and self._naming.name_of(message_type) == name
        unmarked = message_type if is_plain else None
        return send(sender, self._marked(targets), targets[0].to, unmarked)

    def _sender(self, producers: Sequence[MessageProducer], name: str, cls: type) -> Sender:
        key = self._naming.ordering_key(name, cls)
        pool = self._threads.pool
        delaying = tuple(self._delayed(each) or each for each in producers)
        later = None
        if delaying != tuple(producers):
            later = Sender(name, delaying, key, pool)
        return Sender(name, tuple(producers), key, pool, later)

    def _marked(self, targets: Sequence[Target]) -> Callable[[Any, Envelope | None], Envelope]:
        envelope_of = self._naming.envelope_of
        if not any(t.mark for t in targets):
            return envelope_of

        def marked(message: Any, envelope: Envelope | None) -> Envelope:
            envelope = envelope_of(message, envelope)
            return envelope.evolve(metadata={**envelope.metadata, "handled-async": True})

        return marked
