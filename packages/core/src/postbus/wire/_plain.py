"""Values without an annotation: `Any`, `object`, a bare `dict` or `list`. They are plain JSON."""

from __future__ import annotations

from decimal import Decimal
from math import isfinite
from types import GenericAlias
from typing import Annotated, Any

import msgspec

from postbus.wire._leaves import mismatch
from postbus.wire._scan import MAX_DEPTH
from postbus.wire._types import MismatchError

_LEVELS = 6
_LARGEST = 1.7976931348623157e308
# NaN fails both comparisons' checks, as the infinities fail one.
_Finite = Annotated[float, msgspec.Meta(ge=-_LARGEST, le=_LARGEST)]


def _plain(levels: int, number: Any) -> Any:
    scalar = None | bool | int | number | str
    if not levels:
        return scalar
    inner = _plain(levels - 1, number)
    return scalar | GenericAlias(list, (inner,)) | GenericAlias(dict, (str, inner))


PLAIN: Any = _plain(_LEVELS, _Finite)
# As it is read: JSON has no numbers that are not finite. What is deeper is left to `Any`.
READ_PLAIN: Any = _plain(_LEVELS, float)


class PlainValue(msgspec.Struct, array_like=True, gc=False):
    """A value of `PLAIN`: msgspec keeps what it works out about a type with a Struct only.

    An array, since a tuple around the value is made faster than a dict.
    """

    value: PLAIN  # pyright: ignore[reportInvalidTypeForm]  # built in a loop, of types only


_SIMPLE = frozenset({str, bool, int, type(None)})


def write_plain(value: Any) -> Any:
    """Return *value* after making sure that JSON can hold it and all in it.

    Tuples and sets are written as arrays and a Decimal as text: without an annotation nothing
    says what to make of them on the other side.

    Raises:
        MismatchError: there is something else in it, NaN or Infinity, a key that is no text, or
            more than `MAX_DEPTH` levels.
    """
    if type(value) in _SIMPLE:
        return value
    try:
        msgspec.convert((value,), PlainValue)
    except msgspec.ValidationError:
        # Deeper than _LEVELS, or wrong: this way is slower and says what.
        _walk(value, MAX_DEPTH)
    return value


def _walk(value: Any, levels: int) -> None:
    if levels < 0:
        msg = f"expected at most {MAX_DEPTH} levels of lists and dicts"
        raise MismatchError(msg)
    kind = value.__class__
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise mismatch("a str as key", key)
            _walk(item, levels - 1)
    elif kind in {list, tuple, set, frozenset}:
        for item in value:
            _walk(item, levels - 1)
    elif kind in {float, Decimal}:
        if not isfinite(value):
            msg = "expected a finite float: JSON has no NaN and no Infinity"
            raise MismatchError(msg)
    elif kind not in _SIMPLE:
        raise mismatch("plain JSON (None, bool, int, float, str, list, dict)", value)
