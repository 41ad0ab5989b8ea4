"""What holds for every file of the repository, whatever it is about."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(ROOT.glob("packages/*/src/**/*.py"))
LARGEST_MODULE = 600

# Modules and calls that turn bytes into code or into arbitrary objects.
UNSAFE_MODULES = {"cloudpickle", "dill", "jsonpickle", "marshal", "pickle", "shelve"}
UNSAFE_CALLS = {"eval", "exec"}
UNSAFE_METHODS = {"recv_pyobj", "recv_serialized", "send_pyobj"}
UNSAFE_YAML = {"full_load", "load", "load_all", "unsafe_load"}

# Joined here, so that this file does not name what it looks for.
REGISTRY = re.compile(
    "|".join(("pypi" + r"\.org", "python" + "hosted", "registry" + r"\.npmjs", "--" + "index-url"))
)
MACHINE_PATH = re.compile(r"(?<![\w.~$}<-])/(?:root|work|home|tmp)/\w")
SUPPRESSION = re.compile(
    r"#\s*(?:noqa:\s*[A-Z]+\d+(?:,\s*[A-Z]+\d+)*"
    r"|(?:type|pyright):\s*ignore(?:\[[^]]*\])?"
    r"|pragma:\s*no\s*(?:cover|branch))"
)


def relative(path: Path) -> str:
    """Name a file as a reader of the repository would."""
    return path.relative_to(ROOT).as_posix()


def repository_files() -> list[Path]:
    """List the files that are in the repository, or would be with the next commit."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a checkout: there is no list of its files")
    listed = subprocess.run(
        [git, "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def lines_that_match(pattern: re.Pattern[str]) -> list[str]:
    """Find a pattern in the files of the repository."""
    found: list[str] = []
    for path in repository_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [
            f"{relative(path)}:{number}: {line.strip()[:120]}"
            for number, line in enumerate(text.splitlines(), start=1)
            if pattern.search(line)
        ]
    return found


class TestPins:
    """constraints.txt."""

    def test_every_line_pins_one_version_and_names_no_host(self) -> None:
        """A line is `name==version`."""
        lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        pin = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+")

        assert lines
        assert [line for line in lines if not pin.fullmatch(line)] == []

    def test_no_distribution_is_pinned_twice(self) -> None:
        """Two pins of one distribution cannot both hold."""
        lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        names = [re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines]

        assert len(names) == len(set(names))

    def test_the_packages_themselves_are_not_pinned(self) -> None:
        """They come from the checkout."""
        assert "postbus" not in (ROOT / "constraints.txt").read_text(encoding="utf-8")


class TestFiles:
    """Everything that is committed."""

    def test_no_file_names_a_package_registry(self) -> None:
        """Where packages come from is the business of the machine that installs them."""
        assert lines_that_match(REGISTRY) == []

    def test_no_file_names_a_path_of_a_machine(self) -> None:
        """A clone works wherever it stands."""
        assert lines_that_match(MACHINE_PATH) == []

    def test_no_lock_file_is_committed(self) -> None:
        """Lock files record hosts; the pins stand in constraints.txt."""
        locks = {"package-lock.json", "pdm.lock", "poetry.lock", "uv.lock"}

        assert [relative(path) for path in repository_files() if path.name in locks] == []


def unsafe_uses(tree: ast.AST) -> list[str]:
    """List what a module does that could run or build what a peer sent."""
    found: list[str] = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found += [name.name for name in names if name.name.split(".")[0] in UNSAFE_MODULES]
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in UNSAFE_MODULES:
                found.append(module)
            case ast.Call(func=ast.Name(id=name)) if name in UNSAFE_CALLS:
                found.append(name)
            case ast.Attribute(attr=name) if name in UNSAFE_METHODS:
                found.append(name)
            case ast.Attribute(value=ast.Name(id="yaml"), attr=name) if name in UNSAFE_YAML:
                found.append(f"yaml.{name}")
            case _:
                pass
    return found


class TestSources:
    """The modules of the packages."""

    @pytest.mark.parametrize("path", SOURCES, ids=relative)
    def test_nothing_runs_or_unpickles_what_a_peer_sent(self, path: Path) -> None:
        """No pickle, marshal, eval, exec or unsafe YAML."""
        tree = ast.parse(path.read_text(encoding="utf-8"))

        assert unsafe_uses(tree) == []

    @pytest.mark.parametrize(
        "source",
        [
            "import pickle",
            "from marshal import loads",
            "eval('1')",
            "exec('x = 1')",
            "socket.recv_pyobj()",
            "yaml.load(text)",
        ],
    )
    def test_the_search_finds_each_unsafe_use(self, source: str) -> None:
        """The test above would see one."""
        assert len(unsafe_uses(ast.parse(source))) == 1

    @pytest.mark.parametrize("path", SOURCES, ids=relative)
    def test_a_module_can_be_read_in_one_sitting(self, path: Path) -> None:
        """What grows beyond the limit is split."""
        assert len(path.read_text(encoding="utf-8").splitlines()) <= LARGEST_MODULE

    @pytest.mark.parametrize("path", SOURCES, ids=relative)
    def test_each_suppression_says_why(self, path: Path) -> None:
        """A comment stands on the line above, or behind the suppression."""
        lines = ["", *path.read_text(encoding="utf-8").splitlines()]
        silent = [
            f"{relative(path)}:{number}: {line.strip()}"
            for number, (above, line) in enumerate(pairwise(lines), start=1)
            if (found := SUPPRESSION.search(line))
            and not above.strip().startswith("#")
            and not re.search(r"\w", line[found.end() :])
        ]

        assert silent == []
