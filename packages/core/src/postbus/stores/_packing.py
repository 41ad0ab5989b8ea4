"""Messages as bytes that only stores read."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from postbus.stores._records import PendingSend
from postbus.transports import WireMessage

__all__ = ["pack_message", "pack_sends", "unpack_message", "unpack_sends"]


class _Packed(msgspec.Struct, array_like=True):
    """The fields of a `WireMessage`; more may be added at the end."""

    body: bytes
    headers: dict[str, str]
    id: str
    name: str
    key: str | None = None
    priority: int | None = None
    expires_at: datetime | None = None
    delay: float | None = None
    producer: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Packed).decode
_decode_many = msgspec.msgpack.Decoder(list[_Packed]).decode


def _packed(message: WireMessage, producer: str = "") -> _Packed:
    return _Packed(
        message.body,
        dict(message.headers),
        message.id,
        message.name,
        message.key,
        message.priority,
        message.expires_at,
        message.delay,
        producer,
    )


def _unpacked(packed: _Packed) -> WireMessage:
    return WireMessage(
        packed.body,
        packed.headers,
        packed.id,
        packed.name,
        packed.key,
        packed.priority,
        packed.expires_at,
        packed.delay,
    )


def pack_message(message: WireMessage) -> bytes:
    """Return *message* as bytes."""
    return _encode(_packed(message))


def unpack_message(data: bytes) -> WireMessage:
    """Return what `pack_message` wrote."""
    return _unpacked(_decode(data))


def pack_sends(sends: Sequence[PendingSend]) -> bytes | None:
    """Return *sends* as bytes, None for none."""
    if not sends:
        return None
    return _encode([_packed(each.message, each.producer) for each in sends])


def unpack_sends(data: bytes | None) -> tuple[PendingSend, ...]:
    """Return what `pack_sends` wrote."""
    if data is None:
        return ()
    return tuple(PendingSend(each.producer, _unpacked(each)) for each in _decode_many(data))
