"""Amazon SQS as a broker: kombu's messages, and the leases that SQS has itself.

Every call is one of boto3's, so that ten messages go in one request and an answer is an answer;
kombu knows the queues, the credentials and the region.
"""

from __future__ import annotations

import base64
import importlib
import json
import math
import time
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from postbus.errors import RejectedError, UnsupportedError
from postbus_kombu._virtual import Change, LeasingBroker, Taken, kombu_content, opened

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from postbus.transports import Capabilities, WireMessage

__all__ = ["MAX_SIZE_BYTES", "SQSBroker"]

#: What fits into a message of 256 KiB together with what kombu writes around it.
MAX_SIZE_BYTES = 180_000
# Of SQS, for all messages of a request together.
_MAX_REQUEST_BYTES = 262_144
_MAX_BATCH = 10
_LONGEST_DELAY = 900.0
_RECEIVED = "ApproximateReceiveCount"


@attrs.define(eq=False)
class SQSBroker(LeasingBroker):
    """What a region of SQS is asked, over connections of boto3's. One thread at a time."""

    window: ClassVar[int] = _MAX_BATCH
    tells_why: ClassVar[bool] = True
    # Until when we hold a message, as a monotonic time: SQS lets a late acknowledgement pass.
    _until: dict[str, float] = attrs.field(init=False, factory=dict[str, float], repr=False)

    def errors(self, client: Any) -> tuple[type[Exception], ...]:
        """Return what boto3 raises, beside what kombu knows of."""
        botocore: Any = importlib.import_module("botocore.exceptions")
        return (*super().errors(client), botocore.ClientError)

    def check(self, message: WireMessage, capabilities: Capabilities) -> None:
        """Refuse what SQS cannot do for *message*."""
        super().check(message, capabilities)
        if message.delay and message.delay > _LONGEST_DELAY:
            about = f"{message.name} {message.id}"
            raise UnsupportedError(f"{about}: the longest delay of SQS is {_LONGEST_DELAY:.0f} s")

    def put_many(
        self,
        channel: Any,
        queue: str,
        messages: Sequence[WireMessage],
        replies: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Add *messages*, at most a window of them, to *queue*.

        Raises:
            RejectedError: SQS did not take all of them.
        """
        entries: list[dict[str, Any]] = [
            {
                "Id": str(index),
                "MessageBody": json.dumps(kombu_content(queue, message)),
                "DelaySeconds": math.ceil(message.delay or 0),
            }
            for index, message in enumerate(messages)
        ]
        client, url = _queue(channel, queue)
        for request in _requests(entries):
            answer = client.send_message_batch(QueueUrl=url, Entries=request)
            for failed in answer.get("Failed", ()):
                raise RejectedError(f"{self.place}: {queue}: {failed.get('Code')}")

    def take(self, channel: Any, queue: str, count: int) -> list[Taken]:
        """Take at most *count* messages of *queue*: they are gone when this returns."""
        taken = self.hold(channel, queue, count, _LONGEST_DELAY)
        gone = self.change(channel, queue, [(Change.REMOVE, each.tag, None) for each in taken])
        return [each for each, is_gone in zip(taken, gone, strict=True) if is_gone]

    def hold(self, channel: Any, queue: str, count: int, seconds: float) -> list[Taken]:
        """Take at most *count* messages of *queue* and hold them for *seconds*, in one step."""
        client, url = _queue(channel, queue)
        until = time.monotonic() + seconds
        answer = client.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=min(_MAX_BATCH, count),
            VisibilityTimeout=math.ceil(seconds),
            WaitTimeSeconds=0,
            MessageSystemAttributeNames=[_RECEIVED],
        )
        taken: list[Taken] = []
        for found in answer.get("Messages", ()):
            tag = found["ReceiptHandle"]
            self._until[tag] = until
            times = int(found.get("Attributes", {}).get(_RECEIVED, 1))
            taken.append(
                Taken(*opened(_plain(found["Body"].encode())), tag, redelivered=times > 1)
            )
        return taken

    def change(
        self, channel: Any, queue: str, changes: Sequence[tuple[Change, str, Any]]
    ) -> list[bool]:
        """Carry out *changes*; return for each whether the message was still held.

        A crash within a retry leaves both messages: the one that goes on comes twice, with one id.
        """
        now = time.monotonic()
        held = [self._until.get(tag, 0.0) > now for _, tag, _ in changes]
        removed: list[tuple[int, dict[str, Any]]] = []
        kept: list[tuple[int, dict[str, Any]]] = []
        for index, (change, tag, argument) in enumerate(changes):
            if change is Change.EXTEND and held[index]:
                self._until[tag] = now + argument
                kept.append((index, _entry(index, tag, VisibilityTimeout=math.ceil(argument))))
                continue
            self._until.pop(tag, None)
            if not held[index]:
                continue
            if change is Change.PUT_BACK:
                kept.append((index, _entry(index, tag, VisibilityTimeout=0)))
                continue
            if change is Change.REPLACE:
                self.put_many(channel, queue, [argument[0]])
            removed.append((index, _entry(index, tag)))
        client, url = _queue(channel, queue)
        for entries, call in (
            (kept, client.change_message_visibility_batch),
            (removed, client.delete_message_batch),
        ):
            for start in range(0, len(entries), _MAX_BATCH):
                request = [entry for _, entry in entries[start : start + _MAX_BATCH]]
                answer = call(QueueUrl=url, Entries=request)
                for failed in answer.get("Failed", ()):
                    held[int(failed["Id"])] = False
        return held


def _queue(channel: Any, queue: str) -> tuple[Any, str]:
    """Return the client for *queue* and its address; it is made where it is not there."""
    url: str = channel._new_queue(queue)  # noqa: SLF001  its public one looks for bindings
    return channel.sqs(queue=channel.canonical_queue_name(queue)), url


def _entry(index: int, tag: str, **fields: Any) -> dict[str, Any]:
    return {"Id": str(index), "ReceiptHandle": tag, **fields}


def _plain(body: bytes) -> bytes:
    """Return kombu's JSON out of the base64 that kombu puts it into; anything else as it is."""
    try:
        decoded = base64.b64decode(body, validate=True)
    except ValueError:
        return body
    return decoded if decoded.startswith(b"{") else body


def _requests(entries: list[dict[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Yield *entries* in requests that are not too large."""
    request: list[Mapping[str, Any]] = []
    size = 0
    for entry in entries:
        added = len(entry["MessageBody"])
        if request and size + added > _MAX_REQUEST_BYTES:
            yield request
            request, size = [], 0
        request.append(entry)
        size += added
    if request:
        yield request
