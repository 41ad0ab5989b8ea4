"""The map from pyzmq's errors to postbus's."""

from __future__ import annotations

import errno
import inspect

import pytest
import zmq

from postbus.errors import (
    ClosedError,
    ConnectionFailedError,
    RejectedError,
    TimedOutError,
    TransportError,
    UnsupportedError,
)
from postbus_zeromq._errors import BY_CLASS, translate

RAISED_BY_ZMQ = [
    each
    for _, each in inspect.getmembers(zmq.error, inspect.isclass)
    if issubclass(each, Exception) and not issubclass(each, Warning)
]


class TestTranslate:
    @pytest.mark.parametrize("kind", RAISED_BY_ZMQ)
    def test_knows_every_error_of_pyzmq(self, kind: type[Exception]) -> None:
        """Nothing that pyzmq raises leaves this package as it is: each class has its own entry."""
        assert kind in BY_CLASS

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (zmq.ZMQError(errno.EADDRINUSE), ConnectionFailedError),
            (zmq.ZMQError(errno.EMSGSIZE), RejectedError),
            (zmq.ZMQError(errno.EPROTONOSUPPORT), UnsupportedError),
            (zmq.ZMQError(zmq.ENOTSOCK), ClosedError),
            (zmq.Again(), TimedOutError),
            (zmq.ContextTerminated(), ClosedError),
            (zmq.NotDone(), TimedOutError),
            (zmq.ZMQVersionError("4.0", "3.2"), UnsupportedError),
        ],
    )
    def test_picks_the_most_specific_entry(
        self, error: Exception, expected: type[TransportError]
    ) -> None:
        """An errno says more than a class, a class more than its base."""
        assert expected is type(translate(error, "send"))

    def test_says_what_was_tried_and_why_it_failed(self) -> None:
        """The text names the step, the address and the system's reason."""
        error = translate(zmq.ZMQError(errno.EADDRINUSE), "bind tcp://127.0.0.1:1")
        assert str(error) == "cannot bind tcp://127.0.0.1:1: Address already in use"
