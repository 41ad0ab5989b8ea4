"""Commands, events and queries, and the envelope that gives one of them an identity.

Any object can be dispatched in process. The base classes here add what the wire needs: a name
that survives a rename, a kind, a version. They carry no data and no behaviour.
"""

from postbus.messages._envelope import Envelope
from postbus.messages._ids import is_canonical_id, new_id, parse_id
from postbus.messages._kinds import (
    AsyncMessage,
    Command,
    Event,
    MessageInfo,
    MessageKind,
    Query,
    message_info,
)
from postbus.messages._metadata import check_metadata

__all__ = [
    "AsyncMessage",
    "Command",
    "Envelope",
    "Event",
    "MessageInfo",
    "MessageKind",
    "Query",
    "check_metadata",
    "is_canonical_id",
    "message_info",
    "new_id",
    "parse_id",
]
