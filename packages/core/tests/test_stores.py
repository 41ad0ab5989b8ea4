"""The stores: every kind keeps what it was given, and gives one claim to one holder."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from postbus.errors import ConnectionFailedError, TransportError, UnsupportedError
from postbus.messages import new_id
from postbus.stores import (
    MEMORY,
    SQLITE,
    Conflict,
    Done,
    FailedMessage,
    Failure,
    MemoryStore,
    MemoryStoreSettings,
    New,
    PendingSend,
    Running,
    ScheduledMessage,
    SQLiteStore,
    SQLiteStoreSettings,
    consumer_target,
    producer_target,
)
from postbus.stores._database import Database
from postbus.transports import WireMessage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from postbus.stores import Begun, Inbox, InboxKey, Store

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TARGETS = [consumer_target("mail"), producer_target("mail")]


class Clock:
    """A time that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = NOW.timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A time of the test's own."""
    return Clock()


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Store]:
    """A store of each kind."""
    made: Store = (
        MemoryStore(clock=clock)
        if request.param == "memory"
        else SQLiteStore(tmp_path / "stores.db", clock=clock)
    )
    yield made
    made.close()


def failure(number: int = 1) -> Failure:
    return Failure(
        at=NOW + timedelta(seconds=number),
        reason="handler_failed",
        error="ValueError",
        code="error",
        text=f"failure {number}",
        where="a.py:1",
    )


def failed(key: str = "k1", **changes: Any) -> FailedMessage:
    made = FailedMessage(
        key=key,
        consumer="mail",
        body=b"\x00\xff{",
        reason="handler_failed",
        id="an id",
        name="shop.place-order",
        attempts=3,
        failed_at=NOW,
        history=(failure(),),
    )
    return attrs.evolve(made, **changes)


def message(name: str = "shop.place-order", id_: str | None = None) -> WireMessage:
    return WireMessage(
        b"\x00\xff",
        {"a": "b"},
        id_ or new_id(),
        name,
        key="k",
        priority=3,
        expires_at=NOW,
        delay=1.5,
    )


def due_in(seconds: float, *, target: str = TARGETS[0], **fields: Any) -> ScheduledMessage:
    return ScheduledMessage(
        target=target, due=NOW + timedelta(seconds=seconds), message=message(**fields)
    )


def key_of(begun: Begun) -> InboxKey:
    assert isinstance(begun, New)
    return begun.key


class TestFailures:
    def test_a_message_is_kept_whole(self, store: Store) -> None:
        """Bytes, reason, error, code, times and attempts come back as they went in."""
        assert store.failures.get("k1") is None
        store.failures.put(failed())
        assert failed() == store.failures.get("k1")

    def test_the_same_message_has_one_row(self, store: Store) -> None:
        """A message given up again takes its old row's place: a crash leaves no second one."""
        store.failures.put(failed())
        store.failures.put(failed(reason="no_handler"))
        [kept] = store.failures.list()
        assert ("no_handler", 1) == (kept.reason, store.failures.count())

    def test_the_last_five_failures_are_kept(self, store: Store) -> None:
        """What was noted while it was tried again is its history, bounded."""
        for number in range(7):
            store.failures.note_many([("k1", failure(number))])
        store.failures.put(failed(history=(failure(7),)))
        kept = store.failures.get("k1")
        assert kept is not None
        assert [failure(n) for n in range(3, 8)] == list(kept.history)

    def test_what_was_handled_after_all_leaves_nothing(self, store: Store) -> None:
        """`forget` drops failures and redeliveries."""
        store.failures.note_many([("k1", failure())])
        assert [1, 2] == [store.failures.note_redelivery("k1") for _ in range(2)]
        store.failures.forget("k1")
        assert 1 == store.failures.note_redelivery("k1")
        store.failures.forget("k1")
        store.failures.put(failed(history=()))
        kept = store.failures.get("k1")
        assert kept is not None
        assert () == kept.history

    def test_they_are_listed_by_what_they_are(self, store: Store) -> None:
        """Filters by consumer, name and reason, a page at a time, the longest failed first."""
        for number, (consumer, name, reason) in enumerate(
            [("mail", "shop.a", "x"), ("mail", "shop.b", "y"), ("report", None, "x")]
        ):
            at = NOW - timedelta(seconds=number)
            row = failed(str(number), consumer=consumer, name=name, reason=reason, failed_at=at)
            store.failures.put(row)

        def keys(**filters: Any) -> str:
            return "".join(each.key for each in store.failures.list(**filters))

        assert ("210", "10", "20", "0") == (
            keys(),
            keys(consumer="mail"),
            keys(reason="x"),
            keys(name="shop.a"),
        )
        assert ("10", "1", "2") == (keys(name="shop.*"), keys(limit=1, offset=1), keys(limit=1))
        assert (2, 1) == (
            store.failures.count(name="shop.*"),
            store.failures.count(consumer="report", reason="x"),
        )

    def test_many_are_kept_as_one_by_one(self, store: Store) -> None:
        """Hundreds in one call, each with what was noted before; of a key twice the last."""
        store.failures.note_many(
            [("k1", failure(1)), ("k2", failure(2)), ("k1", failure(3)), ("k2", failure(4))]
        )
        rows = [failed(f"k{number}", history=(failure(9),)) for number in range(350)]
        store.failures.put_many([failed("k5", reason="no_handler"), *rows])
        assert 350 == store.failures.count(reason="handler_failed")
        found = {each.key: each.history for each in store.failures.list(limit=1000)}
        assert (failure(1), failure(3), failure(9)) == found["k1"]
        assert (failure(2), failure(4), failure(9)) == found["k2"]
        assert {(failure(9),)} == {found[f"k{number}"] for number in range(3, 350)}
        store.failures.put_many(())
        assert 350 == store.failures.count()

    def test_a_body_can_be_replaced_and_a_row_deleted(self, store: Store) -> None:
        """Both say whether there was such a row."""
        store.failures.put(failed())
        assert store.failures.replace("k1", b"mended")
        kept = store.failures.get("k1")
        assert kept is not None
        assert b"mended" == kept.body
        assert store.failures.delete("k1")
        assert not store.failures.delete("k1")
        assert not store.failures.replace("k1", b"")


class TestSchedule:
    def test_what_is_due_can_be_claimed_whole(self, store: Store, clock: Clock) -> None:
        """Nothing is given before its time; then every field of the message is there."""
        later = due_in(10)
        store.schedule.put(later)
        assert [] == list(store.schedule.claim(TARGETS, limit=5, lease=9.0))
        assert later.due == store.schedule.next_due(TARGETS)
        clock.now += 10
        assert [] == list(store.schedule.claim(["consumers.other"], limit=5, lease=9.0))
        [claim] = store.schedule.claim(TARGETS, limit=5, lease=9.0)
        assert (later, False) == (claim.scheduled, claim.redelivered)

    def test_the_longest_due_come_first(self, store: Store) -> None:
        """At most as many as asked for, in order."""
        rows = [due_in(seconds) for seconds in (-1, -3, -2)]
        for row in rows:
            store.schedule.put(row)
        claims = store.schedule.claim(TARGETS, limit=2, lease=9.0)
        assert [rows[1], rows[2]] == [claim.scheduled for claim in claims]

    def test_many_are_kept_as_one_by_one(self, store: Store) -> None:
        """Hundreds in one call; what was claimed and is put again is nobody's."""
        store.schedule.put(due_in(-1, id_="0"))
        assert store.schedule.claim(TARGETS[:1], limit=1, lease=60)
        store.schedule.put_many([due_in(-number, id_=str(number)) for number in range(350)])
        claims = store.schedule.claim(TARGETS[:1], limit=1000, lease=60)
        assert [str(number) for number in reversed(range(350))] == [
            each.scheduled.message.id for each in claims
        ]

    def test_a_row_is_one_message_of_one_target(self, store: Store) -> None:
        """The same id takes its row's place, another target has a row of its own."""
        store.schedule.put(due_in(1, id_="one"))
        store.schedule.put(due_in(2, id_="one"))
        store.schedule.put(due_in(3, id_="one", target=TARGETS[1]))
        assert [2, 3] == [(row.due - NOW).seconds for row in store.schedule.list()]

    def test_a_claim_has_one_holder(self, store: Store, clock: Clock) -> None:
        """Until the lease ends nobody else gets it; then the old holder has no say any more."""
        store.schedule.put(due_in(0))
        [first] = store.schedule.claim(TARGETS, limit=5, lease=10.0)
        assert [] == list(store.schedule.claim(TARGETS, limit=5, lease=10.0))
        assert NOW + timedelta(seconds=10) == store.schedule.next_due(TARGETS)
        clock.now += 6
        assert store.schedule.extend(first, 10.0)
        clock.now += 6
        assert [] == list(store.schedule.claim(TARGETS, limit=5, lease=10.0))
        clock.now += 4
        [second] = store.schedule.claim(TARGETS, limit=5, lease=10.0)
        assert second.redelivered
        assert [False] * 4 == [
            store.schedule.complete(first),
            store.schedule.release(first),
            store.schedule.extend(first, 1.0),
            store.schedule.replace(first, due_in(5)),
        ]
        assert store.schedule.complete(second)
        assert store.schedule.next_due(TARGETS) is None

    def test_a_claim_can_be_given_back_or_put_off(self, store: Store, clock: Clock) -> None:
        """Given back it is due at once, and known to have been out; replaced it waits anew."""
        row = due_in(0, id_="one")
        store.schedule.put(row)
        [claim] = store.schedule.claim(TARGETS, limit=5, lease=10.0)
        assert store.schedule.release(claim)
        assert not store.schedule.complete(claim)
        [again] = store.schedule.claim(TARGETS, limit=5, lease=10.0)
        assert again.redelivered
        put_off = due_in(20, id_="one")
        assert store.schedule.replace(again, put_off)
        assert [] == list(store.schedule.claim(TARGETS, limit=5, lease=10.0))
        clock.now += 20
        [fresh] = store.schedule.claim(TARGETS, limit=5, lease=10.0)
        assert (put_off, False) == (fresh.scheduled, fresh.redelivered)

    def test_they_are_listed_and_cancelled(self, store: Store, clock: Clock) -> None:
        """Filters by target and name; what somebody has claimed is not cancelled."""
        rows = [due_in(0, id_="a", name="shop.a"), due_in(1, id_="b", target=TARGETS[1])]
        for row in rows:
            store.schedule.put(row)
        assert rows == list(store.schedule.list())
        assert rows[:1] == list(store.schedule.list(target=TARGETS[0]))
        assert rows[:1] == list(store.schedule.list(name="shop.a*"))
        assert rows[1:] == list(store.schedule.list(limit=1, offset=1))
        store.schedule.claim(TARGETS, limit=1, lease=10.0)
        assert not store.schedule.cancel("a", TARGETS[0])
        assert not store.schedule.cancel("b", TARGETS[0])
        assert store.schedule.cancel("b", TARGETS[1])
        clock.now += 10
        assert store.schedule.cancel("a", TARGETS[0])


class TestInbox:
    def test_what_was_handled_is_known_with_what_came_of_it(self, store: Store) -> None:
        """Done tells the reply, and what was sent and has not left yet; `sent` ends that."""
        inbox = store.inbox
        key = key_of(inbox.begin("id", "listener", b"d", 10.0))
        sends = (PendingSend("mail", message()), PendingSend("report", message()))
        assert inbox.finish(key, b"41", sends)
        done = inbox.begin("id", "listener", b"d", 10.0)
        assert isinstance(done, Done)
        assert (b"41", sends) == (done.reply, done.sends)
        inbox.sent(done.key)
        done = inbox.begin("id", "listener", b"d", None)
        assert isinstance(done, Done)
        assert (b"41", ()) == (done.reply, done.sends)

    def test_another_handler_has_its_own_row(self, store: Store) -> None:
        """Rows are by id and handler."""
        inbox = store.inbox
        inbox.finish(key_of(inbox.begin("id", "one", b"d", 10.0)), None, ())
        key_of(inbox.begin("id", "two", b"d", 10.0))
        key_of(inbox.begin("other", "one", b"d", 10.0))

    def test_another_message_under_the_same_id_is_a_conflict(self, store: Store) -> None:
        """The digest tells them apart, handled or not."""
        key = key_of(store.inbox.begin("id", "one", b"d", 10.0))
        assert isinstance(store.inbox.begin("id", "one", b"e", 10.0), Conflict)
        store.inbox.finish(key, None, ())
        assert isinstance(store.inbox.begin("id", "one", b"e", None), Conflict)

    def test_a_claim_has_one_holder_and_an_end(self, store: Store, clock: Clock) -> None:
        """While one is at it others hear until when; after that the row is another's."""
        inbox = store.inbox
        first = key_of(inbox.begin("id", "one", b"d", 10.0))
        assert Running(NOW + timedelta(seconds=10)) == inbox.begin("id", "one", b"d", 10.0)
        clock.now += 5
        assert inbox.extend(first, 10.0)
        assert Running(NOW + timedelta(seconds=15)) == inbox.begin("id", "one", b"d", None)
        clock.now += 10
        second = key_of(inbox.begin("id", "one", b"d", 10.0))
        assert not inbox.extend(first, 10.0)
        assert not inbox.finish(first, None, ())
        inbox.abandon(first)
        assert inbox.finish(second, None, ())
        assert not inbox.finish(second, None, ())

    def test_an_abandoned_claim_is_anybodys(self, store: Store) -> None:
        """What failed can be tried again at once."""
        inbox = store.inbox
        inbox.abandon(key_of(inbox.begin("id", "one", b"d", 10.0)))
        key_of(inbox.begin("id", "one", b"d", 10.0))

    def test_looking_claims_nothing(self, store: Store) -> None:
        """Without a lease `begin` only reads."""
        assert "" == key_of(store.inbox.begin("id", "one", b"d", None)).owner
        key_of(store.inbox.begin("id", "one", b"d", 10.0))

    def test_old_rows_are_purged_unless_something_has_to_leave(
        self, store: Store, clock: Clock
    ) -> None:
        """After a week a message is forgotten; one whose sends are pending is not."""
        inbox = store.inbox
        for id_, sends in (("a", ()), ("b", (PendingSend("mail", message()),))):
            inbox.finish(key_of(inbox.begin(id_, "one", b"d", 10.0)), None, sends)
        clock.now += 7 * 86_400 + 1
        inbox.finish(key_of(inbox.begin("c", "one", b"d", 10.0)), None, ())
        assert 1 == inbox.purge()
        key_of(inbox.begin("a", "one", b"d", None))
        for id_ in "bc":
            assert isinstance(inbox.begin(id_, "one", b"d", None), Done)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a database that is not there yet."""
    return tmp_path / "stores.db"


@pytest.fixture
def sqlite(path: Path, clock: Clock) -> Iterator[SQLiteStore]:
    """A store in SQLite."""
    store = SQLiteStore(path, busy_timeout=0.05, clock=clock)
    yield store
    store.close()


class TestJoined:
    """The inbox inside the application's own transaction."""

    @pytest.fixture
    def inbox(self, sqlite: SQLiteStore) -> Inbox:
        """An inbox whose tables are there."""
        sqlite.inbox.purge()
        return sqlite.inbox

    def test_it_joins_connections_to_the_same_file(
        self, inbox: Inbox, path: Path, tmp_path: Path
    ) -> None:
        """By the file, however it is spelt; nothing else is joined."""
        link = tmp_path / "link.db"
        link.symlink_to(path)
        for name, expected in ((path, True), (link, True), (tmp_path / "other.db", False)):
            with sqlite3.connect(name) as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS own (x)")
                assert expected == inbox.joins(connection)
            connection.close()
        connection = sqlite3.connect(":memory:")
        assert not inbox.joins(connection)
        connection.close()
        assert not inbox.joins(None)

    def test_it_does_not_join_what_commits_each_statement(self, inbox: Inbox, path: Path) -> None:
        """Without a transaction nothing could be rolled back; with one there is something."""
        connection = sqlite3.connect(path, isolation_level=None)
        assert not inbox.joins(connection)
        connection.execute("BEGIN")
        assert inbox.joins(connection)
        connection.close()

    def test_a_file_that_is_gone_is_not_joined(self, inbox: Inbox, path: Path) -> None:
        """A connection to a deleted file is to some other database."""
        connection = sqlite3.connect(path)
        path.unlink()
        assert not inbox.joins(connection)
        connection.close()

    def test_the_row_commits_and_rolls_back_with_the_work(self, inbox: Inbox, path: Path) -> None:
        """Nobody sees it before the commit, and nothing is left of it after a rollback."""
        connection = sqlite3.connect(path)
        for end, expected in ((connection.rollback, New), (connection.commit, Done)):
            key = key_of(inbox.begin("id", "one", b"d", None))
            assert inbox.finish(key, b"1", (), within=connection)
            key_of(inbox.begin("id", "one", b"d", None))
            end()
            assert isinstance(inbox.begin("id", "one", b"d", None), expected)
        connection.close()

    def test_a_second_row_is_refused(self, inbox: Inbox, path: Path) -> None:
        """Handled meanwhile by another: the transaction must not commit."""
        connection = sqlite3.connect(path)
        key = key_of(inbox.begin("id", "one", b"d", None))
        with connection:
            assert inbox.finish(key, None, (), within=connection)
        assert not inbox.finish(key, None, (), within=connection)
        connection.close()

    def test_a_live_claim_is_somebody_elses(self, inbox: Inbox, path: Path, clock: Clock) -> None:
        """What a worker apart is at cannot be finished joined, until its lease has ended."""
        connection = sqlite3.connect(path)
        key = key_of(inbox.begin("id", "one", b"d", None))
        key_of(inbox.begin("id", "one", b"d", 10.0))
        assert not inbox.finish(key, None, (), within=connection)
        connection.rollback()
        clock.now += 10
        assert inbox.finish(key, None, (), within=connection)
        connection.close()

    def test_what_sqlite_refuses_is_a_transport_error(self, inbox: Inbox, path: Path) -> None:
        """A write that cannot be done is the store's trouble, not the handler's."""
        connection = sqlite3.connect(path, timeout=0.01)
        key = key_of(inbox.begin("id", "one", b"d", None))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConnectionFailedError, match="locked"):
            inbox.finish(key, None, (), within=connection)
        connection.close()
        other.close()


class TestSQLite:
    def test_nothing_is_touched_before_it_is_used(self, path: Path) -> None:
        """Building connects nothing, and the file is for its owner only."""
        store = SQLiteStore(path)
        assert not path.exists()
        assert 0 == store.failures.count()
        assert 0o600 == stat.S_IMODE(path.stat().st_mode)
        store.close()

    def test_what_was_written_is_there_for_another(self, sqlite: SQLiteStore, path: Path) -> None:
        """Another store on the same file reads it; closing is idempotent and no end."""
        sqlite.failures.put(failed())
        sqlite.close()
        sqlite.close()
        other = SQLiteStore(path)
        assert failed() == other.failures.get("k1")
        other.close()
        assert 1 == sqlite.failures.count()

    def test_writes_reach_the_disk(self, sqlite: SQLiteStore) -> None:
        """WAL and synchronous=FULL."""
        run = sqlite._database._writer.run
        assert [("wal",)] == run(lambda each: each.execute("PRAGMA journal_mode").fetchall())
        assert [(2,)] == run(lambda each: each.execute("PRAGMA synchronous").fetchall())

    def test_a_locked_database_is_a_store_that_is_down(
        self, sqlite: SQLiteStore, path: Path
    ) -> None:
        """After the time-out a `TransportError`; once the lock is gone everything works again."""
        sqlite.failures.put(failed())
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ConnectionFailedError, match="locked"):
            sqlite.failures.put(failed("k2"))
        other.close()
        sqlite.failures.put(failed("k2"))
        assert 2 == sqlite.failures.count()

    def test_reading_waits_for_nobody_who_writes(self, sqlite: SQLiteStore, path: Path) -> None:
        """A unit of work that has the write lock can look into the inbox, whoever waits for it."""
        sqlite.inbox.purge()
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        patient = SQLiteStore(path, busy_timeout=60.0)
        writing = threading.Thread(target=patient.failures.put, args=(failed(),))
        writing.start()
        key_of(patient.inbox.begin("id", "one", b"d", None))
        assert writing.is_alive()
        other.execute("COMMIT")
        other.close()
        writing.join()
        patient.close()

    def test_a_full_disk_refuses(self, sqlite: SQLiteStore) -> None:
        """What does not fit raises, and what was there stays readable."""
        sqlite.failures.put(failed())
        sqlite._database._writer.run(lambda each: each.execute("PRAGMA max_page_count = 1"))
        with pytest.raises(TransportError, match="full"):
            sqlite.failures.put(failed("k2", body=b"x" * 1_000_000))
        assert 1 == sqlite.failures.count()

    def test_of_many_all_are_kept_or_none(self, sqlite: SQLiteStore) -> None:
        """The last of two hundred does not fit: nothing is kept, and nothing noted forgotten."""
        sqlite.failures.note_many([("k1", failure())])
        wrong: Any = object()
        rows = [failed(f"k{number}", history=()) for number in range(200)]
        with pytest.raises(TransportError):
            sqlite.failures.put_many([*rows, failed("last", body=wrong)])
        assert 0 == sqlite.failures.count()
        sqlite.failures.put_many(rows)
        kept = sqlite.failures.get("k1")
        assert kept is not None
        assert (failure(),) == kept.history

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        """It says which file cannot be opened, and why."""
        store = SQLiteStore(tmp_path / "nowhere" / "stores.db")
        with pytest.raises(ConnectionFailedError, match=r"nowhere/stores\.db: No such file"):
            store.failures.count()

    def test_what_is_no_database(self, path: Path) -> None:
        """A file of another kind is refused and left as it is."""
        path.write_text("not a database, however long it may be" * 100)
        with pytest.raises(ConnectionFailedError, match="not a database"):
            SQLiteStore(path).failures.count()

    def test_tables_of_a_newer_version_are_refused(self, sqlite: SQLiteStore, path: Path) -> None:
        """An old process does not write into tables that it does not know."""
        sqlite.failures.put(failed())
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE postbus_schema SET version = 99")
        connection.close()
        with pytest.raises(UnsupportedError, match="version 99"):
            SQLiteStore(path).failures.count()

    def test_two_that_begin_at_once_make_the_tables_once(self, path: Path) -> None:
        """The second finds what the first has made."""
        stores = [SQLiteStore(path) for _ in range(4)]
        start = threading.Barrier(4)

        def work(store: SQLiteStore) -> None:
            start.wait(10)
            store.failures.put(failed(new_id()))

        threads = [threading.Thread(target=work, args=(each,)) for each in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 4 == stores[0].failures.count()
        [(versions,)] = stores[0]._database.read("SELECT count(*) FROM postbus_schema")
        assert 1 == versions
        for store in stores:
            store.close()

    def test_what_is_asked_at_one_moment_is_written_together(
        self, sqlite: SQLiteStore, path: Path
    ) -> None:
        """One transaction for all that waited, and only the one that fails has failed."""
        sqlite.inbox.purge()
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        patient = Database(path, 60.0)
        writer = patient._writer
        results: dict[int, Any] = {}

        def work(number: int) -> None:
            def insert(connection: sqlite3.Connection) -> int:
                if number == 3:
                    raise ZeroDivisionError
                connection.execute(
                    "INSERT INTO postbus_noted VALUES (?, 0, x'', 0)", (str(number),)
                )
                return number

            try:
                results[number] = patient.write(insert)
            except ZeroDivisionError as error:
                results[number] = error

        threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
        threads[0].start()
        # The first has the connection and waits for the lock; the others wait behind it.
        while not writer._lock.locked() or writer._queue:
            pass
        for thread in threads[1:]:
            thread.start()
        while len(writer._queue) < 4:
            pass
        other.execute("COMMIT")
        other.close()
        for thread in threads:
            thread.join()
        assert isinstance(results.pop(3), ZeroDivisionError)
        assert {0: 0, 1: 1, 2: 2, 4: 4} == results
        assert [(4,)] == patient.read("SELECT count(*) FROM postbus_noted")
        patient.close()

    def test_what_was_told_to_have_failed_is_not_done_later(self, tmp_path: Path) -> None:
        """Without a connection nothing is left for whoever has one next."""
        folder = tmp_path / "later"
        store = SQLiteStore(folder / "stores.db")
        with pytest.raises(ConnectionFailedError):
            store.failures.put(failed("k1"))
        folder.mkdir()
        store.failures.put(failed("k2"))
        assert ["k2"] == [each.key for each in store.failures.list()]
        store.close()

    def test_it_survives_a_fork(self, sqlite: SQLiteStore) -> None:
        """A child opens a connection of its own and leaves the parent's alone."""
        sqlite.failures.put(failed())
        child = os.fork()
        if child == 0:
            try:
                sqlite.failures.put(failed("k2"))
                sqlite.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        sqlite.failures.put(failed("k3"))
        assert 3 == sqlite.failures.count()

    def test_closing_in_a_child_leaves_the_parents_connection(self, sqlite: SQLiteStore) -> None:
        """A child that never used it closes nothing."""
        sqlite.failures.put(failed())
        child = os.fork()
        if child == 0:
            try:
                sqlite.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert 1 == sqlite.failures.count()

    def test_one_claim_of_many_processes(self, sqlite: SQLiteStore, path: Path) -> None:
        """Forty due messages, three processes that claim: each message is claimed once."""
        for _ in range(40):
            sqlite.schedule.put(due_in(0))
        code = f"""
            import sys
            from pathlib import Path
            from postbus.stores import SQLiteStore
            store = SQLiteStore(Path({str(path)!r}))
            sys.stdin.readline()
            while claims := store.schedule.claim({TARGETS!r}, limit=3, lease=1000.0):
                for claim in claims:
                    print(claim.scheduled.message.id)
        """
        children = [
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(code)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        claimed = "".join(child.communicate(timeout=100)[0] for child in children).split()
        assert 40 == len(claimed) == len(set(claimed))

    def test_a_claim_of_a_killed_process_comes_back(self, sqlite: SQLiteStore, path: Path) -> None:
        """SIGKILL while it holds a claim: nothing is lost, and the lease gives it back."""
        sqlite.schedule.put(due_in(0))
        code = f"""
            from pathlib import Path
            from postbus.stores import SQLiteStore
            store = SQLiteStore(Path({str(path)!r}), clock=lambda: {NOW.timestamp()})
            print(len(store.schedule.claim({TARGETS!r}, limit=3, lease=10.0)), flush=True)
            while True:
                pass
        """
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            assert "1\n" == child.stdout.readline()
            child.send_signal(signal.SIGKILL)
        assert [] == list(sqlite.schedule.claim(TARGETS, limit=3, lease=10.0))
        later = SQLiteStore(path, clock=lambda: NOW.timestamp() + 10)
        [claim] = later.schedule.claim(TARGETS, limit=3, lease=10.0)
        assert claim.redelivered
        later.close()

    def test_opening_it_keeps_the_locks_of_other_connections(self, path: Path) -> None:
        """A file that is opened and closed beside SQLite lets go of all locks of the process.

        Then two write at once, and the database is destroyed: seen when workers were killed
        whose handlers had the inbox in their own file.
        """
        application = sqlite3.connect(path, isolation_level=None)
        application.execute("PRAGMA journal_mode = WAL")
        application.execute("CREATE TABLE effects (number)")
        application.execute("BEGIN")
        application.execute("SELECT * FROM effects").fetchall()
        store = SQLiteStore(path)
        assert 0 == store.failures.count()
        # The bytes that SQLite locks for readers of a file.
        code = f"""
            import fcntl
            with open({str(path)!r}, "rb+") as file:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)
                    print("free")
                except BlockingIOError:
                    print("held")
        """
        seen = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            check=True,
            capture_output=True,
            text=True,
        )
        assert "held\n" == seen.stdout
        store.close()
        application.close()


class TestKinds:
    def test_each_makes_its_store_of_its_settings(self, tmp_path: Path) -> None:
        """The records that `store = "sqlite"` and `store = "memory"` name."""
        made = SQLITE.make(SQLiteStoreSettings(path=str(tmp_path / "a.db"), inbox_ttl=5.0))
        assert isinstance(made, SQLiteStore)
        assert isinstance(MEMORY.make(MemoryStoreSettings()), MemoryStore)
        assert ("sqlite", "memory") == (SQLITE.name, MEMORY.name)
