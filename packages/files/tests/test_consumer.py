"""What is received is held by a lease: settled once, or back again for somebody else."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest

from postbus.errors import ClosedError, RejectedError, TransportError, UnsupportedError
from postbus.transports import Delivery, WireMessage
from postbus_files import FilesConsumer, FilesProducer
from postbus_files._folder import Folder, Listing
from postbus_files._names import Claim

T = TypeVar("T")
MakeProducer = Callable[..., FilesProducer]
MakeConsumer = Callable[..., FilesConsumer]
MakeMessage = Callable[..., WireMessage]

HOLD = """
import asyncio, sys
from postbus.transports import CommonSettings
from postbus_files import FILES

async def hold():
    settings = FILES.consumer_settings(path=sys.argv[1], lease=float(sys.argv[2]))
    consumer = FILES.make_consumer(settings, CommonSettings(name="held"))
    print(len(await consumer.receive(100)), flush=True)
    await asyncio.sleep(60)

asyncio.run(hold())
"""


def run(test: Callable[[], Awaitable[T]]) -> T:
    async def limited() -> T:
        async with asyncio.timeout(60):
            return await test()

    return asyncio.run(limited())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def bodies(consumer: FilesConsumer, max_messages: int = 100) -> list[bytes]:
    return [delivery.body for delivery in await consumer.receive(max_messages)]


async def ack_all(deliveries: Sequence[Delivery]) -> None:
    for delivery in deliveries:
        delivery.ack()
    for delivery in deliveries:
        await delivery.settled()


class TestReceive:
    def test_messages_come_in_the_order_of_sending_larger_priority_first(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage
    ) -> None:
        """At most as many as asked for; acknowledged ones are gone."""
        sender = producer()
        sender.send_many([message(b"1"), message(b"2"), message(b"0", priority=5)])

        async def scenario() -> list[bytes]:
            receiver = consumer()
            first = await receiver.receive(2)
            await ack_all(first)
            rest = await receiver.receive(2)
            await ack_all(rest)
            await receiver.aclose()
            return [d.body for d in (*first, *rest)]

        assert run(scenario) == [b"0", b"1", b"2"]

    def test_nothing_is_left_of_what_was_handled(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage, path: Path
    ) -> None:
        """An acknowledgement removes the file."""
        producer().send(message())

        async def scenario() -> None:
            receiver = consumer()
            await ack_all(await receiver.receive(1))
            await receiver.aclose()

        run(scenario)

        assert [p for p in path.rglob("*") if p.is_file()] == []

    def test_a_delayed_message_comes_when_it_is_due(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage
    ) -> None:
        """Not before, and without new messages to look for."""
        started = time.monotonic()
        producer().send(message(b"later", delay=0.1))

        async def scenario() -> list[bytes]:
            receiver = consumer()
            found = await bodies(receiver)
            await receiver.aclose()
            return found

        assert run(scenario) == [b"later"]
        assert time.monotonic() - started >= 0.1

    def test_an_expired_message_is_dropped_and_logged(
        self,
        producer: MakeProducer,
        consumer: MakeConsumer,
        message: MakeMessage,
        path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Nobody wants it any more."""
        caplog.set_level(logging.INFO, "postbus.files")
        past = datetime.now(UTC) - timedelta(seconds=1)
        sender = producer()
        sender.send(message(b"old", expires_at=past))
        sender.send(message(b"new", expires_at=past + timedelta(days=1)))

        async def scenario() -> list[bytes]:
            receiver = consumer()
            found = await bodies(receiver)
            await receiver.aclose()
            return found

        assert run(scenario) == [b"new"]
        assert [r.message for r in caplog.records] == ["message expired"]
        assert len(names(path / "ready")) == 1  # the other, given back

    def test_a_file_that_somebody_put_there_is_a_message(
        self, consumer: MakeConsumer, path: Path
    ) -> None:
        """Any program can send: write elsewhere on the file system, then rename."""
        (path / "ready").mkdir(parents=True)
        path.chmod(0o700)
        (path / "order.json").write_bytes(b'{"a":1}')
        (path / "order.json").rename(path / "ready" / "order.json")

        async def scenario() -> tuple[bytes, bool]:
            receiver = consumer()
            (delivery,) = await receiver.receive(1)
            await ack_all([delivery])
            await receiver.aclose()
            return delivery.body, delivery.redelivered

        assert run(scenario) == (b'{"a":1}', False)

    def test_what_is_no_plain_file_or_too_large_is_kept_aside(
        self,
        producer: MakeProducer,
        consumer: MakeConsumer,
        message: MakeMessage,
        path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A link out of the folder, a pipe, a folder, a gigabyte: never read, never lost."""
        sender = producer()
        sender.send(message(b"fine"))
        ready = path / "ready"
        (ready / "a-link").symlink_to("/etc/passwd")
        os.mkfifo(ready / "a-pipe")
        (ready / "a-folder").mkdir()
        (ready / "large").write_bytes(b"x" * 1001)

        async def scenario() -> list[bytes]:
            receiver = consumer()
            found = await receiver.receive(1)
            await ack_all(found)
            waiting = asyncio.create_task(bodies(receiver))
            while names(ready):  # noqa: ASYNC110  the consumer's thread takes them away
                await asyncio.sleep(0.001)
            sender.send(message(b"more"))
            more = await waiting
            await receiver.aclose()
            return [found[0].body, *more]

        assert run(scenario) == [b"fine", b"more"]
        assert len(names(path / "rejected")) == 4
        assert sum(r.levelno == logging.ERROR for r in caplog.records) == 4

    def test_a_file_that_the_disk_refuses_holds_up_no_other(
        self,
        producer: MakeProducer,
        consumer: MakeConsumer,
        message: MakeMessage,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """What was claimed before it is delivered; the error comes with the next call."""
        producer().send_many([message(b"1"), message(b"2"), message(b"3")])
        read = Folder.read

        def read_some(folder: Folder, path: Path, max_size_bytes: int) -> bytes | None:
            body = read(folder, path, max_size_bytes)
            if body == b"2":
                raise OSError(errno.EIO, "Input/output error")
            return body

        monkeypatch.setattr(Folder, "read", read_some)

        async def scenario() -> list[bytes]:
            receiver = consumer()
            found = [*await receiver.receive(3), *await receiver.receive(3)]
            assert not any(each.lost for each in found)
            await ack_all(found)
            await receiver.aclose()
            return [each.body for each in found]

        assert run(scenario) == [b"1", b"3"]

    def test_at_most_once_removes_what_it_takes(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage, path: Path
    ) -> None:
        """As the guarantee says; giving back is then refused."""
        producer().send(message())

        async def scenario() -> None:
            receiver = consumer(guarantee="at-most-once")
            (delivery,) = await receiver.receive(1)
            delivery.ack()
            with pytest.raises(UnsupportedError):
                delivery.nack()
            await receiver.aclose()

        run(scenario)

        assert names(path / "ready") == names(path / "claimed") == []

    def test_two_consumers_share_the_messages(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage
    ) -> None:
        """A rename has one winner: each message is delivered once."""
        producer(sync=False).send_many([message(b"%d" % number) for number in range(300)])

        async def take(receiver: FilesConsumer, found: list[bytes], all_of: set[bytes]) -> None:
            while len(all_of) < 300:
                deliveries = await receiver.receive(3)
                await ack_all(deliveries)
                found += [d.body for d in deliveries]
                all_of.update(d.body for d in deliveries)

        async def scenario() -> tuple[list[bytes], list[bytes]]:
            receivers, all_of = (consumer(), consumer()), set[bytes]()
            found: tuple[list[bytes], list[bytes]] = ([], [])
            tasks = [
                asyncio.create_task(take(each, own, all_of))
                for each, own in zip(receivers, found, strict=True)
            ]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for receiver in receivers:
                await receiver.aclose()
            await asyncio.gather(*tasks, return_exceptions=True)
            return found

        first, second = run(scenario)

        assert sorted(first + second) == sorted(b"%d" % number for number in range(300))


class TestSettling:
    def test_what_is_given_back_returns_to_its_place(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage
    ) -> None:
        """Before all that came after it, and says that it was here before."""
        producer().send_many([message(b"1"), message(b"2")])

        async def scenario() -> list[tuple[bytes, bool]]:
            receiver = consumer()
            (delivery,) = await receiver.receive(1)
            delivery.nack()
            await delivery.settled()
            await receiver.aclose()
            other = consumer()
            found = [(d.body, d.redelivered) for d in await other.receive(2)]
            await other.aclose()
            return found

        assert run(scenario) == [(b"1", True), (b"2", False)]

    def test_a_retry_takes_its_place_with_a_new_body(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage, path: Path
    ) -> None:
        """One file before, one file after, in the old place and with the old priority."""
        producer().send_many([message(b"1", priority=3), message(b"2", priority=3)])

        async def scenario() -> list[tuple[bytes, bool]]:
            receiver = consumer()
            (delivery,) = await receiver.receive(1)
            delivery.retry(message(b"1 again"))
            await delivery.settled()
            found = [(d.body, d.redelivered) for d in await receiver.receive(2)]
            await receiver.aclose()
            return found

        assert run(scenario) == [(b"1 again", False), (b"2", False)]
        assert len(names(path / "ready")) == 2

    def test_a_retry_may_wait(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage, path: Path
    ) -> None:
        """In the folder of what is not due; an urgency of its own counts."""
        producer().send(message(b"1"))

        async def scenario() -> None:
            receiver = consumer()
            (delivery,) = await receiver.receive(1)
            delivery.retry(message(b"1 again", delay=3600.0, priority=9))
            await delivery.settled()
            await receiver.aclose()

        run(scenario)

        (waiting,) = names(path / "delayed")
        assert (path / "delayed" / waiting).read_bytes() == b"1 again"
        assert waiting.split("-")[1] == "0"
        assert names(path / "ready") == names(path / "claimed") == []

    def test_a_retry_that_the_disk_refuses_leaves_the_old_message(
        self,
        producer: MakeProducer,
        consumer: MakeConsumer,
        message: MakeMessage,
        path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Its holder is told, and its lease gives it back."""
        producer().send(message(b"1"))

        async def scenario() -> None:
            receiver = consumer()
            (delivery,) = await receiver.receive(1)

            def refuse(*_: object) -> int:
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(os, "write", refuse)
            delivery.retry(message(b"1 again"))
            with pytest.raises(RejectedError, match="No space"):
                await delivery.settled()
            monkeypatch.undo()
            assert delivery.lost
            await receiver.aclose()

        run(scenario)

        (held,) = (path / "claimed").iterdir()
        assert held.read_bytes() == b"1"

    @pytest.mark.parametrize("how", ["ack", "nack", "retry", "extend"])
    def test_what_somebody_else_has_by_now_is_lost(
        self,
        how: str,
        producer: MakeProducer,
        consumer: MakeConsumer,
        message: MakeMessage,
        path: Path,
    ) -> None:
        """A holder that was too slow cannot settle another's message."""
        producer().send(message(b"1"))

        async def scenario() -> None:
            slow, quick = consumer(lease=0.02), consumer()
            (delivery,) = await slow.receive(1)
            (again,) = await quick.receive(1)
            calls: dict[str, Callable[[], None]] = {
                "ack": delivery.ack,
                "nack": delivery.nack,
                "retry": lambda: delivery.retry(message()),
                "extend": lambda: delivery.extend(1.0),
            }
            calls[how]()
            with pytest.raises(TransportError, match="lease"):
                await delivery.settled()
            assert delivery.lost
            assert again.redelivered
            await ack_all([again])
            await slow.aclose()
            await quick.aclose()

        run(scenario)

        assert [p for p in path.rglob("*") if p.is_file()] == []

    def test_an_extended_lease_holds(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage, path: Path
    ) -> None:
        """A long handler keeps its message."""
        producer().send(message())

        async def scenario() -> None:
            receiver = consumer(lease=1.0)
            (delivery,) = await receiver.receive(1)
            before = Claim.parse(names(path / "claimed")[0])
            delivery.extend(3600.0)
            await delivery.settled()
            after = Claim.parse(names(path / "claimed")[0])
            assert before is not None
            assert after is not None
            assert after.until - before.until > 3_500_000_000
            await ack_all([delivery])
            await receiver.aclose()

        run(scenario)

    def test_closing_gives_back_what_is_held(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage, path: Path
    ) -> None:
        """At once, not when the lease has run out."""
        producer().send(message())

        async def scenario() -> None:
            receiver = consumer()
            (delivery,) = await receiver.receive(1)
            await receiver.aclose()
            assert delivery.lost
            with pytest.raises(ClosedError):
                await receiver.receive(1)

        run(scenario)

        assert len(names(path / "ready")) == 1


class TestCrash:
    def test_what_a_killed_process_held_comes_back(
        self,
        producer: MakeProducer,
        consumer: MakeConsumer,
        message: MakeMessage,
        path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """By the timer of another consumer, without new messages, once its lease has run out."""
        producer().send_many([message(b"%d" % number) for number in range(10)])
        child = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path), "0.5"], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        with child.stdout:
            assert child.stdout.readline() == b"10\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert names(path / "ready") == []

        async def scenario() -> list[tuple[bytes, bool]]:
            receiver = consumer(lease=0.5)
            found: list[tuple[bytes, bool]] = []
            while len(found) < 10:
                deliveries = await receiver.receive(100)
                await ack_all(deliveries)
                found += [(d.body, d.redelivered) for d in deliveries]
            await receiver.aclose()
            return found

        assert run(scenario) == [(b"%d" % number, True) for number in range(10)]
        assert "a lease ran out" in {r.message for r in caplog.records}

    def test_files_of_no_ones_in_the_other_folders_become_messages(
        self, consumer: MakeConsumer, path: Path
    ) -> None:
        """A claim or a delayed file whose name says nothing was moved by hand: it waits again."""
        for name in ("claimed", "delayed"):
            (path / name).mkdir(parents=True, exist_ok=True)
            (path / name / f"{name}.json").write_text(name)

        async def scenario() -> set[bytes]:
            receiver = consumer()
            found: set[bytes] = set()
            while len(found) < 2:
                found |= set(await bodies(receiver))
            await receiver.aclose()
            return found

        assert run(scenario) == {b"claimed", b"delayed"}

    def test_leftovers_of_dead_processes_are_removed(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage, path: Path
    ) -> None:
        """What was half written an hour ago, and folders of askers that are gone; others stay."""
        producer().send(message())
        long_ago = time.time() - 7200
        for old in (path / "tmp" / "half", path / "replies" / "gone"):
            old.touch() if old.parent.name == "tmp" else old.mkdir()
            os.utime(old, (long_ago, long_ago))
        (path / "tmp" / "new").touch()
        (path / "replies" / "new").mkdir()

        async def scenario() -> None:
            receiver = consumer()
            await ack_all(await receiver.receive(1))
            await receiver.aclose()

        run(scenario)

        assert names(path / "tmp") == names(path / "replies") == ["new"]

    def test_a_folder_that_vanishes_is_told_and_comes_back(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage, path: Path
    ) -> None:
        """The next receive after the repair goes on."""
        producer().send(message(b"1"))

        async def scenario() -> list[bytes]:
            receiver = consumer()
            await ack_all(await receiver.receive(1))
            (path / "ready").rename(path / "moved")
            with pytest.raises(TransportError, match="No such file"):
                await receiver.receive(1)
            (path / "moved").rename(path / "ready")
            producer().send(message(b"2"))
            found = await bodies(receiver)
            await receiver.aclose()
            return found

        assert run(scenario) == [b"2"]


class TestListing:
    def test_it_lists_as_seldom_as_the_folder_is_large(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A listing that took long counts long; one that is used up is made anew."""
        now = [0.0]
        listed: list[float] = []
        monkeypatch.setattr("postbus_files._folder.time.monotonic", lambda: now[0])

        def take_a_second(_: object) -> list[str]:
            listed.append(now[0])
            now[0] += 1.0
            return ["b", "a"]

        monkeypatch.setattr("postbus_files._folder.os.listdir", take_a_second)
        listing = Listing(tmp_path)
        listing.refresh()
        assert list(listing.names) == ["a", "b"]

        now[0] = 20.0
        listing.refresh()
        assert listed == [0.0]

        now[0] = 21.0
        listing.refresh()
        listing.names.clear()
        listing.refresh()
        assert listed == [0.0, 21.0, 22.0]
