"""What a configuration may say: the schema, and the way from a plain dict to it.

Nothing is ignored and nothing is guessed: each key is read by one settings class, types are
strict, and whatever is wrong is collected as a `Problem`, all of it, without a secret in it.
Transports describe their own keys with `setting` and get them read by `parse`.
"""

from __future__ import annotations

from postbus.settings._buses import (
    BusSettings,
    CommandBusSettings,
    EventBusSettings,
    QueryBusSettings,
)
from postbus.settings._fields import Key, Rule, describe, keys_of, setting
from postbus.settings._masking import mask, show
from postbus.settings._parsing import nearest, parse
from postbus.settings._root import PostbusSettings, read_settings
from postbus.settings._routes import EventRouterSettings, RouterSettings, RouteTarget
from postbus.settings._sections import (
    CAPABILITIES,
    RESERVED_CONSUMER_KEYS,
    RESERVED_PRODUCER_KEYS,
    RESERVED_STORE_KEYS,
    ConsumerSection,
    ProducerSection,
    RetrySettings,
    RuleSettings,
    StoreSection,
    WorkerSettings,
)

__all__ = [
    "CAPABILITIES",
    "RESERVED_CONSUMER_KEYS",
    "RESERVED_PRODUCER_KEYS",
    "RESERVED_STORE_KEYS",
    "BusSettings",
    "CommandBusSettings",
    "ConsumerSection",
    "EventBusSettings",
    "EventRouterSettings",
    "Key",
    "PostbusSettings",
    "ProducerSection",
    "QueryBusSettings",
    "RetrySettings",
    "RouteTarget",
    "RouterSettings",
    "Rule",
    "RuleSettings",
    "StoreSection",
    "WorkerSettings",
    "describe",
    "keys_of",
    "mask",
    "nearest",
    "parse",
    "read_settings",
    "setting",
    "show",
]
