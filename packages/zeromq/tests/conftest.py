"""What the tests share: free addresses, and peers that are bare pyzmq."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import pytest
import zmq

from postbus.transports import WireMessage

Peer = Callable[..., "zmq.Socket[bytes]"]
Frames = list[bytes]
Answering = Callable[[Frames], Sequence[Frames]]


@pytest.fixture
def free_dsn() -> Callable[[], str]:
    """Return a function that names a free address of this machine."""

    def find() -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return f"tcp://127.0.0.1:{probe.getsockname()[1]}"

    return find


@pytest.fixture
def dsn(free_dsn: Callable[[], str]) -> str:
    """Name one free address of this machine."""
    return free_dsn()


@pytest.fixture
def peer() -> Iterator[Peer]:
    """Return a function that opens bare pyzmq sockets; a read of one gives up after 10 seconds."""
    with ExitStack() as stack:
        context: zmq.Context[zmq.Socket[bytes]] = stack.enter_context(zmq.Context())

        def open_peer(
            kind: zmq.SocketType, *, bind: str = "", connect: str = "", high_water_mark: int = 1000
        ) -> zmq.Socket[bytes]:
            opened = stack.enter_context(context.socket(kind))
            opened.set(zmq.LINGER, 0)
            opened.set(zmq.RCVTIMEO, 10_000)
            opened.set(zmq.SNDTIMEO, 10_000)
            opened.set(zmq.RCVHWM, high_water_mark)
            opened.set(zmq.SNDHWM, high_water_mark)
            if bind:
                opened.bind(bind)
            else:
                opened.connect(connect)
            return opened

        yield open_peer


@pytest.fixture
def answering(peer: Peer) -> Iterator[Callable[..., zmq.Socket[bytes]]]:
    """Return a function that serves a bare socket in a thread: from its frames to replies."""
    ended = threading.Event()
    threads: list[threading.Thread] = []

    def start(kind: zmq.SocketType, answer: Answering, **where: object) -> zmq.Socket[bytes]:
        opened = peer(kind, **where)

        def serve() -> None:
            while not ended.is_set():
                if opened.poll(20):
                    for reply in answer(opened.recv_multipart()):
                        opened.send_multipart(reply)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return opened

    yield start
    ended.set()
    for thread in threads:
        thread.join(20)


@pytest.fixture
def message() -> Callable[..., WireMessage]:
    """Return a function that makes a message of a body."""

    def make(body: bytes = b'{"text":"It works"}', **fields: object) -> WireMessage:
        return WireMessage(body, {}, "an-id", "shop.echo-text", **fields)  # type: ignore[arg-type]  # a test says which

    return make
