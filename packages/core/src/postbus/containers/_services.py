"""The providers of a container as the services of a bus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from dependency_injector import containers, providers

from postbus.errors import ConfigurationError, Problem
from postbus.runtime._services import as_services
from postbus.unit import Lifetime, Services

_lock: Any = providers.ThreadSafeSingleton.storage_lock  # type: ignore[attr-defined]  # public, and missing in the stub
_ONCE = (
    providers.Singleton,
    providers.ThreadSafeSingleton,
    providers.Object,
    providers.Resource,
    # Asked for as it is: it takes the message together with what was injected.
    providers.Callable,
)


class ContainerServices:
    """The services of a container of `dependency_injector`; dotted ids walk child containers.

    Singleton, Object and Resource are made once, a Factory once per unit of work, and a
    ContextLocalSingleton is shared by all handlers of one unit. Overrides count as they stand.
    A Callable is a handler itself: called with the message and what is injected.
    """

    def __init__(self, container: Any) -> None:
        self._container = container

    def has(self, id_: str, /) -> bool:
        """Return whether the container has a provider *id_*; calls none."""
        return self._find(id_) is not None

    def get(self, id_: str, /) -> Any:
        """Return what the provider *id_* gives."""
        provider = self._provider(id_)
        last = _last(provider)
        if isinstance(last, providers.Callable):
            return provider
        if isinstance(last, _ONCE):
            # A Singleton and a Resource would be made several times by several threads. The lock
            # is the one that thread-safe singletons take: a second one could be taken in the
            # other order somewhere.
            with _lock:
                return provider()
        return provider()

    def lifetime(self, id_: str, /) -> Lifetime:
        """Return the lifetime of the provider *id_*; calls none."""
        provider = _last(self._provider(id_))
        if isinstance(provider, providers.Factory):
            return Lifetime.PER_UNIT
        return Lifetime.ONCE if isinstance(provider, _ONCE) else Lifetime.SHARED_IN_UNIT

    def provides(self, id_: str, /) -> Any:
        """Return the class or function behind *id_*, None where that is not known."""
        return getattr(_last(self._provider(id_)), "provides", None)

    def renew(self, id_: str, /) -> Any:
        """Make the context's own object of *id_* anew, and return it."""
        provider = self._provider(id_)
        last = _last(provider)
        if isinstance(last, providers.ContextLocalSingleton):
            last.reset()
        return provider()

    def ids(self) -> Iterator[str]:
        """Yield the ids there are."""
        return _ids(self._container.providers, "")

    def _provider(self, id_: str) -> Any:
        provider = self._find(id_)
        if provider is None:
            advice = "add the provider"
            raise ConfigurationError(
                [Problem(id_, "", "expected a provider of the container", advice)]
            )
        return provider

    def _find(self, id_: str) -> Any:
        *parents, name = id_.split(".")
        found = self._container.providers
        for parent in parents:
            found = _children(found.get(parent))
        return found.get(name)


def _ids(found: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, provider in found.items():
        yield f"{prefix}{name}"
        yield from _ids(_children(provider), f"{prefix}{name}.")


def _children(provider: Any) -> Mapping[str, Any]:
    """Return the providers of the child container that *provider* stands for, if it does."""
    child: Any = None
    if isinstance(provider, providers.Container):
        child = cast("Any", provider)
    elif isinstance(provider, providers.DependenciesContainer):
        child = cast("Any", provider)()
    return {} if child is None else dict(child.providers)


def _last(provider: Any) -> Any:
    """Return the provider that answers: the last override, if any."""
    while provider.overridden:
        provider = provider.overridden[-1]
    return provider


def services_of(source: Any) -> Services:
    """Return *source*, a container, a mapping, services or None, as services.

    Raises:
        ConfigurationError: it is nothing that ids can be looked up in.
    """
    if containers.is_container(source):
        return ContainerServices(source)
    return as_services(source)
