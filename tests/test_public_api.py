"""The public interface is written down, exported in order, and documented."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

griffe = pytest.importorskip("griffe", reason="griffe reads the public interface")

ROOT = Path(__file__).resolve().parent.parent


def load_tool() -> ModuleType:
    """Import the script that writes the interface down."""
    spec = importlib.util.spec_from_file_location("api_snapshot", ROOT / "tools/api_snapshot.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


api = load_tool()
PACKAGES: list[str] = api.names()
MODULES = {
    module.path: module for name in PACKAGES for module in api.public_modules(api.load(name))
}
EXPORTING = {path: module for path, module in MODULES.items() if module.exports is not None}


def reading_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, as ruff sorts `__all__`."""
    if name.isupper():
        return 0, name
    return (1 if name[:1].isupper() else 2), name


def undocumented(member: Any, path: str) -> Iterator[str]:
    """Yield what a reader would find without a word: classes, functions and methods."""
    if isinstance(member, griffe.Alias) or not isinstance(member, griffe.Class | griffe.Function):
        return
    # What overrides says no more than what it overrides; a dunder method is known.
    overrides = any(str(each.value).endswith("override") for each in member.decorators)
    if member.docstring is None and not overrides and member.name != "__init__":
        yield path
    if isinstance(member, griffe.Class):
        for each in api.members_of_class(member):
            yield from undocumented(each, f"{path}.{each.name}")


class TestSnapshot:
    """api/*.txt."""

    @pytest.mark.parametrize("name", PACKAGES)
    def test_it_says_what_the_sources_offer(self, name: str) -> None:
        """A change of the interface is seen in review: ./dev api --update."""
        assert api.difference(name) == ""

    def test_there_is_one_for_each_package_and_no_other(self) -> None:
        """A package that is gone leaves no file."""
        assert sorted(path.stem for path in (ROOT / "api").glob("*.txt")) == PACKAGES


class TestExports:
    """`__all__`."""

    @pytest.mark.parametrize("name", PACKAGES)
    def test_each_package_says_what_it_exports(self, name: str) -> None:
        """The daily names are a list somebody chose."""
        assert name in EXPORTING

    @pytest.mark.parametrize("path", EXPORTING)
    def test_it_is_sorted_and_names_nothing_twice(self, path: str) -> None:
        """A reader finds a name where it belongs."""
        exported = [str(name) for name in EXPORTING[path].exports]

        assert exported == sorted(set(exported), key=reading_order)

    @pytest.mark.parametrize("path", EXPORTING)
    def test_it_names_only_what_is_there(self, path: str) -> None:
        """Every exported name can be imported."""
        module = importlib.import_module(path)

        assert [name for name in EXPORTING[path].exports if not hasattr(module, str(name))] == []

    @pytest.mark.parametrize("path", EXPORTING)
    def test_it_is_complete(self, path: str) -> None:
        """A class or function without an underscore is exported where it is defined."""
        exported = {str(name) for name in EXPORTING[path].exports}
        defined = {
            name
            for name, member in EXPORTING[path].members.items()
            if not member.is_alias
            and (member.is_class or member.is_function)
            and api.is_public_name(name)
        }

        assert sorted(defined - exported) == []


class TestDocumentation:
    """Docstrings."""

    @pytest.mark.parametrize("path", MODULES)
    def test_every_public_name_has_a_docstring(self, path: str) -> None:
        """What is public is explained where it stands."""
        module = MODULES[path]
        missing = [
            name
            for member in api.public_members(module)
            for name in undocumented(member, f"{path}.{member.name}")
        ]

        assert module.docstring is not None
        assert missing == []
