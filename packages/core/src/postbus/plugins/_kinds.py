"""Plugins that belong to one kind of bus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from postbus.errors import RoutingError

if TYPE_CHECKING:
    from postbus.messages import MessageKind


def refuse_other_kinds(plugin: object, bus: Any, kind: MessageKind, advice: str) -> None:
    """Raise where *bus* is not one of *kind*.

    Raises:
        RoutingError: it is another; *advice* says what to do instead.
    """
    if bus.kind is not kind:
        name = type(plugin).__name__
        raise RoutingError(f"{name} is for a {kind} bus, and this is a {bus.kind} bus: {advice}")
