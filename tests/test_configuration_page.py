"""The reference of the configuration says what the settings classes say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from postbus.config import load, unwrap
from postbus.settings import read_settings

if TYPE_CHECKING:
    from types import ModuleType

    from postbus.errors import Problem

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "configuration.md"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The script, loaded from its file: tools/ is no package."""
    path = ROOT / "tools" / "configuration_page.py"
    spec = importlib.util.spec_from_file_location("configuration_page", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestConfigurationPage:
    """docs/configuration.md."""

    def test_it_is_current(self, tool: ModuleType) -> None:
        """After a change of a settings class the page is written anew."""
        assert tool.page() == PAGE.read_text(encoding="utf-8"), (
            "python tools/configuration_page.py --update"
        )

    def test_its_example_is_a_configuration(self, tmp_path: Path) -> None:
        """What the page shows can be loaded as it stands, without a variable set."""
        example = re.search(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
        assert example is not None
        path = tmp_path / "postbus.toml"
        path.write_text(example[1], encoding="utf-8")
        problems: list[Problem] = []
        settings = read_settings(unwrap(load(path, {})), problems)
        assert problems == []
        assert settings.consumers["mail"].options == {"dsn": "tcp://127.0.0.1:5555"}

    def test_every_transport_has_its_keys_there(self, tool: ModuleType) -> None:
        """What an installation would find is documented."""
        names = {transport.name for transport in tool.transports()}
        assert {"memory", "zeromq"} <= names
        page = PAGE.read_text(encoding="utf-8")
        assert [name for name in names if f"## Transport `{name}`" not in page] == []
