"""The record, its settings and the container over it."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import attrs
import pytest

from postbus import Command, build
from postbus.errors import ConfigurationError
from postbus.transports import CommonSettings
from postbus_files import FILES, FilesContainer


@attrs.frozen
class Note(Command, name="files.note"):
    text: str


class TestRecord:
    def test_core_finds_it_by_its_entry_point(self) -> None:
        """Installed is enough."""
        (found,) = entry_points(group="postbus.transports", name="files")

        assert found.load() is FILES

    def test_its_capabilities_follow_the_settings(self) -> None:
        """Durable where the disk is waited for; nothing comes back at most once."""
        common = CommonSettings(name="x", max_size_bytes=7)
        once = attrs.evolve(common, guarantee="at-most-once")
        durable = FILES.capabilities(FILES.producer_settings(path="q"), common)
        quick = FILES.capabilities(FILES.consumer_settings(path="q", sync=False), common)
        final = FILES.capabilities(FILES.consumer_settings(path="q"), once)

        assert (durable.durable, quick.durable) == (True, False)
        assert (durable.max_size_bytes, durable.acknowledge, durable.queries) == (7, True, True)
        assert (final.acknowledge, final.redeliver_on_crash, final.retry) == (False,) * 3

    @pytest.mark.parametrize(
        ("section", "path"),
        [
            ({}, "path"),
            ({"path": ""}, "path"),
            ({"path": "a\0b"}, "path"),
            ({"path": "q", "poll_interval": 0}, "poll_interval"),
            ({"path": "q", "sink": True}, "sink"),
        ],
    )
    def test_a_broken_section_is_refused(self, section: dict[str, object], path: str) -> None:
        """When the application is built, with the path of what is wrong."""
        config = {"producers": {"notes": {"transport": "files", **section}}}

        with pytest.raises(ConfigurationError) as caught:
            build(config)

        assert [p.path for p in caught.value.problems] == [f"producers.notes.{path}"]


class TestContainer:
    def test_one_section_makes_a_bus(self, path: Path) -> None:
        """The bus sends, and the message is a file."""
        with FilesContainer(config={"path": str(path)}) as container:
            container.command_bus().dispatch(Note("It works"))

        (file,) = (path / "ready").iterdir()
        assert b'"text":"It works"' in file.read_bytes()

    def test_it_is_loaded_when_asked_for_only(self) -> None:
        """And other names are refused as usual."""
        import postbus_files

        assert postbus_files.FilesContainer is FilesContainer
        with pytest.raises(AttributeError, match="nothing"):
            postbus_files.nothing  # noqa: B018  the access raises
