"""The commands of the README, as typed, against the application of the README."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parent.parent / "README.md"
_fenced = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL).findall
_typed = re.compile(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).+\n?)*)", re.MULTILINE).findall


def blocks(language: str) -> list[str]:
    """Return what the README has in a language."""
    return [text for found, text in _fenced(README.read_text()) if found == language]


@pytest.fixture
def application() -> Any:
    """What its snippets make."""
    namespace: dict[str, Any] = {"__name__": "readme"}
    for text in blocks("python"):
        exec(text, namespace)  # noqa: S102  the snippets of the README
    return namespace["application"]


def test_its_commands_work_as_typed(
    application: Any, served: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each prints what stands below it; only the port is another one."""
    server = served(application)
    commands = [each for text in blocks("console") for each in _typed(text)]
    assert len(commands) == 3
    for command, expected in [*commands, commands[0]]:
        typed = command.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
        ended = subprocess.run(
            ["bash", "-c", typed], check=True, capture_output=True, text=True, timeout=30
        )
        assert expected.strip()
        assert expected.strip() in ended.stdout
    assert capfd.readouterr().out.count("EchoText(text='It works')") == 1
