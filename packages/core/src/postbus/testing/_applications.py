"""The ways in which an application gives a container its section, and closes it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dependency_injector import containers, providers


def by_constructor(cls: Any, section: dict[str, Any]) -> Any:
    """Give the section to the constructor."""
    return cls(config=section)


def by_from_dict(cls: Any, section: dict[str, Any]) -> Any:
    """Fill the configuration from a dict."""
    container = cls()
    container.config.from_dict(section)
    return container


def by_from_yaml(cls: Any, section: dict[str, Any]) -> Any:
    """Fill the configuration from a file; JSON is YAML."""
    container = cls()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "section.yaml"
        path.write_text(json.dumps(section), encoding="utf-8")
        container.config.from_yaml(path)
    return container


def nested(cls: Any, section: dict[str, Any]) -> Any:
    """Stand in an application's container."""
    return application_of(cls, {"first": section, "second": section}).first


def application_of(cls: Any, config: dict[str, Any]) -> Any:
    """Return an application with two of them side by side."""

    class Application(containers.DeclarativeContainer):
        config = providers.Configuration()
        first: Any = providers.Container(cls, config=config.first)
        second: Any = providers.Container(cls, config=config.second)

    application: Any = Application()
    application.config.from_dict(config)
    return application


def close(container: Any) -> None:
    """Close it by its method."""
    container.close()


def with_block(container: Any) -> None:
    """Close it as a context manager."""
    # An application's container knows its part as a provider: what that stands for is entered.
    inner: Any = getattr(container, "container", container)
    with inner as entered:
        assert entered is inner


def shut_down(container: Any) -> None:
    """Close it as an application closes its resources."""
    container.shutdown_resources()


GIVEN = (by_constructor, by_from_dict, by_from_yaml, nested)
CLOSED = (close, with_block, shut_down)


def open_files() -> set[str]:
    """Return the files and sockets that this process has open, by number and what they are."""
    found: set[str] = set()
    for name in os.listdir("/dev/fd"):  # noqa: PTH208  numbers, no paths
        try:
            status = os.fstat(int(name))
        except OSError:
            # The listing itself was one of them.
            continue
        found.add(f"{name} {status.st_dev} {status.st_ino}")
    return found
