"""What else the shop could be sent over: every installed transport, and what it takes."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from postbus.config import load
from postbus.discovery import find_transport, installed_transports
from postbus.errors import PostbusError

PROBE_PATIENCE = 0.5
ADDRESS = re.compile(r"([\w.-]+):(\d+)")


def print_transports(sections: Path) -> None:
    """Print a line for each transport. *sections*: a folder of sections to copy, by name."""
    print("\nThe orders could go over any of these; the shop's code stays as it is:\n")
    for name in installed_transports():
        line, state = describe(name, sections / f"{name}.toml")
        print(f"   {name:<12}{line:<55} {state}")
    print(f"\nSections to copy stand in examples/shop/{sections.name}.")


def describe(name: str, example: Path) -> tuple[str, str]:
    """Return the line of configuration that *name* takes, and whether somebody is there."""
    try:
        wanted = find_transport(name).producer_settings
    except PostbusError as error:
        return "-", f"cannot be used: {error}"
    required = [field.name for field in attrs.fields(wanted) if field.default is attrs.NOTHING]
    pairs = [f'transport = "{name}"']
    if required:
        given = section_of(example)
        pairs += [f'{key} = "{given[key]}"' if key in given else f"{key} = …" for key in required]
        return ", ".join(pairs), f"needs {' and '.join(required)}"
    address = next(addresses_in(wanted()), None)
    return ", ".join(pairs), "-" if address is None else probed(*address)


def section_of(example: Path) -> dict[str, Any]:
    """Return the producer's section of a file, with its defaults in the place of variables."""
    if not example.exists():
        return {}
    section: dict[str, Any] = load(example, {})["postbus"]["producers"]["back_office"]
    return section


def addresses_in(settings: Any) -> Iterator[tuple[str, int]]:
    """Yield the addresses among settings, in lists of them and in URLs too."""
    for value in attrs.asdict(settings).values():
        for host, port in ADDRESS.findall(str(value)):
            yield host, int(port)


def probed(host: str, port: int) -> str:
    """Say whether a connection can be made."""
    try:
        socket.create_connection((host, port), PROBE_PATIENCE).close()
    except OSError:
        return f"nobody listens on {host}:{port}"
    return f"{host}:{port} listens"
