"""What a socket is told when it is opened."""

from __future__ import annotations

import pytest
import zmq

from postbus.errors import ConnectionFailedError
from postbus_zeromq._sockets import Endpoint, PushSocket, milliseconds, open_socket


class TestMilliseconds:
    @pytest.mark.parametrize(
        ("seconds", "expected"), [(0.0, 0), (0.0001, 1), (0.5, 500), (1.0, 1000), (5, 5000)]
    )
    def test_are_never_fewer_than_asked_for(self, seconds: float, expected: int) -> None:
        """A short time is not rounded to none, which would mean something else."""
        assert expected == milliseconds(seconds)


class TestOpenSocket:
    def test_bounds_what_a_peer_may_cost(self, dsn: str) -> None:
        """Queues, frames and handshakes have limits from the first connection on (A1, A13)."""
        opened = open_socket(zmq.PULL, Endpoint(dsn, True, 7, 0.0, 1_000_000))
        options = (zmq.RCVHWM, zmq.SNDHWM, zmq.MAXMSGSIZE, zmq.HANDSHAKE_IVL, zmq.IMMEDIATE)
        assert [opened.socket.get(each) for each in options] == [7, 7, 4_000_000, 5000, 1]
        opened.close()

    def test_leaves_nothing_behind_when_it_fails(self, dsn: str) -> None:
        """A refused bind closes what it had opened: no warning, no descriptor."""
        opened = open_socket(zmq.PULL, Endpoint(dsn, True, 7, 0.0, 1000))
        with pytest.raises(ConnectionFailedError, match=f"cannot bind {dsn}"):
            open_socket(zmq.PULL, Endpoint(dsn, True, 7, 0.0, 1000))
        opened.close()


class TestPushSocket:
    def test_leaves_its_first_message_to_the_way_that_waits(self, dsn: str) -> None:
        """However fast the connection is made: that way notes that there was a peer."""
        socket = PushSocket(Endpoint(dsn, False, 7, 0.0, 1000))
        assert socket.offer(b"first") is False
        assert socket.has_sent is False
        socket.close()
