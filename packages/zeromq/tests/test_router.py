"""A consumer that answers queries, against bare pyzmq peers."""

from __future__ import annotations

import asyncio
import logging
import random
import subprocess
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast

import pytest
import zmq

from postbus.errors import ClosedError, ConnectionFailedError, TransportError, UnsupportedError
from postbus.promises import Promise
from postbus.transports import Capabilities, Delivery, Reply, WireMessage
from postbus_zeromq import (
    ZeroMQConsumerSettings,
    ZeroMQDealerProducer,
    ZeroMQProducerSettings,
    ZeroMQRouterConsumer,
)

Peer = Callable[..., "zmq.Socket[bytes]"]
Make = Callable[..., WireMessage]
WAIT = 20.0


def with_consumer(
    dsn: str,
    test: Callable[[ZeroMQRouterConsumer], Awaitable[None]],
    rpc: Any = True,
    **keys: Any,
) -> None:
    """Run *test* with a consumer that is closed afterwards."""

    async def main() -> None:
        consumer = ZeroMQRouterConsumer(ZeroMQConsumerSettings(dsn=dsn, rpc=rpc, **keys))
        try:
            await asyncio.wait_for(test(consumer), 60.0)
        finally:
            await consumer.aclose()

    asyncio.run(main())


async def received(consumer: ZeroMQRouterConsumer, count: int = 1) -> list[Delivery]:
    """Receive so many deliveries."""
    deliveries: list[Delivery] = []
    while len(deliveries) < count:
        deliveries += await asyncio.wait_for(consumer.receive(count - len(deliveries)), WAIT)
    return deliveries


async def waiting(consumer: ZeroMQRouterConsumer) -> asyncio.Task[Any]:
    """Start a receive, and return when it waits with its socket open."""
    task = asyncio.create_task(cast("Coroutine[Any, Any, Any]", consumer.receive(10)))
    while consumer._stop_waiting is None:
        await asyncio.sleep(0)
        assert not task.done()
    return task


class TestAnswer:
    def test_goes_back_by_the_way_the_query_came(self, peer: Peer, dsn: str) -> None:
        """A bare DEALER gets its correlation back, and a mark behind a failure (T10)."""

        async def test(consumer: ZeroMQRouterConsumer) -> None:
            dealer = peer(zmq.DEALER, connect=dsn)
            dealer.send_multipart([b"7", b"", b'{"q":1}'])
            (delivery,) = await received(consumer)
            assert (delivery.body, delivery.source, delivery.can_reply) == (b'{"q":1}', dsn, True)
            assert not delivery.redelivered
            delivery.ack()
            delivery.reply(Reply(b"42"))
            assert dealer.recv_multipart() == [b"7", b"", b"42"]
            dealer.send_multipart([b"8", b"", b""])
            (delivery,) = await received(consumer)
            delivery.reply(Reply(b"{}", is_error=True))
            assert dealer.recv_multipart() == [b"8", b"", b"{}", b"problem"]

        with_consumer(dsn, test)

    def test_a_plain_req_client_asks(self, peer: Peer, dsn: str) -> None:
        """The lock step of a REQ socket in any language (Z01)."""

        async def test(consumer: ZeroMQRouterConsumer) -> None:
            client = peer(zmq.REQ, connect=dsn)
            for number in (b"1", b"2"):
                client.send(number)
                (delivery,) = await received(consumer)
                delivery.reply(Reply(b"answer to " + delivery.body))
                assert client.recv_multipart() == [b"answer to " + number]

        with_consumer(dsn, test)

    def test_a_way_through_proxies_is_kept(self, peer: Peer, dsn: str) -> None:
        """Every frame before the empty one belongs to it."""

        async def test(consumer: ZeroMQRouterConsumer) -> None:
            dealer = peer(zmq.DEALER, connect=dsn)
            dealer.send_multipart([b"proxy", b"client", b"7", b"", b"q"])
            (delivery,) = await received(consumer)
            delivery.reply(Reply(b"a"))
            assert dealer.recv_multipart() == [b"proxy", b"client", b"7", b"", b"a"]

        with_consumer(dsn, test)

    def test_may_come_in_any_order_and_from_any_thread(self, peer: Peer, dsn: str) -> None:
        """Three clients, sixty queries, answered at random, every other one by another thread."""

        async def test(consumer: ZeroMQRouterConsumer) -> None:
            clients = [peer(zmq.DEALER, connect=dsn) for _ in range(3)]
            for number in range(60):
                clients[number % 3].send_multipart([b"%d" % number, b"", b"%d" % number])
            deliveries = await received(consumer, 60)
            random.Random(7).shuffle(deliveries)
            for index, delivery in enumerate(deliveries):
                reply = Reply(b"re " + delivery.body)
                if index % 2:
                    await asyncio.to_thread(delivery.reply, reply)
                else:
                    delivery.reply(reply)
            await asyncio.sleep(0)
            for number in range(60):
                got = [clients[number % 3].recv_multipart()]
                assert got[0] == [got[0][0], b"", b"re " + got[0][0]]

        with_consumer(dsn, test)

    def test_the_first_one_counts(self, peer: Peer, dsn: str) -> None:
        """A second reply is nobody's."""

        async def test(consumer: ZeroMQRouterConsumer) -> None:
            client = peer(zmq.REQ, connect=dsn)
            client.send(b"1")
            (delivery,) = await received(consumer)
            delivery.reply(Reply(b"first"))
            delivery.reply(Reply(b"second"))
            assert client.recv() == b"first"
            assert delivery.settled().result() is None
            assert not delivery.lost
            client.send(b"2")
            (delivery,) = await received(consumer)
            delivery.reply(Reply(b"third"))
            assert client.recv() == b"third"

        with_consumer(dsn, test)

    def test_to_an_asker_that_is_gone_is_lost(
        self, peer: Peer, dsn: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """And says so; the others get theirs."""

        async def test(consumer: ZeroMQRouterConsumer) -> None:
            gone, stays = peer(zmq.DEALER, connect=dsn), peer(zmq.REQ, connect=dsn)
            for number in range(500):
                gone.send_multipart([b"%d" % number, b"", b"q"])
            queries = iter(await received(consumer, 500))
            gone.close()
            query = next(queries)
            query.reply(Reply(b"1"))
            while not query.lost:  # until libzmq has seen it
                await asyncio.sleep(0.01)
                query = next(queries)
                query.reply(Reply(b"1"))
            with pytest.raises(ConnectionFailedError, match="cannot answer over"):
                query.settled().result()
            stays.send(b"stays")
            (delivery,) = await received(consumer)
            delivery.reply(Reply(b"2"))
            assert stays.recv() == b"2"

        with_consumer(dsn, test)
        assert "an answer was lost" in caplog.messages

    def test_leaves_before_a_close(self, peer: Peer, dsn: str) -> None:
        """A worker that stops has answered what it handled; what it has not is lost."""

        async def test(consumer: ZeroMQRouterConsumer) -> None:
            dealer = peer(zmq.DEALER, connect=dsn)
            for number in range(300):
                dealer.send_multipart([b"%d" % number, b"", b"q"])
            *deliveries, late = await received(consumer, 300)
            for delivery in deliveries:
                delivery.reply(Reply(b"a" * 10_000))
            await consumer.aclose()
            late.reply(Reply(b"a"))
            with pytest.raises(ClosedError, match="the consumer for"):
                late.settled().result()
            for number in range(299):
                assert dealer.recv_multipart()[0] == b"%d" % number

        with_consumer(dsn, test)

    def test_can_be_read_although_the_consumer_closes_at_once(
        self, dsn: str, message: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An asker that connected would lose what it has not read when the other side hangs up."""
        monkeypatch.setattr("postbus_zeromq.router._FAREWELL", 1.0)

        async def test(consumer: ZeroMQRouterConsumer) -> None:
            producer = ZeroMQDealerProducer(ZeroMQProducerSettings(dsn=dsn, rpc=True))
            asking = asyncio.create_task(producer.arequest(message(b"1")))
            (delivery,) = await received(consumer)
            delivery.reply(Reply(b"2"))
            await consumer.aclose()
            assert asking.done()
            assert await asking == Reply(b"2")
            await producer.aclose()

        with_consumer(dsn, test)

    def test_of_another_thread_after_the_loop_is_lost(self, peer: Peer, dsn: str) -> None:
        """There is no owner of the socket to send it."""
        consumer = ZeroMQRouterConsumer(ZeroMQConsumerSettings(dsn=dsn, rpc=True))
        loop = asyncio.new_event_loop()
        client = peer(zmq.REQ, connect=dsn)
        client.send(b"1")
        (delivery,) = loop.run_until_complete(received(consumer))
        loop.run_until_complete(consumer.aclose())
        loop.close()
        thread = threading.Thread(target=delivery.reply, args=(Reply(b"1"),))
        thread.start()
        thread.join()
        with pytest.raises(ClosedError, match="the loop that received"):
            delivery.settled().result()

    def test_is_all_that_can_be_done_with_a_query(self, peer: Peer, dsn: str) -> None:
        """Nothing comes back over ZeroMQ, so nothing is given back."""

        async def test(consumer: ZeroMQRouterConsumer) -> None:
            peer(zmq.REQ, connect=dsn).send(b"1")
            (delivery,) = await received(consumer)
            for refused in (
                delivery.nack,
                lambda: delivery.extend(1.0),
                lambda: delivery.retry(WireMessage(b"", {}, "", "")),
            ):
                with pytest.raises(UnsupportedError):
                    refused()

        with_consumer(dsn, test)


class TestReceive:
    def test_what_wants_no_answer_comes_where_both_are_wanted(
        self, peer: Peer, dsn: str, message: Make
    ) -> None:
        """`rpc = "both"`: one frame, without a way back (Z02)."""

        async def test(consumer: ZeroMQRouterConsumer) -> None:
            producer = ZeroMQDealerProducer(ZeroMQProducerSettings(dsn=dsn, rpc="both"))
            task = await waiting(consumer)
            await producer.asend(message(b"command"))
            (delivery,) = await task
            assert (delivery.body, delivery.can_reply) == (b"command", False)
            with pytest.raises(UnsupportedError):
                delivery.reply(Reply(b"1"))
            delivery.ack()
            asking = asyncio.create_task(producer.arequest(message(b"query")))
            (delivery,) = await received(consumer)
            delivery.reply(Reply(b"1"))
            assert await asking == Reply(b"1")
            await producer.aclose()

        with_consumer(dsn, test, rpc="both")

    def test_drops_what_it_cannot_take_and_goes_on(
        self, peer: Peer, dsn: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Too large, wrong frames, or without a way back: dropped by itself, and logged."""

        async def test(consumer: ZeroMQRouterConsumer) -> None:
            dealer = peer(zmq.DEALER, connect=dsn)
            for frames in (
                [b"7", b"", b"x" * 101],
                [b"command"],
                [b""],
                [b"7", b"8"],
                [b"7", b"8", b"body"],
                [b"", b"7", b"", b"body"],
                [b"PB1", b"x", b"", b"a", b"body"],
            ):
                dealer.send_multipart(frames)
            dealer.send_multipart([b"7", b"", b"good"])
            (delivery,) = await received(consumer)
            assert delivery.body == b"good"

        with_consumer(dsn, test, max_message_bytes=100)
        reasons = [
            vars(record)["reason"]
            for record in caplog.records
            if record.message == "messages dropped"
        ]
        assert reasons == ["too-large", *["wants-no-answer"] * 2, *["malformed"] * 4]

    def test_a_flood_of_what_it_drops_leaves_others_a_turn(self, peer: Peer, dsn: str) -> None:
        """A receive looks at no more frames than it may return before the loop goes on."""

        async def test(consumer: ZeroMQRouterConsumer) -> None:
            dealer = peer(zmq.DEALER, connect=dsn)
            task = await waiting(consumer)
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    await asyncio.sleep(0)
                    turns += 1

            for _ in range(500):
                dealer.send_multipart([b"7", b"8", b"body"])
            dealer.send_multipart([b"7", b"", b"good"])
            counting = asyncio.create_task(count())
            (delivery,) = await asyncio.wait_for(task, WAIT)
            counting.cancel()
            assert (delivery.body, turns >= 20) == (b"good", True)

        with_consumer(dsn, test)

    def test_keeps_what_it_read_before_an_error(self, dsn: str) -> None:
        """As over PULL: what was read comes first, the next call meets the error."""

        async def test(consumer: ZeroMQRouterConsumer) -> None:
            consumer._open = cast("Any", Broken([b"id", b"7", b"", b"body"]))
            (delivery,) = await consumer.receive(10)
            assert delivery.body == b"body"
            with pytest.raises(TransportError, match=f"receive from {dsn}"):
                await consumer.receive(10)
            consumer._open = None

        with_consumer(dsn, test)

    def test_answering_uses_up_no_signal_of_a_query(
        self, peer: Peer, dsn: str, message: Make
    ) -> None:
        """A reply may take the only signal of a query that came meanwhile, which is still seen."""

        async def test(consumer: ZeroMQRouterConsumer) -> None:
            async def serve() -> None:
                while True:
                    for delivery in await consumer.receive(1):
                        asyncio.get_running_loop().call_soon(delivery.reply, Reply(delivery.body))

            serving = asyncio.create_task(serve())
            producer = ZeroMQDealerProducer(ZeroMQProducerSettings(dsn=dsn, rpc=True))

            def ask(number: int) -> None:
                for index in range(200):
                    body = b"%d %d" % (number, index)
                    reply = Promise[Reply]()
                    producer.request(message(body), reply)
                    assert reply.result(WAIT) == Reply(body)

            await asyncio.gather(*[asyncio.to_thread(ask, number) for number in range(4)])
            serving.cancel()
            producer.close()

        with_consumer(dsn, test)

    def test_may_connect_to_a_producer_that_binds(self, dsn: str, message: Make) -> None:
        """`bind = false` turns the direction of the connection round."""

        async def test(consumer: ZeroMQRouterConsumer) -> None:
            producer = ZeroMQDealerProducer(ZeroMQProducerSettings(dsn=dsn, rpc=True, bind=True))
            asking = asyncio.create_task(producer.arequest(message(b"1")))
            (delivery,) = await received(consumer)
            delivery.reply(Reply(b"2"))
            assert await asking == Reply(b"2")
            await producer.aclose()

        with_consumer(dsn, test, bind=False)

    def test_promises_answers(self, dsn: str) -> None:
        """The capabilities are those of ROUTER; nothing is acknowledged."""

        async def test(consumer: ZeroMQRouterConsumer) -> None:
            assert consumer.capabilities == Capabilities(
                queries=True, ordering=True, max_size_bytes=1024 * 1024
            )

        with_consumer(dsn, test)


class Broken:
    """An open socket that gives a few frames and then fails."""

    def __init__(self, frames: list[bytes]) -> None:
        self._frames = frames
        self.socket = self.bare = self

    def recv(self, flags: int) -> bytes:
        """Give the next frame, or fail."""
        if not self._frames:
            raise zmq.ZMQError(zmq.ETERM)
        return self._frames.pop(0)

    def get(self, option: int) -> int:
        """Say whether the message has more frames."""
        return len(self._frames)


WORKER = """
    import sys
    from postbus import MessageCatalog, Query, QueryBus, QueryRouter, Worker, MessageKind
    from postbus.worker import ConsumerRun
    from postbus_zeromq import ZeroMQConsumerSettings, ZeroMQRouterConsumer
    import attrs

    @attrs.frozen
    class Double(Query[int], name="calc.double"):
        number: int

    catalog = MessageCatalog()
    catalog.add(Double)
    bus = QueryBus()
    bus.utilize(QueryRouter({Double: lambda query: 2 * query.number}))
    consumer = ZeroMQRouterConsumer(ZeroMQConsumerSettings(dsn=sys.argv[1], rpc=True))
    Worker({MessageKind.QUERY: bus}, [ConsumerRun(name="calc", consumer=consumer)], catalog).run()
"""


class TestWorker:
    def test_a_bare_client_asks_a_worker_in_another_process(self, peer: Peer, dsn: str) -> None:
        """One REQ socket, and no postbus on its side; junk is answered with a problem."""
        with subprocess.Popen(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(WORKER), dsn],
            stderr=subprocess.DEVNULL,
        ) as worker:
            try:
                client = peer(zmq.REQ, connect=dsn)
                client.set(zmq.RCVTIMEO, 30_000)
                client.set(zmq.SNDTIMEO, 30_000)
                client.send_json(
                    {
                        "message_name": "calc.double",
                        "uuid": "0b0c41cf-5c9a-4bd9-9c2e-3a1d83b5d0a7",
                        "payload": {"number": 21},
                        "metadata": {},
                        "created_at": "2026-01-31T12:00:00.000000",
                    }
                )
                assert client.recv_multipart() == [b"42"]
                client.send(b"junk")
                problem, mark = client.recv_multipart()
                assert (b'"code":"malformed"' in problem, mark) == (True, b"problem")
            finally:
                worker.terminate()
        assert worker.returncode == 0


def test_the_log_says_no_bodies(peer: Peer, dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    """What is dropped is counted and measured, never quoted."""
    caplog.set_level(logging.DEBUG)

    async def test(consumer: ZeroMQRouterConsumer) -> None:
        dealer = peer(zmq.DEALER, connect=dsn)
        dealer.send_multipart([b"secret"])
        dealer.send_multipart([b"7", b"", b"good"])
        await received(consumer)

    with_consumer(dsn, test)
    assert "secret" not in " ".join(str(vars(record)) for record in caplog.records)
