"""What a configuration may say and hardly anybody means: one small function for each rule.

A rule takes a `Project`, data that was resolved and not run, and yields a `Finding` for each place
it stands at. What `build` refuses has rules as well, which are only described here: those problems
carry the id of their rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from inspect import iscoroutinefunction
from itertools import chain
from typing import TYPE_CHECKING, Any

import attrs

from postbus.messages import MessageKind
from postbus.plugins import MessageProducerPlugin
from postbus.runtime._checks import MAIN_BUSES, path_of
from postbus.runtime._routing import entries_of
from postbus.settings import mask, show
from postbus.wire._encode import _payload_of

if TYPE_CHECKING:
    from postbus.errors import Problem
    from postbus.pipeline import Target
    from postbus.runtime._project import Project
    from postbus.settings import BusSettings, ConsumerSection, ProducerSection, RetrySettings
    from postbus.transports import Capabilities

__all__ = ["RULES", "Finding", "Rule", "examine", "finding_of"]

Check = Callable[["Project"], Iterable["Finding"]]

_VOLATILE = "memory"
_STORE_KEYS = ("failure_store", "inbox", "schedule")


@attrs.frozen
class Finding:
    """One place where a configuration breaks a rule.

    *rule* is the id of the rule and *path* where it stands; *text* says what is wrong there and
    *remedy* what to do about it. None of them holds a secret.
    """

    rule: str
    path: str
    text: str
    remedy: str = ""


@attrs.frozen
class Rule:
    """One thing that is looked for.

    *is_refused* tells whether `build` refuses it; the others run, and do what is rarely meant.
    *explanation* is for people: what happens, why it matters, what to do.
    """

    id: str
    summary: str
    explanation: str
    is_refused: bool = True
    check: Check | None = attrs.field(default=None, repr=False)


def examine(project: Project) -> list[Finding]:
    """Return what is likely wrong with a configuration that `build` accepts. Runs nothing."""
    return [
        finding
        for rule in RULES.values()
        if rule.check is not None
        for finding in rule.check(project)
    ]


def finding_of(problem: Problem) -> Finding:
    """Return what `build` refuses as the finding of its rule."""
    text = f"{problem.expected}, got {problem.value}" if problem.value else problem.expected
    return Finding(problem.rule, problem.path, text, problem.suggestion)


# -- what is looked for ------------------------------------------------------------------------


def _unhandled_messages(project: Project) -> Iterator[Finding]:
    for bus, kind in MAIN_BUSES.items():
        if kind is MessageKind.EVENT or _is_routed_by_plugins(project, kind):
            continue
        routed = {way.name for way in project.ways() if way.handlers or way.producers}
        for name, _ in project.names(kind):
            if name not in routed:
                yield Finding(
                    "unhandled-message",
                    f"{path_of(bus)}.router",
                    f"{name} is a {kind} of the catalogue, and no route takes it",
                    f'add routes."{name}" or send."{name}", or drop the class',
                )


def _is_routed_by_plugins(project: Project, kind: MessageKind) -> bool:
    """Tell whether a plugin may route messages of *kind*, so that sections do not say it all."""
    ids = chain.from_iterable(
        section.plugins for section in project.buses.values() if type(section).kind is kind
    )
    return any(_may_route(project.known(each)) for each in ids)


def _may_route(plugin: Any) -> bool:
    cls: type = plugin if isinstance(plugin, type) else type(plugin)
    return plugin is None or hasattr(cls, "handlers") or issubclass(cls, MessageProducerPlugin)


def _unreachable_handlers(project: Project) -> Iterator[Finding]:
    for bus in project.buses:
        is_received = bus in MAIN_BUSES and bool(project.consumers)
        reached: dict[str, bool] = {}
        for target, is_sent in _handling(project, bus):
            is_reached = is_received or not is_sent or target.when == "dispatched"
            reached[target.route] = reached.get(target.route, False) or is_reached
        why = (
            "no consumer brings it back"
            if bus in MAIN_BUSES
            else "what is received is dispatched on the main bus of its kind"
        )
        for path in (path for path, is_reached in reached.items() if not is_reached):
            yield Finding(
                "unreachable-handler",
                path,
                f"everything it handles is sent away, and {why}",
                "drop the handler or the send, or add the consumer",
            )


def _handling(project: Project, bus: str) -> Iterator[tuple[Target, bool]]:
    """Yield each target that handles a known name, and whether the name is sent first."""
    router = project.routers[bus]
    for name, cls in project.names(type(project.buses[bus]).kind):
        is_sent = bool(router.sends(name, cls))
        for target in router.handlers(name):
            yield target, is_sent


def _shadowed_routes(project: Project) -> Iterator[Finding]:
    for bus, section in project.buses.items():
        router = project.routers[bus]
        used = {
            target.route
            for name, cls in project.names(type(section).kind)
            for target in (*router.handlers(name), *router.sends(name, cls))
        }
        for entry in entries_of(section.router, f"{path_of(bus)}.router"):
            if entry.path not in used:
                yield Finding(
                    "shadowed-route",
                    entry.path,
                    "every name it matches has a route of its own, which wins",
                    "drop it, or correct the pattern",
                )


def _sends_after_commit(project: Project) -> Iterator[Finding]:
    if project.consumers and all(each.section.inbox for each in project.consumers.values()):
        return
    durable = sorted(
        {
            name
            for way in project.ways()
            for name in way.producers
            if way.kind is not MessageKind.QUERY and _is_durable(project, name)
        }
    )
    for bus, section in project.buses.items():
        handles_here = any(not is_sent for _, is_sent in _handling(project, bus))
        if durable and handles_here and section.unit_of_work is not None:
            yield Finding(
                "sends-after-commit",
                f"{path_of(bus)}.unit_of_work",
                f"what handlers send to {', '.join(durable)} leaves after the commit: "
                "a crash between the two loses it",
                "send the message that is handled here, too, and give its consumer an inbox",
            )


def _is_durable(project: Project, producer: str) -> bool:
    known = project.producers.get(producer)
    return known is not None and known.capabilities.durable


def _retry_budgets(project: Project) -> Iterator[Finding]:
    for name, prepared in project.consumers.items():
        able, section = project.capabilities(name), prepared.section
        waits_elsewhere = able.delay is not None or section.schedule or section.failure_store
        longest = _longest_delay(section)
        if able.lease is not None and not waits_elsewhere and longest > able.lease:
            yield Finding(
                "retry-budget",
                f"{section.path}.retry",
                f"a retry waits up to {longest:g} seconds in the worker, and {section.transport} "
                f"gives the message to another one after {able.lease:g}",
                "add a schedule, or make max_delay shorter than the lease",
            )


def _longest_delay(section: ConsumerSection) -> float:
    policies = [section.retry, *(rule.retry for rule in section.rules)]
    return max((_longest(each) for each in policies if each is not None), default=0.0)


def _longest(policy: RetrySettings) -> float:
    if policy.max_attempts < 2:  # noqa: PLR2004  with one attempt there is no retry
        return 0.0
    steps = min(policy.max_attempts - 2, 64)
    return min(policy.max_delay, policy.initial_delay * policy.multiplier**steps)


def _inboxes_apart(project: Project) -> Iterator[Finding]:
    for prepared in project.consumers.values():
        section = prepared.section
        if section.inbox is None:
            continue
        if project.settings.stores[section.inbox].store == _VOLATILE:
            reason = "a store in memory joins no transaction"
        elif without := [bus for bus in MAIN_BUSES if _has_no_unit(project, bus)]:
            reason = f"{' and '.join(without)} opens no unit of work"
        else:
            continue
        yield Finding(
            "inbox-apart",
            f"{section.path}.inbox",
            f"{reason}, so a crash between the handler and the inbox handles a message twice",
            "set unit_of_work to one whose connection goes to the inbox's database, "
            "or make the handlers idempotent and leave the inbox out",
        )


def _has_no_unit(project: Project, bus: str) -> bool:
    section: BusSettings = project.buses[bus]
    if type(section).kind is MessageKind.QUERY or section.unit_of_work is not None:
        return False
    return any(True for _ in _handling(project, bus))


def _volatile_stores(project: Project) -> Iterator[Finding]:
    for path, key, store, is_durable in _named_stores(project):
        if is_durable and project.settings.stores[store].store == _VOLATILE:
            yield Finding(
                "volatile-store",
                f"{path}.{key}",
                f"the transport keeps messages when a process ends, and stores.{store} does not",
                'use store = "sqlite"',
            )


def _named_stores(project: Project) -> Iterator[tuple[str, str, str, bool]]:
    for name, prepared in project.consumers.items():
        section, is_durable = prepared.section, project.capabilities(name).durable
        for key in _STORE_KEYS:
            if (store := getattr(section, key)) is not None:
                yield section.path, key, store, is_durable
    for name, producer in project.settings.producers.items():
        if producer.schedule is not None:
            yield producer.path, "schedule", producer.schedule, _is_durable(project, name)


def _volatile_queues(project: Project) -> Iterator[Finding]:
    producers, consumers = project.settings.producers, project.consumers
    sections: list[tuple[ProducerSection | ConsumerSection, Capabilities]] = [
        *((producers[name], made.capabilities) for name, made in project.producers.items()),
        *((prepared.section, project.capabilities(name)) for name, prepared in consumers.items()),
    ]
    for section, able in sections:
        # Without `retry` there is no queue that keeps messages: whoever sends still has them.
        if able.redeliver_on_crash and able.retry and not able.durable:
            yield Finding(
                "volatile-queue",
                section.path,
                f"{section.transport} gives back what a dead worker held, and as configured it "
                "forgets all that waits when it is restarted itself",
                "let it keep messages on the disk and say so in this section, "
                "or leave this rule out",
            )


def _poison_loops(project: Project) -> Iterator[Finding]:
    for name, prepared in project.consumers.items():
        able, section = project.capabilities(name), prepared.section
        if able.durable and able.acknowledge and section.failure_store is None:
            yield Finding(
                "poison-loop",
                section.path,
                "a message that can never be handled comes back for ever",
                "add a failure_store",
            )


def _threads_on_async(project: Project) -> Iterator[Finding]:
    for bus, section in project.buses.items():
        for entry in entries_of(section.router, f"{path_of(bus)}.router"):
            if entry.target.threads and _is_async(project.known(entry.target.to)):
                yield Finding(
                    "threads-on-async",
                    entry.path,
                    "threads is true, and the handler is asynchronous: its dispatch is refused",
                    "drop threads, or make the handler a plain def",
                )


def _is_async(handler: Any) -> bool:
    return iscoroutinefunction(handler) or iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004  the method itself is looked at


def _unsendable_messages(project: Project) -> Iterator[Finding]:
    for bus, section in project.buses.items():
        for name, cls in project.names(type(section).kind):
            for target in project.routers[bus].sends(name, cls):
                if (why := _unsendable(cls)) is not None:
                    yield Finding(
                        "unsendable-message",
                        target.route,
                        f"{name} cannot be written: {why}",
                        "change the class, or handle the message here",
                    )


def _unsendable(cls: type) -> str | None:
    try:
        _payload_of(cls)
    except Exception as error:  # noqa: BLE001  annotations of the user's classes may raise anything
        return mask(str(error))
    return None


def _short_graces(project: Project) -> Iterator[Finding]:
    grace = project.settings.worker.shutdown_grace
    for name, prepared in project.consumers.items():
        able, section = project.capabilities(name), prepared.section
        limit = section.time_limit
        if limit is not None and limit > grace and not able.redeliver_on_crash:
            yield Finding(
                "grace-too-short",
                f"{section.path}.time_limit",
                f"handlers may take {show(limit)} seconds, a stop gives them {show(grace)}, and "
                f"{section.transport} does not bring back what was cut off",
                "raise worker.shutdown_grace to the longest time_limit",
            )


# -- what there is to know about each ----------------------------------------------------------

_RULES = (
    Rule(
        "configuration",
        "A key is unknown, missing, or has a value that it cannot have.",
        "Nothing in a configuration is ignored and nothing is guessed. The finding names the key, "
        "what was expected there and the nearest key that exists. docs/configuration.md has them "
        "all.",
    ),
    Rule(
        "messages",
        "A module under `messages` cannot be imported, or its messages contradict each other.",
        "The catalogue is the only way from a name on the wire to a class, so it has to be whole: "
        "two classes of one name, a name of fewer than three characters or a module that cannot "
        "be imported are refused.",
    ),
    Rule(
        "not-installed",
        "A transport or kind of store is not installed, or cannot be loaded.",
        "`postbus transports` lists what is there. A transport `x` comes with the distribution "
        "`postbus-x`; two distributions that provide the same name are refused as well.",
    ),
    Rule(
        "error-class",
        "A code under `errors` names no exception class, or one that has a code already.",
        "Each code stands for one class derived from Exception, as `package.module:Class`.",
    ),
    Rule(
        "capability",
        "A section asks for what its transport cannot do as configured.",
        "A guarantee, a capability under `requires`, a query through a producer that brings no "
        "answers back, a command through one that only asks: what a transport can do as "
        "configured stands in its capabilities, which `postbus transports` shows.",
    ),
    Rule(
        "unknown-message",
        "A route is for a name that no message has, or that a message of another kind has.",
        "Nothing of that name can be dispatched on this bus: the name is misspelt, its module is "
        "not under `messages`, or it belongs on another bus.",
    ),
    Rule(
        "unmatched-pattern",
        "A pattern matches no message of the catalogue.",
        "A route or rule that matches nothing does nothing. In a glob a star stands for one "
        "segment between dots; a regular expression has to match the whole name.",
    ),
    Rule(
        "unknown-id",
        "An id leads to no service, producer or store.",
        "Ids are `producers.NAME`, the name of a store, or what the services know: the providers "
        "of a container, the keys of a mapping. The finding names the nearest one. Without "
        "`--app` there are no services at all.",
    ),
    Rule(
        "wrong-service",
        "An id leads to something that cannot be what it is used as.",
        "A plugin has `attach(bus)`, and the target of a `send` is a message producer.",
    ),
    Rule(
        "ambiguous-route",
        "Two routes claim the same command or query.",
        "A command or query has exactly one handler. An exact name beats a pattern, and of two "
        "patterns neither wins. Events may have any number of listeners.",
    ),
    Rule(
        "retry-nowhere",
        "Retries are asked for, and there is nowhere for them to wait.",
        "The transport cannot put a message back with another body, so a retry needs a store: "
        "name a `schedule` or a `failure_store`.",
    ),
    Rule(
        "unnamed-listener",
        "A listener is a lambda or a local function where its name is kept.",
        "An inbox and a retried event remember listeners by name, beyond the life of a process. "
        "Give a function of a module, or the id of a service.",
    ),
    Rule(
        "unhandled-message",
        "A command or query of the catalogue has no route at all.",
        "Dispatching it raises `NoHandlerError`. A worker that receives it gives it up.",
        is_refused=False,
        check=_unhandled_messages,
    ),
    Rule(
        "unreachable-handler",
        "A handler is never called: what it handles is sent away and never received.",
        "A name with a `send` is handled where it is received. Without a consumer in this "
        "configuration that is not here. A worker dispatches what it receives on the three main "
        "buses, so a handler on another bus is not reached by it either.",
        is_refused=False,
        check=_unreachable_handlers,
    ),
    Rule(
        "shadowed-route",
        "A pattern is never used: all it matches is routed by exact names.",
        "An exact name beats a pattern. The line has no effect, and a reader believes it has.",
        is_refused=False,
        check=_shadowed_routes,
    ),
    Rule(
        "unsendable-message",
        "A message is sent whose class cannot be written to the wire.",
        "Sending it raises `EncodeError`. A class that is sent is an attrs class, a dataclass, a "
        "msgspec Struct or a pydantic model, with fields of types that JSON can carry.",
        is_refused=False,
        check=_unsendable_messages,
    ),
    Rule(
        "sends-after-commit",
        "What a handler sends can be lost in a crash after its commit.",
        "Inside a unit of work commands and events leave after the commit. When the process dies "
        "between the two, the work stands and the message is gone, though the producer is one "
        "that loses nothing. A consumer with an inbox closes that gap: its row holds what is "
        "still to be sent.",
        is_refused=False,
        check=_sends_after_commit,
    ),
    Rule(
        "retry-budget",
        "A retry waits longer than the transport's lease.",
        "Where neither transport nor a store delays retries, the worker holds the message while "
        "it waits. When its lease ends first, another worker gets it too early, and perhaps a "
        "third.",
        is_refused=False,
        check=_retry_budgets,
    ),
    Rule(
        "inbox-apart",
        "An inbox does not share the transaction of the handlers.",
        "Effects happen once only where the row of the inbox is committed together with them. "
        "Apart, a crash between the two commits runs the handler again: at least once. This is "
        "found where no unit of work is configured or the store is in memory; whether a unit's "
        "connection goes to the inbox's own database shows when it runs.",
        is_refused=False,
        check=_inboxes_apart,
    ),
    Rule(
        "volatile-store",
        "A store in memory keeps messages of a transport that survives a restart.",
        "What a worker gave up, delayed or remembers is gone when it ends, although the transport "
        "would have kept it.",
        is_refused=False,
        check=_volatile_stores,
    ),
    Rule(
        "volatile-queue",
        "A transport that survives a crash of the worker does not survive one of its own.",
        "Workers may die, and yet a restart of the server loses everything that waits: gearmand "
        "and beanstalkd keep jobs in memory unless they are told otherwise (`-q libsqlite3`, "
        "`-b`), and so may Redis. No server can be asked, so the section says `durable = true` "
        "once it is so; for a folder it is `sync = true`. Where messages may be lost, leave the "
        "rule out.",
        is_refused=False,
        check=_volatile_queues,
    ),
    Rule(
        "poison-loop",
        "A durable consumer has no failure store.",
        "What can never be handled is given back after a pause, again and again, until somebody "
        "removes it by hand.",
        is_refused=False,
        check=_poison_loops,
    ),
    Rule(
        "threads-on-async",
        "A route says `threads = true` for an asynchronous handler.",
        "A thread runs plain functions. Dispatching the message raises `RoutingError`.",
        is_refused=False,
        check=_threads_on_async,
    ),
    Rule(
        "grace-too-short",
        "A stop may cut off handlers whose messages do not come back.",
        "`worker.shutdown_grace` is shorter than the `time_limit` of a consumer whose transport "
        "does not bring back what was not finished.",
        is_refused=False,
        check=_short_graces,
    ),
)

#: Every rule by its id, in the order of the documentation.
RULES: dict[str, Rule] = {rule.id: rule for rule in _RULES}
