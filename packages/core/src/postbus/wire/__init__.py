"""Messages as bytes: a JSON object in UTF-8, which the PHP system before us reads as well.

`encode` writes nothing that `decode` would not take back, and `decode` answers any bytes at all
with an envelope or a `DecodeError` whose `reason` is one of `Reason`. A name in the bytes only
ever selects an entry of a catalogue. Types that a message may have: attrs classes, dataclasses,
msgspec Structs and pydantic models, with fields of None, bool, int, float, str, bytes (base64),
Decimal and UUID (text), datetime (RFC 3339, with an offset), date, time, timedelta (ISO 8601),
Enum, Literal, list, tuple, dict, set, frozenset, unions and such classes again.
"""

from __future__ import annotations

from postbus.wire._decode import decode
from postbus.wire._encode import encode, new_encoder
from postbus.wire._reasons import Reason
from postbus.wire._replies import (
    answer_type,
    decode_problem,
    decode_result,
    encode_problem,
    encode_result,
)
from postbus.wire._scan import MAX_DEPTH, MAX_DIGITS

__all__ = [
    "MAX_DEPTH",
    "MAX_DIGITS",
    "Reason",
    "answer_type",
    "decode",
    "decode_problem",
    "decode_result",
    "encode",
    "encode_problem",
    "encode_result",
    "new_encoder",
]
