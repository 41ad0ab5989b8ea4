"""What a wheel of each package contains; built with the build backend itself, so offline."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from email.parser import BytesParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

import pytest

if TYPE_CHECKING:
    from email.message import Message

pytest.importorskip("hatchling", reason="hatchling builds the wheels that these tests look into")

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))


class Wheel:
    """A built wheel beside the project file that it was built from."""

    def __init__(self, package: str, path: Path) -> None:
        self.package = package
        self.path = path
        with (ROOT / "packages" / package / "pyproject.toml").open("rb") as file:
            self.project: dict[str, Any] = tomllib.load(file)["project"]
        self.import_name = self.project["name"].replace("-", "_")
        with ZipFile(path) as archive:
            self.names = archive.namelist()

    @property
    def info(self) -> str:
        """The folder of the metadata."""
        return f"{self.import_name}-{self.project['version']}.dist-info"

    def read(self, name: str) -> bytes:
        """Read one file of the wheel."""
        with ZipFile(self.path) as archive:
            return archive.read(name)

    @property
    def metadata(self) -> Message:
        """The METADATA file."""
        return BytesParser().parsebytes(self.read(f"{self.info}/METADATA"))


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Wheel]:
    """Build each package once."""
    built: dict[str, Wheel] = {}
    for package in PACKAGES:
        folder = tmp_path_factory.mktemp(package)
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
            cwd=ROOT / "packages" / package,
            check=True,
            capture_output=True,
            timeout=120,
        )
        [path] = folder.glob("*.whl")
        built[package] = Wheel(package, path)
    return built


@pytest.fixture(params=PACKAGES)
def wheel(request: pytest.FixtureRequest, wheels: dict[str, Wheel]) -> Wheel:
    """Give one wheel after the other."""
    return wheels[request.param]


class TestWheel:
    """Each wheel."""

    def test_it_contains_the_package_and_nothing_else(self, wheel: Wheel) -> None:
        """No tests, no second package, no stray file."""
        folders = {name.split("/", maxsplit=1)[0] for name in wheel.names}

        assert folders == {wheel.import_name, wheel.info}
        assert [name for name in wheel.names if "/tests/" in name or "conftest" in name] == []

    def test_it_contains_every_module_of_the_sources(self, wheel: Wheel) -> None:
        """What is in the checkout is what is installed."""
        source = ROOT / "packages" / wheel.package / "src"
        modules = {path.relative_to(source).as_posix() for path in source.rglob("*.py")}

        assert modules == {name for name in wheel.names if name.endswith(".py")}

    def test_it_is_marked_as_typed(self, wheel: Wheel) -> None:
        """Type checkers read the annotations of an installed package only with the marker."""
        assert f"{wheel.import_name}/py.typed" in wheel.names

    def test_it_carries_the_licence_of_the_repository(self, wheel: Wheel) -> None:
        """The licence travels with each package."""
        licence = wheel.read(f"{wheel.info}/licenses/LICENSE")

        assert licence == (ROOT / "LICENSE").read_bytes()

    def test_its_metadata_is_complete(self, wheel: Wheel) -> None:
        """A page about the package can be made from the wheel alone."""
        metadata = wheel.metadata

        assert metadata["Name"] == wheel.project["name"]
        assert metadata["Version"] == wheel.project["version"]
        assert metadata["Requires-Python"] == ">=3.11"
        assert metadata["License-Expression"] == "MIT"
        assert metadata["Summary"]
        assert metadata["Keywords"]
        assert "Typing :: Typed" in metadata.get_all("Classifier", [])
        assert metadata["Description-Content-Type"] == "text/markdown"
        assert str(metadata.get_payload()).startswith(f"# {wheel.project['name']}\n")

    def test_each_transport_that_it_announces_can_be_loaded(self, wheel: Wheel) -> None:
        """An entry point names a record that is there."""
        announced: dict[str, str] = wheel.project["entry-points"]["postbus.transports"]

        assert announced
        for target in announced.values():
            module, _, attribute = target.partition(":")
            assert getattr(importlib.import_module(module), attribute) is not None

    def test_a_sibling_is_required_by_range(self, wheel: Wheel) -> None:
        """Packages are released on their own, so none pins another to one version."""
        siblings = [
            requirement
            for requirement in wheel.project["dependencies"]
            if requirement.startswith("postbus")
        ]

        assert [requirement for requirement in siblings if "==" in requirement] == []
        assert [requirement for requirement in siblings if "<" not in requirement] == []


class TestFolder:
    """Each folder below packages/."""

    @pytest.mark.parametrize("package", PACKAGES)
    def test_it_has_the_shape_of_a_package(self, package: str) -> None:
        """Whoever knows one package knows them all."""
        folder = ROOT / "packages" / package
        expected = [
            "CHANGELOG.md",
            "LICENSE",
            "README.md",
            "changelog.d",
            "towncrier.toml",
            "tests",
        ]

        assert [name for name in expected if not (folder / name).exists()] == []
        assert list((folder / "changelog.d").glob("*.md"))
