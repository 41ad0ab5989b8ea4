"""The keys of a section, and the addresses that are refused."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from postbus.errors import Problem
from postbus.settings import parse
from postbus_zeromq import ZeroMQConsumerSettings, ZeroMQProducerSettings

BOTH = pytest.mark.parametrize("cls", [ZeroMQProducerSettings, ZeroMQConsumerSettings])


def problems_of(cls: type, **section: Any) -> list[Problem]:
    problems: list[Problem] = []
    parsed = parse(cls, section, "producers.mail", problems)
    assert (parsed is None) == bool(problems)
    return problems


class TestDefaults:
    def test_of_a_producer_are_the_seeds(self) -> None:
        """An empty section connects to this machine, alone on its socket, for messages (Z01)."""
        assert attrs.asdict(ZeroMQProducerSettings()) == {
            "dsn": "tcp://127.0.0.1:5555",
            "persistent_id": None,
            "rpc": False,
            "bind": False,
            "allow_any_peer": False,
            "send_timeout": 5.0,
            "linger": 5.0,
            "high_water_mark": 1000,
            "max_message_bytes": None,
        }

    def test_of_a_consumer_meet_a_producers(self) -> None:
        """An empty section binds where an empty producer's section connects."""
        settings = ZeroMQConsumerSettings()
        assert (ZeroMQProducerSettings().dsn, True) == (settings.dsn, settings.bind)


class TestAddress:
    @BOTH
    @pytest.mark.parametrize(
        "dsn",
        [
            "tcp://127.0.0.1:5555",
            "tcp://localhost:5555",
            "tcp://lo:1",
            "tcp://[::1]:65535",
            "tcp://127.8.9.10:5555",
            "ipc:///run/mail.sock",
            "ipc://mail.sock",
        ],
    )
    def test_of_this_machine_may_be_bound(self, cls: type, dsn: str) -> None:
        """Loopback in every spelling that is beyond doubt, and sockets in the file system."""
        assert problems_of(cls, dsn=dsn, bind=True) == []

    @BOTH
    @pytest.mark.parametrize(
        "dsn",
        [
            "tcp://*:5555",
            "tcp://0.0.0.0:5555",
            "tcp://[::]:5555",
            "tcp://10.0.0.7:5555",
            "tcp://eth0:5555",
            "tcp://127.1:5555",
            "tcp://localhost.example.org:5555",
            "tcp://[::ffff:10.0.0.7]:5555",
        ],
    )
    def test_for_other_machines_is_bound_only_when_that_is_spelled_out(
        self, cls: type, dsn: str
    ) -> None:
        """A listener without authentication is refused unless `allow_any_peer` says so (A12)."""
        (problem,) = problems_of(cls, dsn=dsn, bind=True)
        assert problem.expected.endswith("bind 127.0.0.1, or write allow_any_peer = true")
        assert problems_of(cls, dsn=dsn, bind=True, allow_any_peer=True) == []
        assert problems_of(cls, dsn=dsn, bind=False) == []

    @BOTH
    @pytest.mark.parametrize(
        "dsn",
        [
            "127.0.0.1:5555",
            "tcp://127.0.0.1",
            "tcp://:5555",
            "tcp://127.0.0.1:*",
            "tcp://127.0.0.1:0",
            "tcp://127.0.0.1:99999",
            "tcp://::1:5555",
            "tcp://127.0.0.1:5555/path",
            "inproc://mail",
            "http://127.0.0.1:5555",
            "ipc://",
        ],
    )
    def test_that_libzmq_would_misread_is_refused(self, cls: type, dsn: str) -> None:
        """Port 99999 would be bound as 34463, inproc would queue for a peer nobody has."""
        assert len(problems_of(cls, dsn=dsn)) == 1

    def test_is_checked_without_a_section_too(self) -> None:
        """Settings made in code are checked as those from a dict."""
        with pytest.raises(ValueError, match="expected dsn to be an address"):
            ZeroMQConsumerSettings(dsn="inproc://mail")


class TestKeys:
    @BOTH
    def test_rpc_is_one_of_three(self, cls: type) -> None:
        """The seed's two, and one for all kinds of message (Z01, Z02)."""
        for rpc in (False, True, "both"):
            assert problems_of(cls, rpc=rpc) == []
        (problem,) = problems_of(cls, rpc="all")
        assert problem.path == "producers.mail.rpc"
        assert problem.expected == "expected true, false or 'both'"

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("send_timeout", -1.0),
            ("send_timeout", float("inf")),
            ("linger", -1),
            ("high_water_mark", 0),
            ("high_water_mark", 2**31),
            ("max_message_bytes", 0),
            ("persistent_id", ""),
            ("bind", "yes"),
            ("persistent", "mail"),
        ],
    )
    def test_are_bounded(self, key: str, value: object) -> None:
        """For libzmq -1 is for ever and 0 without bound: nobody gets those by accident."""
        (problem,) = problems_of(ZeroMQProducerSettings, **{key: value})
        assert problem.path == f"producers.mail.{key}"

    @pytest.mark.parametrize(
        "key", ["dsn", "rpc", "bind", "persistent_id", "linger", "send_timeout", "high_water_mark"]
    )
    def test_say_what_they_do(self, key: str) -> None:
        """The reference is generated from the fields, so each has words of its own."""
        (field,) = [each for each in attrs.fields(ZeroMQProducerSettings) if each.name == key]
        assert field.metadata["postbus.setting"].doc
