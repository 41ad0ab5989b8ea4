"""The command line `postbus`. It needs the extra `cli`: click and rich.

`main` is the console script; `python -m postbus.cli` is the same.
"""

from postbus.cli._main import main

__all__ = ["main"]
