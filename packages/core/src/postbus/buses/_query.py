"""The query bus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

import attrs

from postbus.buses._single import SingleHandlerBus
from postbus.messages import MessageKind, Query
from postbus.pipeline import Asker, ask, deadlines, handle, limited, query_client
from postbus.promises import Promise
from postbus.wire import answer_type

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from typing import Unpack

    from postbus.buses._bus import ABody
    from postbus.catalog import MessageCatalog
    from postbus.messages import Envelope
    from postbus.pipeline import Call, DispatchOptions, Invocation, Plan, Target
    from postbus.transports import MessageProducer
    from postbus.unit import Receipt

R = TypeVar("R")
_resolved = Promise[Any].resolved
_rejected = Promise[Any].rejected
# Longer than any caller should wait, short enough that a lost answer is noticed.
DEFAULT_TIMEOUT = 30.0


class QueryBus(SingleHandlerBus):
    """Dispatches queries: one finder each, whose answer comes back.

    Args:
        timeout: the deadline of a query in seconds, unless its route or dispatch says another;
            half a minute is longer than any caller should wait and short enough to notice.
        catalog: as for every bus.
        errors: as for every bus.
        threads: as for every bus.
    """

    kind = MessageKind.QUERY

    def __init__(
        self,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        catalog: MessageCatalog | None = None,
        errors: Mapping[type[BaseException], str] | None = None,
        threads: int | None = None,
    ) -> None:
        self._timeout = timeout
        super().__init__(catalog=catalog, errors=errors, threads=threads)

    @overload
    def dispatch(self, message: Query[R], **options: Unpack[DispatchOptions]) -> Promise[R]: ...
    @overload
    def dispatch(self, message: Any, **options: Unpack[DispatchOptions]) -> Promise[Any]: ...
    def dispatch(self, message: Any, **options: Unpack[DispatchOptions]) -> Promise[Any]:
        """Ask *message* and return the promise of its answer. Any failure rejects the promise.

        A local finder runs here and now; a sent query leaves at once.
        """
        try:
            run = self._fast.get(message.__class__)
            result = self._dispatch(message, options) if run is None or options else run(message)
        except Exception as error:  # noqa: BLE001  a query never raises: it rejects (B35)
            return _rejected(error)
        return result if result.__class__ is Promise else _resolved(result)

    @overload
    def adispatch(
        self,
        message: Query[R],
        **options: Unpack[DispatchOptions],
    ) -> Coroutine[Any, Any, R]: ...
    @overload
    def adispatch(
        self,
        message: Any,
        **options: Unpack[DispatchOptions],
    ) -> Coroutine[Any, Any, Any]: ...
    def adispatch(
        self,
        message: Any,
        **options: Unpack[DispatchOptions],
    ) -> Coroutine[Any, Any, Any]:
        """Ask *message* in asyncio; `await` gives the answer.

        Raises:
            HandlerFailedError: the finder raised, here or on the other side.
            TimedOutError: no answer within the deadline.
            DispatchError: nothing answers it.
            TransportError: it could not be sent or answered.
        """
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
        self._fast: dict[type, Callable[[Any], Any]] = {}

    def _remember(self, cls: type, plan: Plan) -> None:
        super()._remember(cls, plan)
        self._fast[cls] = plan.run

    def receive(self, envelope: Envelope, source: str) -> Any:
        """Answer a received query: as on every bus, but the finder's answer is returned."""
        result = super().receive(envelope, source)
        return result.result() if result.__class__ is Promise else result

    async def areceive(
        self,
        envelope: Envelope,
        source: str,
        *,
        threads: bool = False,
        receipt: Receipt | None = None,
    ) -> Any:
        """Answer a received query in asyncio."""
        result = await super().areceive(envelope, source, threads=threads, receipt=receipt)
        return await result if result.__class__ is Promise else result

    def _limited(self, arun: ABody, invocation: Invocation) -> ABody:
        """Put the deadline round everything; a sent query has one of its own."""
        if invocation.sends:
            return arun
        timeout, label = invocation.timeout or self._timeout, invocation.label

        async def within(message: Any, envelope: Any = None, options: Any = None) -> Any:
            seconds = timeout if options is None else options.timeout or timeout
            return await limited(arun(message, envelope, options), seconds, label, envelope)

        return within

    def _handling(self, call: Call, target: Target) -> Invocation:
        if call.is_async:
            return handle(call, target.to, limits=False)
        function, timeout = call.function, call.timeout or self._timeout

        def find(message: Any) -> Any:
            answer = function(message)
            if answer.__class__ is Promise:
                # A promise of the finder's own ends with the deadline, like any (T05).
                deadlines.add(answer, timeout)
            return answer

        return handle(attrs.evolve(call, function=find), target.to, limits=False)

    def _sending(
        self,
        targets: Sequence[Target],
        producers: Sequence[MessageProducer],
        name: str,
        message_type: type,
    ) -> Invocation:
        client = query_client(name, producers[0])
        sender = self._sender(producers, name, message_type)
        timeout = targets[0].timeout or self._timeout
        asker = Asker(sender, client, answer_type(message_type), timeout)
        return ask(asker, self._marked(targets), targets[0].to)
