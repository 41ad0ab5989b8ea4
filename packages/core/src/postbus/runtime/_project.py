"""What one configuration amounts to, for whoever describes or judges it: data, nothing running."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from postbus.messages import MessageKind
from postbus.pipeline import label_of
from postbus.runtime._checks import MAIN_BUSES, bus_sections
from postbus.runtime._services import PRODUCERS
from postbus.transports import MessageProducer

if TYPE_CHECKING:
    from postbus.catalog import MessageCatalog
    from postbus.pipeline import Router, Target
    from postbus.runtime._sections import Prepared
    from postbus.runtime._services import Wiring
    from postbus.settings import BusSettings, ConsumerSection, PostbusSettings, ProducerSection
    from postbus.transports import Capabilities

__all__ = ["Project", "Way", "guarantee_of"]


@attrs.frozen(kw_only=True)
class Way:
    """Where one bus takes the messages of one name.

    *handlers* are the labels of what handles them, here or where they are received. *producers*
    are the names of those they are sent to first; empty means that they are handled at once.
    *guarantee* is that of the weakest producer, None where nothing is sent.
    """

    bus: str
    kind: MessageKind
    name: str
    handlers: tuple[str, ...] = ()
    producers: tuple[str, ...] = ()
    guarantee: str | None = None


@attrs.frozen(kw_only=True)
class Project:
    """The settings of a `Postbus`, with what they were resolved to. Any thread; makes no service.

    *routers* are those of the buses, by the names of the buses.
    """

    settings: PostbusSettings
    catalog: MessageCatalog
    wiring: Wiring
    producers: Mapping[str, MessageProducer]
    consumers: Mapping[str, Prepared[ConsumerSection]]
    routers: Mapping[str, Router]

    @property
    def buses(self) -> dict[str, BusSettings]:
        """The section of every bus, by the name of the bus."""
        return bus_sections(self.settings)

    def names(self, kind: MessageKind) -> Iterator[tuple[str, type]]:
        """Yield the name and class of every known message of *kind*."""
        for entry in self.catalog:
            if entry.kind is kind:
                yield entry.name, entry.cls

    def capabilities(self, consumer: str) -> Capabilities:
        """Return what the consumer called *consumer* can do as it is configured."""
        prepared = self.consumers[consumer]
        return prepared.transport.capabilities(prepared.settings, prepared.common)

    def known(self, to: Any) -> Any:
        """Return the object behind the target *to*, else its class, else None; makes nothing."""
        if not isinstance(to, str):
            return to
        return self.wiring.known(to) if self.wiring.has(to) else None

    def ways(self) -> Iterator[Way]:
        """Yield where every known message goes, on every bus of its kind that routes it.

        Raises:
            RoutingError: a route that was added in code contradicts another.
        """
        for bus, section in self.buses.items():
            kind, router = type(section).kind, self.routers[bus]
            for name, cls in self.names(kind):
                handlers, sends = router.handlers(name), router.sends(name, cls)
                if not (handlers or sends or bus in MAIN_BUSES):
                    continue
                yield Way(
                    bus=bus,
                    kind=kind,
                    name=name,
                    handlers=tuple(label_of(each.to) for each in handlers),
                    producers=tuple(self.producer_name(each) for each in sends),
                    guarantee=self._weakest(sends),
                )

    def producer_name(self, target: Target) -> str:
        """Return what to call the producer that *target* is."""
        to = target.to
        if isinstance(to, str):
            return to.removeprefix(PRODUCERS)
        names = (name for name, producer in self.producers.items() if producer is to)
        return next(names, label_of(to))

    def _weakest(self, sends: tuple[Target, ...] | Any) -> str | None:
        found = {self._guarantee(self.known(each.to)) for each in sends}
        return min(found, key=_STRENGTH.index) if found else None

    def _guarantee(self, producer: Any) -> str:
        if not isinstance(producer, MessageProducer):
            return _UNKNOWN
        named = (name for name, known in self.producers.items() if known is producer)
        section = self.settings.producers.get(next(named, ""))
        return guarantee_of(section, producer.capabilities)


_UNKNOWN = "unknown"
# The weakest first.
_STRENGTH = (_UNKNOWN, "at-most-once", "at-least-once")


def guarantee_of(
    section: ProducerSection | ConsumerSection | None, capabilities: Capabilities
) -> str:
    """Return what a section demands, else what its transport gives as it is configured."""
    if section is not None and section.guarantee is not None:
        return section.guarantee
    comes_back = capabilities.acknowledge and capabilities.redeliver_on_crash
    return "at-least-once" if comes_back else "at-most-once"
