"""From the sections of stores to stores, and everything about them that can be wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from postbus.discovery import find_store
from postbus.errors import Problem, RoutingError
from postbus.messages import MessageKind
from postbus.pipeline import label_of
from postbus.routers._patterns import glob
from postbus.runtime._routing import entries_of
from postbus.runtime._sections import attempt
from postbus.settings import RESERVED_STORE_KEYS, nearest, parse
from postbus.stores import DelayedProducer
from postbus.worker import RetryPolicy, RetryRule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from postbus.catalog import MessageCatalog
    from postbus.runtime._sections import Prepared
    from postbus.settings import (
        ConsumerSection,
        PostbusSettings,
        ProducerSection,
        RetrySettings,
        StoreSection,
    )
    from postbus.stores import ScheduleStore, Store
    from postbus.transports import MessageProducer

__all__ = [
    "check_stores",
    "delayed_producers",
    "make_stores",
    "policy_of",
    "rules_of",
    "schedule_of",
    "unnamed_listeners",
]


def make_stores(sections: Mapping[str, StoreSection], problems: list[Problem]) -> dict[str, Store]:
    """Return the stores of *sections*; what is wrong is added to *problems*."""
    stores: dict[str, Store] = {}
    for name, section in sections.items():
        path = f"{section.path}.store"
        found = attempt(lambda s=section, p=path: find_store(s.store, p), path, problems)  # type: ignore[misc]  # mypy cannot infer a lambda with defaults
        if found is None:
            continue
        settings = parse(
            found.settings,
            section.options,
            section.path,
            problems,
            also_known=RESERVED_STORE_KEYS,
        )
        if settings is not None:
            stores[name] = found.make(settings)
    return stores


def check_stores(
    settings: PostbusSettings,
    consumers: Mapping[str, Prepared[ConsumerSection]],
    catalog: MessageCatalog,
) -> Iterator[Problem]:
    """Yield what is wrong with what sections say about stores, retries and rules."""
    for producer in settings.producers.values():
        yield from _unknown_stores(producer, ("schedule",), settings.stores)
    for name, section in settings.consumers.items():
        keys = ("failure_store", "schedule", "inbox")
        yield from _unknown_stores(section, keys, settings.stores)
        yield from _rule_problems(section, catalog)
        prepared = consumers.get(name)
        if prepared is not None:
            yield from _retry_problems(section, prepared)
    if any(section.inbox or _retries(section) for section in settings.consumers.values()):
        yield from unnamed_listeners(settings)


def _unknown_stores(
    section: ProducerSection | ConsumerSection,
    keys: Sequence[str],
    stores: Iterable[str],
) -> Iterator[Problem]:
    for key in keys:
        named = getattr(section, key)
        if named is not None and named not in stores:
            advice = nearest(named, stores) or f"add [postbus.stores.{named}]"
            path, expected = f"{section.path}.{key}", "expected a section of stores"
            yield Problem(path, repr(named), expected, advice, rule="unknown-id")


def _rule_problems(section: ConsumerSection, catalog: MessageCatalog) -> Iterator[Problem]:
    names = [entry.name for entry in catalog]
    for index, rule in enumerate(section.rules):
        path = f"{section.path}.rules[{index}].match"
        try:
            pattern = glob(rule.match)
        except RoutingError as error:
            yield Problem(path, repr(rule.match), str(error), "correct the pattern")
            continue
        if not any(map(pattern.fullmatch, names)):
            expected = "expected a pattern that matches a name in the catalogue"
            advice = nearest(rule.match, names) or "correct it, or add its module to `messages`"
            yield Problem(path, repr(rule.match), expected, advice, rule="unmatched-pattern")


def _retries(section: ConsumerSection) -> bool:
    policies = [section.retry, *(rule.retry for rule in section.rules)]
    return any(policy is not None and policy.max_attempts > 1 for policy in policies)


def _retry_problems(
    section: ConsumerSection, prepared: Prepared[ConsumerSection]
) -> Iterator[Problem]:
    if not _retries(section) or section.schedule or section.failure_store:
        return
    if not prepared.transport.capabilities(prepared.settings, prepared.common).retry:
        expected = (
            f"{section.transport} cannot retry as configured, so retries need a place to wait"
        )
        advice = "add a schedule or a failure_store, or leave retry out"
        yield Problem(f"{section.path}.retry", "", expected, advice, rule="retry-nowhere")


def unnamed_listeners(settings: PostbusSettings) -> Iterator[Problem]:
    """Yield the listeners whose ids say nothing, where rows and headers are to know them by it."""
    for entry in entries_of(settings.event_bus.router, "event_bus.router"):
        label = label_of(entry.target.to)
        if "<lambda>" in label or "<locals>" in label:
            expected = (
                f"expected a listener with a name of its own, since an inbox or a retry of an "
                f"{MessageKind.EVENT} knows it by that"
            )
            advice = "name a service, or a function of a module"
            yield Problem(entry.path, label, expected, advice, rule="unnamed-listener")


def schedule_of(section: ConsumerSection, stores: Mapping[str, Store]) -> ScheduleStore | None:
    """Return where retries wait: the section's schedule, else in the store for failures."""
    name = section.schedule or section.failure_store
    return None if name is None else stores[name].schedule


def policy_of(settings: RetrySettings) -> RetryPolicy:
    """Return the policy that a section describes."""
    return RetryPolicy(
        max_attempts=settings.max_attempts,
        initial_delay=settings.initial_delay,
        multiplier=settings.multiplier,
        max_delay=settings.max_delay,
        jitter=settings.jitter,
    )


def rules_of(section: ConsumerSection) -> tuple[RetryRule, ...]:
    """Return the rules that a section has."""
    return tuple(RetryRule(match=r.match, policy=policy_of(r.retry)) for r in section.rules)


def delayed_producers(
    sections: Mapping[str, ProducerSection],
    producers: Mapping[str, MessageProducer],
    stores: Mapping[str, Store],
) -> dict[str, DelayedProducer]:
    """Return what delays messages for producers that cannot, by the names of their sections."""
    return {
        name: DelayedProducer(
            name, stores[section.schedule].schedule, producers[name].capabilities
        )
        for name, section in sections.items()
        if section.schedule is not None
    }
