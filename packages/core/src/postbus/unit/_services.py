"""Where services come from, and how often they are made."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Mapping


class Lifetime(StrEnum):
    """How often a service is made."""

    ONCE = "once"
    PER_UNIT = "per-unit"
    SHARED_IN_UNIT = "shared-in-unit"


class Services(Protocol):
    """Where handlers, plugins and sessions come from by id.

    A source may also have `provides(id)`, the class or function behind an id, so that what it is
    can be known before one is made, and `renew(id)`, which makes a `Lifetime.SHARED_IN_UNIT`
    service anew for the unit that begins and returns it.
    """

    def has(self, id_: str, /) -> bool:
        """Return whether *id* is known; makes nothing."""
        ...

    def get(self, id_: str, /) -> Any:
        """Return the service, made now where its lifetime says so."""
        ...

    def lifetime(self, id_: str, /) -> Lifetime:
        """Return how often it is made; makes nothing."""
        ...


class MappingServices:
    """Services from a mapping of id to the service itself."""

    def __init__(self, services: Mapping[str, Any]) -> None:
        self._services = services

    def has(self, id_: str, /) -> bool:
        """Return whether *id_* is a key."""
        return id_ in self._services

    def get(self, id_: str, /) -> Any:
        """Return the value as it is."""
        return self._services[id_]

    def lifetime(self, id_: str, /) -> Lifetime:
        """Return that each is made once: it is there already."""
        return Lifetime.ONCE

    def provides(self, id_: str, /) -> type[Any]:
        """Return the class of the value."""
        return cast("type[Any]", self._services[id_].__class__)


def open_service(services: Services, id_: str) -> Any:
    """Return the context manager of a unit that begins, from the service *id_*.

    One that is shared within a unit is made anew; a callable that is no context manager itself
    is called to get one.
    """
    renew = getattr(services, "renew", None)
    if renew is not None and services.lifetime(id_) is Lifetime.SHARED_IN_UNIT:
        return renew(id_)
    service = services.get(id_)
    # Asked of the class: a class of context managers is itself none, and is called for one.
    cls: type = service.__class__
    enters = hasattr(cls, "__enter__") or hasattr(cls, "__aenter__")
    return service if enters or not callable(service) else service()
