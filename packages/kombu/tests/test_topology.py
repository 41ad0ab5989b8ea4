"""Queues that hold messages back, and names made of names."""

from __future__ import annotations

import pytest

from postbus_kombu._topology import Route, held_back, named


@pytest.mark.parametrize(
    ("delay", "milliseconds"),
    [
        (0.001, 100),
        (0.1, 100),
        (0.11, 200),
        (0.5, 500),
        (9.9, 9_900),
        (9.91, 10_000),
        (12.3, 13_000),
        (123.4, 130_000),
        (86_400.0, 87_000_000),
    ],
)
def test_a_delay_has_two_digits_and_is_never_shorter(delay: float, milliseconds: int) -> None:
    """So that delays of any length share few queues, and nothing comes before its time."""
    name, arguments = held_back(Route("", "mail"), delay)
    assert arguments["x-message-ttl"] == milliseconds
    assert name == f"postbus.delay.{milliseconds}..mail"
    assert arguments["x-expires"] > milliseconds


@pytest.mark.parametrize(
    ("template", "name", "expected"),
    [
        ("mail", "shop.x", "mail"),
        ("{name}", "shop.x", "shop.x"),
        ("{kebab}", "shop.SendNewsletter", "send-newsletter"),
        ("{kebab}", "send_newsletter", "send-newsletter"),
        ("a.{kebab}", "Echo", "a.echo"),
    ],
)
def test_a_template_is_filled(template: str, name: str, expected: str) -> None:
    """With the whole name, or with its last part as Bernard guessed queues (K04)."""
    assert named(template, name) == expected
