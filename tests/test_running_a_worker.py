"""docs/guides/running-a-worker.md says what the command and the settings have."""

from __future__ import annotations

import re
from pathlib import Path

import attrs

from postbus.settings import WorkerSettings

DOCS = Path(__file__).resolve().parents[1] / "docs"
GUIDE = (DOCS / "guides" / "running-a-worker.md").read_text(encoding="utf-8")
# Written from the commands, and a test of its own keeps it so.
REFERENCE = (DOCS / "cli.md").read_text(encoding="utf-8")
COMMAND = REFERENCE.split("\n### postbus worker\n")[1].split("\n### ")[0]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
# Of docker, pip and useradd.
FOREIGN = {"--init", "--time", "--no-cache-dir"}


class TestOptions:
    """What can be said on the command line, and in the configuration."""

    def test_the_guide_has_every_option_of_the_worker(self) -> None:
        """Those that decide how it runs."""
        assert set(OPTION.findall(COMMAND)) - set(OPTION.findall(GUIDE)) == {"--log-level"}

    def test_the_guide_has_no_option_that_is_not_there(self) -> None:
        """What a reader copies works."""
        assert set(OPTION.findall(GUIDE)) - set(OPTION.findall(REFERENCE)) == FOREIGN

    def test_the_guide_has_every_key_of_the_worker(self) -> None:
        """All of `[postbus.worker]`."""
        keys = {field.name for field in attrs.fields(WorkerSettings)}

        assert {key for key in keys if key not in GUIDE} == set()
