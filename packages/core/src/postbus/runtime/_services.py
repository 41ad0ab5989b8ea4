"""Where the ids of a configuration lead: to producers, and to the application's services."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from postbus.errors import ConfigurationError, Problem, RoutingError
from postbus.unit import Lifetime, MappingServices

if TYPE_CHECKING:
    from postbus.transports import MessageProducer
    from postbus.unit import Services

PRODUCERS = "producers."


class MappedServices(MappingServices):
    """Services from a mapping, which can also say what there is."""

    def __init__(self, services: Mapping[str, Any]) -> None:
        super().__init__(services)
        self._mapping = services

    def ids(self) -> Iterable[str]:
        """Return the keys."""
        return self._mapping.keys()


def as_services(source: Services | Mapping[str, Any] | None) -> Services:
    """Return *source* as services.

    Raises:
        ConfigurationError: it is nothing that ids can be looked up in.
    """
    if source is None or isinstance(source, Mapping):
        return MappedServices({} if source is None else source)
    if all(callable(getattr(source, name, None)) for name in ("has", "get", "lifetime")):
        return source
    expected = "expected a mapping, or an object with has, get and lifetime"
    advice = "wrap a container in postbus.containers.ContainerServices"
    raise ConfigurationError([Problem("services", type(source).__name__, expected, advice)])


class Wiring:
    """The ids that routes may name: `producers.NAME`, and whatever *services* has.

    *broken* are the names of producers that are configured and could not be made: naming one is
    no mistake of its own.
    """

    def __init__(
        self,
        producers: Mapping[str, MessageProducer],
        services: Services,
        broken: frozenset[str] = frozenset(),
    ) -> None:
        self._producers = producers
        self._services = services
        self._broken = broken

    def only_producers(self) -> Wiring:
        """Return the same without the services."""
        return Wiring(self._producers, MappingServices({}), self._broken)

    def has(self, id_: str, /) -> bool:
        """Return whether anything answers to *id_*; makes nothing."""
        if id_.startswith(PRODUCERS):
            name = id_.removeprefix(PRODUCERS)
            return name in self._producers or name in self._broken
        return self._services.has(id_)

    def get(self, id_: str, /) -> Any:
        """Return the producer or service."""
        if id_.startswith(PRODUCERS):
            return self._producers[id_.removeprefix(PRODUCERS)]
        return self._services.get(id_)

    def lifetime(self, id_: str, /) -> Lifetime:
        """Return how often it is made; producers are there already."""
        if id_.startswith(PRODUCERS):
            return Lifetime.ONCE
        return self._services.lifetime(id_)

    def provides(self, id_: str, /) -> Any:
        """Return the class or function that makes *id_*, None where that is not known."""
        if id_.startswith(PRODUCERS):
            return type(self._producers[id_.removeprefix(PRODUCERS)])
        provides = getattr(self._services, "provides", None)
        return None if provides is None else provides(id_)

    def known(self, id_: str) -> Any:
        """Return the object behind *id_*, else its class, else None; makes nothing."""
        if id_.startswith(PRODUCERS):
            return self._producers.get(id_.removeprefix(PRODUCERS))
        if isinstance(self._services, MappingServices):
            return self._services.get(id_)
        made_by = self.provides(id_)
        return made_by if isinstance(made_by, type) else None

    def ids(self) -> Iterable[str]:
        """Return the ids that can be listed, to find the nearest one to a typo."""
        own = [f"{PRODUCERS}{name}" for name in self._producers]
        listed = getattr(self._services, "ids", None)
        return [*own, *(listed() if listed is not None else ())]

    def open_unit(self, id_: str) -> Any:
        """Return the context manager of a unit of work that begins.

        A service that is shared within a unit is made anew; a callable that is no context
        manager itself is called to get one.

        Raises:
            RoutingError: that gives no context manager.
        """
        renew = getattr(self._services, "renew", None)
        if renew is not None and self.lifetime(id_) is Lifetime.SHARED_IN_UNIT:
            found = renew(id_)
        else:
            found = self.get(id_)
        if not _is_entered(found) and callable(found):
            found = found()
        if not _is_entered(found):
            kind = type(found).__name__
            msg = f"unit_of_work {id_!r} gave a {kind}: it must give a context manager"
            raise RoutingError(msg)
        return found


def _is_entered(value: object) -> bool:
    """Tell whether `with` or `async with` takes *value*; both ask its class."""
    return hasattr(type(value), "__enter__") or hasattr(type(value), "__aenter__")
