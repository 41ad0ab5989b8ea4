"""Transports by name: entry points of distributions that the tests lay out themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from postbus.discovery import find_transport, installed_transports
from postbus.errors import ConfigurationError, Problem
from postbus.memory import MEMORY

Install = Callable[..., Path]

TRANSPORT = """
from postbus.memory import MEMORY, MemoryTransport

class AcmeTransport(MemoryTransport):
    name = "acme"

ACME = AcmeTransport()
NOTHING = object()
"""


def lay_out(folder: Path, name: str, entries: str, *, metadata: bool = True) -> None:
    """Lay a distribution out as an installer does: its metadata and its entry points."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    if metadata:
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        (info / "METADATA").write_text(text, encoding="utf-8")
    points = f"[postbus.transports]\n{entries}\n"
    (info / "entry_points.txt").write_text(points, encoding="utf-8")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that installs a distribution for this test."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str, entries: str, *, metadata: bool = True) -> Path:
        lay_out(tmp_path, name, entries, metadata=metadata)
        return tmp_path

    yield make
    for module in [name for name in sys.modules if name.startswith("acme")]:
        del sys.modules[module]


def refused(name: str, path: str = "transport") -> Problem:
    """Return the one problem of a name."""
    with pytest.raises(ConfigurationError) as caught:
        find_transport(name, path)
    (problem,) = caught.value.problems
    return problem


class TestInstalled:
    """What is installed."""

    def test_lists_names_once_and_sorted(self, install: Install) -> None:
        """A name that two distributions claim is one name."""
        install("zz-one", "acme = no_such_module:ACME")
        install("zz-two", "acme = no_such_module:ACME")

        names = installed_transports()

        assert sorted(set(names)) == list(names)
        assert {"acme", "memory"} <= set(names)

    def test_finds_core_s_own_transport_like_any_other(self) -> None:
        """There is no list in core: memory has an entry point too."""
        assert find_transport("memory") is MEMORY


class TestFind:
    """One transport by its name."""

    def test_a_third_party_s_transport_is_found(self, install: Install) -> None:
        """An installed distribution is all that it takes."""
        folder = install("postbus-acme", "acme = acme_found:ACME")
        (folder / "acme_found.py").write_text(TRANSPORT, encoding="utf-8")

        assert find_transport("acme").name == "acme"

    def test_a_missing_one_says_which_distribution_to_install(self) -> None:
        """The path, what is installed, and what to install."""
        problem = refused("carrierpigeon", "producers.mail.transport")

        assert problem.path == "producers.mail.transport"
        assert problem.value == "'carrierpigeon'"
        assert "memory" in problem.expected
        assert problem.suggestion == "install postbus-carrierpigeon"

    def test_a_misspelt_one_is_corrected_and_never_installed(self) -> None:
        """Nobody is told to install a distribution whose name is a typo."""
        problem = refused("memry")

        assert problem.suggestion == "did you mean 'memory'?"

    def test_two_distributions_of_one_name_are_refused(self, install: Install) -> None:
        """Neither wins by chance; both are named."""
        install("zz-one", "acme = one:ACME")
        install("zz-two", "acme = two:ACME")

        problem = refused("acme")

        assert "zz-one and zz-two" in problem.expected
        assert problem.suggestion == "uninstall all but one"

    def test_homonyms_without_a_name_are_told_apart_by_what_they_name(
        self, install: Install
    ) -> None:
        """Broken metadata does not hide the mistake."""
        install("zz-one", "acme = one:ACME", metadata=False)
        install("zz-two", "acme = two:ACME", metadata=False)

        assert "one:ACME and two:ACME" in refused("acme").expected

    def test_homonyms_do_not_stand_in_the_way_of_others(self, install: Install) -> None:
        """Who uses another transport does not care."""
        install("zz-one", "acme = one:ACME")
        install("zz-two", "acme = two:ACME")

        assert find_transport("memory") is MEMORY

    @pytest.mark.parametrize(
        ("module", "said"),
        [
            ("import no_such_client_library", "ModuleNotFoundError"),
            ("raise OSError('dsn=tcp://user:hunter2@host')", "OSError"),
            ("", "AttributeError"),
        ],
    )
    def test_one_that_cannot_be_loaded_says_why(
        self, install: Install, module: str, said: str
    ) -> None:
        """Whatever its module raises becomes a problem, without a secret in it."""
        folder = install("postbus-acme", "acme = acme_broken:ACME")
        (folder / "acme_broken.py").write_text(module, encoding="utf-8")

        problem = refused("acme")

        assert said in problem.expected
        assert "acme_broken:ACME" in problem.expected
        assert "hunter2" not in str(problem)
        assert problem.suggestion == "install postbus-acme anew, with its dependencies"

    def test_one_that_is_no_transport_is_refused(self, install: Install) -> None:
        """The record must be a `Transport`."""
        folder = install("postbus-acme", "acme = acme_other:NOTHING")
        (folder / "acme_other.py").write_text(TRANSPORT, encoding="utf-8")

        problem = refused("acme")

        assert "it is a object" in problem.expected
        assert problem.suggestion == "ask the maintainers of postbus-acme"


USE = """
import sys
from postbus.discovery import installed_transports
assert "acme" in installed_transports()
assert "acme_transport" not in sys.modules, "listing loads"

from postbus import build
import acme_shop

def config(transport):
    return {
        "messages": ["acme_shop"],
        "producers": {"mail": {"transport": transport}},
        "consumers": {"mail": {"transport": transport}},
        "command_bus": {"router": {
            "routes": {"shop.send-welcome": "send_welcome"},
            "send": {"shop.send-welcome": "producers.mail"},
        }},
    }

build(config("memory"), {"send_welcome": print}).close()
assert "acme_transport" not in sys.modules, "another transport loads it"

with build(config("acme"), {"send_welcome": acme_shop.send_welcome}) as postbus:
    assert "acme_transport" in sys.modules
    postbus.command_bus.dispatch(acme_shop.SendWelcome("Ada"))
    with postbus.worker().running():
        assert acme_shop.done.wait(10)
print(acme_shop.welcomed)
"""

SHOP = """
import threading
import attrs
from postbus import Command

done = threading.Event()
welcomed = []

@attrs.frozen
class SendWelcome(Command, name="shop.send-welcome"):
    to: str

def send_welcome(message):
    welcomed.append(message.to)
    done.set()
"""


class TestThirdParty:
    """A transport that core has never heard of."""

    def test_it_is_loaded_when_used_and_works_by_configuration_alone(self, tmp_path: Path) -> None:
        """Config to wire and back over a distribution made here, loaded by nothing else."""
        lay_out(tmp_path, "postbus-acme", "acme = acme_transport:ACME")
        (tmp_path / "acme_transport.py").write_text(TRANSPORT, encoding="utf-8")
        (tmp_path / "acme_shop.py").write_text(SHOP, encoding="utf-8")
        paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]

        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", USE],
            check=False,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            text=True,
            timeout=60,
        )

        assert done.returncode == 0, done.stderr
        assert done.stdout == "['Ada']\n"
