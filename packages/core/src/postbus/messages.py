"""Commands, events and queries, and the envelope that gives one of them an identity.

Any object can be dispatched in process. The base classes here add what the wire needs: a name
that survives a rename, a kind, a version. They carry no data and no behaviour.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from math import isfinite
from time import time_ns
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import attrs

from postbus.errors import DecodeError, MetadataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = [
    "AsyncMessage",
    "Command",
    "Envelope",
    "Event",
    "MessageInfo",
    "MessageKind",
    "Query",
    "check_metadata",
    "is_canonical_id",
    "message_info",
    "new_id",
    "parse_id",
]

R_co = TypeVar("R_co", covariant=True)


class MessageKind(StrEnum):
    """What a message is for: it decides which bus dispatches it and how many may handle it."""

    COMMAND = "command"
    EVENT = "event"
    QUERY = "query"


@attrs.frozen
class MessageInfo:
    """What a class declares about itself: its wire name, ordering key, version and old names."""

    name: str
    kind: MessageKind | None = None
    key: str | None = None
    version: int = 1
    aliases: tuple[str, ...] = ()


def _default_name(cls: type) -> str:
    module, name = cls.__module__, cls.__qualname__
    return name if module == "builtins" else f"{module}.{name}"


class _Declared:
    """Shared by the three base classes: keeps what the class statement says."""

    __slots__ = ()
    _postbus_kind: ClassVar[MessageKind]
    _postbus_info: ClassVar[MessageInfo]

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        key: str | None = None,
        version: int | None = None,
        aliases: Sequence[str] = (),
        **keywords: Any,
    ) -> None:
        super().__init_subclass__(**keywords)
        if isinstance(aliases, str):
            msg = (
                f"aliases of {cls.__qualname__} must be a list of names, got the text {aliases!r}"
            )
            raise TypeError(msg)
        given = name is not None or key is not None or version is not None or bool(aliases)
        # attrs builds a slotted class anew from the body's dict and passes no keywords then:
        # what the first run left there stands.
        if "_postbus_info" in cls.__dict__ and not given:
            return
        # Every subclass passes here, so none ever sees what its parent declared.
        cls._postbus_info = MessageInfo(
            name or _default_name(cls),
            cls._postbus_kind,
            key,
            1 if version is None else version,
            tuple(aliases),
        )


class Command(_Declared):
    """Something to be done, by exactly one handler.

    Keywords of the class statement, all optional: *name* on the wire (default
    `module.QualName`), *key* (the field that orders messages), *version* of the payload,
    *aliases* (names it had before).
    """

    __slots__ = ()
    _postbus_kind = MessageKind.COMMAND


class Event(_Declared):
    """Something that happened, for any number of listeners. Keywords as for `Command`."""

    __slots__ = ()
    _postbus_kind = MessageKind.EVENT


class Query(_Declared, Generic[R_co]):
    """A question with one answer of type R. Keywords as for `Command`."""

    __slots__ = ()
    _postbus_kind = MessageKind.QUERY


class AsyncMessage:
    """A marker: `async_switch` sends messages of these classes to its producer."""

    __slots__ = ()


def message_info(cls: type) -> MessageInfo:
    """Return what *cls* declares; a class that declares nothing has its dotted path as name."""
    info = getattr(cls, "_postbus_info", None)
    return info if type(info) is MessageInfo else MessageInfo(_default_name(cls))


_POOL_BYTES = 4096
_pool: list[str] = []
# After a fork both processes would hand out the same ids: the child starts with an empty pool.
os.register_at_fork(after_in_child=_pool.clear)
_VARIANTS = bytes(b & 0x3F | 0x80 for b in range(256))
_VERSIONS = bytes(b & 0x0F | 0x40 for b in range(256))
is_canonical_id: Callable[[str], object] = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
).fullmatch
# uuid.UUID() alone would also take underscores, blanks and digits of other scripts.
_SPELLED_ID = re.compile(
    r"(?:urn:uuid:)?(\{)?([0-9a-f]{8})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{4})-?"
    r"([0-9a-f]{12})(?(1)\})",
    re.ASCII | re.IGNORECASE,
).fullmatch


# Where each of the 32 digits stands in the text of an id, which ends with a blank here.
_DASHES_BEFORE = (8, 12, 16, 20)
_PLACES = [i + sum(i >= dash for dash in _DASHES_BEFORE) for i in range(32)]
_TEXT_LENGTH = 37


def new_id() -> str:
    """Return a random UUID as text (version 4 layout, RFC 9562), safe from any thread."""
    while True:
        try:
            return _pool.pop()
        except IndexError:
            _refill()


def _refill() -> None:
    """Make 256 ids at once: a digit of all of them at a time, so that each costs little."""
    noise = bytearray(os.urandom(_POOL_BYTES))
    noise[6::16] = noise[6::16].translate(_VERSIONS)
    noise[8::16] = noise[8::16].translate(_VARIANTS)
    digits = noise.hex().encode()
    text = bytearray(b"-" * (_TEXT_LENGTH - 1) + b" ") * (_POOL_BYTES // 16)
    for index, place in enumerate(_PLACES):
        text[place::_TEXT_LENGTH] = digits[index::32]
    _pool.extend(text.decode().split())


def parse_id(text: str) -> str:
    """Return *text*, any spelling of a UUID, in lower-case canonical form.

    Raises:
        ValueError: it is no UUID.
    """
    if is_canonical_id(text):
        return text
    spelled = _SPELLED_ID(text)
    if spelled is None:
        msg = f"expected a UUID as text, got {text[:64]!r}"
        raise ValueError(msg)
    return "-".join(spelled.groups()[1:]).lower()


# What every reader of JSON in use keeps exact as an integer.
_SMALLEST_INT, _LARGEST_INT = -(2**63), 2**64 - 1


def check_metadata(metadata: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a copy of *metadata*, after making sure that it can cross the wire.

    Raises:
        MetadataError: a key is no text or empty, or a value is not str, int, bool or a finite
            float.
    """
    checked: dict[str, Any] = {}
    for key, value in metadata.items():
        if not isinstance(key, str) or not key:
            raise MetadataError(f"metadata keys are non-empty text, got {key!r}")
        checked[_text(key, key)] = _scalar(key, value)
    return checked


def _scalar(key: str, value: Any) -> Any:
    """Return *value* as exactly one of the types JSON has, subclasses reduced to them.

    Raises:
        MetadataError: it is something else.
    """
    if isinstance(value, str):
        return _text(key, value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and _SMALLEST_INT <= value <= _LARGEST_INT:
        return int.__int__(value)
    if isinstance(value, float) and isfinite(value):
        return float.__float__(value)
    shown = repr(value) if isinstance(value, int | float) else type(value).__name__
    msg = (
        f"metadata[{key!r}] must be text, a bool, an int of 64 bits or a finite float, "
        f"got {shown[:64]}"
    )
    raise MetadataError(msg)


def _text(key: str, text: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            msg = f"metadata[{key!a}] holds half a surrogate pair, which UTF-8 cannot write"
            raise MetadataError(msg) from None
    return str.__str__(text)


_NOT_LOADED: Any = object()


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
        self._received: tuple[bytes, Callable[[bytes], Any]] | None = None

    @classmethod
    def lazy(
        cls,
        payload: bytes,
        load: Callable[[bytes], Any],
        name: str,
        kind: MessageKind | None,
        id: str,
        created_at: datetime,
        metadata: dict[str, Any],
        headers: dict[str, Any],
    ) -> Envelope:
        """Return an envelope whose message is made by *load* when first asked for.

        For decoders, which have checked every other field: nothing is checked again here.
        """
        self = cls.__new__(cls)
        self._message = _NOT_LOADED
        self._received = payload, load
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
        if message is _NOT_LOADED:
            assert self._received is not None  # noqa: S101  lazy() sets both
            payload, load = self._received
            message = self._message = load(payload)
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
        return self._received[0] if self._received is not None else None

    def received_by(self, source: str) -> Envelope:
        """Return it as received from *source*, for `bus.receive`.

        One that a decoder has made is complete only now, and is itself marked; any other is
        copied.
        """
        if self._received_from is None and self._received is not None:
            self._received_from = source
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
    envelope = Envelope.lazy(payload, partial(_raise_again, error), **_named(fields))
    return envelope.evolve(received_from=received_from)


def _raise_again(error: DecodeError, _: bytes) -> Any:
    raise error


def _named(fields: Iterable[Any]) -> dict[str, Any]:
    names = ("name", "kind", "id", "created_at", "metadata", "headers")
    return dict(zip(names, fields, strict=True))
