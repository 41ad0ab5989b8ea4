"""The envelope: a message with what stays the same wherever it is handled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from time import time_ns
from types import MappingProxyType
from typing import Any

from postbus.errors import DecodeError
from postbus.messages._ids import new_id, parse_id
from postbus.messages._kinds import MessageKind, message_info
from postbus.messages._metadata import check_metadata

Received = tuple[Any, Callable[[Any], Any], Callable[[Any], bytes]]
NOT_LOADED: Any = object()
_new = object.__new__


class Envelope:
    """A message with its identity: what stays the same however often and wherever it is handled.

    Immutable. Made by `dispatch` when somebody first asks for it, or by hand to keep an
    identity: `bus.dispatch(envelope)` dispatches the same message again.

    Args:
        message: the message itself.
        name: its name (default: what its class declares).
        kind: its kind (default: what its class declares; None where it declares none).
        id: a UUID as text (default: a new one).
        created_at: an aware time (default: now).
        metadata: the user's own facts, a flat map of scalars.
        headers: postbus' own facts; unknown ones are kept and passed on.
        received_from: where a worker got it from. Information only: nothing branches on it.

    Raises:
        MetadataError: *metadata* is not a flat map of scalars.
        ValueError: *id* is no UUID, or *created_at* has no offset.
    """

    __slots__ = (
        "_created_at",
        "_headers",
        "_id",
        "_kind",
        "_message",
        "_metadata",
        "_name",
        "_received",
        "_received_from",
    )

    def __init__(
        self,
        message: Any,
        *,
        name: str | None = None,
        kind: MessageKind | None = None,
        id: str | None = None,
        created_at: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
        headers: Mapping[str, Any] | None = None,
        received_from: str | None = None,
    ) -> None:
        if name is None or kind is None:
            info = message_info(message.__class__)
            if name is None:
                name = message if isinstance(message, str) else info.name
            if kind is None:
                kind = info.kind
        self._message = message
        self._name = name
        self._kind = kind
        if id is None:
            self._id = new_id()
        else:
            self._id = parse_id(id)
        # Microseconds since the epoch, of which a time is made when somebody asks for one.
        self._created_at: int | datetime = (
            time_ns() // 1000 if created_at is None else _aware(created_at)
        )
        self._metadata = check_metadata(metadata) if metadata else {}
        self._headers = dict(headers) if headers else {}
        self._received_from = received_from
        self._received: Received | None = None

    @classmethod
    def lazy(
        cls,
        received: Received,
        name: str,
        kind: MessageKind | None,
        id: str,
        created_at: datetime,
        metadata: dict[str, Any],
        headers: dict[str, Any],
    ) -> Envelope:
        """Return an envelope whose message is made when first asked for.

        *received* is what it is made of, what makes it of that, and what makes the JSON of the
        payload of that. For decoders, which have checked every other field: nothing is checked
        again here.
        """
        self = _new(cls)
        self._message = NOT_LOADED
        self._received = received
        self._name = name
        self._kind = kind
        self._id = id
        self._created_at = created_at
        self._metadata = metadata
        self._headers = headers
        self._received_from = None
        return self

    @property
    def message(self) -> Any:
        """The message; on a received one made from the payload on first access.

        Raises:
            DecodeError: the payload does not fit the class; each access raises it again.
        """
        message = self._message
        if message is NOT_LOADED:
            assert self._received is not None  # noqa: S101  lazy() sets both
            source, load, _ = self._received
            message = self._message = load(source)
        return message

    @property
    def name(self) -> str:
        """The name on the wire and in routes."""
        return self._name

    @property
    def kind(self) -> MessageKind | None:
        """Command, event or query; None for an object that declares nothing."""
        return self._kind

    @property
    def id(self) -> str:
        """A UUID as lower-case text; the same on every hop and every attempt."""
        return self._id

    @property
    def created_at(self) -> datetime:
        """When the message was made, aware."""
        made = self._created_at
        if not isinstance(made, datetime):
            # Exact: a double holds the microseconds of today's seconds.
            made = self._created_at = datetime.fromtimestamp(made / 1_000_000, UTC)
        elif made.tzinfo is None:
            # As a decoder leaves it: the wire's times are UTC and say no offset.
            made = self._created_at = made.replace(tzinfo=UTC)
        return made

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The user's own facts, read-only."""
        return MappingProxyType(self._metadata)

    @property
    def headers(self) -> Mapping[str, Any]:
        """Postbus' own facts: correlation_id, attempt, deadline, … Read-only."""
        return MappingProxyType(self._headers)

    @property
    def received_from(self) -> str | None:
        """The consumer a worker got it from. Information only."""
        return self._received_from

    @property
    def payload(self) -> bytes | None:
        """The JSON of the payload as it came, or None where the message was made here."""
        if self._received is None:
            return None
        source, _, payload_of = self._received
        return payload_of(source)

    def received_by(self, source: str) -> Envelope:
        """Return it as received from *source*, for `bus.receive`.

        One that a decoder has made is complete only now, and is itself marked; any other is
        copied.
        """
        if self._received_from is None and self._received is not None:
            self._received_from = source
            return self
        return self if self._received_from == source else self.evolve(received_from=source)

    def evolve(self, **changes: Any) -> Envelope:
        """Return a copy with the named fields changed; *metadata* and *headers* are replaced.

        A new *message* drops the received payload.

        Raises:
            MetadataError: as on construction.
            ValueError: as on construction.
            TypeError: a field that does not exist.
        """
        slots = {slot: getattr(self, slot) for slot in Envelope.__slots__}
        for field, value in changes.items():
            if field not in _CHANGES:
                msg = f"an Envelope has no field {field!r} to change"
                raise TypeError(msg)
            check = _CHANGES[field]
            slots[f"_{field}"] = value if check is None else check(value)
        if "message" in changes:
            slots["_received"] = None
        new = Envelope.__new__(Envelope)
        for slot, value in slots.items():
            setattr(new, slot, value)
        return new

    def __eq__(self, other: object) -> bool:
        """Two envelopes are equal when every field is, the message included."""
        if not isinstance(other, Envelope):
            return NotImplemented
        return self._fields() == other._fields()

    def __hash__(self) -> int:
        """Hash by the id, which never changes."""
        return hash(self._id)

    def __repr__(self) -> str:
        """Name, kind and id: never the payload, which may hold secrets."""
        return f"<Envelope {self._name} {self._kind or 'message'} {self._id}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with the message made; one that cannot be made stays as it came."""
        try:
            return _unpickle, self._fields()
        except DecodeError as error:
            return _unpickle_unread, (error, self.payload, *self._identity())

    def _fields(self) -> tuple[Any, ...]:
        return (self.message, *self._identity())

    def _identity(self) -> tuple[Any, ...]:
        return (
            self._name,
            self._kind,
            self.id,
            self.created_at,
            self._metadata,
            self._headers,
            self._received_from,
        )


def _aware(moment: datetime) -> datetime:
    if moment.utcoffset() is None:
        msg = f"created_at must be an aware time, got {moment!r} without an offset"
        raise ValueError(msg)
    return moment


_CHANGES: dict[str, Callable[[Any], Any] | None] = {
    "message": None,
    "name": None,
    "kind": None,
    "id": parse_id,
    "created_at": _aware,
    "metadata": check_metadata,
    "headers": dict,
    "received_from": None,
}


def _unpickle(message: Any, *identity: Any) -> Envelope:
    *fields, received_from = identity
    return Envelope(message, received_from=received_from, **_named(fields))


def _unpickle_unread(error: DecodeError, payload: bytes, *identity: Any) -> Envelope:
    *fields, received_from = identity
    received = payload, partial(_raise_again, error), bytes
    envelope = Envelope.lazy(received, **_named(fields))
    return envelope.evolve(received_from=received_from)


def _raise_again(error: DecodeError, _: bytes) -> Any:
    raise error


def _named(fields: Iterable[Any]) -> dict[str, Any]:
    names = ("name", "kind", "id", "created_at", "metadata", "headers")
    return dict(zip(names, fields, strict=True))
