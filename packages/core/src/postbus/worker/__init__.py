"""The worker: takes deliveries from consumers and dispatches them as received messages.

It owns what is the same for every transport: decoding, concurrency, deadlines of queries,
answers, acknowledgement after success, what becomes of a failure, and a clean stop.
"""

from __future__ import annotations

from postbus.worker._consumption import ConsumerRun, ReceivingBus
from postbus.worker._failures import default_pause
from postbus.worker._limits import Limits
from postbus.worker._receivers import IdempotentReceiver
from postbus.worker._recovery import failure_key
from postbus.worker._retries import NeverRetry, RetryPolicy, RetryRule
from postbus.worker._scheduled import Sending
from postbus.worker._worker import Worker

__all__ = [
    "ConsumerRun",
    "IdempotentReceiver",
    "Limits",
    "NeverRetry",
    "ReceivingBus",
    "RetryPolicy",
    "RetryRule",
    "Sending",
    "Worker",
    "default_pause",
    "failure_key",
]
