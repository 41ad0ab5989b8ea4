"""Write down the public interface of each package, one line per name, so that a change is seen.

`python tools/api_snapshot.py` compares with `api/*.txt` and prints the difference;
`--update` rewrites the files. The sources are read, never imported.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import griffe

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
BINDINGS = ("classmethod", "staticmethod")
SOURCES = sorted(ROOT.glob("packages/*/src"))


def names() -> list[str]:
    """List the import names of the packages, in order."""
    return sorted(path.parent.name for source in SOURCES for path in source.glob("*/__init__.py"))


def load(name: str) -> griffe.Module:
    """Read the sources of one package; the siblings are read with it, for what it re-exports."""
    loader = griffe.GriffeLoader(search_paths=SOURCES, allow_inspection=False)
    for each in names():
        loader.load(each, try_relative_path=False)
    loader.resolve_aliases(external=False)
    modules: dict[str, griffe.Module] = loader.modules_collection.members
    return modules[name]


def is_public_name(name: str) -> bool:
    """Say whether a name is meant for others."""
    return not name.startswith("_")


def public_modules(module: griffe.Module) -> Iterator[griffe.Module]:
    """Yield a module and those below it that carry public names only."""
    yield module
    for name, member in sorted(module.members.items()):
        if isinstance(member, griffe.Module) and is_public_name(name):
            yield from public_modules(member)


def public_members(module: griffe.Module) -> Iterator[griffe.Object | griffe.Alias]:
    """Yield what a module offers: the names in `__all__`, without one what it defines."""
    offered = module.exports
    for name, member in sorted(module.members.items()):
        if offered is not None:
            if name in {str(each) for each in offered}:
                yield member
        elif is_public_name(name) and not member.is_alias and not member.is_module:
            yield member


def members_of_class(cls: griffe.Class) -> Iterator[griffe.Object | griffe.Alias]:
    """Yield the public members that a class defines itself, and how it is built."""
    for name, member in sorted(cls.members.items()):
        if is_public_name(name) or name == "__init__":
            yield member


def one_line(text: object) -> str:
    """Fold white space, so that a long default stays on its line."""
    return " ".join(str(text).split())


def describe(member: griffe.Object | griffe.Alias, path: str) -> Iterator[str]:
    """Yield the line of a member, and those of what a class contains."""
    if isinstance(member, griffe.Alias):
        if lives_in_private(member.target_path):
            # The name here is the one that counts, so what it offers is written down here.
            yield from describe(member.final_target, path)
        else:
            yield f"{path} = {member.target_path}"
    elif isinstance(member, griffe.Class):
        bases = ", ".join(one_line(base) for base in member.bases)
        yield f"class {path}({bases})" if bases else f"class {path}"
        for each in members_of_class(member):
            yield from describe(each, f"{path}.{each.name}")
    elif isinstance(member, griffe.Function):
        yield describe_function(member, path)
    elif isinstance(member, griffe.Attribute):
        yield describe_attribute(member, path)


def lives_in_private(path: str) -> bool:
    """Say whether a module on the way to *path* is nobody's business but its package's."""
    return any(not is_public_name(part) for part in path.split(".")[:-1])


def describe_function(function: griffe.Function, path: str) -> str:
    """Give a function with its signature; overloads stand in the order of the source."""
    prefix = "async def" if "async" in function.labels else "def"
    binding = "".join(f"@{each} " for each in BINDINGS if each in function.labels)
    variants = function.overloads or [function]
    signatures = [one_line(each.signature()).removeprefix(function.name) for each in variants]
    return f"{binding}{prefix} {path}{' | '.join(signatures)}"


def describe_attribute(attribute: griffe.Attribute, path: str) -> str:
    """Give an attribute with its type, and its value where a caller can see it."""
    text = path
    if attribute.annotation is not None:
        text += f": {one_line(attribute.annotation)}"
    if attribute.value is not None and not is_set_by_init(attribute):
        text += f" = {one_line(attribute.value)}"
    return text


def is_set_by_init(attribute: griffe.Attribute) -> bool:
    """Say whether a value is only what `__init__` happens to assign."""
    return "instance-attribute" in attribute.labels and "class-attribute" not in attribute.labels


def snapshot(name: str) -> str:
    """Give the public interface of one package as text."""
    lines = {
        line
        for module in public_modules(load(name))
        for member in public_members(module)
        for line in describe(member, f"{module.path}.{member.name}")
    }
    return "".join(f"{line}\n" for line in sorted(lines, key=by_path))


def by_path(line: str) -> tuple[str, str]:
    """Sort by the dotted path, whatever kind of thing it is."""
    dotted = next(word for word in line.replace("(", " ").split() if "." in word)
    return dotted.rstrip(":"), line


def recorded(name: str) -> Path:
    """Say where the interface of a package is written down."""
    return ROOT / "api" / f"{name}.txt"


def difference(name: str) -> str:
    """Compare what is written down with what the sources say; empty when they agree."""
    path = recorded(name)
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = difflib.unified_diff(
        before.splitlines(keepends=True),
        snapshot(name).splitlines(keepends=True),
        fromfile=f"api/{path.name}",
        tofile=f"the sources of {name}",
        n=0,
    )
    return "".join(lines)


def main() -> int:
    """Compare or rewrite; 1 when they differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="rewrite api/*.txt")
    if parser.parse_args().update:
        recorded("postbus").parent.mkdir(exist_ok=True)
        for name in names():
            recorded(name).write_text(snapshot(name), encoding="utf-8")
        return 0
    differences = "".join(difference(name) for name in names())
    if differences:
        print(differences)
        print("The public interface changed. If that is meant: ./dev api --update,")
        print("and a fragment in the package's changelog.d/ that tells its users.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
