"""`build`: reads the whole configuration, refuses what is wrong with it, connects nothing."""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

from postbus.catalog import MessageCatalog
from postbus.config import unwrap
from postbus.errors import ConfigurationError, Problem
from postbus.runtime._checks import check_buses
from postbus.runtime._closing import close_all
from postbus.runtime._postbus import Postbus
from postbus.runtime._sections import make_producers, prepare_consumers
from postbus.runtime._services import Wiring, as_services
from postbus.runtime._stores import check_stores, make_stores
from postbus.settings import mask, read_settings
from postbus.settings._masking import join

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from postbus.unit import Services

_PRODUCER_AT = re.compile(r"producers\.(\w+)|(\w+)_producer(?!\w)").match


def build(
    config: Mapping[str, Any],
    services: Services | Mapping[str, Any] | None = None,
    catalog: MessageCatalog | None = None,
) -> Postbus:
    """Return the buses, producers and workers that *config* describes.

    Args:
        config: the `postbus` section, or a dict whose only key is `postbus`. It is copied.
        services: where the ids come from that routes, plugins and units of work name: a mapping
            from id to service, or anything with `has`, `get` and `lifetime`. Not copied.
        catalog: a catalogue to use, filled further from the modules under `messages`.

    Makes no handler and connects nothing; imports the modules and transports that are named.

    >>> from postbus import Command, MessageCatalog, build
    >>> class RegisterUser(Command, name="shop.register-user"):
    ...     pass
    >>> catalog = MessageCatalog()
    >>> catalog.add(RegisterUser)
    >>> router = {"routes": {"shop.register-user": "register_user"}}
    >>> handled = []
    >>> services = {"register_user": handled.append}
    >>> with build({"command_bus": {"router": router}}, services, catalog) as postbus:
    ...     postbus.command_bus.dispatch(RegisterUser())
    >>> len(handled)
    1

    Raises:
        ConfigurationError: with every problem of the whole configuration, each with its path.
    """
    problems: list[Problem] = []
    settings = read_settings(unwrap(config), problems)
    catalog = MessageCatalog() if catalog is None else catalog
    _add_messages(settings.messages, catalog, problems)
    complete = not any(problem.path.startswith("messages") for problem in problems)
    producers = make_producers(settings.producers, problems)
    consumers = prepare_consumers(settings.consumers, problems)
    errors = _registered_errors(settings.errors, problems)
    stores = make_stores(settings.stores, problems)
    problems += check_stores(settings, consumers, catalog)
    wiring = Wiring(producers, _looked_up_in(services, problems), _broken_producers(problems))
    problems += check_buses(settings, catalog, wiring, complete=complete)
    if problems:
        refused = ConfigurationError(problems)
        try:
            close_all(producers.values())
        except Exception as error:
            raise refused from error
        raise refused
    return Postbus(settings, catalog, producers, consumers, stores, wiring, errors)


def _add_messages(
    modules: Sequence[str], catalog: MessageCatalog, problems: list[Problem]
) -> None:
    for index, module in enumerate(modules):
        try:
            catalog.add_module(module)
        except ConfigurationError as error:
            for problem in error.problems:
                advice = problem.suggestion or "correct the module, or its name here"
                expected = f"expected {mask(problem.expected)}"
                path = f"messages[{index}]"
                problems.append(Problem(path, problem.value, expected, advice, rule="messages"))


def _looked_up_in(
    services: Services | Mapping[str, Any] | None, problems: list[Problem]
) -> Services:
    try:
        return as_services(services)
    except ConfigurationError as error:
        problems += error.problems
        return as_services(None)


def _broken_producers(problems: Sequence[Problem]) -> frozenset[str]:
    """Return the names of the producers that *problems* are about."""
    found = [_PRODUCER_AT(problem.path) for problem in problems]
    return frozenset(match[1] or match[2] for match in found if match is not None)


def _registered_errors(
    names: Mapping[str, str],
    problems: list[Problem],
) -> dict[type[BaseException], str]:
    """Return the exception classes that the configuration gives codes to."""
    registered: dict[type[BaseException], str] = {}
    for code, name in names.items():
        path = join("errors", code)
        try:
            found = _imported(name)
        except Exception as error:  # noqa: BLE001  a module may raise anything while it is imported
            expected = f"expected an exception class ({type(error).__name__}: {mask(str(error))})"
            advice = "write package.module:Class"
            problems.append(Problem(path, repr(name), expected, advice, rule="error-class"))
            continue
        if not (isinstance(found, type) and issubclass(found, Exception)):
            advice = "name a class derived from Exception"
            expected = "expected an exception class"
            problems.append(Problem(path, repr(name), expected, advice, rule="error-class"))
        elif registered.setdefault(found, code) != code:
            expected = f"expected one code for a class, and it has {registered[found]!r}"
            advice = "remove one of the two"
            problems.append(Problem(path, repr(name), expected, advice, rule="error-class"))
    return registered


def _imported(name: str) -> Any:
    module, _, qualname = name.partition(":")
    found: Any = import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found
