"""Where a request may go: hosts by name, and addresses by what they are."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["is_allowed", "is_loopback", "is_public"]

_LOOPBACK_NAMES = {"localhost", "localhost."}
# Addresses that stand for an IPv4 address in their last four bytes.
# Source: RFC 4291 (2.5.5), RFC 6052.
_EMBEDDING = (
    IPv6Network("::/96"),
    IPv6Network("::ffff:0:0/96"),
    IPv6Network("::ffff:0:0:0/96"),
    IPv6Network("64:ff9b::/96"),
)
# Tunnels, site-local addresses and a translation prefix for local use: what is behind them cannot
# be told. Source: RFC 4380, RFC 3879, RFC 8215.
_OPAQUE = (IPv6Network("2001::/32"), IPv6Network("fec0::/10"), IPv6Network("64:ff9b:1::/48"))


def is_allowed(host: str, allowed: Iterable[str]) -> bool:
    """Return whether one of the names *allowed*, if there are any, stands for *host*."""
    folded = host.lower().removesuffix(".")
    names = [name.lower().removesuffix(".") for name in allowed]
    return not names or any(
        folded == name or (name.startswith("*.") and folded.endswith(name[1:])) for name in names
    )


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches *host*; a name or number in doubt is not."""
    if host.lower() in _LOOPBACK_NAMES:
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def is_public(address: str) -> bool:
    """Return whether *address*, as the system resolved it, is one of the public internet.

    What is in doubt is not: private, loopback, link-local, shared, multicast, reserved, and
    addresses that stand for one of these.
    """
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return _is_public(found)


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address):
        if any(address in network for network in _EMBEDDING):
            return _is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
        if address.sixtofour is not None:
            return _is_public(address.sixtofour)
        if any(address in network for network in _OPAQUE):
            return False
    return address.is_global and not (
        address.is_multicast
        or address.is_reserved
        or address.is_private
        or address.is_link_local
        or address.is_loopback
        or address.is_unspecified
    )
