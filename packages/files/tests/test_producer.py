"""A message is a whole, durable file before the send returns, or the send raises."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from postbus.errors import (
    ClosedError,
    ConnectionFailedError,
    PartiallySentError,
    RejectedError,
    TransportError,
)
from postbus.promises import Promise
from postbus.transports import Reply, WireMessage
from postbus_files import FilesProducer
from postbus_files._names import Entry

MakeProducer = Callable[..., FilesProducer]
MakeMessage = Callable[..., WireMessage]


def bodies(folder: Path) -> list[bytes]:
    return [
        (folder / name).read_bytes() for name in sorted(path.name for path in folder.iterdir())
    ]


class TestSend:
    def test_a_message_is_a_file_with_its_body_and_nothing_else(
        self, producer: MakeProducer, message: MakeMessage, path: Path
    ) -> None:
        """Anybody can read it with a pager, in the order of sending."""
        with_folder = producer()

        with_folder.send(message(b'{"a":1}'))
        with_folder.send_many([message(b'{"b":2}'), message(b'{"c":3}')])

        assert bodies(path / "ready") == [b'{"a":1}', b'{"b":2}', b'{"c":3}']
        assert not any((path / "tmp").iterdir())

    def test_nothing_is_touched_before_the_first_send(
        self, producer: MakeProducer, path: Path
    ) -> None:
        """Building an application makes no folder."""
        producer().close()

        assert not path.exists()

    def test_nobody_else_may_look(
        self, producer: MakeProducer, message: MakeMessage, path: Path
    ) -> None:
        """Messages hold what they hold: folder 0700, files 0600, whatever the umask."""
        before = os.umask(0)
        try:
            producer().send(message())
        finally:
            os.umask(before)

        (file,) = (path / "ready").iterdir()
        modes = [stat.S_IMODE(p.stat().st_mode) for p in (path, path / "ready", file)]
        assert modes == [0o700, 0o700, 0o600]

    def test_a_folder_that_strangers_may_write_to_is_refused(
        self, producer: MakeProducer, message: MakeMessage, path: Path
    ) -> None:
        """Whoever writes there sends commands."""
        path.mkdir()
        path.chmod(0o777)

        with pytest.raises(ConnectionFailedError, match="chmod"):
            producer().send(message())

    def test_a_larger_priority_is_before_and_an_expiry_is_in_the_name(
        self, producer: MakeProducer, message: MakeMessage, path: Path
    ) -> None:
        """A consumer learns both without reading the file."""
        expires = datetime(2030, 1, 1, tzinfo=UTC)
        sender = producer()

        sender.send_many([message(b"1"), message(b"2", priority=9, expires_at=expires)])

        first = Entry.parse(min(p.name for p in (path / "ready").iterdir()))
        assert bodies(path / "ready") == [b"2", b"1"]
        assert first is not None
        assert datetime.fromtimestamp(first.expires / 1_000_000, UTC) == expires

    def test_a_delayed_message_waits_elsewhere(
        self, producer: MakeProducer, message: MakeMessage, path: Path
    ) -> None:
        """Until a consumer finds it due."""
        producer().send(message(b"later", delay=timedelta(days=1).total_seconds()))

        assert bodies(path / "delayed") == [b"later"]
        assert bodies(path / "ready") == []

    def test_threads_may_send_at_once(
        self, producer: MakeProducer, message: MakeMessage, path: Path
    ) -> None:
        """Each message is there once, and those of one thread are in order."""
        sender = producer(sync=False)

        def send(thread: int) -> None:
            for number in range(50):
                sender.send(message(b"%d %02d" % (thread, number)))

        threads = [threading.Thread(target=send, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        found = bodies(path / "ready")
        assert len(found) == 200
        for number in range(4):
            own = [body for body in found if body.startswith(b"%d " % number)]
            assert own == sorted(own)

    def test_sync_says_whether_the_disk_is_waited_for(
        self,
        producer: MakeProducer,
        message: MakeMessage,
        path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """File and folder are synchronised, or neither is."""
        synced: list[str] = []
        fsync = os.fsync

        def note(descriptor: int) -> None:
            synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", note)
        producer(sync=False).send(message())
        assert synced == []

        producer().send_many([message(), message()])

        assert [Path(name).parent.name for name in synced] == ["tmp", "tmp", path.name]
        assert synced[-1] == str(path / "ready")


class TestRefusals:
    def test_what_is_too_large_or_too_urgent_is_refused_and_the_rest_sent(
        self, producer: MakeProducer, message: MakeMessage, path: Path
    ) -> None:
        """The error says which, by its index."""
        sender = producer(max_size_bytes=10)

        with pytest.raises(PartiallySentError) as caught:
            sender.send_many([message(b"x" * 11), message(b"fine"), message(b"", priority=10)])

        assert list(caught.value.failed) == [0, 2]
        assert all(isinstance(e, RejectedError) for e in caught.value.failed.values())
        assert bodies(path / "ready") == [b"fine"]

    def test_a_full_disk_raises_and_leaves_nothing_behind(
        self,
        producer: MakeProducer,
        message: MakeMessage,
        path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The system's words, without a half-written file."""
        sender = producer()
        sender.send(message(b"before"))

        def refuse(*_: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", refuse)
        with pytest.raises(RejectedError, match="No space left") as caught:
            sender.send(message())
        monkeypatch.undo()

        assert str(path) in str(caught.value)
        assert not any((path / "tmp").iterdir())
        assert bodies(path / "ready") == [b"before"]

    def test_names_that_are_not_durable_count_as_not_sent(
        self, producer: MakeProducer, message: MakeMessage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Sent means that a crash cannot take it back."""
        sender = producer()
        sender.send(message())
        fsync = os.fsync

        def refuse_folders(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(5, "Input/output error")
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", refuse_folders)

        with pytest.raises(PartiallySentError) as caught:
            sender.send_many([message(), message()])
        assert sorted(caught.value.failed) == [0, 1]

    def test_a_path_that_cannot_be_a_folder_is_told(
        self, producer: MakeProducer, message: MakeMessage, path: Path
    ) -> None:
        """A file is in its place."""
        path.write_text("a file")

        with pytest.raises(TransportError, match="make the folder"):
            producer().send(message())

    def test_after_close_it_refuses(
        self, producer: MakeProducer, message: MakeMessage, path: Path
    ) -> None:
        """Twice closed is closed; what was sent stays."""
        sender = producer()
        sender.send(message(b"before"))
        sender.close()
        sender.close()
        reply: Promise[Reply] = Promise()

        with pytest.raises(ClosedError):
            sender.send(message())
        sender.request(message(), reply)

        assert isinstance(reply.exception(), ClosedError)
        assert bodies(path / "ready") == [b"before"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_sends_and_asks_for_itself(
    producer: MakeProducer, message: MakeMessage, path: Path
) -> None:
    """With a folder of its own for answers; closing it there leaves the parent's queries alone."""
    sender = producer()
    reply: Promise[Reply] = Promise()
    sender.request(message(), reply)
    child = os.fork()
    if child == 0:  # the exit code is the answer
        sender.send(message())
        sender.request(message(), Promise())
        sender.close()
        os._exit(0 if len(list((path / "replies").iterdir())) == 1 else 1)

    assert os.waitpid(child, 0)[1] == 0
    assert len(bodies(path / "ready")) == 3
    assert not reply.done()
    sender.close()
    assert isinstance(reply.exception(), ClosedError)
