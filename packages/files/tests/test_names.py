"""A name says everything about a message but its body, and nothing from outside is in it."""

from __future__ import annotations

import string

import pytest

from postbus_files._names import Claim, Entry, delayed_name, due_of, token_of

ENTRY = Entry(4, 1_700_000_000_000_000, token_of("an-id"), 1_800_000_000_000_000, 2)


class TestEntry:
    @pytest.mark.parametrize(
        "entry",
        [
            ENTRY,
            Entry(9, 0, token_of("")),
            Entry(0, 2**64 - 1, token_of("é"), 0, 999, f"{'a' * 32}.17"),
        ],
    )
    def test_it_comes_back_from_its_name(self, entry: Entry) -> None:
        """The name is the whole record."""
        assert Entry.parse(entry.name) == entry

    def test_names_in_order_are_messages_in_order(self) -> None:
        """A larger priority first, then whatever was sent first."""
        entries = [
            Entry(rank, stamp, token_of("x")) for rank in (0, 5, 9) for stamp in (1, 17, 300)
        ]

        assert sorted(entry.name for entry in entries) == [entry.name for entry in entries]

    @pytest.mark.parametrize("message_id", ["../../etc/passwd", "a/b", "\0", "x" * 10_000, "é"])
    def test_an_id_is_hashed(self, message_id: str) -> None:
        """No path can be made of a message, and no name is too long."""
        name = Entry(9, 1, token_of(message_id)).name

        assert set(name) <= set(string.hexdigits + "-.json")
        assert len(name) < 200

    @pytest.mark.parametrize(
        "name", ["", "order.json", "../x", ENTRY.name + "x", "x" + ENTRY.name, ENTRY.name[:-5]]
    )
    def test_a_name_of_somebody_elses_is_none(self, name: str) -> None:
        """People put files there as well."""
        assert Entry.parse(name) is None
        assert Claim.parse(name) is None
        assert due_of(name) is None

    def test_a_file_of_somebody_elses_came_now_with_no_priority(self) -> None:
        """Behind what was sent with one, in the order in which it was found."""
        entry = Entry.foreign("order.json", 5)

        assert (entry.rank, entry.stamp, entry.deliveries) == (9, 5, 0)


class TestClaim:
    def test_it_comes_back_from_its_name(self) -> None:
        """What is held says until when, and by whom."""
        claim = Claim(ENTRY, 1_900_000_000_000_000, "0123456789abcdef")

        assert Claim.parse(claim.name) == claim
        assert Claim.parse(claim.name + "x") is None

    def test_the_first_to_run_out_comes_first(self) -> None:
        """So one look at the first name says whether there is anything to do."""
        soon, late = (Claim(ENTRY, until, "0123456789abcdef") for until in (1, 2))

        assert soon.name < late.name


def test_a_delayed_name_says_when_it_is_due() -> None:
    """And what it is called from then on."""
    assert due_of(delayed_name(17, ENTRY)) == (17, ENTRY)
    assert due_of(delayed_name(17, ENTRY) + "x") is None
