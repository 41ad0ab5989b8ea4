"""Where a request may go."""

from __future__ import annotations

import pytest

from postbus_http._targets import is_allowed, is_loopback, is_public

PUBLIC = ["93.184.216.34", "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
NOT_PUBLIC = [
    "0.0.0.0",  # noqa: S104  an address to refuse
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:0.0.0.0",
    "::ffff:10.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "not an address",
    "",
]


class TestPublic:
    @pytest.mark.parametrize("address", PUBLIC)
    def test_takes_addresses_of_the_internet(self, address: str) -> None:
        """Also where an IPv6 address stands for an IPv4 one."""
        assert is_public(address)

    @pytest.mark.parametrize("address", NOT_PUBLIC)
    def test_refuses_all_others(self, address: str) -> None:
        """A15: private, loopback, link-local, metadata, mapped, translated, tunnelled."""
        assert not is_public(address)


class TestNames:
    def test_any_host_is_allowed_where_none_is_named(self) -> None:
        """The list is for addresses that come from elsewhere."""
        assert is_allowed("example.org", [])

    @pytest.mark.parametrize(
        ("host", "expected"),
        [
            ("example.org", True),
            ("EXAMPLE.org.", True),
            ("api.example.com", True),
            ("a.b.example.com", True),
            ("example.com", False),
            ("badexample.com", False),
            ("example.org.evil.net", False),
            ("127.0.0.1", False),
        ],
    )
    def test_a_name_stands_for_itself_and_a_star_for_what_is_below(
        self, host: str, expected: bool
    ) -> None:
        """Never for a part of a label."""
        assert is_allowed(host, ["example.org", "*.example.com"]) is expected

    @pytest.mark.parametrize(
        ("host", "expected"),
        [
            ("localhost", True),
            ("LOCALHOST.", True),
            ("127.0.0.1", True),
            ("127.1.2.3", True),
            ("::1", True),
            ("localhost.evil.net", False),
            ("10.0.0.1", False),
            ("2130706433", False),
            ("example.org", False),
        ],
    )
    def test_loopback_is_what_only_this_machine_reaches(self, host: str, expected: bool) -> None:
        """In doubt it is not."""
        assert is_loopback(host) is expected
