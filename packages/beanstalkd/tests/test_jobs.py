"""What a message is to beanstalkd, byte by byte."""

from __future__ import annotations

import json

import pytest

from postbus.transports import Reply
from postbus_beanstalkd._jobs import (
    mark_reply,
    put,
    reply_channel,
    unmark_reply,
    urgency,
    with_reply_channel,
)

BODY = b'{"message_name":"shop.find","uuid":"AN-ID","payload":{},"headers":{"v":1}}'


class TestPut:
    def test_it_is_the_command_of_the_protocol(self) -> None:
        """Urgency, delay, time to run, size, body."""
        assert put(b"{}", 65_536, None, 60) == b"put 65536 0 60 2\r\n{}\r\n"

    @pytest.mark.parametrize(("delay", "seconds"), [(0.0, 0), (0.001, 1), (1.0, 1), (1.5, 2)])
    def test_a_delay_is_rounded_up(self, delay: float, seconds: int) -> None:
        """The server counts whole seconds, and early is wrong."""
        assert put(b"", 1, delay, 1).split()[2] == str(seconds).encode()

    def test_a_larger_priority_is_a_smaller_number(self) -> None:
        """None is 0, is beanstalkd's own default; none of ours counts as urgent there (X07)."""
        numbers = [urgency(priority) for priority in range(10)]

        assert urgency(None) == numbers[0] == 65_536
        assert numbers == sorted(numbers, reverse=True)
        assert numbers[-1] >= 1024


class TestReplyChannel:
    def test_it_is_a_header_of_the_message(self) -> None:
        """Everything else in the body stays as it is."""
        asked = with_reply_channel(BODY, "postbus.reply.abc-1")

        assert json.loads(asked) == {
            **json.loads(BODY),
            "headers": {"v": 1, "reply_to": "postbus.reply.abc-1"},
        }
        assert reply_channel(asked) == ("postbus.reply.abc-1", "an-id")

    def test_a_message_without_headers_gets_some(self) -> None:
        """As older systems write it."""
        asked = with_reply_channel(b'{"uuid":"an-id"}', "postbus.reply.a")

        assert reply_channel(asked) == ("postbus.reply.a", "an-id")

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"no json",
            BODY,
            b'{"uuid":"x","headers":{"reply_to":null}}',
            b'{"uuid":"x","headers":{"reply_to":"default"}}',
            b'{"uuid":"x","headers":{"reply_to":"postbus.reply.A"}}',
            b'{"uuid":"x","headers":{"reply_to":"postbus.reply.a\\r\\nput 0"}}',
            b'{"uuid":"x","headers":{"reply_to":7}}',
            b'{"headers":{"reply_to":"postbus.reply.a"}}',
            b'{"uuid":"x","payload":{"reply_to":"postbus.reply.a"}}',
            b'{"reply_to":' + b"[" * 100_000,
        ],
    )
    def test_no_other_tube_is_ever_answered(self, body: bytes) -> None:
        """A stranger's message cannot have us write to a tube of its choice."""
        assert reply_channel(body) is None


class TestReplies:
    @pytest.mark.parametrize("reply", [Reply(b"42"), Reply(b'{"a":"\\n"}', is_error=True)])
    def test_it_comes_back_with_the_id_of_its_question(self, reply: Reply) -> None:
        """A result or a problem, told apart by the line before it."""
        assert unmark_reply(mark_reply("an-id", reply)) == ("an-id", reply)

    @pytest.mark.parametrize(
        "body", [b"", b"42", b"an-id\n42", b"an-id other\n42", b"an-id result"]
    )
    def test_anything_else_is_none(self, body: bytes) -> None:
        """Whoever put it there."""
        assert unmark_reply(body) is None
