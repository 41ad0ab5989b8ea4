"""The `Postbus` inside an application's container, for a tool that is given the container."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from dependency_injector import containers, providers

from postbus.containers._postbus import Checks
from postbus.errors import ConfigurationError, Problem
from postbus.runtime import Postbus

__all__ = ["is_container", "open_container"]


def is_container(value: Any) -> bool:
    """Tell whether *value* is a container, or a class of containers."""
    return containers.is_container(value)


def open_container(
    found: Any, config: Mapping[str, Any] | None
) -> tuple[Postbus, Callable[[], Any]]:
    """Return the `Postbus` that a container has, and what closes the container.

    Args:
        found: a `PostbusContainer`, a container with one somewhere in it, or the class of either,
            which is instantiated.
        config: given to the container's own provider `config`; None leaves that as it is.

    Raises:
        ConfigurationError: there is not exactly one in it, or it refuses its configuration.
    """
    container: Any = found() if isinstance(found, type) else found
    is_ours = isinstance(container, Checks)
    if config is not None:
        _configure(container, unwrap_section(config) if is_ours else config)
    inner: list[Any] = [container] if is_ours else list(_inside(container))
    if len(inner) != 1:
        expected = f"expected one PostbusContainer in it, found {len(inner)}"
        advice = "name a function that returns the Postbus"
        raise ConfigurationError([Problem("--app", _named(container), expected, advice)])
    close = container.close if is_ours else container.shutdown_resources
    try:
        return inner[0].postbus(), close
    except BaseException:
        close()
        raise


def unwrap_section(config: Mapping[str, Any]) -> Any:
    """Return the section `postbus` of a file that may have others, else the whole dict."""
    return config.get("postbus", config)


def _configure(container: Any, config: Mapping[str, Any]) -> None:
    provider = container.providers.get("config")
    if not isinstance(provider, providers.Configuration):
        expected = "expected a provider `config` that takes the configuration"
        advice = "leave --config out, or add providers.Configuration()"
        raise ConfigurationError([Problem("--app", _named(container), expected, advice)])
    provider.from_dict(dict(config))


def _inside(container: Any) -> Iterator[Any]:
    """Yield every `PostbusContainer` in *container*, at any depth."""
    for provider in container.providers.values():
        if isinstance(provider, providers.Container):
            child = cast("Any", provider)()
            if isinstance(child, Checks):
                yield child
            else:
                yield from _inside(child)


def _named(container: Any) -> str:
    return repr(getattr(container, "__name__", type(container).__name__))
