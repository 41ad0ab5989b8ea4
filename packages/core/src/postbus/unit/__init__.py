"""The unit of work: what one dispatch and everything it causes commit or roll back together.

A unit belongs to the running task, or to the thread where no task runs; it is never inherited by
child tasks or other threads, whose dispatches are outermost ones of their own.
"""

from postbus.unit._running import arun_in_unit, raise_unsent, run_in_unit
from postbus.unit._services import Lifetime, MappingServices, Services, open_service
from postbus.unit._unit import Opener, Unit, current_unit, running, running_loop

__all__ = [
    "Lifetime",
    "MappingServices",
    "Opener",
    "Services",
    "Unit",
    "arun_in_unit",
    "current_unit",
    "open_service",
    "raise_unsent",
    "run_in_unit",
    "running",
    "running_loop",
]
