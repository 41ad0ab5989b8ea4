"""What a message class says about itself: kind, name, version."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, ClassVar, Generic, TypeVar

import attrs

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
