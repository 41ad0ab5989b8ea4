"""One decoder for the bodies of a catalogue, which reads each in one pass.

msgspec tells by the name in a body what its payload is. Where the class is simple enough that is
read with the rest, and kept as msgspec left it until the message is asked for; else it is cut out
and left for later, as the usual way does. What is refused here takes the usual way, which says
what is wrong or knows better: nothing is accepted that would be refused there.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache
from threading import RLock
from typing import TYPE_CHECKING, Annotated, Any, Union

import msgspec
from msgspec.structs import astuple

from postbus.wire._mirrors import Mirror
from postbus.wire._plain import READ_PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from postbus.catalog import CatalogEntry

    Belongings = tuple[CatalogEntry, Callable[[Any], Any], Callable[[Any], bytes]]
    """The entry, what makes the message of what was read, and what makes JSON of that."""
    Known = tuple[Callable[[bytes], Any], dict[type, Belongings]]

# Two threads would make two Structs for one name, of which no decoder takes both.
_adding = RLock()
_NOTHING = Annotated[list[int], msgspec.Meta(max_length=0)]


class _Nameless(msgspec.Struct, tag_field="message_name", tag=""):
    """What no message is. With one Struct alone to choose from msgspec needs no name."""


class _Cut(msgspec.Struct):
    payload: msgspec.Raw


_cut = msgspec.json.Decoder(_Cut).decode


def _payload_of(source: tuple[bytes, Any]) -> bytes:
    return bytes(_cut(source[0]).payload)


class Direct:
    """The messages of a catalogue that have come so far, for one way with unknown fields.

    *known* is what makes a Struct of a body, and by the class of that Struct what belongs to it.
    The former raises anything for what the usual way has to look at.
    """

    __slots__ = ("ignores_unknown", "known")

    def __init__(self, *, ignore_unknown: bool) -> None:
        self.ignores_unknown = ignore_unknown
        self.known: Known = msgspec.json.Decoder(_Nameless).decode, {}

    def add(self, name: str, entry: CatalogEntry, load: Callable[[bytes], Any]) -> None:
        """Know bodies that say *name* from now on. Any thread, while others decode.

        *load* makes the message of a payload that was cut out, or says why it cannot.
        """
        with _adding:
            self._add(name, entry, load)

    def _add(self, name: str, entry: CatalogEntry, load: Callable[[bytes], Any]) -> None:
        cls = entry.cls
        whole, mirror = _whole(cls, name, ignore_unknown=self.ignores_unknown)
        if whole in self.known[1]:
            return
        belongings: Belongings = entry, load, bytes
        if mirror is not None:
            build, is_flat = mirror.build, mirror.is_flat

            def make(source: tuple[bytes, Any]) -> Any:
                try:
                    # build(), written out for the most common classes.
                    return cls(*astuple(source[1])) if is_flat else build(source[1])
                except Exception:  # noqa: BLE001  whatever it was, the usual way says what
                    return load(_payload_of(source))

            belongings = entry, make, _payload_of
        known = {**self.known[1], whole: belongings}
        self.known = msgspec.json.Decoder(Union[_Nameless, *known]).decode, known


@cache
def _whole(cls: type, name: str, *, ignore_unknown: bool) -> tuple[Any, Mirror | None]:
    """Return the Struct for a body that says *name*, and the mirror of *cls* that it holds.

    It is as deep as its types, no deeper. There is None where the payload is cut out.
    """
    try:
        mirror = Mirror(cls, ignore_unknown=ignore_unknown, plain=READ_PLAIN)
        whole = _body_struct(name, mirror.struct, ignore_unknown=ignore_unknown)
        msgspec.json.Decoder(whole)
    except Exception:  # noqa: BLE001  whatever is odd about the class, the usual way says it
        return _body_struct(name, msgspec.Raw, ignore_unknown=ignore_unknown), None
    return whole, mirror


def _body_struct(name: str, payload: Any, *, ignore_unknown: bool) -> Any:
    return msgspec.defstruct(
        "Whole",
        [
            ("uuid", str),
            ("payload", payload),
            ("metadata", dict[str, str | bool | int | float] | _NOTHING),
            ("created_at", datetime),
            ("headers", dict[str, READ_PLAIN] | msgspec.UnsetType, msgspec.UNSET),
        ],
        tag_field="message_name",
        tag=name,
        forbid_unknown_fields=not ignore_unknown,
        gc=False,  # It does not outlive its reading.
    )
