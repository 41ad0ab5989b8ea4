"""Sending a message that nobody has made an envelope for, without making one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from time import time_ns
from typing import TYPE_CHECKING, Any

from postbus.messages import new_id
from postbus.pipeline._sending import NO_HEADERS, as_transport_error
from postbus.transports import AsyncMessageProducer, WireMessage
from postbus.unit import current_unit
from postbus.wire import new_encoder

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from postbus.messages import Envelope
    from postbus.pipeline._sending import Sender

    MakeEnvelope = Callable[[Any, Envelope | None], Envelope]
    Run = Callable[..., None]
    ARun = Callable[..., Coroutine[Any, Any, None]]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def unenveloped(sender: Sender, cls: type, envelope_of: MakeEnvelope, run: Run) -> Run:
    """Return *run* with a shorter way for messages of *cls* without envelope and options.

    Such a message is written with a new identity, and *envelope_of* is asked for an envelope only
    when an error has to carry it. *sender* has one producer.
    """
    (producer,), name = sender.producers, sender.name
    encode = new_encoder(name, cls)

    def send(message: Any, envelope: Envelope | None = None, options: Any = None) -> None:
        if envelope is not None or options is not None or message.__class__ is not cls:
            run(message, envelope, options)
            return
        unit = current_unit()
        if unit is not None and unit.transactional:
            run(message)
            return
        id_, microseconds = new_id(), time_ns() // 1000
        wire = WireMessage(encode(message, id_, microseconds), NO_HEADERS, id_, name)
        try:
            producer.send(wire)
        except Exception as error:
            envelope = _identified(envelope_of(message, None), id_, microseconds)
            made = as_transport_error(error, envelope)
            if made is error:
                raise
            raise made from error

    return send


def aunenveloped(sender: Sender, cls: type, envelope_of: MakeEnvelope, arun: ARun) -> ARun:
    """Return *arun* with the same shorter way, where the producer has asyncio calls."""
    (producer,), name = sender.producers, sender.name
    if not isinstance(producer, AsyncMessageProducer):
        return arun
    asend, encode = producer.asend, new_encoder(name, cls)

    async def send(message: Any, envelope: Envelope | None = None, options: Any = None) -> None:
        if envelope is not None or options is not None or message.__class__ is not cls:
            await arun(message, envelope, options)
            return
        unit = current_unit()
        if unit is not None and unit.transactional:
            await arun(message)
            return
        id_, microseconds = new_id(), time_ns() // 1000
        wire = WireMessage(encode(message, id_, microseconds), NO_HEADERS, id_, name)
        try:
            await asend(wire)
        except Exception as error:
            envelope = _identified(envelope_of(message, None), id_, microseconds)
            made = as_transport_error(error, envelope)
            if made is error:
                raise
            raise made from error

    return send


def _identified(envelope: Envelope, id_: str, microseconds: int) -> Envelope:
    """Return *envelope* with the identity that its message was sent with."""
    return envelope.evolve(id=id_, created_at=_EPOCH + timedelta(microseconds=microseconds))
