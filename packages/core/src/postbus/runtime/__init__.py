"""From one dict to everything that runs."""

from postbus.runtime._build import build
from postbus.runtime._postbus import Postbus
from postbus.runtime._project import Project, Way, guarantee_of
from postbus.runtime._rules import RULES, Finding, Rule, examine, finding_of

__all__ = [
    "RULES",
    "Finding",
    "Postbus",
    "Project",
    "Rule",
    "Way",
    "build",
    "examine",
    "finding_of",
    "guarantee_of",
]
