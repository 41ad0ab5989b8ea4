"""The console script, which says what to install where the extra is missing."""

from __future__ import annotations

import sys

__all__ = ["main"]

_NEEDED = frozenset({"click", "rich"})


def main() -> None:
    """Run the command line of this process, and exit with its code.

    Raises:
        SystemExit: always; 3 where click or rich is not installed.
    """
    try:
        from postbus.cli._program import program
    except ModuleNotFoundError as error:
        if error.name not in _NEEDED:
            raise
        sys.stderr.write(f"postbus: {error.name} is not installed: pip install 'postbus[cli]'\n")
        raise SystemExit(3) from None
    program(prog_name="postbus")
