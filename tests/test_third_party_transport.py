"""A transport that this repository has never heard of, built, installed and used."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest

pytest.importorskip("hatchling", reason="hatchling builds the wheels that are installed here")
packaging_requirements = pytest.importorskip("packaging.requirements")

ROOT = Path(__file__).resolve().parent.parent

PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "postbus-acme"
version = "1.0"
dependencies = ["postbus"]

[project.entry-points."postbus.transports"]
acme = "postbus_acme:ACME"
"""

TRANSPORT = '''\
"""Messages as the lines of a file."""

import asyncio
from pathlib import Path

import attrs
from postbus.errors import ClosedError
from postbus.promises import Promise
from postbus.settings import setting
from postbus.transports import (
    Capabilities, Delivery, MessageConsumer, MessageProducer, Transport,
)

CAPABILITIES = Capabilities(durable=True, ordering=True)


@attrs.frozen
class AcmeSettings:
    path: str = setting(doc="the file")


class AcmeProducer(MessageProducer):
    capabilities = CAPABILITIES

    def __init__(self, path):
        self.path, self.is_closed = Path(path), False

    def send_many(self, messages):
        if self.is_closed:
            raise ClosedError("acme: the producer is closed")
        with self.path.open("ab") as file:
            file.writelines(message.body + b"\\n" for message in messages)

    def close(self):
        self.is_closed = True


class AcmeDelivery(Delivery):
    def ack(self):
        pass

    def settled(self):
        return Promise.resolved(None)


class AcmeConsumer(MessageConsumer):
    capabilities = CAPABILITIES

    def __init__(self, path):
        self.path, self.is_closed, self.taken = Path(path), False, 0

    async def receive(self, max_messages):
        while not self.is_closed:
            lines = self.path.read_bytes().splitlines() if self.path.exists() else []
            new = lines[self.taken : self.taken + max_messages]
            self.taken += len(new)
            if new:
                return [AcmeDelivery(line, {}, "acme") for line in new]
            await asyncio.sleep(0.01)
        raise ClosedError("acme: the consumer is closed")

    async def aclose(self):
        self.is_closed = True


class AcmeTransport(Transport):
    name = "acme"
    producer_settings = consumer_settings = AcmeSettings

    def make_producer(self, settings, common):
        return AcmeProducer(settings.path)

    def make_consumer(self, settings, common):
        return AcmeConsumer(settings.path)

    def capabilities(self, settings, common):
        return CAPABILITIES


ACME = AcmeTransport()
'''

# What every program below begins with: only the folder of the environment is searched.
BEGIN = """
import sys
sys.path.append(sys.argv[1])
import threading
import attrs
from postbus import Command, MessageCatalog, build
from postbus.discovery import installed_transports
from postbus.errors import ConfigurationError

@attrs.frozen
class SendMail(Command, name="shop.send-mail"):
    to: str

def config(**mail):
    return {
        "producers": {"mail": mail},
        "consumers": {"mail": mail},
        "command_bus": {"router": {
            "routes": {"shop.send-mail": "send_mail"},
            "send": {"shop.*": "producers.mail"},
        }},
    }

def build_shop(**mail):
    catalog = MessageCatalog()
    catalog.add(SendMail)
    return build(config(**mail), {"send_mail": send_mail}, catalog)

mails, arrived = [], threading.Event()
def send_mail(message):
    mails.append((message.to, threading.current_thread() is threading.main_thread()))
    arrived.set()

def refused(**mail):
    try:
        build_shop(**mail)
    except ConfigurationError as error:
        return {problem.path: problem.suggestion for problem in error.problems}
"""

MISSING = """
assert installed_transports() == ("memory",)
print(refused(transport="acme", path="mails.jsonl")["producers.mail.transport"])
"""

USED = """
assert installed_transports() == ("acme", "memory")
build_shop(transport="memory").close()
assert "postbus_acme" not in sys.modules, "a transport that nobody uses is loaded"

with build_shop(transport="acme", path="mails.jsonl") as postbus:
    assert "postbus_acme" in sys.modules
    postbus.command_bus.dispatch(SendMail("Ada"))
    assert mails == []
    with postbus.worker().running():
        assert arrived.wait(30)
assert mails == [("Ada", False)]

assert refused(transport="acme", pth="x")["producers.mail.pth"] == "did you mean 'path'?"
assert "producers.mail.requires[0]" in refused(
    transport="acme", path="x", requires=["acknowledge"]
)
assert refused(transport="acmee", path="x")["producers.mail.transport"] == "did you mean 'acme'?"
"""

CONTAINER = """
from pathlib import Path
from postbus.containers import TransportContainer
from postbus_acme import ACME

class AcmeContainer(TransportContainer):
    transport = ACME

with AcmeContainer(config={"path": "container.jsonl"}) as acme:
    acme.command_bus().dispatch(SendMail("Ada"))
assert Path("container.jsonl").read_text().count("shop.send-mail") == 1
"""


def install(project: Path, folder: Path, environment: Path) -> None:
    """Build the wheel of a project, and unpack it as an installer does."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=project, check=True, capture_output=True, timeout=120)
    [wheel] = folder.glob("*.whl")
    with ZipFile(wheel) as archive:
        archive.extractall(environment)


def required(name: str) -> set[str]:
    """Name the distributions that one needs, itself included."""
    found = {name}
    for line in metadata.requires(name) or ():
        requirement = packaging_requirements.Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found |= required(requirement.name)
    return found


def borrow(name: str, environment: Path) -> None:
    """Put a distribution of this environment into another one: nothing is downloaded here."""
    distribution = metadata.distribution(name)
    files = distribution.files or []
    for part in {file.parts[0] for file in files} - {"..", "__pycache__"}:
        (environment / part).symlink_to(str(distribution.locate_file(part)))


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an environment with the wheel of core, what that needs, and nothing else."""
    environment = tmp_path_factory.mktemp("environment")
    install(ROOT / "packages" / "core", tmp_path_factory.mktemp("core"), environment)
    for name in required("postbus") - {"postbus"}:
        borrow(name, environment)
    return environment


@pytest.fixture(scope="module")
def acme(core: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an environment with the transport beside core."""
    project, environment = tmp_path_factory.mktemp("acme"), tmp_path_factory.mktemp("both")
    (project / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    (project / "postbus_acme.py").write_text(TRANSPORT, encoding="utf-8")
    for each in core.iterdir():
        (environment / each.name).symlink_to(each)
    install(project, project / "dist", environment)
    return environment


def run(program: str, environment: Path, folder: Path) -> str:
    """Run a program that sees the standard library and one environment; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", "-c", BEGIN + program, str(environment)],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


class TestThirdParty:
    """A distribution with an entry point is all that a transport needs."""

    def test_before_it_is_installed_it_is_named(self, core: Path, tmp_path: Path) -> None:
        """The error says which distribution to install."""
        assert run(MISSING, core, tmp_path) == "install postbus-acme\n"

    def test_installed_it_is_found_and_used_by_configuration(
        self, acme: Path, tmp_path: Path
    ) -> None:
        """Sent and received with no change in core; its keys and capabilities count as ours."""
        run(USED, acme, tmp_path)

    def test_its_container_is_a_line(self, acme: Path, tmp_path: Path) -> None:
        """`TransportContainer` over its record."""
        run(CONTAINER, acme, tmp_path)
