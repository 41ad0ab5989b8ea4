"""The commands of the workspace; `./dev NAME` runs the session of that name.

`check` is a list: it queues one session per gate, so that a run shows every gate that fails
and each can be run by itself.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "check"]
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml("pyproject.toml")
PACKAGES = sorted(path.parent for path in Path("packages").glob("*/pyproject.toml"))
GATES = ["lint", "types", "imports", "coverage", "api", "docs", "build"]
RECORD = Path(".coverage")
DIST = Path("dist")
# An extra whose classes a public one derives from: without it that one's type is not known.
TYPED_WITH = {"postbus_http": "[server]"}
# No notice about versions newer than the pinned one.
PYRIGHT = {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}


def tools(*groups: str) -> list[str]:
    """List what the named dependency groups ask for."""
    return list(nox.project.dependency_groups(PROJECT, *groups))


def install(session: nox.Session, *groups: str, packages: bool = False) -> None:
    """Install groups and the packages, all in one go, so that siblings come from the checkout."""
    wanted = tools(*groups)
    for package in PACKAGES if packages else []:
        extras = "[cli,testing,yaml]" if package.name == "core" else ""
        wanted += ["-e", f"./{package}{extras}"]
    session.install("-c", "constraints.txt", *wanted)


def existing(*names: str) -> list[str]:
    """Keep the names that are there."""
    return [name for name in names if Path(name).exists()]


def run_tests(session: nox.Session, record: str) -> None:
    """Run pytest under coverage and leave one combined record."""
    session.env["COVERAGE_FILE"] = str(ROOT / record)
    for old in ROOT.glob(f"{record}*"):
        old.unlink()
    try:
        session.run("coverage", "run", "-m", "pytest", "--timeout=120", *session.posargs)
    finally:
        session.run("coverage", "combine", "--quiet", success_codes=[0, 1], silent=True)


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests and the snippets of the docs; arguments are pytest's."""
    install(session, "test", packages=True)
    # Arguments may select a few tests: what those cover is not what `check` judges.
    run_tests(session, ".coverage-part" if session.posargs else str(RECORD))


@nox.session(python=["3.11", "3.12", "3.13"])
def compat(session: nox.Session) -> None:
    """Run all tests on another Python: nox -s compat-3.13."""
    install(session, "test", packages=True)
    session.run("pytest", "--timeout=120", *session.posargs)


@nox.session(venv_backend="uv")
def minimum(session: nox.Session) -> None:
    """Run all tests on the oldest versions that the packages say they work with."""
    session.install("-c", "constraints.txt", *tools("test"))
    projects = [part for package in PACKAGES for part in ("-r", f"{package}/pyproject.toml")]
    editable = [part for package in PACKAGES for part in ("-e", f"./{package}")]
    session.install("--resolution=lowest-direct", *projects, *editable)
    session.run("pytest", "--timeout=120", *session.posargs)


@nox.session(venv_backend="none")
def check(session: nox.Session) -> None:
    """Queue every gate; the tests too, when no run has recorded its coverage yet."""
    if not RECORD.exists():
        session.notify("tests", posargs=[])
    for gate in GATES:
        session.notify(gate, posargs=[])


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format with ruff; --fix mends."""
    install(session, "lint")
    fix = "--fix" in session.posargs
    session.run("ruff", "check", *(["--fix"] if fix else []), ".")
    session.run("ruff", "format", *([] if fix else ["--check"]), ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy and pyright, both strict."""
    install(session, "types", "test", packages=True)
    session.run("mypy", *existing(*PROJECT["tool"]["pyright"]["include"]))
    session.run("pyright", "--pythonpath", f"{session.bin}/python", env=PYRIGHT)


@nox.session
def imports(session: nox.Session) -> None:
    """Check the layers with import-linter and the declared dependencies with deptry."""
    install(session, "imports", packages=True)
    session.run("lint-imports")
    for package in PACKAGES:
        with session.chdir(package):
            session.run("deptry", "src")


@nox.session
def coverage(session: nox.Session) -> None:
    """Judge the last record of `tests` by the floors in pyproject.toml."""
    install(session, "test")
    if not RECORD.exists():
        session.error("there is no record of covered lines: ./dev tests makes one")
    for files, floor in PROJECT["tool"]["postbus"]["coverage-floors"].items():
        session.log(f"floor for {files}: {floor} %")
        session.run("coverage", "report", f"--include={files}", f"--fail-under={floor}")


@nox.session
def api(session: nox.Session) -> None:
    """Compare the public interface with api/*.txt; --update rewrites them."""
    install(session, "api")
    session.run("python", "tools/api_snapshot.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    install(session, "docs", packages=True)
    # Without -E a second build over cached pages passes with every broken link in place.
    strict = ["-E", "-n", "-W", "--keep-going", "-q"]
    session.run("sphinx-build", *strict, "-b", "html", "docs", "docs/_build/html")
    session.log("docs/_build/html/index.html")


@nox.session
def linkcheck(session: nox.Session) -> None:
    """Follow every link of the documentation out into the world."""
    install(session, "docs", packages=True)
    session.run("sphinx-build", "-E", "-q", "-b", "linkcheck", "docs", "docs/_build/linkcheck")


@nox.session
def build(session: nox.Session) -> None:
    """Build each package, then install each wheel alone, import it and verify its types."""
    install(session, "build")
    for old in DIST.glob("*"):
        old.unlink()
    for package in PACKAGES:
        arguments = ["--no-isolation", "--outdir", str(DIST), str(package)]
        session.run("python", "-m", "build", *arguments, silent=True)
    session.run("twine", "check", "--strict", *map(str, sorted(DIST.iterdir())))
    failed: list[str] = []
    for wheel in sorted(DIST.glob("*.whl")):
        with tempfile.TemporaryDirectory() as empty:
            if not verify_wheel(session, wheel, Path(empty)):
                failed.append(wheel.name)
    if failed:
        session.error(f"some public types of {', '.join(failed)} are not known: annotate them")


def verify_wheel(session: nox.Session, wheel: Path, venv: Path) -> bool:
    """Install one wheel in an empty environment, import it and say whether its types are known."""
    name = wheel.name.split("-", maxsplit=1)[0]
    python = str(venv / "bin" / "python")
    pip = ("uv", "pip", "install", "--quiet", "--python", python)
    found = ("--constraint", "constraints.txt", "--find-links", str(DIST))
    session.run("uv", "venv", "--quiet", "--clear", "--python", f"{session.bin}/python", str(venv))
    session.run(*pip, *found, str(wheel))
    session.run(python, "-I", "-c", f"import {name}; print({name}.__file__)", external=True)
    if name in TYPED_WITH:
        session.run(*pip, *found, f"{wheel}{TYPED_WITH[name]}")
    # pyright verifies what the first python on PATH has installed; --pythonpath does not count,
    # and nox puts its own folder first whatever PATH it is given.
    path = os.pathsep.join([str(venv / "bin"), session.bin, os.environ["PATH"]])
    verify = ("pyright", "--ignoreexternal", "--verifytypes", name)
    session.log(" ".join(verify))
    report = session.run(
        *("env", f"PATH={path}", *verify),
        env=PYRIGHT,
        external=True,
        log=False,
        silent=True,
        success_codes=[0, 1],
    )
    known = "Type completeness score: 100%" in str(report)
    session.log(f"{name}: every public type is known" if known else str(report))
    return known


@nox.session
def changelog(session: nox.Session) -> None:
    """Show what the next entries of the changelogs would say."""
    install(session, "changelog")
    for package in PACKAGES:
        with session.chdir(package):
            arguments = ["--config", "towncrier.toml", "--draft", "--version", "next"]
            session.run("towncrier", "build", *arguments)


@nox.session
def demo(session: nox.Session) -> None:
    """Run the shop example."""
    install(session, packages=True)
    run_script(session, Path("examples/shop/demo.py"), session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run benchmarks/NAME.py; the libraries it compares with are installed for it."""
    run_named(session, Path("benchmarks"))


@nox.session
def chaos(session: nox.Session) -> None:
    """Run benchmarks/chaos/NAME.py: kill processes on purpose and count what was lost."""
    run_named(session, Path("benchmarks/chaos"))


def run_named(session: nox.Session, folder: Path) -> None:
    """Run the script of a folder that the first argument names.

    `http_.py` is called http: a script without the underscore would stand in the way of the
    standard library's module for all scripts beside it.
    """
    scripts = {path.stem.rstrip("_"): path for path in folder.glob("[!_]*.py")}
    names = sorted(scripts)
    if not names:
        session.error(f"there is no {session.name} run yet: {folder}/ has none")
    known = f"one of: {', '.join(names)}"
    if not session.posargs:
        session.error(f"./dev {session.name} NAME, {known}")
    name, *arguments = session.posargs
    if name not in names:
        session.error(f"there is no {session.name} run {name!r}; {known}")
    requirements = existing("benchmarks/requirements.txt")
    install(session, packages=True)
    if requirements:
        session.install("-c", "constraints.txt", "-r", requirements[0])
    run_script(session, scripts[name], arguments)


def run_script(session: nox.Session, script: Path, arguments: list[str]) -> None:
    """Run a script of the checkout, with the root on its path."""
    if not script.exists():
        session.error(f"there is no {script} yet")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    session.run("python", str(script), *arguments, env={"PYTHONPATH": path})


if __name__ == "__main__":
    sys.exit("./dev NAME, or nox -s NAME")
