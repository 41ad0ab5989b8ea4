"""The failpoints of a worker: put around what it uses, and only where one is armed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from postbus.transports import Delivery, MessageConsumer, Reply, WireMessage
from postbus.unit import reach

if TYPE_CHECKING:
    from postbus.messages import MessageKind
    from postbus.promises import Promise
    from postbus.worker._consumption import ConsumerRun, ReceivingBus

__all__ = ["pointed_buses", "pointed_decode", "pointed_run"]

T = TypeVar("T")


def pointed_run(run: ConsumerRun) -> ConsumerRun:
    """Return *run* with failpoints around settling and storing."""
    failures, schedule = run.failure_store, run.schedule
    return attrs.evolve(
        run,
        consumer=_Consumer(run.consumer),
        failure_store=None if failures is None else _Store(failures),
        schedule=None if schedule is None else _Store(schedule),
    )


def pointed_buses(buses: Mapping[MessageKind, ReceivingBus]) -> dict[MessageKind, ReceivingBus]:
    """Return *buses* with failpoints around handling."""
    return {kind: _Bus(bus) for kind, bus in buses.items()}


def pointed_decode(decode: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """Return *decode* with failpoints around it."""

    def pointed(body: bytes) -> T:
        reach("received")
        envelope = decode(body)
        reach("decoded")
        return envelope

    return pointed


class _Bus:
    def __init__(self, inner: ReceivingBus) -> None:
        self._inner = inner

    async def areceive(self, *arguments: Any, **options: Any) -> Any:
        reach("before handler")
        result = await self._inner.areceive(*arguments, **options)
        reach("after handler")
        return result


class _Store:
    """A store whose `put_many` has a failpoint behind it, for each message."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def put_many(self, kept: Sequence[Any]) -> None:
        self._inner.put_many(kept)
        for _ in kept:
            reach("stored")


class _Consumer(MessageConsumer):
    def __init__(self, inner: MessageConsumer) -> None:
        self._inner = inner
        self.capabilities = inner.capabilities

    async def receive(self, max_messages: int) -> Sequence[Delivery]:
        return [_Delivery(each) for each in await self._inner.receive(max_messages)]

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Delivery(Delivery):
    __slots__ = ("_inner",)

    def __init__(self, inner: Delivery) -> None:
        super().__init__(inner.body, inner.headers, inner.source, redelivered=inner.redelivered)
        self._inner = inner

    def ack(self) -> None:
        reach("before ack")
        self._inner.ack()
        reach("after ack")

    def nack(self) -> None:
        self._inner.nack()

    def retry(self, message: WireMessage) -> None:
        self._inner.retry(message)

    def reply(self, reply: Reply) -> None:
        self._inner.reply(reply)

    def extend(self, seconds: float) -> None:
        self._inner.extend(seconds)

    def settled(self) -> Promise[None]:
        return self._inner.settled()

    @property
    def can_reply(self) -> bool:
        return self._inner.can_reply

    @property
    def is_awaited(self) -> bool:
        return self._inner.is_awaited

    @property
    def lost(self) -> bool:
        return self._inner.lost
