"""Write the reference in docs/cli.md from the commands themselves; what stands above it stays.

`python tools/cli_page.py` compares and says whether the page is current; `--update` rewrites it.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from postbus.cli._program import EXIT_CODES, program
from postbus.runtime import RULES

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "cli.md"
MARK = "<!-- What follows is written by tools/cli_page.py: change the commands, then run it. -->\n"
# Every command has them; they stand once, with the program.
COMMON = frozenset({"app", "config", "as_json"})


def commands(group: click.Group, before: str = "postbus") -> Iterator[tuple[str, click.Command]]:
    """Yield every command with its words, in the order of `--help`."""
    for name in sorted(group.commands):
        command = group.commands[name]
        words = f"{before} {name}"
        yield words, command
        if isinstance(command, click.Group):
            yield from commands(command, words)


def option_row(option: click.Option) -> str:
    """Return one line of a table."""
    words = ", ".join(option.opts)
    if option.secondary_opts:
        words += f", {', '.join(option.secondary_opts)}"
    if not option.is_flag and isinstance(option.type, click.Choice) and option.metavar is None:
        words += f" {'|'.join(option.type.choices)}"
    elif not option.is_flag:
        words += f" {option.metavar}"
    default = f" Default: {option.default}." if option.show_default else ""
    words = words.replace("|", "\\|")
    return f"| `{words}` | {option.help}{default} |"


def usage(words: str, command: click.Command) -> str:
    """Return the line that shows how to call it."""
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    shown = [str(each.metavar or each.name).upper() for each in arguments]
    return " ".join([words, "[OPTION]...", *shown])


def about(words: str, command: click.Command) -> Iterator[str]:
    """Yield the section of one command."""
    yield f"\n### {words}\n"
    if not isinstance(command, click.Group):
        yield f"```text\n{usage(words, command)}\n```\n"
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        text = " ".join(paragraph.splitlines())
        yield (
            f"`{text.removeprefix('Example: ')}`\n"
            if text.startswith("Example: ")
            else text + "\n"
        )
    options = [
        each
        for each in command.params
        if isinstance(each, click.Option) and not each.hidden and each.name not in COMMON
    ]
    if options:
        yield "| option | |\n| --- | --- |"
        yield "\n".join(map(option_row, options)) + "\n"


def reference() -> str:
    """Return what stands below the mark."""
    lines = ["\n## Exit codes\n", "| code | means |\n| --- | --- |"]
    lines += [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    lines.append("\n## Commands")
    for words, command in commands(program):
        lines += about(words, command)
    lines.append("\n## Rules\n")
    lines.append("| rule | what it finds | a start |\n| --- | --- | --- |")
    for rule in RULES.values():
        start = "refuses it" if rule.is_refused else "works"
        lines.append(f"| `{rule.id}` | {rule.summary} | {start} |")
    for rule in RULES.values():
        lines.append(f"\n### {rule.id}\n\n{rule.summary} {rule.explanation}")
    return "\n".join(lines) + "\n"


def page(written: str) -> str:
    """Return the whole page, with what is *written* above the mark."""
    above, mark, _ = written.partition(MARK)
    if not mark:
        sys.exit("docs/cli.md has lost its mark")
    below = re.sub(r"\n{3,}", "\n\n", reference())
    return f"{above}{MARK}{below}"


def main() -> int:
    """Compare or rewrite; 1 when the page is not current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="rewrite the page")
    is_update = parser.parse_args().update
    written = PAGE.read_text(encoding="utf-8")
    wanted = page(written)
    if is_update:
        PAGE.write_text(wanted, encoding="utf-8")
        return 0
    if written == wanted:
        return 0
    print("docs/cli.md is not current: python tools/cli_page.py --update")
    return 1


if __name__ == "__main__":
    sys.exit(main())
