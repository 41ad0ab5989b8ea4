"""Read one plain value as a type that a settings class names, or say that it is none.

Types are strict: nothing is converted but an integer where a number is wanted. Text that came
from the environment (it carries a `template`, see `postbus.config`) has no other way to say a
number or a boolean, so it is read as what its key needs.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

if TYPE_CHECKING:
    from postbus.settings._fields import Rule

__all__ = ["INVALID", "from_text", "read_scalar"]

#: What is returned for a value that was refused: None may be a value.
INVALID: Any = object()

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}").fullmatch
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,3})?").fullmatch


def read_scalar(type_: Any, value: Any, rule: Rule) -> Any:
    """Return *value* as *type_*, or INVALID where it is of another type or breaks the rule."""
    if getattr(value, "template", None) is not None and isinstance(value, str):
        value = str(value) if type_ in {str, Any} else from_text(type_, str(value))
    if type_ is Any:
        return value
    if get_origin(type_) is Literal:
        same = [each for each in get_args(type_) if type(each) is type(value) and each == value]
        return same[0] if same else INVALID
    if type_ is bool:
        return value if isinstance(value, bool) else INVALID
    if type_ is str:
        return value if isinstance(value, str) and _fits_text(value, rule) else INVALID
    if type_ is int:
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return value if is_integer and _fits_number(value, rule) else INVALID
    if type_ is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if is_number and _fits_number(value, rule) else INVALID
    return INVALID


def from_text(type_: Any, text: str) -> Any:
    """Return what a text of the environment says as *type_*, or INVALID."""
    if type_ is bool:
        return {"true": True, "false": False}.get(text.lower(), INVALID)
    if type_ is int and _INTEGER(text):
        return int(text)
    if type_ is float and _NUMBER(text):
        return float(text)
    return text if get_origin(type_) is Literal else INVALID


def _fits_text(text: str, rule: Rule) -> bool:
    if rule.choices and text not in rule.choices:
        return False
    return rule.pattern is None or re.fullmatch(rule.pattern, text) is not None


def _fits_number(number: float, rule: Rule) -> bool:
    try:
        if not math.isfinite(number):
            return False
    except OverflowError:  # an integer too large for any float
        return False
    return (
        (rule.minimum is None or number >= rule.minimum)
        and (rule.maximum is None or number <= rule.maximum)
        and (rule.above is None or number > rule.above)
    )
