"""Redis as a broker: kombu's lists and items, and leases of our own on what is taken.

A message is an item of the list that kombu would put it in, so that a producer of either kind
serves a consumer of the other. Any other item is a body by itself: whoever can `LPUSH` can send.
What a consumer holds stands in a hash beside its queue, byte for byte, with the end of its lease
in a sorted set; all of it changes in scripts, so that no moment to be killed in loses a message.
Times are the server's.
"""

from __future__ import annotations

import json
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

import attrs

from postbus_kombu._properties import reply_type
from postbus_kombu._virtual import (
    Change,
    LeasingBroker,
    Taken,
    kombu_content,
    kombu_item,
    kombu_priority,
    opened,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from postbus.transports import Reply, WireMessage

__all__ = ["RedisBroker"]

# Messages in one round trip.
_WINDOW = 100
# How many abandoned messages one sweep puts back.
_SWEEP = 1000
# Seconds for which a queue knows what came back, since the last that did.
_MEMORY = 7 * 24 * 3600
# Seconds for which answers are kept that nobody fetches.
_ANSWERS = 300
# How many seconds the server may let somebody wait for an answer.
_LONGEST_WAIT = 1.0
# Of the keys of a script, counted from 1.
_FIRST_LIST = 4

# KEYS: what is held, the leases, what came back, then the lists, the most urgent first.
# A tag begins with the index of its list.
_COMMON = """
local held, leases, returned = KEYS[1], KEYS[2], KEYS[3]
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local function let_go(tag)
  redis.call('HDEL', held, tag)
  redis.call('ZREM', leases, tag)
end
local function put_back(tag, item)
  redis.call('RPUSH', KEYS[tonumber(string.match(tag, '^%d+'))] or KEYS[4], item)
  redis.call('SADD', returned, redis.sha1hex(item))
  redis.call('EXPIRE', returned, MEMORY)
  let_go(tag)
end
""".replace("MEMORY", str(_MEMORY))

# ARGV: how many, the seconds of the lease ('' holds nothing), what the tags have in common.
_TAKE = (
    _COMMON
    + """
local taken = {}
for list = 4, #KEYS do
  while #taken < tonumber(ARGV[1]) do
    local item = redis.call('RPOP', KEYS[list])
    if not item then break end
    local tag = list .. ':' .. ARGV[3] .. ':' .. #taken
    if ARGV[2] ~= '' then
      redis.call('HSET', held, tag, item)
      redis.call('ZADD', leases, now + ARGV[2], tag)
    end
    taken[#taken + 1] = {tag, item, redis.call('SREM', returned, redis.sha1hex(item))}
  end
end
return taken
"""
)

# ARGV: action, tag, a number (of the list, or seconds) and an item, again and again.
_CHANGE = (
    _COMMON
    + """
local done = {}
for i = 1, #ARGV, 4 do
  local action, tag, number = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local item = redis.call('HGET', held, tag)
  done[#done + 1] = item and 1 or 0
  if item then
    if action == 'extend' then
      redis.call('ZADD', leases, now + number, tag)
    elseif action == 'put-back' then
      put_back(tag, item)
    else
      if action == 'replace' then redis.call('LPUSH', KEYS[number], ARGV[i + 3]) end
      let_go(tag)
    end
  end
end
return done
"""
)

# ARGV: at most how many.
_SWEEP_UP = (
    _COMMON
    + """
for _, tag in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local item = redis.call('HGET', held, tag)
  if item then put_back(tag, item) else redis.call('ZREM', leases, tag) end
end
"""
)


@attrs.define(eq=False)
class RedisBroker(LeasingBroker):
    """A connection to Redis, made when first used. One thread at a time."""

    window: ClassVar[int] = _WINDOW
    tells_why: ClassVar[bool] = True
    _nonce: str = attrs.field(init=False, factory=lambda: uuid4().hex, repr=False)
    _takes: int = attrs.field(init=False, default=0, repr=False)
    # redis-py's client, and the channel that it belongs to.
    _redis: tuple[Any, Any] = attrs.field(init=False, default=(None, None), repr=False)

    def put_many(
        self,
        channel: Any,
        queue: str,
        messages: Sequence[WireMessage],
        replies: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Add *messages*, at most a window of them, to *queue*; *replies* as elsewhere."""
        lists = _lists(channel, queue)
        with self._client_of(channel).pipeline(transaction=False) as pipe:
            for message, reply in zip_longest(messages, replies):
                pipe.lpush(
                    lists[_step(channel, message)],
                    json.dumps(kombu_content(queue, message, reply)),
                )
            pipe.execute()

    def answer(self, channel: Any, to: tuple[str, str], reply: Reply) -> None:
        """Add an answer to the queue of who asked, who may be dead: then it goes after a time."""
        queue, correlation_id = to
        properties = {"correlation_id": correlation_id, "type": reply_type(reply)}
        with self._client_of(channel).pipeline() as pipe:
            pipe.lpush(queue, json.dumps(kombu_item(queue, reply.body, {}, properties)))
            pipe.expire(queue, _ANSWERS)
            pipe.execute()

    def answers(self, channel: Any, queue: str) -> list[Taken]:
        """Take all answers in *queue*; wait a moment for the first."""
        client = self._client_of(channel)
        wait = min(_LONGEST_WAIT, self.options["socket_timeout"] / 2)
        first = client.brpop([queue], timeout=wait)
        if first is None:
            return []
        items = [first[1], *(client.rpop(queue, _WINDOW) or ())]
        return [Taken(*opened(item)) for item in items]

    def interrupt(self, channel: Any, queue: str) -> None:
        """End such a wait, by something that is no answer."""
        self._client_of(channel).lpush(queue, "")

    def peek(self, channel: Any, queue: str, offset: int, limit: int) -> list[Taken]:
        """Return at most *limit* messages that wait, the next first, but for *offset* of them."""
        client, items = self._client_of(channel), list[bytes]()
        for name in _lists(channel, queue):
            # The next one is the last of its list.
            end = client.llen(name) - offset
            offset = max(0, -end)
            start = max(0, end - (limit - len(items)))
            if start < end:
                items += reversed(client.lrange(name, start, end - 1))
        return [Taken(*opened(item)) for item in items]

    def take(self, channel: Any, queue: str, count: int) -> list[Taken]:
        """Take at most *count* messages of *queue*."""
        return self._take(channel, queue, count, "")

    def hold(self, channel: Any, queue: str, count: int, seconds: float) -> list[Taken]:
        """Take at most *count* messages of *queue* and hold them for *seconds*, in one step."""
        return self._take(channel, queue, count, repr(seconds))

    def _take(self, channel: Any, queue: str, count: int, lease: str) -> list[Taken]:
        self._takes += 1
        found = self._run(channel, _TAKE, queue, count, lease, f"{self._nonce}:{self._takes}")
        return [
            Taken(*opened(item), tag=tag.decode(), redelivered=bool(returned))
            for tag, item, returned in found
        ]

    def change(
        self, channel: Any, queue: str, changes: Sequence[tuple[Change, str, Any]]
    ) -> list[bool]:
        """Carry out *changes* in one step, in order: what, the tag, and its argument.

        The argument is the new message and where its answer goes, or the seconds from now in
        which the lease shall end.
        Returns for each whether the message was still held: if not, nothing was done.
        """
        arguments: list[Any] = []
        for change, tag, argument in changes:
            number, item = "0", ""
            if change is Change.EXTEND:
                number = repr(argument)
            elif change is Change.REPLACE:
                number = str(_FIRST_LIST + _step(channel, argument[0]))
                item = json.dumps(kombu_content(queue, *argument))
            arguments += change, tag, number, item
        return [bool(each) for each in self._run(channel, _CHANGE, queue, *arguments)]

    def sweep(self, channel: Any, queue: str) -> None:
        """Put back what somebody held longer than its lease."""
        self._run(channel, _SWEEP_UP, queue, _SWEEP)

    def _run(self, channel: Any, script: str, queue: str, *arguments: Any) -> Any:
        names = [f"{queue}:{kept}" for kept in ("held", "leases", "returned")]
        keys = [channel.global_keyprefix + name for name in (*names, *_lists(channel, queue))]
        return self._client_of(channel).eval(script, len(keys), *keys, *arguments)

    def _client_of(self, channel: Any) -> Any:
        """Return redis-py's client; kombu would make one for each command."""
        client, owner = self._redis
        if owner is not channel:
            with channel.conn_or_acquire() as client:
                self._redis = client, channel
        return client


def _lists(channel: Any, queue: str) -> list[str]:
    """Return kombu's names of the lists of *queue*, the most urgent first."""
    return [channel._q_for_pri(queue, step) for step in channel.priority_steps]  # noqa: SLF001  there is no other way to them


def _step(channel: Any, message: WireMessage) -> int:
    """Return which of the lists *message* belongs to."""
    step = channel.priority(kombu_priority(message))
    return int(channel.priority_steps.index(step))
