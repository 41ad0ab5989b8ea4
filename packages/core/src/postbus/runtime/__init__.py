"""From one dict to everything that runs."""

from postbus.runtime._build import build
from postbus.runtime._postbus import Postbus

__all__ = ["Postbus", "build"]
