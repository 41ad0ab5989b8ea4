"""From a message to its name, its kind and its envelope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from postbus.errors import RoutingError
from postbus.messages import Envelope, MessageKind, message_info

if TYPE_CHECKING:
    from postbus.catalog import MessageCatalog


@attrs.frozen
class Naming:
    """What a bus of *kind* calls the messages it is given."""

    kind: MessageKind
    catalog: MessageCatalog | None

    def name_and_kind(self, message: Any) -> tuple[str, MessageKind]:
        """Return both: a text is its own name, an object's own comes before its class (B04)."""
        if isinstance(message, str):
            return message, self.kind
        cls = message.__class__
        info = message_info(cls)
        if info.kind is None:
            own = getattr(message, "message_name", None)
            if isinstance(own, str) and own:
                return own, self.kind
        entry = self.catalog.entry(cls) if self.catalog is not None else None
        if entry is not None:
            return entry.name, entry.kind
        return info.name, info.kind or self.kind

    def detect(self, message: Any) -> str:
        """Return the name of *message*."""
        return self.name_and_kind(message)[0]

    def is_of_its_class(self, message: Any) -> bool:
        """Return whether every message of this class has the same name."""
        if isinstance(message, str):
            return False
        return message_info(message.__class__).kind is not None or not hasattr(
            message, "message_name"
        )

    def name_of(self, cls: type) -> str | None:
        """Return the name of every message of *cls*, None where each may have its own."""
        info = message_info(cls)
        if info.kind is None:
            return None
        entry = self.catalog.entry(cls) if self.catalog is not None else None
        return info.name if entry is None else entry.name

    def make_envelope(self, message: Any, name: str = "") -> Envelope:
        """Return a new identity for *message*, called *name* where that is given."""
        detected, kind = self.name_and_kind(message)
        return Envelope(message, name=name or detected, kind=kind)

    def envelope_of(self, message: Any, envelope: Envelope | None) -> Envelope:
        """Return *envelope*, or a new one."""
        return self.make_envelope(message) if envelope is None else envelope

    def ordering_key(self, name: str, cls: type) -> str | None:
        """Return the field that orders the messages of *cls* on the wire.

        Raises:
            RoutingError: they are of another kind, and would be received by another bus.
        """
        entry = self.catalog.entry(cls) if self.catalog is not None else None
        facts = message_info(cls) if entry is None else entry
        if facts.kind is not None and facts.kind is not self.kind:
            msg = (
                f"{name} is a {facts.kind} and would be received as one, but it is sent through "
                f"a {self.kind} bus: dispatch it on the {facts.kind} bus"
            )
            raise RoutingError(msg)
        return facts.key
