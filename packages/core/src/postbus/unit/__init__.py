"""The unit of work: what one dispatch and everything it causes commit or roll back together.

A unit belongs to the running task, or to the thread where no task runs; it is never inherited by
child tasks or other threads, whose dispatches are outermost ones of their own.
"""

from postbus.unit._failpoints import FAILPOINTS, armed, reach
from postbus.unit._receipts import HandledError, Outgoing, Receipt
from postbus.unit._running import arun_in_unit, raise_unsent, run_in_unit
from postbus.unit._services import Lifetime, MappingServices, Services, open_service
from postbus.unit._unit import Opener, Unit, current_unit, running, running_loop

__all__ = [
    "FAILPOINTS",
    "HandledError",
    "Lifetime",
    "MappingServices",
    "Opener",
    "Outgoing",
    "Receipt",
    "Services",
    "Unit",
    "armed",
    "arun_in_unit",
    "current_unit",
    "open_service",
    "raise_unsent",
    "reach",
    "run_in_unit",
    "running",
    "running_loop",
]
