"""Queries over a folder: each answer reaches the promise of its question, and no other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from postbus import MessageCatalog, Query, build
from postbus.errors import ClosedError, HandlerFailedError, RejectedError, TransportError
from postbus.promises import Promise
from postbus.transports import Reply, WireMessage
from postbus_files import FilesConsumer, FilesProducer

MakeProducer = Callable[..., FilesProducer]
MakeConsumer = Callable[..., FilesConsumer]
MakeMessage = Callable[..., WireMessage]


@attrs.frozen
class Double(Query[int], name="files.double"):
    number: int


def double(query: Double) -> int:
    if query.number < 0:
        raise ValueError
    return 2 * query.number


def ask(producer: FilesProducer, message: WireMessage) -> Promise[Reply]:
    reply: Promise[Reply] = Promise()
    producer.request(message, reply)
    return reply


class TestAnswers:
    def test_hundreds_at_once_and_out_of_order(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage, path: Path
    ) -> None:
        """Each gets its own answer, and nothing is left in the folder."""
        sender = producer(sync=False)

        async def scenario() -> list[bytes]:
            replies = [ask(sender, message(b"%d" % number)) for number in range(200)]
            receiver = consumer()
            left = 200
            while left:
                deliveries = await receiver.receive(50)
                for delivery in reversed(deliveries):
                    assert delivery.can_reply
                    delivery.reply(Reply(b"<%s>" % delivery.body))
                    delivery.ack()
                left -= len(deliveries)
            async with asyncio.timeout(60):
                found = [(await reply).body for reply in replies]
            await receiver.aclose()
            return found

        assert asyncio.run(scenario()) == [b"<%d>" % number for number in range(200)]
        sender.close()
        assert [p for p in path.rglob("*") if p.is_file()] == []
        assert not any((path / "replies").iterdir())

    def test_one_that_comes_too_late_is_dropped(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage, path: Path
    ) -> None:
        """Its deadline had settled the promise; later queries work."""
        sender = producer()

        async def scenario() -> bytes:
            late = ask(sender, message(b"late"))
            late.reject(TransportError("its deadline"))
            late.exception()
            reply = ask(sender, message(b"in time"))
            receiver = consumer()
            for delivery in await receiver.receive(2):
                delivery.reply(Reply(delivery.body))
                delivery.ack()
            async with asyncio.timeout(60):
                found = (await reply).body
                while any(any(p.iterdir()) for p in (path / "replies").iterdir()):  # noqa: ASYNC110  another thread removes it
                    await asyncio.sleep(0.001)
            await receiver.aclose()
            return found

        assert asyncio.run(scenario()) == b"in time"
        sender.close()

    def test_an_answer_for_an_asker_that_is_gone_is_no_failure(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage, path: Path
    ) -> None:
        """The query is handled all the same."""
        sender = producer()
        reply = ask(sender, message())
        sender.close()
        assert isinstance(reply.exception(), ClosedError)

        async def scenario() -> None:
            receiver = consumer()
            (delivery,) = await receiver.receive(1)
            delivery.reply(Reply(b"1"))
            delivery.ack()
            await delivery.settled()
            assert not delivery.lost
            await receiver.aclose()

        asyncio.run(scenario())
        assert [p for p in path.rglob("*") if p.is_file()] == []

    def test_files_that_are_no_answers_are_removed(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage, path: Path
    ) -> None:
        """Whatever is in the folder, the answers come."""
        sender = producer()

        async def scenario() -> bytes:
            reply = ask(sender, message())
            (own,) = (path / "replies").iterdir()
            for name in ("nonsense", "99.result.json", "x.result.json"):
                (own / name).write_text("1")
            receiver = consumer()
            (delivery,) = await receiver.receive(1)
            delivery.reply(Reply(b"1"))
            delivery.ack()
            async with asyncio.timeout(60):
                found = (await reply).body
            await receiver.aclose()
            return found

        assert asyncio.run(scenario()) == b"1"
        sender.close()

    def test_a_folder_that_cannot_be_read_is_logged_and_tried_again(
        self,
        producer: MakeProducer,
        consumer: MakeConsumer,
        message: MakeMessage,
        path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A disk that stumbles ends nothing."""
        sender = producer()

        async def scenario() -> bytes:
            reply = ask(sender, message())
            (own,) = (path / "replies").iterdir()
            own.rename(path / "moved")
            async with asyncio.timeout(60):
                while not caplog.records:  # noqa: ASYNC110  another thread logs
                    await asyncio.sleep(0.001)
                (path / "moved").rename(own)
                receiver = consumer()
                (delivery,) = await receiver.receive(1)
                delivery.reply(Reply(b"1"))
                delivery.ack()
                found = (await reply).body
            await receiver.aclose()
            return found

        assert asyncio.run(scenario()) == b"1"
        sender.close()

    @pytest.mark.parametrize("body", [b"x" * 1001, None])
    def test_a_query_that_cannot_be_sent_rejects(
        self, body: bytes | None, producer: MakeProducer, message: MakeMessage, path: Path
    ) -> None:
        """`request` raises nothing."""
        sender = producer()
        if body is None:
            sender.send(message())
            (path / "replies").rmdir()

        reply = ask(sender, message(body or b"1"))

        assert isinstance(reply.exception(), RejectedError if body else TransportError)
        sender.close()


class TestClose:
    def test_an_answer_that_comes_meanwhile_is_no_failure(
        self, producer: MakeProducer, message: MakeMessage, path: Path
    ) -> None:
        """Whoever answers does not know that nobody waits any more."""
        sender = producer()
        reply = ask(sender, message())
        (own,) = (path / "replies").iterdir()

        def answer_late(_: Promise[Reply]) -> None:
            (own / "a folder").mkdir()

        reply.add_done_callback(answer_late)
        sender.close()

        assert isinstance(reply.exception(), ClosedError)
        assert not own.exists()

    def test_who_gets_an_answer_may_close(
        self, producer: MakeProducer, consumer: MakeConsumer, message: MakeMessage, path: Path
    ) -> None:
        """The last answer often ends a program, on the thread that brings it."""
        sender = producer()
        closed = threading.Event()

        def close(_: Promise[Reply]) -> None:
            sender.close()
            closed.set()

        async def scenario() -> None:
            reply = ask(sender, message())
            reply.add_done_callback(close)
            receiver = consumer()
            (delivery,) = await receiver.receive(1)
            delivery.reply(Reply(b"1"))
            delivery.ack()
            assert await asyncio.to_thread(closed.wait, 30)
            await receiver.aclose()

        asyncio.run(scenario())

        assert not any((path / "replies").iterdir())


def test_the_buses_ask_and_answer_over_it(path: Path) -> None:
    """Answers are typed, errors too: as in process, by configuration alone."""
    config = {
        "producers": {"folder": {"transport": "files", "path": str(path), "poll_interval": 0.001}},
        "consumers": {"folder": {"transport": "files", "path": str(path), "poll_interval": 0.001}},
        "query_bus": {
            "router": {
                "routes": {"files.double": "double"},
                "send": {"files.*": "producers.folder"},
            }
        },
    }

    catalog = MessageCatalog()
    catalog.add(Double)

    with build(config, {"double": double}, catalog) as app, app.worker().running():
        assert app.query_bus.dispatch(Double(21)).result(60) == 42
        with pytest.raises(HandlerFailedError):
            app.query_bus.dispatch(Double(-1)).result(60)
