"""From the sections of producers and consumers to what their transports make of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import attrs

from postbus.discovery import find_transport
from postbus.errors import ConfigurationError, PostbusError, Problem
from postbus.settings import (
    RESERVED_CONSUMER_KEYS,
    RESERVED_PRODUCER_KEYS,
    ConsumerSection,
    ProducerSection,
    mask,
    parse,
)
from postbus.transports import CommonSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from postbus.transports import Capabilities, MessageConsumer, MessageProducer, Transport

T = TypeVar("T")
S = TypeVar("S", bound=ProducerSection | ConsumerSection)

_COMES_BACK = ("acknowledge", "redeliver_on_crash")


@attrs.frozen
class Prepared(Generic[S]):
    """A section that was read and checked, with the settings of its transport."""

    section: S
    transport: Transport
    settings: Any
    common: CommonSettings

    def producer(self) -> MessageProducer:
        """Return a new producer; it connects when it first sends."""
        return self.transport.make_producer(self.settings, self.common)

    def consumer(self) -> MessageConsumer:
        """Return a new consumer; it connects when it first receives."""
        return self.transport.make_consumer(self.settings, self.common)


def make_producers(
    sections: Mapping[str, ProducerSection],
    problems: list[Problem],
) -> dict[str, MessageProducer]:
    """Return the producers of *sections*; what is wrong is added to *problems*."""
    producers: dict[str, MessageProducer] = {}
    for name, section in sections.items():
        prepared = prepare(name, section, None, problems)
        if prepared is not None:
            producer = attempt(prepared.producer, section.path, problems)
            if producer is not None:
                producers[name] = producer
    return producers


def prepare_consumers(
    sections: Mapping[str, ConsumerSection],
    problems: list[Problem],
) -> dict[str, Prepared[ConsumerSection]]:
    """Return what makes the consumers of *sections*; what is wrong is added to *problems*."""
    prepared: dict[str, Prepared[ConsumerSection]] = {}
    for name, section in sections.items():
        ready = prepare(name, section, None, problems)
        # Made here only to hear whether it can be: a consumer holds nothing until it receives.
        if ready is not None and attempt(ready.consumer, section.path, problems) is not None:
            prepared[name] = ready
    return prepared


def prepare(
    name: str,
    section: S,
    transport: Transport | None,
    problems: list[Problem],
) -> Prepared[S] | None:
    """Read what *section* says to its transport; None when something is wrong with it.

    *transport* is looked up by the section's name for it where it is left out.
    """
    receives = isinstance(section, ConsumerSection)
    if transport is None:
        path = f"{section.path}.transport"
        transport = attempt(lambda: find_transport(section.transport, path), path, problems)
    if transport is None:
        return None
    settings = parse(
        transport.consumer_settings if receives else transport.producer_settings,
        section.options,
        section.path,
        problems,
        also_known=RESERVED_CONSUMER_KEYS if receives else RESERVED_PRODUCER_KEYS,
    )
    if settings is None:
        return None
    common = CommonSettings(
        name=name,
        guarantee=section.guarantee,
        max_size_bytes=section.max_size_bytes,
    )
    if isinstance(section, ConsumerSection):
        common = attrs.evolve(
            common, prefetch=section.prefetch, close_timeout=section.close_timeout
        )
    unmet = _unmet(section, transport.capabilities(settings, common))
    problems += unmet
    return None if unmet else Prepared(section, transport, settings, common)


def attempt(make: Callable[[], T], path: str, problems: list[Problem]) -> T | None:
    """Return what *make* does, or None with a problem at *path* where it refuses."""
    try:
        return make()
    except ConfigurationError as error:
        problems += error.problems
    except PostbusError as error:
        advice = "change the section, or choose another transport"
        problems.append(Problem(path, "", mask(str(error)), advice, rule="capability"))
    return None


def _unmet(
    section: ProducerSection | ConsumerSection, capabilities: Capabilities
) -> list[Problem]:
    """List the guarantee and the capabilities that the transport does not have as configured."""
    problems: list[Problem] = []
    lacking = [name for name in _COMES_BACK if not getattr(capabilities, name)]
    receives = isinstance(section, ConsumerSection)
    reason = ""
    if section.guarantee == "at-least-once" and lacking:
        reason = f"{section.transport} cannot give it: it lacks {' and '.join(lacking)}"
    elif section.guarantee == "at-most-once" and receives and not lacking:
        reason = f"{section.transport} cannot give it: what was not acknowledged comes back"
    if reason:
        path = f"{section.path}.guarantee"
        advice = "leave guarantee out, or choose a transport that can"
        problems.append(Problem(path, repr(section.guarantee), reason, advice, rule="capability"))
    for index, name in enumerate(section.requires):
        # A delay is a resolution in seconds, or None; the others are True or False.
        if getattr(capabilities, name) in {False, None}:
            path = f"{section.path}.requires[{index}]"
            expected = f"{section.transport} does not have it as configured"
            advice = "choose a transport that has it"
            problems.append(Problem(path, repr(name), expected, advice, rule="capability"))
    return problems
